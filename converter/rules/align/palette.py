"""Colours: small numbers that stand for what two things have in common.

A colour is given to each description once, in the order in which descriptions appear. So colours of both models can be
compared, never collide, and are the same in every run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

from converter.rules.align.views import Region

Colours = Mapping[Region, int]
"""The colour of each part of a variable that a call uses."""

ROUNDS = 8

Item = TypeVar("Item")


class Palette:
    """Gives colours; both models have to use the same palette."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def colour(self, *description: Hashable) -> int:
        return self._known.setdefault(description, len(self._known))


def settled(colours: Colours, step: Callable[[Colours], dict[Region, int]]) -> dict[Region, int]:
    """Colours after as many steps as tell more apart, or ``ROUNDS`` of them."""
    known = dict(colours)
    count = 0
    for _ in range(ROUNDS):
        known = step(known)
        before, count = count, len(set(known.values()))
        if before == count:
            break
    return known


def classes(colours: Mapping[Item, int]) -> dict[int, list[Item]]:
    """The members of each colour, in their order."""
    found: dict[int, list[Item]] = defaultdict(list)
    for item, colour in colours.items():
        found[colour].append(item)
    return dict(found)


def by_size(palette: Palette, regions: Iterable[Region], known: Mapping[Region, int]) -> dict[Region, int]:
    """The first colours: the number of elements, or the number of the pair where that is known already."""
    return {
        region: palette.colour("pair", known[region]) if region in known else palette.colour("size", region.size)
        for region in regions
    }
