"""Variables that stay together whatever they are called: those of one layer, with the places where a call uses them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from converter.paths import Path
from converter.rules.layers import GRU_HIDDEN_BIAS, NNX_CELLS, Part, Role
from converter.rules.link import Name
from converter.rules.matching.fitting import NORM_VARIABLES
from converter.rules.matching.folded import FoldedBoard
from converter.rules.operations import NotInvertible, Unfit
from converter.tree import LeafSpec


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


def linen_units(board: FoldedBoard) -> list[Unit]:
    """The layers of Linen's free variables in the order of their first use."""
    grouped: dict[Path, dict[Role, Name]] = defaultdict(dict)
    for collection, path in board.free_linen:
        root = next((path[:depth] for depth in range(len(path)) if path[:depth] in board.cells), path[:-1])
        grouped[root][_canonical((collection, path[len(root) :]))] = (collection, path)
    units = []
    for root, members in grouped.items():
        kind = NNX_CELLS[board.cells[root]].kind if root in board.cells else ""
        specs = {role: board.linen[name] for role, name in members.items()}
        uses = {role: board.linen_uses[name] for role, name in members.items() if name in board.linen_uses}
        units.append(Unit(kind, dict(members), specs, uses))
    return ordered(units)


def nnx_units(board: FoldedBoard) -> list[Unit]:
    """The layers of NNX's free variables in the order of their first use."""
    grouped: dict[Path, list[Part]] = defaultdict(list)
    for part in board.free_parts.values():
        if not part.is_own_state:
            grouped[part.root].append(part)
    return ordered(_nnx_unit(board, parts) for parts in grouped.values())


def _nnx_unit(board: FoldedBoard, parts: list[Part]) -> Unit:
    members: dict[Role, Name | Part] = {}
    specs: dict[Role, LeafSpec] = {}
    uses: dict[Role, int] = {}
    for part in parts:
        try:
            singles = part.to_nnx.inverse().specs([board.nnx[name] for name in part.nnx])
        except (Unfit, NotInvertible):
            continue
        roles = canonical_roles(part)
        members |= dict.fromkeys(roles, part)
        specs |= dict(zip(roles, singles, strict=True))
        for name in part.nnx:
            if name in board.nnx_uses:
                uses |= dict.fromkeys(roles, board.nnx_uses[name])
    return Unit(parts[0].kind, members, specs, uses)


def canonical_roles(part: Part) -> list[Role]:
    """The roles of a part as units know them."""
    return list(map(_canonical, part.roles))


def _canonical(role: Role) -> Role:
    """A key with slashes names the wrapped layer, which is called otherwise where it stands elsewhere."""
    collection, path = role
    _, slash, rest = path[-1].partition("/")
    return (collection, (*path[:-1], f"*/{rest}")) if slash else role


def ordered(units: Iterable[Unit]) -> list[Unit]:
    """The units in the order of their first use; what is not used has no place in it."""
    return sorted((unit for unit in units if unit.uses), key=lambda unit: min(unit.uses.values()))


def likeness(unit: Unit) -> object:
    """What two units that compute the same have in common: recipe, names and sizes of their variables."""
    roles = frozenset((role, _shape(role, spec)) for role, spec in unit.specs.items() if role[1] != GRU_HIDDEN_BIAS)
    return unit.kind, roles


def shape_alone(unit: Unit) -> object:
    """The same for a single variable whose name says nothing."""
    ((role, spec),) = unit.specs.items()
    return role[0], tuple(sorted(spec.shape))


def _shape(role: Role, spec: LeafSpec) -> object:
    """A shape up to the order of its axes, which scans choose differently; for norms, which may flatten it, a size."""
    return spec.size if role[1][-1] in NORM_VARIABLES else tuple(sorted(spec.shape))
