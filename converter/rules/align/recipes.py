"""Pairs of parts as operations on whole variables: cut apart what is fused on one side, join what is on the other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from converter.rules.align.elements import Elements, Shape
from converter.rules.align.layouts import Digit, Inexpressible, Layout, Names, fitting_steps, layout_of
from converter.rules.operations import (
    REWRAP,
    Operation,
    Rearrange,
    Regroup,
    Split,
    Transpose,
    Unstack,
    chain,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Variables of Linen that become variables of NNX.

    Attributes:
      linen, nnx: their numbers, in the order in which the operation takes and gives them.
      linen_layout, nnx_layout: how each of them falls apart into the parts that are paired.
      middle: what is done to each part.
      shuffle: the order of the parts between cutting apart and joining, if it changes.
    """

    linen: tuple[int, ...]
    nnx: tuple[int, ...]
    linen_layout: Layout
    nnx_layout: Layout
    middle: Operation
    shuffle: Operation

    @property
    def operation(self) -> Operation:
        """What makes the variables of NNX from those of Linen."""
        apart = [exposing(self.linen_layout), *cuts(self.linen_layout.digits)]
        joined = [exposing(self.nnx_layout), *cuts(self.nnx_layout.digits)]
        return chain(*apart, self.shuffle, self.middle, *(step.inverse() for step in reversed(joined)))


def recipe_of(group: Sequence[Elements], shapes: tuple[Mapping[int, Shape], Mapping[int, Shape]]) -> Recipe:
    """The operation for variables whose parts are each other's.

    Args:
      group: all pairs of parts of these variables.
      shapes: the shapes of the variables of both sides.

    Raises:
      Inexpressible: there is no operation that does it.
    """
    steps = [fitting_steps(e, (shapes[0][e.linen], shapes[1][e.nnx])) for e in group]
    sides = []
    for side in (0, 1):
        numbers = [(e.linen, e.nnx)[side] for e in group]
        layouts = {}
        for number in dict.fromkeys(numbers):
            own = [at for at, other in enumerate(numbers) if other == number]
            parts = [(group[at].starts[side], [(step[0], step[1 + side]) for step in steps[at]]) for at in own]
            layouts[number] = (own, layout_of(shapes[side][number], parts))
        sides.append(layouts)
    (linen, linen_layout, before), (nnx, nnx_layout, after) = (_alike(side) for side in sides)
    linen_order, nnx_order = _sorted_by(linen, before, after), _sorted_by(nnx, after, before)
    middle = _middle(group, steps, sides)
    shuffle = _shuffle(
        [(linen_order.index(number), *place) for number, place in before],
        [(nnx_order.index(number), *place) for number, place in after],
        (len(linen), *(digit.count for digit in linen_layout.digits)),
    )
    return Recipe(tuple(linen_order), tuple(nnx_order), linen_layout, nnx_layout, middle, shuffle)


Side = Mapping[int, tuple[Sequence[int], Layout]]
"""For each variable the positions of its parts in the group, and how it falls apart into them."""

Place = tuple[int, tuple[int, ...]]
"""The variable in which a part lies, and its digits there."""


def _alike(side: Side) -> tuple[list[int], Layout, list[Place]]:
    """The variables of a side, how all of them fall apart, and where each part of the group lies."""
    (_, first), *rest = side.values()
    if any(not _falls_apart_alike(layout, first) for _, layout in rest):
        raise Inexpressible("the variables fall apart into their parts in different ways")
    places: dict[int, Place] = {}
    for number, (own, layout) in side.items():
        places |= {at: (number, place) for at, place in zip(own, layout.places, strict=True)}
    return list(side), first, [places[at] for at in sorted(places)]


def _falls_apart_alike(layout: Layout, other: Layout) -> bool:
    """Lengths of axes matter only where one of them is taken apart."""
    if any(digit.around for digit in layout.digits):
        return (layout.digits, layout.shape) == (other.digits, other.shape)
    return (layout.digits, len(layout.shape)) == (other.digits, len(other.shape))


def _sorted_by(numbers: Sequence[int], own: Sequence[Place], other: Sequence[Place]) -> list[int]:
    """The variables of one side in the order in which their first parts lie in those of the other side."""
    first: dict[int, tuple[tuple[int, ...], int]] = {}
    for (number, _), (opposite, place) in zip(own, other, strict=True):
        key = (place, opposite)
        first[number] = min(first.get(number, key), key)
    return sorted(numbers, key=lambda number: first[number])


