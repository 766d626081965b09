"""What flax puts inside of msgpack's values: arrays, NumPy scalars, complex numbers, and arrays split into chunks.

The layouts are those of ``flax/serialization.py`` (``_ndarray_to_bytes``, ``_msgpack_ext_pack`` and ``_chunk``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from converter.dtypes import is_common_dtype, item_size, numpy_dtype
from converter.errors import UnsupportedCheckpoint
from converter.formats.msgpack.wire import Family, Head, Reader
from converter.paths import Key, Path, format_path
from converter.stored import Extent
from converter.tree import LeafKind, LeafSpec, array_spec, empty_spec

EXT_ARRAY, EXT_COMPLEX, EXT_NUMPY_SCALAR = 1, 2, 3
"""The extension types of flax (``_MsgpackExtType``)."""

CHUNKED_ARRAY = "__msgpack_chunked_array__"
"""The key by which flax tells the parts of a split array from a dict."""

MAX_AXES = 64
"""NumPy's own limit (NPY_MAXDIMS)."""
MAX_BYTES = 2**63 - 1


@dataclass(slots=True)
class Entry:
    """One leaf in the file.

    Attributes:
      spec: what the leaf is.
      extents: where its payload lies: arrays (C order, little-endian) and text; several for an array that flax split.
      value: the value of a Python number, which its header holds.
    """

    spec: LeafSpec
    extents: tuple[Extent, ...] = ()
    value: Any = None


def decode(reader: Reader, extent: Extent, what: str) -> str:
    """Raises UnreadableCheckpoint where the bytes are no UTF-8."""
    raw = reader.data[extent.offset : extent.offset + extent.length]
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        wrong = raw[error.start : error.start + 8]
        raise reader.damaged(extent.offset + error.start, f"{what} in UTF-8", f"the bytes {wrong!r}") from None


def complex_entry(reader: Reader, head: Head) -> Entry:
    """Reads extension type 2: [real, imaginary].

    Raises:
      UnreadableCheckpoint: anything else.
    """
    end = head.body + head.value
    pair = _expect(reader, head.body, end, "the real and the imaginary part", Family.ARRAY, count=2)
    real = _expect(reader, pair.body, end, "the real part", Family.FLOAT, Family.INT)
    imaginary = _expect(reader, real.body, end, "the imaginary part", Family.FLOAT, Family.INT)
    if imaginary.body != end:
        raise reader.damaged(imaginary.body, "the end of a complex number", f"{end - imaginary.body} more bytes")
    return Entry(LeafSpec(LeafKind.SCALAR, "complex"), value=complex(real.value, imaginary.value))


def array_entry(reader: Reader, head: Head) -> Entry:
    """Reads extension types 1 and 3: [[length of each axis], name of the dtype, payload].

    Raises:
      UnreadableCheckpoint: anything else, or a shape that does not fit the length of the payload.
      UnsupportedCheckpoint: an unknown dtype.
    """
    end = head.body + head.value
    triple = _expect(reader, head.body, end, "shape, dtype and data of an array", Family.ARRAY, count=3)
    axes = _expect(reader, triple.body, end, "the shape of an array", Family.ARRAY)
    shape: list[int] = []
    offset = axes.body
    for _ in range(min(axes.value, MAX_AXES + 1)):
        axis = _expect(reader, offset, end, "the length of an axis", Family.INT)
        shape.append(axis.value)
        offset = axis.body
    if head.code == EXT_NUMPY_SCALAR and shape:
        raise reader.damaged(axes.offset, "the empty shape of a NumPy scalar", str(axes))
    _check_axes(reader, axes.offset, shape)
    # flax itself reads both families here: text is what msgpack wrote for bytes before it had a type for them.
    name = _expect(reader, offset, end, "the name of a dtype", Family.TEXT, Family.BYTES)
    dtype = _dtype(reader, reader.extent(name))
    data = _expect(reader, name.body + name.value, end, "the data of an array", Family.BYTES, Family.TEXT)
    if data.body + data.value != end:
        raise reader.damaged(data.offset, f"{end - data.body} bytes of data, up to the end of the array", str(data))
    _check_size(reader, axes.offset, shape, dtype, data.value)
    kind = LeafKind.ARRAY if head.code == EXT_ARRAY else LeafKind.NUMPY_SCALAR
    return Entry(LeafSpec(kind, dtype, tuple(shape)), (reader.extent(data),))


