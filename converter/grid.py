"""How an array lies on disk: a grid of chunks, each of them some bytes of a file.

Giving an array another name, another axis of length one or another order of axes often leaves the bytes of its chunks
as they are. What is done to the grid then says all there is to say, and the bytes can stay where they are.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from converter.stored import Extent

Index = tuple[int, ...]
"""The place of a chunk in its grid."""

Chunk = Extent | bytes
"""The bytes of a chunk, or where they are."""


class Axis(NamedTuple):
    """One axis of an array and of its chunks, in elements.

    Attributes:
      size: length of the array.
      chunk: length of a chunk; the last chunk may stand out beyond the end of the array.
      write: length of what one process wrote at a time.
      inner: length of the parts that a chunk consists of, where it is sharded (zarr 3); 0 where it is not.
      mesh: the mesh axis that the axis was sharded over, or the names of several.
    """

    size: int
    chunk: int
    write: int
    inner: int = 0
    mesh: str | tuple[str, ...] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether one chunk spans the axis."""
        return self.chunk == self.size or self.size == 0


class Encoding(NamedTuple):
    """How the elements of a chunk become bytes.

    Attributes:
      dtype: NumPy's type string (``<f4``), or the name of one of ml_dtypes' types.
      compression: ``zstd``, ``gzip``, empty for none, ``?`` for anything else.
      container: ``""`` for bytes alone, ``zarr2`` or ``zarr3`` for chunks whose metadata have to say more.
      details: those metadata as JSON text, without what the axes say.
      sharded: a chunk holds parts of its own and an index of them (zarr 3).
    """

    dtype: str
    compression: str = ""
    container: str = ""
    details: str = ""
    sharded: bool = False

    @property
    def is_raw(self) -> bool:
        """Whether a chunk is just its elements as a little-endian machine holds them."""
        return not self.compression and not self.sharded and not self.dtype.startswith(">")


