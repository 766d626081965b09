"""Are all bits equal? NaNs, zeros and the numbers of small types included."""

from __future__ import annotations

import json
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.dtypes import numpy_dtype
from converter.paths import parse_path
from converter.planning.plan import Step, Transfer
from converter.rules.operations import REWRAP, CastCounter, Fill
from converter.training_state import Held
from converter.tree import empty_spec
from converter.verification.values import compare_values, value_difference
from tests.building import PrngKey, leaf_of, prng_key, tree_at


def bits(dtype: str, *words: int) -> np.ndarray:
    """An array of these bit patterns."""
    wide = numpy_dtype(dtype)
    return np.array(words, f"u{wide.itemsize}").view(wide)


# Two values ----------------------------------------------------------------------------------------------------------

EQUAL: list[Any] = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(1.5),
    np.zeros((0, 3), np.int8),
    np.zeros((), ml_dtypes.bfloat16),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.float32(2.5),
    bits("float32", 0x7FC00001, 0xFFC00000, 0x80000000),
    bits("bfloat16", 0x7FC1, 0x8000),
    bits("float8_e4m3fn", 0x7F, 0xFF, 0x80),
    np.arange(-8, 8).astype(ml_dtypes.int4),
    np.arange(4).astype(ml_dtypes.uint2),
    np.arange(8).astype(ml_dtypes.float4_e2m1fn),
    1,
    True,
    1.0,
    float("nan"),
    -0.0,
    "text",
    b"bytes",
    1j,
    10**30,
    None,
]


@pytest.mark.parametrize("position", range(len(EQUAL)))
def test_equal_values(position: int):
    value = EQUAL[position]
    copy = value.copy() if isinstance(value, np.ndarray) else value
    assert value_difference(value, copy) is None


@pytest.mark.parametrize("one", range(len(EQUAL)))
def test_different_values(one: int):
    """Every value of the list is another one, for whoever looks closely enough."""
    for other, value in enumerate(EQUAL):
        if other != one:
            assert value_difference(EQUAL[one], value) is not None, (EQUAL[one], value)


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (bits("float32", 0x7FC00000), bits("float32", 0x7FC00001)),
        (bits("float32", 0x7FC00000), bits("float32", 0xFFC00000)),
        (bits("float32", 0x7FC00000), bits("float32", 0x7F800001)),
        (bits("float64", 0x7FF8000000000000), bits("float64", 0x7FF8000000000001)),
        (bits("bfloat16", 0x7FC0), bits("bfloat16", 0x7FC1)),
        (bits("float8_e5m2", 0x7E), bits("float8_e5m2", 0x7F)),
        (np.array([0.0]), np.array([-0.0])),
        (np.zeros(1, ml_dtypes.bfloat16), -np.zeros(1, ml_dtypes.bfloat16)),
        (np.zeros(1, ml_dtypes.float4_e2m1fn), -np.zeros(1, ml_dtypes.float4_e2m1fn)),
        (np.array([1.0], np.float32), np.nextafter(np.array([1.0], np.float32), np.float32(2))),
        (np.array([-1]).astype(ml_dtypes.int4), np.array([7]).astype(ml_dtypes.int4)),
        (np.array([0j]), np.array([complex(0.0, -0.0)])),
        (np.array([True]), np.array([False])),
        (1, True),
        (1, 1.0),
        (0, False),
        (1.0, True),
        (0.0, -0.0),
        (1.0, np.nextafter(1.0, 2)),
        ("1", 1),
        ("a", b"a"),
        ("é", "e\u0301"),
        (None, 0),
    ],
)
def test_values_that_compare_equal_or_look_alike(expected: Any, found: Any):
    assert value_difference(expected, found) is not None
    assert value_difference(found, expected) is not None


def test_shapes_and_dtypes_are_told():
    assert value_difference(np.ones(3, np.float32), np.ones((3, 1), np.float32)) == ("float32[3]", "float32[3,1]")
    assert value_difference(np.ones(3, np.float32), np.ones(3, np.float64)) == ("float32[3]", "float64[3]")
    assert value_difference(np.ones(3, np.int8), np.ones(3).astype(ml_dtypes.int4)) == ("int8[3]", "int4[3]")


def test_the_first_difference_and_their_number_are_told():
    left = np.arange(12, dtype=np.int32).reshape(3, 4)
    right = left.copy()
    right[1, 2] = right[2, 0] = -5
    assert value_difference(left, right) == ("6 at [1,2]", "-5 there, and 2 of 12 elements differ")


def test_a_difference_without_dimensions():
    assert value_difference(np.array(1), np.array(2)) == ("1 at []", "2 there, and 1 of 1 elements differ")


