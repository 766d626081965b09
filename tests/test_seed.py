"""The seed of it all: one nnx.Linear, one nn.Dense, equal sums."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from converter import state_translation


def by_hand(seed: int, x: jax.Array, features: int) -> tuple[jax.Array, jax.Array]:
    """The two sums with nothing but flax: the arrays are carried over one by one."""
    layer = nnx.Linear(x.shape[-1], features, rngs=nnx.Rngs(seed))
    variables = {"params": {"kernel": layer.kernel[...], "bias": layer.bias[...]}}
    return layer(x).sum(), nn.Dense(features).apply(variables, x).sum()


def assert_translated(seed: Any, x: Any, features: Any) -> None:
    result = state_translation(seed, x, features)
    assert isinstance(result, jax.Array)
    assert result.shape == (2,)
    assert bool(result[0] == result[1])
    np.testing.assert_array_equal(result, jnp.array(by_hand(int(seed), jnp.asarray(x), int(features))))


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31 - 1])
@pytest.mark.parametrize("features", [1, 3, 16])
def test_the_sums_are_equal(seed: int, features: int):
    assert_translated(seed, jnp.arange(4.0) - 1.5, features)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
def test_inputs_of_any_dtype(dtype: str):
    assert_translated(7, (jnp.arange(5) % 3).astype(dtype), 4)


def test_numpy_inputs():
    assert_translated(0, np.linspace(-1, 1, 6, dtype=np.float32), 2)
    assert_translated(0, np.ones(3, ml_dtypes.bfloat16), 2)


@pytest.mark.parametrize("number", [np.int64(3), jnp.int32(3), np.array(3), 3.0, True])
def test_seed_and_features_are_anything_that_int_takes(number: Any):
    assert_translated(number, jnp.arange(2.0), number)


def test_a_batch_of_inputs_is_taken_too():
    assert_translated(0, jnp.ones((5, 2, 3)), 4)


def test_other_seeds_give_other_layers():
    x = jnp.ones(4)
    sums = {float(state_translation(seed, x, 3)[0]) for seed in range(4)}
    assert len(sums) == 4


def test_the_same_arguments_give_the_same_sums():
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(state_translation(5, x, 3), state_translation(5, x, 3))


def test_zero_inputs_give_the_bias_alone():
    np.testing.assert_array_equal(state_translation(0, jnp.zeros(4), 3), jnp.zeros(2))


def test_both_layers_are_run():
    """Equal sums alone would not show it."""
    program = jax.make_jaxpr(lambda x: state_translation(0, x, 3))(jnp.ones(4))
    assert str(program).count("dot_general[") == 2


@settings(max_examples=8)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_any_seed_and_any_shape(seed: int, x: list[float], features: int):
    assert_translated(seed, jnp.array(x, jnp.float32), features)


def test_the_signature():
    assert list(inspect.signature(state_translation).parameters) == ["seed", "x", "features"]
