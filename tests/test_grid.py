"""What is done to grids of chunks, compared with what NumPy does to the arrays that they hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.grid import (
    Axis,
    Encoding,
    Form,
    Grid,
    concatenated,
    reshaped,
    split,
    stacked,
    transposed,
    unstacked,
)
from converter.stored import Extent
from tests.grids import OPAQUE, Array, Shape, alike, assert_consistent, decoded, encoded, fetched, layouts, placed

COMPRESSED = OPAQUE[0]._replace(dtype="<i2")
SHARDED = OPAQUE[2]._replace(dtype="<i2")


def numbered(shape: Shape, start: int = 1) -> Array:
    """No number twice, and no zero."""
    return np.arange(start, start + int(np.prod(shape)), dtype=np.int16).reshape(shape)


def outcome(function: Callable[..., Any], sources: Any, *arguments: Any) -> list[Grid] | None:
    """What a function makes of a grid or a list of them.

    Of grids whose chunks are somewhere in files it has to make the same, and what it does not know it hands on.
    """
    several = isinstance(sources, list)
    listed: list[Grid] = sources if several else [sources]
    files: dict[str, bytes] = {}
    elsewhere = [placed(grid, files) for grid in listed]
    made, other = function(sources, *arguments), function(elsewhere if several else elsewhere[0], *arguments)
    if made is None or other is None:
        assert made is other is None
        return None
    grids, others = ([each] if isinstance(each, Grid) else each for each in (made, other))
    for grid, stranger in zip(grids, others, strict=True):
        assert_consistent(grid)
        assert fetched(stranger, files) == grid
        assert stranger.nbytes == grid.nbytes
        for name in ("encoding", "linkable", "origin"):
            assert getattr(grid, name) == getattr(listed[0], name)
        if not grid.encoding.is_raw:
            assert set(map(id, grid.chunks.values())) <= {
                id(chunk) for each in listed for chunk in each.chunks.values()
            }
    return grids


def assert_holds(grids: Sequence[Grid] | None, *arrays: Array) -> None:
    assert grids is not None
    assert_arrays(grids, arrays)


def assert_arrays(grids: Sequence[Grid], arrays: Sequence[Array]) -> None:
    for grid, array in zip(grids, arrays, strict=True):
        found = decoded(grid)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


def can_be_cut(grid: Grid, axis: int, length: int) -> bool:
    """Whether chunks of that length are consecutive bytes of the chunks there are."""
    chunk = grid.axes[axis].chunk
    slower = itertools.takewhile(lambda each: each != axis, grid.order)
    raw = grid.encoding.is_raw and all(grid.axes[each].chunk == 1 for each in slower)
    return chunk == length or (raw and chunk % length == 0)


def shapes(rank: int = 0) -> st.SearchStrategy[Shape]:
    """Of that rank at least; where an axis has length zero nothing is stored, so there are few of these."""
    sizes = st.sampled_from([3, 2, 4, 1, 5, 3, 2, 4, 1, 0])
    return st.integers(rank, 4).flatmap(lambda count: st.tuples(*[sizes] * count))


@st.composite
def grids(draw: st.DrawFn, count: int = 1, rank: int = 0) -> list[Grid]:
    """Some grids of one layout, of that rank at least."""
    shape = draw(shapes(rank))
    dtype = draw(st.sampled_from([np.int8, np.int16, ml_dtypes.bfloat16, np.complex64]))
    arrays = [numbered(shape, 1 + 700 * number).astype(dtype) for number in range(count)]
    return draw(alike(arrays))


def alone(rank: int = 0) -> st.SearchStrategy[Grid]:
    return grids(1, rank).map(lambda made: made[0])


@given(alone())
def test_decoding_undoes_encoding(grid: Grid):
    assert_consistent(grid)
    found = decoded(grid)
    wanted = numbered(grid.form.shape).astype(found.dtype)
    np.testing.assert_array_equal(found, wanted if grid.is_complete else np.where(found == 0, found, wanted))
    inner = tuple(axis.inner for axis in grid.axes)
    again = encoded(found, grid.form.chunk_shape, grid.order, encoding=grid.encoding, inner=inner)
    assert {index: again.chunks[index] for index in grid.chunks} == grid.chunks


def test_an_encoded_array():
    grid = encoded(numbered((3, 2)), (2, 2), (1, 0), missing=[(0, 0)])
    assert grid.axes == (Axis(3, 2, 2), Axis(2, 2, 2))
    assert (grid.encoding, grid.form.counts, list(grid.form.indices())) == (Encoding("<i2"), (2, 1), [(0, 0), (1, 0)])
    assert grid.chunks == {(1, 0): b"\5\0\xa5\xa5\6\0\xa5\xa5"}
    assert (grid.is_complete, grid.form.is_unsplit, grid.nbytes) == (False, False, 8)
    np.testing.assert_array_equal(decoded(grid), [[0, 0], [0, 0], [5, 6]])


@given(alone())
def test_bare_chunks_are_the_bytes_of_the_array(grid: Grid):
    chunks = grid.bare_chunks()
    if chunks is not None:
        assert grid.encoding.is_raw
        assert b"".join(bytes(chunk) for chunk in chunks if isinstance(chunk, bytes)) == decoded(grid).tobytes()
    elif grid.encoding.is_raw and grid.is_complete and grid.form.is_c_ordered:
        assert not grid.form.is_unsplit


def test_which_chunks_follow_one_another():
    array = numbered((4, 6))
    assert [len(grid.bare_chunks() or ()) for grid in (encoded(array), encoded(array, (2, 6)))] == [1, 2]
    for other in (
        encoded(array, (3, 6)),
        encoded(array, (4, 3)),
        encoded(array, order=(1, 0)),
        encoded(array, (2, 6), missing=[(1, 0)]),
        encoded(array, encoding=COMPRESSED),
        encoded(array, encoding=Encoding(">i2")),
    ):
        assert other.bare_chunks() is None
    assert encoded(numbered((0, 3))).bare_chunks() == []


def test_the_order_of_short_axes_does_not_matter():
    array = numbered((1, 4, 1, 3))
    for order in ((0, 1, 2, 3), (1, 2, 0, 3), (1, 3, 2, 0)):
        grid = encoded(array, order=order)
        assert grid.form.is_c_ordered
        assert not grid.form.is_f_ordered
    assert encoded(array, order=(3, 0, 1, 2)).form.is_f_ordered
    assert encoded(array, (1, 4, 1, 1), order=(3, 0, 1, 2)).form.is_c_ordered
    scalar = encoded(numbered(()))
    assert scalar.form.is_c_ordered
    assert scalar.form.is_f_ordered
    assert scalar.form.is_unsplit
    assert scalar.is_complete


@pytest.mark.parametrize(
    ("encoding", "raw"),
    [
        (Encoding("<f4"), True),
        (Encoding("|i1"), True),
        (Encoding("bfloat16", "", "zarr3", "{}"), True),
        (Encoding(">f4"), False),
        (Encoding("<f4", "zstd"), False),
        (Encoding("<f4", "?"), False),
        (SHARDED, False),
    ],
)
def test_which_chunks_are_nothing_but_their_elements(encoding: Encoding, raw: bool):
    assert encoding.is_raw is raw


# One more axis, one less ---------------------------------------------------------------------------------------------


@given(st.integers(1, 3).flatmap(grids), st.data())
def test_equal_grids_can_be_stacked_along_any_axis(sources: list[Grid], data: st.DataObject):
    axis = data.draw(st.integers(0, len(sources[0].axes)))
    made = outcome(stacked, sources, axis)
    assert_holds(made, np.stack(list(map(decoded, sources)), axis))
    assert made is not None
    assert made[0].axes[axis] == Axis(len(sources), 1, 1, int(sources[0].encoding.sharded))
    assert made[0].axes[:axis] + made[0].axes[axis + 1 :] == sources[0].axes
    back = outcome(unstacked, made[0], axis)
    assert back == sources


GRID = encoded(numbered((4, 6)), (2, 3), mesh=["data", None])


def with_encoding(encoding: Encoding) -> Grid:
    return replace(GRID, form=Form(GRID.axes, GRID.order, encoding))


@pytest.mark.parametrize(
    "other",
    [
        with_encoding(COMPRESSED),
        with_encoding(Encoding("<u2")),
        with_encoding(GRID.encoding._replace(container="zarr3")),
        with_encoding(GRID.encoding._replace(details="{}")),
        replace(GRID, linkable=True),
        encoded(numbered((4, 6)), (2, 3), (1, 0), mesh=["data", None]),
        encoded(numbered((4, 5)), (2, 3), mesh=["data", None]),
        encoded(numbered((4, 6)), (2, 6), mesh=["data", None]),
        encoded(numbered((4, 6)), (2, 3), mesh=[None, "data"]),
        encoded(numbered((4, 6)), (2, 3), mesh=["data", None], write=(4, 3)),
        encoded(numbered((4,)), (2,), mesh=["data"]),
    ],
)
def test_different_grids_cannot_be_stacked(other: Grid):
    for sources in ([GRID, other], [other, GRID], [GRID, GRID, other]):
        assert outcome(stacked, sources, 0) is None
    assert outcome(stacked, [other, other], 0) is not None


@given(alone(rank=1), st.data())
def test_slices_are_had_where_chunks_are_one_long_or_can_be_cut(grid: Grid, data: st.DataObject):
    axis = data.draw(st.integers(0, len(grid.axes) - 1))
    made = outcome(unstacked, grid, axis)
    if not can_be_cut(grid, axis, 1):
        assert made is None
        return
    assert_holds(made, *(np.take(decoded(grid), place, axis) for place in range(grid.form.shape[axis])))
    assert made is not None
    for part in made:
        assert part.axes == (*grid.axes[:axis], *grid.axes[axis + 1 :])


def test_what_is_cut_is_consecutive():
    grid = encoded(numbered((3, 2)), (4, 2))
    assert [part.chunks for part in unstacked(grid, 0) or []] == [
        {(0,): b"\1\0\2\0"},
        {(0,): b"\3\0\4\0"},
        {(0,): b"\5\0\6\0"},
    ]
    assert unstacked(grid, 1) is None
    assert unstacked(encoded(numbered((3, 2)), (4, 2), (1, 0)), 1) is not None
    away = replace(grid, chunks={(0, 0): Extent("/data", 100, 16)})
    assert [part.chunks for part in unstacked(away, 0) or []] == [
        {(0,): Extent("/data", 100, 4)},
        {(0,): Extent("/data", 104, 4)},
        {(0,): Extent("/data", 108, 4)},
    ]


@pytest.mark.parametrize("encoding", [COMPRESSED, SHARDED, Encoding(">i2")], ids=["compressed", "sharded", "swapped"])
def test_opaque_chunks_are_handed_on_whole_or_not_at_all(encoding: Encoding):
    array = numbered((4, 6))
    assert outcome(unstacked, encoded(array, (2, 6), encoding=encoding), 0) is None
    assert outcome(split, encoded(array, (2, 6), encoding=encoding), 0, (1, 3)) is None
    assert outcome(split, encoded(array, (4, 6), encoding=encoding), 0, (2, 2)) is None
    assert_holds(outcome(unstacked, encoded(array, (1, 6), encoding=encoding), 0), *array)
    assert_holds(outcome(split, encoded(array, (2, 6), encoding=encoding), 0, (2, 2)), array[:2], array[2:])


def test_no_slices_of_an_axis_of_length_zero():
    assert outcome(unstacked, encoded(numbered((0, 3))), 0) == []
    assert_holds(outcome(unstacked, encoded(numbered((2, 0))), 0), numbered((0,)), numbered((0,)))


# End to end, and apart -----------------------------------------------------------------------------------------------


@st.composite
def parts(draw: st.DrawFn) -> tuple[list[Grid], int]:
    """Grids that differ in their lengths along an axis at most: all but the last of whole chunks."""
    shape = draw(shapes(1))
    axis = draw(st.integers(0, len(shape) - 1))
    layout = draw(layouts(shape, np.dtype(np.int16)))
    chunk = layout["chunk"][axis]
    sizes = [chunk * count for count in draw(st.lists(st.integers(0, 2), max_size=2))]
    sizes.append(draw(st.integers(0, 2 * chunk)))
    arrays = [
        numbered((*shape[:axis], size, *shape[axis + 1 :]), 1 + 1000 * number) for number, size in enumerate(sizes)
    ]
    return draw(alike(arrays, layout)), axis


@given(parts())
def test_whole_chunks_can_be_put_end_to_end_and_apart_again(case: tuple[list[Grid], int]):
    sources, axis = case
    made = outcome(concatenated, sources, axis)
    arrays = list(map(decoded, sources))
    assert_holds(made, np.concatenate(arrays, axis))
    assert made is not None
    assert made[0].form.chunk_shape == sources[0].form.chunk_shape
    assert made[0].axes[:axis] + made[0].axes[axis + 1 :] == sources[0].axes[:axis] + sources[0].axes[axis + 1 :]
    sizes = tuple(source.form.shape[axis] for source in sources)
    if all(sizes):
        back = outcome(split, made[0], axis, sizes)
        assert_holds(back, *arrays)
        assert back is not None
        assert [part.chunks for part in back] == [source.chunks for source in sources]


@given(alone(rank=1), st.data())
def test_parts_are_had_where_they_end_with_chunks_or_chunks_can_be_cut(grid: Grid, data: st.DataObject):
    axis = data.draw(st.integers(0, len(grid.axes) - 1))
    size = grid.form.shape[axis]
    ends = sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=3))) if size > 1 else []
    sizes = tuple(np.diff([0, *ends, size]).tolist())
    made = outcome(split, grid, axis, sizes)
    length = int(np.gcd.reduce([grid.axes[axis].chunk, *ends]))
    if size and can_be_cut(grid, axis, length):
        assert_holds(made, *np.split(decoded(grid), ends, axis))
        assert made is not None
        in_one = grid.axes[axis].chunk == size
        assert [part.axes[axis].chunk for part in made] == ([*sizes] if in_one else [length] * len(sizes))
    else:
        assert made is None


def test_parts_of_odd_sizes_are_one_chunk_each():
    made = outcome(split, encoded(numbered((7, 2)), (7, 2)), 0, (5, 1, 1))
    assert made is not None
    assert [len(part.chunks) for part in made] == [1, 1, 1]
    assert_holds(made, *np.split(numbered((7, 2)), (5, 6)))


@given(alone(rank=1), st.data())
def test_the_last_part_may_end_within_a_chunk(grid: Grid, data: st.DataObject):
    axis = data.draw(st.integers(0, len(grid.axes) - 1))
    size, chunk = grid.axes[axis].size, grid.axes[axis].chunk
    ends = list(range(chunk, size, chunk))
    sizes = tuple(np.diff([0, *ends, size]).tolist())
    if size:
        assert_holds(outcome(split, grid, axis, sizes), *np.split(decoded(grid), ends, axis))


def test_what_was_written_at_a_time():
    def write(grid: Grid) -> int:
        assert_consistent(grid)
        return grid.axes[0].write

    grid = encoded(numbered((8,)), (2,), write=(4,))
    assert [write(part) for part in split(grid, 0, (2, 6)) or []] == [2, 4]
    assert [write(part) for part in split(grid, 0, (3, 5)) or []] == [1, 1]
    joined = concatenated([grid, grid], 0)
    assert joined is not None
    assert write(joined) == 4
    empty, short = encoded(numbered((0,)), (4,)), encoded(numbered((3,)), (4,))
    for sources in ([short], [empty, short], [empty, empty]):
        made = concatenated(sources, 0)
        assert made is not None
        assert write(made) <= 3


@pytest.mark.parametrize(
    "other",
    [
        with_encoding(COMPRESSED),
        replace(GRID, linkable=True),
        encoded(numbered((4, 6)), (2, 3), (1, 0), mesh=["data", None]),
        encoded(numbered((4, 6)), (1, 3), mesh=["data", None]),
        encoded(numbered((4, 6)), (4, 3), mesh=["data", None]),
        encoded(numbered((4, 5)), (2, 3), mesh=["data", None]),
        encoded(numbered((4,)), (2,), mesh=["data"]),
    ],
)
def test_different_grids_cannot_be_put_end_to_end(other: Grid):
    for sources in ([GRID, other], [other, GRID]):
        assert outcome(concatenated, sources, 0) is None


def test_only_the_last_of_several_ends_within_a_chunk():
    long, short = encoded(numbered((4,)), (2,)), encoded(numbered((3,)), (2,))
    assert_holds(outcome(concatenated, [long, short], 0), np.array([1, 2, 3, 4, 1, 2, 3], np.int16))
    assert outcome(concatenated, [short, long], 0) is None
    assert outcome(concatenated, [encoded(numbered((4,))), encoded(numbered((3,)))], 0) is None


def test_chunks_of_different_parts_cannot_be_put_end_to_end():
    one, two = (encoded(numbered((4,)), encoding=SHARDED, inner=(inner,)) for inner in (1, 2))
    assert outcome(concatenated, [one, two], 0) is None
    assert outcome(concatenated, [two, two], 0) is not None


# Other shapes and orders ---------------------------------------------------------------------------------------------


@st.composite
def other_shape(draw: st.DrawFn, shape: Shape) -> Shape:
    """A shape for as many elements: some axes merged, others split, ones put in."""
    made: list[int] = []
    for size in shape:
        if made and draw(st.booleans()):
            made[-1] *= size
        else:
            made.append(size)
    if made and draw(st.booleans()):
        axis = draw(st.integers(0, len(made) - 1))
        factors = [n for n in range(2, made[axis]) if made[axis] % n == 0]
        if factors:
            factor = draw(st.sampled_from(factors))
            made[axis : axis + 1] = [factor, made[axis] // factor]
    if draw(st.booleans()):
        made.insert(draw(st.integers(0, len(made))), 1)
    return tuple(made)


@given(alone(), st.data())
def test_another_shape_where_what_changes_is_in_one_piece(grid: Grid, data: st.DataObject):
    shape = data.draw(other_shape(grid.form.shape))
    made = outcome(reshaped, grid, shape)
    if made is not None:
        assert_arrays(made, [decoded(grid).reshape(shape)])
    same = [before == after for before, after in zip(grid.form.shape, shape, strict=False)]
    kept = (*same, False).index(False)
    whole = all(axis.chunk == axis.size or not axis.size for axis in grid.axes[kept:])
    possible = whole and grid.form.is_c_ordered and not grid.encoding.sharded
    assert (made is not None) is (possible or shape == grid.form.shape)


@given(grids(), st.data())
def test_arrays_in_one_chunk_take_any_shape(sources: list[Grid], data: st.DataObject):
    array = decoded(sources[0])
    shape = data.draw(other_shape(array.shape))
    for encoding in (None, OPAQUE[0]._replace(dtype=""), OPAQUE[1]._replace(dtype="")):
        made = outcome(reshaped, encoded(array, encoding=encoding), shape)
        assert_holds(made, array.reshape(shape))
        assert made is not None
        assert made[0].form.is_unsplit
        assert made[0].is_complete


def test_axes_before_the_change_keep_all_they_have():
    grid = encoded(numbered((4, 6)), (2, 6), write=(4, 6), mesh=["data", "model"], missing=[(1, 0)])
    made = outcome(reshaped, grid, (4, 2, 3))
    assert_holds(made, decoded(grid).reshape(4, 2, 3))
    assert made is not None
    assert made[0].axes == (Axis(4, 2, 4, 0, "data"), Axis(2, 2, 2), Axis(3, 3, 3))
    assert list(made[0].chunks) == [(0, 0, 0)]
    assert outcome(reshaped, grid, (24,)) is None


def test_what_a_reshape_would_have_to_move():
    array = numbered((4, 6))
    assert outcome(reshaped, encoded(array, order=(1, 0)), (24,)) is None
    assert outcome(reshaped, encoded(array, (4, 3)), (4, 2, 3)) is None
    assert outcome(reshaped, encoded(array, encoding=SHARDED), (24,)) is None
    for grid in (encoded(array, order=(1, 0)), encoded(array, (4, 3)), encoded(array, encoding=SHARDED)):
        assert outcome(reshaped, grid, (4, 6)) == [grid]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((), (1,)),
        ((1,), ()),
        ((), (1, 1)),
        ((3,), (1, 3, 1)),
        ((1, 3, 1), (3,)),
        ((0,), (0, 5)),
        ((2, 0), (0,)),
        ((0, 3), (3, 0)),
        ((3, 0), (0, 1)),
    ],
)
def test_axes_of_length_one_and_zero(before: Shape, after: Shape):
    grid = encoded(numbered(before))
    assert_holds(outcome(reshaped, grid, after), numbered(after))


@given(alone(), st.data())
def test_axes_may_stand_in_any_order(grid: Grid, data: st.DataObject):
    axes = tuple(data.draw(st.permutations(range(len(grid.axes)))))
    made = outcome(transposed, grid, axes)
    assert_holds(made, decoded(grid).transpose(axes))
    assert made is not None
    assert made[0].axes == tuple(grid.axes[axis] for axis in axes)
    back = tuple(axes.index(axis) for axis in range(len(axes)))
    assert transposed(made[0], back) == grid


def test_a_transposed_array_runs_the_other_way():
    grid = encoded(numbered((4, 6, 2)), (2, 6, 2))
    made = transposed(grid, (2, 1, 0))
    assert made.form.is_f_ordered
    assert not made.form.is_c_ordered
    assert made == encoded(numbered((4, 6, 2)).transpose(), (2, 6, 2), (2, 1, 0))
    made = transposed(grid, (1, 2, 0))
    assert made.order == (2, 0, 1)
    assert made == encoded(numbered((4, 6, 2)).transpose(1, 2, 0), (6, 2, 2), (2, 0, 1))