@pytest.mark.parametrize(
    ("dtype", "used"),
    [("int1", 1), ("uint1", 1), ("int2", 2), ("uint2", 2), ("int4", 4), ("uint4", 4)],
)
def test_the_unused_bits_of_small_types_mean_nothing(dtype: str, used: int):
    """NumPy keeps them one to a byte; what fills the byte up differs between libraries."""
    if not hasattr(ml_dtypes, dtype):
        pytest.skip(f"ml_dtypes {ml_dtypes.__version__} has no {dtype}")
    plain, filled = bits(dtype, 1, 0), bits(dtype, 1 | 0xFF << used & 0xFF, 0xFF << used & 0xFF)
    assert value_difference(plain, filled) is None
    assert value_difference(plain, bits(dtype, 0, 0)) is not None


def test_how_an_array_lies_in_memory_does_not_count():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert value_difference(array, np.asfortranarray(array)) is None
    assert value_difference(array[:, ::2], array[:, ::2].copy()) is None
    assert value_difference(array, jnp.asarray(array)) is None
    assert value_difference(np.broadcast_to(np.float32(3), (2, 2)), np.full((2, 2), 3, np.float32)) is None


@given(
    st.binary(min_size=8, max_size=8),
    st.integers(0, 63),
    st.sampled_from(["float32", "bfloat16", "float8_e4m3fn", "int64", "uint8"]),
)
def test_any_flipped_bit_is_seen(data: bytes, position: int, dtype: str):
    left = np.frombuffer(data, np.uint8).view(numpy_dtype(dtype))
    flipped = bytearray(data)
    flipped[position // 8] ^= 1 << position % 8
    right = np.frombuffer(bytes(flipped), np.uint8).view(numpy_dtype(dtype))
    assert value_difference(left, left.copy()) is None
    assert value_difference(left, right) is not None


# Steps against a destination -----------------------------------------------------------------------------------------


def steps_to(leaves: dict[str, Any]) -> list[Step]:
    return [
        Step(parse_path(path), Transfer(REWRAP, [Held(("source",), leaf_of(value))])) for path, value in leaves.items()
    ]


LEAVES = {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, ml_dtypes.bfloat16), "key": prng_key(5), "epoch": 3}


def compared(steps: list[Step], leaves: dict[str, Any]) -> tuple[Any, list[tuple[int, int]]]:
    progress: list[tuple[int, int]] = []
    result = compare_values(steps, tree_at(leaves), lambda nbytes, leaves: progress.append((nbytes, leaves)))
    return result, progress


def test_equal_leaves_and_progress():
    result, progress = compared(steps_to(LEAVES), LEAVES)
    assert result.ok
    assert (result.leaves, result.nbytes) == (4, 24 + 6 + 8)
    assert progress == [(24, 1), (6, 1), (8, 1), (0, 1)]


def test_all_different_leaves_are_listed():
    other = {**LEAVES, "bias": np.zeros(3, ml_dtypes.bfloat16), "key": prng_key(6), "epoch": 4}
    result, _ = compared(steps_to(LEAVES), other)
    assert not result.ok
    assert [str(difference) for difference in result.differences] == [
        "bias: expected 1.0 at [0], found 0.0 there, and 3 of 3 elements differ",
        "key: expected 5 at [1], found 6 there, and 1 of 2 elements differ",
        "epoch: expected 3, found 4",
    ]


def test_every_word_of_a_key_counts():
    keys = PrngKey(np.arange(6, dtype=np.uint32).reshape(3, 2))
    changed = PrngKey(keys.words + np.array([[0, 0], [0, 1], [0, 0]], np.uint32))
    result, _ = compared(steps_to({"keys": keys}), {"keys": changed})
    assert [difference.expected for difference in result.differences] == ["3 at [1,1]"]


def test_what_the_destination_does_not_have_is_left_to_the_structure():
    result, _ = compared(steps_to(LEAVES), {"kernel": LEAVES["kernel"]})
    assert result.ok
    assert result.leaves == 1


def test_empty_leaves_hold_nothing_to_compare():
    result, progress = compared(
        [Step(("opt_state",), Transfer(Fill((empty_spec("node"),), "why"), ()))], {"opt_state": None}
    )
    assert (result.ok, result.leaves, progress) == (True, 0, [])


def test_operations_are_carried_out():
    steps = [Step(("step",), Transfer(CastCounter("int32"), [Held(("s",), leaf_of(7))]))]
    assert compared(steps, {"step": np.int32(7)})[0].ok
    assert not compared(steps, {"step": np.int32(8)})[0].ok
    assert not compared(steps, {"step": np.uint32(7)})[0].ok


def test_the_json_of_a_result():
    result = compared(steps_to({"epoch": 3}), {"epoch": True})[0].to_json()
    assert json.loads(json.dumps(result)) == result
    assert result == {
        "ok": False,
        "leaves": 1,
        "bytes": 0,
        "proofs": {},
        "reader": None,
        "differences": [{"path": "epoch", "expected": "3", "found": "True"}],
    }
