"""How parts of variables are used: which of their axes are summed over in a product.

Two models may keep one kernel in any shape and order of axes. In a product its axes have roles, and in the order of
these roles the elements of both kernels correspond.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from converter.rules.align.graph import VARIABLE, Node
from converter.rules.align.views import Axis, Region, View

ROWS, PRODUCT, EACH = "rows", "product", "each"


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a part of a variable.

    Attributes:
      role: rows of it are taken (an embedding), it is multiplied and summed over, or combined element by element.
      view: the part in the layout in which it is used.
      batch, summed, free: its axes by their roles; those summed over are in the order of the other operand's axes.
    """

    role: str
    view: View
    batch: Axis
    summed: Axis
    free: Axis

    @property
    def runs(self) -> Axis:
        """The elements in the order of the roles."""
        return (*self.batch, *self.summed, *self.free)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return _size(self.batch), _size(self.summed), _size(self.free)

    @property
    def role_of_elements(self) -> str:
        """Taking rows is multiplying with ones and zeros."""
        return PRODUCT if self.role == ROWS else self.role


def _size(axis: Axis) -> int:
    return math.prod(size for size, _ in axis)


def uses_of(node: Node) -> Iterator[tuple[int, Region, Use]]:
    """The operands of this node that are parts of variables: their places, what they are and how they are used."""
    if node.operation in ("view", "reshape", "transpose", "broadcast_in_dim"):
        return
    for place, operand in enumerate(node.operands):
        source = _behind_layout(operand)
        if source is None:
            continue
        view: View = source.details
        if node.operation == "dot_general" and operand is source:
            yield place, view.region, _in_product(node, place, view)
        elif node.operation == "conv_general_dilated" and place == 1 and operand is source:
            out, into, *space = node.details.kernel
            summed = tuple(run for axis in (*space, into) for run in view.axes[axis])
            yield place, view.region, Use(PRODUCT, view, (), summed, view.axes[out])
        elif node.operation == "gather" and place == 0 and operand is source:
            yield (
                place,
                view.region,
                Use(ROWS, view, (), view.axes[0], tuple(run for axis in view.axes[1:] for run in axis)),
            )
        else:
            yield place, view.region, Use(EACH, view, (), (), view.runs)


def _behind_layout(node: Node) -> Node | None:
    while node.operation in ("reshape", "transpose", "broadcast_in_dim") and node.depends == VARIABLE:
        (node,) = node.operands
    return node if node.operation == "view" else None


def _in_product(node: Node, place: int, view: View) -> Use:
    contracted, batched = node.details
    other = 1 - place
    pairs = sorted(zip(contracted[other], contracted[place], strict=True))
    summed = [axis for _, axis in pairs]
    free = [axis for axis in range(len(view.axes)) if axis not in contracted[place] and axis not in batched[place]]
    batch, summed_runs, free_runs = (
        tuple(run for axis in axes for run in view.axes[axis]) for axes in (batched[place], summed, free)
    )
    return Use(PRODUCT, view, batch, summed_runs, free_runs)