def joined_entry(reader: Reader, offset: int, parts: dict[Path, Entry]) -> Entry:
    """The one array of ``{CHUNKED_ARRAY: True, "shape": {"0": …}, "chunks": {"0": array, …}}``.

    Args:
      reader: for messages.
      offset: where this map begins.
      parts: its leaves, by path below the map; emptied.

    Raises:
      UnreadableCheckpoint: a part is missing, of the wrong kind or too much, or the sizes do not add up.
    """
    parts.pop((CHUNKED_ARRAY,), None)
    axes, chunks = _numbered(parts, "shape"), _numbered(parts, "chunks")
    if not axes and parts.get(("shape",), Entry(array_spec("bool"))).spec == empty_spec("dict"):
        del parts[("shape",)]
    if parts:
        raise reader.damaged(
            offset, "a split array: shape/0, shape/1 … and chunks/0, chunks/1 …", ", ".join(map(format_path, parts))
        )
    if any(str(axis.spec) != "int" for axis in axes):
        raise reader.damaged(offset, "ints as the shape of a split array", _specs(axes))
    first = chunks[0].spec if chunks else None
    if not first or any(chunk.spec.kind is not LeafKind.ARRAY or chunk.spec.dtype != first.dtype for chunk in chunks):
        raise reader.damaged(offset, "arrays of one dtype as the chunks of a split array", _specs(chunks))
    shape = [int(axis.value) for axis in axes]
    _check_axes(reader, offset, shape)
    _check_size(reader, offset, shape, first.dtype, sum(chunk.spec.nbytes for chunk in chunks))
    return Entry(array_spec(first.dtype, shape), tuple(extent for chunk in chunks for extent in chunk.extents))


def _expect(reader: Reader, offset: int, end: int, what: str, *families: Family, count: int | None = None) -> Head:
    head = reader.head(offset, end)
    if head.family not in families or (count is not None and head.value != count):
        raise reader.damaged(offset, what, str(head))
    return head


def _dtype(reader: Reader, name: Extent) -> str:
    try:
        dtype = decode(reader, name, "the name of a dtype")
        return dtype if is_common_dtype(dtype) else numpy_dtype(dtype).name
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(f"{reader.place()}: {error.message}.", error.advice) from None


def _check_axes(reader: Reader, offset: int, shape: Sequence[int]) -> None:
    if len(shape) > MAX_AXES:
        raise reader.damaged(offset, f"at most {MAX_AXES} axes", "more")
    if any(axis < 0 for axis in shape):
        raise reader.damaged(offset, "a shape without negative lengths", str(list(shape)))


def _check_size(reader: Reader, offset: int, shape: Sequence[int], dtype: str, nbytes: int) -> None:
    # NumPy refuses a zero-size array, too, whose other axes multiply to more than it can count.
    possible = math.prod(axis or 1 for axis in shape) * item_size(dtype) <= MAX_BYTES
    if not possible or math.prod(shape) * item_size(dtype) != nbytes:
        raise reader.damaged(offset, f"a shape that fits {nbytes} bytes of data", str(array_spec(dtype, shape)))


def _numbered(parts: dict[Path, Entry], name: Key) -> list[Entry]:
    """Takes ``name/0``, ``name/1`` … out of ``parts``."""
    found: list[Entry] = []
    while (name, str(len(found))) in parts:
        found.append(parts.pop((name, str(len(found)))))
    return found


def _specs(entries: Sequence[Entry]) -> str:
    return ", ".join(str(entry.spec) for entry in entries[:8]) or "none"
