"""Which leaf of one checkpoint is which of another, whatever their formats, dialects and frameworks.

Both are read as training states. What has the same meaning in both is a pair: a model saved alone finds its parameters
in a train state, an ``nnx.State`` in a pure dict. Where the frameworks differ, the Linen side is brought to NNX by the
plan of a conversion without options, always in that direction: it needs no collections, which NNX does not record, and
the order of the two checkpoints makes no difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from converter.dialects import readings
from converter.dialects.dialect import Dialect, Lifted
from converter.dialects.nnx import NnxLayout
from converter.dialects.opt_state import OPT_STATE, STEP
from converter.dialects.rng import random_state_paths
from converter.dialects.train_state import LinenTrainState
from converter.paths import Path, PathGlob, format_path
from converter.planning.planner import plan_state
from converter.planning.request import Request
from converter.planning.wording import several
from converter.rules.names import joined_numbers
from converter.training_state import COLLECTIONS, Held, Part, Slot
from converter.tree import Leaf, LeafKind, Tree
from converter.verification.structure import same_spec

Place = tuple[str, Path]
"""Where a leaf belongs, told neutrally; the text keeps apart what might have the same path by chance."""


@dataclass(frozen=True, slots=True)
class Side:
    """A leaf of one of the checkpoints.

    Attributes:
      paths: where it stands there; several where the other framework has one leaf for them.
      leaf: what is compared with the other side's.
    """

    paths: tuple[Path, ...]
    leaf: Leaf

    @property
    def name(self) -> str:
        return several(self.paths)


@dataclass(frozen=True, slots=True)
class Pairing:
    """The leaves of two checkpoints.

    Attributes:
      dialects: how both were read; None where one of them belongs to no framework, and paths were compared as they are.
      pairs: what is in both.
      only: what is in the first alone, and in the second.
      notes: what is in one of them alone, but is no difference.
    """

    dialects: tuple[Dialect, Dialect] | None
    pairs: tuple[tuple[Side, Side], ...]
    only: tuple[tuple[Side, ...], tuple[Side, ...]]
    notes: tuple[str, ...] = ()

    @property
    def in_common(self) -> tuple[int, int]:
        """How many pairs there are, and how many of them agree in dtype and shape."""
        return len(self.pairs), sum(same_spec(a.leaf.spec, b.leaf.spec) for a, b in self.pairs)


def pair(a: Tree, b: Tree) -> Pairing:
    """Pairs the leaves of two trees, in those of their readings that have most in common."""
    best: Pairing | None = None
    for one, other in _candidates(readings(a), readings(b)):
        found = _paired(a, b, one, other)
        if best is None or found.in_common > best.in_common:
            best = found
        pairs, alike = best.in_common
        if pairs == alike and not any(best.only):
            break
    return best or _joined(None, _as_they_are(a), _as_they_are(b))


def _candidates(a: tuple[Dialect, ...], b: tuple[Dialect, ...]) -> Iterator[tuple[Dialect, Dialect]]:
    """The most plausible first, whatever the order of the two checkpoints."""
    ranked = itertools.product(enumerate(a), enumerate(b))
    order = sorted(ranked, key=lambda pair: (pair[0][0] + pair[1][0], sorted((pair[0][1].title, pair[1][1].title))))
    return ((one, other) for (_, one), (_, other) in order)


def _paired(a: Tree, b: Tree, one: Dialect, other: Dialect) -> Pairing:
    if one.framework == other.framework:
        return _joined((one, other), _places(one, one.lift(a)), _places(other, other.lift(b)))
    if one.framework == "nnx":
        swapped = _paired(b, a, other, one)
        pairs = tuple((right, left) for left, right in swapped.pairs)
        return Pairing((one, other), pairs, (swapped.only[1], swapped.only[0]), swapped.notes)
    nnx = other.lift(b)
    linen, problems = _as_nnx(one, a, {slot.path for slot in nnx.state if slot.part is Part.VARIABLES})
    places = _places(other, nnx)
    found = _joined((one, other), _numbered_alike(linen, places), places)
    random = random_state_paths({side.paths[0]: side.leaf for side in found.only[1]})
    notes = [f"{format_path(path)} is NNX random state, which the other side does not have" for path in random]
    rest = tuple(side for side in found.only[1] if side.paths[0] not in random)
    return replace(found, only=(_apart(found.only[0], one.lift(a)), rest), notes=(*notes, *problems))


def _numbered_alike(linen: Mapping[Place, Side], nnx: Mapping[Place, Side]) -> dict[Place, Side]:
    """The Linen side with the items of lists where they stand in NNX: ``layers_0`` is ``layers/0`` there."""
    spelled: dict[Place, list[Place]] = {}
    for kind, path in nnx:
        if (kind, path) not in linen:
            spelled.setdefault((kind, joined_numbers(path)), []).append((kind, path))
    found: dict[Place, Side] = {}
    for (kind, path), side in linen.items():
        same = spelled.get((kind, joined_numbers(path)), []) if (kind, path) not in nnx else []
        place = same[0] if len(same) == 1 and same[0] not in found else (kind, path)
        found[place] = side
    return found


def _apart(sides: Iterable[Side], lifted: Lifted) -> tuple[Side, ...]:
    """Leaves that have no counterpart, as they are in their own checkpoint."""
    own = {held.source: held.leaf for _, held in _held(lifted)}
    return tuple(Side((path,), own[path]) for side in sides for path in side.paths)


def _joined(dialects: tuple[Dialect, Dialect] | None, a: Mapping[Place, Side], b: Mapping[Place, Side]) -> Pairing:
    pairs = tuple((side, b[place]) for place, side in a.items() if place in b)
    only_a = tuple(side for place, side in a.items() if place not in b)
    only_b = tuple(side for place, side in b.items() if place not in a)
    return Pairing(dialects, pairs, (only_a, only_b))


# Places --------------------------------------------------------------------------------------------------------------


def _as_they_are(tree: Tree) -> dict[Place, Side]:
    return {("", path): Side((path,), leaf) for path, leaf in tree.full().items()}


def _places(dialect: Dialect, lifted: Lifted) -> dict[Place, Side]:
    """The leaves of a training state that hold something, by their place."""
    return _by_place(
        (_place(dialect, slot), slot.collection, Side((held.source,), held.leaf)) for slot, held in _held(lifted)
    )


def _held(lifted: Lifted) -> Iterator[tuple[Slot, Held]]:
    """The leaves that hold something."""
    for slot, held in lifted.state.items():
        if held.leaf.spec.kind is not LeafKind.EMPTY:
            yield slot, held


def _place(dialect: Dialect, slot: Slot) -> Place:
    inner = (*slot.prefix, *slot.path)
    match slot.part:
        case Part.VARIABLES if dialect.framework == "linen":
            return "", (slot.collection, *inner)
        case Part.VARIABLES:
            return "variable", inner
        case Part.STEP | Part.OPT_STATE:
            return slot.part.value, inner
        case Part.EXTRA:
            # What a train state calls a field of its own may be a collection of the other side's.
            return "", inner


def _by_place(sides: Iterable[tuple[Place, str, Side]]) -> dict[Place, Side]:
    """Where two share a place, the collection of what they follow tells them apart, and in the end their own path."""
    found: dict[Place, Side] = {}
    for (kind, path), collection, side in sides:
        for place in ((kind, path), (f"{kind}:{collection}", path), (f"{kind}:", side.paths[0])):
            if place not in found:
                found[place] = side
                break
    return found


# Linen as NNX --------------------------------------------------------------------------------------------------------

_NEUTRAL = NnxLayout(None, ("model",), ("optimizer",))
"""A layout with room for everything."""


def _as_nnx(dialect: Dialect, tree: Tree, variables: set[Path]) -> tuple[dict[Place, Side], list[str]]:
    """The leaves of a Linen tree by their place in NNX, and what stands in the way of others.

    Args:
      variables: the paths that the other side's variables have: they show which of a train state's own fields are
        collections.
    """
    if isinstance(dialect, LinenTrainState):
        own = {field for field in tree.children() if field not in (*COLLECTIONS, STEP, OPT_STATE)}
        known = {slot.path for slot in dialect.lift(tree).state if slot.part is Part.VARIABLES}
        # An average of the parameters has the paths of variables too, but of some that are there already.
        collections = {str(path[0]) for path in tree if path[0] in own and path[1:] in variables - known}
        dialect = replace(dialect, collections=frozenset(collections))
    lifted = dialect.lift(tree)
    request = Request(to="nnx", keep=(PathGlob("**"),), fill_random_state=False, fill_from_model=False, target=_NEUTRAL)
    plan = plan_state(dialect, lifted, request)
    steps = {step.target: step for step in plan.steps if step.sources and step.spec.kind is not LeafKind.EMPTY}
    made = _NEUTRAL.lift(Tree((path, step) for path, step in steps.items()))
    sides = []
    used: set[Path] = set()
    for slot, held in _held(made):
        sources = tuple(source.source for source in steps[held.source].sources)
        used.update(sources)
        sides.append((_place(_NEUTRAL, slot), "", Side(sources, held.leaf)))
    lost = [held for _, held in _held(lifted) if held.source not in used]
    sides += [(("lost", held.source), "", Side((held.source,), held.leaf)) for held in lost]
    return _by_place(sides), list(plan.problems)
