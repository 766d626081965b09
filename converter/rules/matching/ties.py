"""Weights that are tied on one side only: one array there, equal copies on the other.

The usual case is an embedding that is also the output layer, through ``Embed.attend`` on one side and through a layer
with a transposed kernel of its own on the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from converter.models.trace import Trace
from converter.rules.layers import GRU_HIDDEN_BIAS
from converter.rules.link import Name
from converter.rules.matching.board import Board, Piece
from converter.rules.operations import REWRAP, Agree, Copies, Operation, Transpose
from converter.training_state import RNG_COLLECTIONS
from converter.tree import LeafSpec


def with_ties(board: Board, pieces: Sequence[Piece], linen_trace: Trace, nnx_trace: Trace) -> list[Piece] | None:
    """The pieces, changed so that they cover the variables of either side that none of them has.

    Each such variable has to be the copy of exactly one that is paired, of its shape or the transposed one, and that
    the other side's model uses several times. None if that is not so for all of them.
    """
    found = list(pieces)
    paired_linen = {name for piece in pieces for name in piece.linen}
    paired_nnx = {name for piece in pieces for name in piece.nnx}
    for name in _missing(board.linen, paired_linen):
        if not _tie(found, name, board.linen, nnx_trace, in_linen=True):
            return None
    for name in _missing(board.nnx, paired_nnx):
        if name[0] and name[0] not in RNG_COLLECTIONS and not _tie(found, name, board.nnx, linen_trace, in_linen=False):
            return None
    return found


def _missing(names: Iterable[Name], paired: set[Name]) -> list[Name]:
    return [name for name in names if name not in paired and name[1][-2:] != GRU_HIDDEN_BIAS]


def _tie(pieces: list[Piece], copy: Name, specs: Mapping[Name, LeafSpec], trace: Trace, *, in_linen: bool) -> bool:
    """Makes the one piece whose variable this may be a copy of cover it too."""
    possible = []
    for position, piece in enumerate(pieces):
        mine, other = (piece.linen, piece.nnx) if in_linen else (piece.nnx, piece.linen)
        if len(mine) == len(other) == 1 and piece.to_nnx == REWRAP and len(trace.uses.get(other[0], ())) > 1:
            view = _view(specs[mine[0]], specs[copy])
            if view is not None and mine[0][0] == copy[0]:
                possible.append((position, view))
    if len(possible) != 1:
        return False
    position, view = possible[0]
    piece = pieces[position]
    if in_linen:
        pieces[position] = Piece((*piece.linen, copy), piece.nnx, Agree((REWRAP, view)))
    else:
        pieces[position] = Piece(piece.linen, (*piece.nnx, copy), Copies((REWRAP, view)))
    return True


def _view(original: LeafSpec, copy: LeafSpec) -> Operation | None:
    """What makes the copy from the original; transposing undoes itself, so it is right in both directions."""
    if original.shape == copy.shape[::-1] and len(copy.shape) == 2:
        return Transpose()
    return REWRAP if original.shape == copy.shape else None
