"""How a stored variable falls apart into the parts that are paired: cut along axes, after an axis was taken apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from converter.rules.align.elements import Elements, Shape, Step

Names = tuple[int, ...]
"""Steps of elements, by their numbers, the last one running fastest."""


class Inexpressible(Exception):
    """Elements correspond in a way that no operation of the rules describes; the text says why."""


@dataclass(frozen=True, slots=True)
class Digit:
    """One of the numbers by which the parts of a variable are counted: they lie side by side along an axis.

    Attributes:
      axis: of the stored variable.
      count: how many there are.
      lengths: how long each is; None where each is one position, so that the axis disappears.
      around: where an axis has to be taken apart first (``(h p k)``): the lengths above and below this number in it.
    """

    axis: int
    count: int
    lengths: tuple[int, ...] | None
    around: tuple[int, int] | None = None

    @property
    def equal(self) -> bool:
        return self.lengths is None or len(set(self.lengths)) == 1


@dataclass(frozen=True, slots=True)
class Layout:
    """How one variable falls apart.

    Attributes:
      shape: of the variable.
      digits: what its parts are counted by, in the order of the axes.
      places: for each of the parts its digits.
      axes: for each of the parts the steps that its remaining axes are made of.
    """

    shape: Shape
    digits: tuple[Digit, ...]
    places: tuple[tuple[int, ...], ...]
    axes: tuple[tuple[Names, ...], ...]


def fitting_steps(elements: Elements, shapes: tuple[Shape, Shape]) -> tuple[Step, ...]:
    """The steps, so fine that each lies within one axis of the variables on both sides."""
    steps = elements.steps
    for side, shape in enumerate(shapes):
        steps = tuple(part for step in steps for part in _divided(step, side, shape))
    return steps


def _divided(step: Step, side: int, shape: Shape) -> list[Step]:
    """A step along several axes as one step along each of them, the outer ones first."""
    size, strides = step[0], step[1:]
    end = strides[side]
    for length, below in reversed(_axes(shape)):
        inside = length * below // end if end and length * below % end == 0 else 0
        if length > 1 and below <= abs(end) < length * below and inside and inside < size:
            if size % inside:
                raise Inexpressible("a part runs over the end of an axis")
            outer = (size // inside, strides[0] * inside, strides[1] * inside)
            return [*_divided(outer, side, shape), (inside, *strides)]
    return [step]


def _axes(shape: Shape) -> list[tuple[int, int]]:
    """Length and stride of each axis."""
    return [(size, math.prod(shape[at + 1 :])) for at, size in enumerate(shape)]


def layout_of(shape: Shape, parts: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> Layout:
    """How a variable falls apart into these parts.

    Args:
      shape: of the variable.
      parts: for each part the position of its first element, and size and stride of its steps.

    Raises:
      Inexpressible: they do not cover the variable, overlap, or do not lie in a grid.
    """
    digits: list[Digit] = []
    values: list[list[int]] = []
    axes: list[list[Names]] = [[] for _ in parts]
    for axis, (length, stride) in enumerate(_axes(shape)):
        slices = [_slice(start, steps, length, stride) for start, steps in parts]
        digit, own = _digit(axis, length, slices)
        if digit is not None:
            digits.append(digit)
            values.append(own)
        if digit is None or digit.lengths is not None or digit.around is not None:
            for part, found in enumerate(slices):
                axes[part].append(found.names)
    places = list(zip(*values, strict=True)) if values else [()] * len(parts)
    grid = set(itertools.product(*(range(digit.count) for digit in digits)))
    if len(set(places)) < len(places) or set(places) != grid:
        raise Inexpressible("the parts that are used overlap, or leave something out")
    return Layout(shape, tuple(digits), tuple(places), tuple(map(tuple, axes)))


@dataclass(frozen=True, slots=True)
class _Slice:
    """What a part takes of an axis.

    Attributes:
      start, length: where it begins, how many positions it takes.
      gaps: lengths above, at and below a number that the part has no step for; None where it takes a range.
      names: its steps along this axis.
    """

    start: int
    length: int
    gaps: tuple[int, int, int] | None
    names: Names


def _slice(start: int, steps: Sequence[tuple[int, int]], length: int, stride: int) -> _Slice:
    first = start // stride % length if length else 0
    own = [(size, step, name) for name, (size, step) in enumerate(steps) if stride <= step < length * stride]
    if any(step < 0 for _, step in steps):
        raise Inexpressible("elements run backwards in one of the models")
    own.sort(key=lambda entry: -entry[1])
    names = tuple(name for _, _, name in own)
    taken = math.prod(size for size, _, _ in own)
    gaps, below = [], stride
    for size, step, _ in reversed(own):
        if step != below:
            if step % below:
                raise Inexpressible("the steps along an axis do not fit together")
            gaps.append((below // stride, step // below))
        below = step * size
    if not gaps:
        return _Slice(first, taken, None, names)
    if len(gaps) > 1 or length * stride != below:
        raise Inexpressible("an axis is cut in several ways at once")
    ((inner, count),) = gaps
    return _Slice(first, taken, (length // (inner * count), count, inner), names)


def _digit(axis: int, length: int, slices: Sequence[_Slice]) -> tuple[Digit | None, list[int]]:
    """What counts the parts along an axis, and the number of each part."""
    gaps = {found.gaps for found in slices}
    if gaps == {None}:
        ranges = sorted({(found.start, found.length) for found in slices})
        if ranges == [(0, length)]:
            return None, []
        lengths = tuple(size for _, size in ranges)
        if [start for start, _ in ranges] != list(itertools.accumulate((0, *lengths[:-1]))) or sum(lengths) != length:
            raise Inexpressible("the parts that are used overlap, or leave something out")
        single = set(lengths) == {1}
        digit = Digit(axis, len(ranges), None if single else lengths)
        return digit, [ranges.index((found.start, found.length)) for found in slices]
    above, count, below = next(gap for gap in gaps if gap)
    if len(gaps) > 1:
        raise Inexpressible("an axis is cut in different ways for different parts")
    return Digit(axis, count, None, (above, below)), [found.start // below % count for found in slices]
