"""The alignment suite: models in both frameworks, written in different styles, with their correspondence by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.truth import merged, pair, same, wave
from tests.rules.align.layers import (
    BATCH,
    HEADS,
    HIDDEN,
    LENGTH,
    SIZE,
    VOCABULARY,
    WIDTH,
    Affine,
    Encoder,
    FusedAttention,
    Norm,
    RmsNorm,
    SeparateAttention,
    attend,
    param,
    rotated,
)

Part = dict[str, tuple[str, Callable[..., Any] | None]]


def sequences() -> tuple[jax.Array]:
    return (wave(BATCH, LENGTH, WIDTH),)


def transposed(array: Any) -> Any:
    return array.T


def affine(linen: str, nnx_path: str, bias: bool = True) -> Part:
    """A Dense and an ``Affine``."""
    part: Part = {f"params/{linen}/kernel": (f"{nnx_path}/scale", transposed)}
    return part | ({f"params/{linen}/bias": (f"{nnx_path}/mean", None)} if bias else {})


def norm(linen: str, nnx_path: str) -> Part:
    return {
        f"params/{linen}/scale": (f"{nnx_path}/kernel", None),
        f"params/{linen}/bias": (f"{nnx_path}/var", None),
    }


# Transformers --------------------------------------------------------------------------------------------------------


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> Any:
        x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
        y = nn.Dense(HIDDEN)(nn.LayerNorm()(x))
        x = x + nn.Dense(WIDTH)(nn.gelu(y))
        return x if _ is None else (x, None)


class LinenEncoder(nn.Module):
    count: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.count):
            x = LinenBlock()(x)
        return x


class LinenScannedEncoder(nn.Module):
    count: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scanned = nn.scan(
            nn.remat(LinenBlock), variable_axes={"params": 1}, split_rngs={"params": True}, length=self.count
        )
        return scanned(name="layers")(x, jnp.zeros(self.count))[0]


ATTENTION = "MultiHeadDotProductAttention_0"


def flat_heads(array: Any) -> Any:
    """``[width, heads, size]`` to ``[heads · size, width]``."""
    return array.reshape(WIDTH, -1).T


def separate(linen: str, nnx_path: str) -> Part:
    part: Part = {}
    for projection, layer in (("query", "c"), ("key", "d"), ("value", "a")):
        part[f"params/{linen}/{projection}/kernel"] = (f"{nnx_path}/{layer}/scale", flat_heads)
        part[f"params/{linen}/{projection}/bias"] = (f"{nnx_path}/{layer}/mean", np.ravel)
    part[f"params/{linen}/out/kernel"] = (f"{nnx_path}/b/scale", lambda a: a.reshape(-1, WIDTH).T)
    part[f"params/{linen}/out/bias"] = (f"{nnx_path}/b/mean", None)
    return part


def fused(order: str) -> Callable[[str, str], Part]:
    def arranged(*arrays: Any) -> Any:
        stacked = np.stack(arrays, -3)  # …, p, h, d
        axes = [stacked.ndim - 3 + "phd".index(letter) for letter in order]
        return stacked.transpose(*range(stacked.ndim - 3), *axes).reshape(*stacked.shape[:-3], -1)

    def part(linen: str, nnx_path: str) -> Part:
        names = [f"params/{linen}/{projection}" for projection in ("query", "key", "value")]
        return {
            " + ".join(f"{name}/kernel" for name in names): (f"{nnx_path}/out", arranged),
            " + ".join(f"{name}/bias" for name in names): (f"{nnx_path}/query", arranged),
            f"params/{linen}/out/kernel": (f"{nnx_path}/key/scale", lambda a: a.reshape(-1, WIDTH).T),
            f"params/{linen}/out/bias": (f"{nnx_path}/key/mean", None),
        }

    return part


def block(linen: str, nnx_path: str, attention: Callable[[str, str], Part]) -> Part:
    return merged(
        norm(f"{linen}/LayerNorm_0", f"{nnx_path}/start"),
        attention(f"{linen}/{ATTENTION}", f"{nnx_path}/inner"),
        norm(f"{linen}/LayerNorm_1", f"{nnx_path}/end"),
        affine(f"{linen}/Dense_0", f"{nnx_path}/outer/last"),
        affine(f"{linen}/Dense_1", f"{nnx_path}/outer/first"),
    )


def encoder(name: str, attention: Callable[..., nnx.Module], part: Callable[[str, str], Part], count: int = 2) -> Pair:
    blocks = (block(f"LinenBlock_{at}", f"z/{count - 1 - at}", part) for at in range(count))
    return pair(
        f"encoder_{name}",
        functools.partial(LinenEncoder, count),
        lambda rngs: Encoder(attention, count),
        sequences,
        *blocks,
        tolerance=1e-5,
    )


def scanned_encoder(count: int = 2) -> Pair:
    """A scan along axis 1 whose layers NNX keeps in a list, transposed and with flat heads."""
    single = block("layers", "z/{}", separate)

    def split(change: Callable[..., Any] | None) -> Callable[..., Any]:
        def apart(array: Any) -> tuple[Any, ...]:
            layers = [layer if change is None else change(layer) for layer in np.moveaxis(array, 1, 0)]
            return tuple(layers[::-1])

        return apart

    whole: Part = {
        linen: (" + ".join(path.format(at) for at in range(count)), split(change))
        for linen, (path, change) in single.items()
    }
    return pair(
        "encoder_scanned",
        functools.partial(LinenScannedEncoder, count),
        lambda rngs: Encoder(SeparateAttention, count),
        sequences,
        whole,
        tolerance=1e-5,
    )


# Decoders with rotary positions and gated units ----------------------------------------------------------------------

KV_HEADS = 1


class LinenDecoder(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        table = nn.Embed(VOCABULARY, WIDTH, name="table")
        x = table(ids)
        for at in range(2):
            y = nn.RMSNorm(name=f"norm{at}a")(x)
            q = nn.DenseGeneral((HEADS, SIZE), use_bias=False, name=f"q{at}")(y)
            k = nn.DenseGeneral((HEADS, SIZE), use_bias=False, name=f"k{at}")(y)
            v = nn.DenseGeneral((HEADS, SIZE), use_bias=False, name=f"v{at}")(y)
            causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
            z = attend(rotated(q, halves=False), rotated(k, halves=False), v, causal)
            x = x + nn.DenseGeneral(WIDTH, (-2, -1), use_bias=False, name=f"o{at}")(z)
            y = nn.RMSNorm(name=f"norm{at}b")(x)
            gate = nn.Dense(HIDDEN, use_bias=False, name=f"gate{at}")(y)
            up = nn.Dense(HIDDEN, use_bias=False, name=f"up{at}")(y)
            x = x + nn.Dense(WIDTH, use_bias=False, name=f"down{at}")(nn.silu(gate) * up)
        return table.attend(nn.RMSNorm(name="last")(x))


class NnxDecoderLayer(nnx.Module):
    def __init__(self) -> None:
        self.k, self.v, self.q = (Affine(WIDTH, WIDTH, False) for _ in range(3))
        self.gate, self.up = param(HIDDEN, WIDTH), param(WIDTH, 2 * HIDDEN)
        self.o, self.b, self.a = Affine(WIDTH, WIDTH, False), RmsNorm(WIDTH), RmsNorm(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.a(x)
        q, k, v = (layer(y).reshape(BATCH, LENGTH, HEADS, SIZE) for layer in (self.v, self.q, self.k))
        mask = jnp.arange(LENGTH)[:, None] >= jnp.arange(LENGTH)[None, :]
        z = attend(rotated(q, halves=False), rotated(k, halves=False), v, mask)
        x = x + self.o(z.reshape(BATCH, LENGTH, -1))
        up, gate = jnp.split(self.b(x) @ self.up[...], 2, -1)
        return x + (jax.nn.silu(gate) * up) @ self.gate[...]


class NnxDecoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.last, self.table = RmsNorm(WIDTH), param(VOCABULARY, WIDTH)
        self.layers = nnx.List([NnxDecoderLayer() for _ in range(2)])

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = jax.nn.one_hot(ids, VOCABULARY) @ self.table[...]
        for layer in self.layers:
            x = layer(x)
        return self.last(x) @ self.table[...].T


def decoder_layer(at: int) -> Part:
    nnx_path = f"layers/{at}"
    part: Part = {
        f"params/norm{at}a/scale": (f"{nnx_path}/a/bias", None),
        f"params/norm{at}b/scale": (f"{nnx_path}/b/bias", None),
        f"params/o{at}/kernel": (f"{nnx_path}/o/scale", lambda a: a.reshape(-1, WIDTH).T),
        f"params/up{at}/kernel + params/gate{at}/kernel": (f"{nnx_path}/up", lambda a, b: np.concatenate([a, b], -1)),
        f"params/down{at}/kernel": (f"{nnx_path}/gate", None),
    }
    for linen, nnx_name in (("q", "v"), ("k", "q"), ("v", "k")):
        part[f"params/{linen}{at}/kernel"] = (f"{nnx_path}/{nnx_name}/scale", flat_heads)
    return part


DECODER = merged(
    {"params/table/embedding": ("table", None), "params/last/scale": ("last/bias", None)},
    decoder_layer(0),
    decoder_layer(1),
)


def tokens() -> tuple[jax.Array]:
    return (jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH))),)


# Images --------------------------------------------------------------------------------------------------------------


class LinenPatches(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(WIDTH, (4, 4), (4, 4), name="patches")(x).reshape(BATCH, -1, WIDTH)
        x = x + self.param("positions", nn.initializers.normal(), (1, 9, WIDTH))[:, : x.shape[1]]
        x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        return nn.Dense(3, name="head")(nn.relu(x).mean(1))


class NnxPatches(nnx.Module):
    """Patches by reshaping, and a batch normalisation that is one factor and one summand."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.head, self.embed = Affine(WIDTH, 3), Affine(48, WIDTH)
        self.place = param(9, WIDTH)
        self.a, self.b = param(WIDTH), param(WIDTH)
        self.c, self.d = nnx.BatchStat(jnp.zeros(WIDTH)), nnx.BatchStat(jnp.zeros(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(BATCH, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(BATCH, 4, 48)
        x = self.embed(x) + self.place[...][jnp.arange(4)]
        factor = self.a[...] / jnp.sqrt(self.d[...] + 1e-5)
        x = (x - self.c[...]) * factor + self.b[...]
        return self.head(jnp.maximum(x, 0).mean(1))


PATCHES = merged(
    {
        "params/patches/kernel": ("embed/scale", lambda a: a.reshape(48, WIDTH).T),
        "params/patches/bias": ("embed/mean", None),
        "params/positions": ("place", lambda a: a[0]),
        "params/norm/scale": ("a", None),
        "params/norm/bias": ("b", None),
        "batch_stats/norm/mean": ("c", None),
        "batch_stats/norm/var": ("d", None),
    },
    affine("head", "head"),
)


# Experts -------------------------------------------------------------------------------------------------------------

EXPERTS = 4


class LinenExpert(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(HIDDEN, name="up")(x)))


class LinenExperts(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gates = nn.softmax(nn.Dense(EXPERTS, name="router")(x))
        experts = nn.vmap(
            LinenExpert, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=EXPERTS
        )
        return jnp.einsum("ebf,be->bf", experts(name="experts")(x), gates)


class NnxExpert(nnx.Module):
    def __init__(self) -> None:
        self.down, self.up = Affine(WIDTH, HIDDEN), Affine(HIDDEN, WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.up(jax.nn.gelu(self.down(x)))


class NnxExperts(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.items = nnx.List([NnxExpert() for _ in range(EXPERTS)])
        self.gate = Affine(WIDTH, EXPERTS)

    def __call__(self, x: jax.Array) -> jax.Array:
        gates = jax.nn.softmax(self.gate(x))
        return sum(gates[:, at, None] * expert(x) for at, expert in enumerate(self.items))


def of_experts(name: str) -> str:
    return " + ".join(f"items/{at}/{name}" for at in range(EXPERTS))


EXPERT_PARTS: Part = merged(
    affine("router", "gate"),
    {
        "params/experts/up/kernel": (of_experts("down/scale"), lambda a: tuple(a.transpose(0, 2, 1))),
        "params/experts/up/bias": (of_experts("down/mean"), tuple),
        "params/experts/down/kernel": (of_experts("up/scale"), lambda a: tuple(a.transpose(0, 2, 1))),
        "params/experts/down/bias": (of_experts("up/mean"), tuple),
    },
)


# Recurrent -----------------------------------------------------------------------------------------------------------


class LinenLstm(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3, name="head")(nn.RNN(nn.LSTMCell(HIDDEN), name="rnn")(x))


class NnxLstm(nnx.Module):
    """All gates in one product over inputs and state, in another order than Linen's."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.head = Affine(HIDDEN, 3)
        self.w, self.u, self.v = param(WIDTH, 4 * HIDDEN), param(HIDDEN, 4 * HIDDEN), param(4 * HIDDEN)

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(carry: Any, now: jax.Array) -> Any:
            hidden, cell = carry
            o, i, f, g = jnp.split(now @ self.w[...] + hidden @ self.u[...] + self.v[...], 4, -1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        start = jnp.zeros((BATCH, HIDDEN))
        return self.head(jnp.swapaxes(jax.lax.scan(step, (start, start), jnp.swapaxes(x, 0, 1))[1], 0, 1))


def gates(kind: str, leaf: str) -> str:
    return " + ".join(f"params/LSTMCell_0/{kind}{gate}/{leaf}" for gate in "oifg")


def side_by_side(*arrays: Any) -> Any:
    return np.concatenate(arrays, -1)


LSTM: Part = merged(
    affine("head", "head"),
    {
        gates("i", "kernel"): ("w", side_by_side),
        gates("h", "kernel"): ("u", side_by_side),
        gates("h", "bias"): ("v", side_by_side),
    },
)


# Towers --------------------------------------------------------------------------------------------------------------


class LinenTowers(nn.Module):
    """Three branches of one shape that differ in a factor, a sign, and an activation."""

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = nn.tanh(nn.Dense(WIDTH, name="one")(x))
        b = nn.tanh(nn.Dense(WIDTH, name="two")(x))
        c = nn.sigmoid(nn.Dense(WIDTH, name="three")(x))
        d = nn.Dense(WIDTH, name="four")(y)
        return a - 0.5 * b + c, 2 * d


class NnxTowers(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.one, self.two, self.three, self.four = (Affine(WIDTH, WIDTH) for _ in range(4))

    def __call__(self, y: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jax.nn.sigmoid(self.one(y)) + jnp.tanh(self.three(y)) - jnp.tanh(self.four(y)) * 0.5
        return first, self.two(z) * 2


PAIRS: list[Pair] = [
    encoder("separate", SeparateAttention, separate),
    encoder("fused_phd", lambda: FusedAttention("phd"), fused("phd")),
    encoder("interleaved_hpd", lambda: FusedAttention("hpd"), fused("hpd")),
    encoder("interleaved_hdp", lambda: FusedAttention("hdp"), fused("hdp")),
    scanned_encoder(),
    pair("decoder", LinenDecoder, NnxDecoder, tokens, DECODER, tolerance=1e-5),
    pair("patches", LinenPatches, NnxPatches, lambda: (wave(BATCH, 8, 8, 3),), PATCHES, tolerance=1e-5),
    pair("experts", LinenExperts, NnxExperts, lambda: (wave(BATCH, WIDTH),), EXPERT_PARTS, tolerance=1e-5),
    pair("lstm", LinenLstm, NnxLstm, sequences, LSTM, tolerance=1e-5),
    pair(
        "towers",
        LinenTowers,
        NnxTowers,
        lambda: (wave(BATCH, WIDTH), wave(BATCH, WIDTH)),
        affine("one", "three"),
        affine("two", "four"),
        affine("three", "one"),
        affine("four", "two"),
        tolerance=1e-5,
    ),
]

__all__ = ["PAIRS", "Norm", "same"]
