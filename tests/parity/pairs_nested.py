"""Pairs of loops in loops and scans in scans."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.blocks import BLOCK
from tests.parity.pair import Pair
from tests.parity.stacks import LinenLoop, LinenScan, NnxLoop, NnxScan
from tests.parity.truth import COMPILED, joined, numbered, pair, rows, same

OUTER, INNER = 2, 4
"""How often the outer and the inner of two nested stacks repeat."""

LINEN_NESTED = [f"params/layers_{outer}/layers_{inner}" for outer in range(OUTER) for inner in range(INNER)]
NNX_NESTED = [f"layers/{outer}/layers/{inner}" for outer in range(OUTER) for inner in range(INNER)]


def both_axes(array: np.ndarray) -> tuple[np.ndarray, ...]:
    """The layers of an array with two axes for them, the outer one first."""
    return tuple(array.reshape(OUTER * INNER, *array.shape[2:]))


def into_both_axes(*arrays: np.ndarray) -> np.ndarray:
    return np.stack(arrays).reshape(OUTER, INNER, *arrays[0].shape)


def linen_nested(stack: type[nn.Module], **kwargs: Any) -> Callable[[], nn.Module]:
    """A stack of stacks."""
    return lambda: stack(functools.partial(stack, length=INNER), length=OUTER, **kwargs)


def nnx_nested(stack: type[nnx.Module]) -> Callable[..., nnx.Module]:
    return functools.partial(stack, block=functools.partial(stack, length=INNER), length=OUTER)


# Kernels have two axes beside those of the layers, biases and scales one.
FLAT_LOOP_TO_NESTED_SCAN = f"""
[[rule]]
linen = "params/layers_{{i}}/{{layer:*}}/kernel"
nnx = "layers/layers/{{layer}}/kernel"
to_nnx = ["stack i", "rearrange (outer inner) d h -> outer inner d h, outer={OUTER}"]

[[rule]]
linen = "params/layers_{{i}}/{{layer:*}}/{{name:bias|scale}}"
nnx = "layers/layers/{{layer}}/{{name}}"
to_nnx = ["stack i", "rearrange (outer inner) d -> outer inner d, outer={OUTER}"]
"""

NESTED_SCAN_TO_FLAT_SCAN = f"""
[[rule]]
linen = "params/layers/layers/{{layer:*}}/kernel"
nnx = "layers/{{layer}}/kernel"
to_nnx = ["rearrange outer inner d h -> (outer inner) d h, outer={OUTER}"]

[[rule]]
linen = "params/layers/layers/{{layer:*}}/{{name:bias|scale}}"
nnx = "layers/{{layer}}/{{name}}"
to_nnx = ["rearrange outer inner d -> (outer inner) d, outer={OUTER}"]
"""

PAIRS: list[Pair] = [
    pair(
        "nested_loop",
        linen_nested(LinenLoop),
        nnx_nested(NnxLoop),
        rows,
        *(same(a, b, BLOCK) for a, b in zip(LINEN_NESTED, NNX_NESTED, strict=True)),
        by_convention=True,
    ),
    pair(
        "nested_scan",
        linen_nested(LinenScan),
        nnx_nested(NnxScan),
        rows,
        same("params/layers/layers", "layers/layers", BLOCK),
        by_convention=True,
    ),
    pair(
        "linen_nested_loop_to_nnx_nested_scan",
        linen_nested(LinenLoop),
        nnx_nested(NnxScan),
        rows,
        {joined(LINEN_NESTED, name): (f"layers/layers/{name}", into_both_axes) for name in BLOCK},
        tolerance=COMPILED,
    ),
    pair(
        "linen_nested_scan_to_nnx_nested_list",
        linen_nested(LinenScan),
        nnx_nested(NnxLoop),
        rows,
        {f"params/layers/layers/{name}": (joined(NNX_NESTED, name), both_axes) for name in BLOCK},
        tolerance=COMPILED,
    ),
    # The outer scan puts its layers behind those of the inner one.
    pair(
        "linen_nested_scan_axis1_to_nnx_nested_list",
        linen_nested(LinenScan, axis=1),
        nnx_nested(NnxLoop),
        rows,
        {
            f"params/layers/layers/{name}": (
                joined(NNX_NESTED, name),
                lambda array: both_axes(np.swapaxes(array, 0, 1)),
            )
            for name in BLOCK
        },
        tolerance=COMPILED,
    ),
    # As for checkpointing every few layers: one loop on one side, two scans on the other. Both could nest otherwise, so
    # that rules have to tell.
    pair(
        "linen_flat_loop_to_nnx_nested_scan",
        lambda: LinenLoop(length=OUTER * INNER),
        nnx_nested(NnxScan),
        rows,
        {
            joined(numbered("params/layers_", OUTER * INNER), name): (f"layers/layers/{name}", into_both_axes)
            for name in BLOCK
        },
        tolerance=COMPILED,
        rules=FLAT_LOOP_TO_NESTED_SCAN,
    ),
    pair(
        "linen_nested_scan_to_nnx_flat_scan",
        linen_nested(LinenScan),
        functools.partial(NnxScan, length=OUTER * INNER),
        rows,
        {
            f"params/layers/layers/{name}": (f"layers/{name}", lambda array: np.stack(both_axes(array)))
            for name in BLOCK
        },
        tolerance=COMPILED,
        rules=NESTED_SCAN_TO_FLAT_SCAN,
    ),
]
