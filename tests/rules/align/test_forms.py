"""One computation in two forms: side by side or one after the other, fused or apart, broadcast or copied."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from converter import align, linen_to_nnx, nnx_to_linen, verify_outputs
from converter.errors import ConversionRefused
from tests.rules.align.layers import Affine, attend, param
from tests.rules.align.test_traps import Linen, Nnx, found

X = jnp.sin(jnp.arange(80.0)).reshape(2, 5, 8)


def proved(linen: Linen, module: Nnx, *inputs: jax.Array) -> dict[str, str]:
    """The names of NNX by those of Linen, after a conversion there and back that loses nothing."""
    report = align(linen, module, inputs)
    report.check()
    shapes = jax.eval_shape(linen.init, jax.random.key(0), *inputs)
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    values = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    variables = structure.unflatten(values)
    nnx.update(module, linen_to_nnx(variables, module, linen_module=linen, inputs=inputs))
    assert verify_outputs(linen, variables, module, inputs).ok
    back = nnx_to_linen(module, linen_module=linen, inputs=inputs)
    assert jax.tree.all(jax.tree.map(lambda left, right: bool((left == right).all()), back, variables))
    return {linen: nnx for linen, (nnx, _) in found(report).items()}


def dense(size: int, name: str, **options: Any) -> nn.Dense:
    return nn.Dense(size, name=name, **options)


def test_a_product_of_what_stands_side_by_side_is_a_sum_of_products():
    linen = Linen(lambda x: dense(4, "out")(jnp.concatenate([jnp.tanh(dense(6, "a")(x)), x, x**2], -1)))

    def function(self: Any, x: jax.Array) -> jax.Array:
        return self.c(x**2) + self.b(x) + self.a(jnp.tanh(self.d(x)))

    layers = {"a": Affine(6, 4), "b": Affine(8, 4, False), "c": Affine(8, 4, False), "d": Affine(8, 6)}
    names = proved(linen, Nnx(function, **layers), X)
    assert names["params/out/kernel"] == "params/a/scale + params/b/scale + params/c/scale"


def test_a_convolution_over_channels_side_by_side_is_a_sum_of_convolutions():
    linen = Linen(lambda x: nn.Conv(4, (3,), name="out")(jnp.concatenate([x, nn.relu(dense(6, "a")(x))], -1)))
    rngs = nnx.Rngs(0)
    layers = {"p": nnx.Conv(8, 4, (3,), rngs=rngs), "q": nnx.Conv(6, 4, (3,), use_bias=False, rngs=rngs)}
    names = proved(linen, Nnx(lambda s, x: s.q(nn.relu(s.a(x))) + s.p(x), a=Affine(8, 6), **layers), X)
    assert names["params/out/kernel"] == "params/p/kernel + params/q/kernel"


def test_a_cell_that_takes_its_input_and_its_state_side_by_side():
    """Its kernel has blocks along both axes."""
    linen = Linen(nn.RNN(nn.OptimizedLSTMCell(3, name="cell"), name="rnn"))

    def function(self: Any, x: jax.Array) -> jax.Array:
        h = c = jnp.zeros((x.shape[0], 3))
        made = []
        for step in range(x.shape[1]):
            i, f, g, o = jnp.split(jnp.concatenate([x[:, step], h], -1) @ self.w[...] + self.b[...], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            made.append(h)
        return jnp.stack(made, 1)

    module = Nnx(function, w=param(11, 12), b=param(12))
    names = proved(linen, module, X)
    assert {nnx for linen, nnx in names.items() if "kernel" in linen} == {"params/w"}


def test_attention_and_its_neighbour_from_one_kernel():
    """Blocks of unlike widths, made of arrays of unlike ranks."""

    def function(x: jax.Array) -> jax.Array:
        q, k, v = (nn.DenseGeneral((2, 3), use_bias=False, name=name)(x) for name in ("q", "k", "v"))
        attended = nn.DenseGeneral(8, axis=(-2, -1), use_bias=False, name="o")(attend(q, k, v))
        return attended + dense(8, "down", use_bias=False)(nn.silu(dense(10, "up", use_bias=False)(x)))

    def nnx_function(self: Any, x: jax.Array) -> jax.Array:
        v, up, k, q = jnp.split(self.enter(x), [6, 16, 22], -1)
        q, k, v = (part.reshape(2, 5, 2, 3) for part in (q, k, v))
        return self.leave(jnp.concatenate([jax.nn.silu(up), attend(q, k, v).reshape(2, 5, 6)], -1))

    linen, module = Linen(function), Nnx(nnx_function, enter=Affine(8, 28, False), leave=Affine(16, 8, False))
    names = proved(linen, module, X)
    assert sorted(names.values()) == ["params/enter/scale", "params/leave/scale"]
    with pytest.raises(ConversionRefused, match="parts of unlike shapes cannot be stated in rules"):
        align(linen, module, (X,)).check_rules()


def test_queries_and_keys_of_one_kernel_that_are_normalised():
    """Each is used twice, as halves are that rotary positions turn, and yet they are no halves of one thing."""

    def unit(x: jax.Array) -> jax.Array:
        return x / jnp.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)

    def function(x: jax.Array) -> jax.Array:
        q, k, v = (nn.DenseGeneral((2, 3), use_bias=False, name=name)(x) for name in ("q", "k", "v"))
        return attend(unit(q), unit(k), v)

    def nnx_function(self: Any, x: jax.Array) -> jax.Array:
        q, k = jnp.split(self.v(x), 2, -1)
        q, k, v = (part.reshape(2, 5, 2, 3) for part in (q, k, self.q(x)))
        return attend(unit(q), unit(k), v)

    names = proved(Linen(function), Nnx(nnx_function, v=Affine(8, 12, False), q=Affine(8, 6, False)), X)
    assert names == {"params/q/kernel + params/k/kernel": "params/v/scale", "params/v/kernel": "params/q/scale"}


class Latents(nn.Module):
    """Learned rows, the same for every example."""

    copies: tuple[int, int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rows = nn.LayerNorm(name="norm")(self.param("rows", nn.initializers.ones, (4, 8)))
        number, along, across = self.copies
        spread = jnp.broadcast_to(rows[None, None, :, None], (number, along, 4, across, 8))
        return jnp.einsum("nrc,btc->nrbt", dense(8, "out")(spread.reshape(number, -1, 8 * across)), x)


@pytest.mark.parametrize("copies", [(2, 1, 1), (2, 3, 1), (1, 1, 2)])
def test_copies_that_are_tiled_or_broadcast(copies: tuple[int, int, int]):
    """Where a normalisation follows, nothing but the whole graph tells which is which."""

    def function(self: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("nrc,btc->nrbt", self.out(jnp.tile(self.norm(self.rows[...]), copies)), x)

    layers = {"norm": nnx.LayerNorm(8, rngs=nnx.Rngs(0)), "rows": param(1, 4, 8), "out": Affine(8 * copies[2], 8)}
    names = proved(Latents(copies), Nnx(function, **layers), X)
    assert names["params/rows"] == "params/rows"
    assert names["params/norm/bias"] == "params/norm/bias"


@pytest.mark.parametrize("axis", [1, 2])
def test_what_is_cut_after_a_product_with_something_broadcast(axis: int):
    """The factor has length one along the axis that is cut, or is cut along with it."""

    def function(x: jax.Array) -> jax.Array:
        factors = nn.Dense(6, name="factors")(x)[:, :, None] if axis == 1 else nn.Dense(4, name="factors")(x)[..., None]
        made = nn.DenseGeneral((4, 6), name="made")(x) * factors
        first, second = jnp.split(made, [2], axis + 1)
        return jnp.tanh(first).sum((-2, -1)) * jnp.sin(second).sum((-2, -1))

    def nnx_function(self: Any, x: jax.Array) -> jax.Array:
        shapes = ((2, 5, 2, 6), (2, 5, 2, 6)) if axis == 1 else ((2, 5, 4, 2), (2, 5, 4, 4))
        first, second = (layer(x).reshape(shape) for layer, shape in zip((self.b, self.a), shapes, strict=True))
        factors = self.c(x)[:, :, None] if axis == 1 else self.c(x)[..., None]
        return jnp.tanh(first * factors).sum((-2, -1)) * jnp.sin(second * factors).sum((-2, -1))

    sizes = (12, 12, 6) if axis == 1 else (16, 8, 4)
    layers = {name: Affine(8, size) for name, size in zip("abc", sizes, strict=True)}
    names = proved(Linen(function), Nnx(nnx_function, **layers), X)
    assert names["params/made/kernel"] == "params/b/scale + params/a/scale"


def test_a_sum_of_products_is_a_product():
    """``(x * y).sum(-1)`` with y the same for all rows of x."""

    def function(x: jax.Array) -> jax.Array:
        rows = jnp.tanh(nn.DenseGeneral((3, 4), name="rows")(x))
        return (rows * jnp.sin(dense(4, "gate")(x))[..., None, :]).sum(-1)

    def nnx_function(self: Any, x: jax.Array) -> jax.Array:
        rows, gate = jnp.tanh(self.gate(x)).reshape(2, 5, 3, 4), jnp.sin(self.rows(x))
        return jnp.einsum("btk,btrk->btr", gate, rows)

    names = proved(Linen(function), Nnx(nnx_function, gate=Affine(8, 12), rows=Affine(8, 4)), X)
    assert names["params/rows/kernel"] == "params/gate/scale"


class Decay(nn.Module):
    """A state that decays, with everything that depends on the input computed before the loop."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rates = jnp.exp(self.param("rates", nn.initializers.ones, (4, 3)))
        step = nn.softplus(dense(4, "step", use_bias=False)(x))[..., None]
        decay, inputs = jnp.exp(-step * rates), step * dense(3, "inputs", use_bias=False)(x)[:, :, None]
        state, made = jnp.zeros((2, 4, 3)), []
        for at in range(x.shape[1]):
            state = decay[:, at] * state + inputs[:, at]
            made.append(state.sum(-1))
        return jnp.stack(made, 1)


def test_a_loop_that_makes_its_factors_at_every_step_or_before():
    """Little but the products is alike; what is then the last of its size on both sides is tried."""

    def function(self: Any, x: jax.Array) -> jax.Array:
        state, made = jnp.zeros((2, 4, 3)), []
        for at in range(x.shape[1]):
            step = jax.nn.softplus(self.a(x[:, at]))[..., None]
            state = jnp.exp(-step * jnp.exp(self.rates[...].T)) * state + step * self.b(x[:, at])[:, None]
            made.append(jnp.einsum("nrc->nr", state))
        return jnp.stack(made, 1)

    names = proved(Decay(), Nnx(function, a=Affine(8, 4, False), b=Affine(8, 3, False), rates=param(3, 4)), X)
    assert names["params/rates"] == "params/rates"
