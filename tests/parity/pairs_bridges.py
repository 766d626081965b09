"""Pairs of modules of one framework inside of the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.nnx import bridge

from tests.parity.blocks import BLOCK, STATS_BLOCK, LinenBlock, NnxBlock, NnxStatsBlock
from tests.parity.pair import Pair
from tests.parity.pairs_variables import MLP, NnxAnnotated, without_mesh
from tests.parity.truth import CLASSES, DENSE, HIDDEN, WIDTH, batch_norm, pair, rows, same, sequences


class LinenBridgedLora(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return bridge.to_linen(nnx.LoRALinear, WIDTH, HIDDEN, lora_rank=2, name="m")(x)


class NnxLora(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.m = nnx.LoRALinear(WIDTH, HIDDEN, lora_rank=2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.m(x)


class NnxBridged(nnx.Module):
    """A list, statistics and random state, to be wrapped as a Linen module."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List(NnxStatsBlock(rngs) for _ in range(2))
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class NnxSpectralNorm(nnx.Module):
    """The keys of its statistics are tuples."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.SpectralNorm(nnx.Linear(WIDTH, HIDDEN, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(x, update_stats=False)


class LinenBridged(nn.Module):
    """Auto names, statistics and a collection of its own, to be wrapped as an NNX module."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        count = self.variable("counter", "count", lambda: jnp.ones(()))
        x = nn.Dense(HIDDEN)(x) * count.value
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(CLASSES)(jnp.tanh(x))


class LinenAroundNnx(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(CLASSES, name="head")(bridge.to_linen(NnxBlock, name="block")(x))


class NnxAroundLinen(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.block = bridge.lazy_init(bridge.ToNNX(LinenBlock(), rngs=rngs), *rows())
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.block(x))


def wrapped(make: Callable[[], nn.Module], inputs: Callable[[], tuple[Any, ...]]) -> Callable[..., nnx.Module]:
    """A Linen module as an NNX module."""
    return lambda rngs: bridge.lazy_init(bridge.ToNNX(make(), rngs=rngs), *inputs())


def linen_mgu() -> nn.Module:
    """A layer that NNX lacks."""
    return nn.RNN(nn.MGUCell(HIDDEN))


PAIRS: list[Pair] = [
    pair(
        "lora_linear_tolinen",
        LinenBridgedLora,
        NnxLora,
        rows,
        same("params/m", "m", DENSE),
        same("LoRAParam/m", "m", ("lora/lora_a", "lora/lora_b")),
        by_convention=True,
    ),
    # Items of lists keep their level: the keys are 0 and 1, not layers_0 and layers_1.
    pair(
        "bridge_to_linen",
        lambda: bridge.to_linen(NnxBridged),
        NnxBridged,
        rows,
        *(same(f"params/layers/{index}", f"layers/{index}", BLOCK) for index in range(2)),
        *(same(f"batch_stats/layers/{index}", f"layers/{index}", STATS_BLOCK) for index in range(2)),
        same("params/head", "head", DENSE),
    ),
    pair(
        "bridge_to_linen_spectral_norm",
        lambda: bridge.to_linen(NnxSpectralNorm),
        NnxSpectralNorm,
        rows,
        same("params/norm/layer_instance", "norm/layer_instance", DENSE),
        same("batch_stats/norm/batch_stats", "norm/batch_stats", ("('kernel', 'u')", "('kernel', 'sigma')")),
    ),
    # A Param with sharding names becomes a box again, of a class of its own.
    pair(
        "bridge_to_linen_partitioned",
        lambda: bridge.ToLinen(without_mesh(NnxAnnotated)),
        without_mesh(NnxAnnotated),
        rows,
        same("params", "", MLP),
        by_convention=True,
    ),
    pair(
        "bridge_to_nnx",
        LinenBridged,
        wrapped(LinenBridged, rows),
        rows,
        same("params/Dense_0", "Dense_0", DENSE),
        batch_norm("BatchNorm_0", "BatchNorm_0"),
        same("params/Dense_1", "Dense_1", DENSE),
        {"counter/count": ("count", None)},
        by_convention=True,
    ),
    pair(
        "bridge_to_nnx_mgu_cell",
        linen_mgu,
        wrapped(linen_mgu, sequences),
        sequences,
        *(same(f"params/cell/{gate}", f"cell/{gate}", DENSE) for gate in ("if", "in", "hn")),
        same("params/cell/hf", "cell/hf", ("kernel",)),
        by_convention=True,
    ),
    pair(
        "bridges_inside_models",
        LinenAroundNnx,
        NnxAroundLinen,
        rows,
        same("params/block", "block", BLOCK),
        same("params/head", "head", DENSE),
        by_convention=True,
    ),
]
