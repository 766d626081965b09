"""Recurrent cells, called once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.support import sample
from tests.parity.truth import on_host

FUSED = 1e-6
"""One wide matrix product instead of several narrow ones may differ in the last bits of float32."""

# x has three features, the state four.
X, H = 3, 4


def lstm_paths(linen: str = "", nnx: str = "") -> dict[str, str]:
    """Four gates, each with a kernel for the input, and a kernel and a bias for the state.

    NNX cannot have an attribute ``if``, which is a word of Python.
    """
    return {
        f"params/{linen}ii/kernel": f"{nnx}ii/kernel",
        f"params/{linen}if/kernel": f"{nnx}if_/kernel",
        f"params/{linen}ig/kernel": f"{nnx}ig/kernel",
        f"params/{linen}io/kernel": f"{nnx}io/kernel",
        **{f"params/{linen}{gate}/{leaf}": f"{nnx}{gate}/{leaf}" for gate in HIDDEN for leaf in ("kernel", "bias")},
    }


HIDDEN = ("hi", "hf", "hg", "ho")


def joined(prefix: str, gates: tuple[str, ...], leaf: str) -> str:
    """The paths of one leaf of several gates, as ``Pair.paths`` wants them."""
    return " + ".join(f"params/{prefix}{gate}/{leaf}" for gate in gates)


def optimized_lstm_paths(linen: str = "", nnx: str = "") -> dict[str, str]:
    """The same leaves in Linen; in NNX the gates stand side by side in two wide layers."""
    return {
        joined(linen, ("ii", "if", "ig", "io"), "kernel"): f"{nnx}dense_i/kernel",
        joined(linen, HIDDEN, "kernel"): f"{nnx}dense_h/kernel",
        joined(linen, HIDDEN, "bias"): f"{nnx}dense_h/bias",
    }


def gru_paths(linen: str = "", nnx: str = "") -> dict[str, str]:
    """Three gates side by side. Linen's ``hn/bias`` is missing: NNX has no bias for the state."""
    return {
        joined(linen, ("ir", "iz", "in"), "kernel"): f"{nnx}dense_i/kernel",
        joined(linen, ("ir", "iz", "in"), "bias"): f"{nnx}dense_i/bias",
        joined(linen, ("hr", "hz", "hn"), "kernel"): f"{nnx}dense_h/kernel",
    }


def simple_paths(linen: str = "", nnx: str = "") -> dict[str, str]:
    return {
        f"params/{linen}i/kernel": f"{nnx}dense_i/kernel",
        f"params/{linen}i/bias": f"{nnx}dense_i/bias",
        f"params/{linen}h/kernel": f"{nnx}dense_h/kernel",
    }


def concatenated(paths: Mapping[str, str]) -> dict[str, Callable[..., Any]]:
    """``to_nnx`` for paths in which several Linen kernels or biases stand side by side in one NNX array."""
    return {path: on_host(lambda *arrays: np.concatenate(arrays, -1)) for path in paths if " + " in path}


def cell(
    name: str,
    linen: Callable[[], Any],
    nnx: Callable[..., Any],
    paths: Callable[..., dict[str, str]],
    carry: Callable[[], Any] = lambda: sample(2, H, seed=1),
    lossy: tuple[str, ...] = (),
) -> Pair:
    """A cell that is called once, with a state and an input."""
    return Pair(
        name=f"cell_{name}",
        linen=linen,
        nnx=nnx,
        inputs=lambda: (carry(), sample(2, X)),
        paths=paths(),
        to_nnx=concatenated(paths()),
        tolerance=FUSED if concatenated(paths()) else 0.0,
        lossy=lossy,
        by_convention=True,
    )


def lstm_carry() -> tuple[jax.Array, jax.Array]:
    return sample(2, H, seed=1), sample(2, H, seed=2)


PAIRS: list[Pair] = [
    cell("lstm", lambda: nn.LSTMCell(H), lambda rngs: nnx.LSTMCell(X, H, rngs=rngs), lstm_paths, lstm_carry),
    cell(
        "optimized_lstm",
        lambda: nn.OptimizedLSTMCell(H),
        lambda rngs: nnx.OptimizedLSTMCell(X, H, rngs=rngs),
        optimized_lstm_paths,
        lstm_carry,
    ),
    cell(
        "linen_lstm_to_nnx_optimized",
        lambda: nn.LSTMCell(H),
        lambda rngs: nnx.OptimizedLSTMCell(X, H, rngs=rngs),
        optimized_lstm_paths,
        lstm_carry,
    ),
    Pair(
        # Linen's fused product against the separate ones of NNX: names differ only, but bits may.
        name="cell_linen_optimized_to_nnx_lstm",
        linen=lambda: nn.OptimizedLSTMCell(H),
        nnx=lambda rngs: nnx.LSTMCell(X, H, rngs=rngs),
        inputs=lambda: (lstm_carry(), sample(2, X)),
        paths=lstm_paths(),
        tolerance=FUSED,
        by_convention=True,
    ),
    cell(
        "gru",
        lambda: nn.GRUCell(H),
        lambda rngs: nnx.GRUCell(X, H, rngs=rngs),
        gru_paths,
        lossy=("params/hn/bias",),
    ),
    cell("simple", lambda: nn.SimpleCell(H), lambda rngs: nnx.SimpleCell(X, H, rngs=rngs), simple_paths),
    cell(
        "simple_residual",
        lambda: nn.SimpleCell(H, residual=True),
        lambda rngs: nnx.SimpleCell(X, H, residual=True, rngs=rngs),
        simple_paths,
    ),
]
