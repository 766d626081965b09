"""Seeing the layers of a loop as one stacked layer, so that a loop can be compared with a scan of another name.

``Block_0 … Block_11`` of one model, ``decoder`` of the other, which scans over twelve layers: neither names nor shapes
agree before the loop is folded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from converter.models.trace import Trace
from converter.paths import Path
from converter.rules.layers import LINEN_CELLS, Part
from converter.rules.link import Name
from converter.rules.matching.board import Board, Piece
from converter.rules.matching.by_number import Loop, axes_of, single_specs
from converter.rules.matching.evidence import Evidence
from converter.rules.names import without_numbers
from converter.rules.operations import Unfit
from converter.tree import LeafSpec

Stem = Path
"""What the items of a loop have in common: their path without the number, which stood at its end."""

_Item = TypeVar("_Item")


class FoldedBoard:
    """The free variables of a board, some loops of one side folded into one layer each.

    Attributes:
      linen, nnx: specs by name, folded ones with an axis for the layers in front.
      free_linen, free_parts: as of the board.
      linen_uses, nnx_uses: position of the first use by name.
      cells: kinds of Linen's recurrent cells by path.
    """

    def __init__(self, board: Board, stems: Iterable[Stem], traces: tuple[Trace, Trace], *, in_linen: bool) -> None:
        self._board = board
        self._in_linen = in_linen
        self.linen, self.nnx = dict(board.linen), dict(board.nnx)
        self.free_linen, self.free_parts = dict(board.free_linen), dict(board.free_parts)
        self.linen_uses, self.nnx_uses = ({n: used[0] for n, used in trace.uses.items()} for trace in traces)
        layers = board.linen_model.layers if board.linen_model else ()
        self.cells = {layer.path: layer.kind for layer in layers if layer.kind in LINEN_CELLS}
        self._members: dict[Name, list[Name]] = {}
        for stem in stems:
            self._fold(stem)

    def _fold(self, stem: Stem) -> None:
        specs, uses = (self.linen, self.linen_uses) if self._in_linen else (self.nnx, self.nnx_uses)
        for path, kind in list(self.cells.items()):
            folded_paths = [(*own, *inside[1]) for own, _, inside in _numbered(("", path)) if own == stem]
            self.cells |= dict.fromkeys(folded_paths, kind)
        names = list(self.free_linen) if self._in_linen else [part.nnx[0] for part in self.free_parts.values()]
        for folded, members in _members(names, stem).items():
            first = members[0]
            self._members[folded] = members
            specs[folded] = specs[first]._replace(shape=(len(members), *specs[first].shape))
            used = [uses[name] for name in members if name in uses]
            if used:
                uses[folded] = min(used)
            if self._in_linen:
                self.free_linen = _replaced(self.free_linen, members, folded, specs[folded])
            else:
                part = self.free_parts[first,]
                root = folded[1][: len(folded[1]) - (len(first[1]) - len(part.root))]
                stacked = part._replace(root=root, nnx=(folded,))
                self.free_parts = _replaced(self.free_parts, [(name,) for name in members], (folded,), stacked)

    def unfolded(self, piece: Piece, part: Part, evidence: Evidence) -> Piece | None:
        """The same piece over the real variables; None if their shapes do not fit."""
        if self._in_linen:
            folded = [name for name in piece.linen if name in self._members]
            if not folded:
                return piece
            if len(folded) < len(piece.linen):
                return None
            layers = list(zip(*(self._members[name] for name in piece.linen), strict=True))
            linen, nnx = tuple(itertools.chain.from_iterable(layers)), piece.nnx
            single = single_specs(part.to_nnx, [[self._board.linen[name] for name in layer] for layer in layers])
        else:
            if piece.nnx[0] not in self._members:
                return piece
            linen, nnx = piece.linen, tuple(self._members[piece.nnx[0]])
            single = single_specs(part.to_nnx.inverse(), [[self._board.nnx[name]] for name in nnx])
            layers = [(name,) for name in nnx]
        if single is None:
            return None
        stacked = piece.nnx if self._in_linen else piece.linen
        loop = Loop(linen, nnx, (len(layers),), part, single, stacked, stacked_in_linen=not self._in_linen)
        axes = axes_of(self._board, loop, evidence)
        try:
            return loop.piece(axes[0]) if len(axes) == 1 else None
        except Unfit:
            return None


def foldings(board: Board, traces: tuple[Trace, Trace]) -> Iterator[FoldedBoard]:
    """The board with every choice of loops folded, on either side; those that fold most come first."""
    parts = [part.nnx[0] for part in board.free_parts.values()]
    for in_linen, names, specs in ((True, list(board.free_linen), board.linen), (False, parts, board.nnx)):
        stems = _stems(names, specs)[:4]
        for count in range(len(stems), 0, -1):
            for chosen in itertools.combinations(stems, count):
                yield FoldedBoard(board, chosen, traces, in_linen=in_linen)


def _stems(names: Sequence[Name], specs: Mapping[Name, LeafSpec]) -> list[Stem]:
    """All loops of at least two layers that are alike, numbered from 0 on; of nested ones the outermost."""
    layers: dict[Stem, dict[int, dict[Name, LeafSpec]]] = {}
    for name in names:
        for stem, number, inside in _numbered(name):
            layers.setdefault(stem, {}).setdefault(number, {})[inside] = specs[name]
    found = [
        stem
        for stem, members in layers.items()
        if len(members) > 1
        and set(members) == set(range(len(members)))
        and all(layer == members[0] for layer in members.values())
    ]
    return [stem for stem in found if not any(outer in found for outer, _, _ in _numbered(("", stem)))]


def _numbered(name: Name) -> Iterator[tuple[Stem, int, Name]]:
    """Each item number in a path: what stands before it, the number, and what follows."""
    collection, path = name
    for depth in range(len(path)):
        for shorter, numbers in without_numbers(path[: depth + 1]):
            if len(numbers) == 1 and shorter[:depth] == path[:depth]:
                yield shorter, numbers[0], (collection, path[depth + 1 :])


def _members(names: Iterable[Name], stem: Stem) -> dict[Name, list[Name]]:
    """The variables of the layers of a loop, by the name they have when it is folded, layer after layer."""
    found: dict[Name, dict[int, Name]] = {}
    for name in names:
        for own_stem, number, (collection, inside) in _numbered(name):
            if own_stem == stem:
                found.setdefault((collection, (*stem, *inside)), {})[number] = name
    return {folded: [members[number] for number in sorted(members)] for folded, members in found.items()}


_Key = TypeVar("_Key")


def _replaced(items: Mapping[_Key, _Item], members: Sequence[_Key], by: _Key, item: _Item) -> dict[_Key, _Item]:
    """A mapping with one entry in the place of the first of several."""
    gone = set(members)
    made: dict[_Key, _Item] = {}
    for key, value in items.items():
        if key == members[0]:
            made[by] = item
        elif key not in gone:
            made[key] = value
    return made
