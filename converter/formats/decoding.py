"""Reading what a grid says: whole arrays, or their bytes piece by piece in C order.

Chunks are read at their extents and decompressed here, so that nothing larger than a piece has to be in memory. What
this module cannot decode (``can_decode``) is left to the library of the format.
"""

from __future__ import annotations

import functools
import io
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from converter import scratch
from converter.dtypes import item_size, numpy_dtype
from converter.errors import UnreadableCheckpoint
from converter.formats.chunks import COPY_AGAIN, ChunkReader, chunk_bytes, length_of, part_of
from converter.formats.zarr import dtype_name
from converter.grid import Chunk, Form, Grid, Index
from converter.stored import Extent

if TYPE_CHECKING:
    import numpy as np
    import zstandard

    from converter.scratch import Array

_READ = 1 << 20
"""Bytes that are read of a compressed chunk at a time."""

_PIECE = 1 << 22
"""Bytes that are handed on at a time: so few that the same memory serves again and again, and caches hold it."""


def can_decode(grid: Grid) -> bool:
    return grid.encoding.compression in ("", "zstd", "gzip")


def element_type(grid: Grid) -> np.dtype[Any]:
    """The dtype of the elements as they lie on disk, byte order included."""
    import numpy as np

    dtype = grid.encoding.dtype
    return np.dtype(dtype) if dtype[0] in "<>|" else numpy_dtype(dtype)


# Chunks --------------------------------------------------------------------------------------------------------------


