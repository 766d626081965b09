"""Blocks: the parts that the models of the pairs repeat."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from tests.parity.truth import (
    BATCH,
    DENSE,
    HEADS,
    HIDDEN,
    LAYERS,
    LENGTH,
    NORM,
    QKV_FEATURES,
    STATISTICS,
    WIDTH,
    Part,
    under,
)


class LinenBlock(nn.Module):
    """A residual MLP."""

    def setup(self) -> None:
        self.norm = nn.LayerNorm()
        self.up = nn.Dense(HIDDEN)
        self.down = nn.Dense(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(jnp.tanh(self.up(self.norm(x))))


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(jnp.tanh(self.up(self.norm(x))))


BLOCK = (*under("norm", NORM), *under("up", DENSE), *under("down", DENSE))


class LinenStatsBlock(nn.Module):
    """A block with variables outside ``params``, and random state on the NNX side."""

    def setup(self) -> None:
        self.up = nn.Dense(HIDDEN)
        self.norm = nn.BatchNorm(use_running_average=True)
        self.dropout = nn.Dropout(0.5, deterministic=True)
        self.down = nn.Dense(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(self.dropout(jnp.tanh(self.norm(self.up(x)))))


class NnxStatsBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.norm = nnx.BatchNorm(HIDDEN, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(self.dropout(jnp.tanh(self.norm(self.up(x)))))


STATS_BLOCK = under("norm", STATISTICS)
"""The ``batch_stats`` of a block; its ``params`` are those of ``BLOCK``."""


class LinenSquareBlock(nn.Module):
    """As many features as a stack has layers: no shape tells which axis is which."""

    def setup(self) -> None:
        self.dense = nn.Dense(LAYERS)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jnp.tanh(self.dense(x))


class NnxSquareBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(LAYERS, LAYERS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jnp.tanh(self.dense(x))


SQUARE_BLOCK = under("dense", DENSE)


class LinenRecurrentBlock(nn.Module):
    cell: Callable[..., nn.Module]

    def setup(self) -> None:
        self.rnn = nn.RNN(self.cell(HIDDEN))
        self.down = nn.Dense(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(self.rnn(x))


class NnxRecurrentBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, cell: Callable[..., nnx.Module]) -> None:
        self.rnn = nnx.RNN(cell(WIDTH, HIDDEN, rngs=rngs), rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(self.rnn(x))


class LinenAttentionBlock(nn.Module):
    decode: bool = False

    def setup(self) -> None:
        self.attention = nn.MultiHeadDotProductAttention(HEADS, qkv_features=QKV_FEATURES, decode=self.decode)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.attention(x)


class NnxAttentionBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, decode: bool = False) -> None:
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, QKV_FEATURES, decode=decode, rngs=rngs)
        if decode:
            self.attention.init_cache((BATCH, LENGTH, WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.attention(x)


class LinenCompactBlock(nn.Module):
    """A residual MLP whose layers have automatic names."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(nn.Dense(HIDDEN)(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH)(hidden)


class NnxRenamedBlock(nnx.Module):
    """What ``LinenCompactBlock`` computes, with layers of other names, defined in another order."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.shrink = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.grow = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.centre = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.shrink(jnp.tanh(self.grow(self.centre(x))))


COMPACT_BLOCK = {
    **{f"LayerNorm_0/{name}": f"centre/{name}" for name in NORM},
    **{f"Dense_0/{name}": f"grow/{name}" for name in DENSE},
    **{f"Dense_1/{name}": f"shrink/{name}" for name in DENSE},
}


def compact_block(linen: str, nnx_path: str) -> Part:
    """``LinenCompactBlock`` as ``NnxRenamedBlock``."""
    return {f"params/{linen}/{path}": (f"{nnx_path}/{renamed}", None) for path, renamed in COMPACT_BLOCK.items()}
