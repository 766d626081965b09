"""What operations make of arrays that are too large for memory: the same, in files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter import scratch
from converter.planning.plan import Transfer
from converter.rules.operations import REWRAP, Agree, Cast, Drop, Stack, Transpose, chain, fill_number
from converter.training_state import Held
from converter.tree import LeafKind, array_spec
from tests.building import leaf_of
from tests.rules.operations.moves import assemblies, fitting_operations, leaves

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextlib.contextmanager
def nothing_fits(directory: Path) -> Iterator[None]:
    with scratch.room(directory, 0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch._room, "limit", 1)
        patch.setattr(scratch, "_LEAST", 1)
        yield
    assert list(directory.iterdir()) == []


@given(leaves(), st.data())
@many
def test_the_results_are_the_same(tmp_path: Path, found: Any, data: st.DataObject) -> None:
    specs, arrays = found
    assembled = assemblies(specs) if specs[0].kind is LeafKind.ARRAY else st.nothing()
    operation = data.draw(fitting_operations(specs).map(lambda made: made[0]) | assembled)
    arrays = [np.asarray(array) for array in arrays]
    expected = operation.apply(arrays, specs)
    with nothing_fits(tmp_path):
        files = [scratch.copy(scratch.empty(array.shape, array.dtype), array) for array in arrays]
        made = operation.apply(files, specs)
        assert [b"".join(block.tobytes() for block in scratch.blocks(np.asarray(value))) for value in made] == [
            np.asarray(value).tobytes() for value in expected
        ]
    for value, wanted in zip(made, expected, strict=True):
        assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape)


ARRAY = np.arange(-3000, 3000, dtype=np.float32).reshape(60, 100)
SPEC = array_spec("float32", (60, 100))


def test_casts(tmp_path: Path) -> None:
    exact, rounded = Cast("float32", "bfloat16", exact=True), Cast("float32", "bfloat16")
    with nothing_fits(tmp_path):
        (made,) = rounded.apply([ARRAY], [SPEC])
        assert made.tobytes() == ARRAY.astype(made.dtype).tobytes()
        assert not exact.objection([ARRAY % 256], [SPEC])
        assert exact.objection([ARRAY], [SPEC])


def test_conditions(tmp_path: Path) -> None:
    agree, drop = Agree((REWRAP, Transpose())), Drop("no counterpart", 0.0)
    other = ARRAY.T.copy()
    with nothing_fits(tmp_path):
        specs = [SPEC, array_spec("float32", (100, 60))]
        assert not agree.objection([ARRAY, ARRAY.T], specs)
        assert not agree.objection([ARRAY, other], specs)
        other[99, 59] = -1
        assert agree.objection([ARRAY, other], specs)
        zeros = np.zeros((60, 100), np.float32)
        assert not drop.objection([zeros, -zeros], [SPEC, SPEC])
        zeros[59, 99] = 1
        assert drop.objection([zeros], [SPEC])


def test_fills(tmp_path: Path) -> None:
    with nothing_fits(tmp_path):
        for number in (0.0, 1.5):
            (made,) = fill_number(SPEC, number, "why").apply([], [])
            assert (made == number).all()
            assert scratch._mapping(made) is not None


def test_what_is_there_together_shares_the_budget(tmp_path: Path) -> None:
    """Forty arrays that fit one by one do not fit all at once."""
    arrays = [np.full((64, 256), number, np.float32) for number in range(40)]
    limits = []

    def leaf(array: Any) -> Any:
        def fetch() -> Any:
            limits.append(scratch.limit())
            return scratch.copy(scratch.empty(array.shape, array.dtype), array)

        return type(leaf_of(array))(leaf_of(array).spec, fetch)

    stack = chain(Stack(40), Cast("float32", "bfloat16"))
    transfer = Transfer(stack, [Held((str(number),), leaf(array)) for number, array in enumerate(arrays)])
    with scratch.room(tmp_path, 2 << 20):
        assert scratch.limit() == 1 << 17
        made = transfer.take(0)
        assert set(limits) == {1 << 16}
        assert scratch.limit() == 1 << 17
    assert made.tobytes() == np.stack(arrays).astype(made.dtype).tobytes()
