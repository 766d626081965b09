"""Shapes of variables that are called alike: equal, or different by a rule of Flax's own layers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from converter.rules.link import Name
from converter.rules.matching.board import Board, Piece
from converter.rules.operations import REWRAP, MoveAxis, Operation, Reshape, Transpose, Unfit
from converter.training_state import CACHE
from converter.tree import LeafKind, LeafSpec

if TYPE_CHECKING:
    from converter.rules.matching.evidence import Evidence

NORMS = frozenset({"LayerNorm", "InstanceNorm", "BatchNorm", "RMSNorm", "GroupNorm"})
"""Layers that may normalise over several axes. Linen gives their variables the shape of these axes; NNX, which knows
only the number of features, makes them flat (flax/linen/normalization.py, flax/nnx/nn/normalization.py)."""

NORM_VARIABLES = frozenset({"scale", "bias", "mean", "var"})


def same_shape(left: LeafSpec, right: LeafSpec) -> bool:
    """Whether one may stand for the other, whatever their dtypes; unknown specs (of masked moments) fit everything."""
    if LeafKind.EMPTY in (left.kind, right.kind):
        return True
    return left.shape == right.shape and (left.kind is LeafKind.KEY) == (right.kind is LeafKind.KEY)


def fitted(board: Board, piece: Piece, evidence: Evidence | None) -> Piece | None:
    """The piece with whatever its shapes need on top of its operation; None if they do not fit."""
    linen = [board.linen[name] for name in piece.linen]
    nnx = [board.nnx[name] for name in piece.nnx]
    if any(spec.kind is LeafKind.EMPTY for spec in (*linen, *nnx)):
        return piece
    try:
        made = piece.to_nnx.specs(linen)
    except Unfit:
        return None
    if len(made) == len(nnx) == len(linen) == 1 and piece.to_nnx == REWRAP:
        adapted = _adapted(board, piece, evidence)
        return None if adapted is None else replace(piece, to_nnx=adapted)
    return piece if len(made) == len(nnx) and all(map(same_shape, made, nnx)) else None


def _adapted(board: Board, piece: Piece, evidence: Evidence | None) -> Operation | None:
    (linen_name,), (nnx_name,) = piece.linen, piece.nnx
    linen, nnx = board.linen[linen_name], board.nnx[nnx_name]
    if is_lifted(board, linen_name):
        moved = _traced_move(linen_name, nnx_name, linen, evidence)
        if moved is not None and moved.specs((linen,))[0].shape == nnx.shape:
            return moved if moved.axes != tuple(range(len(linen.shape))) else REWRAP
    if same_shape(linen, nnx) or _is_cache(linen_name, linen, nnx):
        return REWRAP
    if _may_flatten(board, linen_name, nnx_name, linen, nnx):
        return Reshape(linen.shape, nnx.shape)
    if is_lifted(board, linen_name):
        return _only_move(linen, nnx)
    return None


def is_lifted(board: Board, name: Name) -> bool:
    """Whether a Linen variable stands inside ``nn.scan`` or ``nn.vmap``, which give it axes of their own."""
    return board.linen_model is not None and name[1] in board.linen_model.lifted


def only_shape_tells(piece: Piece, board: Board, evidence: Evidence | None) -> bool:
    """Whether no scan of both calls shows in which order the axes of a variable are."""
    return _traced_move(piece.linen[0], piece.nnx[0], board.linen[piece.linen[0]], evidence) is None


def _traced_move(linen_name: Name, nnx_name: Name, linen: LeafSpec, evidence: Evidence | None) -> Transpose | None:
    """The transposition that brings every scanned axis of Linen to where NNX has it; None if that is not known."""
    traces = evidence.traces() if evidence else ""
    if isinstance(traces, str):
        return None
    source, target = traces[0].scanned.get(linen_name, ()), traces[1].scanned.get(nnx_name, ())
    if not source or len(source) != len(target) or max((*source, *target)) >= len(linen.shape):
        return None
    others = iter(axis for axis in range(len(linen.shape)) if axis not in source)
    scanned = dict(zip(target, source, strict=True))
    return Transpose(tuple(scanned[axis] if axis in scanned else next(others) for axis in range(len(linen.shape))))


def _only_move(linen: LeafSpec, nnx: LeafSpec) -> Operation | None:
    """The one way to move an axis that makes one shape of the other; None if there are several, or none.

    Moving an axis by one place is the same as moving its neighbour: of these only the first counts.
    """
    rank = len(linen.shape)
    pairs = [(a, b) for a, b in itertools.permutations(range(rank), 2) if a != b + 1]
    moves = [move for move in (MoveAxis(a, b) for a, b in pairs) if move.specs((linen,))[0].shape == nnx.shape]
    return moves[0] if len(moves) == 1 else None


def _is_cache(name: Name, linen: LeafSpec, nnx: LeafSpec) -> bool:
    """Whether these are caches, which are as long as the inputs that they were made for."""
    return name[0] == CACHE and len(linen.shape) == len(nnx.shape)


def _may_flatten(board: Board, linen_name: Name, nnx_name: Name, linen: LeafSpec, nnx: LeafSpec) -> bool:
    if linen.size != nnx.size or 1 not in (len(linen.shape), len(nnx.shape)):
        return False
    if linen_name[1][-1] not in NORM_VARIABLES or LeafKind.KEY in (linen.kind, nnx.kind):
        return False
    models = ((board.linen_model, linen_name), (board.nnx_model, nnx_name))
    kinds = {layer.kind for model, name in models if model for layer in model.layers if layer.path == name[1][:-1]}
    return bool(kinds & NORMS)
