"""What is shared by the pairs whose arrangement differs: sizes, translations by hand in short, and inputs.

All sizes within one model differ from each other, so that shapes tell the axes apart, except where a pair is about
axes that shapes cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.support import on_device

BATCH, LAYERS, HIDDEN, WIDTH, LENGTH, CLASSES, VOCABULARY = 2, 3, 5, 6, 7, 9, 11
HEADS, QKV_FEATURES = 2, 8
"""Four features per head: the square root is exact, so both frameworks scale the queries to the same bits."""
COMPILED = 1e-5
"""Tolerance where one side is compiled and the other is not, or in another way."""


# Ground truth --------------------------------------------------------------------------------------------------------

Part = dict[str, tuple[str, Callable[..., Any] | None]]
"""Linen path to NNX path, and what happens to the array on the way to NNX (None: nothing)."""

DENSE = ("bias", "kernel")
NORM = ("bias", "scale")
STATISTICS = ("mean", "var")
ATTENTION = tuple(f"{projection}/{name}" for projection in ("query", "key", "value", "out") for name in DENSE)
CACHE = ("cached_key", "cached_value", "cache_index")


def under(prefix: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{prefix}/{name}" for name in names)


def pair(
    name: str,
    linen: Callable[[], nn.Module],
    nnx_module: Callable[..., nnx.Module],
    inputs: Callable[[], tuple[Any, ...]],
    *parts: Part,
    **fields: Any,
) -> Pair:
    """A pair whose ground truth consists of ``parts``."""
    whole = merged(*parts)
    paths = {path: nnx_path for path, (nnx_path, _) in whole.items()}
    to_nnx = {path: on_host(change) for path, (_, change) in whole.items() if change is not None}
    return Pair(name, linen, nnx_module, inputs, paths=paths, to_nnx=to_nnx, **fields)


def on_host(change: Callable[..., Any]) -> Callable[..., Any]:
    """Computes with NumPy: jax would compile every operation for every shape."""
    return lambda *arrays: jax.tree.map(on_device, change(*map(np.asarray, arrays)))


def merged(*parts: Part) -> Part:
    return {path: target for part in parts for path, target in part.items()}


def same(linen: str, nnx_prefix: str, names: Iterable[str], change: Callable[..., Any] | None = None) -> Part:
    """Leaves of the same names below two prefixes; the NNX one may be empty, for the top of the module."""
    return {f"{linen}/{name}": (f"{nnx_prefix}/{name}".lstrip("/"), change) for name in names}


def batch_norm(linen: str, nnx_path: str) -> Part:
    return same(f"params/{linen}", nnx_path, NORM) | same(f"batch_stats/{linen}", nnx_path, STATISTICS)


def stacked(linen: Sequence[str], nnx_prefix: str, names: Iterable[str], axis: int = 0) -> Part:
    """Leaves of several Linen layers that are one NNX leaf with an axis for the layers."""
    return {
        " + ".join(f"{prefix}/{name}" for prefix in linen): (
            f"{nnx_prefix}/{name}",
            lambda *arrays: np.stack(arrays, axis),
        )
        for name in names
    }


def unstacked(linen: str, nnx_prefixes: Sequence[str], names: Iterable[str], axis: int = 0) -> Part:
    """One Linen leaf with an axis for the layers that is a leaf in each of several NNX layers."""
    return {
        f"{linen}/{name}": (
            " + ".join(f"{prefix}/{name}" for prefix in nnx_prefixes),
            lambda array: tuple(np.moveaxis(array, axis, 0)),
        )
        for name in names
    }


def numbered(prefix: str, length: int = LAYERS) -> list[str]:
    """``layers_0``, ``layers_1``, … or ``layers/0``, …, whatever the prefix ends in."""
    return [f"{prefix}{index}" for index in range(length)]


def joined(paths: Iterable[str], name: str) -> str:
    return " + ".join(f"{path}/{name}" for path in paths)


# Inputs --------------------------------------------------------------------------------------------------------------


def wave(*shape: int) -> jax.Array:
    """Numbers between -1 and 1 without a pattern that a layer could cancel."""
    return on_device(np.sin(1.7 * np.arange(1, math.prod(shape) + 1) ** 1.3).reshape(shape), jnp.float32)


def rows() -> tuple[jax.Array]:
    return (wave(BATCH, WIDTH),)


def sequences() -> tuple[jax.Array]:
    return (wave(BATCH, LENGTH, WIDTH),)


def images() -> tuple[jax.Array]:
    return (wave(BATCH, 8, 8, 3),)


def tokens() -> tuple[jax.Array]:
    return (jnp.array([[3, 10, 0, 7, 3, 8, 6], [1, 2, 10, 9, 5, 4, 0]]),)


def two_rows() -> tuple[jax.Array, jax.Array]:
    return wave(BATCH, WIDTH), on_device(np.cos(wave(BATCH, WIDTH)))
