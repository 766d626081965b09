"""Calls run in double precision: the same function, without the rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from converter.proof.double import NoDouble, run_doubled

X = np.linspace(-1.3, 2.1, 12, dtype=np.float32).reshape(3, 4)


def doubled(function: Callable[..., Any], *arrays: Any) -> list[np.ndarray[Any, Any]]:
    closed = jax.make_jaxpr(function)(*arrays)
    with jax.enable_x64(True):
        return [np.asarray(value) for value in run_doubled(closed, arrays)]


def in_double(function: Callable[..., Any], *arrays: Any) -> list[np.ndarray[Any, Any]]:
    """The measure: the function written in double precision from the start."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) if np.asarray(a).dtype.kind in "fV" else a for a in arrays]
        return [np.asarray(value) for value in jax.tree.leaves(function(*wide))]


@jax.custom_vjp
def custom(x: Any) -> Any:
    return jnp.sin(x) * 2


custom.defvjp(lambda x: (custom(x), None), lambda _, g: (g,))

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "elementwise": lambda x: jnp.exp(x) / (1 + x**2) + x**3,
    "products": lambda x: (x @ x.T, jnp.einsum("ij,ik->jk", x, x)),
    "reductions": lambda x: (x.sum(0), x.max(1), x.mean(), x.var(), jnp.cumsum(x, 1), jnp.linalg.norm(x)),
    "layout": lambda x: jnp.concatenate([x.T.reshape(2, 6), jnp.pad(x, 1).ravel()[:12].reshape(2, 6)], 1)[::-1],
    "indexing": lambda x: (x[jnp.array([2, 0])], x.at[1].set(0.0), x.at[0].add(1.0), jnp.take(x, 1, axis=0)),
    "reducing by a function": lambda x: jax.lax.reduce(x, jnp.ones((), x.dtype), lambda a, b: a * b + a, (0,)),
    "scattering": lambda x: (x.at[jnp.array([0, 0, 1])].add(x), x.at[0].multiply(2.0), x.at[:, 1].max(0.5)),
    "sorting": lambda x: (jnp.sort(x, 0), jax.lax.top_k(x, 2)[0]),
    "softmax": jax.nn.softmax,
    "activations": lambda x: (jax.nn.relu(x), jax.nn.gelu(x), jax.nn.silu(x), jax.nn.elu(x)),
    "whole numbers": lambda x: (jnp.argmax(x, 1), (x > 0).sum(), jnp.floor(x).astype(jnp.int32)),
    "jit": jax.jit(lambda y: jnp.sin(y) * 2),
    "remat": jax.checkpoint(lambda y: jnp.sin(y) * 2),
    "custom derivative": custom,
    "scan": lambda x: jax.lax.scan(lambda c, y: (jnp.tanh(c + y), c * y), jnp.zeros_like(x[0]), x, reverse=True),
    "scan with constants": lambda x: jax.lax.scan(lambda c, _: (c @ x.T @ x / 9, None), x, None, length=3)[0],
    "nested scans": lambda x: jax.lax.map(lambda row: jax.lax.map(jnp.sin, row), x),
    "while": lambda x: jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 1.1 + x), (0, x))[1],
    "cond": lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
    "switch": lambda x: jax.lax.switch(jnp.argmax(x[0]) % 3, [jnp.sin, jnp.cos, jnp.tan], x),
    "vmap": jax.vmap(lambda row: row / jnp.sqrt(row @ row)),
    "convolution": lambda x: jax.lax.conv(x[None, None], x[None, None, :2, :2], (1, 1), "SAME"),
    "pooling": lambda x: (nn.max_pool(x[None, :, :, None], (2, 2)), nn.avg_pool(x[None, :, :, None], (2, 2))),
    "one hot": lambda x: jax.nn.one_hot(jnp.argmax(x, 1), 4) * x,
    "complex": lambda x: (jnp.fft.fft(x).real, jnp.fft.fft(x)),
    "iota": lambda x: x * jnp.arange(4.0),
    "precision": lambda x: jnp.dot(x, x.T, precision="highest", preferred_element_type=jnp.float32),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_results_are_those_of_double_precision(name: str):
    function = FUNCTIONS[name]
    for found, wanted in zip(doubled(function, X), in_double(function, X), strict=True):
        assert found.dtype.kind == wanted.dtype.kind
        if found.dtype.kind in "fc":
            assert found.dtype.itemsize >= 8
            # Constants of the program were rounded before it was traced.
            np.testing.assert_allclose(found, wanted, rtol=2e-7, atol=1e-13)
        else:
            np.testing.assert_array_equal(found, wanted)


def test_nothing_is_rounded_on_the_way():
    third = np.float32(1) / np.float32(3)
    assert doubled(lambda x: x * x, np.array(third))[0] == np.float64(third) ** 2
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        narrow = doubled(
            lambda x, dtype=dtype: (x.astype(dtype) * x.astype(dtype)).astype(jnp.float32), np.array(third)
        )
        assert narrow[0] == np.float64(third) ** 2
    assert doubled(lambda x: jax.lax.reduce_precision(x, 5, 2), np.array(third))[0] == np.float64(third)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn])
def test_arguments_of_other_dtypes(dtype: Any):
    array = jnp.asarray(X, dtype)
    (found,) = doubled(lambda x: x.astype(jnp.float32) * 3, array)
    np.testing.assert_array_equal(found, np.asarray(array).astype(np.float64) * 3)


def test_random_numbers_are_those_of_single_precision():
    (found,) = doubled(lambda x: jax.random.uniform(jax.random.key(3), (4,)) + 0 * x[0], X)
    np.testing.assert_array_equal(found, np.asarray(jax.random.uniform(jax.random.key(3), (4,))).astype(np.float64))


def test_it_can_be_differentiated_through_what_stops_gradients():
    closed = jax.make_jaxpr(lambda x: jax.lax.stop_gradient(x) ** 2 + jnp.asarray(x, jnp.bfloat16).sum())(X)
    with jax.enable_x64(True):
        gradient = jax.grad(lambda x: run_doubled(closed, [x])[0].sum())(jnp.asarray(X, jnp.float64))
    np.testing.assert_allclose(gradient, 2 * X.astype(np.float64) + X.size, rtol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        lambda x: jax.lax.bitcast_convert_type(x, jnp.int32),
    ],
)
def test_what_cannot_be_run_so_says_it(function: Callable[..., Any]):
    with pytest.raises(NoDouble):
        doubled(function, X)