def _shuffle(before: Sequence[tuple[int, ...]], after: Sequence[tuple[int, ...]], counts: Sequence[int]) -> Operation:
    """What brings the parts from the order of the one side into that of the other."""
    wanted = [position for position, _ in sorted(enumerate(after), key=lambda entry: entry[1])]
    present = [position for position, _ in sorted(enumerate(before), key=lambda entry: entry[1])]
    if wanted == present:
        return REWRAP
    for order in itertools.permutations(range(len(counts))):
        regroup = Regroup(tuple(counts), order)
        if regroup.apply(present, ()) == wanted:
            return regroup
    raise Inexpressible("the parts stand in an order that no stacking explains")


# Steps of a recipe ---------------------------------------------------------------------------------------------------


def exposing(layout: Layout) -> Operation:
    """Takes those axes apart in which the parts are interleaved: what counts the parts becomes an axis in front."""
    if all(digit.around is None for digit in layout.digits):
        return REWRAP
    letters = iter(LETTERS)
    taken = {digit.axis: digit for digit in layout.digits if digit.around}
    before: list[tuple[str, ...]] = []
    after: list[tuple[str, ...]] = []
    lengths: list[tuple[str, int]] = []
    for axis, size in enumerate(layout.shape):
        digit = taken.get(axis)
        if digit is None or digit.around is None:
            name = (next(letters),) if size != 1 else ()
            before.append(name)
            after.append(name)
            continue
        above, count, below = (next(letters) for _ in range(3))
        kept = [(above, digit.around[0]), (count, digit.count), (below, digit.around[1])]
        before.append(tuple(name for name, length in kept if length != 1))
        after += [(count,), tuple(name for name, length in (kept[0], kept[2]) if length != 1)]
        lengths += [(name, length) for name, length in kept if length != 1]
    return Rearrange(tuple(before), tuple(after), tuple(lengths))


def cuts(digits: Sequence[Digit]) -> list[Operation]:
    """Cuts a variable apart whose interleaved axes have been taken apart."""
    found: list[Operation] = []
    moved = 0
    for digit in digits:
        axis = digit.axis + moved
        if digit.lengths is None:
            found.append(Unstack(digit.count, axis))
            # The axis disappears, unless it was an additional one, beside what remains of the axis it was taken from.
            moved -= digit.around is None
        else:
            found.append(Split(digit.count, axis, None if digit.equal else digit.lengths))
    return found


def _middle(
    group: Sequence[Elements], steps: Sequence[Sequence[tuple[int, int, int]]], sides: Sequence[Side]
) -> Operation:
    """What is done to every part between cutting apart and joining; it has to be the same for all."""
    axes = []
    for side in sides:
        found: dict[int, tuple[Names, ...]] = {}
        for own, layout in side.values():
            found |= dict(zip(own, layout.axes, strict=True))
        axes.append(found)
    forms = {(axes[0][at], axes[1][at]) for at in range(len(group))}
    if len(forms) > 1:
        raise Inexpressible("the parts need different changes of their axes")
    ((before, after),) = forms
    names = sorted({name for axis in before for name in axis})
    lengths = [{own[name][0] for own in steps} for name in names]
    return arranged(before, after, dict(zip(names, lengths, strict=True)))


def arranged(before: Sequence[Names], after: Sequence[Names], lengths: Mapping[int, set[int]]) -> Operation:
    """The simplest operation that gives an array these axes, for all of the lengths that the steps may have."""
    if tuple(before) == tuple(after):
        return REWRAP
    if all(len(axis) == 1 for axis in (*before, *after)):
        return Transpose(tuple(list(before).index(axis) for axis in after))
    composite = {name for axis in (*before, *after) if len(axis) > 1 for name in axis}
    known = dict.fromkeys(sorted(composite))
    # Lengths that differ from part to part cannot be stated; of the others the last ones are left out first.
    for name in sorted(composite, key=lambda name: (len(lengths[name]) == 1, -name)):
        without = known.keys() - {name}
        if all(sum(other not in without for other in axis) < 2 for axis in (*before, *after)):
            del known[name]
    if any(len(lengths[name]) > 1 for name in known):
        raise Inexpressible("the parts have axes of different lengths that have to be taken apart")
    letters = {name: LETTERS[at] for at, name in enumerate(dict.fromkeys(itertools.chain(*before)))}
    stated = tuple((letters[name], next(iter(lengths[name]))) for name in known)
    left, right = (tuple(tuple(letters[name] for name in axis) for axis in side) for side in (before, after))
    return Rearrange(left, right, stated)
