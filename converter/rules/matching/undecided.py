"""What a confirmed guess leaves open: layers on which no output depends, and that could be exchanged unnoticed.

The biases of keys cancel out in attention; heads are computed and thrown away; a rectifier may let nothing through.
Equal outputs say nothing of such variables, and they may count elsewhere: in training, in another method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from converter.paths import Path
from converter.rules.link import Name
from converter.rules.matching.board import Piece
from converter.rules.matching.evidence import Evidence
from converter.rules.matching.units import Unit, likeness, shape_alone


@dataclass(frozen=True, slots=True)
class Match:
    """A layer of Linen and the layer of NNX that it is taken for, or a single variable of each."""

    linen: Unit
    nnx: Unit
    pieces: tuple[Piece, ...]

    @property
    def names(self) -> list[Name]:
        return [name for piece in self.pieces for name in piece.linen]

    @property
    def place(self) -> tuple[Path, Path]:
        """The layers of both sides in which single variables stand."""
        return self.pieces[0].linen[0][1][:-1], self.pieces[0].nnx[0][1][:-1]

    @property
    def is_alone(self) -> bool:
        return len(self.linen.specs) == 1

    @property
    def called_alike(self) -> bool:
        """Whether a single variable has the same name on both sides."""
        return self.pieces[0].linen[0][1][-1] == self.pieces[0].nnx[0][1][-1]

    @property
    def shape(self) -> object:
        """What two matches have in common that could be exchanged."""
        return shape_alone(self.linen) if self.is_alone else likeness(self.linen)


def undecided_names(matches: Sequence[Match], evidence: Evidence) -> list[Name]:
    """The Linen variables of all matches that another one could stand for, without any change of the outputs."""
    questionable = [match for match in matches if match.pieces and _rivals(match, matches)]
    if not questionable:
        return []
    unseen = evidence.silent([match.names for match in questionable])
    silent = [match for position, match in enumerate(questionable) if position in unseen]
    # Variables in layers of which another variable counts belong where that one does.
    known = {match.place for match in matches if match.is_alone and match.pieces and match not in silent}
    return [
        name
        for match in silent
        if any(_exchangeable(match, rival, known) for rival in _rivals(match, silent))
        for name in match.names
    ]


def _rivals(match: Match, matches: Sequence[Match]) -> list[Match]:
    return [other for other in matches if other is not match and other.pieces and other.shape == match.shape]


def _exchangeable(match: Match, rival: Match, known: set[tuple[Path, Path]]) -> bool:
    if not match.is_alone:
        return True
    if match.place == rival.place:
        return not (match.called_alike and rival.called_alike)
    return match.place not in known and rival.place not in known
