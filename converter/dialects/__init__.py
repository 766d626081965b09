"""Recognising whose layout a tree has.

Names alone do not always tell: a bare dict of kernels may be Linen params or an NNX pure dict. ``readings`` therefore
returns every possible dialect, the most plausible first; a conversion takes the first one of the framework it starts
from, and only where there is none is the direction wrong.
"""

from __future__ import annotations

import re

from converter.dialects.dialect import Dialect
from converter.dialects.legacy_optim import LegacyOptimizer, legacy_optimizer
from converter.dialects.linen import BOXED_NAMES, LinenParams, LinenVariables, boxed_paths
from converter.dialects.nnx import MODULE_MARK, WRAPPERS, NnxLayout
from converter.dialects.opt_state import MIRROR_FIELDS, OPT_STATE, STEP, split_mirror
from converter.dialects.rng import random_state_paths
from converter.dialects.train_state import LinenTrainState
from converter.paths import IndexKey, Path
from converter.training_state import COLLECTIONS, PARAMS
from converter.tree import Tree

_OPTIMIZER_FIELDS = {STEP, OPT_STATE}
_AUTO_NAME = re.compile(r"[A-Z]\w*_\d+")


def readings(tree: Tree) -> tuple[Dialect, ...]:
    """Every dialect that can be read from the tree, most plausible first; none where ``unreadable`` has a reason."""
    leaves = [*tree.full()]
    suffix = _wrapper(leaves)
    if _objection(tree, leaves, suffix):
        return ()
    return _wrapped(tree, leaves, suffix) if suffix is not None else _bare(tree, leaves)


def unreadable(tree: Tree) -> str:
    """Why no dialect fits the tree; empty if one may."""
    leaves = [*tree.full()]
    return _objection(tree, leaves, _wrapper(leaves))


def _objection(tree: Tree, leaves: list[Path], suffix: str | None) -> str:
    if not leaves:
        return "it holds no arrays"
    if () in leaves:
        return f"it is a single leaf, {tree[()].spec}, not a tree of variables"
    if _nnx_layout(tree, suffix).optimizer is None and _is_optax_state(tree):
        return "it is a sequence, as an optax state saved alone is, without the parameters it belongs to"
    return ""


_OPTAX_FIELDS = MIRROR_FIELDS | {
    "count", "hyperparams", "hyperparams_states", "inner_state", "inner_states", "inner_opt_state", "mini_step",
    "gradient_step", "skip_state", "notfinite_count", "last_finite", "total_notfinite",
}  # fmt: skip


def _is_optax_state(tree: Tree) -> bool:
    """Whether the tree is the tuple that an optax state is, saved without anything else."""
    members = tree.children()
    if not all(key.isdigit() for key in members):
        return False
    fields = {field for key in members for field in tree.children(key)} - {*WRAPPERS}
    if not fields:
        return all(isinstance(key, IndexKey) for key in members)
    return fields <= _OPTAX_FIELDS


def _wrapper(leaves: list[Path]) -> str | None:
    """The key that ends the path of every NNX Variable in the tree, if its leaves are Variables."""
    return next((key for key in WRAPPERS if _all_wrapped(leaves, key)), None) if all(leaves) else None


def _all_wrapped(leaves: list[Path], key: str) -> bool:
    # The counters of flax 0.8.4's optimizer states are no Variables and have no wrapper.
    inside = [path for path in leaves if OPT_STATE not in path[:2]] or leaves
    bare = [path for path in inside if path[-1] != key or len(path) == 1]
    if not bare:
        return True
    # Array attributes that are no Variables (the mask of a Conv) stand bare among Variables, but parameters never do.
    parameters = {path[-2] for path in inside if path[-1] == key and len(path) > 1} & BOXED_NAMES
    return bool(parameters) and not any(path[-1] in BOXED_NAMES for path in bare)


def _wrapped(tree: Tree, leaves: list[Path], suffix: str) -> tuple[Dialect, ...]:
    """Readings of a tree all of whose leaves end in ``value``: NNX, or Linen with a box around every parameter."""
    linen, nnx = _linen(tree, leaves), _nnx_layout(tree, suffix).of(leaves)
    fields = tree.children()
    if isinstance(linen, LinenTrainState) and (PARAMS in fields or _has_positions(tree)):
        return (linen,)
    mixed = any(path[-1] != suffix for path in leaves if OPT_STATE not in path[:2])
    if PARAMS in fields:
        return (linen,) if mixed else (linen, nnx)
    return (nnx, linen) if mixed and nnx.optimizer is None else (nnx,)


