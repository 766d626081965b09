"""Biases that one side lacks: both models are the same function where they are zero.

Without all of its biases a model is a smaller one. If both are the same then, each bias belongs to the place where it
was added; and what is added at a place of one side only has to be zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from converter.rules.align.canonical import Sketch, additive
from converter.rules.align.levels import Level, Pair, paired
from converter.rules.align.palette import Palette, by_size, classes
from converter.rules.align.refinement import around_terms, refined
from converter.rules.align.sketches import Sketches
from converter.rules.align.views import Region
from converter.training_state import PARAMS


@dataclass(frozen=True, slots=True)
class ApartFromBiases:
    """What can be told with all biases taken for zeros.

    Attributes:
      pairs: pairs of parts.
      alone: the biases of Linen and of NNX in the places of which the other side adds nothing.
    """

    pairs: tuple[Pair, ...] = ()
    alone: tuple[frozenset[Region], frozenset[Region]] = (frozenset(), frozenset())


def paired_apart_from_biases(linen: Sketches, nnx: Sketches) -> ApartFromBiases:
    """Pairs of parts as far as they can be told with all biases taken for zeros."""
    stripped = linen.sketch(zeros=_biases(linen)), nnx.sketch(zeros=_biases(nnx))
    pairing = paired(*stripped)
    if not pairing.isomorphic:
        return ApartFromBiases()
    known = pairing.known()
    palette = Palette()
    left, right = (classes(_places(palette, sketch, numbers)) for sketch, numbers in zip(stripped, known, strict=True))
    biases = [
        Pair(members[0], right[colour][0], Level.APART_FROM_BIASES)
        for colour, members in left.items()
        if len(members) == len(right.get(colour, ())) == 1
    ]
    alone = (
        frozenset(region for colour, members in own.items() if colour not in other for region in members)
        for own, other in ((left, right), (right, left))
    )
    first, second = alone
    pairs = (replace(pair, level=_level(pair.level)) for pair in pairing.pairs)
    return ApartFromBiases((*pairs, *biases), (first, second))


def _level(level: Level) -> Level:
    return Level.APART_FROM_BIASES if level is Level.UNIQUE else level


def _biases(sketches: Sketches) -> list[Region]:
    """Parameters that are only added."""
    names = sketches.program.variables
    return [region for region in additive(sketches.sketch()) if names[region.variable][0] == PARAMS]


def _places(palette: Palette, sketch: Sketch, numbers: Mapping[Region, int]) -> dict[Region, int]:
    """For each bias a colour that says where it is added."""
    colours = refined(palette, sketch, by_size(palette, sketch.leaves, numbers))
    around = around_terms(palette, sketch, colours)
    return {
        region: palette.colour("added", region.size, tuple(sorted(around.get(term.number, -1) for term in terms)))
        for region, terms in sketch.removed.items()
    }
