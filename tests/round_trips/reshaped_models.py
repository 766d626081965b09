"""Models whose variables differ between Linen and NNX in names, in number and in shape.

All of them are small. The only random state is that of ``nnx.RNN``, which no call uses.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

FEATURES, MANY, FEW = 4, 12, 4
"""Twelve layers, so that the tenth is written before the second if they are sorted as texts; and as many as there are
features, so that shapes alone do not tell the axis of the layers."""


# Blocks: a loop, a list, or a scan along axis 0 or 1 -----------------------------------------------------------------


class LinenBlock(nn.Module):
    """With batch statistics, which a scan keeps along an axis of their own."""

    @nn.compact
    def __call__(self, x, _=None):
        x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        return x + nn.gelu(nn.Dense(FEATURES, name="dense")(x)), None


class LinenLoop(nn.Module):
    count: int = MANY

    @nn.compact
    def __call__(self, x):
        for number in range(self.count):
            x, _ = LinenBlock(name=f"layers_{number}")(x)
        return nn.Dense(3, name="head")(x)


class LinenScan(nn.Module):
    """Parameters are stacked along axis 1, batch statistics along axis 0."""

    count: int = FEW

    @nn.compact
    def __call__(self, x):
        axes = {"params": 1, "batch_stats": 0}
        layers = nn.scan(LinenBlock, variable_axes=axes, split_rngs={"params": True}, length=self.count)
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(3, name="head")(x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(FEATURES, use_running_average=True, rngs=rngs)
        self.dense = nnx.Linear(FEATURES, FEATURES, rngs=rngs)

    def __call__(self, x):
        x = self.norm(x)
        return x + nnx.gelu(self.dense(x))


class NnxList(nnx.Module):
    def __init__(self, count: int, rngs: nnx.Rngs):
        self.layers = nnx.List([NnxBlock(rngs) for _ in range(count)])
        self.head = nnx.Linear(FEATURES, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class NnxScan(nnx.Module):
    """Everything is stacked along axis 0."""

    def __init__(self, count: int, rngs: nnx.Rngs):
        self.layers = nnx.vmap(NnxBlock)(rngs.fork(split=count))
        self.head = nnx.Linear(FEATURES, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)
        return self.head(x)


# Names that only the order of use tells ------------------------------------------------------------------------------


class LinenNamed(nn.Module):
    """The layers name themselves, in the order in which they are built: the first to run is ``Dense_1``."""

    @nn.compact
    def __call__(self, x):
        last, first = nn.Dense(FEATURES), nn.Dense(FEATURES)
        x = nn.BatchNorm(use_running_average=True)(nn.gelu(first(x)))
        return nn.Dense(3)(nn.gelu(last(x)))


class NnxNamed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.expand = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.centre = nnx.BatchNorm(FEATURES, use_running_average=True, rngs=rngs)
        self.contract = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.logits = nnx.Linear(FEATURES, 3, rngs=rngs)

    def __call__(self, x):
        x = self.centre(nnx.gelu(self.expand(x)))
        return self.logits(nnx.gelu(self.contract(x)))


# Layers with recipes of their own ------------------------------------------------------------------------------------


class LinenLstm(nn.Module):
    def setup(self):
        self.rnn = nn.RNN(nn.OptimizedLSTMCell(FEATURES))
        self.head = nn.Dense(3)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


class NnxLstm(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(5, FEATURES, rngs=rngs))
        self.head = nnx.Linear(FEATURES, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


class LinenGru(nn.Module):
    def setup(self):
        self.rnn = nn.RNN(nn.GRUCell(FEATURES))
        self.head = nn.Dense(3)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


class NnxGru(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(5, FEATURES, rngs=rngs))
        self.head = nnx.Linear(FEATURES, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


class LinenNorms(nn.Module):
    """Norms over two axes: Linen's variables have both, NNX's are flat."""

    def setup(self):
        self.layer_norm = nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1))
        self.batch_norm = nn.BatchNorm(axis=(-2, -1), use_running_average=True)
        self.head = nn.Dense(2)

    def __call__(self, x):
        return self.head(self.batch_norm(self.layer_norm(x)))


class NnxNorms(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layer_norm = nnx.LayerNorm(15, reduction_axes=(-2, -1), feature_axes=(-2, -1), rngs=rngs)
        self.batch_norm = nnx.BatchNorm(15, axis=(-2, -1), use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.batch_norm(self.layer_norm(x)))


class LinenTied(nn.Module):
    """The embedding is the output layer too."""

    def setup(self):
        self.embed = nn.Embed(7, FEATURES)
        self.dense = nn.Dense(FEATURES)

    def __call__(self, tokens):
        return self.embed.attend(nn.gelu(self.dense(self.embed(tokens))))


class NnxUntied(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(7, FEATURES, rngs=rngs)
        self.dense = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.out = nnx.Linear(FEATURES, 7, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        return self.out(nnx.gelu(self.dense(self.embed(tokens))))


# Layers that only rules can match -------------------------------------------------------------------------------------


class LinenPieces(nn.Module):
    """Layers that only rules can match: ``query`` and ``key`` are one layer in NNX, which also splits the heads off."""

    @nn.compact
    def __call__(self, x):
        for number in range(3):
            x = x + nn.Dense(FEATURES, name=f"layer_{number}_query")(x) * nn.Dense(
                FEATURES, name=f"layer_{number}_key"
            )(x)
        shift = self.param("shift", nn.initializers.ones, (FEATURES,))
        return nn.Dense(6, name="project")(x * shift)


class NnxPieces(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.vmap(lambda rngs: nnx.Linear(FEATURES, 2 * FEATURES, rngs=rngs))(rngs.fork(split=3))
        self.project = nnx.LinearGeneral(FEATURES, (2, 3), rngs=rngs)
        self.offset = nnx.Param(jnp.zeros(2))

    def __call__(self, x):
        def layer(x, both):
            query, key = jnp.split(both(x), 2, axis=-1)
            return x + query * key

        x = nnx.scan(layer, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)
        return self.project(x).reshape(-1, 6) + self.offset[...].sum()
