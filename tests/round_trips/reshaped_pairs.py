"""What the arrays of the models in reshaped_models.py are on the other side.

The translations are written by hand, in NumPy, from how both frameworks store these layers; they know nothing of the
converter. The arrays of a model are flat dicts: ``params/layers_0/dense/kernel`` in Linen, ``layers/dense/kernel`` in
NNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from .reshaped_models import (
    FEATURES,
    FEW,
    MANY,
    LinenGru,
    LinenLoop,
    LinenLstm,
    LinenNamed,
    LinenNorms,
    LinenPieces,
    LinenScan,
    LinenTied,
    NnxGru,
    NnxList,
    NnxLstm,
    NnxNamed,
    NnxNorms,
    NnxPieces,
    NnxScan,
    NnxUntied,
)

Arrays = dict[str, np.ndarray]
"""The arrays of a model, or of one of their mirrors in an optimizer state, by path."""

# Moving arrays -------------------------------------------------------------------------------------------------------

Translate = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


class Move(NamedTuple):
    """Arrays of Linen that are arrays of NNX, and how to make the ones from the others."""

    linen: tuple[str, ...]
    nnx: tuple[str, ...]
    to_nnx: Translate
    to_linen: Translate


def renamed(linen: str, nnx: str) -> Move:
    return Move((linen,), (nnx,), list, list)


def below(linen: str, nnx: str, *names: str) -> list[Move]:
    """Several variables of one layer under the same names."""
    return [renamed(f"{linen}/{name}", f"{nnx}/{name}") for name in names]


def fused(linen: Sequence[str], nnx: str) -> Move:
    return Move(
        tuple(linen),
        (nnx,),
        lambda gates: [np.concatenate(gates, axis=-1)],
        lambda whole: np.split(whole[0], len(linen), axis=-1),
    )


def flattened(linen: str, nnx: str) -> Move:
    return Move((linen,), (nnx,), lambda a: [a[0].reshape(15)], lambda a: [a[0].reshape(3, 5)])


def stacked_in_nnx(linen: Sequence[str], nnx: str) -> Move:
    return Move(tuple(linen), (nnx,), lambda layers: [np.stack(layers)], lambda whole: list(whole[0]))


def stacked_in_linen(linen: str, nnx: Sequence[str], axis: int) -> Move:
    return Move(
        (linen,),
        tuple(nnx),
        lambda whole: list(np.moveaxis(whole[0], axis, 0)),
        lambda layers: [np.stack(layers, axis=axis)],
    )


def other_axis(linen: str, nnx: str) -> Move:
    return Move((linen,), (nnx,), lambda a: [np.moveaxis(a[0], 1, 0)], lambda a: [np.moveaxis(a[0], 0, 1)])


OF_BLOCK = {
    "dense/kernel": "params",
    "dense/bias": "params",
    "norm/scale": "params",
    "norm/bias": "params",
    "norm/mean": "batch_stats",
    "norm/var": "batch_stats",
}
HEAD = tuple(below("params/head", "head", "kernel", "bias"))


class Pair(NamedTuple):
    """A model on both sides, what it is called with, and what its arrays become."""

    linen: Callable[[], nn.Module]
    nnx: Callable[..., nnx.Module]
    inputs: tuple[Any, ...]
    moves: tuple[Move, ...]

    def to_nnx(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        made: Arrays = {}
        for move in self.moves:
            made |= zip(move.nnx, move.to_nnx([arrays[name] for name in move.linen]), strict=True)
        return made

    def to_linen(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        made: Arrays = {}
        for move in self.moves:
            made |= zip(move.linen, move.to_linen([arrays[name] for name in move.nnx]), strict=True)
        return made


ROWS = (jnp.sin(jnp.arange(20.0)).reshape(5, FEATURES),)
FRAMES = (jnp.sin(jnp.arange(30.0)).reshape(2, 3, 5),)


def _with_rngs(module: Callable[..., nnx.Module], *args: Any) -> Callable[..., nnx.Module]:
    return lambda rngs=None: module(*args, nnx.Rngs(0) if rngs is None else rngs)


def _cell(gates: str, *leaves: str) -> list[Move]:
    """The layers of a cell, one for each gate, that NNX fuses into ``dense_i`` and ``dense_h``."""
    return [
        fused([f"params/rnn/cell/{side}{gate}/{leaf}" for gate in gates], f"rnn/cell/dense_{side}/{leaf}")
        for side, leaf in (each.split("/") for each in leaves)
    ]


PAIRS: dict[str, Pair] = {
    "names": Pair(
        LinenNamed,
        _with_rngs(NnxNamed),
        ROWS,
        (
            *below("params/Dense_1", "expand", "kernel", "bias"),
            *below("params/BatchNorm_0", "centre", "scale", "bias"),
            *below("batch_stats/BatchNorm_0", "centre", "mean", "var"),
            *below("params/Dense_0", "contract", "kernel", "bias"),
            *below("params/Dense_2", "logits", "kernel", "bias"),
        ),
    ),
    "loop and list": Pair(
        LinenLoop,
        _with_rngs(NnxList, MANY),
        ROWS,
        (
            *(renamed(f"{of}/layers_{i}/{x}", f"layers/{i}/{x}") for i in range(MANY) for x, of in OF_BLOCK.items()),
            *HEAD,
        ),
    ),
    "loop and scan": Pair(
        LinenLoop,
        _with_rngs(NnxScan, MANY),
        ROWS,
        (
            *(
                stacked_in_nnx([f"{of}/layers_{i}/{x}" for i in range(MANY)], f"layers/{x}")
                for x, of in OF_BLOCK.items()
            ),
            *HEAD,
        ),
    ),
    "scan and list": Pair(
        LinenScan,
        _with_rngs(NnxList, FEW),
        ROWS,
        (
            *(
                stacked_in_linen(f"{of}/layers/{x}", [f"layers/{i}/{x}" for i in range(FEW)], int(of == "params"))
                for x, of in OF_BLOCK.items()
            ),
            *HEAD,
        ),
    ),
    "scan and scan": Pair(
        LinenScan,
        _with_rngs(NnxScan, FEW),
        ROWS,
        (
            *(other_axis(f"params/layers/{x}", f"layers/{x}") for x, of in OF_BLOCK.items() if of == "params"),
            *(renamed(f"{of}/layers/{x}", f"layers/{x}") for x, of in OF_BLOCK.items() if of != "params"),
            *HEAD,
        ),
    ),
    "lstm": Pair(
        LinenLstm,
        _with_rngs(NnxLstm),
        FRAMES,
        (*_cell("ifgo", "i/kernel", "h/kernel", "h/bias"), *HEAD),
    ),
    "norms": Pair(
        LinenNorms,
        _with_rngs(NnxNorms),
        FRAMES,
        (
            *(flattened(f"params/layer_norm/{name}", f"layer_norm/{name}") for name in ("scale", "bias")),
            *(flattened(f"params/batch_norm/{name}", f"batch_norm/{name}") for name in ("scale", "bias")),
            *(flattened(f"batch_stats/batch_norm/{name}", f"batch_norm/{name}") for name in ("mean", "var")),
            *HEAD,
        ),
    ),
}

GRU = Pair(
    LinenGru,
    _with_rngs(NnxGru),
    FRAMES,
    (*_cell("rzn", "i/kernel", "i/bias", "h/kernel"), *HEAD),
)
"""Without ``params/rnn/cell/hn/bias``, which NNX has no place for."""

GRU_BIAS = "params/rnn/cell/hn/bias"


def _pieces_to_nnx(pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.stack([np.concatenate(pieces[start : start + 2], axis=-1) for start in (0, 2, 4)])]


def _pieces_to_linen(whole: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [half for layer in whole[0] for half in np.split(layer, 2, axis=-1)]


PIECES = Pair(
    LinenPieces,
    _with_rngs(NnxPieces),
    ROWS,
    (
        *(
            Move(
                tuple(f"params/layer_{i}_{part}/{leaf}" for i in range(3) for part in ("query", "key")),
                (f"layers/{leaf}",),
                _pieces_to_nnx,
                _pieces_to_linen,
            )
            for leaf in ("kernel", "bias")
        ),
        Move(
            ("params/project/kernel",),
            ("project/kernel",),
            lambda a: [a[0].reshape(FEATURES, 2, 3)],
            lambda a: [a[0].reshape(FEATURES, 6)],
        ),
        Move(("params/project/bias",), ("project/bias",), lambda a: [a[0].reshape(2, 3)], lambda a: [a[0].reshape(6)]),
    ),
)
"""Without ``params/shift`` and ``offset``, which one side has alone."""

RULES = """
[[rule]]
linen = "params/layer_{i}_{part:query|key}/{leaf:*}"
nnx = "layers/{leaf}"
to_nnx = ["concat part, axis=-1", "stack i, axis=0"]

