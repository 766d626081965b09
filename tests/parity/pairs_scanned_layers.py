"""Pairs of scans whose layers need more than a rename: recurrent cells, attention and its cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.blocks import LinenAttentionBlock, LinenRecurrentBlock, NnxAttentionBlock, NnxRecurrentBlock
from tests.parity.pair import Pair
from tests.parity.stacks import LINEN_LAYERS, NNX_LAYERS, LinenLoop, LinenScan, NnxLoop, NnxScan
from tests.parity.truth import (
    ATTENTION,
    BATCH,
    CACHE,
    COMPILED,
    DENSE,
    HIDDEN,
    WIDTH,
    Part,
    joined,
    pair,
    same,
    sequences,
    stacked,
    unstacked,
    wave,
)


def lstm(linen: Sequence[str], nnx_cells: Sequence[str], change: Callable[..., Any] = lambda cell: cell) -> Part:
    """The gates of LSTM cells, and the fused matrices of ``nnx.OptimizedLSTMCell``.

    Args:
      linen, nnx_cells: the paths of the cells.
      change: is given the fused leaf of each Linen cell.
    """

    def fused(*gates: np.ndarray) -> Any:
        return change(*(np.concatenate(gates[start : start + 4], -1) for start in range(0, len(gates), 4)))

    part: Part = {}
    for prefix, dense, name in (("i", "dense_i", "kernel"), ("h", "dense_h", "kernel"), ("h", "dense_h", "bias")):
        gates = " + ".join(f"{cell}/{prefix}{gate}/{name}" for cell in linen for gate in "ifgo")
        part[gates] = (" + ".join(f"{cell}/{dense}/{name}" for cell in nnx_cells), fused)
    return part


def gru(linen: str, nnx_cell: str) -> Part:
    """GRU cells: their gates are fused in NNX, which has no bias for the hidden state."""

    def fused(*gates: np.ndarray) -> np.ndarray:
        return np.concatenate(gates, -1)

    return {
        joined([f"{linen}/i{gate}" for gate in "rzn"], "kernel"): (f"{nnx_cell}/dense_i/kernel", fused),
        joined([f"{linen}/i{gate}" for gate in "rzn"], "bias"): (f"{nnx_cell}/dense_i/bias", fused),
        joined([f"{linen}/h{gate}" for gate in "rzn"], "kernel"): (f"{nnx_cell}/dense_h/kernel", fused),
    }


class LinenScanOverTime(nn.Module):
    """A recurrent layer written by hand: the cell is scanned over time, with the same parameters at every step."""

    cell: type[nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scanned = nn.scan(self.cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        cell = scanned(HIDDEN)
        return cell(cell.initialize_carry(jax.random.key(0), x[:, 0].shape), x)[1]


class NnxRecurrent(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, cell: Callable[..., nnx.Module]) -> None:
        self.recurrent = nnx.RNN(cell(WIDTH, HIDDEN, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.recurrent(x)


# Recurrent layers compile their loop for each layer, so two have to do.
LINEN_LSTM_BLOCK = functools.partial(LinenRecurrentBlock, nn.OptimizedLSTMCell)
NNX_LSTM_BLOCK = functools.partial(NnxRecurrentBlock, cell=nnx.OptimizedLSTMCell)

PAIRS: list[Pair] = [
    pair(
        "scan_of_optimized_lstm",
        lambda: LinenScan(LINEN_LSTM_BLOCK, length=2),
        functools.partial(NnxScan, block=NNX_LSTM_BLOCK, length=2),
        sequences,
        lstm(["params/layers/rnn/cell"], ["layers/rnn/cell"]),
        same("params/layers/down", "layers/down", DENSE),
        tolerance=COMPILED,
        by_convention=True,
    ),
    pair(
        "linen_scan_of_optimized_lstm_to_nnx_list",
        lambda: LinenScan(LINEN_LSTM_BLOCK, length=2),
        functools.partial(NnxLoop, block=NNX_LSTM_BLOCK, length=2),
        sequences,
        lstm(["params/layers/rnn/cell"], [f"{layer}/rnn/cell" for layer in NNX_LAYERS[:2]], tuple),
        unstacked("params/layers/down", [f"{layer}/down" for layer in NNX_LAYERS[:2]], DENSE),
        tolerance=COMPILED,
    ),
    pair(
        "linen_loop_of_optimized_lstm_to_nnx_scan",
        lambda: LinenLoop(LINEN_LSTM_BLOCK, length=2),
        functools.partial(NnxScan, block=NNX_LSTM_BLOCK, length=2),
        sequences,
        lstm([f"{layer}/rnn/cell" for layer in LINEN_LAYERS[:2]], ["layers/rnn/cell"], lambda *cells: np.stack(cells)),
        stacked([f"{layer}/down" for layer in LINEN_LAYERS[:2]], "layers/down", DENSE),
        tolerance=COMPILED,
    ),
    pair(
        "scan_of_gru",
        lambda: LinenScan(functools.partial(LinenRecurrentBlock, nn.GRUCell)),
        functools.partial(NnxScan, block=functools.partial(NnxRecurrentBlock, cell=nnx.GRUCell)),
        sequences,
        gru("params/layers/rnn/cell", "layers/rnn/cell"),
        same("params/layers/down", "layers/down", DENSE),
        tolerance=COMPILED,
        lossy=("params/layers/rnn/cell/hn/bias",),
        by_convention=True,
    ),
    pair(
        "linen_scan_of_attention_to_nnx_list",
        lambda: LinenScan(LinenAttentionBlock),
        functools.partial(NnxLoop, block=NnxAttentionBlock),
        sequences,
        unstacked("params/layers/attention", [f"{layer}/attention" for layer in NNX_LAYERS], ATTENTION),
        tolerance=COMPILED,
    ),
    pair(
        "linen_loop_of_attention_to_nnx_scan",
        lambda: LinenLoop(LinenAttentionBlock),
        functools.partial(NnxScan, block=NnxAttentionBlock),
        sequences,
        stacked([f"{layer}/attention" for layer in LINEN_LAYERS], "layers/attention", ATTENTION),
        tolerance=COMPILED,
    ),
    # One step of decoding: the cache of every layer is scanned with its parameters.
    pair(
        "scan_of_attention_with_cache",
        lambda: LinenScan(functools.partial(LinenAttentionBlock, decode=True)),
        functools.partial(NnxScan, block=functools.partial(NnxAttentionBlock, decode=True)),
        lambda: (wave(BATCH, 1, WIDTH),),
        same("params/layers/attention", "layers/attention", ATTENTION),
        same("cache/layers/attention", "layers/attention", CACHE),
        linen_kwargs={"mutable": ["cache"]},
        init_inputs=sequences,
        by_convention=True,
    ),
    pair(
        "linen_scan_over_time_to_nnx_rnn",
        lambda: LinenScanOverTime(nn.LSTMCell),
        functools.partial(NnxRecurrent, cell=nnx.LSTMCell),
        sequences,
        *(same(f"params/ScanLSTMCell_0/i{gate}", f"recurrent/cell/i{gate}", ("kernel",)) for gate in "igo"),
        same("params/ScanLSTMCell_0/if", "recurrent/cell/if_", ("kernel",)),
        *(same(f"params/ScanLSTMCell_0/h{gate}", f"recurrent/cell/h{gate}", DENSE) for gate in "ifgo"),
    ),
    pair(
        "linen_scan_over_time_to_nnx_rnn_of_optimized_lstm",
        lambda: LinenScanOverTime(nn.OptimizedLSTMCell),
        functools.partial(NnxRecurrent, cell=nnx.OptimizedLSTMCell),
        sequences,
        lstm(["params/ScanOptimizedLSTMCell_0"], ["recurrent/cell"]),
    ),
]
