"""Both calls as sketches, in the several ways in which they may be taken apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from converter.models.program import Program
from converter.rules.align.canonical import Sketch, Term, sketch_of
from converter.rules.align.graph import INPUT
from converter.rules.align.lowering import Lowering
from converter.rules.align.views import Region


class Sketches:
    """A traced call and its sketches. The graph is made once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        kept: set[Region] = set()
        while True:
            lowering = Lowering(kept)
            self._results = lowering.program(program.closed, program.searched)
            literal = sketch_of(self._results, literally=True)
            found = _better_kept(literal, lowering.cutter.origins)
            if found <= kept:
                break
            kept |= found

    def sketch(self, *, by_role: bool = False, zeros: Collection[Region] = (), literally: bool = False) -> Sketch:
        """The canonical form; see ``canonical.sketch_of``."""
        return sketch_of(self._results, by_role=by_role, zeros=zeros, literally=literally)

    @property
    def shapes(self) -> dict[int, tuple[int, ...]]:
        """The shapes of all variables by their numbers."""
        return dict(enumerate(self.program.shapes))


Origins = Mapping[Region, Collection[Region]]
"""For each part that was cut out of a variable the larger parts that it was cut out of."""


def _better_kept(sketch: Sketch, origins: Origins) -> set[Region]:
    """What is better left together: the pieces of these parts tell nothing."""
    pieces = [*_used_within_others(sketch.leaves), *_rotated(sketch, origins)]
    return {whole for piece in pieces for whole in origins.get(piece, ())}


def _used_within_others(regions: Collection[Region]) -> list[Region]:
    """The parts that lie within other parts that are used too."""
    used: dict[int, list[Region]] = defaultdict(list)
    for region in regions:
        used[region.variable].append(region)
    return [
        small
        for parts in used.values()
        for small in parts
        if any(_within(small, large) for large in parts if small.size < large.size)
    ]


def _within(small: Region, large: Region) -> bool:
    """Whether elements of the one are elements of the other, as far as their ends tell."""
    first, last = large.offset, large.offset + sum((size - 1) * stride for size, stride in large.runs)
    return first <= small.offset and small.offset + sum((s - 1) * stride for s, stride in small.runs) <= last


def _rotated(sketch: Sketch, origins: Origins) -> list[Region]:
    """The halves of what is turned in two halves: rotary positions add each half of a head to the other, both scaled.

    Another model may turn whole heads.
    """
    users: dict[int, list[Term]] = defaultdict(list)
    for term in sketch.terms:
        for operand in dict.fromkeys(term.operands):
            users[operand.number].append(term)
    parts: dict[Region, list[tuple[Region, set[int]]]] = defaultdict(list)
    for region, leaf in sketch.leaves.items():
        sums = _sums_with_another(leaf, users)
        for whole in origins.get(region, ()):
            parts[whole].append((region, sums))
    pairs = (both for both in parts.values() if len(both) == 2)
    return [half for both in pairs if len(both[0][1] & both[1][1]) == 2 for half, _ in both]


def _sums_with_another(leaf: Term, users: Mapping[int, list[Term]]) -> set[int]:
    """Where the product with a variable is used twice, each time scaled: the sums that both become a term of."""
    term, following = leaf, users[leaf.number]
    while len(following) == 1 and _only_scales(following[0], term, leaf):
        term, following = following[0], users[following[0].number]
    if term is leaf or len(following) != 2:
        return set()
    return {total for each in following if (total := _first_sum(each, users)) is not None}


def _first_sum(term: Term, users: Mapping[int, list[Term]]) -> int | None:
    """The sum that a result becomes a term of, after signs and factors; None where it becomes something else first."""
    following = [term]
    while len(following) == 1:
        (term,) = following
        if term.operation in ("add", "sub from"):
            return term.number
        if term.operation not in ("mul", "neg"):
            return None
        following = users[term.number]
    return None


def _only_scales(user: Term, term: Term, leaf: Term) -> bool:
    """Whether this is the product with a variable, or only adds or multiplies what does not depend on the inputs."""
    if user.operation == "product":
        return term is leaf
    others = [operand for operand in user.operands if operand is not term]
    return user.operation in ("add", "mul") and (term is leaf or all(other.depends < INPUT for other in others))