[[rule]]
linen = "params/project/kernel"
nnx = "project/kernel"
to_nnx = ["rearrange d (h k) -> d h k, h=2"]

[[rule]]
linen = "params/project/bias"
nnx = "project/bias"
to_nnx = ["rearrange (h k) -> h k, h=2"]

[[rule]]
linen = "params/shift"
fill = "ones"

[[rule]]
nnx = "offset"
collection = "params"
fill = "zeros"
"""

TIED = Pair(
    LinenTied,
    _with_rngs(NnxUntied),
    (jnp.arange(10).reshape(2, 5) % 7,),
    (
        Move(
            ("params/embed/embedding",),
            ("embed/embedding", "out/kernel"),
            lambda one: [one[0], one[0].T],
            lambda copies: [copies[0]],
        ),
        *below("params/dense", "dense", "kernel", "bias"),
    ),
)


def initial(pair: Pair, seed: int = 0) -> Arrays:
    """All arrays of the Linen side, random and none like another; variances are positive."""
    generator = np.random.default_rng(seed)
    return {name: generator.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype) for name, leaf in _shapes(pair).items()}


_SHAPES: dict[int, dict[str, jax.ShapeDtypeStruct]] = {}


def _shapes(pair: Pair) -> dict[str, jax.ShapeDtypeStruct]:
    """Of all arrays of the Linen side; each model is traced once."""
    if id(pair) not in _SHAPES:
        shapes = jax.eval_shape(pair.linen().init, jax.random.key(0), *pair.inputs)
        leaves = jax.tree_util.tree_leaves_with_path(shapes)
        _SHAPES[id(pair)] = {"/".join(entry.key for entry in path): leaf for path, leaf in leaves}
    return _SHAPES[id(pair)]
