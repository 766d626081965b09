"""What these tests share: readers that are not the converter's, and where each leaf belongs, worked out by hand.

Leaves are described as in the cards of the fixtures (see fixtures/cards.py), by their path with plain slashes. The
translations of paths here know nothing of the converter: they are written from what both frameworks save.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from flax import serialization

import converter
from converter.tree import LeafKind
from fixtures.cards import describe, digest

Leaf = Mapping[str, Any]
Leaves = dict[str, Leaf]

# Running a conversion ------------------------------------------------------------------------------------------------


def snapshot(path: Path) -> dict[str, tuple[str, int]]:
    """The digest and the time of modification of everything at and below ``path``."""

    def digest_of(entry: Path) -> str:
        return hashlib.sha256(entry.read_bytes()).hexdigest() if entry.is_file() else ""

    return {
        str(entry.relative_to(path)): (digest_of(entry), entry.stat().st_mtime_ns) for entry in (path, *path.rglob("*"))
    }


def convert(source: Path, destination: Path, to: str, **options: Any) -> converter.Report:
    """``converter.convert``, whatever comes of it: the source stays as it is, and a failure leaves nothing behind."""
    before = snapshot(source)
    neighbours = set(destination.parent.iterdir())
    try:
        report = converter.convert(source, destination, to, **options)
    except converter.ConverterError:
        assert set(destination.parent.iterdir()) == neighbours, "a failed conversion left something behind"
        raise
    finally:
        assert snapshot(source) == before, "the source was written to"
    assert set(destination.parent.iterdir()) == neighbours | {destination}
    assert report.ok
    assert report.structure is not None
    assert report.values is not None
    return report


def assert_nothing_vanishes(leaves: Leaves, plan: converter.Plan) -> None:
    """Every leaf of the source goes into one transfer, or is listed as dropped.

    An empty container may be either of these, or ignored.
    """
    transfers = {id(step.transfer): step.transfer for step in plan.steps}.values()
    used = ["/".join(held.source) for transfer in transfers for held in transfer.sources]
    dropped = ["/".join(drop.source) for drop in plan.drops]
    ignored = {"/".join(entry.source) for entry in plan.ignored}
    wanted = {_unwrapped(path, leaves) for path in full(leaves)}
    empty = {_unwrapped(path, leaves) for path in leaves} - wanted
    assert len(used) == len(set(used))
    assert len(dropped) == len(set(dropped))
    assert not set(used) & set(dropped)
    assert not ignored & wanted
    assert set(used) | set(dropped) == wanted | (empty & set(used))


def _unwrapped(path: str, leaves: Leaves) -> str:
    """Plans name leaves without the ``value`` of an NNX Variable or of a box around a parameter."""
    wrapped = path.endswith(("/value", "/raw_value"))
    beside = [other for other in leaves if other.rpartition("/")[0] == path.rpartition("/")[0]]
    return path.rpartition("/")[0] if wrapped and len(beside) == 1 else path


# Reading what was written, by the libraries themselves ---------------------------------------------------------------


def read(path: Path) -> Leaves:
    """The leaves of a checkpoint and its empty containers, as the library of its format reads them."""
    return flat(describe(restored(path)))


def restored(path: Path) -> Any:
    """The checkpoint as nested dicts and lists."""
    if path.is_file():
        data = path.read_bytes()
        return nested_safetensors(path) if data[8:9] == b"{" else serialization.msgpack_restore(data)
    with ocp.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata.tree
        return checkpointer.restore(path, restore_args=jax.tree.map(_on_this_machine, metadata))


FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
"""The library's readers of NumPy and JAX arrays know no float8, only what lies beneath them does."""


def nested_safetensors(path: Path) -> Any:
    """Nested dicts of what the library finds under names with dots; Python numbers and empty containers are in the
    metadata."""
    with safetensors.safe_open(path, "np") as opened:
        told = json.loads(opened.metadata()["flax_convert.tree"])
    assert told["separator"] == "."
    assert "paths" not in told
    found: dict[str, Any] = {name: {} for names in told.get("empty", {}).values() for name in names}
    for name, held in safetensors.deserialize(path.read_bytes()):
        dtype = FLOAT8.get(held["dtype"]) or {**safetensors.numpy._TYPES, "BF16": ml_dtypes.bfloat16}[held["dtype"]]
        value: Any = np.frombuffer(held["data"], dtype).reshape(held["shape"])
        if (kind := told.get("kinds", {}).get(name)) is not None:
            value = value[()] if kind == "numpy" else value.item()
        found[name] = value
    root: dict[str, Any] = {}
    for name, value in found.items():
        *above, last = name.split(".")
        node = root
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return root


