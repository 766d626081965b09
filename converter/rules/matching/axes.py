"""Axes that neither shapes nor scans tell: ``nn.vmap`` over square layers, with another axis for them on each side.

Both models run on random values say whether the arrays may stay as they are, or how they have to be turned.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from converter.rules.link import format_name
from converter.rules.matching.board import Board, Piece
from converter.rules.matching.evidence import Evidence
from converter.rules.matching.fitting import is_lifted, only_shape_tells
from converter.rules.operations import REWRAP, MoveAxis, Operation, Unfit


def settle_axes(board: Board, evidence: Evidence) -> str:
    """Chooses among the orders of axes that the shapes of paired variables allow for.

    Returns:
      what speaks against all of them; empty where one was confirmed, or where there is no choice.
    """
    doubtful = [piece for piece in board.pieces if _is_doubtful(board, piece, evidence)]
    if not doubtful:
        return ""
    names = ", ".join(format_name(piece.linen[0]) for piece in doubtful[:6])
    objection = ""
    for chosen in _choices(board, doubtful):
        turned = [replace(piece, to_nnx=chosen) if piece in doubtful else piece for piece in board.pieces]
        found = evidence.confirm(turned)
        objection = objection or found
        if not found:
            if evidence.silent([piece.linen for piece in doubtful]):
                return f"the outputs do not depend on the order of the axes of all of these variables: {names}"
            board.pieces[:] = turned
            return ""
    return f"the shapes of {names} allow for several orders of their axes, and none gives the same outputs: {objection}"


def _is_doubtful(board: Board, piece: Piece, evidence: Evidence) -> bool:
    """Whether this variable is taken as it is although other orders of its axes fit as well."""
    if len(piece.linen) != 1 or len(piece.nnx) != 1 or not is_lifted(board, piece.linen[0]):
        return False
    if piece.to_nnx != REWRAP or not only_shape_tells(piece, board, evidence):
        return False
    rank = len(board.linen[piece.linen[0]].shape)
    really = (move for move in _moves(rank) if move.source % rank != move.destination % rank)
    return any(_fits(board, piece, move) for move in really)


def _choices(board: Board, pieces: Sequence[Piece]) -> Iterator[Operation]:
    """Leaving all of them as they are, and every move of an axis that they allow for together."""
    yield REWRAP
    rank = max(len(board.linen[piece.linen[0]].shape) for piece in pieces)
    yield from (move for move in _moves(rank) if all(_fits(board, piece, move) for piece in pieces))


def _moves(rank: int) -> list[MoveAxis]:
    """All moves of one axis; the last one counts from the back too, for variables of several ranks."""
    return [MoveAxis(a, b) for a, b in itertools.permutations((*range(rank), -1), 2)]


def _fits(board: Board, piece: Piece, move: MoveAxis) -> bool:
    try:
        (made,) = move.specs([board.linen[piece.linen[0]]])
    except Unfit:
        return False
    return made.shape == board.nnx[piece.nnx[0]].shape
