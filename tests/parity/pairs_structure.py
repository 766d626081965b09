"""Pairs whose layers are the same and whose arrangement differs: containers, names, sharing, scan, vmap, own variables,
bridges, and whole models.

All sizes within one model differ from each other, so that shapes tell the axes apart, except where a pair is about
axes that shapes cannot tell.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.nnx import bridge

from tests.parity.pair import Pair

BATCH, LAYERS, HIDDEN, WIDTH, LENGTH, CLASSES, VOCABULARY = 2, 3, 5, 6, 7, 9, 11
HEADS, QKV_FEATURES = 2, 8
"""Four features per head: the square root is exact, so both frameworks scale the queries to the same bits."""
COMPILED = 1e-5
"""Tolerance where one side is compiled and the other is not, or in another way."""

COPIES: dict[str, str] = {
    "tied_embed_to_untied_head": "NNX holds the embedding twice, as it is and transposed; Linen has it once",
}
"""Pairs of which not every NNX value has Linen variables: what has to agree in NNX, by the name of the pair."""


# Ground truth --------------------------------------------------------------------------------------------------------

Part = dict[str, tuple[str, Callable[..., Any] | None]]
"""Linen path to NNX path, and what happens to the array on the way to NNX (None: nothing)."""

DENSE = ("bias", "kernel")
NORM = ("bias", "scale")
STATISTICS = ("mean", "var")


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
    return lambda *arrays: jax.tree.map(jnp.asarray, change(*map(np.asarray, arrays)))


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


# Inputs --------------------------------------------------------------------------------------------------------------


def wave(*shape: int) -> jax.Array:
    """Numbers between -1 and 1 without a pattern that a layer could cancel."""
    # NumPy, because jax would compile this for every shape.
    return jnp.asarray(np.sin(1.7 * np.arange(1, math.prod(shape) + 1) ** 1.3).reshape(shape), jnp.float32)


def rows() -> tuple[jax.Array]:
    return (wave(BATCH, WIDTH),)


def sequences() -> tuple[jax.Array]:
    return (wave(BATCH, LENGTH, WIDTH),)


def images() -> tuple[jax.Array]:
    return (wave(BATCH, 8, 8, 3),)


def tokens() -> tuple[jax.Array]:
    return (jnp.array([[3, 10, 0, 7, 3, 8, 6], [1, 2, 10, 9, 5, 4, 0]]),)


# Blocks: the parts that the models below repeat ----------------------------------------------------------------------


class LinenBlock(nn.Module):
    """A residual MLP."""

    def setup(self) -> None:
        self.norm = nn.LayerNorm()
        self.up = nn.Dense(HIDDEN)
        self.down = nn.Dense(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(jnp.tanh(self.up(self.norm(x))))


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(jnp.tanh(self.up(self.norm(x))))


BLOCK = (*under("norm", NORM), *under("up", DENSE), *under("down", DENSE))


class LinenStatsBlock(nn.Module):
    """A block with variables outside ``params``, and random state on the NNX side."""

    def setup(self) -> None:
        self.up = nn.Dense(HIDDEN)
        self.norm = nn.BatchNorm(use_running_average=True)
        self.dropout = nn.Dropout(0.5, deterministic=True)
        self.down = nn.Dense(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(self.dropout(jnp.tanh(self.norm(self.up(x)))))


class NnxStatsBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.norm = nnx.BatchNorm(HIDDEN, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(self.dropout(jnp.tanh(self.norm(self.up(x)))))


STATS_BLOCK = under("norm", STATISTICS)
"""The ``batch_stats`` of a block; its ``params`` are those of ``BLOCK``."""


class LinenSquareBlock(nn.Module):
    """As many features as a stack has layers: no shape tells which axis is which."""

    def setup(self) -> None:
        self.dense = nn.Dense(LAYERS)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jnp.tanh(self.dense(x))


class NnxSquareBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(LAYERS, LAYERS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jnp.tanh(self.dense(x))


SQUARE_BLOCK = under("dense", DENSE)


class LinenRecurrentBlock(nn.Module):
    cell: Callable[..., nn.Module]

    def setup(self) -> None:
        self.rnn = nn.RNN(self.cell(HIDDEN))
        self.down = nn.Dense(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(self.rnn(x))


class NnxRecurrentBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, cell: Callable[..., nnx.Module]) -> None:
        self.rnn = nnx.RNN(cell(WIDTH, HIDDEN, rngs=rngs), rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(self.rnn(x))


class LinenAttentionBlock(nn.Module):
    decode: bool = False

    def setup(self) -> None:
        self.attention = nn.MultiHeadDotProductAttention(HEADS, qkv_features=QKV_FEATURES, decode=self.decode)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.attention(x)


class NnxAttentionBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, decode: bool = False) -> None:
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, QKV_FEATURES, decode=decode, rngs=rngs)
        if decode:
            self.attention.init_cache((BATCH, LENGTH, WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.attention(x)


ATTENTION = tuple(f"{projection}/{name}" for projection in ("query", "key", "value", "out") for name in DENSE)
CACHE = ("cached_key", "cached_value", "cache_index")


# Stacks: blocks one after the other, as a loop or as a scan ----------------------------------------------------------


class LinenLoop(nn.Module):
    block: Callable[[], nn.Module] = LinenBlock
    length: int = LAYERS

    def setup(self) -> None:
        self.layers = [self.block() for _ in range(self.length)]

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


class NnxLoop(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, block: Callable[..., nnx.Module] = NnxBlock, length: int = LAYERS) -> None:
        self.layers = nnx.List(block(rngs=rngs) for _ in range(length))

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


class LinenScan(nn.Module):
    """Blocks as one scanned module.

    Attributes:
      axis: where the layers are in ``params``; None where all layers share them. In other collections it is axis 0.
      remat: whether activations are computed again in the backward pass.
    """

    block: Callable[[], nn.Module] = LinenBlock
    length: int = LAYERS
    axis: int | None = 0
    remat: bool = False

    def setup(self) -> None:
        self.layers = self.block()

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(layer: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return layer(x), None

        shared = self.axis is None
        scan = nn.scan(
            nn.remat(step) if self.remat else step,
            variable_axes={"batch_stats": 0, "cache": 0} | ({} if shared else {"params": self.axis}),
            variable_broadcast="params" if shared else False,
            split_rngs={"params": not shared},
            length=self.length,
        )
        return scan(self.layers, x, None)[0]


def state_axes(axis: int | None) -> nnx.StateAxes:
    return nnx.StateAxes({nnx.Param: axis, ...: 0})


def nnx_stacked(
    block: Callable[..., nnx.Module], rngs: nnx.Rngs, length: int = LAYERS, axis: int | None = 0
) -> nnx.Module:
    """Many modules in one: each leaf has an axis for them, in Params ``axis`` (None: shared), in others axis 0."""
    shared = axis is None
    make = nnx.vmap(
        lambda rngs: block(rngs=rngs), in_axes=None if shared else 0, out_axes=state_axes(axis), axis_size=length
    )
    return make(rngs) if shared else nnx.split_rngs(splits=length)(make)(rngs)


class NnxScan(nnx.Module):
    """As ``LinenScan``."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        block: Callable[..., nnx.Module] = NnxBlock,
        length: int = LAYERS,
        axis: int | None = 0,
        remat: bool = False,
    ) -> None:
        self.layers = nnx_stacked(block, rngs, length, axis)
        self.length = length
        self.axis = axis
        self.remat = remat

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(layer: nnx.Module, x: jax.Array) -> jax.Array:
            return layer(x)

        scan = nnx.scan(
            nnx.remat(step) if self.remat else step,
            in_axes=(state_axes(self.axis), nnx.Carry),
            out_axes=nnx.Carry,
            length=self.length,
        )
        return scan(self.layers, x)


# Containers ----------------------------------------------------------------------------------------------------------


def linen_sequential() -> nn.Module:
    return nn.Sequential([nn.Dense(HIDDEN), nn.relu, nn.Dense(CLASSES)])


