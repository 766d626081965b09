"""Arrays as grids of chunks for tests: encoded and decoded by other code than the converter's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from converter.dtypes import numpy_dtype
from converter.grid import Axis, Encoding, Form, Grid, Index
from converter.stored import Extent

Shape = tuple[int, ...]
Array = np.ndarray[Any, Any]

OPAQUE = [
    Encoding("", "zstd", "zarr2", '{"id": "zstd"}'),
    Encoding("", "?", "zarr3", '{"codecs": ["blosc"]}'),
    Encoding("", "", "zarr3", '{"codecs": ["sharding_indexed"]}', sharded=True),
]
"""Encodings of which no part of a chunk can be had, written here as if they were not; the dtype is still missing."""


def typestr(dtype: np.dtype[Any]) -> str:
    """As ``Encoding.dtype`` names it."""
    return dtype.name if dtype.kind == "V" or dtype.isbuiltin == 2 else dtype.str


def dtype_of(encoding: Encoding) -> np.dtype[Any]:
    return np.dtype(encoding.dtype) if encoding.dtype[0] in "<>|" else numpy_dtype(encoding.dtype)


def encoded(
    array: Array,
    chunk: Shape | None = None,
    order: Shape | None = None,
    *,
    missing: Sequence[Index] = (),
    encoding: Encoding | None = None,
    inner: Shape | None = None,
    write: Shape | None = None,
    mesh: Sequence[Any] | None = None,
    **rest: Any,
) -> Grid:
    """An array in chunks, by default in one; what they hold beyond its end is garbage, ``missing`` ones are left out.

    Sharded chunks consist of parts of the shape ``inner``, without an index, and are cut after their axes were ordered.
    """
    chunk = tuple(max(size, 1) for size in array.shape) if chunk is None else chunk
    order = tuple(range(array.ndim)) if order is None else order
    encoding = encoding or Encoding("")
    encoding = encoding if encoding.dtype else encoding._replace(dtype=typestr(array.dtype))
    inner = inner if encoding.sharded and inner is not None else chunk if encoding.sharded else (0,) * array.ndim
    write = tuple(max(min(pair), 1) for pair in zip(write or chunk, array.shape, strict=True))
    mesh = mesh or (None,) * array.ndim
    axes = tuple(itertools.starmap(Axis, zip(array.shape, chunk, write, inner, mesh, strict=True)))
    chunks = {}
    for index, place in _places(array.shape, chunk):
        if index not in missing:
            part = array[place]
            whole = np.full(math.prod(chunk) * part.itemsize, 0xA5, np.uint8).view(array.dtype).reshape(chunk)
            whole[tuple(map(slice, part.shape))] = part
            ordered = whole.astype(dtype_of(encoding)).transpose(order)
            chunks[index] = b"".join(ordered[*block, ...].tobytes() for block in _blocks(axes, order))
    return Grid(Form(axes, order, encoding), chunks, **rest)


def decoded(grid: Grid) -> Array:
    """The array that a grid holds, zeros where it holds nothing."""
    dtype = dtype_of(grid.encoding)
    array = np.zeros(grid.form.shape, dtype)
    for index, place in _places(grid.form.shape, grid.form.chunk_shape):
        if index in grid.chunks:
            chunk = grid.chunks[index]
            assert isinstance(chunk, bytes)
            ordered = np.empty([grid.form.chunk_shape[axis] for axis in grid.order], dtype)
            start = 0
            for block in _blocks(grid.axes, grid.order):
                count = ordered[block].size
                ordered[block] = np.frombuffer(chunk, dtype, count, start).reshape(ordered[block].shape)
                start += count * dtype.itemsize
            assert start == len(chunk)
            whole = ordered.transpose(np.argsort(grid.order)) if grid.order else ordered
            array[place] = whole[tuple(map(slice, array[place].shape))]
    return array.astype(dtype.newbyteorder("<")) if grid.encoding.dtype.startswith(">") else array


def _places(shape: Shape, chunk: Shape) -> Iterator[tuple[Index, tuple[slice, ...]]]:
    """The index of every chunk, and what part of the array it holds."""
    starts = (range(0, size, length) for size, length in zip(shape, chunk, strict=True))
    for start in itertools.product(*starts):
        index = tuple(at // length for at, length in zip(start, chunk, strict=True))
        yield index, tuple(slice(at, at + length) for at, length in zip(start, chunk, strict=True))


def _blocks(axes: Sequence[Axis], order: Shape) -> Iterator[tuple[slice, ...]]:
    """The parts of a chunk whose axes have been put into that order; one where it is not sharded."""
    chunk = tuple(axes[axis].chunk for axis in order)
    return (place for _, place in _places(chunk, tuple(axes[axis].inner or axes[axis].chunk for axis in order)))


def placed(grid: Grid, files: dict[str, bytes]) -> Grid:
    """The same grid with its chunks in a new file, something between them."""
    name, content, extents = f"/data/{len(files)}", b"before", {}
    for index, chunk in grid.chunks.items():
        assert isinstance(chunk, bytes)
        extents[index] = Extent(name, len(content), len(chunk))
        content += chunk + b"between"
    files[name] = content
    return replace(grid, chunks=extents)


def fetched(grid: Grid, files: Mapping[str, bytes]) -> Grid:
    """The same grid with the bytes of its chunks themselves."""
    chunks = {}
    for index, chunk in grid.chunks.items():
        assert isinstance(chunk, Extent)
        chunks[index] = files[chunk.file][chunk.offset :][: chunk.length]
    return replace(grid, chunks=chunks)


def assert_consistent(grid: Grid) -> None:
    """What has to hold for every grid."""
    assert sorted(grid.order) == list(range(len(grid.axes)))
    for axis in grid.axes:
        assert axis.chunk >= 1
        assert 1 <= axis.write <= max(axis.size, 1)
        assert bool(axis.inner) is grid.encoding.sharded
        assert not axis.inner or axis.chunk % axis.inner == 0
    assert set(grid.chunks) <= set(grid.form.indices())
    length = math.prod(grid.form.chunk_shape) * dtype_of(grid.encoding).itemsize
    assert {len(chunk) for chunk in grid.chunks.values() if isinstance(chunk, bytes)} <= {length}


@st.composite
def layouts(draw: st.DrawFn, shape: Shape, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Arguments of ``encoded`` for arrays like that: any chunks, order and encoding."""
    chunk = tuple(draw(st.sampled_from(sorted({1, max(size, 1), max(size - 1, 1), size + 1}))) for size in shape)
    swapped = typestr(dtype)[0] == "<" and draw(st.integers(0, 5)) == 0
    encodings = [Encoding("")] * 3 + OPAQUE + [Encoding(dtype.newbyteorder(">").str)] * swapped
    return {
        "chunk": chunk,
        "order": tuple(draw(st.permutations(range(len(shape))))),
        "encoding": draw(st.sampled_from(encodings)),
        "inner": tuple(draw(st.sampled_from([n for n in range(1, c + 1) if c % n == 0])) for c in chunk),
        "write": tuple(length * draw(st.integers(1, 3)) for length in chunk),
        "mesh": draw(st.sampled_from([None, [f"mesh{axis}" for axis in range(len(shape))]])),
        "linkable": draw(st.booleans()),
        "origin": draw(st.sampled_from([None, "origin"])),
    }


@st.composite
def alike(draw: st.DrawFn, arrays: Sequence[Array], layout: Mapping[str, Any] | None = None) -> list[Grid]:
    """Arrays in one layout, that one or any. Some chunks may be missing, other ones for each."""
    layout = layout or draw(layouts(arrays[0].shape, arrays[0].dtype))
    grids = []
    for array in arrays:
        places = [index for index, _ in _places(array.shape, layout["chunk"])]
        absent = draw(st.just([]) | st.lists(st.sampled_from(places), max_size=3)) if places else []
        grids.append(encoded(array, missing=absent, **layout))
    return grids
