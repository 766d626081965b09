"""A small language model in both frameworks, written by hand, with every fault that one may ask for.

The Linen model returns a dict, the NNX model a tuple.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

VOCABULARY, WIDTH, HIDDEN, CLASSES, LAYERS = 20, 8, 16, 5, 2


def attention(query: Any, key: Any, value: Any, heads: int) -> Any:
    batch, length, width = query.shape
    q, k, v = (each.reshape(batch, length, heads, -1) for each in (query, key, value))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width // heads))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, width)


# Linen ---------------------------------------------------------------------------------------------------------------


class LinenAttention(nn.Module):
    num_heads: int = 4

    @nn.compact
    def __call__(self, x: Any) -> Any:
        query, key, value = (nn.Dense(WIDTH, name=name)(x) for name in ("query", "key", "value"))
        return nn.Dense(WIDTH, name="out")(attention(query, key, value, self.num_heads))


class LinenBlock(nn.Module):
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        x = x + LinenAttention(name="attn")(nn.LayerNorm(name="norm1")(x))
        h = nn.Dense(HIDDEN, name="up", dtype=self.dtype)(nn.LayerNorm(name="norm2")(x))
        h = nn.Dropout(0.5, deterministic=True)(nn.gelu(h))
        return x + nn.Dense(WIDTH, name="down", dtype=self.dtype)(h), None


class LinenLanguageModel(nn.Module):
    """``scanned`` walks through stacked blocks, each of them rematerialised."""

    dtype: Any = None
    scanned: bool = False

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        x = nn.Embed(VOCABULARY, WIDTH, name="embed")(ids) * jnp.sqrt(8.0)
        if self.scanned:
            axes: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": LAYERS}
            x, _ = nn.scan(nn.remat(LinenBlock), **axes)(name="layers")(x, None)
        else:
            for number in range(LAYERS):
                x, _ = LinenBlock(name=f"layers_{number}", dtype=self.dtype)(x)
        return {"logits": nn.Dense(CLASSES, name="head")(nn.LayerNorm(name="norm")(x))}


# NNX -----------------------------------------------------------------------------------------------------------------


class NnxAttention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, num_heads: int, swapped: bool):
        self.query, self.key, self.value, self.out = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4))
        self.num_heads, self.swapped = num_heads, swapped

    def __call__(self, x: Any) -> Any:
        query, key = self.query(x), self.key(x)
        if self.swapped:
            query, key = key, query
        return self.out(attention(query, key, self.value(x), self.num_heads))


class NnxBlock(nnx.Module):
    def __init__(
        self,
        rngs: nnx.Rngs,
        dtype: Any = None,
        epsilon: float = 1e-6,
        approximate: bool = True,
        num_heads: int = 4,
        swapped: bool = False,
    ):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs, epsilon=epsilon)
        self.attn = NnxAttention(rngs, num_heads, swapped)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs, dtype=dtype)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs, dtype=dtype)
        self.approximate = approximate

    def __call__(self, x: Any) -> Any:
        x = x + self.attn(self.norm1(x))
        return x + self.down(self.drop(nnx.gelu(self.up(self.norm2(x)), approximate=self.approximate)))


class NnxLanguageModel(nnx.Module):
    """Faults are those of the second block; ``scaled`` is whether embeddings are."""

    def __init__(self, rngs: nnx.Rngs, dtype: Any = None, scaled: bool = True, **faults: Any):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = nnx.List([NnxBlock(rngs, dtype), NnxBlock(rngs, dtype, **faults)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.scaled = scaled

    def __call__(self, ids: Any) -> Any:
        x = self.embed(ids)
        if self.scaled:
            x = x * jnp.sqrt(8.0)
        for layer in self.layers:
            x = layer(x)
        return None, {"hidden": self.head(self.norm(x))}
