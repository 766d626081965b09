"""The parts of the NNX models of the alignment suite: written from formulas, under misleading names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

BATCH, LENGTH, WIDTH, HEADS, SIZE, HIDDEN, VOCABULARY = 2, 5, 12, 3, 4, 20, 17


def param(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape))


class Affine(nnx.Module):
    """A dense layer that stores its kernel transposed, as PyTorch does, under other names."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        self.scale = param(outputs, inputs)
        self.mean = param(outputs) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.scale[...].T
        return y if self.mean is None else y + self.mean[...]


class Norm(nnx.Module):
    """Layer normalisation in one pass, with the factor applied last."""

    def __init__(self, size: int, epsilon: float = 1e-6) -> None:
        self.kernel, self.var, self.epsilon = param(size), param(size), epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        mean = x.mean(-1, keepdims=True)
        variance = (x * x).mean(-1, keepdims=True) - mean * mean
        return (x - mean) / jnp.sqrt(variance + self.epsilon) * self.kernel[...] + self.var[...]


class RmsNorm(nnx.Module):
    def __init__(self, size: int) -> None:
        self.bias = param(size)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bias[...] * (x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6))


def own_gelu(x: jax.Array) -> jax.Array:
    return 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Attention over ``[batch, length, heads, size]``, with the heads in front while it computes."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    scores = q @ jnp.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = jnp.where(mask, scores, -1e30)
    return jnp.swapaxes(jax.nn.softmax(scores) @ v, 1, 2)


class FusedAttention(nnx.Module):
    """One kernel for queries, keys and values. ``order`` says how they lie in its columns: by ``p`` (which of the
    three), ``h`` (head) and ``d`` (place in the head), the last letter running fastest.
    """

    def __init__(self, order: str, bias: bool = True) -> None:
        self.order = order
        self.out = param(WIDTH, 3 * HEADS * SIZE)
        self.query = param(3 * HEADS * SIZE) if bias else None
        self.key = Affine(HEADS * SIZE, WIDTH, bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.out[...]
        if self.query is not None:
            y = y + self.query[...]
        sizes = {"p": 3, "h": HEADS, "d": SIZE}
        y = y.reshape(*x.shape[:-1], *(sizes[letter] for letter in self.order))
        y = y.transpose(0, 1, *(2 + self.order.index(letter) for letter in "phd"))
        q, k, v = (y[:, :, at] for at in range(3))
        return self.key(attend(q, k, v).reshape(*x.shape[:-1], -1))


class SeparateAttention(nnx.Module):
    """Three kernels for flat heads, in another order of definition than of use."""

    def __init__(self, bias: bool = True) -> None:
        self.a, self.b, self.c, self.d = (Affine(WIDTH, HEADS * SIZE, bias) for _ in range(4))

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        shape = (*x.shape[:-1], HEADS, SIZE)
        q, k, v = (layer(x).reshape(shape) for layer in (self.c, self.d, self.a))
        return self.b(attend(q, k, v, mask).reshape(*x.shape[:-1], -1))


class Mlp(nnx.Module):
    def __init__(self, bias: bool = True) -> None:
        self.last, self.first = Affine(WIDTH, HIDDEN, bias), Affine(HIDDEN, WIDTH, bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.first(own_gelu(self.last(x)))


class Block(nnx.Module):
    def __init__(self, attention: nnx.Module) -> None:
        self.end, self.start, self.inner, self.outer = Norm(WIDTH), Norm(WIDTH), attention, Mlp()

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.inner(self.start(x))
        return x + self.outer(self.end(x))


class Encoder(nnx.Module):
    """Blocks whose names and order say nothing of their places."""

    def __init__(self, attention: object, count: int = 2) -> None:
        self.z = nnx.List([Block(attention()) for _ in range(count)])  # type: ignore[operator]

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in reversed(self.z):
            x = block(x)
        return x


def rotated(x: jax.Array, *, halves: bool) -> jax.Array:
    """Rotary positions; the two halves of a head put together again, or each multiplied for itself."""
    size = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] / 100.0 ** (jnp.arange(size) / size)
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    first, second = x[..., :size], x[..., size:]
    if halves:
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    turned = jnp.concatenate([-second, first], -1)
    return x * jnp.concatenate([cos, cos], -1) + turned * jnp.concatenate([sin, sin], -1)
