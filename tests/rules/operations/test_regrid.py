"""What operations do to arrays as they lie on disk: what they do to the arrays themselves, or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.grid import Grid
from converter.rules.operations import (
    REWRAP,
    Agree,
    Cast,
    CastCounter,
    Concat,
    Copies,
    Drop,
    Fill,
    MoveAxis,
    Operation,
    Regroup,
    Reshape,
    Select,
    Split,
    Stack,
    Transpose,
    Unstack,
    chain,
)
from converter.tree import LeafSpec, array_spec
from tests.grids import alike, assert_consistent, decoded, encoded
from tests.rules.operations.moves import assert_same, fitting_operation, fitting_operations, leaves, random_array


def unsplit(arrays: list[Any]) -> list[Grid]:
    """Each in one chunk of nothing but its elements."""
    return [encoded(np.asarray(array)) for array in arrays]


def regridded(operation: Operation, grids: list[Grid], specs: list[LeafSpec]) -> list[Grid] | None:
    """What the operation makes of the grids, which holds what it makes of the arrays."""
    made = operation.regrid(grids, specs)
    if made is not None:
        for grid in made:
            assert_consistent(grid)
        assert_same(list(map(decoded, made)), operation.apply(list(map(decoded, grids)), specs))
    return made


@given(leaves(), st.data())
def test_grids_hold_what_the_arrays_become(found: Any, data: st.DataObject):
    specs, arrays = found
    operation, _ = data.draw(fitting_operations(specs))
    for grids in (unsplit(arrays), data.draw(alike(list(map(np.asarray, arrays))))):
        regridded(operation, grids, specs)


@given(leaves(), st.data())
def test_arrays_in_one_chunk_stay_where_they_are(found: Any, data: st.DataObject):
    specs, arrays = found
    operation = data.draw(fitting_operation(specs))
    made = regridded(operation, unsplit(arrays), specs)
    if isinstance(operation, Split | Unstack):
        axis = operation.axis % len(specs[0].shape)
        cuts = specs[0].shape[axis] > 1 and any(size > 1 for size in specs[0].shape[:axis])
        assert (made is None) is cuts
    else:
        assert made is not None


@given(leaves(), st.data())
def test_what_was_stacked_or_put_end_to_end_comes_apart_again(found: Any, data: st.DataObject):
    specs, arrays = found
    rank, count = len(specs[0].shape), len(specs)
    grids = data.draw(alike(list(map(np.asarray, arrays))))
    stack = Stack(count, data.draw(st.integers(-rank - 1, rank)))
    made = regridded(stack, grids, specs)
    assert made is not None
    assert regridded(stack.inverse(), made, list(stack.specs(specs))) == grids
    if rank and specs[0].size:
        concat = Concat(count, data.draw(st.integers(-rank, rank - 1)))
        axis = concat.axis % rank
        made = regridded(concat, grids, specs)
        assert (made is not None) is (count == 1 or specs[0].shape[axis] % grids[0].axes[axis].chunk == 0)
        if made is not None:
            apart = regridded(concat.inverse(), made, list(concat.specs(specs)))
            assert apart is not None
            assert [grid.chunks for grid in apart] == [grid.chunks for grid in grids]


@pytest.mark.parametrize("operation", [MoveAxis(0, 2), MoveAxis(-1, 0), Transpose((1, 2, 0))], ids=lambda op: op.name)
def test_three_axes(operation: Operation):
    specs = [array_spec("float32", (2, 3, 4))]
    assert regridded(operation, unsplit([random_array("float32", (2, 3, 4), 0)]), specs) is not None


SPEC = array_spec("float32", (4, 6))


@pytest.mark.parametrize(
    "operation",
    [
        Cast("float32", "bfloat16"),
        CastCounter("int32"),
        Select(0, 1),
        Fill((SPEC,), "the model's own", number=0.0),
        chain(Transpose(), Cast("float32", "bfloat16"), Transpose()),
        chain(Unstack(6, 1), Stack(6)),
        Copies((REWRAP, Select(0, 1))),
    ],
    ids=lambda operation: operation.name,
)
def test_what_has_to_be_made_anew(operation: Operation):
    assert operation.regrid([encoded(np.ones((4, 6), np.float32))], [SPEC]) is None


def test_of_what_is_dropped_nothing_stays():
    assert Drop("why").regrid([encoded(np.ones((4, 6), np.float32))], [SPEC]) == []


@given(leaves(), st.data())
def test_copies_lie_in_one_place(found: Any, data: st.DataObject):
    specs, arrays = found
    rank = len(specs[0].shape)
    orders = st.permutations(range(rank)).map(lambda axes: Transpose(tuple(axes)))
    views = [REWRAP, *data.draw(st.lists(orders, max_size=2))]
    copies = Copies(tuple(data.draw(st.permutations(views))))
    grids = data.draw(alike(list(map(np.asarray, arrays))))
    made = regridded(copies, grids, specs)
    assert made is not None
    assert regridded(copies.inverse(), made, list(copies.specs(specs))) == grids
    impossible = Agree((Select(0, 0), *copies.views))
    if rank and specs[0].shape[0]:
        assert impossible.regrid(grids * len(impossible.views), specs * len(impossible.views)) is None


@pytest.mark.parametrize(
    ("operation", "count"),
    [
        (Stack(2), 4),
        (Concat(2), 4),
        (Split(2, 0), 2),
        (Split(2, 0, (1, 3)), 2),
        (Unstack(4), 2),
        (Reshape((4, 6), (24,)), 2),
        (Regroup((2, 2), (1, 0)), 4),
        (MoveAxis(0, 1), 2),
        (REWRAP, 2),
    ],
    ids=str,
)
def test_all_or_none(operation: Operation, count: int):
    """One that cannot stay is enough that all are made anew, together with it."""
    arrays = [random_array("float32", (4, 6), seed) for seed in range(count)]
    specs = [SPEC] * count
    good = unsplit(arrays)
    assert regridded(operation, good, specs) is not None
    odd = [*good[:-1], encoded(arrays[-1], (3, 4), (1, 0))]
    made = regridded(operation, odd, specs)
    assert (made is not None) is isinstance(operation, Regroup | MoveAxis | type(REWRAP))
