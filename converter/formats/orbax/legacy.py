"""The msgpack file ``checkpoint`` of T5X and older Orbax: the whole tree up to 0.2, values "aggregated" up to 0.5.

A leaf is the text ``PLACEHOLDER://<name>`` (in T5X a spec of TensorStore, see ``t5x``) where its array has a directory
of its own, else the value itself, encoded as ``flax.serialization`` does: extension 1 is an array, 2 a complex number,
3 a NumPy scalar, and an array of more than 2**30 bytes is a dict of chunks. Seen in files written by orbax-checkpoint
0.2.0 and 0.4.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from converter.dtypes import numpy_dtype
from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats.t5x import ArrayReference, is_spec, read_spec
from converter.paths import IndexKey, Key, Path, format_path
from converter.tree import LazyLeaf, Leaf, LeafKind, LeafSpec, array_spec, empty_spec

_PLACEHOLDER = "PLACEHOLDER://"
_FLAX_PLACEHOLDERS = ("//GDAPlaceholder:", "//GDAARRAYPlaceholder:")
_CHUNKED = "__msgpack_chunked_array__"
_ARRAY, _COMPLEX, _NUMPY_SCALAR = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Stands for an array that has a directory of its own, called ``name``."""

    name: str


def read_legacy_tree(file: FilePath) -> dict[Path, Leaf | Placeholder | ArrayReference]:
    """Reads the file as a whole; its arrays are in memory then.

    Raises:
      UnreadableCheckpoint: absent, truncated or no msgpack.
      UnsupportedCheckpoint: leaves that refer to files of other processes, or to arrays in another way than T5X does.
    """
    import msgpack

    try:
        content = msgpack.unpackb(file.read_bytes(), ext_hook=_decode, strict_map_key=False, raw=False)
    except OSError as error:
        raise UnreadableCheckpoint(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise UnreadableCheckpoint(f"{file} is damaged: no msgpack tree ({error!r})") from None
    return dict(_leaves(content, ()))


def _decode(code: int, data: bytes) -> Any:
    import msgpack
    import numpy as np

    if code == _COMPLEX:
        return complex(*msgpack.unpackb(data))
    if code not in (_ARRAY, _NUMPY_SCALAR):
        raise ValueError(f"unknown msgpack extension {code}")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True)
    array = np.frombuffer(buffer, dtype=numpy_dtype(dtype.decode())).reshape(shape)
    return array if code == _ARRAY else array[()]


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Leaf | Placeholder | ArrayReference]]:
    if is_spec(value):
        yield path, read_spec(value, path)
    elif isinstance(value, dict) and _CHUNKED in value:
        yield path, _leaf(_join_chunks(value), path)
    elif isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, (*path, str(key)))
    elif isinstance(value, list) and value:
        for position, child in enumerate(value):
            index: Key = IndexKey(position)
            yield from _leaves(child, (*path, index))
    elif isinstance(value, str) and value.startswith(_PLACEHOLDER):
        yield path, Placeholder(value.removeprefix(_PLACEHOLDER))
    else:
        yield path, _leaf(value, path)


def _join_chunks(value: Mapping[str, Any]) -> Any:
    import numpy as np

    shape = [value["shape"][str(axis)] for axis in range(len(value["shape"]))]
    return np.concatenate([value["chunks"][str(number)] for number in range(len(value["chunks"]))]).reshape(shape)


def _leaf(value: Any, path: Path) -> Leaf:
    return LazyLeaf(_spec(value, path), lambda: None if isinstance(value, (dict, list)) else value)


def _spec(value: Any, path: Path) -> LeafSpec:
    import numpy as np

    match value:
        case None:
            return empty_spec("none")
        case dict():
            return empty_spec("dict")
        case list():
            return empty_spec("list")
        case np.ndarray():
            return array_spec(value.dtype.name, value.shape)
        case np.generic():
            return LeafSpec(LeafKind.NUMPY_SCALAR, value.dtype.name)
        case bool() | int() | float() | complex():
            return LeafSpec(LeafKind.SCALAR, type(value).__name__)
        case str() if value.startswith(_FLAX_PLACEHOLDERS):
            raise UnsupportedCheckpoint(
                f"{format_path(path)}: the value was saved by several processes into files of their own ({value})",
                "Restore it with the Flax version that wrote it and save it again.",
            )
        case str() | bytes():
            return LeafSpec(LeafKind.TEXT, type(value).__name__)
        case _:
            raise UnsupportedCheckpoint(f"{format_path(path)}: a value of type {type(value).__name__} cannot be a leaf")
