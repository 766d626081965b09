"""Attention, with and without a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.paths import same
from tests.parity.support import sample

# Two heads of four features: the square root of four is exact, so both sides scale the queries to the same bits.
IN, HEADS, QKV, OUT, LENGTH = 3, 2, 8, 5, 6


def attention_paths(linen: str = "", nnx: str = "", *, bias: bool = True, norm: bool = False) -> dict[str, str]:
    """Four projections, and the norms of queries and keys, below these prefixes."""
    leaves = [f"{part}/{leaf}" for part in ("query", "key", "value", "out") for leaf in ("kernel", "bias")[: 1 + bias]]
    leaves += ["query_ln/scale", "key_ln/scale"] if norm else []
    return {f"params/{linen}{leaf}": f"{nnx}{leaf}" for leaf in leaves}


def attention(
    name: str,
    layer: type[nn.Module] = nn.MultiHeadDotProductAttention,
    inputs: Callable[[], tuple[Any, ...]] = lambda: (sample(2, LENGTH, IN),),
    linen_kwargs: Mapping[str, Any] | None = None,
    nnx_kwargs: Mapping[str, Any] | None = None,
    kv_features: int | None = None,
    **options: Any,
) -> Pair:
    """Attention of the same options in both frameworks."""
    options = {"num_heads": HEADS, "qkv_features": QKV, "out_features": OUT, **options}
    return Pair(
        name=name,
        linen=lambda: layer(**options),
        nnx=lambda rngs: nnx.MultiHeadAttention(
            in_features=IN, in_kv_features=kv_features, decode=False, rngs=rngs, **options
        ),
        inputs=inputs,
        linen_kwargs=linen_kwargs or {},
        nnx_kwargs=nnx_kwargs or {},
        paths=attention_paths(bias=options.get("use_bias", True), norm=options.get("normalize_qk", False)),
        by_convention=True,
    )


class LinenDecoder(nn.Module):
    """Two steps of decoding. The cache is made for the whole length, before the first step."""

    normalize_qk: bool = False

    def setup(self) -> None:
        self.attention = nn.MultiHeadDotProductAttention(
            HEADS, qkv_features=QKV, out_features=OUT, decode=True, normalize_qk=self.normalize_qk
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.is_initializing():
            self.attention(jnp.zeros((2, LENGTH, IN)))
            return jnp.zeros((2, 2, OUT))
        return jnp.concatenate([self.attention(x[:, :1]), self.attention(x[:, 1:])], axis=1)


class NnxDecoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, normalize_qk: bool = False) -> None:
        self.attention = nnx.MultiHeadAttention(HEADS, IN, QKV, OUT, decode=True, normalize_qk=normalize_qk, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([self.attention(x[:, :1]), self.attention(x[:, 1:])], axis=1)


CACHE = same("cache/attention/cached_key", "cache/attention/cached_value", "cache/attention/cache_index")


class LinenAttentions(nn.Module):
    """One layer under three names: automatic names follow the class."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + nn.SelfAttention(HEADS, qkv_features=QKV)(x)
        x = x + nn.MultiHeadAttention(HEADS, qkv_features=QKV)(x)
        return nn.MultiHeadDotProductAttention(HEADS, qkv_features=QKV, out_features=OUT)(x)


class NnxAttentions(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.MultiHeadAttention(HEADS, IN, QKV, decode=False, rngs=rngs)
        self.second = nnx.MultiHeadAttention(HEADS, IN, QKV, decode=False, rngs=rngs)
        self.last = nnx.MultiHeadAttention(HEADS, IN, QKV, OUT, decode=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.first(x)
        x = x + self.second(x)
        return self.last(x)


CAUSAL = np.tril(np.ones((LENGTH, LENGTH), bool))[None, None]

PAIRS: list[Pair] = [
    attention("mha_self"),
    attention("multi_head_attention", nn.MultiHeadAttention),
    attention("self_attention", nn.SelfAttention),
    attention("mha_cross", inputs=lambda: (sample(2, LENGTH, IN), sample(2, 4, 7)), kv_features=7),
    attention("mha_masked", linen_kwargs={"mask": CAUSAL}, nnx_kwargs={"mask": CAUSAL}),
    attention("mha_no_bias", use_bias=False),
    attention("mha_normalize_qk", normalize_qk=True),
    # Dropout adds a random stream to the state of the NNX module, whether it is used or not.
    attention("mha_dropout_eval", dropout_rate=0.5, deterministic=True),
    Pair(
        name="mha_decode_cache",
        linen=LinenDecoder,
        nnx=NnxDecoder,
        inputs=lambda: (sample(2, 2, IN),),
        linen_kwargs={"mutable": ["cache"]},
        prepare=lambda module: module.attention.init_cache((2, LENGTH, IN)),
        paths={**attention_paths("attention/", "attention/"), **CACHE},
        by_convention=True,
    ),
    Pair(
        name="mha_decode_cache_normalize_qk",
        linen=lambda: LinenDecoder(normalize_qk=True),
        nnx=lambda rngs: NnxDecoder(rngs, normalize_qk=True),
        inputs=lambda: (sample(2, 2, IN),),
        linen_kwargs={"mutable": ["cache"]},
        prepare=lambda module: module.attention.init_cache((2, LENGTH, IN)),
        paths={**attention_paths("attention/", "attention/", norm=True), **CACHE},
        by_convention=True,
    ),
    Pair(
        # The bare layer: its cache is as long as the inputs it is initialised with, and each call is one step.
        name="mha_decode_one_step",
        linen=lambda: nn.MultiHeadDotProductAttention(HEADS, qkv_features=QKV, out_features=OUT, decode=True),
        nnx=lambda rngs: nnx.MultiHeadAttention(HEADS, IN, QKV, OUT, decode=True, rngs=rngs),
        inputs=lambda: (sample(2, 1, IN),),
        init_inputs=lambda: (sample(2, LENGTH, IN),),
        linen_kwargs={"mutable": ["cache"]},
        prepare=lambda module: module.init_cache((2, LENGTH, IN)),
        paths={**attention_paths(), **same("cache/cached_key", "cache/cached_value", "cache/cache_index")},
        by_convention=True,
    ),
    Pair(
        name="attention_auto_names",
        linen=LinenAttentions,
        nnx=NnxAttentions,
        inputs=lambda: (sample(2, LENGTH, IN),),
        paths={
            **attention_paths("SelfAttention_0/", "first/"),
            **attention_paths("MultiHeadAttention_0/", "second/"),
            **attention_paths("MultiHeadDotProductAttention_0/", "last/"),
        },
    ),
]
