"""Pairs of loops and scans that have another name on the other side, and layers of other names inside."""

from __future__ import annotations

import functools

import jax
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.blocks import COMPACT_BLOCK, LinenCompactBlock, NnxRenamedBlock, compact_block
from tests.parity.pair import Pair
from tests.parity.stacks import NnxLoop, NnxScan
from tests.parity.truth import (
    BATCH,
    CLASSES,
    COMPILED,
    DENSE,
    HIDDEN,
    LAYERS,
    NORM,
    WIDTH,
    Part,
    numbered,
    pair,
    same,
    wave,
)


class LinenCompactLoop(nn.Module):
    """Automatic names throughout: the layers around the blocks are numbered apart from those inside."""

    length: int = LAYERS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(WIDTH)(x)
        for _ in range(self.length):
            x = LinenCompactBlock()(x)
        return nn.Dense(CLASSES)(nn.LayerNorm()(x))


class LinenCompactScan(nn.Module):
    """The same with a scan, whose layers are in axis 1."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(WIDTH)(x)
        scan = nn.scan(
            lambda layer, x, _: (layer(x), None),
            variable_axes={"params": 1},
            split_rngs={"params": True},
            length=LAYERS,
        )
        x, _ = scan(LinenCompactBlock(name="stack"), x, None)
        return nn.Dense(CLASSES)(nn.LayerNorm()(x))


class NnxDecoder(nnx.Module):
    """What both compute; nothing is called or defined as in Linen."""

    def __init__(self, rngs: nnx.Rngs, stack: type[nnx.Module], length: int = LAYERS) -> None:
        self.answer = nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.decoder = stack(rngs, NnxRenamedBlock, length)
        self.enter = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.final = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.answer(self.final(self.decoder(self.enter(x))))


def narrow_rows() -> tuple[jax.Array]:
    return (wave(BATCH, HIDDEN),)


def loop_as_scan(length: int) -> Part:
    """The blocks of ``LinenCompactLoop``, stacked in NNX."""
    blocks = numbered("params/LinenCompactBlock_", length)
    return {
        " + ".join(f"{block}/{path}" for block in blocks): (
            f"decoder/layers/{renamed}",
            lambda *arrays: np.stack(arrays),
        )
        for path, renamed in COMPACT_BLOCK.items()
    }


def scan_as_list() -> Part:
    """The blocks of ``LinenCompactScan``, one after the other in NNX."""
    blocks = numbered("decoder/layers/")
    return {
        f"params/stack/{path}": (
            " + ".join(f"{block}/{renamed}" for block in blocks),
            lambda array: tuple(np.moveaxis(array, 1, 0)),
        )
        for path, renamed in COMPACT_BLOCK.items()
    }


def scan_as_scan() -> Part:
    return {
        f"params/stack/{path}": (f"decoder/layers/{renamed}", lambda array: np.moveaxis(array, 1, 0))
        for path, renamed in COMPACT_BLOCK.items()
    }


AROUND = (
    same("params/Dense_0", "enter", DENSE)
    | same("params/LayerNorm_0", "final", NORM)
    | same("params/Dense_1", "answer", DENSE)
)

PAIRS: list[Pair] = [
    pair(
        "renamed_linen_loop_to_nnx_list",
        LinenCompactLoop,
        functools.partial(NnxDecoder, stack=NnxLoop),
        narrow_rows,
        AROUND,
        *(compact_block(f"LinenCompactBlock_{index}", f"decoder/layers/{index}") for index in range(LAYERS)),
    ),
    # Twelve layers: LinenCompactBlock_10 must not come before LinenCompactBlock_2.
    *(
        pair(
            f"renamed_linen_loop_of_{length}_to_nnx_scan",
            functools.partial(LinenCompactLoop, length),
            functools.partial(NnxDecoder, stack=NnxScan, length=length),
            narrow_rows,
            AROUND,
            loop_as_scan(length),
            tolerance=COMPILED,
        )
        for length in (LAYERS, 12)
    ),
    pair(
        "renamed_linen_scan_axis1_to_nnx_list",
        LinenCompactScan,
        functools.partial(NnxDecoder, stack=NnxLoop),
        narrow_rows,
        AROUND,
        scan_as_list(),
        tolerance=COMPILED,
    ),
    pair(
        "renamed_linen_scan_axis1_to_nnx_scan_axis0",
        LinenCompactScan,
        functools.partial(NnxDecoder, stack=NnxScan),
        narrow_rows,
        AROUND,
        scan_as_scan(),
    ),
]
