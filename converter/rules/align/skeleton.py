"""The coarser levels: only where parts of variables enter the computation, and in which order that happens.

Two implementations of a normalisation or an activation have nothing in common at the finest level. What they leave
alone is the skeleton: the places where variables are used, where results of variables meet (attention scores), and
which of these lies behind which. Its edges say whether something nonlinear lies in between; that tells the gate of a
gated unit from the values it lets through.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from converter.rules.align.canonical import Sketch, Term
from converter.rules.align.graph import CONSTANT, INPUT, VARIABLE
from converter.rules.align.views import Region

STRAIGHT, BENT, SUMMED = 1, 2, 4
"""How a result reaches a place: unchanged up to sums and factors, through something nonlinear, through a sum over an
axis. After such a sum nothing is said: that is where implementations of normalisations differ."""

Front = Mapping[int, int]
"""The nearest places before a result, and how it was reached from each."""

CONTRACTIONS = frozenset({"product", "convolution"})


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a skeleton.

    Attributes:
      label: what happens there, in words that both models share.
      before: the places in front of it, with the labels of the edges.
      region: the part of a variable that enters there.
    """

    label: tuple[object, ...]
    before: Mapping[int, object]
    region: Region | None = None


@dataclass(frozen=True, slots=True)
class Attached:
    """A part of a variable that is combined element by element, and the contractions around it.

    Attributes:
      region: the part.
      role: how it is combined.
      before: the nearest contractions in front of it, with the labels of the edges.
      behind: the nearest ones behind it.
    """

    region: Region
    role: str
    before: Mapping[int, object]
    behind: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The places, those in front first, and what is attached to them."""

    places: Sequence[Place]
    attached: Sequence[Attached]


def skeleton_of(sketch: Sketch, *, contractions_only: bool, inputs: bool = True) -> Skeleton:
    """The skeleton of a call.

    Args:
      contractions_only: make places of products alone, and attach what is combined element by element to them.
      inputs: make places of the inputs too. One model may look at a mask where another one knows it.
    """
    builder = _Builder(contractions_only, inputs)
    for term in sketch.terms:
        builder.add(term)
    for place, result in enumerate(sketch.results):
        builder.result(place, result)
    return Skeleton(builder.places, builder.attached)


class _Builder:
    def __init__(self, contractions_only: bool, inputs: bool) -> None:
        self._contractions_only = contractions_only
        self._inputs = inputs
        self.places: list[Place] = []
        self.attached: list[Attached] = []
        self._reach: list[int] = []  # for each place the places in front of it and itself, as bits
        self._front: dict[int, Front] = {}
        self._inside: dict[int, list[tuple[Region, str]]] = {}
        self._open: dict[int, frozenset[int]] = defaultdict(frozenset)  # attached, no place behind yet

    def add(self, term: Term) -> None:
        if term.depends == CONSTANT:
            return
        if term.depends == VARIABLE:
            self._inside[term.number] = self._regions(term)
        elif term.operation == "input":
            front = {self._place(("input", term.details), {}): STRAIGHT} if self._inputs else {}
            self._front[term.number] = front
        else:
            self._computed(term)

    def _regions(self, term: Term) -> list[tuple[Region, str]]:
        """What a term that depends on variables alone is made of, and whether a root is taken of it."""
        if term.region is not None:
            return [(term.region, "")]
        root = "root" if term.operation in ("rsqrt", "sqrt", "reciprocal") else ""
        inside = (found for operand in term.operands for found in self._inside.get(operand.number, ()))
        return [(region, mark or root) for region, mark in inside]

    def _computed(self, term: Term) -> None:
        own = [operand for operand in term.operands if operand.depends == INPUT]
        entering = [found for operand in term.operands for found in self._inside.get(operand.number, ())]
        self._open[term.number] = frozenset().union(*(self._open[operand.number] for operand in own))
        front = self._pruned(self._reached(own, term))
        if entering:
            role = "product" if term.operation in CONTRACTIONS else _role(term)
            if role != "product" and self._contractions_only:
                self._attach(term, role, entering, front)
                self._front[term.number] = front
            else:
                places = [self._place((role + mark,), _labels(front), region) for region, mark in entering]
                self._close(term, places)
                self._front[term.number] = dict.fromkeys(places, STRAIGHT)
        elif term.operation == "scores":
            place = self._place(("scores", term.details), self._scores_edges(term))
            self._close(term, [place])
            self._front[term.number] = {place: STRAIGHT}
        else:
            self._front[term.number] = front

    def _reached(self, operands: Iterable[Term], term: Term) -> dict[int, int]:
        sums = term.operation.startswith("reduce_")
        found: dict[int, int] = defaultdict(int)
        for operand in operands:
            for place, way in self._front[operand.number].items():
                if sums:
                    way = SUMMED
                elif _is_nonlinear(term):
                    way = way & SUMMED | (BENT if way & (STRAIGHT | BENT) else 0)
                found[place] |= way
        return found

    def _scores_edges(self, term: Term) -> dict[int, object]:
        """Edges that say to which side of the product a place leads."""
        if term.details == "symmetric":
            return {place: (label, "") for place, label in _labels(self._pruned(self._joined(term))).items()}
        sides: dict[int, str] = defaultdict(str)
        bent: dict[int, bool] = defaultdict(bool)
        for side, operand in zip("nf", term.operands, strict=True):
            for place, label in _labels(self._front.get(operand.number, {})).items():
                sides[place] += side
                bent[place] |= bool(label)
        kept = self._pruned(dict.fromkeys(sides, STRAIGHT))
        return {place: (bent[place], sides[place]) for place in kept}

    def _joined(self, term: Term) -> dict[int, int]:
        found: dict[int, int] = defaultdict(int)
        for operand in term.operands:
            for place, way in self._front.get(operand.number, {}).items():
                found[place] |= way
        return found

    def _pruned(self, front: Front) -> dict[int, int]:
        """Without the places that lie in front of others among them."""
        if len(front) < 2:
            return dict(front)
        kept, passed = {}, 0
        for place in sorted(front, reverse=True):
            if not passed >> place & 1:
                kept[place] = front[place]
                passed |= self._reach[place]
        return kept

    def _place(self, label: tuple[object, ...], before: Mapping[int, object], region: Region | None = None) -> int:
        self.places.append(Place(label, before, region))
        reach = 1 << (len(self.places) - 1)
        for place in before:
            reach |= self._reach[place]
        self._reach.append(reach)
        return len(self.places) - 1

    def _attach(self, term: Term, role: str, entering: Iterable[tuple[Region, str]], front: Front) -> None:
        opened = set()
        for region, mark in entering:
            opened.add(len(self.attached))
            self.attached.append(Attached(region, role + mark, _labels(front)))
        self._open[term.number] |= opened

    def _close(self, term: Term, places: Iterable[int]) -> None:
        """These places are the nearest ones behind what is still open; what lies behind them is not."""
        for attached in self._open[term.number]:
            behind = self.attached[attached].behind
            behind += [place for place in places if not any(self._reach[place] >> near & 1 for near in behind)]
        self._open[term.number] = frozenset()

    def result(self, place: int, term: Term) -> None:
        if term.number in self._front:
            made = self._place(("result", place), _labels(self._pruned(self._front[term.number])))
            self._close(term, [made])


def _role(term: Term) -> str:
    return term.operation if term.operation in ("add", "mul") else "each"


def _labels(front: Front) -> dict[int, object]:
    return {place: bool(way & BENT) for place, way in front.items()}


def _is_nonlinear(term: Term) -> bool:
    """Whether this bends numbers, rather than adding or scaling them."""
    return term.operation in _NONLINEAR


_NONLINEAR = frozenset(
    {
        *("abs", "clamp", "cos", "erf", "erfc", "exp", "exp2", "expm1", "integer_pow", "log", "log1p", "logistic"),
        *("max", "min", "pow", "rectified", "select_n", "sin", "tanh"),
    }
)