def _on_this_machine(metadata: Any) -> ocp.RestoreArgs:
    if type(metadata) is ocp.metadata.ArrayMetadata:  # that of a Python number is a subclass
        if np.dtype(metadata.dtype).itemsize == 8 and np.dtype(metadata.dtype).kind in "iuf":
            return ocp.RestoreArgs(restore_type=np.ndarray)  # JAX would make it one of 32 bits
        return ocp.ArrayRestoreArgs(sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return ocp.RestoreArgs()


def read_ourselves(tree: Any) -> Leaves:
    """A tree of the converter (``inspect(…).checkpoint.tree``) as a card would describe it; every leaf is fetched."""
    return {"/".join(path): _described(leaf.spec, leaf.fetch()) for path, leaf in tree.items()}


def _described(spec: Any, value: Any) -> Leaf:
    match spec.kind:
        case LeafKind.EMPTY:
            return {"empty": spec.dtype}
        case LeafKind.KEY:
            return {"key": spec.dtype, "shape": list(spec.shape), "sha256": digest(np.asarray(value))}
        case LeafKind.SCALAR | LeafKind.TEXT:
            assert type(value).__name__ == spec.dtype
            return {"python": spec.dtype, "value": value}
        case LeafKind.NUMPY_SCALAR:
            return {"numpy": spec.dtype, "value": value.item()}
    array = np.asarray(value)
    assert (array.dtype.name, array.shape) == (spec.dtype, spec.shape)
    return {"dtype": spec.dtype, "shape": list(spec.shape), "sha256": digest(array)}


# Comparing -----------------------------------------------------------------------------------------------------------


def flat(leaves: Mapping[str, Leaf]) -> Leaves:
    """Leaves of a card by paths without quotes."""
    return {
        re.sub(r'"(?:[^"\\]|\\.)*"', lambda quoted: json.loads(quoted.group()), path): leaf
        for path, leaf in leaves.items()
    }


def full(leaves: Mapping[str, Leaf]) -> Leaves:
    """Without the empty containers."""
    return {path: leaf for path, leaf in leaves.items() if "empty" not in leaf}


def assert_equal(found: Leaves, expected: Leaves) -> None:
    """The same leaves, and at each path the same dtype, shape and bits; NumPy scalars may have become something else.

    Empty containers do not count: savers and restorers treat them in many ways.
    """
    found, expected = full(found), full(expected)
    assert sorted(found) == sorted(expected)
    wrong = {path: (leaf, found[path]) for path, leaf in expected.items() if not _agree(found[path], leaf)}
    assert not wrong, "\n".join(f"{path}: expected {leaf}, found {other}" for path, (leaf, other) in wrong.items())


def _agree(found: Leaf, expected: Leaf) -> bool:
    """Whether two descriptions mean the same; a digest may be given by its first digits."""
    if "sha256" in found and "sha256" in expected:
        return {**found, "sha256": found["sha256"][: len(expected["sha256"])]} == expected
    if "numpy" in found and "dtype" in expected:
        return _agree(as_array(found), expected)
    if "numpy" in expected and "dtype" in found:
        return _agree(found, as_array(expected))
    # Some savers make a NumPy scalar a Python number.
    return found == expected or ("numpy" in expected and found.get("value") == expected["value"])


def as_array(leaf: Leaf) -> Leaf:
    """A NumPy scalar or Python number as the 0-d array that some savers make of it."""
    array = np.asarray(leaf["value"], leaf.get("numpy"))
    return {"dtype": array.dtype.name, "shape": [], "sha256": digest(array)}


# Where each leaf belongs ---------------------------------------------------------------------------------------------

Names = Callable[[str], str]


def no_names(path: str) -> str:
    return path


def names_to_nnx(path: str) -> str:
    """The names of the models in fixtures/models.py in NNX, from those in Linen."""
    return re.sub(r"(^|/)blocks_(\d+)/", r"\1blocks/\2/", _gates_to_nnx(path))


def names_to_linen(path: str) -> str:
    return re.sub(r"(^|/)blocks/(\d+)/", r"\1blocks_\2/", _gates_to_linen(path))


def _gates_to_nnx(path: str) -> str:
    return path.replace("/if/", "/if_/")


def _gates_to_linen(path: str) -> str:
    return path.replace("/if_/", "/if/")


LSTM_TO_NNX, LSTM_TO_LINEN = _gates_to_nnx, _gates_to_linen
"""What is renamed without a model too: the gates of LSTM cells."""


def linen_to_nnx(
    leaves: Leaves,
    dialect: str,
    *,
    suffix: str,
    names: Names = no_names,
    model: str = "model/",
    optimizer: str = "optimizer/",
) -> Leaves:
    """What an NNX checkpoint made of these Linen leaves holds.

    Args:
      dialect: ``linen_variables``, ``linen_params``, ``linen_train_state`` or ``linen_t5x``.
      suffix: what every path ends in: ``/value`` for an ``nnx.State``, nothing for a pure dict.
      names: the name of a variable in NNX.
      model, optimizer: where a train state's model and optimizer stand.
    """
    moved: Leaves = {}
    if dialect == "linen_t5x":
        leaves = t5x_to_train_state(leaves)
    for path, leaf in full(leaves).items():
        plain = unboxed(path)
        field, _, inside = plain.partition("/")
        if dialect == "linen_variables":
            target = names(inside)
        elif dialect == "linen_params":
            target = names(plain)
        elif field in ("params", "batch_stats"):
            target = model + names(inside.removeprefix("params/"))
        elif field == "step":
            target, leaf = f"{optimizer}step", counter(leaf, "uint32")
        elif field == "opt_state":
            target = optimizer + names(plain.replace("/params/", "/"))
        else:
            target = names(plain)
        assert target + suffix not in moved
        moved[target + suffix] = leaf
    return moved


def t5x_to_train_state(leaves: Leaves) -> Leaves:
    """The same leaves where a train state has them."""
    fields = {"target": "params", "state/step": "step", "state/param_states": "opt_state"}

    def moved(path: str) -> str:
        inside = path.removeprefix("optimizer/")
        return next((new + inside.removeprefix(old) for old, new in fields.items() if inside.startswith(old)), path)

    return {moved(path): leaf for path, leaf in leaves.items()}


def nnx_to_linen(
    leaves: Leaves,
    *,
    collection: Callable[[str], str],
    names: Names = no_names,
    model: str | None = "",
    optimizer: str = "",
) -> Leaves:
    """What a Linen checkpoint made of these NNX leaves holds.

    Args:
      collection: the collection of a variable by its path; "" for one that is left out.
      names: the name of a variable in Linen.
      model, optimizer: what the paths of the model and of the optimizer begin with; None for an optimizer alone.
    """
    moved: Leaves = {}
    for path, leaf in full(leaves).items():
        plain = re.sub("/(raw_)?value$", "", path)
        in_optimizer = plain.removeprefix(optimizer)
        if plain.startswith(optimizer) and in_optimizer == "step":
            target, leaf = "step", counter(leaf, "int32")
        elif plain.startswith(optimizer) and in_optimizer.startswith("opt_state/"):
            target = names(in_optimizer)
        elif model is not None and plain.startswith(model):
            variable = plain.removeprefix(model)
            if not collection(variable):
                continue
            target = f"{collection(variable)}/{names(variable)}"
        else:
            target = names(plain)
        assert target not in moved
        moved[target] = leaf
    return moved


def unboxed(path: str) -> str:
    return re.sub("(kernel|bias|scale|embedding)/value$", r"\1", path)


def counter(leaf: Leaf, dtype: str) -> Leaf:
    """A step counter: Linen's is an int32 or a Python int, NNX's a uint32."""
    if "python" in leaf:
        return {"dtype": dtype, "shape": [], "sha256": digest(np.asarray(leaf["value"], dtype))}
    assert leaf["dtype"] in ("int32", "uint32")
    return {**leaf, "dtype": dtype}


def collection_by_name(path: str) -> str:
    """The collections of Flax's own layers, and of no others."""
    name = path.rpartition("/")[2]
    if re.search("(^|/)rngs/(key|count|[a-z]+/(key|count))$", path):
        return ""
    return {"mean": "batch_stats", "var": "batch_stats", **dict.fromkeys(CACHE, "cache")}.get(name, "params")


CACHE = ("cached_key", "cached_value", "cache_index")
