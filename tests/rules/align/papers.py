"""ViT, BERT, GPT-2 and Llama in NNX, written from their papers, with plain parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.rules.align.layers import Affine, Norm, attend, own_gelu, param

WIDTH, HEADS, LAYERS, HIDDEN, VOCABULARY = 12, 3, 3, 20, 31


def heads(x: jax.Array, count: int = HEADS) -> jax.Array:
    return x.reshape(*x.shape[:-1], count, -1)


def flat(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-2], -1)


class Attention(nnx.Module):
    def __init__(self, kv_heads: int = HEADS, bias: bool = True) -> None:
        size = WIDTH // HEADS * kv_heads
        self.kv_heads = kv_heads
        self.q, self.o = Affine(WIDTH, WIDTH, bias), Affine(WIDTH, WIDTH, bias)
        self.k, self.v = Affine(WIDTH, size, bias), Affine(WIDTH, size, bias)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, rotary: bool = False) -> jax.Array:
        q, k, v = heads(self.q(x)), heads(self.k(x), self.kv_heads), heads(self.v(x), self.kv_heads)
        if rotary:
            q, k = turned(q), turned(k)
        k, v = (jnp.repeat(y, HEADS // self.kv_heads, axis=2) for y in (k, v))
        return self.o(flat(attend(q, k, v, mask)))


def turned(x: jax.Array) -> jax.Array:
    """Rotary positions as in Llama, of base 10 000."""
    size = x.shape[-1]
    frequencies = 1.0 / 10000.0 ** (np.arange(0, size, 2) / size)
    angles = np.outer(np.arange(x.shape[1]), frequencies)
    cos, sin = (np.concatenate([f(angles)] * 2, -1)[None, :, None] for f in (np.cos, np.sin))
    left, right = jnp.split(x, 2, -1)
    return x * cos + jnp.concatenate([-right, left], -1) * sin


class FusedAttention(nnx.Module):
    """Queries, keys and values of one product, as in GPT-2, but with a column of each in turn."""

    def __init__(self) -> None:
        self.qkv, self.o = Affine(WIDTH, 3 * WIDTH), Affine(WIDTH, WIDTH)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        y = self.qkv(x).reshape(*x.shape[:-1], HEADS, 3, WIDTH // HEADS)
        return self.o(flat(attend(y[..., 0, :], y[..., 1, :], y[..., 2, :], mask)))


class Mlp(nnx.Module):
    def __init__(self, exact: bool) -> None:
        self.up, self.down, self.exact = Affine(WIDTH, HIDDEN), Affine(HIDDEN, WIDTH), exact

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.up(x)
        return self.down(h * 0.5 * (1 + jax.lax.erf(h / np.sqrt(2))) if self.exact else own_gelu(h))


class VitBlock(nnx.Module):
    def __init__(self) -> None:
        self.attention, self.mlp = Attention(), Mlp(exact=True)
        self.norm1, self.norm2 = Norm(WIDTH, 1e-12), Norm(WIDTH, 1e-12)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nnx.Module):
    """Patches are cut out and multiplied, where others convolve."""

    def __init__(self) -> None:
        self.patches, self.token, self.positions = Affine(4 * 4 * 3, WIDTH), param(WIDTH), param(5, WIDTH)
        self.blocks = nnx.List([VitBlock() for _ in range(LAYERS)])
        self.norm = Norm(WIDTH, 1e-12)

    def __call__(self, images: jax.Array) -> jax.Array:
        batch = images.shape[0]
        cut = images.reshape(batch, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(batch, 4, 48)
        token = jnp.broadcast_to(self.token[...], (batch, 1, WIDTH))
        x = jnp.concatenate([token, self.patches(cut)], 1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class BertBlock(nnx.Module):
    def __init__(self) -> None:
        self.attention, self.mlp = Attention(), Mlp(exact=True)
        self.norm1, self.norm2 = Norm(WIDTH, 1e-12), Norm(WIDTH, 1e-12)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.mlp(x))


class Bert(nnx.Module):
    def __init__(self) -> None:
        self.words, self.positions, self.types = param(VOCABULARY, WIDTH), param(16, WIDTH), param(2, WIDTH)
        self.norm, self.pooler = Norm(WIDTH, 1e-12), Affine(WIDTH, WIDTH)
        self.blocks = nnx.List([BertBlock() for _ in range(LAYERS)])

    def __call__(
        self, ids: jax.Array, mask: jax.Array, types: jax.Array, positions: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        words = jax.nn.one_hot(ids, VOCABULARY) @ self.words[...]
        x = self.norm(words + self.types[...][types] + self.positions[...][positions])
        for block in self.blocks:
            x = block(x, mask[:, None, None, :] > 0)
        return x, jnp.tanh(self.pooler(x[:, 0]))


class GptBlock(nnx.Module):
    def __init__(self) -> None:
        self.attention, self.mlp = FusedAttention(), Mlp(exact=False)
        self.norm1, self.norm2 = Norm(WIDTH, 1e-5), Norm(WIDTH, 1e-5)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


def causal(length: int) -> jax.Array:
    return jnp.tril(jnp.ones((length, length), bool))


class Gpt(nnx.Module):
    """The blocks are one, scanned over."""

    def __init__(self) -> None:
        self.words, self.positions, self.norm = param(VOCABULARY, WIDTH), param(16, WIDTH), Norm(WIDTH, 1e-5)

        @nnx.vmap(axis_size=LAYERS)
        def blocks() -> GptBlock:
            return GptBlock()

        self.blocks = blocks()

    def __call__(self, ids: jax.Array, mask: jax.Array, positions: jax.Array) -> jax.Array:
        x = self.words[...][ids] + self.positions[...][positions]
        allowed = causal(ids.shape[1]) & (mask[:, None, None, :] > 0)

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def call(block: GptBlock, x: jax.Array) -> jax.Array:
            return block(x, allowed)

        return self.norm(call(self.blocks, x))


class LlamaNorm(nnx.Module):
    def __init__(self) -> None:
        self.weight = param(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * self.weight[...]


class LlamaBlock(nnx.Module):
    """Gate and values of the gated unit in one kernel."""

    def __init__(self, kv_heads: int) -> None:
        self.attention, self.norm1, self.norm2 = Attention(kv_heads, False), LlamaNorm(), LlamaNorm()
        self.gated, self.down = Affine(WIDTH, 2 * HIDDEN, False), Affine(HIDDEN, WIDTH, False)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x), causal(x.shape[1]), rotary=True)
        gate, up = jnp.split(self.gated(self.norm2(x)), 2, -1)
        return x + self.down(gate * jax.nn.sigmoid(gate) * up)


class Llama(nnx.Module):
    def __init__(self, kv_heads: int = HEADS) -> None:
        self.words, self.norm = param(VOCABULARY, WIDTH), LlamaNorm()
        self.blocks = nnx.List([LlamaBlock(kv_heads) for _ in range(LAYERS)])

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.words[...][ids]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
