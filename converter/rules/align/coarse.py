"""Colour refinement on skeletons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial

from converter.rules.align.palette import Colours, Palette, settled
from converter.rules.align.skeleton import Skeleton
from converter.rules.align.views import Region


def coarsely_refined(palette: Palette, skeleton: Skeleton, colours: Colours) -> dict[Region, int]:
    """Colours from the places of a skeleton; as ``refinement.refined``."""
    return settled(colours, partial(_round, palette, skeleton))


def _round(palette: Palette, skeleton: Skeleton, colours: Colours) -> dict[Region, int]:
    own = [
        palette.colour("place", place.label, None if place.region is None else colours[place.region])
        for place in skeleton.places
    ]
    forward = _from_the_front(palette, skeleton, own)
    backward = _from_behind(palette, skeleton, forward)
    around = [palette.colour("around", *both) for both in zip(forward, backward, strict=True)]
    seen: dict[Region, set[int]] = defaultdict(set)
    places: dict[Region, list[int]] = defaultdict(list)
    for place, colour in zip(skeleton.places, around, strict=True):
        if place.region is not None:
            places[place.region].append(colour)
    for attached in skeleton.attached:
        before = _sorted(palette.colour(around[place], label) for place, label in attached.before.items())
        behind = _sorted(around[place] for place in attached.behind)
        seen[attached.region].add(palette.colour("attached", attached.role, before, behind))
    return {
        region: palette.colour("leaf", colour, _sorted(places[region]), _sorted(seen[region]))
        for region, colour in colours.items()
    }


def _from_the_front(palette: Palette, skeleton: Skeleton, own: list[int]) -> list[int]:
    found: list[int] = []
    for place, colour in zip(skeleton.places, own, strict=True):
        edges = _sorted(palette.colour(found[before], label) for before, label in place.before.items())
        found.append(palette.colour("forward", colour, edges))
    return found


def _from_behind(palette: Palette, skeleton: Skeleton, forward: list[int]) -> list[int]:
    edges: dict[int, list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    for number in reversed(range(len(skeleton.places))):
        found[number] = palette.colour("backward", forward[number], _sorted(edges[number]))
        for before, label in skeleton.places[number].before.items():
            edges[before].append(palette.colour(found[number], label))
    return [found[number] for number in range(len(skeleton.places))]


def _sorted(colours: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(colours))
