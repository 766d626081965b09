"""Pairs about names: automatic ones, those of transformations, shared scopes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.truth import CLASSES, DENSE, HIDDEN, NORM, WIDTH, pair, rows, same


class LinenAutoNames(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(12):
            x = x + jnp.tanh(nn.Dense(WIDTH)(x))
        x = nn.LayerNorm()(x)
        # A name of its own does not use up a number: the next one is Dense_12.
        x = jnp.tanh(nn.Dense(WIDTH, name="mid")(x))
        return nn.Dense(WIDTH)(x)


class NnxOwnNames(nnx.Module):
    """What ``LinenAutoNames`` computes, with attributes of other names, defined in another order."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.mid = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.hidden = nnx.List(nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(12))

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.hidden:
            x = x + jnp.tanh(layer(x))
        return self.out(jnp.tanh(self.mid(self.norm(x))))


class LinenSameNames(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(nn.Dense(HIDDEN)(x))
        x = nn.LayerNorm()(x)
        return nn.Dense(CLASSES)(x)


class NnxSameNames(nnx.Module):
    """Attributes that are called as Linen calls its submodules by itself."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.Dense_0 = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.LayerNorm_0 = nnx.LayerNorm(HIDDEN, rngs=rngs)
        self.Dense_1 = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.Dense_1(self.LayerNorm_0(jnp.tanh(self.Dense_0(x))))


class LinenTransformedNames(nn.Module):
    """Each transformation of a class puts its own word in front and counts by itself."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(nn.remat(nn.Dense)(WIDTH)(x))
        x = jnp.tanh(nn.Dense(WIDTH)(x))
        x = jnp.tanh(nn.checkpoint(nn.Dense)(WIDTH)(x))
        x = jnp.tanh(nn.jit(nn.Dense)(WIDTH)(x))
        return nn.remat(nn.Dense)(WIDTH, name="named")(x)


class NnxTransformedNames(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        for name in ("first", "second", "third", "fourth", "named"):
            setattr(self, name, nnx.Linear(WIDTH, WIDTH, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        def call(layer: nnx.Linear, x: jax.Array) -> jax.Array:
            return layer(x)

        x = jnp.tanh(nnx.remat(call)(self.first, x))
        x = jnp.tanh(self.second(x))
        x = jnp.tanh(nnx.remat(call)(self.third, x))
        x = jnp.tanh(nnx.jit(call)(self.fourth, x))
        return nnx.remat(call)(self.named, x)


class LinenInner(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(nn.Dense(HIDDEN)(x))


class LinenOuter(nn.Module):
    """With ``share`` the inner module leaves no level in the paths."""

    share: bool

    def setup(self) -> None:
        self.inner = LinenInner()
        self.last = nn.Dense(CLASSES)
        if self.share:
            nn.share_scope(self, self.inner)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.inner(x))


class NnxInner(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.Dense_0 = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.Dense_0(x))


class NnxOuter(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.inner = NnxInner(rngs)
        self.last = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.inner(x))


class LinenLayerAdapter(nn.Module):
    """LoRA beside a layer in whose scope it lies, so that checkpoints of the plain layer still fit."""

    rank: int = 2

    def setup(self) -> None:
        self.layer = nn.Dense(HIDDEN)
        nn.share_scope(self, self.layer)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.param("A", nn.initializers.normal(), (WIDTH, self.rank))
        b = self.param("B", nn.initializers.zeros, (self.rank, HIDDEN))
        return self.layer(x) + x @ a @ b


class NnxLayerAdapter(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.A = nnx.Param(jnp.zeros((WIDTH, 2)))
        self.B = nnx.Param(jnp.zeros((2, HIDDEN)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x) + x @ self.A[...] @ self.B[...]


PAIRS: list[Pair] = [
    pair(
        "compact_auto_names",
        LinenAutoNames,
        NnxOwnNames,
        rows,
        *(same(f"params/Dense_{index}", f"hidden/{index}", DENSE) for index in range(12)),
        same("params/LayerNorm_0", "norm", NORM),
        same("params/mid", "mid", DENSE),
        same("params/Dense_12", "out", DENSE),
    ),
    pair(
        "same_names",
        LinenSameNames,
        NnxSameNames,
        rows,
        same("params/Dense_0", "Dense_0", DENSE),
        same("params/LayerNorm_0", "LayerNorm_0", NORM),
        same("params/Dense_1", "Dense_1", DENSE),
        by_convention=True,
    ),
    pair(
        "remat_and_jit_names",
        LinenTransformedNames,
        NnxTransformedNames,
        rows,
        same("params/CheckpointDense_0", "first", DENSE),
        same("params/Dense_0", "second", DENSE),
        same("params/CheckpointDense_1", "third", DENSE),
        same("params/JitDense_0", "fourth", DENSE),
        same("params/named", "named", DENSE),
    ),
    pair(
        "share_scope",
        lambda: LinenOuter(share=True),
        NnxOuter,
        rows,
        same("params/Dense_0", "inner/Dense_0", DENSE),
        same("params/last", "last", DENSE),
    ),
    pair(
        "share_scope_off",
        lambda: LinenOuter(share=False),
        NnxOuter,
        rows,
        same("params/inner/Dense_0", "inner/Dense_0", DENSE),
        same("params/last", "last", DENSE),
        by_convention=True,
    ),
    pair(
        "share_scope_adapter",
        LinenLayerAdapter,
        NnxLayerAdapter,
        rows,
        same("params", "layer", DENSE),
        same("params", "", ("A", "B")),
    ),
]
