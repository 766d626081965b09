"""The finest level: parts of variables are told apart by everything that they are computed with.

This is colour refinement, after Weisfeiler and Leman: the colour of a term says what it is made of and what is made of
it; parts with the same colour get new ones from the terms around them, until no class falls apart any more.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial

from converter.rules.align.canonical import Sketch, Term
from converter.rules.align.palette import Colours, Palette, settled
from converter.rules.align.views import Region


def refined(palette: Palette, sketch: Sketch, colours: Colours) -> dict[Region, int]:
    """Colours that tell apart whatever differs in what it is computed with.

    Args:
      colours: what is known before; parts of the same variable in both models have the same colour.
    """
    return settled(colours, partial(_round, palette, sketch))


def around_terms(palette: Palette, sketch: Sketch, colours: Colours) -> dict[int, int]:
    """For each term, by its number, a colour that says what it is made of and what is made of it."""
    made_of = _downwards(palette, sketch, colours)
    used_for = _upwards(palette, sketch, made_of)
    return {number: palette.colour("around", made, used_for[number]) for number, made in made_of.items()}


def _round(palette: Palette, sketch: Sketch, colours: Colours) -> dict[Region, int]:
    made_of = _downwards(palette, sketch, colours)
    used_for = _upwards(palette, sketch, made_of)
    return {
        region: palette.colour("leaf", colours[region], used_for[term.number]) for region, term in sketch.leaves.items()
    }


def _downwards(palette: Palette, sketch: Sketch, colours: Colours) -> dict[int, int]:
    """For each term a colour that says what it is made of."""
    found: dict[int, int] = {}
    for term in sketch.terms:
        if term.region is not None:
            found[term.number] = palette.colour("variable", colours[term.region])
        else:
            operands = [found[operand.number] for operand in term.operands]
            ordered = operands if term.is_ordered else sorted(operands)
            found[term.number] = palette.colour(term.operation, term.details, *ordered)
    return found


def _upwards(palette: Palette, sketch: Sketch, made_of: dict[int, int]) -> dict[int, int]:
    """For each term a colour that says what is made of it."""
    around: dict[int, list[int]] = defaultdict(list)
    for place, result in enumerate(sketch.results):
        around[result.number].append(palette.colour("result", place))
    found: dict[int, int] = {}
    for term in reversed(sketch.terms):
        found[term.number] = palette.colour("used for", *sorted(around[term.number]))
        for place, operand in enumerate(term.operands):
            where = _place(term, place)
            around[operand.number].append(palette.colour(found[term.number], made_of[term.number], where))
    return found


def _place(term: Term, place: int) -> int:
    return place if term.is_ordered else -1
