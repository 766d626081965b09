"""Pairs of parts as pairs of elements: which element of one variable is which of the other, by strides alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from converter.rules.align.uses import EACH, PRODUCT, ROWS, Use
from converter.rules.align.views import Axis

Shape = tuple[int, ...]

Step = tuple[int, int, int]
"""So many elements, so far from each other in the Linen variable, and so far in the NNX variable."""


@dataclass(frozen=True, slots=True)
class Elements:
    """Elements of a variable of Linen that are elements of a variable of NNX.

    Attributes:
      linen, nnx: the numbers of the variables.
      starts: the positions of the first element in both.
      steps: the others are reached by these steps.
    """

    linen: int
    nnx: int
    starts: tuple[int, int]
    steps: tuple[Step, ...]

    def runs(self, side: int) -> list[tuple[int, int]]:
        """The steps in the variable of Linen (0) or NNX (1): so many elements, so far apart."""
        return [(step[0], step[1 + side]) for step in self.steps]

    @property
    def size(self) -> int:
        return math.prod(size for size, _, _ in self.steps)


def paired_elements(linen: Sequence[Use], nnx: Sequence[Use]) -> Elements | None:
    """The elements of two parts that are one, from the ways in which both are used; None where strides cannot tell."""
    for left, right in _alike(linen, nnx):
        steps = _together(left.runs, right.runs)
        if steps is not None:
            starts = left.view.offset, right.view.offset
            return _forwards(Elements(left.view.variable, right.view.variable, starts, steps))
    return None


def _forwards(elements: Elements) -> Elements:
    """The same elements where both models walk backwards along an axis."""
    starts, steps = list(elements.starts), []
    for size, *strides in elements.steps:
        if max(strides) < 0:
            starts = [start + (size - 1) * stride for start, stride in zip(starts, strides, strict=True)]
            strides = [-stride for stride in strides]
        steps.append((size, strides[0], strides[1]))
    return Elements(elements.linen, elements.nnx, (starts[0], starts[1]), tuple(steps))


_RANK = {ROWS: 0, PRODUCT: 1, EACH: 2}


def _alike(linen: Sequence[Use], nnx: Sequence[Use]) -> list[tuple[Use, Use]]:
    """Pairs of uses in which the axes have the same roles and lengths; after these, all others."""
    pairs = [(left, right) for left in linen for right in nnx]
    return sorted(pairs, key=lambda pair: (not _same(*pair), _RANK[pair[0].role], _RANK[pair[1].role]))


def _same(left: Use, right: Use) -> bool:
    return left.role_of_elements == right.role_of_elements and left.sizes == right.sizes


def _together(left: Axis, right: Axis) -> tuple[Step, ...] | None:
    """Both in runs of the same sizes."""
    first, second = list(left), list(right)
    found: list[Step] = []
    while first and second:
        (size, stride), (other_size, other_stride) = first.pop(0), second.pop(0)
        common = min(size, other_size)
        if size % common or other_size % common:
            return None
        found.append((common, stride * (size // common), other_stride * (other_size // common)))
        if size > common:
            first.insert(0, (size // common, stride))
        if other_size > common:
            second.insert(0, (other_size // common, other_stride))
    return None if first or second else tuple(found)