def _bare(tree: Tree, leaves: list[Path]) -> tuple[Dialect, ...]:
    """Readings of a tree without such wrappers: Linen, or an NNX pure dict."""
    linen, nnx = _linen(tree, leaves), _nnx_layout(tree, None)
    if isinstance(linen, LinenTrainState):
        return (nnx, linen) if _is_optimizer(tree, ()) and not _has_positions(tree) else (linen,)
    if isinstance(linen, LinenVariables | LegacyOptimizer):
        return (linen,)
    if nnx.optimizer is not None:
        return (nnx,)
    return (nnx, linen) if _looks_like_nnx(tree) else (linen, nnx)


def _has_positions(tree: Tree) -> bool:
    """Whether the optax state was saved as the tuple it is in a Linen train state; NNX saves it as a dict."""
    return any(isinstance(key, IndexKey) for key in tree.children(OPT_STATE))


def _linen(tree: Tree, leaves: list[Path]) -> Dialect:
    legacy = legacy_optimizer(tree)
    if legacy is not None:
        return legacy
    fields = set(tree.children())
    boxes = boxed_paths(tree)
    if fields & _OPTIMIZER_FIELDS and (PARAMS in fields or fields <= _OPTIMIZER_FIELDS):
        inside = set(tree.children(PARAMS))
        nested = PARAMS in inside and inside <= set(COLLECTIONS)
        skip = 2 if nested else 1
        boxed = frozenset(box[skip:] for box in boxes if box[0] == PARAMS)
        beside = frozenset(fields & set(COLLECTIONS) - {PARAMS}) if nested else frozenset[str]()
        return LinenTrainState(nested, boxed, beside=beside)
    if _is_big_vision(tree, leaves):
        return LinenTrainState(optimizer=BIG_VISION_OPTIMIZER)
    deep = all(len(path) > 1 for path in leaves)
    if deep and (PARAMS in fields or fields <= set(COLLECTIONS)):
        return LinenVariables(frozenset(box[1:] for box in boxes))
    return LinenParams(boxes)


BIG_VISION_OPTIMIZER = "opt"
"""What big_vision's training loops call the optimizer's state, beside ``params``; they count no steps of their own."""


def _is_big_vision(tree: Tree, leaves: list[Path]) -> bool:
    """Whether beside the parameters there is an optimizer's state of that name, which mirrors at least one of them."""
    if not {PARAMS, BIG_VISION_OPTIMIZER} <= set(tree.children()):
        return False
    parameters = {path[1:] for path in leaves if path[0] == PARAMS}
    inside = (path for path in leaves if path[0] == BIG_VISION_OPTIMIZER)
    return any(len(split_mirror(path, parameters)[1]) > 1 for path in inside)


def _is_optimizer(tree: Tree, prefix: Path) -> bool:
    fields = set(tree.children(*prefix))
    # Below a key of its own an optax state is known without a counter, which other training loops do not keep there.
    named = STEP in fields or (bool(prefix) and fields == {OPT_STATE})
    return named and fields <= {*_OPTIMIZER_FIELDS, "model"}


def _nnx_layout(tree: Tree, suffix: str | None) -> NnxLayout:
    """Finds the model and the optimizer in an NNX tree, whatever the keys they stand under."""
    fields = [key for key in tree.children() if key != MODULE_MARK]
    optimizers = [key for key in fields if _is_optimizer(tree, (key,))]
    models = [key for key in fields if key not in optimizers]
    if len(optimizers) == 1 and models:
        # Other fields beside the two have names of their own (ema, epoch …).
        model = next((key for key in ("model", "0") if key in models), models[0] if len(models) == 1 else None)
        if model is not None:
            return NnxLayout(suffix, (model,), (optimizers[0],))
    if {"model", STEP} <= set(fields):
        return NnxLayout(suffix, ("model",), ())
    return NnxLayout(suffix, None, ()) if _is_optimizer(tree, ()) else NnxLayout(suffix)


def _looks_like_nnx(tree: Tree) -> bool:
    """Whether a bare dict holds what Linen params never hold: random state, batch statistics, a KV cache."""
    if any(_AUTO_NAME.fullmatch(key) for key in tree.children()):
        return False
    names = {path[-1] for path in tree if path}
    return bool(random_state_paths(tree)) or {"mean", "var"} <= names or "cache_index" in names
