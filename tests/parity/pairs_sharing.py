"""Pairs about modules, variables and arrays that are used more than once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from tests.parity.blocks import BLOCK, LinenBlock, LinenCompactBlock, NnxBlock, NnxRenamedBlock, compact_block
from tests.parity.pair import Pair
from tests.parity.stacks import LinenScan
from tests.parity.truth import (
    CLASSES,
    COMPILED,
    DENSE,
    HIDDEN,
    LAYERS,
    VOCABULARY,
    WIDTH,
    pair,
    rows,
    same,
    tokens,
    two_rows,
)


class LinenUser(nn.Module):
    """A layer of its own around a module ``d`` that others use too."""

    d: nn.Module

    def setup(self) -> None:
        self.own = nn.Dense(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.own(jnp.tanh(self.d(x)))


class NnxUser(nnx.Module):
    def __init__(self, d: nnx.Module, rngs: nnx.Rngs) -> None:
        self.d = d
        self.own = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.own(jnp.tanh(self.d(x)))


class LinenSharedSetup(nn.Module):
    def setup(self) -> None:
        shared = nn.Dense(HIDDEN)
        self.l1 = LinenUser(shared)
        self.l2 = LinenUser(shared)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.l2(self.l1(x))


class NnxSharedSetup(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        shared = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.l1 = NnxUser(shared, rngs)
        self.l2 = NnxUser(shared, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.l2(self.l1(x))


class LinenSharedOrder(nn.Module):
    """Linen keeps the shared module where it is bound first, NNX at the first path of the alphabet."""

    def setup(self) -> None:
        shared = nn.Dense(HIDDEN)
        self.z = LinenUser(shared)
        self.a = LinenUser(shared)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.a(self.z(x))


class NnxSharedOrder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        shared = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.z = NnxUser(shared, rngs)
        self.a = NnxUser(shared, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.a(self.z(x))


class LinenSharedCompact(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shared = nn.Dense(HIDDEN)
        return LinenUser(shared)(LinenUser(shared)(x))


class LinenSharedKernel(nn.Module):
    """``b`` is ``a`` with another bias."""

    def setup(self) -> None:
        self.a = nn.Dense(HIDDEN)
        self.b_bias = self.param("b_bias", nn.initializers.zeros, (HIDDEN,))

    def __call__(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = self.a(x)
        return a, y @ self.a.variables["params"]["kernel"] + self.b_bias


class NnxSharedKernel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.b = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.b.kernel = self.a.kernel

    def __call__(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.a(x), self.b(y)


class LinenTiedEmbed(nn.Module):
    def setup(self) -> None:
        self.emb = nn.Embed(VOCABULARY, WIDTH)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.emb.attend(jnp.tanh(self.emb(tokens)))


class NnxUntiedHead(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.emb = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.head(jnp.tanh(self.emb(tokens)))


class LinenSiamese(nn.Module):
    """One encoder for two inputs, made where it is first used."""

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        encoder = LinenCompactBlock()
        return nn.Dense(CLASSES)(jnp.abs(jnp.tanh(encoder(x)) - jnp.tanh(encoder(y))))


class NnxSiamese(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.compare = nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.encoder = NnxRenamedBlock(rngs)

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return self.compare(jnp.abs(jnp.tanh(self.encoder(x)) - jnp.tanh(self.encoder(y))))


class LinenRepeated(nn.Module):
    """The layers of ALBERT: one block, several times."""

    def setup(self) -> None:
        self.block = LinenBlock()

    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(LAYERS):
            x = self.block(x)
        return x


class NnxRepeated(nnx.Module):
    """The block is in a list as often as it is used; its variables lie at the first place."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([NnxBlock(rngs)] * LAYERS)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x


PAIRS: list[Pair] = [
    pair(
        "shared_module_setup",
        LinenSharedSetup,
        NnxSharedSetup,
        rows,
        same("params/l1/d", "l1/d", DENSE),
        same("params/l1/own", "l1/own", DENSE),
        same("params/l2/own", "l2/own", DENSE),
        by_convention=True,
    ),
    pair(
        "shared_module_order",
        LinenSharedOrder,
        NnxSharedOrder,
        rows,
        same("params/z/d", "a/d", DENSE),
        same("params/z/own", "z/own", DENSE),
        same("params/a/own", "a/own", DENSE),
    ),
    # The call of the second user stands outside, so that one is made, and numbered, first.
    pair(
        "shared_module_compact",
        LinenSharedCompact,
        NnxSharedSetup,
        rows,
        same("params/Dense_0", "l1/d", DENSE),
        same("params/LinenUser_0/own", "l2/own", DENSE),
        same("params/LinenUser_1/own", "l1/own", DENSE),
    ),
    pair(
        "shared_kernel_variable",
        LinenSharedKernel,
        NnxSharedKernel,
        two_rows,
        same("params/a", "a", DENSE),
        {"params/b_bias": ("b/bias", None)},
    ),
    pair(
        "tied_embed_to_untied_head",
        LinenTiedEmbed,
        NnxUntiedHead,
        tokens,
        {"params/emb/embedding": ("emb/embedding + head/kernel", lambda array: (array, array.T))},
        copies="the embedding, as it is and transposed",
    ),
    pair(
        "siamese",
        LinenSiamese,
        NnxSiamese,
        two_rows,
        compact_block("LinenCompactBlock_0", "encoder"),
        same("params/Dense_0", "compare", DENSE),
    ),
    pair("one_block_several_times", LinenRepeated, NnxRepeated, rows, same("params/block", "blocks/0", BLOCK)),
    pair(
        "linen_shared_scan_to_nnx_one_block",
        lambda: LinenScan(axis=None),
        NnxRepeated,
        rows,
        same("params/layers", "blocks/0", BLOCK),
        tolerance=COMPILED,
    ),
]
