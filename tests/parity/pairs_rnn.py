"""Layers that run recurrent cells over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.pairs_cells import (
    FUSED,
    H,
    X,
    concatenated,
    gru_paths,
    lstm_carry,
    lstm_paths,
    optimized_lstm_paths,
    simple_paths,
)
from tests.parity.support import sample


def rnn(
    name: str,
    linen: Callable[[], Any],
    nnx: Callable[..., Any],
    paths: dict[str, str],
    shape: tuple[int, ...] = (2, 5, X),
    lossy: tuple[str, ...] = (),
    by_convention: bool = True,
) -> Pair:
    """A layer that runs cells over five steps."""
    return Pair(
        name=name,
        linen=linen,
        nnx=nnx,
        inputs=lambda: (sample(*shape),),
        paths=paths,
        to_nnx=concatenated(paths),
        tolerance=FUSED if concatenated(paths) else 0.0,
        lossy=lossy,
        by_convention=by_convention,
    )


BACKWARDS = {"reverse": True, "keep_order": True, "time_major": True}


class LinenEncoder(nn.Module):
    """A recurrent layer as an attribute: its cell stays below it."""

    def setup(self) -> None:
        self.encoder = nn.RNN(nn.OptimizedLSTMCell(H))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.encoder(x)


class NnxEncoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encoder = nnx.RNN(nnx.OptimizedLSTMCell(X, H, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.encoder(x)


class LinenRecurrentCompact(nn.Module):
    """Made in a compact method, cells belong to that method's module, and RNN and Bidirectional leave no level."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Bidirectional(nn.RNN(nn.LSTMCell(H)), nn.RNN(nn.LSTMCell(H)))(x)
        return nn.RNN(nn.SimpleCell(5))(x)


class NnxRecurrentAttributes(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        forward = nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=rngs)
        backward = nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=rngs)
        self.bi = nnx.Bidirectional(forward, backward, rngs=rngs)
        self.top = nnx.RNN(nnx.SimpleCell(2 * H, 5, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.top(self.bi(x))


PAIRS: list[Pair] = [
    rnn(
        "rnn_lstm",
        lambda: nn.RNN(nn.LSTMCell(H)),
        lambda rngs: nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=rngs),
        lstm_paths("cell/", "cell/"),
    ),
    rnn(
        "rnn_reverse_keep_order_time_major",
        lambda: nn.RNN(nn.LSTMCell(H), **BACKWARDS),
        lambda rngs: nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=rngs, **BACKWARDS),
        lstm_paths("cell/", "cell/"),
        shape=(5, 2, X),
    ),
    Pair(
        # Without a random stream of its own, NNX wants to be given the first state.
        name="rnn_initial_carry",
        linen=lambda: nn.RNN(nn.LSTMCell(H)),
        nnx=lambda rngs: nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=False),
        inputs=lambda: (sample(2, 5, X),),
        linen_kwargs={"initial_carry": lstm_carry()},
        nnx_kwargs={"initial_carry": lstm_carry()},
        paths=lstm_paths("cell/", "cell/"),
        by_convention=True,
    ),
    rnn(
        "rnn_optimized_lstm",
        lambda: nn.RNN(nn.OptimizedLSTMCell(H)),
        lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(X, H, rngs=rngs), rngs=rngs),
        optimized_lstm_paths("cell/", "cell/"),
    ),
    rnn(
        "rnn_optimized_lstm_setup",
        LinenEncoder,
        NnxEncoder,
        optimized_lstm_paths("encoder/cell/", "encoder/cell/"),
    ),
    rnn(
        "rnn_linen_lstm_to_nnx_optimized",
        lambda: nn.RNN(nn.LSTMCell(H)),
        lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(X, H, rngs=rngs), rngs=rngs),
        optimized_lstm_paths("cell/", "cell/"),
    ),
    Pair(
        name="rnn_linen_optimized_to_nnx_lstm",
        linen=lambda: nn.RNN(nn.OptimizedLSTMCell(H)),
        nnx=lambda rngs: nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=rngs),
        inputs=lambda: (sample(2, 5, X),),
        paths=lstm_paths("cell/", "cell/"),
        tolerance=FUSED,
        by_convention=True,
    ),
    rnn(
        "rnn_gru",
        lambda: nn.RNN(nn.GRUCell(H)),
        lambda rngs: nnx.RNN(nnx.GRUCell(X, H, rngs=rngs), rngs=rngs),
        gru_paths("cell/", "cell/"),
        lossy=("params/cell/hn/bias",),
    ),
    rnn(
        "bidirectional_gru",
        lambda: nn.Bidirectional(nn.RNN(nn.GRUCell(H)), nn.RNN(nn.GRUCell(H))),
        lambda rngs: nnx.Bidirectional(
            nnx.RNN(nnx.GRUCell(X, H, rngs=rngs), rngs=rngs),
            nnx.RNN(nnx.GRUCell(X, H, rngs=rngs), rngs=rngs),
            rngs=rngs,
        ),
        {
            **gru_paths("forward_rnn/cell/", "forward_rnn/cell/"),
            **gru_paths("backward_rnn/cell/", "backward_rnn/cell/"),
        },
        lossy=("params/forward_rnn/cell/hn/bias", "params/backward_rnn/cell/hn/bias"),
    ),
    rnn(
        "rnn_simple",
        lambda: nn.RNN(nn.SimpleCell(H)),
        lambda rngs: nnx.RNN(nnx.SimpleCell(X, H, rngs=rngs), rngs=rngs),
        simple_paths("cell/", "cell/"),
    ),
    rnn(
        "rnn_compact",
        LinenRecurrentCompact,
        NnxRecurrentAttributes,
        {
            **lstm_paths("LSTMCell_0/", "bi/forward_rnn/cell/"),
            **lstm_paths("LSTMCell_1/", "bi/backward_rnn/cell/"),
            **simple_paths("SimpleCell_0/", "top/cell/"),
        },
        by_convention=False,
    ),
]
