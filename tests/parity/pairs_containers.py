"""Pairs about where submodules are kept: lists, dicts, Sequential, fields."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from tests.parity.blocks import BLOCK, LinenBlock, NnxBlock
from tests.parity.pair import Pair
from tests.parity.truth import CLASSES, DENSE, HIDDEN, WIDTH, pair, rows, same, sequences


def linen_sequential() -> nn.Module:
    return nn.Sequential([nn.Dense(HIDDEN), nn.relu, nn.Dense(CLASSES)])


def nnx_sequential(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Sequential(nnx.Linear(WIDTH, HIDDEN, rngs=rngs), nnx.relu, nnx.Linear(HIDDEN, CLASSES, rngs=rngs))


class LinenSequentialSetup(nn.Module):
    def setup(self) -> None:
        self.q = linen_sequential()
        self.scale = nn.Dense(CLASSES)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.q(x) * self.scale(x)


class NnxSequentialSetup(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.q = nnx_sequential(rngs)
        self.scale = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.q(x) * self.scale(x)


class LinenSequentialCompact(nn.Module):
    """The items are made, and therefore numbered, before the layer that runs first."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Sequential([nn.Dense(WIDTH), nn.relu, nn.Dense(WIDTH)])(nn.Dense(WIDTH)(x))


class NnxSequentialCompact(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        layers = [nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(2)]
        self.q = nnx.Sequential(layers[0], nnx.relu, layers[1])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.q(self.first(x))


class LinenContainers(nn.Module):
    def setup(self) -> None:
        self.blocks = [nn.Dense(WIDTH) for _ in range(12)]
        self.d = {"a": nn.Dense(HIDDEN), "b": [nn.Dense(HIDDEN), nn.Dense(HIDDEN)]}
        self.t = (nn.Dense(CLASSES),)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = x + jnp.tanh(block(x))
        first, second = self.d["b"]
        return self.t[0](self.d["a"](x) * jnp.tanh(first(x)) + jnp.exp(second(x)))


class NnxContainers(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List(nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(12))
        wide = [nnx.Linear(WIDTH, HIDDEN, rngs=rngs) for _ in range(3)]
        self.d = nnx.Dict(a=wide[0], b=nnx.List(wide[1:]))
        self.t = nnx.List([nnx.Linear(HIDDEN, CLASSES, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = x + jnp.tanh(block(x))
        first, second = self.d["b"]
        return self.t[0](self.d["a"](x) * jnp.tanh(first(x)) + jnp.exp(second(x)))


class LinenUnderscores(nn.Module):
    """``conv_1`` is an attribute, ``head_0`` the item of a list."""

    def setup(self) -> None:
        self.conv_1 = nn.Conv(WIDTH, (2,))
        self.conv_2 = nn.Conv(WIDTH, (2,))
        self.head = [nn.Dense(CLASSES)]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head[0](self.conv_2(jnp.tanh(self.conv_1(x))))


class NnxUnderscores(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv_1 = nnx.Conv(WIDTH, WIDTH, (2,), rngs=rngs)
        self.conv_2 = nnx.Conv(WIDTH, WIDTH, (2,), rngs=rngs)
        self.head = nnx.List([nnx.Linear(WIDTH, CLASSES, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head[0](self.conv_2(jnp.tanh(self.conv_1(x))))


class LinenFields(nn.Module):
    """Submodules made outside and passed in: they take the names of the fields."""

    torso: nn.Module
    head: nn.Module

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.torso(x))


class NnxFields(nnx.Module):
    def __init__(self, torso: nnx.Module, head: nnx.Module) -> None:
        self.head = head
        self.torso = torso

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.torso(x))


PAIRS: list[Pair] = [
    pair(
        "sequential",
        linen_sequential,
        nnx_sequential,
        rows,
        same("params/layers_0", "layers/0", DENSE),
        same("params/layers_2", "layers/2", DENSE),
        by_convention=True,
    ),
    pair(
        "sequential_setup",
        LinenSequentialSetup,
        NnxSequentialSetup,
        rows,
        same("params/q/layers_0", "q/layers/0", DENSE),
        same("params/q/layers_2", "q/layers/2", DENSE),
        same("params/scale", "scale", DENSE),
        by_convention=True,
    ),
    pair(
        "sequential_compact",
        LinenSequentialCompact,
        NnxSequentialCompact,
        rows,
        same("params/Dense_0", "q/layers/0", DENSE),
        same("params/Dense_1", "q/layers/2", DENSE),
        same("params/Dense_2", "first", DENSE),
    ),
    pair(
        "lists_and_dicts_setup",
        LinenContainers,
        NnxContainers,
        rows,
        *(same(f"params/blocks_{index}", f"blocks/{index}", DENSE) for index in range(12)),
        same("params/d_a", "d/a", DENSE),
        same("params/d_b_0", "d/b/0", DENSE),
        same("params/d_b_1", "d/b/1", DENSE),
        same("params/t_0", "t/0", DENSE),
        by_convention=True,
    ),
    pair(
        "underscore_names_are_ambiguous",
        LinenUnderscores,
        NnxUnderscores,
        sequences,
        same("params/conv_1", "conv_1", DENSE),
        same("params/conv_2", "conv_2", DENSE),
        same("params/head_0", "head/0", DENSE),
        by_convention=True,
    ),
    pair(
        "modules_in_fields",
        lambda: LinenFields(torso=LinenBlock(), head=nn.Dense(CLASSES)),
        lambda rngs: NnxFields(torso=NnxBlock(rngs), head=nnx.Linear(WIDTH, CLASSES, rngs=rngs)),
        rows,
        same("params/torso", "torso", BLOCK),
        same("params/head", "head", DENSE),
        by_convention=True,
    ),
]