@dataclass(frozen=True)
class Form:
    """How an array lies, whatever bytes it holds: most arrays of a large checkpoint lie as many others do.

    What follows from it is worked out once for all arrays that share it.

    Attributes:
      axes: the axes of the array; a typed PRNG key has one more than its spec, the words of its data.
      order: the axes within a chunk, from the one that runs slowest to the one that runs fastest.
      encoding: how elements become bytes.
    """

    axes: tuple[Axis, ...]
    order: tuple[int, ...]
    encoding: Encoding

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.axes, self.order, self.encoding))

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple([axis.size for axis in self.axes])

    @functools.cached_property
    def chunk_shape(self) -> tuple[int, ...]:
        return tuple([axis.chunk for axis in self.axes])

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """How many chunks there are along each axis."""
        return tuple([-(-axis.size // axis.chunk) for axis in self.axes])

    @functools.cached_property
    def number(self) -> int:
        """How many chunks there are."""
        return math.prod(self.counts)

    @functools.cached_property
    def is_unsplit(self) -> bool:
        """Whether one chunk holds the whole array and nothing else."""
        return all(axis.is_whole for axis in self.axes)

    def runs(self, *axes: int) -> bool:
        """Whether within a chunk these axes run in this order, from slow to fast, where it matters."""
        real = [axis for axis in self.order if self.axes[axis].chunk > 1]
        return real == [axis for axis in axes if self.axes[axis].chunk > 1]

    @functools.cached_property
    def is_c_ordered(self) -> bool:
        return self.runs(*range(len(self.axes)))

    @functools.cached_property
    def is_f_ordered(self) -> bool:
        return self.runs(*reversed(range(len(self.axes))))

    @functools.cached_property
    def is_bare(self) -> bool:
        """Whether chunks, cut along the first axis alone, are the bytes of the array in C order one after the other."""
        in_rows = all(axis.is_whole for axis in self.axes[1:])
        stands_out = any(axis.size % axis.chunk for axis in self.axes[:1])
        return self.encoding.is_raw and self.is_c_ordered and in_rows and not stands_out

    def indices(self) -> Iterator[Index]:
        """All places of the grid, in C order."""
        return itertools.product(*map(range, self.counts))


def whole(shape: tuple[int, ...], encoding: Encoding) -> Form:
    """An array in one chunk, its elements in C order."""
    return Form(tuple([Axis(size, max(size, 1), size) for size in shape]), tuple(range(len(shape))), encoding)


@dataclass(slots=True)
class Grid:
    """An array as it lies on disk.

    Attributes:
      form: how it is cut and encoded.
      chunks: the chunks that are stored; the others hold nothing but the fill value.
      linkable: the files that hold them are never rewritten in place, so that they may be linked to.
      origin: what the metadata say beyond that, for a writer of the same format.
    """

    form: Form
    chunks: Mapping[Index, Chunk]
    linkable: bool = False
    origin: Any = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self.form.axes

    @property
    def order(self) -> tuple[int, ...]:
        return self.form.order

    @property
    def encoding(self) -> Encoding:
        return self.form.encoding

    @property
    def is_complete(self) -> bool:
        """Whether every chunk is stored."""
        return len(self.chunks) == self.form.number

    def bare_chunks(self) -> list[Chunk] | None:
        """The chunks whose bytes, one after the other, are those of the array in C order; None where they are not."""
        if not (self.form.is_bare and self.is_complete):
            return None
        return [self.chunks[index] for index in self.form.indices()]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(len(chunk) if isinstance(chunk, bytes) else chunk.length for chunk in self.chunks.values())

    def laid(self, axes: tuple[Axis, ...], order: tuple[int, ...], chunks: Mapping[Index, Chunk]) -> Grid:
        """A grid of other axes whose chunks are encoded as those of this one are."""
        return Grid(Form(axes, order, self.encoding), chunks, self.linkable, self.origin)


# What may be done to a grid without touching bytes; None where the bytes would change. ------------------------------


def stacked(grids: list[Grid], axis: int) -> Grid | None:
    """One more axis, along which every grid is one chunk."""
    first = grids[0]
    if any(not _alike(grid, first) for grid in grids):
        return None
    chunks = {
        (*index[:axis], number, *index[axis:]): chunk
        for number, grid in enumerate(grids)
        for index, chunk in grid.chunks.items()
    }
    new = Axis(len(grids), chunk=1, write=1, inner=int(first.encoding.sharded))
    axes = (*first.axes[:axis], new, *first.axes[axis:])
    order = (axis, *(each + (each >= axis) for each in first.order))
    return first.laid(axes, order, chunks)


def unstacked(grid: Grid, axis: int) -> list[Grid] | None:
    """The slices along an axis, where its chunks have length one or can be cut."""
    fine = _cut(grid, axis, 1)
    if fine is None or (fine.encoding.sharded and fine.axes[axis].inner != 1):
        return None
    axes = (*fine.axes[:axis], *fine.axes[axis + 1 :])
    order = tuple(each - (each > axis) for each in fine.order if each != axis)
    parts: list[dict[Index, Chunk]] = [{} for _ in range(fine.axes[axis].size)]
    for index, chunk in fine.chunks.items():
        parts[index[axis]][(*index[:axis], *index[axis + 1 :])] = chunk
    form = Form(axes, order, fine.encoding)
    return [replace(fine, form=form, chunks=chunks) for chunks in parts]


def concatenated(grids: list[Grid], axis: int) -> Grid | None:
    """End to end along an axis, where every part but the last is a whole number of equal chunks."""
    first = grids[0]
    length = first.axes[axis].chunk
    if any(not _alike(grid, first, axis) for grid in grids):
        return None
    if any(grid.axes[axis].size % length for grid in grids[:-1]):
        return None
    chunks: dict[Index, Chunk] = {}
    start = 0
    for grid in grids:
        for index, chunk in grid.chunks.items():
            chunks[(*index[:axis], index[axis] + start, *index[axis + 1 :])] = chunk
        start += grid.form.counts[axis]
    size = sum(grid.axes[axis].size for grid in grids)
    return _resized(first, axis, size, first.axes[axis].chunk, chunks)


def split(grid: Grid, axis: int, sizes: tuple[int, ...]) -> list[Grid] | None:
    """The parts along an axis, where they begin and end with a chunk, or chunks can be cut."""
    if not all(sizes):
        return None
    if grid.axes[axis].is_whole and _is_cuttable(grid, axis):
        return _divided(grid, axis, sizes)
    length = math.gcd(grid.axes[axis].chunk, *sizes[:-1])
    fine = _cut(grid, axis, length)
    if fine is None:
        return None
    starts = [start // length for start in itertools.accumulate(sizes, initial=0)]
    parts: list[dict[Index, Chunk]] = [{} for _ in sizes]
    owners = [part for part, size in enumerate(sizes) for _ in range(-(-size // length))]
    for index, chunk in fine.chunks.items():
        part = owners[index[axis]]
        parts[part][(*index[:axis], index[axis] - starts[part], *index[axis + 1 :])] = chunk
    return [_resized(fine, axis, size, length, chunks) for size, chunks in zip(sizes, parts, strict=True)]


def reshaped(grid: Grid, shape: tuple[int, ...]) -> Grid | None:
    """Another shape, where all axes from the first that changes are in one piece."""
    if shape == grid.form.shape:
        return grid
    same = 0
    while same < min(len(grid.axes), len(shape)) and grid.axes[same].size == shape[same]:
        same += 1
    kept, merged = grid.axes[:same], grid.axes[same:]
    if grid.encoding.sharded or not grid.form.is_c_ordered or any(not axis.is_whole for axis in merged):
        return None
    axes = (*kept, *(Axis(size, max(size, 1), max(size, 1)) for size in shape[same:]))
    zeros = (0,) * (len(shape) - same)
    chunks = {(*index[:same], *zeros): chunk for index, chunk in grid.chunks.items()}
    return grid.laid(axes, tuple(range(len(axes))), chunks)


def transposed(grid: Grid, axes: tuple[int, ...]) -> Grid:
    """The axes in another order: ``axes[i]`` becomes the i-th. Not every format can say how chunks then lie."""
    place = {before: after for after, before in enumerate(axes)}
    return grid.laid(
        tuple(grid.axes[axis] for axis in axes),
        tuple(place[axis] for axis in grid.order),
        {tuple(index[axis] for axis in axes): chunk for index, chunk in grid.chunks.items()},
    )


def _alike(grid: Grid, other: Grid, but: int | None = None) -> bool:
    """Whether chunks of both may stand in one grid; how long the axis ``but`` is does not count."""
    return (
        grid.encoding == other.encoding
        and grid.order == other.order
        and grid.linkable == other.linkable
        and len(grid.axes) == len(other.axes)
        and all(
            a == b or (i == but and (a.chunk, a.inner) == (b.chunk, b.inner))
            for i, (a, b) in enumerate(zip(grid.axes, other.axes, strict=True))
        )
    )


def _cut(grid: Grid, axis: int, length: int) -> Grid | None:
    """The same array with chunks of a smaller length along an axis, where these are consecutive bytes."""
    chunk = grid.axes[axis].chunk
    if chunk == length:
        return grid
    if chunk % length or not _is_cuttable(grid, axis):
        return None
    pieces = chunk // length
    count = -(-grid.axes[axis].size // length)
    chunks: dict[Index, Chunk] = {}
    for index, whole in grid.chunks.items():
        first = index[axis] * pieces
        for number in range(min(pieces, count - first)):
            chunks[(*index[:axis], first + number, *index[axis + 1 :])] = _rows(whole, number * length, length, chunk)
    return _resized(grid, axis, grid.axes[axis].size, length, chunks)


def _divided(grid: Grid, axis: int, sizes: tuple[int, ...]) -> list[Grid]:
    """The parts along an axis that is in one chunk, each of them in one chunk too."""
    whole = grid.axes[axis].chunk
    starts = itertools.accumulate(sizes, initial=0)
    return [
        _resized(grid, axis, size, size, {i: _rows(chunk, start, size, whole) for i, chunk in grid.chunks.items()})
        for start, size in zip(starts, sizes, strict=False)
    ]


def _is_cuttable(grid: Grid, axis: int) -> bool:
    """Whether any range along an axis is consecutive bytes of its chunk."""
    slower = grid.order[: grid.order.index(axis)]
    return grid.encoding.is_raw and all(grid.axes[each].chunk <= 1 for each in slower)


def _rows(chunk: Chunk, start: int, count: int, total: int) -> Chunk:
    """Some of the ``total`` equal pieces, one behind the other, that a chunk consists of."""
    length = (len(chunk) if isinstance(chunk, bytes) else chunk.length) // total
    if isinstance(chunk, bytes):
        return chunk[start * length : (start + count) * length]
    return Extent(chunk.file, chunk.offset + start * length, count * length)


def _resized(grid: Grid, axis: int, size: int, chunk: int, chunks: Mapping[Index, Chunk]) -> Grid:
    old = grid.axes[axis]
    write = old.write if old.chunk == chunk else chunk
    # Only a multiple of the old size is sure to be one of the number of devices too.
    mesh = old.mesh if size % max(old.size, 1) == 0 else None
    new = old._replace(size=size, chunk=chunk, write=max(min(write, size), 1), mesh=mesh)
    return grid.laid((*grid.axes[:axis], new, *grid.axes[axis + 1 :]), grid.order, chunks)