def nnx_sequential(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Sequential(nnx.Linear(WIDTH, HIDDEN, rngs=rngs), nnx.relu, nnx.Linear(HIDDEN, CLASSES, rngs=rngs))


class LinenSequentialSetup(nn.Module):
    def setup(self) -> None:
        self.q = linen_sequential()
        self.scale = nn.Dense(CLASSES)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.q(x) * self.scale(x)


class NnxSequentialSetup(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.q = nnx_sequential(rngs)
        self.scale = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.q(x) * self.scale(x)


class LinenSequentialCompact(nn.Module):
    """The items are made, and therefore numbered, before the layer that runs first."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Sequential([nn.Dense(WIDTH), nn.relu, nn.Dense(WIDTH)])(nn.Dense(WIDTH)(x))


class NnxSequentialCompact(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        layers = [nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(2)]
        self.q = nnx.Sequential(layers[0], nnx.relu, layers[1])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.q(self.first(x))


class LinenContainers(nn.Module):
    def setup(self) -> None:
        self.blocks = [nn.Dense(WIDTH) for _ in range(12)]
        self.d = {"a": nn.Dense(HIDDEN), "b": [nn.Dense(HIDDEN), nn.Dense(HIDDEN)]}
        self.t = (nn.Dense(CLASSES),)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = x + jnp.tanh(block(x))
        first, second = self.d["b"]
        return self.t[0](self.d["a"](x) * jnp.tanh(first(x)) + jnp.exp(second(x)))


class NnxContainers(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List(nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(12))
        wide = [nnx.Linear(WIDTH, HIDDEN, rngs=rngs) for _ in range(3)]
        self.d = nnx.Dict(a=wide[0], b=nnx.List(wide[1:]))
        self.t = nnx.List([nnx.Linear(HIDDEN, CLASSES, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = x + jnp.tanh(block(x))
        first, second = self.d["b"]
        return self.t[0](self.d["a"](x) * jnp.tanh(first(x)) + jnp.exp(second(x)))


class LinenUnderscores(nn.Module):
    """``conv_1`` is an attribute, ``head_0`` the item of a list."""

    def setup(self) -> None:
        self.conv_1 = nn.Conv(WIDTH, (2,))
        self.conv_2 = nn.Conv(WIDTH, (2,))
        self.head = [nn.Dense(CLASSES)]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head[0](self.conv_2(jnp.tanh(self.conv_1(x))))


class NnxUnderscores(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv_1 = nnx.Conv(WIDTH, WIDTH, (2,), rngs=rngs)
        self.conv_2 = nnx.Conv(WIDTH, WIDTH, (2,), rngs=rngs)
        self.head = nnx.List([nnx.Linear(WIDTH, CLASSES, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head[0](self.conv_2(jnp.tanh(self.conv_1(x))))


class LinenFields(nn.Module):
    """Submodules made outside and passed in: they take the names of the fields."""

    torso: nn.Module
    head: nn.Module

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.torso(x))


class NnxFields(nnx.Module):
    def __init__(self, torso: nnx.Module, head: nnx.Module) -> None:
        self.head = head
        self.torso = torso

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.torso(x))


CONTAINERS = [
    pair(
        "sequential",
        linen_sequential,
        nnx_sequential,
        rows,
        same("params/layers_0", "layers/0", DENSE),
        same("params/layers_2", "layers/2", DENSE),
        by_convention=True,
    ),
    pair(
        "sequential_setup",
        LinenSequentialSetup,
        NnxSequentialSetup,
        rows,
        same("params/q/layers_0", "q/layers/0", DENSE),
        same("params/q/layers_2", "q/layers/2", DENSE),
        same("params/scale", "scale", DENSE),
        by_convention=True,
    ),
    pair(
        "sequential_compact",
        LinenSequentialCompact,
        NnxSequentialCompact,
        rows,
        same("params/Dense_0", "q/layers/0", DENSE),
        same("params/Dense_1", "q/layers/2", DENSE),
        same("params/Dense_2", "first", DENSE),
    ),
    pair(
        "lists_and_dicts_setup",
        LinenContainers,
        NnxContainers,
        rows,
        *(same(f"params/blocks_{index}", f"blocks/{index}", DENSE) for index in range(12)),
        same("params/d_a", "d/a", DENSE),
        same("params/d_b_0", "d/b/0", DENSE),
        same("params/d_b_1", "d/b/1", DENSE),
        same("params/t_0", "t/0", DENSE),
        by_convention=True,
    ),
    pair(
        "underscore_names_are_ambiguous",
        LinenUnderscores,
        NnxUnderscores,
        sequences,
        same("params/conv_1", "conv_1", DENSE),
        same("params/conv_2", "conv_2", DENSE),
        same("params/head_0", "head/0", DENSE),
        by_convention=True,
    ),
    pair(
        "modules_in_fields",
        lambda: LinenFields(torso=LinenBlock(), head=nn.Dense(CLASSES)),
        lambda rngs: NnxFields(torso=NnxBlock(rngs), head=nnx.Linear(WIDTH, CLASSES, rngs=rngs)),
        rows,
        same("params/torso", "torso", BLOCK),
        same("params/head", "head", DENSE),
        by_convention=True,
    ),
]


# Names ---------------------------------------------------------------------------------------------------------------


class LinenAutoNames(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(12):
            x = x + jnp.tanh(nn.Dense(WIDTH)(x))
        x = nn.LayerNorm()(x)
        # A name of its own does not use up a number: the next one is Dense_12.
        x = jnp.tanh(nn.Dense(WIDTH, name="mid")(x))
        return nn.Dense(WIDTH)(x)


class NnxOwnNames(nnx.Module):
    """What ``LinenAutoNames`` computes, with attributes of other names, defined in another order."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.mid = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.hidden = nnx.List(nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(12))

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.hidden:
            x = x + jnp.tanh(layer(x))
        return self.out(jnp.tanh(self.mid(self.norm(x))))


class LinenSameNames(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(nn.Dense(HIDDEN)(x))
        x = nn.LayerNorm()(x)
        return nn.Dense(CLASSES)(x)


class NnxSameNames(nnx.Module):
    """Attributes that are called as Linen calls its submodules by itself."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.Dense_0 = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.LayerNorm_0 = nnx.LayerNorm(HIDDEN, rngs=rngs)
        self.Dense_1 = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.Dense_1(self.LayerNorm_0(jnp.tanh(self.Dense_0(x))))


class LinenTransformedNames(nn.Module):
    """Each transformation of a class puts its own word in front and counts by itself."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(nn.remat(nn.Dense)(WIDTH)(x))
        x = jnp.tanh(nn.Dense(WIDTH)(x))
        x = jnp.tanh(nn.checkpoint(nn.Dense)(WIDTH)(x))
        x = jnp.tanh(nn.jit(nn.Dense)(WIDTH)(x))
        return nn.remat(nn.Dense)(WIDTH, name="named")(x)


class NnxTransformedNames(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        for name in ("first", "second", "third", "fourth", "named"):
            setattr(self, name, nnx.Linear(WIDTH, WIDTH, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        def call(layer: nnx.Linear, x: jax.Array) -> jax.Array:
            return layer(x)

        x = jnp.tanh(nnx.remat(call)(self.first, x))
        x = jnp.tanh(self.second(x))
        x = jnp.tanh(nnx.remat(call)(self.third, x))
        x = jnp.tanh(nnx.jit(call)(self.fourth, x))
        return nnx.remat(call)(self.named, x)


class LinenInner(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(nn.Dense(HIDDEN)(x))


class LinenOuter(nn.Module):
    """With ``share`` the inner module leaves no level in the paths."""

    share: bool

    def setup(self) -> None:
        self.inner = LinenInner()
        self.last = nn.Dense(CLASSES)
        if self.share:
            nn.share_scope(self, self.inner)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.inner(x))


class NnxInner(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.Dense_0 = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.Dense_0(x))


class NnxOuter(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.inner = NnxInner(rngs)
        self.last = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.inner(x))


class LinenLayerAdapter(nn.Module):
    """LoRA beside a layer in whose scope it lies, so that checkpoints of the plain layer still fit."""

    rank: int = 2

    def setup(self) -> None:
        self.layer = nn.Dense(HIDDEN)
        nn.share_scope(self, self.layer)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.param("A", nn.initializers.normal(), (WIDTH, self.rank))
        b = self.param("B", nn.initializers.zeros, (self.rank, HIDDEN))
        return self.layer(x) + x @ a @ b


class NnxLayerAdapter(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.A = nnx.Param(jnp.zeros((WIDTH, 2)))
        self.B = nnx.Param(jnp.zeros((2, HIDDEN)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x) + x @ self.A[...] @ self.B[...]


class LinenMixedOrder(nn.Module):
    """Auto names at every level; modules are numbered as they are made, and used in another order."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        class_head, gate, trunk = nn.Dense(CLASSES), nn.Dense(HIDDEN), nn.Dense(HIDDEN)
        block = LinenCompactBlock()
        hidden = trunk(LinenCompactBlock()(block(x)))
        return class_head(nn.sigmoid(gate(x)) * hidden)


class LinenCompactBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(nn.Dense(HIDDEN)(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH)(hidden)


class NnxMixedOrder(nnx.Module):
    """What ``LinenMixedOrder`` computes; nothing in names or order is the same."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.zoom = NnxRenamedBlock(rngs)
        self.projection = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.attic = NnxRenamedBlock(rngs)
        self.answer = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)
        self.filter = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.projection(self.attic(self.zoom(x)))
        return self.answer(nnx.sigmoid(self.filter(x)) * hidden)


class NnxRenamedBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.shrink = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.grow = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.centre = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.shrink(jnp.tanh(self.grow(self.centre(x))))


def compact_block(linen: str, nnx_path: str) -> Part:
    """``LinenCompactBlock`` as ``NnxRenamedBlock``."""
    return {
        **same(f"params/{linen}/LayerNorm_0", f"{nnx_path}/centre", NORM),
        **same(f"params/{linen}/Dense_0", f"{nnx_path}/grow", DENSE),
        **same(f"params/{linen}/Dense_1", f"{nnx_path}/shrink", DENSE),
    }


class LinenBranches(nn.Module):
    """Two branches of the same shapes: the one defined last runs first."""

    def setup(self) -> None:
        self.left = LinenBlock()
        self.right = LinenBlock()

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        right = self.right(x)
        return self.left(x), right


class NnxBranches(nnx.Module):
    """``b`` is Linen's left branch, ``a`` the right one."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.b = NnxBlock(rngs)
        self.a = NnxBlock(rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        left = self.b(x)
        return left, self.a(x)


class LinenGates(nn.Module):
    """Two layers of the same shape in one product, of which only one passes a sigmoid."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        value = nn.Dense(HIDDEN)(x)
        gate = nn.Dense(HIDDEN)(x)
        return nn.Dense(WIDTH)(nn.sigmoid(gate) * value)


class NnxGates(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.gate = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.output = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.value = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = nnx.sigmoid(self.gate(x))
        return self.output(gate * self.value(x))


NAMES = [
    pair(
        "compact_auto_names",
        LinenAutoNames,
        NnxOwnNames,
        rows,
        *(same(f"params/Dense_{index}", f"hidden/{index}", DENSE) for index in range(12)),
        same("params/LayerNorm_0", "norm", NORM),
        same("params/mid", "mid", DENSE),
        same("params/Dense_12", "out", DENSE),
    ),
    pair(
        "same_names",
        LinenSameNames,
        NnxSameNames,
        rows,
        same("params/Dense_0", "Dense_0", DENSE),
        same("params/LayerNorm_0", "LayerNorm_0", NORM),
        same("params/Dense_1", "Dense_1", DENSE),
        by_convention=True,
    ),
    pair(
        "remat_and_jit_names",
        LinenTransformedNames,
        NnxTransformedNames,
        rows,
        same("params/CheckpointDense_0", "first", DENSE),
        same("params/Dense_0", "second", DENSE),
        same("params/CheckpointDense_1", "third", DENSE),
        same("params/JitDense_0", "fourth", DENSE),
        same("params/named", "named", DENSE),
    ),
    pair(
        "share_scope",
        lambda: LinenOuter(share=True),
        NnxOuter,
        rows,
        same("params/Dense_0", "inner/Dense_0", DENSE),
        same("params/last", "last", DENSE),
    ),
    pair(
        "share_scope_off",
        lambda: LinenOuter(share=False),
        NnxOuter,
        rows,
        same("params/inner/Dense_0", "inner/Dense_0", DENSE),
        same("params/last", "last", DENSE),
        by_convention=True,
    ),
    pair(
        "share_scope_adapter",
        LinenLayerAdapter,
        NnxLayerAdapter,
        rows,
        same("params", "layer", DENSE),
        same("params", "", ("A", "B")),
    ),
    pair(
        "renamed_and_reordered",
        LinenMixedOrder,
        NnxMixedOrder,
        rows,
        same("params/Dense_0", "answer", DENSE),
        same("params/Dense_1", "filter", DENSE),
        same("params/Dense_2", "projection", DENSE),
        compact_block("LinenCompactBlock_0", "zoom"),
        compact_block("LinenCompactBlock_1", "attic"),
    ),
    pair(
        "branches_called_in_another_order",
        LinenBranches,
        NnxBranches,
        rows,
        same("params/left", "b", BLOCK),
        same("params/right", "a", BLOCK),
    ),
    pair(
        "gates_defined_in_another_order",
        LinenGates,
        NnxGates,
        rows,
        same("params/Dense_0", "value", DENSE),
        same("params/Dense_1", "gate", DENSE),
        same("params/Dense_2", "output", DENSE),
    ),
]


# Sharing -------------------------------------------------------------------------------------------------------------


class LinenUser(nn.Module):
    """A layer of its own around a module ``d`` that others use too."""

    d: nn.Module

    def setup(self) -> None:
        self.own = nn.Dense(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.own(jnp.tanh(self.d(x)))


class NnxUser(nnx.Module):
    def __init__(self, d: nnx.Module, rngs: nnx.Rngs) -> None:
        self.d = d
        self.own = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.own(jnp.tanh(self.d(x)))


class LinenSharedSetup(nn.Module):
    def setup(self) -> None:
        shared = nn.Dense(HIDDEN)
        self.l1 = LinenUser(shared)
        self.l2 = LinenUser(shared)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.l2(self.l1(x))


class NnxSharedSetup(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        shared = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.l1 = NnxUser(shared, rngs)
        self.l2 = NnxUser(shared, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.l2(self.l1(x))


class LinenSharedOrder(nn.Module):
    """Linen keeps the shared module where it is bound first, NNX at the first path of the alphabet."""

    def setup(self) -> None:
        shared = nn.Dense(HIDDEN)
        self.z = LinenUser(shared)
        self.a = LinenUser(shared)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.a(self.z(x))


class NnxSharedOrder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        shared = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.z = NnxUser(shared, rngs)
        self.a = NnxUser(shared, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.a(self.z(x))


class LinenSharedCompact(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shared = nn.Dense(HIDDEN)
        return LinenUser(shared)(LinenUser(shared)(x))


class LinenSharedKernel(nn.Module):
    """``b`` is ``a`` with another bias."""

    def setup(self) -> None:
        self.a = nn.Dense(HIDDEN)
        self.b_bias = self.param("b_bias", nn.initializers.zeros, (HIDDEN,))

    def __call__(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = self.a(x)
        return a, y @ self.a.variables["params"]["kernel"] + self.b_bias


class NnxSharedKernel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.b = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.b.kernel = self.a.kernel

    def __call__(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.a(x), self.b(y)


class LinenTiedEmbed(nn.Module):
    def setup(self) -> None:
        self.emb = nn.Embed(VOCABULARY, WIDTH)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.emb.attend(jnp.tanh(self.emb(tokens)))


class NnxUntiedHead(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.emb = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.head(jnp.tanh(self.emb(tokens)))


class LinenSiamese(nn.Module):
    """One encoder for two inputs, made where it is first used."""

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        encoder = LinenCompactBlock()
        return nn.Dense(CLASSES)(jnp.abs(jnp.tanh(encoder(x)) - jnp.tanh(encoder(y))))


class NnxSiamese(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.compare = nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.encoder = NnxRenamedBlock(rngs)

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return self.compare(jnp.abs(jnp.tanh(self.encoder(x)) - jnp.tanh(self.encoder(y))))


class LinenRepeated(nn.Module):
    """The layers of ALBERT: one block, several times."""

    def setup(self) -> None:
        self.block = LinenBlock()

    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(LAYERS):
            x = self.block(x)
        return x


class NnxRepeated(nnx.Module):
    """The block is in a list as often as it is used; its variables lie at the first place."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([NnxBlock(rngs)] * LAYERS)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x


def two_rows() -> tuple[jax.Array, jax.Array]:
    return wave(BATCH, WIDTH), jnp.cos(wave(BATCH, WIDTH))


SHARING = [
    pair(
        "shared_module_setup",
        LinenSharedSetup,
        NnxSharedSetup,
        rows,
        same("params/l1/d", "l1/d", DENSE),
        same("params/l1/own", "l1/own", DENSE),
        same("params/l2/own", "l2/own", DENSE),
        by_convention=True,
    ),
    pair(
        "shared_module_order",
        LinenSharedOrder,
        NnxSharedOrder,
        rows,
        same("params/z/d", "a/d", DENSE),
        same("params/z/own", "z/own", DENSE),
        same("params/a/own", "a/own", DENSE),
    ),
    # The call of the second user stands outside, so that one is made, and numbered, first.
    pair(
        "shared_module_compact",
        LinenSharedCompact,
        NnxSharedSetup,
        rows,
        same("params/Dense_0", "l1/d", DENSE),
        same("params/LinenUser_0/own", "l2/own", DENSE),
        same("params/LinenUser_1/own", "l1/own", DENSE),
    ),
    pair(
        "shared_kernel_variable",
        LinenSharedKernel,
        NnxSharedKernel,
        two_rows,
        same("params/a", "a", DENSE),
        {"params/b_bias": ("b/bias", None)},
    ),
    pair(
        "tied_embed_to_untied_head",
        LinenTiedEmbed,
        NnxUntiedHead,
        tokens,
        {"params/emb/embedding": ("emb/embedding + head/kernel", lambda array: (array, array.T))},
    ),
    pair(
        "siamese",
        LinenSiamese,
        NnxSiamese,
        two_rows,
        compact_block("LinenCompactBlock_0", "encoder"),
        same("params/Dense_0", "compare", DENSE),
    ),
    pair("one_block_several_times", LinenRepeated, NnxRepeated, rows, same("params/block", "blocks/0", BLOCK)),
    pair(
        "linen_shared_scan_to_nnx_one_block",
        lambda: LinenScan(axis=None),
        NnxRepeated,
        rows,
        same("params/layers", "blocks/0", BLOCK),
        tolerance=COMPILED,
    ),
]


# Scan ----------------------------------------------------------------------------------------------------------------


class LinenStep(nn.Module):
    """What ``nn.scan`` wants of a class: carry and input in, carry and output out."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        hidden = jnp.tanh(nn.Dense(HIDDEN)(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH)(hidden), None


class LinenScannedClass(nn.Module):
    """A scanned class, which names itself."""

    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        step = nn.remat(LinenStep, prevent_cse=False) if self.remat else LinenStep
        layers = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        return layers()(x, None)[0]


class NnxLaxScan(nnx.Module):
    """A scan written by hand over the state of stacked blocks."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx_stacked(NnxBlock, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        graphdef, state = nnx.split(self.layers)
        return jax.lax.scan(lambda x, layer: (nnx.merge(graphdef, layer)(x), None), x, state)[0]


OUTER, INNER = 2, 4
"""How often the outer and the inner of two nested stacks repeat."""


def square_rows() -> tuple[jax.Array]:
    return (wave(BATCH, LAYERS),)


LINEN_LAYERS = numbered("params/layers_")
NNX_LAYERS = numbered("layers/")
LINEN_NESTED = [f"params/layers_{outer}/layers_{inner}" for outer in range(OUTER) for inner in range(INNER)]
NNX_NESTED = [f"layers/{outer}/layers/{inner}" for outer in range(OUTER) for inner in range(INNER)]


def both_axes(array: np.ndarray) -> tuple[np.ndarray, ...]:
    """The layers of an array with two axes for them, the outer one first."""
    return tuple(array.reshape(OUTER * INNER, *array.shape[2:]))


def into_both_axes(*arrays: np.ndarray) -> np.ndarray:
    return np.stack(arrays).reshape(OUTER, INNER, *arrays[0].shape)


def joined(paths: Iterable[str], name: str) -> str:
    return " + ".join(f"{path}/{name}" for path in paths)


SCAN = [
    pair(
        "loop",
        LinenLoop,
        NnxLoop,
        rows,
        *(same(f"params/layers_{index}", f"layers/{index}", BLOCK) for index in range(LAYERS)),
        by_convention=True,
    ),
    *(
        # The statistics have their own axis: 0, wherever that of the parameters is.
        pair(
            f"scan_axis_{axis}",
            functools.partial(LinenScan, LinenStatsBlock, axis=axis),
            functools.partial(NnxScan, block=NnxStatsBlock, axis=axis),
            rows,
            same("params/layers", "layers", BLOCK),
            same("batch_stats/layers", "layers", STATS_BLOCK),
            by_convention=True,
        )
        for axis in (0, 1, -1)
    ),
    pair(
        "scan_auto_name",
        lambda: LinenScannedClass(remat=False),
        functools.partial(NnxScan, block=NnxRenamedBlock),
        rows,
        compact_block("ScanLinenStep_0", "layers"),
    ),
    pair(
        "scan_remat_auto_name",
        lambda: LinenScannedClass(remat=True),
        functools.partial(NnxScan, block=NnxRenamedBlock, remat=True),
        rows,
        compact_block("ScanCheckpointLinenStep_0", "layers"),
    ),
    pair("scan_by_hand", LinenScan, NnxLaxScan, rows, same("params/layers", "layers", BLOCK), by_convention=True),
    pair(
        "linen_scan_axis1_to_nnx_scan_axis0",
        lambda: LinenScan(LinenStatsBlock, axis=1),
        functools.partial(NnxScan, block=NnxStatsBlock),
        rows,
        same("params/layers", "layers", BLOCK, lambda array: np.moveaxis(array, 1, 0)),
        same("batch_stats/layers", "layers", STATS_BLOCK),
    ),
    pair(
        "linen_scan_axis0_to_nnx_scan_axis-1",
        LinenScan,
        functools.partial(NnxScan, axis=-1),
        rows,
        same("params/layers", "layers", BLOCK, lambda array: np.moveaxis(array, 0, -1)),
    ),
    pair(
        "scan_broadcast_params",
        lambda: LinenScan(LinenStatsBlock, axis=None),
        functools.partial(NnxScan, block=NnxStatsBlock, axis=None),
        rows,
        same("params/layers", "layers", BLOCK),
        same("batch_stats/layers", "layers", STATS_BLOCK),
        by_convention=True,
    ),
    pair(
        "linen_loop_to_nnx_scan", LinenLoop, NnxScan, rows, stacked(LINEN_LAYERS, "layers", BLOCK), tolerance=COMPILED
    ),
    pair(
        "linen_scan_to_nnx_list",
        LinenScan,
        NnxLoop,
        rows,
        unstacked("params/layers", NNX_LAYERS, BLOCK),
        tolerance=COMPILED,
    ),
    # Twelve layers: layers_10 must not come before layers_2.
    pair(
        "twelve_layers_linen_loop_to_nnx_scan",
        lambda: LinenLoop(length=12),
        functools.partial(NnxScan, length=12),
        rows,
        stacked(numbered("params/layers_", 12), "layers", BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "twelve_layers_linen_scan_to_nnx_list",
        lambda: LinenScan(length=12),
        functools.partial(NnxLoop, length=12),
        rows,
        unstacked("params/layers", numbered("layers/", 12), BLOCK),
        tolerance=COMPILED,
    ),
    # The axis of the parameters is 1, so 1-d leaves are (features, layers); that of the statistics is 0.
    pair(
        "linen_loop_to_nnx_scan_axis1",
        lambda: LinenLoop(LinenStatsBlock),
        functools.partial(NnxScan, block=NnxStatsBlock, axis=1),
        rows,
        stacked(LINEN_LAYERS, "layers", BLOCK, axis=1),
        stacked(numbered("batch_stats/layers_"), "layers", STATS_BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "linen_scan_axis1_to_nnx_list",
        lambda: LinenScan(LinenStatsBlock, axis=1),
        functools.partial(NnxLoop, block=NnxStatsBlock),
        rows,
        unstacked("params/layers", NNX_LAYERS, BLOCK, axis=1),
        unstacked("batch_stats/layers", NNX_LAYERS, STATS_BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "square_scan",
        lambda: LinenScan(LinenSquareBlock, axis=1),
        functools.partial(NnxScan, block=NnxSquareBlock, axis=1),
        square_rows,
        same("params/layers", "layers", SQUARE_BLOCK),
        by_convention=True,
    ),
    pair(
        "square_linen_scan_axis1_to_nnx_scan_axis0",
        lambda: LinenScan(LinenSquareBlock, axis=1),
        functools.partial(NnxScan, block=NnxSquareBlock),
        square_rows,
        same("params/layers", "layers", SQUARE_BLOCK, lambda array: np.moveaxis(array, 1, 0)),
    ),
    pair(
        "square_linen_loop_to_nnx_scan",
        lambda: LinenLoop(LinenSquareBlock),
        functools.partial(NnxScan, block=NnxSquareBlock),
        square_rows,
        stacked(LINEN_LAYERS, "layers", SQUARE_BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "square_linen_scan_axis-1_to_nnx_list",
        lambda: LinenScan(LinenSquareBlock, axis=-1),
        functools.partial(NnxLoop, block=NnxSquareBlock),
        square_rows,
        unstacked("params/layers", NNX_LAYERS, SQUARE_BLOCK, axis=-1),
        tolerance=COMPILED,
    ),
    pair(
        "linen_loop_to_nnx_scan_remat",
        LinenLoop,
        functools.partial(NnxScan, remat=True),
        rows,
        stacked(LINEN_LAYERS, "layers", BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "linen_scan_remat_to_nnx_list",
        lambda: LinenScan(remat=True),
        NnxLoop,
        rows,
        unstacked("params/layers", NNX_LAYERS, BLOCK),
        tolerance=COMPILED,
    ),
]


def linen_nested(stack: type[nn.Module], **kwargs: Any) -> Callable[[], nn.Module]:
    """A stack of stacks."""
    return lambda: stack(functools.partial(stack, length=INNER), length=OUTER, **kwargs)


def nnx_nested(stack: type[nnx.Module]) -> Callable[..., nnx.Module]:
    return functools.partial(stack, block=functools.partial(stack, length=INNER), length=OUTER)


NESTED = [
    pair(
        "nested_loop",
        linen_nested(LinenLoop),
        nnx_nested(NnxLoop),
        rows,
        *(same(a, b, BLOCK) for a, b in zip(LINEN_NESTED, NNX_NESTED, strict=True)),
        by_convention=True,
    ),
    pair(
        "nested_scan",
        linen_nested(LinenScan),
        nnx_nested(NnxScan),
        rows,
        same("params/layers/layers", "layers/layers", BLOCK),
        by_convention=True,
    ),
    pair(
        "linen_nested_loop_to_nnx_nested_scan",
        linen_nested(LinenLoop),
        nnx_nested(NnxScan),
        rows,
        {joined(LINEN_NESTED, name): (f"layers/layers/{name}", into_both_axes) for name in BLOCK},
        tolerance=COMPILED,
    ),
    pair(
        "linen_nested_scan_to_nnx_nested_list",
        linen_nested(LinenScan),
        nnx_nested(NnxLoop),
        rows,
        {f"params/layers/layers/{name}": (joined(NNX_NESTED, name), both_axes) for name in BLOCK},
        tolerance=COMPILED,
    ),
    # The outer scan puts its layers behind those of the inner one.
    pair(
        "linen_nested_scan_axis1_to_nnx_nested_list",
        linen_nested(LinenScan, axis=1),
        nnx_nested(NnxLoop),
        rows,
        {
            f"params/layers/layers/{name}": (
                joined(NNX_NESTED, name),
                lambda array: both_axes(np.swapaxes(array, 0, 1)),
            )
            for name in BLOCK
        },
        tolerance=COMPILED,
    ),
    # As for checkpointing every few layers: one loop on one side, two scans on the other.
    pair(
        "linen_flat_loop_to_nnx_nested_scan",
        lambda: LinenLoop(length=OUTER * INNER),
        nnx_nested(NnxScan),
        rows,
        {
            joined(numbered("params/layers_", OUTER * INNER), name): (f"layers/layers/{name}", into_both_axes)
            for name in BLOCK
        },
        tolerance=COMPILED,
    ),
    pair(
        "linen_nested_scan_to_nnx_flat_scan",
        linen_nested(LinenScan),
        functools.partial(NnxScan, length=OUTER * INNER),
        rows,
        {
            f"params/layers/layers/{name}": (f"layers/{name}", lambda array: np.stack(both_axes(array)))
            for name in BLOCK
        },
        tolerance=COMPILED,
    ),
]


# Scan of layers that need more than a rename -------------------------------------------------------------------------


def lstm(linen: Sequence[str], nnx_cells: Sequence[str], change: Callable[..., Any] = lambda cell: cell) -> Part:
    """The gates of LSTM cells, and the fused matrices of ``nnx.OptimizedLSTMCell``.

    Args:
      linen, nnx_cells: the paths of the cells.
      change: is given the fused leaf of each Linen cell.
    """

    def fused(*gates: np.ndarray) -> Any:
        return change(*(np.concatenate(gates[start : start + 4], -1) for start in range(0, len(gates), 4)))

    part: Part = {}
    for prefix, dense, name in (("i", "dense_i", "kernel"), ("h", "dense_h", "kernel"), ("h", "dense_h", "bias")):
        gates = " + ".join(f"{cell}/{prefix}{gate}/{name}" for cell in linen for gate in "ifgo")
        part[gates] = (" + ".join(f"{cell}/{dense}/{name}" for cell in nnx_cells), fused)
    return part


def gru(linen: str, nnx_cell: str) -> Part:
    """GRU cells: their gates are fused in NNX, which has no bias for the hidden state."""

    def fused(*gates: np.ndarray) -> np.ndarray:
        return np.concatenate(gates, -1)

    return {
        joined([f"{linen}/i{gate}" for gate in "rzn"], "kernel"): (f"{nnx_cell}/dense_i/kernel", fused),
        joined([f"{linen}/i{gate}" for gate in "rzn"], "bias"): (f"{nnx_cell}/dense_i/bias", fused),
        joined([f"{linen}/h{gate}" for gate in "rzn"], "kernel"): (f"{nnx_cell}/dense_h/kernel", fused),
    }


class LinenScanOverTime(nn.Module):
    """A recurrent layer written by hand: the cell is scanned over time, with the same parameters at every step."""

    cell: type[nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scanned = nn.scan(self.cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        cell = scanned(HIDDEN)
        return cell(cell.initialize_carry(jax.random.key(0), x[:, 0].shape), x)[1]


class NnxRecurrent(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, cell: Callable[..., nnx.Module]) -> None:
        self.recurrent = nnx.RNN(cell(WIDTH, HIDDEN, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.recurrent(x)


# Recurrent layers compile their loop for each layer, so two have to do.
LINEN_LSTM_BLOCK = functools.partial(LinenRecurrentBlock, nn.OptimizedLSTMCell)
NNX_LSTM_BLOCK = functools.partial(NnxRecurrentBlock, cell=nnx.OptimizedLSTMCell)

SCANNED_LAYERS = [
    pair(
        "scan_of_optimized_lstm",
        lambda: LinenScan(LINEN_LSTM_BLOCK, length=2),
        functools.partial(NnxScan, block=NNX_LSTM_BLOCK, length=2),
        sequences,
        lstm(["params/layers/rnn/cell"], ["layers/rnn/cell"]),
        same("params/layers/down", "layers/down", DENSE),
        tolerance=COMPILED,
        by_convention=True,
    ),
    pair(
        "linen_scan_of_optimized_lstm_to_nnx_list",
        lambda: LinenScan(LINEN_LSTM_BLOCK, length=2),
        functools.partial(NnxLoop, block=NNX_LSTM_BLOCK, length=2),
        sequences,
        lstm(["params/layers/rnn/cell"], [f"{layer}/rnn/cell" for layer in NNX_LAYERS[:2]], tuple),
        unstacked("params/layers/down", [f"{layer}/down" for layer in NNX_LAYERS[:2]], DENSE),
        tolerance=COMPILED,
    ),
    pair(
        "linen_loop_of_optimized_lstm_to_nnx_scan",
        lambda: LinenLoop(LINEN_LSTM_BLOCK, length=2),
        functools.partial(NnxScan, block=NNX_LSTM_BLOCK, length=2),
        sequences,
        lstm([f"{layer}/rnn/cell" for layer in LINEN_LAYERS[:2]], ["layers/rnn/cell"], lambda *cells: np.stack(cells)),
        stacked([f"{layer}/down" for layer in LINEN_LAYERS[:2]], "layers/down", DENSE),
        tolerance=COMPILED,
    ),
    pair(
        "scan_of_gru",
        lambda: LinenScan(functools.partial(LinenRecurrentBlock, nn.GRUCell)),
        functools.partial(NnxScan, block=functools.partial(NnxRecurrentBlock, cell=nnx.GRUCell)),
        sequences,
        gru("params/layers/rnn/cell", "layers/rnn/cell"),
        same("params/layers/down", "layers/down", DENSE),
        tolerance=COMPILED,
        lossy=("params/layers/rnn/cell/hn/bias",),
        by_convention=True,
    ),
    pair(
        "linen_scan_of_attention_to_nnx_list",
        lambda: LinenScan(LinenAttentionBlock),
        functools.partial(NnxLoop, block=NnxAttentionBlock),
        sequences,
        unstacked("params/layers/attention", [f"{layer}/attention" for layer in NNX_LAYERS], ATTENTION),
        tolerance=COMPILED,
    ),
    pair(
        "linen_loop_of_attention_to_nnx_scan",
        lambda: LinenLoop(LinenAttentionBlock),
        functools.partial(NnxScan, block=NnxAttentionBlock),
        sequences,
        stacked([f"{layer}/attention" for layer in LINEN_LAYERS], "layers/attention", ATTENTION),
        tolerance=COMPILED,
    ),
    # One step of decoding: the cache of every layer is scanned with its parameters.
    pair(
        "scan_of_attention_with_cache",
        lambda: LinenScan(functools.partial(LinenAttentionBlock, decode=True)),
        functools.partial(NnxScan, block=functools.partial(NnxAttentionBlock, decode=True)),
        lambda: (wave(BATCH, 1, WIDTH),),
        same("params/layers/attention", "layers/attention", ATTENTION),
        same("cache/layers/attention", "layers/attention", CACHE),
        linen_kwargs={"mutable": ["cache"]},
        init_inputs=sequences,
        by_convention=True,
    ),
    pair(
        "linen_scan_over_time_to_nnx_rnn",
        lambda: LinenScanOverTime(nn.LSTMCell),
        functools.partial(NnxRecurrent, cell=nnx.LSTMCell),
        sequences,
        *(same(f"params/ScanLSTMCell_0/i{gate}", f"recurrent/cell/i{gate}", ("kernel",)) for gate in "igo"),
        same("params/ScanLSTMCell_0/if", "recurrent/cell/if_", ("kernel",)),
        *(same(f"params/ScanLSTMCell_0/h{gate}", f"recurrent/cell/h{gate}", DENSE) for gate in "ifgo"),
    ),
    pair(
        "linen_scan_over_time_to_nnx_rnn_of_optimized_lstm",
        lambda: LinenScanOverTime(nn.OptimizedLSTMCell),
        functools.partial(NnxRecurrent, cell=nnx.OptimizedLSTMCell),
        sequences,
        lstm(["params/ScanOptimizedLSTMCell_0"], ["recurrent/cell"]),
    ),
]


# vmap -----------------------------------------------------------------------------------------------------------------

MEMBERS = 4


class LinenVmapDense(nn.Module):
    """An ensemble: every member has parameters of its own and is given the same input."""

    axis: int | None = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shared = self.axis is None
        ensemble = nn.vmap(
            nn.Dense,
            variable_axes={"params": self.axis},
            split_rngs={"params": not shared},
            in_axes=1 if shared else None,
            axis_size=None if shared else MEMBERS,
        )
        return ensemble(HIDDEN)(x)


class NnxVmapLinear(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, axis: int = 0) -> None:
        self.ensemble = nnx_stacked(functools.partial(nnx.Linear, WIDTH, HIDDEN), rngs, MEMBERS, axis)
        self.axis = axis

    def __call__(self, x: jax.Array) -> jax.Array:
        def call(member: nnx.Module, x: jax.Array) -> jax.Array:
            return member(x)

        return nnx.vmap(call, in_axes=(state_axes(self.axis), None))(self.ensemble, x)


class LinenVmapExperts(nn.Module):
    """Every expert is given an input of its own."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        experts = nn.vmap(
            LinenStatsBlock, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, in_axes=0
        )
        return experts(name="experts")(x)


class LinenListOfExperts(nn.Module):
    def setup(self) -> None:
        self.experts = [LinenStatsBlock() for _ in range(MEMBERS)]

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.stack([expert(part) for expert, part in zip(self.experts, x, strict=True)])


class NnxVmapExperts(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.experts = nnx_stacked(NnxStatsBlock, rngs, MEMBERS)

    def __call__(self, x: jax.Array) -> jax.Array:
        def call(expert: nnx.Module, x: jax.Array) -> jax.Array:
            return expert(x)

        return nnx.vmap(call, in_axes=(0, 0))(self.experts, x)


class NnxListOfExperts(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.experts = nnx.List(NnxStatsBlock(rngs) for _ in range(MEMBERS))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.stack([expert(part) for expert, part in zip(self.experts, x, strict=True)])


class NnxOneLinear(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.moveaxis(self.linear(x), 1, 0)


def expert_inputs() -> tuple[jax.Array]:
    return (wave(MEMBERS, BATCH, WIDTH),)


NNX_EXPERTS = numbered("experts/", MEMBERS)
VMAP = [
    *(
        pair(
            name,
            functools.partial(LinenVmapDense, axis),
            functools.partial(NnxVmapLinear, axis=axis),
            rows,
            same("params/VmapDense_0", "ensemble", DENSE),
        )
        for name, axis in (("vmap_ensemble", 0), ("vmap_ensemble_axis1", 1))
    ),
    pair(
        "linen_vmap_axis1_to_nnx_vmap_axis0",
        functools.partial(LinenVmapDense, 1),
        NnxVmapLinear,
        rows,
        same("params/VmapDense_0", "ensemble", DENSE, lambda array: np.moveaxis(array, 1, 0)),
    ),
    pair(
        "linen_vmap_of_one_layer",
        functools.partial(LinenVmapDense, None),
        NnxOneLinear,
        sequences,
        same("params/VmapDense_0", "linear", DENSE),
    ),
    pair(
        "vmap_experts",
        LinenVmapExperts,
        NnxVmapExperts,
        expert_inputs,
        same("params/experts", "experts", BLOCK),
        same("batch_stats/experts", "experts", STATS_BLOCK),
        by_convention=True,
    ),
    pair(
        "linen_vmap_experts_to_nnx_list",
        LinenVmapExperts,
        NnxListOfExperts,
        expert_inputs,
        unstacked("params/experts", NNX_EXPERTS, BLOCK),
        unstacked("batch_stats/experts", NNX_EXPERTS, STATS_BLOCK),
        tolerance=COMPILED,
    ),
    pair(
        "linen_list_of_experts_to_nnx_vmap",
        LinenListOfExperts,
        NnxVmapExperts,
        expert_inputs,
        stacked(numbered("params/experts_", MEMBERS), "experts", BLOCK),
        stacked(numbered("batch_stats/experts_", MEMBERS), "experts", STATS_BLOCK),
        tolerance=COMPILED,
    ),
]


# Own variables and metadata ------------------------------------------------------------------------------------------


class Count(nnx.Variable):
    """A collection of one's own."""


class EmaStat(nnx.Variable):
    """Another one."""


class Adapter(nnx.Param):
    """A Param of another class: trained apart from the others, but still among Linen's ``params``."""


class LinenOwnCollections(nn.Module):
    """Counts its calls and averages what it has seen; both show in the output."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        count = self.variable("counter", "count", lambda: jnp.zeros((), jnp.int32))
        average = self.variable("ema_stats", "avg", jnp.zeros, (WIDTH,))
        out = nn.Dense(HIDDEN, name="dense")(x - average.value) * count.value
        if self.is_mutable_collection("counter") and not self.is_initializing():
            count.value = count.value + 1
            average.value = 0.5 * average.value + 0.5 * x.mean(0)
        return out


class NnxOwnVariables(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.count = Count(jnp.zeros((), jnp.int32))
        self.avg = EmaStat(jnp.zeros(WIDTH))
        self.dense = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.dense(x - self.avg[...]) * self.count[...]
        self.count[...] = self.count[...] + 1
        self.avg[...] = 0.5 * self.avg[...] + 0.5 * x.mean(0)
        return out


class LinenOwnParams(nn.Module):
    """Parameters without a layer, one of them a dict of arrays."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def weights(key: jax.Array) -> dict[str, jax.Array]:
            return {"u": jnp.zeros((WIDTH, HIDDEN)), "v": jnp.zeros((HIDDEN, WIDTH))}

        both = self.param("weights", weights)
        shift = self.param("shift", nn.initializers.zeros, (WIDTH,))
        return jnp.tanh((x + shift) @ both["u"]) @ both["v"]


class NnxOwnParams(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.weights = nnx.Param({"u": jnp.zeros((WIDTH, HIDDEN)), "v": jnp.zeros((HIDDEN, WIDTH))})
        self.shift = nnx.Param(jnp.zeros(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        both = self.weights.get_value()
        return jnp.tanh((x + self.shift[...]) @ both["u"]) @ both["v"]


class LinenSubclassed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(HIDDEN)(x * self.param("gain", nn.initializers.ones, (WIDTH,)))


class NnxSubclassed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.gain = Adapter(jnp.ones(WIDTH))
        self.linear = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x * self.gain[...])


Annotate = Callable[..., Callable[..., Any]]


class LinenAnnotated(nn.Module):
    """Sharding names, which put the kernels in boxes."""

    annotate: Annotate

    def setup(self) -> None:
        kernel_init = nn.initializers.lecun_normal()
        self.up = nn.Dense(HIDDEN, kernel_init=self.annotate(kernel_init, ("embed", "mlp")))
        self.down = nn.Dense(WIDTH, kernel_init=self.annotate(kernel_init, ("mlp", "embed")))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.up(x)))


class NnxAnnotated(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        kernel_init = nnx.initializers.lecun_normal()
        up_init = nnx.with_partitioning(kernel_init, ("embed", "mlp"))
        down_init = nnx.with_partitioning(kernel_init, ("mlp", "embed"))
        self.up = nnx.Linear(WIDTH, HIDDEN, kernel_init=up_init, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, kernel_init=down_init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.up(x)))


def without_mesh(make: Callable[..., nnx.Module]) -> Callable[..., nnx.Module]:
    """Sharding names alone, without devices to put anything on."""

    def made(rngs: nnx.Rngs) -> nnx.Module:
        with nnx.use_eager_sharding(False):
            return make(rngs=rngs)

    return made


class LinenAnnotatedScan(nn.Module):
    """The scan adds a name for its axis to the names in the boxes."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scan = nn.scan(
            lambda layer, x, _: (layer(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(LinenAnnotated(nn.with_partitioning, name="layers"), x, None)[0]


class NnxAnnotatedScan(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        named = {nnx.PARTITION_NAME: "layers"}
        make = nnx.vmap(NnxAnnotated, in_axes=0, out_axes=0, transform_metadata=named)
        self.layers = nnx.split_rngs(splits=LAYERS)(make)(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(layer: nnx.Module, x: jax.Array) -> jax.Array:
            return layer(x)

        named = {nnx.PARTITION_NAME: "layers"}
        return nnx.scan(step, in_axes=(0, nnx.Carry), out_axes=nnx.Carry, transform_metadata=named)(self.layers, x)


class LinenLora(nn.Module):
    """Linen has no LoRA of its own; this is how it is written by hand."""

    rank: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.param("lora_a", nn.initializers.normal(), (WIDTH, self.rank))
        b = self.param("lora_b", nn.initializers.zeros, (self.rank, HIDDEN))
        return x @ a @ b + nn.Dense(HIDDEN, name="base")(x)


def nnx_lora(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.LoRA(WIDTH, 2, HIDDEN, base_module=nnx.Linear(WIDTH, HIDDEN, rngs=rngs), rngs=rngs)


MLP = (*under("up", DENSE), *under("down", DENSE))

VARIABLES = [
    pair(
        "custom_collections",
        LinenOwnCollections,
        NnxOwnVariables,
        rows,
        same("params/dense", "dense", DENSE),
        {"counter/count": ("count", None), "ema_stats/avg": ("avg", None)},
        linen_kwargs={"mutable": ["counter", "ema_stats"]},
    ),
    pair(
        "param_holding_a_dict",
        LinenOwnParams,
        NnxOwnParams,
        rows,
        same("params", "", ("weights/u", "weights/v", "shift")),
        by_convention=True,
    ),
    pair(
        "param_of_another_class",
        LinenSubclassed,
        NnxSubclassed,
        rows,
        same("params/Dense_0", "linear", DENSE),
        {"params/gain": ("gain", None)},
    ),
    *(
        pair(
            name,
            functools.partial(LinenAnnotated, annotate),
            without_mesh(NnxAnnotated),
            rows,
            same("params", "", MLP),
            by_convention=True,
        )
        for name, annotate in (
            ("partitioned", nn.with_partitioning),
            ("logically_partitioned", nn.with_logical_partitioning),
        )
    ),
    pair(
        "partitioned_scan",
        LinenAnnotatedScan,
        without_mesh(NnxAnnotatedScan),
        rows,
        same("params/layers", "layers", MLP),
        by_convention=True,
    ),
    pair(
        "lora_base_module",
        LinenLora,
        nnx_lora,
        rows,
        same("params", "", ("lora_a", "lora_b")),
        same("params/base", "base_module", DENSE),
    ),
]


# Bridges -------------------------------------------------------------------------------------------------------------


class LinenBridgedLora(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return bridge.to_linen(nnx.LoRALinear, WIDTH, HIDDEN, lora_rank=2, name="m")(x)


class NnxLora(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.m = nnx.LoRALinear(WIDTH, HIDDEN, lora_rank=2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.m(x)


class NnxBridged(nnx.Module):
    """A list, statistics and random state, to be wrapped as a Linen module."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List(NnxStatsBlock(rngs) for _ in range(2))
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class NnxSpectralNorm(nnx.Module):
    """The keys of its statistics are tuples."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.SpectralNorm(nnx.Linear(WIDTH, HIDDEN, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(x, update_stats=False)


class LinenBridged(nn.Module):
    """Auto names, statistics and a collection of its own, to be wrapped as an NNX module."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        count = self.variable("counter", "count", lambda: jnp.ones(()))
        x = nn.Dense(HIDDEN)(x) * count.value
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(CLASSES)(jnp.tanh(x))


class LinenAroundNnx(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(CLASSES, name="head")(bridge.to_linen(NnxBlock, name="block")(x))


class NnxAroundLinen(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.block = bridge.lazy_init(bridge.ToNNX(LinenBlock(), rngs=rngs), *rows())
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.block(x))


def wrapped(make: Callable[[], nn.Module], inputs: Callable[[], tuple[Any, ...]]) -> Callable[..., nnx.Module]:
    """A Linen module as an NNX module."""
    return lambda rngs: bridge.lazy_init(bridge.ToNNX(make(), rngs=rngs), *inputs())


def linen_mgu() -> nn.Module:
    """A layer that NNX lacks."""
    return nn.RNN(nn.MGUCell(HIDDEN))


BRIDGES = [
    pair(
        "lora_linear_tolinen",
        LinenBridgedLora,
        NnxLora,
        rows,
        same("params/m", "m", DENSE),
        same("LoRAParam/m", "m", ("lora/lora_a", "lora/lora_b")),
        by_convention=True,
    ),
    # Items of lists keep their level: the keys are 0 and 1, not layers_0 and layers_1.
    pair(
        "bridge_to_linen",
        lambda: bridge.to_linen(NnxBridged),
        NnxBridged,
        rows,
        *(same(f"params/layers/{index}", f"layers/{index}", BLOCK) for index in range(2)),
        *(same(f"batch_stats/layers/{index}", f"layers/{index}", STATS_BLOCK) for index in range(2)),
        same("params/head", "head", DENSE),
    ),
    pair(
        "bridge_to_linen_spectral_norm",
        lambda: bridge.to_linen(NnxSpectralNorm),
        NnxSpectralNorm,
        rows,
        same("params/norm/layer_instance", "norm/layer_instance", DENSE),
        same("batch_stats/norm/batch_stats", "norm/batch_stats", ("('kernel', 'u')", "('kernel', 'sigma')")),
    ),
    # A Param with sharding names becomes a box again, of a class of its own.
    pair(
        "bridge_to_linen_partitioned",
        lambda: bridge.ToLinen(without_mesh(NnxAnnotated)),
        without_mesh(NnxAnnotated),
        rows,
        same("params", "", MLP),
        by_convention=True,
    ),
    pair(
        "bridge_to_nnx",
        LinenBridged,
        wrapped(LinenBridged, rows),
        rows,
        same("params/Dense_0", "Dense_0", DENSE),
        batch_norm("BatchNorm_0", "BatchNorm_0"),
        same("params/Dense_1", "Dense_1", DENSE),
        {"counter/count": ("count", None)},
        by_convention=True,
    ),
    pair(
        "bridge_to_nnx_mgu_cell",
        linen_mgu,
        wrapped(linen_mgu, sequences),
        sequences,
        *(same(f"params/cell/{gate}", f"cell/{gate}", DENSE) for gate in ("if", "in", "hn")),
        same("params/cell/hf", "cell/hf", ("kernel",)),
        by_convention=True,
    ),
    pair(
        "bridges_inside_models",
        LinenAroundNnx,
        NnxAroundLinen,
        rows,
        same("params/block", "block", BLOCK),
        same("params/head", "head", DENSE),
        by_convention=True,
    ),
]


# Whole models --------------------------------------------------------------------------------------------------------


class LinenResidual(nn.Module):
    channels: int
    strides: int
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not self.train)
        y = nn.Conv(self.channels, (3, 3), self.strides, use_bias=False)(x)
        y = nn.Conv(self.channels, (3, 3), use_bias=False)(nn.relu(norm()(y)))
        y = norm()(y)
        if x.shape != y.shape:
            x = nn.Conv(self.channels, (1, 1), self.strides, use_bias=False, name="projection")(x)
            x = norm(name="projection_norm")(x)
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        for channels, strides in ((4, 1), (5, 2), (5, 1)):
            x = LinenResidual(channels, strides, train)(x)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class NnxResidual(nnx.Module):
    def __init__(self, inputs: int, channels: int, strides: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(inputs, channels, (3, 3), strides, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(channels, rngs=rngs)
        self.conv2 = nnx.Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(channels, rngs=rngs)
        shortcut = None
        if inputs != channels or strides != 1:
            convolution = nnx.Conv(inputs, channels, (1, 1), strides, use_bias=False, rngs=rngs)
            shortcut = nnx.Sequential(convolution, nnx.BatchNorm(channels, rngs=rngs))
        self.shortcut = shortcut

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        return nnx.relu((x if self.shortcut is None else self.shortcut(x)) + y)


class NnxResNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.head = nnx.Linear(5, CLASSES, rngs=rngs)
        self.stem = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
        self.stem_norm = nnx.BatchNorm(4, rngs=rngs)
        sizes = ((4, 4, 1), (4, 5, 2), (5, 5, 1))
        self.blocks = nnx.List(NnxResidual(*size, rngs=rngs) for size in sizes)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def residual(linen: str, nnx_path: str) -> Part:
    return {
        **same(f"params/{linen}/Conv_0", f"{nnx_path}/conv1", ("kernel",)),
        **batch_norm(f"{linen}/BatchNorm_0", f"{nnx_path}/norm1"),
        **same(f"params/{linen}/Conv_1", f"{nnx_path}/conv2", ("kernel",)),
        **batch_norm(f"{linen}/BatchNorm_1", f"{nnx_path}/norm2"),
    }


RESNET = merged(
    same("params/Conv_0", "stem", ("kernel",)),
    batch_norm("BatchNorm_0", "stem_norm"),
    *(residual(f"LinenResidual_{index}", f"blocks/{index}") for index in range(3)),
    same("params/LinenResidual_1/projection", "blocks/1/shortcut/layers/0", ("kernel",)),
    batch_norm("LinenResidual_1/projection_norm", "blocks/1/shortcut/layers/1"),
    same("params/Dense_0", "head", DENSE),
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


class LinenVit(nn.Module):
    """Parameters of the model itself beside those of its layers, which have auto names."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(WIDTH, (4, 4), 4)(x).reshape(BATCH, -1, WIDTH)
        class_token = self.param("cls", nn.initializers.zeros, (1, 1, WIDTH))
        x = jnp.concatenate([jnp.tile(class_token, (BATCH, 1, 1)), x], 1)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, x.shape[1], WIDTH))
        for _ in range(2):
            x = LinenVitBlock()(x)
        return nn.Dense(CLASSES)(nn.LayerNorm()(x)[:, 0])


class LinenVitBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, qkv_features=QKV_FEATURES)(y, y)
        y = nn.Dense(HIDDEN)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(y))


class NnxVit(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.patches = nnx.Conv(3, WIDTH, (4, 4), 4, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((1, LENGTH, WIDTH)))
        self.class_token = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        self.encoder = nnx.Sequential(*(NnxEncoderBlock(rngs) for _ in range(2)))
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patches(x).reshape(BATCH, -1, WIDTH)
        x = jnp.concatenate([jnp.tile(self.class_token[...], (BATCH, 1, 1)), x], 1)
        return self.head(self.norm(self.encoder(x + self.positions[...]))[:, 0])


def vit_block(linen: str, nnx_path: str) -> Part:
    return {
        **same(f"params/{linen}/LayerNorm_0", f"{nnx_path}/attention_norm", NORM),
        **same(f"params/{linen}/MultiHeadDotProductAttention_0", f"{nnx_path}/attention", ATTENTION),
        **same(f"params/{linen}/LayerNorm_1", f"{nnx_path}/mlp_norm", NORM),
        **same(f"params/{linen}/Dense_0", f"{nnx_path}/up", DENSE),
        **same(f"params/{linen}/Dense_1", f"{nnx_path}/down", DENSE),
    }


class LinenVae(nn.Module):
    """Mean and variance have the same shapes and the same input.

    In the last line the outer layer is made, and numbered, before the inner one.
    """

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        hidden = nn.relu(nn.Dense(HIDDEN, name="fc1")(x))
        mean = nn.Dense(2, name="fc2_mean")(hidden)
        log_variance = nn.Dense(2, name="fc2_logvar")(hidden)
        z = mean + noise * jnp.exp(0.5 * log_variance)
        return nn.Dense(WIDTH)(nn.relu(nn.Dense(HIDDEN)(z))), mean, log_variance


class NnxVae(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.decoder = nnx.List([nnx.Linear(2, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, WIDTH, rngs=rngs)])
        self.log_variance = nnx.Linear(HIDDEN, 2, rngs=rngs)
        self.encoder = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.mean = nnx.Linear(HIDDEN, 2, rngs=rngs)

    def __call__(self, x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        hidden = nnx.relu(self.encoder(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean + noise * jnp.exp(0.5 * log_variance)
        return self.decoder[1](nnx.relu(self.decoder[0](z))), mean, log_variance


MODELS = [
    pair("model_resnet_eval", LinenResNet, NnxResNet, images, RESNET, prepare=lambda model: model.eval()),
    pair(
        "model_resnet_train",
        LinenResNet,
        NnxResNet,
        images,
        RESNET,
        linen_kwargs={"train": True, "mutable": ["batch_stats"]},
        prepare=lambda model: model.train(),
    ),
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
    pair(
        "model_vit",
        LinenVit,
        NnxVit,
        # Six patches; with the class token the sequence is as long as those of the other models.
        lambda: (wave(BATCH, 4, 4 * (LENGTH - 1), 3),),
        same("params/Conv_0", "patches", DENSE),
        {"params/cls": ("class_token", None), "params/pos_embedding": ("positions", None)},
        vit_block("LinenVitBlock_0", "encoder/layers/0"),
        vit_block("LinenVitBlock_1", "encoder/layers/1"),
        same("params/LayerNorm_0", "norm", NORM),
        same("params/Dense_0", "head", DENSE),
    ),
    pair(
        "model_vae",
        LinenVae,
        NnxVae,
        lambda: (wave(BATCH, WIDTH), wave(BATCH, 2)),
        same("params/fc1", "encoder", DENSE),
        same("params/fc2_mean", "mean", DENSE),
        same("params/fc2_logvar", "log_variance", DENSE),
        same("params/Dense_0", "decoder/1", DENSE),
        same("params/Dense_1", "decoder/0", DENSE),
    ),
]

PAIRS: list[Pair] = [
    *CONTAINERS,
    *NAMES,
    *SHARING,
    *SCAN,
    *NESTED,
    *SCANNED_LAYERS,
    *VMAP,
    *VARIABLES,
    *BRIDGES,
    *MODELS,
]
