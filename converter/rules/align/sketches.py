"""Both calls as sketches, in the several ways in which they may be taken apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from converter.models.program import Program
from converter.rules.align.canonical import Sketch, Term, sketch_of
from converter.rules.align.graph import INPUT
from converter.rules.align.lowering import Lowering
from converter.rules.align.views import Region


class Sketches:
    """A traced call and its sketches. The graph is made once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._results = Lowering().program(program.closed, program.searched)
        literal = sketch_of(self._results, literally=True)
        whole = _used_whole_and_in_parts(literal.leaves) | _rotated(literal)
        if whole:
            # Variables that are used as a whole in one place and in parts in another are not cut: that tells nothing.
            self._results = Lowering(whole).program(program.closed, program.searched)

    def sketch(self, *, by_role: bool = False, zeros: Collection[Region] = (), literally: bool = False) -> Sketch:
        """The canonical form; see ``canonical.sketch_of``."""
        return sketch_of(self._results, by_role=by_role, zeros=zeros, literally=literally)

    @property
    def shapes(self) -> dict[int, tuple[int, ...]]:
        """The shapes of all variables by their numbers."""
        return dict(enumerate(self.program.shapes))


def _used_whole_and_in_parts(regions: Collection[Region]) -> set[int]:
    """The variables of which parts are used that are parts of each other."""
    used: dict[int, list[Region]] = defaultdict(list)
    for region in regions:
        used[region.variable].append(region)
    return {variable for variable, parts in used.items() if _overlap(parts)}


def _overlap(parts: Sequence[Region]) -> bool:
    return any(_within(small, large) for small in parts for large in parts if small.size < large.size)


def _within(small: Region, large: Region) -> bool:
    """Whether elements of the one are elements of the other, as far as their ends tell."""
    first, last = large.offset, large.offset + sum((size - 1) * stride for size, stride in large.runs)
    return first <= small.offset and small.offset + sum((s - 1) * stride for s, stride in small.runs) <= last


def _rotated(sketch: Sketch) -> set[int]:
    """The variables that are used in two halves, each of them twice: rotary positions turn the halves of each head.

    Another model may turn whole heads, so these are not cut.
    """
    users: dict[int, list[Term]] = defaultdict(list)
    for term in sketch.terms:
        for operand in dict.fromkeys(term.operands):
            users[operand.number].append(term)
    halves: dict[int, list[bool]] = defaultdict(list)
    for region, leaf in sketch.leaves.items():
        term, following = leaf, users[leaf.number]
        while len(following) == 1 and _only_scales(following[0], term, leaf):
            term, following = following[0], users[following[0].number]
        halves[region.variable].append(term is not leaf and len(following) == 2)
    return {variable for variable, twice in halves.items() if twice == [True, True]}


def _only_scales(user: Term, term: Term, leaf: Term) -> bool:
    """Whether this is the product with a variable, or only adds or multiplies what does not depend on the inputs."""
    if user.operation == "product":
        return term is leaf
    others = [operand for operand in user.operands if operand is not term]
    return user.operation in ("add", "mul") and (term is leaf or all(other.depends < INPUT for other in others))
