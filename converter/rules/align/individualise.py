"""Choosing among parts that play the same part: branches that are added, the heads of an ensemble that is averaged.

If both models are the same at the finest level, exchanging two such parts, with everything that belongs to them,
changes nothing. So one pair is chosen, and what follows from it is looked for again: a kernel takes its bias along. At
the coarser levels equal colours do not mean this, and nothing is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping

from converter.rules.align.canonical import Sketch
from converter.rules.align.palette import Palette, by_size, classes
from converter.rules.align.refinement import refined
from converter.rules.align.views import Region

CHOICES = 400
"""So many choices are made at most; each costs a refinement of both models."""


def told_apart(
    sides: tuple[Sketch, Sketch], known: tuple[Mapping[Region, int], Mapping[Region, int]]
) -> list[tuple[Region, Region]] | None:
    """Pairs for everything that is not paired yet; None unless both sides are the same at the finest level.

    Args:
      sides: the two calls.
      known: the numbers of the pairs that are known.
    """
    numbers = [dict(side) for side in known]
    found: list[tuple[Region, Region]] = []
    for _ in range(CHOICES):
        palette = Palette()
        left, right = (
            classes(refined(palette, side, by_size(palette, side.leaves, own)))
            for side, own in zip(sides, numbers, strict=True)
        )
        if {c: len(m) for c, m in left.items()} != {c: len(m) for c, m in right.items()}:
            return None
        chosen = _certain(left, right, numbers[0]) or _first(left, right)
        if not chosen:
            return found
        for pair in chosen:
            number = len(numbers[0])
            numbers[0][pair[0]] = numbers[1][pair[1]] = number
            found.append(pair)
    return None


def _certain(
    left: Mapping[int, list[Region]], right: Mapping[int, list[Region]], known: Mapping[Region, int]
) -> list[tuple[Region, Region]]:
    """What has a colour of its own and is not paired yet."""
    return [
        (members[0], right[colour][0])
        for colour, members in left.items()
        if len(members) == 1 and members[0] not in known
    ]


def _first(left: Mapping[int, list[Region]], right: Mapping[int, list[Region]]) -> list[tuple[Region, Region]]:
    """One pair of those that cannot be told apart, in the order of their first use."""
    return next(([(members[0], right[colour][0])] for colour, members in left.items() if len(members) > 1), [])
