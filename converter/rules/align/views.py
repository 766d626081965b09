"""Parts of variables: which elements of the stored array they are, and in which order.

Slices, reshapes and transposes of an array are again that array's memory, read with other strides. So a part of a
variable is known by an offset and strides alone, however large the array is, and two ways of cutting out the same part
give the same view.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.rules.operations.assemble import positions

if TYPE_CHECKING:
    import numpy as np

Run = tuple[int, int]
"""So many elements, each so far from the one before: size and stride. Sizes are larger than one."""

Axis = tuple[Run, ...]
"""An axis as the runs it is made of, the last one running fastest; none where its length is one."""


@dataclass(frozen=True, slots=True)
class Region:
    """A set of elements of a variable, in no particular order.

    Attributes:
      variable: which variable.
      offset: the position of the first element.
      runs: where the others are, the longest way first.
      role: in which role they are used, where variables are told apart by it.
    """

    variable: int
    offset: int
    runs: Axis
    role: str = ""

    @property
    def size(self) -> int:
        return math.prod(size for size, _ in self.runs)


@dataclass(frozen=True, slots=True)
class View:
    """Elements of a variable, arranged as an array.

    Attributes:
      variable: which variable.
      offset: the position of the first element among the variable's elements in row-major order.
      axes: the array's axes.
    """

    variable: int
    offset: int
    axes: tuple[Axis, ...]

    @classmethod
    def whole(cls, variable: int, shape: Sequence[int]) -> View:
        """The stored array itself."""
        axes = []
        for at, size in enumerate(shape):
            axes.append(((size, math.prod(shape[at + 1 :])),) if size != 1 else ())
        return cls(variable, 0, tuple(axes))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(size for size, _ in axis) for axis in self.axes)

    @property
    def region(self) -> Region:
        """Which elements these are, whatever their order."""
        offset, runs = self.offset, []
        for size, stride in self.runs:
            # A run that is walked backwards holds the same elements.
            offset += (size - 1) * stride if stride < 0 else 0
            runs.append((size, abs(stride)))
        return Region(self.variable, offset, merged(sorted(runs, key=lambda run: (-run[1], run[0]))))

    @property
    def runs(self) -> Axis:
        return tuple(run for axis in self.axes for run in axis)

    def transposed(self, order: Sequence[int]) -> View:
        return View(self.variable, self.offset, tuple(self.axes[axis] for axis in order))

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """The same elements in another shape; None where strides cannot say that."""
        if math.prod(shape) != math.prod(self.shape):
            return None
        remaining = list(merged(self.runs))
        axes = []
        for size in shape:
            taken = _take_front(remaining, size)
            if taken is None:
                return None
            axes.append(taken)
        return View(self.variable, self.offset, tuple(axes))

    def taken(self, axis: int, start: int, count: int, step: int = 1) -> View | None:
        """``count`` elements along an axis, from ``start`` on; None where strides cannot say that."""
        found = _taken(self.axes[axis], start, count, step)
        if found is None:
            return None
        distance, runs = found
        return View(self.variable, self.offset + distance, (*self.axes[:axis], runs, *self.axes[axis + 1 :]))

    def positions(self) -> np.ndarray[Any, Any]:
        """The position of each element in the stored array, in the view's shape. As large as the view."""
        return positions(self.offset, self.runs).reshape(self.shape)


def merged(runs: Iterable[Run]) -> Axis:
    """The same elements in the same order in as few runs as possible."""
    found: list[Run] = []
    for size, stride in runs:
        if size == 1:
            continue
        if found and found[-1][1] == size * stride:
            found[-1] = (found[-1][0] * size, stride)
        else:
            found.append((size, stride))
    return tuple(found)


def _take_front(runs: list[Run], size: int) -> Axis | None:
    """Takes the outermost runs off that make an axis of that size, splitting the last one where it is larger."""
    taken: list[Run] = []
    needed = size
    while needed > 1:
        if not runs:
            return None
        length, stride = runs.pop(0)
        if needed % length == 0:
            taken.append((length, stride))
            needed //= length
        elif length % needed == 0:
            taken.append((needed, stride * (length // needed)))
            runs.insert(0, (length // needed, stride))
            needed = 1
        else:
            return None
    return tuple(taken) if needed == 1 else None


def _taken(axis: Axis, start: int, count: int, step: int) -> tuple[int, Axis] | None:
    """How far the first element is away, and the runs of a part of an axis."""
    if not axis:
        return (0, ()) if start == 0 and count == 1 else None
    (_, stride), rest = axis[0], axis[1:]
    inner = math.prod(length for length, _ in rest)
    if count == 1:
        below = _taken(rest, start % inner, 1, 1) if rest else (0, ())
        return None if below is None else (start // inner * stride + below[0], ())
    if step % inner == 0:  # whole steps of the outermost run, at one place of the inner ones
        below = _taken(rest, start % inner, 1, 1) if rest else (0, ())
        return None if below is None else (start // inner * stride + below[0], ((count, step // inner * stride),))
    last = start + (count - 1) * step
    if start // inner == last // inner:  # inside one step of the outermost run
        below = _taken(rest, start % inner, count, step)
        return None if below is None else (start // inner * stride + below[0], below[1])
    if step == 1 and start % inner == 0 and count % inner == 0:
        outer = () if count == inner else ((count // inner, stride),)
        return start // inner * stride, (*outer, *rest)
    return None
