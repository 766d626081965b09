"""Pairing what has different names by the order in which the calls of both models use it, confirmed by running them.

Names that a module gets by itself (``Dense_3``), wrappers that leave no level in one framework, attributes called
otherwise: nothing but the computation tells what they are. Two models that compute the same mostly use the same layers
in the same order. That is a guess, and it counts only if both models give the same outputs on random values translated
by it; several ways of reading the order are tried.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from converter.models.trace import Trace
from converter.rules.layers import Part, Role
from converter.rules.link import Name, format_name
from converter.rules.matching.board import Board, Piece
from converter.rules.matching.evidence import Evidence
from converter.rules.matching.fitting import fitted
from converter.rules.matching.folded import FoldedBoard, foldings
from converter.rules.matching.ties import with_ties
from converter.rules.matching.undecided import Match, undecided_names
from converter.rules.matching.units import (
    Unit,
    canonical_roles,
    likeness,
    linen_units,
    nnx_units,
    ordered,
    shape_alone,
)

GUESSES = 64
"""How many readings of the order are tried; each costs a run of both models."""

Guess = list[tuple[Unit, Unit]]
"""Units of Linen and NNX that may be the same."""


def pair_by_order(board: Board, evidence: Evidence) -> str:
    """Pairs what is still free by the order of its use, if running both models confirms it.

    Variables that are one on one side and several on the other (tied weights) are recognised by being used twice, loops
    that are a scan on the other side by what their layers have in common.

    Returns:
      what speaks against it; empty where everything is paired and confirmed, or where there is nothing to pair.
    """
    if not (board.free_linen or any(not part.is_own_state for part in board.free_parts.values())):
        return ""
    traces = evidence.traces()
    if isinstance(traces, str):
        return f"the order of use tells nothing: {traces}"
    objection = ""
    tried: list[list[Piece]] = []
    for pieces, matches in itertools.islice(_readings(board, traces, evidence), GUESSES):
        if pieces in tried:
            continue
        tried.append(pieces)
        objection = evidence.confirm(pieces)
        if not objection:
            undecided = undecided_names(matches, evidence)
            if undecided:
                return _undecided_text(undecided)
            board.pieces.clear()
            for piece in pieces:
                board.settle(piece)
            return ""
    if not tried:
        return "the order of use tells nothing: the layers that both calls use are not alike, or not equally many"
    return f"pairing by the order of use does not give the same outputs: {objection}"


def _undecided_text(names: Sequence[Name]) -> str:
    shown = ", ".join(map(format_name, names[:6])) + (" …" if len(names) > 6 else "")
    return f"the outputs do not depend on these variables, so that the calls do not tell which is which: {shown}"


def _readings(
    board: Board, traces: tuple[Trace, Trace], evidence: Evidence
) -> Iterator[tuple[list[Piece], list[Match]]]:
    """Everything the order may mean, the most plausible first; only what leaves no variable unpaired."""
    for view in itertools.chain([FoldedBoard(board, (), traces, in_linen=True)], foldings(board, traces)):
        linen, nnx = linen_units(view), nnx_units(view)
        for guess in _guesses(linen, nnx):
            matches = _matches(board, view, guess, evidence)
            if matches is None:
                continue
            pieces = [*board.pieces, *(piece for match in matches for piece in match.pieces)]
            complete = with_ties(board, pieces, *traces)
            if complete is not None:
                yield complete, matches


# Guesses -------------------------------------------------------------------------------------------------------------


def _guesses(linen: list[Unit], nnx: list[Unit]) -> Iterator[Guess]:
    """All readings, the most plausible first."""
    yield _all_in_order(linen, nnx)
    yield _by_likeness(linen, nnx)
    yield _leaf_by_leaf(linen, nnx)
    yield from _in_another_order(linen, nnx)


def _all_in_order(linen: list[Unit], nnx: list[Unit]) -> Guess:
    """The first with the first and so on, if both sides use the same layers in the same order."""
    if len(linen) != len(nnx) or any(likeness(a) != likeness(b) for a, b in zip(linen, nnx, strict=True)):
        return []
    return list(zip(linen, nnx, strict=True))


def _by_likeness(linen: list[Unit], nnx: list[Unit]) -> Guess:
    """The same among those alone that are alike: as many layers of one kind and shape on both sides."""
    return _among_alike(linen, nnx, likeness)


def _leaf_by_leaf(linen: list[Unit], nnx: list[Unit]) -> Guess:
    """Layers as far as they are alike; the other variables one by one, whatever their names and layers."""
    layers = _by_likeness(linen, nnx)
    done = {id(unit) for pair in layers for unit in pair}
    others = [[leaf for unit in side if id(unit) not in done for leaf in _leaves(unit)] for side in (linen, nnx)]
    return layers + _among_alike(ordered(others[0]), ordered(others[1]), shape_alone)


def _in_another_order(linen: list[Unit], nnx: list[Unit]) -> Iterator[Guess]:
    """Layers that are alike in every other order, for models that call branches the other way round.

    Where these are too many to try them all, nothing is guessed.
    """
    groups = _groups(linen, nnx, likeness)
    if math.prod(math.factorial(len(right)) for _, right in groups) > GUESSES:
        return
    for chosen in itertools.product(*(itertools.permutations(right) for _, right in groups)):
        yield [pair for (left, _), right in zip(groups, chosen, strict=True) for pair in zip(left, right, strict=True)]


def _among_alike(linen: Sequence[Unit], nnx: Sequence[Unit], alike: Callable[[Unit], object]) -> Guess:
    return [pair for left, right in _groups(linen, nnx, alike) for pair in zip(left, right, strict=True)]


def _groups(
    linen: Sequence[Unit], nnx: Sequence[Unit], alike: Callable[[Unit], object]
) -> list[tuple[list[Unit], list[Unit]]]:
    """Units that are alike, of both sides; only groups of as many on one side as on the other."""
    groups: dict[object, tuple[list[Unit], list[Unit]]] = defaultdict(lambda: ([], []))
    for side, units in enumerate((linen, nnx)):
        for unit in units:
            groups[alike(unit)][side].append(unit)
    return [(left, right) for left, right in groups.values() if len(left) == len(right)]


def _leaves(unit: Unit) -> list[Unit]:
    if unit.kind:
        return []
    return [
        Unit("", {role: unit.members[role]}, {role: spec}, {role: unit.uses[role]})
        for role, spec in unit.specs.items()
        if role in unit.uses
    ]


# Pieces --------------------------------------------------------------------------------------------------------------


def _matches(board: Board, view: FoldedBoard, guess: Guess, evidence: Evidence) -> list[Match] | None:
    """The pieces that each pair of a guess amounts to; None if the shapes of any do not fit."""
    matches = []
    for linen, nnx in guess:
        names: dict[Role, Name] = {
            role: member for role, member in linen.members.items() if not isinstance(member, Part)
        }
        found: list[Piece] = []
        for part in dict.fromkeys(member for member in nnx.members.values() if isinstance(member, Part)):
            # A leaf on its own is paired whatever its name.
            wanted = names.values() if len(names) == 1 else [names[role] for role in canonical_roles(part)]
            piece = view.unfolded(Piece(tuple(wanted), part.nnx, part.to_nnx), part, evidence)
            fits = None if piece is None else fitted(board, piece, evidence)
            if fits is None:
                return None
            found.append(fits)
        matches.append(Match(linen, nnx, tuple(found)))
    return matches
