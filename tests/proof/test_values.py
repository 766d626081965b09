"""Random values and inputs: reproducible, of the wanted kind, and with nothing that hides anything."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converter.proof.values import DRAWS, POSITIVE_DRAW, inputs_of, random_value, random_values
from converter.tree import LeafKind, LeafSpec, array_spec

W = ("params", ("w",))


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "complex64", "int32", "int4", "bool"]
)
@pytest.mark.parametrize("draw", range(DRAWS))
def test_values_are_of_their_spec(dtype: str, draw: int):
    for shape in ((), (3,), (4, 5), (0, 2)):
        value = random_value(W, array_spec(dtype, shape), draw)
        assert (value.dtype.name, value.shape) == (dtype, shape)
        assert np.isfinite(np.asarray(value, np.complex64)).all()


def test_no_two_variables_and_no_two_draws_have_the_same():
    specs = {("params", (letter,)): array_spec("float32", (4, 4)) for letter in "abc"}
    values = [value for draw in range(DRAWS) for value in random_values(specs, draw).values()]
    assert len({value.tobytes() for value in values}) == len(values)
    assert random_values(specs, 0)["params", ("a",)].tobytes() == values[0].tobytes()


def test_values_of_the_last_draw_are_positive():
    assert (random_value(W, array_spec("float32", (50,)), POSITIVE_DRAW) > 0).all()
    assert (random_value(W, array_spec("float32", (50,)), 0) < 0).any()


@pytest.mark.parametrize("path", [("var",), ("bn", "var"), ("layer_instance/kernel/sigma",), ("sigma",)])
def test_variances_are_positive_in_every_draw(path: tuple[str, ...]):
    for draw in range(DRAWS):
        assert (random_value(("batch_stats", path), array_spec("float32", (50,)), draw) > 0.1).all()


def test_sums_over_many_inputs_do_not_grow():
    kernel = random_value(W, array_spec("float32", (1000, 10)), 0)
    assert 0.8 < (np.ones(1000) @ kernel).std() < 1.5 or 0.5 < np.linalg.norm(kernel, axis=0).mean() < 2


def test_keys_are_keys():
    key = random_value(("params", ("key",)), LeafSpec(LeafKind.KEY, "threefry2x32", (3,)), 0)
    assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    assert key.shape == (3,)


UNCHANGED = [
    jnp.ones((2, 2), bool),
    jnp.float32(0),
    jax.random.key(0),
    jax.random.split(jax.random.key(0)),
    np.array(7),
]


@pytest.mark.parametrize("array", UNCHANGED, ids=lambda array: f"{array.dtype}{array.shape}")
def test_masks_keys_and_single_numbers_stay(array: Any):
    assert inputs_of([array], 1)[0] is array


@pytest.mark.parametrize("array", [jnp.zeros((2, 3)), np.ones(4, np.float16), jnp.zeros((5,), jnp.bfloat16)])
def test_constant_inputs_become_others_in_the_second_draw(array: Any):
    assert inputs_of([array], 0)[0] is array
    (other,) = inputs_of([array], 1)
    assert (other.shape, other.dtype) == (array.shape, array.dtype)
    assert len(np.unique(np.asarray(other, np.float32))) > 1


@pytest.mark.parametrize(("number", "range_"), [(0, {0, 1}), (1, {0, 1}), (3, {0, 1, 2, 3}), (-1, {-1, 0, 1})])
@pytest.mark.parametrize("dtype", ["int32", "int8", "int4"])
def test_whole_numbers_stay_in_the_range_of_those_given(number: int, range_: set[int], dtype: str):
    (other,) = inputs_of([jnp.full((40,), number, dtype)], 1)
    assert other.dtype.name == dtype
    assert set(other.astype(int).tolist()) == range_


def test_other_inputs_hold_the_same_numbers_in_orders_of_their_own():
    tokens = jnp.arange(10).reshape(2, 5)
    left, right = inputs_of([tokens, tokens], 1)
    for other in (left, right):
        assert sorted(np.asarray(other).reshape(-1)) == list(range(10))
    assert not np.array_equal(left, right)
    assert not np.array_equal(left, tokens)
