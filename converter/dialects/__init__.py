"""Recognising whose layout a tree has.

Names alone do not always tell: a bare dict of kernels may be Linen params or an NNX pure dict. ``readings`` therefore
returns every possible dialect, the most plausible first; a conversion takes the first one of the framework it starts
from, and only where there is none is the direction wrong.
"""

from __future__ import annotations

import re

from converter.dialects.dialect import Dialect
from converter.dialects.linen import LinenParams, LinenVariables, boxed_paths
from converter.dialects.nnx import MODULE_MARK, VALUE, NnxLayout
from converter.dialects.opt_state import MIRROR_FIELDS, OPT_STATE, STEP
from converter.dialects.rng import random_state_paths
from converter.dialects.train_state import LinenTrainState
from converter.training_state import COLLECTIONS, PARAMS
from converter.tree import IndexKey, LeafKind, Path, Tree

_OPTIMIZER_FIELDS = {STEP, OPT_STATE}
_AUTO_NAME = re.compile(r"[A-Z]\w*_\d+")


def readings(tree: Tree) -> tuple[Dialect, ...]:
    """Every dialect that can be read from the tree, most plausible first; none where ``unreadable`` has a reason."""
    if unreadable(tree):
        return ()
    leaves = _full_leaves(tree)
    suffix = next((key for key in (VALUE, "raw_value") if _all_wrapped(leaves, key)), None)
    return _wrapped(tree, leaves, suffix) if suffix is not None else _bare(tree, leaves)


def unreadable(tree: Tree) -> str:
    """Why no dialect fits the tree; empty if one may."""
    leaves = _full_leaves(tree)
    if not leaves:
        return "it holds no arrays"
    if () in leaves:
        return f"it is a single leaf, {tree[()].spec}, not a tree of variables"
    members = tree.children()
    optax_fields = {field for key in members for field in tree.children(key)} & MIRROR_FIELDS
    if all(key.isdigit() for key in members) and (optax_fields or all(isinstance(key, IndexKey) for key in members)):
        return "it is a sequence, as an optax state saved alone is, without the parameters it belongs to"
    return ""


def _full_leaves(tree: Tree) -> list[Path]:
    return [path for path, leaf in tree.items() if leaf.spec.kind is not LeafKind.EMPTY]


def _wrapped(tree: Tree, leaves: list[Path], suffix: str) -> tuple[Dialect, ...]:
    """Readings of a tree all of whose leaves end in ``value``: NNX, or Linen with a box around every parameter."""
    linen, nnx = _linen(tree, leaves), _nnx_layout(tree, suffix)
    fields = tree.children()
    if isinstance(linen, LinenTrainState) and (PARAMS in fields or _has_positions(tree)):
        return (linen,)
    if PARAMS in fields:
        return (linen, nnx)
    return (nnx,)


def _bare(tree: Tree, leaves: list[Path]) -> tuple[Dialect, ...]:
    """Readings of a tree without such wrappers: Linen, or an NNX pure dict."""
    linen, nnx = _linen(tree, leaves), _nnx_layout(tree, None)
    if isinstance(linen, LinenTrainState):
        return (nnx, linen) if _is_optimizer(tree, ()) and not _has_positions(tree) else (linen,)
    if isinstance(linen, LinenVariables):
        return (linen,)
    if nnx.optimizer is not None:
        return (nnx,)
    return (nnx, linen) if _looks_like_nnx(tree) else (linen, nnx)


def _has_positions(tree: Tree) -> bool:
    """Whether the optax state was saved as the tuple it is in a Linen train state; NNX saves it as a dict."""
    return any(isinstance(key, IndexKey) for key in tree.children(OPT_STATE))


def _all_wrapped(leaves: list[Path], key: str) -> bool:
    # The counters of flax 0.8.4's optimizer states are no Variables and have no wrapper.
    inside = [path for path in leaves if OPT_STATE not in path[:2]]
    return all(path[-1] == key and len(path) > 1 for path in inside or leaves)


def _linen(tree: Tree, leaves: list[Path]) -> Dialect:
    fields = set(tree.children())
    boxes = boxed_paths(tree)
    if fields & _OPTIMIZER_FIELDS and (PARAMS in fields or fields <= _OPTIMIZER_FIELDS):
        inside = set(tree.children(PARAMS))
        nested = PARAMS in inside and inside <= set(COLLECTIONS)
        skip = 2 if nested else 1
        boxed = frozenset(box[skip:] for box in boxes if box[0] == PARAMS)
        return LinenTrainState(nested, boxed)
    deep = all(len(path) > 1 for path in leaves)
    if deep and (PARAMS in fields or fields <= set(COLLECTIONS)):
        return LinenVariables(frozenset(box[1:] for box in boxes))
    return LinenParams(boxes)


def _is_optimizer(tree: Tree, prefix: Path) -> bool:
    fields = set(tree.children(*prefix))
    return STEP in fields and fields <= {*_OPTIMIZER_FIELDS, "model"}


def _nnx_layout(tree: Tree, suffix: str | None) -> NnxLayout:
    """Finds the model and the optimizer in an NNX tree, whatever the keys they stand under."""
    fields = [key for key in tree.children() if key != MODULE_MARK]
    if _is_optimizer(tree, ()):
        return NnxLayout(suffix, ("model",) if "model" in fields else None, ())
    optimizers = [key for key in fields if _is_optimizer(tree, (key,))]
    others = [key for key in fields if key not in optimizers]
    if len(optimizers) == 1 and others and ("model" in others or len(others) == 1):
        return NnxLayout(suffix, ("model" if "model" in others else others[0],), (optimizers[0],))
    return NnxLayout(suffix)


def _looks_like_nnx(tree: Tree) -> bool:
    """Whether a bare dict holds what Linen params never hold: random state, batch statistics, a KV cache."""
    if any(_AUTO_NAME.fullmatch(key) for key in tree.children()):
        return False
    names = {path[-1] for path in tree if path}
    return bool(random_state_paths(tree)) or {"mean", "var"} <= names or "cache_index" in names
