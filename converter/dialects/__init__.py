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
from converter.dialects.opt_state import OPT_STATE, STEP
from converter.dialects.rng import random_state_paths
from converter.dialects.train_state import LinenTrainState
from converter.training_state import COLLECTIONS, PARAMS
from converter.tree import IndexKey, LeafKind, Path, Tree

_OPTIMIZER_FIELDS = {STEP, OPT_STATE}
_AUTO_NAME = re.compile(r"[A-Z]\w*_\d+")


def readings(tree: Tree) -> tuple[Dialect, ...]:
    """Every dialect that can be read from the tree, most plausible first; none for a tree without arrays."""
    leaves = [path for path, leaf in tree.items() if leaf.spec.kind is not LeafKind.EMPTY]
    if not leaves:
        return ()
    linen = _linen(tree, leaves)
    suffix = next((key for key in (VALUE, "raw_value") if _all_wrapped(leaves, key)), None)
    if suffix is not None:
        nnx = _nnx_layout(tree, suffix)
        # A Linen tree all of whose leaves are boxed ends in `value` everywhere as well.
        linen_first = PARAMS in tree.children() or any(isinstance(key, IndexKey) for path in leaves for key in path[:3])
        return (linen, nnx) if linen_first and nnx.optimizer is None else (nnx, linen)
    if not isinstance(linen, LinenParams) and not _is_optimizer(tree, ()):
        return (linen,)
    nnx = _nnx_layout(tree, None)
    if nnx.optimizer is not None and nnx.optimizer != ():
        return (nnx,)
    return (nnx, linen) if _looks_like_nnx(tree) else (linen, nnx)


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
