"""What can be done to arrays: nothing at all, counters of another dtype, values from elsewhere."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import UnsupportedCheckpoint
from converter.rules.operations import REWRAP, CastCounter, Fill
from converter.tree import LeafKind, LeafSpec, array_spec

RANGES = {"int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1)}


def test_rewrapping_hands_on_the_very_same_object():
    value = object()
    assert REWRAP.apply([value], [])[0] is value
    assert REWRAP.specs([array_spec("int4", (3,))]) == (array_spec("int4", (3,)),)
    assert REWRAP.name == ""


@pytest.mark.parametrize(
    "counter", [7, np.int32(7), np.uint32(7), np.int64(7), np.array(7, np.uint8), jnp.int32(7), jnp.uint32(7)]
)
@pytest.mark.parametrize("dtype", RANGES)
def test_counters_keep_their_number(counter: Any, dtype: str):
    result = CastCounter(dtype).apply([counter], [])[0]
    assert (result.dtype.name, result.shape, int(result)) == (dtype, (), 7)


def test_counters_of_every_replica_keep_their_shape():
    result = CastCounter("uint32").apply([np.array([[5, 6]], np.int32)], [])[0]
    np.testing.assert_array_equal(result, np.array([[5, 6]], np.uint32))
    assert CastCounter("uint32").specs([array_spec("int32", (1, 2))]) == (array_spec("uint32", (1, 2)),)


def test_counters_without_elements_are_cast():
    assert CastCounter("uint32").apply([np.zeros((0,), np.int32)], [])[0].shape == (0,)


def test_a_python_counter_becomes_an_array():
    cast = CastCounter("int32")
    assert cast.specs([LeafSpec(LeafKind.SCALAR, "int")]) == (array_spec("int32"),)
    assert cast.name == "as int32"


@given(st.sampled_from(sorted(RANGES)), st.integers(-(2**70), 2**70))
def test_a_number_is_kept_or_refused(dtype: str, number: int):
    smallest, largest = RANGES[dtype]
    if smallest <= number <= largest:
        assert int(CastCounter(dtype).apply([number], [])[0]) == number
    else:
        with pytest.raises(UnsupportedCheckpoint) as caught:
            CastCounter(dtype).apply([number], [])[0]
        for word in (dtype, str(smallest), str(largest), str(number)):
            assert word in caught.value.message


@pytest.mark.parametrize(
    ("dtype", "counter"),
    [
        ("uint32", -1),
        ("uint32", 2**32),
        ("int32", 2**31),
        ("int32", np.uint32(2**32 - 1)),
        ("uint32", np.array([3, -3])),
    ],
)
def test_numbers_out_of_range_are_refused(dtype: str, counter: Any):
    with pytest.raises(UnsupportedCheckpoint, match="step: expected a number from"):
        CastCounter(dtype).apply([counter], [])[0]


@pytest.mark.parametrize("counter", [2.5, np.float32(0.5), float("nan"), float("inf")])
def test_what_is_no_whole_number_is_refused(counter: Any):
    with pytest.raises(UnsupportedCheckpoint):
        CastCounter("int32").apply([counter], [])


def test_the_largest_counters_are_kept():
    for dtype, bounds in RANGES.items():
        for bound in bounds:
            assert int(CastCounter(dtype).apply([bound], [])[0]) == bound


def test_a_fill_gives_its_value_when_asked():
    calls = []

    def value() -> tuple[int]:
        calls.append(1)
        return (42,)

    fill = Fill((array_spec("int32"),), "the answer", value)
    assert fill.specs([]) == (array_spec("int32"),)
    assert fill.name == "the answer"
    assert calls == []
    assert fill.apply([], []) == [42]


def test_a_fill_is_known_by_spec_and_reason():
    number = (array_spec("int32"),)
    assert Fill(number, "why", lambda: (1,)) == Fill(number, "why", lambda: (2,))
    assert Fill(number, "why") != Fill(number, "why else")