def _decoded(
    chunk: Chunk, compression: str, size: int, unit: int = 1, at_once: int = _PIECE
) -> Iterator[bytes | memoryview]:
    """The bytes of a chunk before it was compressed, in pieces of about ``at_once`` bytes, multiples of ``unit``.

    Raises:
      UnreadableCheckpoint: they cannot be decompressed, or are not ``size`` in number.
    """
    piece = max(min(at_once, scratch.limit()) // unit, 1) * unit
    where = f"{chunk.file} at {chunk.offset}" if isinstance(chunk, Extent) else "a value inside of the index"
    total = 0
    try:
        for data in _raw_pieces(chunk, compression, size, piece):
            total += len(data)
            yield data
    except (ValueError, EOFError, zlib.error, OSError) as error:  # gzip raises OSError
        raise UnreadableCheckpoint(f"{where} is damaged: {compression}: {error}", COPY_AGAIN) from None
    if total != size:
        raise UnreadableCheckpoint(f"{where} is damaged: expected {size} bytes, found {total}", COPY_AGAIN)


def _raw_pieces(chunk: Chunk, compression: str, size: int, piece: int) -> Iterator[bytes]:
    if not compression:
        if length_of(chunk) != size:
            raise ValueError(f"expected {size} bytes, found {length_of(chunk)}")
        for start in range(0, size, piece):
            length = min(piece, size - start)
            yield chunk_bytes(part_of(chunk, start, length))
    elif compression == "zstd" and size <= piece:
        yield _unzstd(chunk_bytes(chunk), size)
    else:
        with _reader(chunk, compression) as reader:
            left = size
            while left:
                data = _exactly(reader, min(piece, left))
                yield data
                left -= len(data)
            if reader.read(1):
                raise ValueError(f"more than {size} bytes")


class _OfThisThread(threading.local):
    """What takes longer to make than to decompress a small chunk, and may not be shared between threads."""

    @functools.cached_property
    def decompressor(self) -> zstandard.ZstdDecompressor:
        import zstandard

        return zstandard.ZstdDecompressor()


_OF_THIS_THREAD = _OfThisThread()


def _unzstd(data: bytes, size: int) -> bytes:
    """The contents of a frame, which is not trusted with more room than there should be."""
    import zstandard

    try:
        told = zstandard.frame_content_size(data)
        if told > size:
            raise ValueError(f"expected {size} bytes, found {told}")
        return _OF_THIS_THREAD.decompressor.decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _reader(chunk: Chunk, compression: str) -> Any:
    window: Any = io.BufferedReader(ChunkReader(chunk), _READ)
    if compression == "gzip":
        import gzip

        return gzip.GzipFile(fileobj=window, mode="rb")
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(window, read_size=_READ)


def _exactly(reader: Any, size: int) -> bytes:
    parts, left = [], size
    while left:
        try:
            data = reader.read(left)
        except Exception as error:
            if type(error).__name__ != "ZstdError":
                raise
            raise ValueError(str(error)) from None
        if not data:
            raise EOFError(f"{left} bytes are missing")
        parts.append(data)
        left -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _unsharded(grid: Grid) -> Grid:
    """The parts of sharded chunks as chunks of their own. The index stands behind them, with a crc32c (zarr 3)."""
    if not grid.encoding.sharded:
        return grid
    import numpy as np

    counts = [axis.chunk // axis.inner for axis in grid.axes]
    number = math.prod(counts)
    chunks: dict[Index, Chunk] = {}
    for index, chunk in grid.chunks.items():
        table = _shard_table(chunk, number)
        for part, inner in enumerate(np.ndindex(*counts)):
            offset, length = table[2 * part : 2 * part + 2]
            if offset == length == 2**64 - 1:  # a part of zeros that was not stored
                continue
            place = tuple(i * c + j for i, c, j in zip(index, counts, inner, strict=True))
            chunks[place] = part_of(chunk, offset, length)
    axes = tuple(axis._replace(chunk=axis.inner, inner=0) for axis in grid.axes)
    form = Form(axes, grid.order, grid.encoding._replace(sharded=False))
    return replace(grid, form=form, chunks=chunks)


def _shard_table(chunk: Chunk, number: int) -> tuple[int, ...]:
    import google_crc32c

    size = 16 * number + 4
    if size > length_of(chunk):
        raise UnreadableCheckpoint(f"a sharded chunk of {length_of(chunk)} bytes has no index of {size}", COPY_AGAIN)
    data = chunk_bytes(part_of(chunk, length_of(chunk) - size, size))
    if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise UnreadableCheckpoint("the index of a sharded chunk is damaged: its checksum is wrong", COPY_AGAIN)
    return struct.unpack(f"<{2 * number}Q", data[:-4])


# Arrays --------------------------------------------------------------------------------------------------------------


def read(grid: Grid) -> Array:
    """The whole array in C order and native byte order; above the limit of ``scratch`` it lies in a file.

    Raises:
      UnreadableCheckpoint: a chunk is missing, shorter than it should be, or cannot be decompressed.
    """
    import numpy as np

    grid = _unsharded(grid)
    stored = element_type(grid)
    native = stored.newbyteorder("=")
    size = math.prod(grid.form.shape) * stored.itemsize
    if grid.form.is_unsplit and size <= scratch.limit() and len(grid.chunks) == 1:
        (chunk,) = grid.chunks.values()
        data = b"".join(_decoded(chunk, grid.encoding.compression, size, at_once=size))
        flat = np.frombuffer(data, stored)
        if grid.form.is_c_ordered:
            return flat.reshape(grid.form.shape).astype(native, copy=False)
        order = tuple(grid.order)
        array = flat.reshape([grid.axes[axis].chunk for axis in order]).transpose(np.argsort(order))
        return np.ascontiguousarray(array).astype(native, copy=False)
    if grid.is_complete:
        array = scratch.empty(grid.form.shape, native)
    else:
        array = scratch.full(grid.form.shape, native, _fill_value(grid, native))
    for index, chunk in grid.chunks.items():
        _place(array, grid, index, chunk, stored)
    return array


def _place(array: Array, grid: Grid, index: Index, chunk: Chunk, stored: np.dtype[Any]) -> None:
    """Puts a chunk into the array, a few of its rows at a time; what stands out beyond the edge is left out."""
    import numpy as np

    lengths = [grid.axes[axis].chunk for axis in grid.order] or [1]
    starts = [i * axis.chunk for i, axis in zip(index, grid.axes, strict=True)]
    ends = [min(s + axis.chunk, axis.size) for s, axis in zip(starts, grid.axes, strict=True)]
    place: tuple[Any, ...] = (..., *map(slice, starts, ends))
    region = array[place]
    ordered = region.transpose(grid.order) if grid.order else region.reshape(1)
    # Rows run along the slowest axis of which one step fits in memory.
    sizes = [math.prod(lengths[axis + 1 :]) * stored.itemsize for axis in range(len(lengths))]
    axis = next((axis for axis, size in enumerate(sizes) if size <= scratch.limit()), len(sizes) - 1)
    inside = tuple(map(slice, ordered.shape[axis + 1 :]))
    at = 0
    for data in _decoded(chunk, grid.encoding.compression, math.prod(lengths) * stored.itemsize, sizes[axis]):
        rows = np.frombuffer(data, stored).reshape((-1, *lengths[axis + 1 :]))
        while len(rows):
            *above, first = (int(i) for i in np.unravel_index(at, lengths[: axis + 1]))
            count = min(len(rows), lengths[axis] - first)
            kept = min(count, ordered.shape[axis] - first)
            if kept > 0 and all(i < size for i, size in zip(above, ordered.shape, strict=False)):
                scratch.copy(ordered[*above, first : first + kept], rows[:kept][(slice(None), *inside)])
            rows, at = rows[count:], at + count


def _fill_value(grid: Grid, dtype: np.dtype[Any]) -> Any:
    """What stands in chunks that are not stored.

    Raises:
      UnreadableCheckpoint: something that is no number of the dtype.
    """
    import json

    import numpy as np

    value = json.loads(grid.encoding.details).get("fill_value") if grid.encoding.details else None
    try:
        if dtype.kind != "c" or value is None:
            return _number(value, dtype)
        real = np.dtype(f"f{dtype.itemsize // 2}")
        return np.array([_number(part, real) for part in value]).view(dtype)[0]
    except (IndexError, OverflowError, TypeError, ValueError) as error:
        raise UnreadableCheckpoint(f"the fill value {value!r} is no {dtype.name}: {error}", COPY_AGAIN) from None


def _number(value: Any, dtype: np.dtype[Any]) -> Any:
    """A number as zarr writes it: what JSON has none for is text, ``NaN``, ``Infinity``, or the bits as ``0x7fc0``."""
    import numpy as np

    if isinstance(value, str) and value.startswith("0x"):
        return np.array(int(value, 16), f"u{dtype.itemsize}").view(dtype)
    return np.array(float(value) if isinstance(value, str) else value or 0).astype(dtype)


def pieces(grid: Grid) -> Iterator[Any]:
    """The bytes of the array in C order and little-endian, in buffers that fit in memory.

    Raises:
      UnreadableCheckpoint: as ``read``.
    """
    grid = _unsharded(grid)
    itemsize = item_size(dtype_name(grid.encoding.dtype))
    native = not grid.encoding.dtype.startswith(">")
    if native and grid.chunks and grid.is_complete and grid.form.is_c_ordered and grid.form.is_unsplit:
        (chunk,) = grid.chunks.values()
        yield from _decoded(chunk, grid.encoding.compression, math.prod(grid.form.shape) * itemsize, itemsize)
    elif native and grid.chunks and grid.is_complete and grid.form.is_c_ordered and _runs_in_rows(grid):
        yield from _rows(grid, itemsize)
    else:
        yield from array_pieces(read(grid))


def array_pieces(array: Array) -> Iterator[memoryview]:
    """The bytes of an array in C order, in buffers that fit in memory."""
    import numpy as np

    for block in scratch.blocks(array):
        little = block.astype(block.dtype.newbyteorder("<"), copy=False)
        yield little.view(np.uint8).data


def _runs_in_rows(grid: Grid) -> bool:
    """Whether chunks are cut along the first axis alone, so that they follow one another in C order."""
    return bool(grid.axes) and all(axis.is_whole for axis in grid.axes[1:])


def _rows(grid: Grid, itemsize: int) -> Iterator[Any]:
    row = math.prod(grid.form.shape[1:]) * itemsize
    first = grid.axes[0]
    for number in range(grid.form.counts[0]):
        chunk = grid.chunks[(number, *(0,) * (len(grid.axes) - 1))]
        left = min(first.chunk, first.size - number * first.chunk) * row
        for data in _decoded(chunk, grid.encoding.compression, first.chunk * row, itemsize):
            if left:
                yield memoryview(data)[: min(left, len(data))]
                left -= min(left, len(data))
