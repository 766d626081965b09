"""Pairs of loops and scans, along any axis."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.blocks import (
    BLOCK,
    SQUARE_BLOCK,
    STATS_BLOCK,
    LinenSquareBlock,
    LinenStatsBlock,
    NnxBlock,
    NnxRenamedBlock,
    NnxSquareBlock,
    NnxStatsBlock,
    compact_block,
)
from tests.parity.pair import Pair
from tests.parity.stacks import LINEN_LAYERS, NNX_LAYERS, LinenLoop, LinenScan, NnxLoop, NnxScan, nnx_stacked
from tests.parity.truth import (
    BATCH,
    COMPILED,
    HIDDEN,
    LAYERS,
    WIDTH,
    numbered,
    pair,
    rows,
    same,
    stacked,
    unstacked,
    wave,
)


class LinenStep(nn.Module):
    """What ``nn.scan`` wants of a class: carry and input in, carry and output out."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        hidden = jnp.tanh(nn.Dense(HIDDEN)(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH)(hidden), None


class LinenScannedClass(nn.Module):
    """A scanned class, which names itself."""

    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        step = nn.remat(LinenStep, prevent_cse=False) if self.remat else LinenStep
        layers = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        return layers()(x, None)[0]


class NnxLaxScan(nnx.Module):
    """A scan written by hand over the state of stacked blocks."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx_stacked(NnxBlock, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        graphdef, state = nnx.split(self.layers)
        return jax.lax.scan(lambda x, layer: (nnx.merge(graphdef, layer)(x), None), x, state)[0]


def square_rows() -> tuple[jax.Array]:
    return (wave(BATCH, LAYERS),)


PAIRS: list[Pair] = [
    pair(
        "loop",
        LinenLoop,
        NnxLoop,
        rows,
        *(same(f"params/layers_{index}", f"layers/{index}", BLOCK) for index in range(LAYERS)),
        by_convention=True,
    ),
    *(
        # The statistics have their own axis: 0, wherever that of the parameters is.
        pair(
            f"scan_axis_{axis}",
            functools.partial(LinenScan, LinenStatsBlock, axis=axis),
            functools.partial(NnxScan, block=NnxStatsBlock, axis=axis),
            rows,
            same("params/layers", "layers", BLOCK),
            same("batch_stats/layers", "layers", STATS_BLOCK),
            by_convention=True,
        )
        for axis in (0, 1, -1)
    ),
    pair(
        "scan_auto_name",
        lambda: LinenScannedClass(remat=False),
        functools.partial(NnxScan, block=NnxRenamedBlock),
        rows,
        compact_block("ScanLinenStep_0", "layers"),
    ),
    pair(
        "scan_remat_auto_name",
        lambda: LinenScannedClass(remat=True),
        functools.partial(NnxScan, block=NnxRenamedBlock, remat=True),
        rows,
        compact_block("ScanCheckpointLinenStep_0", "layers"),
    ),
    pair("scan_by_hand", LinenScan, NnxLaxScan, rows, same("params/layers", "layers", BLOCK), by_convention=True),
    pair(
        "linen_scan_axis1_to_nnx_scan_axis0",
        lambda: LinenScan(LinenStatsBlock, axis=1),
        functools.partial(NnxScan, block=NnxStatsBlock),
        rows,
        same("params/layers", "layers", BLOCK, lambda array: np.moveaxis(array, 1, 0)),
        same("batch_stats/layers", "layers", STATS_BLOCK),
    ),
    pair(
        "linen_scan_axis0_to_nnx_scan_axis-1",
        LinenScan,
        functools.partial(NnxScan, axis=-1),
        rows,
        same("params/layers", "layers", BLOCK, lambda array: np.moveaxis(array, 0, -1)),
    ),
    pair(
        "scan_broadcast_params",
        lambda: LinenScan(LinenStatsBlock, axis=None),
        functools.partial(NnxScan, block=NnxStatsBlock, axis=None),
        rows,
        same("params/layers", "layers", BLOCK),
        same("batch_stats/layers", "layers", STATS_BLOCK),
        by_convention=True,
    ),
    pair(
        "linen_loop_to_nnx_scan", LinenLoop, NnxScan, rows, stacked(LINEN_LAYERS, "layers", BLOCK), tolerance=COMPILED
    ),
    pair(
        "linen_scan_to_nnx_list",
        LinenScan,
        NnxLoop,
        rows,
        unstacked("params/layers", NNX_LAYERS, BLOCK),
        tolerance=COMPILED,
    ),
    # Twelve layers: layers_10 must not come before layers_2.
    pair(
        "twelve_layers_linen_loop_to_nnx_scan",
        lambda: LinenLoop(length=12),
        functools.partial(NnxScan, length=12),
        rows,
        stacked(numbered("params/layers_", 12), "layers", BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "twelve_layers_linen_scan_to_nnx_list",
        lambda: LinenScan(length=12),
        functools.partial(NnxLoop, length=12),
        rows,
        unstacked("params/layers", numbered("layers/", 12), BLOCK),
        tolerance=COMPILED,
    ),
    # The axis of the parameters is 1, so 1-d leaves are (features, layers); that of the statistics is 0.
    pair(
        "linen_loop_to_nnx_scan_axis1",
        lambda: LinenLoop(LinenStatsBlock),
        functools.partial(NnxScan, block=NnxStatsBlock, axis=1),
        rows,
        stacked(LINEN_LAYERS, "layers", BLOCK, axis=1),
        stacked(numbered("batch_stats/layers_"), "layers", STATS_BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "linen_scan_axis1_to_nnx_list",
        lambda: LinenScan(LinenStatsBlock, axis=1),
        functools.partial(NnxLoop, block=NnxStatsBlock),
        rows,
        unstacked("params/layers", NNX_LAYERS, BLOCK, axis=1),
        unstacked("batch_stats/layers", NNX_LAYERS, STATS_BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "square_scan",
        lambda: LinenScan(LinenSquareBlock, axis=1),
        functools.partial(NnxScan, block=NnxSquareBlock, axis=1),
        square_rows,
        same("params/layers", "layers", SQUARE_BLOCK),
        by_convention=True,
    ),
    pair(
        "square_linen_scan_axis1_to_nnx_scan_axis0",
        lambda: LinenScan(LinenSquareBlock, axis=1),
        functools.partial(NnxScan, block=NnxSquareBlock),
        square_rows,
        same("params/layers", "layers", SQUARE_BLOCK, lambda array: np.moveaxis(array, 1, 0)),
    ),
    pair(
        "square_linen_loop_to_nnx_scan",
        lambda: LinenLoop(LinenSquareBlock),
        functools.partial(NnxScan, block=NnxSquareBlock),
        square_rows,
        stacked(LINEN_LAYERS, "layers", SQUARE_BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "square_linen_scan_axis-1_to_nnx_list",
        lambda: LinenScan(LinenSquareBlock, axis=-1),
        functools.partial(NnxLoop, block=NnxSquareBlock),
        square_rows,
        unstacked("params/layers", NNX_LAYERS, SQUARE_BLOCK, axis=-1),
        tolerance=COMPILED,
    ),
    pair(
        "linen_loop_to_nnx_scan_remat",
        LinenLoop,
        functools.partial(NnxScan, remat=True),
        rows,
        stacked(LINEN_LAYERS, "layers", BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "linen_scan_remat_to_nnx_list",
        lambda: LinenScan(remat=True),
        NnxLoop,
        rows,
        unstacked("params/layers", NNX_LAYERS, BLOCK),
        tolerance=COMPILED,
    ),
]
