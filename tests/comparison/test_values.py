"""How much two arrays differ, against the same computed in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.comparison.values import EQUAL, Distance, distance, measurable
from tests.building import leaf_of, prng_key

FLOATS = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]
INTEGERS = [np.int8, np.uint8, np.int64, np.uint64, ml_dtypes.int4, ml_dtypes.uint4]


def measure(a: Any, b: Any) -> Distance:
    found, back = distance(leaf_of(a), leaf_of(b)), distance(leaf_of(b), leaf_of(a))
    assert (found.different, found.max_abs, found.max_rel) == (back.different, back.max_abs, back.max_rel)
    return found


@given(st.sampled_from(INTEGERS), st.data())
def test_integers_of_all_widths(dtype: Any, data: st.DataObject) -> None:
    limits = (ml_dtypes.iinfo if "4" in np.dtype(dtype).name[-1:] and np.dtype(dtype).itemsize == 1 else np.iinfo)(
        dtype
    )
    numbers = st.lists(st.integers(int(limits.min), int(limits.max)), min_size=4, max_size=4)
    left, right = data.draw(numbers), data.draw(numbers)
    found = measure(np.array(left, dtype), np.array(right, dtype))
    wrong = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
    if not wrong:
        assert found is EQUAL
        return
    assert (found.elements, found.different) == (4, len(wrong))
    assert found.max_abs == pytest.approx(max(abs(a - b) for a, b in wrong))
    assert found.max_rel == pytest.approx(max(abs(a - b) / max(abs(a), abs(b)) for a, b in wrong))


@given(st.sampled_from(FLOATS), st.data())
def test_floats_of_all_widths(dtype: Any, data: st.DataObject) -> None:
    numbers = st.lists(st.floats(-100, 100), min_size=3, max_size=3)
    a, b = (np.array(data.draw(numbers), np.float64).astype(dtype) for _ in range(2))
    found = measure(a, b)
    wrong = [(Fraction(float(x)), Fraction(float(y))) for x, y in zip(a, b, strict=True) if x.tobytes() != y.tobytes()]
    assert found.different == len(wrong)
    if wrong:
        assert found.max_abs == pytest.approx(float(max(abs(x - y) for x, y in wrong)))
        relative = (abs(x - y) / max(abs(x), abs(y)) if x or y else Fraction(0) for x, y in wrong)
        assert found.max_rel == pytest.approx(float(max(relative)))


@pytest.mark.parametrize(
    ("a", "b", "max_abs", "max_rel"),
    [
        (0.0, -0.0, 0.0, 0.0),
        (1.0, math.nan, math.inf, 1.0),
        (math.inf, 1.0, math.inf, 1.0),
        (math.inf, -math.inf, math.inf, 1.0),
        (1.0, -1.0, 2.0, 2.0),
        (0.0, 1.0, 1.0, 1.0),
    ],
)
def test_signs_and_what_is_no_number(a: float, b: float, max_abs: float, max_rel: float) -> None:
    found = measure(np.array([a, 5.0], np.float32), np.array([b, 5.0], np.float32))
    assert (found.elements, found.different, found.max_abs, found.max_rel) == (2, 1, max_abs, max_rel)


def test_other_bits_of_no_number_are_counted() -> None:
    quiet = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    found = measure(quiet[:1], quiet[1:])
    assert (found.different, found.max_abs, found.max_rel) == (1, 0.0, 0.0)


def test_large_integers_that_differ_by_one() -> None:
    found = measure(np.array([2**62], np.int64), np.array([2**62 + 1], np.int64))
    assert found.max_abs == 1.0


def test_complex_numbers_and_truth_values() -> None:
    assert measure(np.array([3 + 4j], np.complex64), np.array([0j], np.complex64)).max_abs == 5.0
    found = measure(np.array([True, False]), np.array([True, True]))
    assert (found.different, found.max_abs) == (1, 1.0)


def test_values_that_are_no_arrays() -> None:
    assert measure("relu", "relu") is EQUAL
    assert measure(3, 3) is EQUAL
    assert distance(leaf_of("relu"), leaf_of("gelu")).texts == ("'relu'", "'gelu'")
    assert str(distance(leaf_of(3), leaf_of(4))) == "3 → 4"


# Unlike dtypes -------------------------------------------------------------------------------------------------------


@given(st.sampled_from([*FLOATS, *INTEGERS, np.bool_]), st.sampled_from([*FLOATS, *INTEGERS, np.bool_]), st.data())
def test_numbers_of_unlike_dtypes(one: Any, other: Any, data: st.DataObject) -> None:
    """Counted and measured in their exact values, where double precision has room for both."""
    numbers = st.lists(st.integers(0, 7), min_size=3, max_size=3)
    fractions = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1 / 3, 3.0]), min_size=3, max_size=3)
    a, b = (np.array(data.draw(fractions if each in FLOATS else numbers)).astype(each) for each in (one, other))
    if a.dtype == b.dtype:
        return
    assert measurable(leaf_of(a).spec, leaf_of(b).spec)
    found = measure(a, b)
    pairs = [(Fraction(float(x)), Fraction(float(y))) for x, y in zip(a, b, strict=True)]
    wrong = [(x, y) for x, y in pairs if x != y]
    assert (found.elements, found.different) == (3, len(wrong))
    assert found.max_abs == pytest.approx(float(max((abs(x - y) for x, y in wrong), default=0)))
    assert found.max_rel == pytest.approx(float(max((abs(x - y) / max(abs(x), abs(y)) for x, y in wrong), default=0)))


@given(
    st.sampled_from([(np.int32, np.int64), (np.int8, np.uint32), (np.uint32, np.uint64), (np.uint32, np.int64)]),
    st.data(),
)
def test_integers_of_unlike_widths_are_exact(dtypes: tuple[Any, Any], data: st.DataObject) -> None:
    left, right = (data.draw(st.integers(int(np.iinfo(each).min), int(np.iinfo(each).max))) for each in dtypes)
    found = measure(np.array([left], dtypes[0]), np.array([right], dtypes[1]))
    assert found.different == (left != right)
    assert found.max_abs == float(abs(left - right))


def test_a_narrowed_array_is_as_far_apart_as_rounding_brings_it() -> None:
    a = np.linspace(-3, 3, 300_001, dtype=np.float32)
    b = a.astype(ml_dtypes.bfloat16)
    found = measure(a, b)
    assert found.max_abs == float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    assert 0 < found.max_rel <= 2**-8
    assert found.elements == a.size
    assert str(measure(b, b.astype(np.float32))) == "equal values"


def test_no_numbers_of_unlike_dtypes() -> None:
    a, b = np.array([math.nan, 1.0], np.float32), np.array([math.nan, math.inf], np.float16)
    found = measure(a, b)
    assert (found.different, found.max_abs, found.max_rel) == (1, math.inf, 1.0)
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)
    assert measure(signalling, np.zeros(1, np.float64)).max_abs == math.inf


@pytest.mark.parametrize(
    ("a", "b", "max_abs"),
    [
        (3, np.array(4, np.int32), 1.0),
        (3, 3.5, 0.5),
        (2**64 - 1, np.array(2**64 - 2, np.uint64), 1.0),
        (True, 0.25, 0.75),
        (1j, np.array(1.0, np.float32), math.sqrt(2)),
    ],
    ids=repr,
)
def test_python_numbers_beside_others(a: Any, b: Any, max_abs: float) -> None:
    assert measurable(leaf_of(a).spec, leaf_of(b).spec)
    assert measure(a, b).max_abs == pytest.approx(max_abs)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones(2, np.float32), np.ones((2, 1), np.float64)),
        (np.ones(2, np.float32), 1.0),
        ("3", 3),
        (None, np.ones((), np.float32)),
        (prng_key(), np.ones((), np.uint32)),
    ],
    ids=["shape", "no axes", "text", "nothing", "key"],
)
def test_what_cannot_be_measured(a: Any, b: Any) -> None:
    assert not measurable(leaf_of(a).spec, leaf_of(b).spec)
    assert not measurable(leaf_of(b).spec, leaf_of(a).spec)


def test_arrays_of_many_pieces() -> None:
    a = np.zeros(700_001, np.float32)
    b = a.copy()
    b[[0, 300_000, 700_000]] = (1, 2, 3)
    found = measure(a, b)
    assert (found.elements, found.different, found.max_abs) == (700_001, 3, 3.0)
