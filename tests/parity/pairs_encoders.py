"""Pairs of one whole model, a Transformer encoder, with its layers in a loop or in a scan."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.stacks import LinenLoop, LinenScan, NnxLoop, NnxScan
from tests.parity.truth import (
    ATTENTION,
    COMPILED,
    DENSE,
    HEADS,
    HIDDEN,
    LAYERS,
    NORM,
    QKV_FEATURES,
    VOCABULARY,
    WIDTH,
    numbered,
    pair,
    same,
    stacked,
    tokens,
    under,
    unstacked,
)


class LinenEncoderBlock(nn.Module):
    def setup(self) -> None:
        self.attention_norm = nn.LayerNorm()
        self.attention = nn.MultiHeadDotProductAttention(HEADS, qkv_features=QKV_FEATURES)
        self.dropout = nn.Dropout(0.1, deterministic=True)
        self.mlp_norm = nn.LayerNorm()
        self.up = nn.Dense(HIDDEN)
        self.down = nn.Dense(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.down(nn.gelu(self.up(self.mlp_norm(x)))))


class NnxEncoderBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, QKV_FEATURES, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, deterministic=True, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.mlp_norm(x)))))


class LinenEncoder(nn.Module):
    """Tokens to logits, which come from the embedding again; ``stack`` is a loop or a scan."""

    stack: Callable[..., nn.Module]

    def setup(self) -> None:
        self.embed = nn.Embed(VOCABULARY, WIDTH)
        self.encoder = self.stack(LinenEncoderBlock, length=LAYERS)
        self.norm = nn.LayerNorm()

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.embed.attend(self.norm(self.encoder(self.embed(tokens))))


class NnxEncoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, stack: Callable[..., nnx.Module]) -> None:
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.encoder = stack(rngs, NnxEncoderBlock, length=LAYERS)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.embed.attend(self.norm(self.encoder(self.embed(tokens))))


ENCODER_BLOCK = (
    *under("attention_norm", NORM),
    *under("attention", ATTENTION),
    *under("mlp_norm", NORM),
    *under("up", DENSE),
    *under("down", DENSE),
)
AROUND_ENCODER = same("params/embed", "embed", ("embedding",)) | same("params/norm", "norm", NORM)
LINEN_ENCODER = numbered("params/encoder/layers_", LAYERS)
NNX_ENCODER = numbered("encoder/layers/", LAYERS)


PAIRS: list[Pair] = [
    pair(
        "model_encoder_loop",
        lambda: LinenEncoder(LinenLoop),
        functools.partial(NnxEncoder, stack=NnxLoop),
        tokens,
        AROUND_ENCODER,
        *(same(a, b, ENCODER_BLOCK) for a, b in zip(LINEN_ENCODER, NNX_ENCODER, strict=True)),
        by_convention=True,
    ),
    pair(
        "model_encoder_scan",
        lambda: LinenEncoder(LinenScan),
        functools.partial(NnxEncoder, stack=NnxScan),
        tokens,
        AROUND_ENCODER,
        same("params/encoder/layers", "encoder/layers", ENCODER_BLOCK),
        by_convention=True,
    ),
    pair(
        "model_encoder_linen_loop_to_nnx_scan",
        lambda: LinenEncoder(LinenLoop),
        functools.partial(NnxEncoder, stack=NnxScan),
        tokens,
        AROUND_ENCODER,
        stacked(LINEN_ENCODER, "encoder/layers", ENCODER_BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "model_encoder_linen_scan_to_nnx_list",
        lambda: LinenEncoder(LinenScan),
        functools.partial(NnxEncoder, stack=NnxLoop),
        tokens,
        AROUND_ENCODER,
        unstacked("params/encoder/layers", NNX_ENCODER, ENCODER_BLOCK),
        tolerance=COMPILED,
    ),
]
