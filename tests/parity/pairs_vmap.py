"""Pairs of modules that run side by side: ensembles and experts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.blocks import BLOCK, STATS_BLOCK, LinenStatsBlock, NnxStatsBlock
from tests.parity.pair import Pair
from tests.parity.stacks import nnx_stacked, state_axes
from tests.parity.truth import (
    BATCH,
    COMPILED,
    DENSE,
    HIDDEN,
    WIDTH,
    numbered,
    pair,
    rows,
    same,
    sequences,
    stacked,
    unstacked,
    wave,
)

MEMBERS = 4


class LinenVmapDense(nn.Module):
    """An ensemble: every member has parameters of its own and is given the same input."""

    axis: int | None = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shared = self.axis is None
        ensemble = nn.vmap(
            nn.Dense,
            variable_axes={"params": self.axis},
            split_rngs={"params": not shared},
            in_axes=1 if shared else None,
            axis_size=None if shared else MEMBERS,
        )
        return ensemble(HIDDEN)(x)


class NnxVmapLinear(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, axis: int = 0) -> None:
        self.ensemble = nnx_stacked(functools.partial(nnx.Linear, WIDTH, HIDDEN), rngs, MEMBERS, axis)
        self.axis = axis

    def __call__(self, x: jax.Array) -> jax.Array:
        def call(member: nnx.Module, x: jax.Array) -> jax.Array:
            return member(x)

        return nnx.vmap(call, in_axes=(state_axes(self.axis), None))(self.ensemble, x)


class LinenVmapExperts(nn.Module):
    """Every expert is given an input of its own."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        experts = nn.vmap(
            LinenStatsBlock, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, in_axes=0
        )
        return experts(name="experts")(x)


class LinenListOfExperts(nn.Module):
    def setup(self) -> None:
        self.experts = [LinenStatsBlock() for _ in range(MEMBERS)]

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.stack([expert(part) for expert, part in zip(self.experts, x, strict=True)])


class NnxVmapExperts(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.experts = nnx_stacked(NnxStatsBlock, rngs, MEMBERS)

    def __call__(self, x: jax.Array) -> jax.Array:
        def call(expert: nnx.Module, x: jax.Array) -> jax.Array:
            return expert(x)

        return nnx.vmap(call, in_axes=(0, 0))(self.experts, x)


class NnxListOfExperts(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.experts = nnx.List(NnxStatsBlock(rngs) for _ in range(MEMBERS))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.stack([expert(part) for expert, part in zip(self.experts, x, strict=True)])


class NnxOneLinear(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.moveaxis(self.linear(x), 1, 0)


def expert_inputs() -> tuple[jax.Array]:
    return (wave(MEMBERS, BATCH, WIDTH),)


NNX_EXPERTS = numbered("experts/", MEMBERS)
PAIRS: list[Pair] = [
    *(
        pair(
            name,
            functools.partial(LinenVmapDense, axis),
            functools.partial(NnxVmapLinear, axis=axis),
            rows,
            same("params/VmapDense_0", "ensemble", DENSE),
        )
        for name, axis in (("vmap_ensemble", 0), ("vmap_ensemble_axis1", 1))
    ),
    pair(
        "linen_vmap_axis1_to_nnx_vmap_axis0",
        functools.partial(LinenVmapDense, 1),
        NnxVmapLinear,
        rows,
        same("params/VmapDense_0", "ensemble", DENSE, lambda array: np.moveaxis(array, 1, 0)),
    ),
    pair(
        "linen_vmap_of_one_layer",
        functools.partial(LinenVmapDense, None),
        NnxOneLinear,
        sequences,
        same("params/VmapDense_0", "linear", DENSE),
    ),
    pair(
        "vmap_experts",
        LinenVmapExperts,
        NnxVmapExperts,
        expert_inputs,
        same("params/experts", "experts", BLOCK),
        same("batch_stats/experts", "experts", STATS_BLOCK),
        by_convention=True,
    ),
    pair(
        "linen_vmap_experts_to_nnx_list",
        LinenVmapExperts,
        NnxListOfExperts,
        expert_inputs,
        unstacked("params/experts", NNX_EXPERTS, BLOCK),
        unstacked("batch_stats/experts", NNX_EXPERTS, STATS_BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "linen_list_of_experts_to_nnx_vmap",
        LinenListOfExperts,
        NnxVmapExperts,
        expert_inputs,
        stacked(numbered("params/experts_", MEMBERS), "experts", BLOCK),
        stacked(numbered("batch_stats/experts_", MEMBERS), "experts", STATS_BLOCK),
        tolerance=COMPILED,
    ),
]
