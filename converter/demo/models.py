"""The models of the demo: one small Transformer with batch statistics and dropout, written once for each framework.

The same names on both sides make its conversion a pure re-wrap.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx

VOCABULARY, WIDTH, HEADS, HIDDEN, CLASSES = 16, 8, 2, 16, 4
DROPOUT = 0.1


class LinenBlock(nn.Module):
    """Attention and a feed-forward layer, each behind a LayerNorm, with residuals."""

    def setup(self) -> None:
        self.attention_norm = nn.LayerNorm()
        self.attention = nn.MultiHeadDotProductAttention(num_heads=HEADS, qkv_features=WIDTH)
        self.norm = nn.LayerNorm()
        self.up = nn.Dense(HIDDEN)
        self.down = nn.Dense(WIDTH)
        self.dropout = nn.Dropout(DROPOUT)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        hidden = nn.gelu(self.up(self.norm(x)))
        return x + self.dropout(self.down(hidden), deterministic=not train)


class LinenTransformer(nn.Module):
    """Tokens of shape [batch, length] to class scores of shape [batch, CLASSES]."""

    def setup(self) -> None:
        self.embed = nn.Embed(VOCABULARY, WIDTH)
        self.layers = [LinenBlock() for _ in range(2)]
        self.pooled_norm = nn.BatchNorm(momentum=0.9)
        self.head = nn.Dense(CLASSES)

    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, train)
        return self.head(self.pooled_norm(x.mean(axis=1), use_running_average=not train))


class NnxBlock(nnx.Module):
    """Attention and a feed-forward layer, each behind a LayerNorm, with residuals."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, qkv_features=WIDTH, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(DROPOUT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm(x)))))


class NnxTransformer(nnx.Module):
    """Tokens of shape [batch, length] to class scores of shape [batch, CLASSES]."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = nnx.List([NnxBlock(rngs) for _ in range(2)])
        self.pooled_norm = nnx.BatchNorm(WIDTH, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.pooled_norm(x.mean(axis=1)))


def optimizer() -> optax.GradientTransformation:
    """AdamW with a schedule: its state has members with and without arrays."""
    return optax.adamw(optax.cosine_decay_schedule(1e-2, 100))


def batch() -> tuple[jax.Array, jax.Array]:
    """Tokens of shape [6, 5] and labels of shape [6]."""
    tokens, labels = jax.random.split(jax.random.key(7))
    return (
        jax.random.randint(tokens, (6, 5), 0, VOCABULARY),
        jax.random.randint(labels, (6,), 0, CLASSES),
    )


def loss(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross entropy of scores [batch, CLASSES]."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))


def linen_gradients(params: Any, batch_stats: Any) -> Any:
    """The gradients of the loss in evaluation mode, where both frameworks are deterministic."""
    tokens, labels = batch()

    def objective(params: Any) -> jax.Array:
        return loss(LinenTransformer().apply({"params": params, "batch_stats": batch_stats}, tokens), labels)

    return jax.grad(objective)(params)


def nnx_gradients(model: NnxTransformer) -> Any:
    """The gradients of the loss in the mode that the model is in."""
    tokens, labels = batch()
    return nnx.grad(lambda model: loss(model(tokens), labels))(model)
