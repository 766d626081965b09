"""Reading a checkpoint with the libraries that will read it in the end: Orbax, Flax, safetensors and NumPy."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from converter.dtypes import numpy_dtype
from converter.errors import UnreadableCheckpoint, UsageError
from converter.formats.checkpoint import Checkpoint, Progress
from converter.paths import Path, format_path
from converter.planning.plan import Step
from converter.tree import LeafKind
from converter.verification.structure import Difference
from converter.verification.values import Proof, ValuesResult, value_difference

READERS = {"orbax": "Orbax", "msgpack": "Flax", "safetensors": "safetensors", "npz": "NumPy"}


def require_reader(format: str) -> None:
    """Refuses a full verification whose library is missing, before anything is done.

    Raises:
      UsageError
    """
    if format == "safetensors" and importlib.util.find_spec("safetensors") is None:
        raise UsageError(
            "a full verification reads safetensors files with the library of that name, which is not installed",
            "Install it (pip install 'flax-convert[safetensors]'), or verify without it.",
        )


def compare_with_library(steps: Iterable[Step], destination: Checkpoint, progress: Progress) -> ValuesResult:
    """Compares every leaf with what the library reads, which is the whole checkpoint at once: all of it is in memory.

    Raises:
      UnreadableCheckpoint: the library cannot read it.
    """
    reader = READERS[destination.format]
    try:
        tree = _read(destination)
    except Exception as error:
        raise UnreadableCheckpoint(f"{reader} cannot read {destination.location}: {error}") from error
    leaves = nbytes = 0
    differences: list[Difference] = []
    for step in steps:
        if step.spec.kind is LeafKind.EMPTY:
            continue
        difference = _difference(step, _at(tree, step.target))
        if difference is not None:
            differences.append(Difference(format_path(step.target), *difference))
        leaves += 1
        nbytes += step.spec.nbytes
        progress(step.spec.nbytes, 1)
    found = {Proof.VALUES: (leaves - len(differences), nbytes)}
    return ValuesResult(leaves, nbytes, tuple(differences), found, reader)


def _read(checkpoint: Checkpoint) -> Any:
    """What the library makes of it; of items that are read as one, each in its place."""
    read = _READ[checkpoint.format]
    if not checkpoint.parts:
        return read(checkpoint.location)
    return _nested(leaf for part, place in checkpoint.parts.items() for leaf in _flat(read(part), place))


_NOTHING = object()


def _difference(step: Step, found: Any) -> tuple[str, str] | None:
    if found is _NOTHING:
        return str(step.spec), "nothing"
    if step.spec.kind is LeafKind.KEY:
        import jax

        dtypes = jax.dtypes
        found = jax.random.key_data(found) if dtypes.issubdtype(found.dtype, dtypes.prng_key) else found
    value = step.fetch()
    if not hasattr(value, "dtype") and hasattr(found, "item") and not getattr(found, "shape", ()):
        found = type(value)(found.item())
    return value_difference(value, found)


def _at(tree: Any, path: Path) -> Any:
    """The value at a path of nested dicts and sequences."""
    for key in path:
        if isinstance(tree, list | tuple):
            tree = tree[int(key)] if key.isdecimal() and int(key) < len(tree) else _NOTHING
        elif isinstance(tree, dict):
            tree = tree.get(str(key), _NOTHING)
        else:
            return _NOTHING
    return tree


def _read_orbax(directory: FilePath) -> Any:
    """Arrays as NumPy arrays, whatever devices the checkpoint speaks of; typed PRNG keys as such."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        metadata = reader.metadata(directory.absolute())
        item = getattr(metadata, "item_metadata", metadata)
        tree = getattr(item, "tree", item)

        def wanted(leaf: Any) -> Any:
            dtype = getattr(leaf, "dtype", None)
            if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
                return ocp.ArrayRestoreArgs(sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
            return ocp.RestoreArgs(restore_type=np.ndarray if hasattr(leaf, "shape") else None)

        arguments = jax.tree.map(wanted, tree, is_leaf=lambda each: hasattr(each, "dtype"))
        return reader.restore(directory.absolute(), restore_args=arguments)


def _read_msgpack(file: FilePath) -> Any:
    from flax import serialization

    from converter.formats.msgpack.files import files_of

    _, files = files_of(file)
    if len(files) == 1:
        return serialization.msgpack_restore(files[0].read_bytes())
    return _nested(leaf for each in files for leaf in _flat(serialization.msgpack_restore(each.read_bytes())))


def _flat(value: Any, above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """What stands in nested dicts, below the path ``above``."""
    if not isinstance(value, dict):
        yield above, value
        return
    for key, inner in value.items():
        yield from _flat(inner, (*above, key))


def _read_safetensors(file: FilePath) -> Any:
    """All files of the checkpoint. The library's NumPy and JAX readers know no float8, so that it only parses them."""
    import numpy as np
    import safetensors

    from converter.formats.safetensors.files import find_files
    from converter.formats.safetensors.header import DTYPES
    from converter.formats.safetensors.names import read_naming

    library: Any = safetensors  # of which releases disagree about types
    parts: list[tuple[Mapping[str, str], dict[str, Any]]] = []
    for each in find_files(file).headers:
        with library.safe_open(each, "np") as opened:
            metadata = dict(opened.metadata() or {})
        arrays = {
            name: np.frombuffer(held["data"], numpy_dtype(DTYPES[held["dtype"]])).reshape(held["shape"])
            for name, held in library.deserialize(each.read_bytes())
        }
        parts.append((metadata, arrays))
    names = [name for _, arrays in parts for name in arrays]
    namings = [(read_naming(metadata, names), arrays) for metadata, arrays in parts]
    return _nested((naming.path(name), array) for naming, arrays in namings for name, array in arrays.items())


def _read_npz(file: FilePath) -> Any:
    import ml_dtypes
    import numpy as np

    from converter.formats.flat_names import separator_of, split_name

    with np.load(file) as opened:
        arrays = {name: opened[name] for name in opened.files}
    native = {
        name: array.view(ml_dtypes.bfloat16) if array.dtype.kind == "V" else array.astype(array.dtype.newbyteorder("="))
        for name, array in arrays.items()
    }
    separator = separator_of(native)
    return _nested((split_name(name, separator), array) for name, array in native.items())


def _nested(values: Iterable[tuple[Path, Any]]) -> Any:
    """Nested dicts whose keys are texts."""
    root: dict[str, Any] = {}
    for path, value in values:
        node = root
        for key in path[:-1]:
            node = node.setdefault(str(key), {})
        node[str(path[-1])] = value
    return root


_READ: Mapping[str, Callable[[FilePath], Any]] = {
    "orbax": _read_orbax,
    "msgpack": _read_msgpack,
    "safetensors": _read_safetensors,
    "npz": _read_npz,
}
