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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from converter.models.trace import Trace
from converter.rules.layers import GRU_HIDDEN_BIAS, LINEN_CELLS, NNX_CELLS, Part, Role
from converter.rules.link import Name
from converter.rules.matching.board import Board, Piece
from converter.rules.matching.evidence import Evidence
from converter.rules.matching.fitting import NORM_VARIABLES, fitted
from converter.rules.matching.ties import with_ties
from converter.rules.operations import NotInvertible, Unfit
from converter.tree import LeafSpec, Path


@dataclass(frozen=True, slots=True)
class Unit:
    """Variables that stay together: those of one layer.

    Attributes:
      kind: the recipe of a recurrent cell; "" for all others.
      members: what stands for each role: a variable of Linen, or the part of NNX that holds it.
      specs: spec of each role as Linen stores it.
      uses: where the call uses each of them first; nothing for those that it does not use.
    """

    kind: str
    members: Mapping[Role, Name | Part]
    specs: Mapping[Role, LeafSpec]
    uses: Mapping[Role, int]


GUESSES = 64
"""How many readings are tried; each costs a run of both models."""

Guess = list[tuple[Unit, Unit]]
"""Units of Linen and NNX that may be the same."""


def pair_by_order(board: Board, evidence: Evidence) -> str:
    """Pairs what is still free by the order of its use, if running both models confirms it.

    Variables that are one on one side and several on the other (tied weights) are recognised by being used twice.

    Returns:
      what speaks against it; empty where everything is paired and confirmed, or where there is nothing to pair.
    """
    if not (board.free_linen or any(not part.is_own_state for part in board.free_parts.values())):
        return ""
    traces = evidence.traces()
    if isinstance(traces, str):
        return f"the order of use tells nothing: {traces}"
    linen_trace, nnx_trace = traces
    linen, nnx = _linen_units(board, linen_trace), _nnx_units(board, nnx_trace)
    objection = ""
    tried: list[list[Piece]] = []
    for guess in itertools.islice(_guesses(linen, nnx), GUESSES):
        pieces = _pieces(board, guess, evidence)
        if pieces is None:
            continue
        all_pieces = with_ties(board, [*board.pieces, *pieces], linen_trace, nnx_trace)
        if all_pieces is None or all_pieces in tried:
            continue
        tried.append(all_pieces)
        objection = evidence.confirm(all_pieces)
        if not objection:
            board.pieces.clear()
            for piece in all_pieces:
                board.settle(piece)
            return ""
    return f"pairing by the order of use does not give the same outputs: {objection}" if objection else ""


# Units ---------------------------------------------------------------------------------------------------------------


def _linen_units(board: Board, trace: Trace) -> list[Unit]:
    layers = board.linen_model.layers if board.linen_model else ()
    cells = {layer.path: layer.kind for layer in layers if layer.kind in LINEN_CELLS}
    grouped: dict[Path, dict[Role, Name]] = defaultdict(dict)
    for collection, path in board.free_linen:
        root = next((path[:depth] for depth in range(len(path)) if path[:depth] in cells), path[:-1])
        grouped[root][_canonical((collection, path[len(root) :]))] = (collection, path)
    units = []
    for root, members in grouped.items():
        kind = NNX_CELLS[cells[root]].kind if root in cells else ""
        specs = {role: board.linen[name] for role, name in members.items()}
        uses = {role: trace.uses[name][0] for role, name in members.items() if name in trace.uses}
        units.append(Unit(kind, dict(members), specs, uses))
    return _ordered(units)


def _nnx_units(board: Board, trace: Trace) -> list[Unit]:
    grouped: dict[Path, list[Part]] = defaultdict(list)
    for part in board.free_parts.values():
        if not part.is_own_state:
            grouped[part.root].append(part)
    units = []
    for parts in grouped.values():
        members: dict[Role, Name | Part] = {}
        specs: dict[Role, LeafSpec] = {}
        uses: dict[Role, int] = {}
        for part in parts:
            try:
                singles = part.to_nnx.inverse().specs([board.nnx[name] for name in part.nnx])
            except (Unfit, NotInvertible):
                continue
            members |= {_canonical(role): part for role in part.roles}
            specs |= {_canonical(role): spec for role, spec in zip(part.roles, singles, strict=True)}
            for name in part.nnx:
                if name in trace.uses:
                    uses |= dict.fromkeys(map(_canonical, part.roles), trace.uses[name][0])
        units.append(Unit(parts[0].kind, members, specs, uses))
    return _ordered(units)


def _canonical(role: Role) -> Role:
    """A key with slashes names the wrapped layer, which is called otherwise where it stands elsewhere."""
    collection, path = role
    _, slash, rest = path[-1].partition("/")
    return (collection, (*path[:-1], f"*/{rest}")) if slash else role


