"""From colours to pairs: what has a colour of its own in both models is the same.

The levels go from exact to coarse. Each starts from the pairs of those before, so that a coarse level decides little.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from converter.rules.align.canonical import Sketch, additive, flattened
from converter.rules.align.coarse import coarsely_refined
from converter.rules.align.individualise import told_apart
from converter.rules.align.palette import Colours, Palette, by_size, classes
from converter.rules.align.refinement import refined
from converter.rules.align.skeleton import skeleton_of
from converter.rules.align.views import Region


class Level(enum.Enum):
    """How a pair was found, the surest way first."""

    UNIQUE = "the only one that is used in this way"
    SYMMETRIC = "one of several that are used in the same way, which makes no difference"
    APART_FROM_BIASES = "the only one that is used in this way, if biases that one side lacks are zero"
    SKELETON = "the only one at this place among all variables"
    CONTRACTIONS = "the only one at this place among the products"
    WITHOUT_INPUTS = "the only one at this place among the products, whatever the inputs are used for"
    TRIED = "one of several, told by running both models"


@dataclass(frozen=True, slots=True)
class Pair:
    """A part of a variable of Linen and the part of one of NNX that it is."""

    linen: Region
    nnx: Region
    level: Level


@dataclass(slots=True)
class Pairing:
    """What is paired, and what is not.

    Attributes:
      pairs: pairs of parts, in the order in which they were found.
      isomorphic: whether both models are the same at the finest level.
      open: classes of parts that cannot be told apart, of both models.
    """

    pairs: list[Pair] = field(default_factory=list)
    isomorphic: bool = False
    open: list[tuple[list[Region], list[Region]]] = field(default_factory=list)

    def known(self) -> tuple[dict[Region, int], dict[Region, int]]:
        """The number of the pair of each paired part."""
        linen = {pair.linen: number for number, pair in enumerate(self.pairs)}
        return linen, {pair.nnx: number for number, pair in enumerate(self.pairs)}


Refine = Callable[[Palette, Sketch, Colours], Mapping[Region, int]]


def paired(
    linen: Sketch, nnx: Sketch, literal: tuple[Sketch, Sketch] | None = None, known: Iterable[Pair] = ()
) -> Pairing:
    """Pairs the parts of variables that two calls use.

    Args:
      linen, nnx: the sketches of the calls.
      literal: the same with constants and signs, which tell apart what else is alike.
      known: pairs to begin with.
    """
    pairing = Pairing(list(known))
    sketches = [(linen, nnx), (flattened(linen), flattened(nnx))]
    steps = [(level, refine, sides) for level, refine in _LEVELS for sides in sketches]
    if literal is not None:
        steps.insert(0, (Level.UNIQUE, refined, literal))
    for level, refine, sides in steps:
        _pair_unique(pairing, sides, refine, level)
        if level is Level.UNIQUE:
            _pair_symmetric(pairing, sides)
        if len(pairing.pairs) >= min(len(linen.leaves), len(nnx.leaves)):
            break
    else:
        _pair_last(pairing, (linen, nnx))
    return pairing


def _pair_unique(pairing: Pairing, sides: tuple[Sketch, Sketch], refine: Refine, level: Level) -> None:
    palette, known = Palette(), pairing.known()
    left, right = (
        classes(refine(palette, side, by_size(palette, side.leaves, numbers)))
        for side, numbers in zip(sides, known, strict=True)
    )
    pairing.open = []
    for colour, members in left.items():
        others = right.get(colour, [])
        if len(members) == len(others) == 1:
            if members[0] not in known[0] and others[0] not in known[1]:
                pairing.pairs.append(Pair(members[0], others[0], level))
        elif others:
            pairing.open.append((members, others))


def _pair_symmetric(pairing: Pairing, sides: tuple[Sketch, Sketch]) -> None:
    """Where both models are the same at the finest level, any choice among what plays the same part is right."""
    found = told_apart(sides, pairing.known())
    if found is not None:
        pairing.isomorphic = True
        pairing.pairs += [Pair(linen, nnx, Level.SYMMETRIC) for linen, nnx in found]


def _pair_last(pairing: Pairing, sides: tuple[Sketch, Sketch]) -> None:
    """What is the last of its size on both sides may be the same, which running the models will tell.

    What is only added is left out: it may be a bias that the other side lacks.
    """
    known = pairing.known()
    left, right = (
        classes({region: region.size for region in side.leaves if region not in numbers and region not in added})
        for side, numbers, added in zip(sides, known, (set(additive(side)) for side in sides), strict=True)
    )
    for size in left.keys() & right.keys():
        if len(left[size]) == len(right[size]) == 1:
            pairing.pairs.append(Pair(left[size][0], right[size][0], Level.TRIED))


def _skeleton(palette: Palette, sketch: Sketch, colours: Colours) -> Mapping[Region, int]:
    return coarsely_refined(palette, skeleton_of(sketch, contractions_only=False), colours)


def _contractions(palette: Palette, sketch: Sketch, colours: Colours) -> Mapping[Region, int]:
    return coarsely_refined(palette, skeleton_of(sketch, contractions_only=True), colours)


def _without_inputs(palette: Palette, sketch: Sketch, colours: Colours) -> Mapping[Region, int]:
    return coarsely_refined(palette, skeleton_of(sketch, contractions_only=True, inputs=False), colours)


_LEVELS: tuple[tuple[Level, Refine], ...] = (
    (Level.UNIQUE, refined),
    (Level.SKELETON, _skeleton),
    (Level.CONTRACTIONS, _contractions),
    (Level.WITHOUT_INPUTS, _without_inputs),
)