def _ordered(units: Iterable[Unit]) -> list[Unit]:
    """The units in the order of their first use; what is not used has no place in it."""
    return sorted((unit for unit in units if unit.uses), key=lambda unit: min(unit.uses.values()))


# Guesses -------------------------------------------------------------------------------------------------------------


def _guesses(linen: list[Unit], nnx: list[Unit]) -> Iterator[Guess]:
    """All readings, the most plausible first."""
    yield _all_in_order(linen, nnx)
    yield _by_likeness(linen, nnx)
    yield _leaf_by_leaf(linen, nnx)
    yield from _in_another_order(linen, nnx)


def _all_in_order(linen: list[Unit], nnx: list[Unit]) -> Guess:
    """The first with the first and so on, if both sides use the same layers in the same order."""
    if len(linen) != len(nnx) or any(_likeness(a) != _likeness(b) for a, b in zip(linen, nnx, strict=True)):
        return []
    return list(zip(linen, nnx, strict=True))


def _by_likeness(linen: list[Unit], nnx: list[Unit]) -> Guess:
    """The same among those alone that are alike: as many layers of one kind and shape on both sides."""
    return _among_alike(linen, nnx, _likeness)


def _leaf_by_leaf(linen: list[Unit], nnx: list[Unit]) -> Guess:
    """Layers as far as they are alike; the other variables one by one, whatever their names and layers."""
    layers = _by_likeness(linen, nnx)
    done = {id(unit) for pair in layers for unit in pair}
    others = [[leaf for unit in side if id(unit) not in done for leaf in _leaves(unit)] for side in (linen, nnx)]
    return layers + _among_alike(_ordered(others[0]), _ordered(others[1]), _shape_alone)


def _in_another_order(linen: list[Unit], nnx: list[Unit]) -> Iterator[Guess]:
    """Layers that are alike in every other order, for models that call branches the other way round.

    Where these are too many to try them all, nothing is guessed.
    """
    groups = _groups(linen, nnx, _likeness)
    if math.prod(math.factorial(len(right)) for _, right in groups) > GUESSES:
        return
    for chosen in itertools.product(*(itertools.permutations(right) for _, right in groups)):
        yield [pair for (left, _), right in zip(groups, chosen, strict=True) for pair in zip(left, right, strict=True)]


def _among_alike(linen: Sequence[Unit], nnx: Sequence[Unit], likeness: Callable[[Unit], object]) -> Guess:
    return [pair for left, right in _groups(linen, nnx, likeness) for pair in zip(left, right, strict=True)]


def _groups(
    linen: Sequence[Unit], nnx: Sequence[Unit], likeness: Callable[[Unit], object]
) -> list[tuple[list[Unit], list[Unit]]]:
    """Units that are alike, of both sides; only groups of as many on one side as on the other."""
    groups: dict[object, tuple[list[Unit], list[Unit]]] = defaultdict(lambda: ([], []))
    for side, units in enumerate((linen, nnx)):
        for unit in units:
            groups[likeness(unit)][side].append(unit)
    return [(left, right) for left, right in groups.values() if len(left) == len(right)]


def _leaves(unit: Unit) -> list[Unit]:
    if unit.kind:
        return []
    return [
        Unit("", {role: unit.members[role]}, {role: spec}, {role: unit.uses[role]})
        for role, spec in unit.specs.items()
        if role in unit.uses
    ]


def _likeness(unit: Unit) -> object:
    """What two units that compute the same have in common: recipe, names and sizes of their variables."""
    roles = frozenset((role, _shape(role, spec)) for role, spec in unit.specs.items() if role[1] != GRU_HIDDEN_BIAS)
    return unit.kind, roles


def _shape_alone(unit: Unit) -> object:
    """The same for a single variable whose name says nothing."""
    ((role, spec),) = unit.specs.items()
    return role[0], tuple(sorted(spec.shape))


def _shape(role: Role, spec: LeafSpec) -> object:
    """A shape up to the order of its axes, which scans choose differently; for norms, which may flatten it, a size."""
    return spec.size if role[1][-1] in NORM_VARIABLES else tuple(sorted(spec.shape))


# Pieces --------------------------------------------------------------------------------------------------------------


def _pieces(board: Board, guess: Guess, evidence: Evidence) -> list[Piece] | None:
    """The pieces that a guess amounts to; None if their shapes do not fit."""
    found: list[Piece] = []
    for linen, nnx in guess:
        names: dict[Role, Name] = {role: member for role, member in linen.members.items() if isinstance(member, tuple)}
        for part in dict.fromkeys(member for member in nnx.members.values() if isinstance(member, Part)):
            roles = [_canonical(role) for role in part.roles]
            # A leaf on its own is paired whatever its name.
            wanted = list(names.values()) if len(names) == 1 else [names[role] for role in roles]
            piece = fitted(board, Piece(tuple(wanted), part.nnx, part.to_nnx), evidence)
            if piece is None:
                return None
            found.append(piece)
    return found
