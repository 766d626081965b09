"""A call of a model as a graph of operations on parts of its variables.

Nodes that compute the same from the same are one node. Changes of layout are applied to views at once and kept as nodes
elsewhere; what they do to names is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from converter.rules.align.views import View

Shape = tuple[int, ...]

CONSTANT, VARIABLE, INPUT = 0, 1, 2
"""What a node depends on at most: on nothing, on variables alone, on the inputs too."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A result of one operation. Nodes are compared by identity.

    Attributes:
      number: counts the nodes of a graph, operands before what is made of them.
      operation: the name of the primitive; ``view``, ``input`` and ``constant`` stand at the beginning.
      details: what else decides what the operation does; for a view the ``View``.
      operands: the nodes it is made of.
      shape: of the result.
      is_real: whether it holds real or complex numbers.
      depends: on what (``CONSTANT``, ``VARIABLE`` or ``INPUT``).
      value: for a constant, a function that gives its value as a NumPy array, or None where that is not known.
    """

    number: int
    operation: str
    details: Any
    operands: tuple[Node, ...]
    shape: Shape
    is_real: bool
    depends: int
    value: Any = None

    def __repr__(self) -> str:
        return f"{self.operation}{list(self.shape)}"


class Made(Protocol):
    """A node, or what is made of nodes in the same form."""

    @property
    def number(self) -> int: ...
    @property
    def operands(self) -> Sequence[Any]: ...


AnyMade = TypeVar("AnyMade", bound=Made)


def live(results: Sequence[AnyMade]) -> list[AnyMade]:
    """Everything that the results are made of, and they themselves, operands first."""
    seen: set[int] = set()
    found: list[AnyMade] = []
    waiting = list(results)
    while waiting:
        each = waiting.pop()
        if each.number not in seen:
            seen.add(each.number)
            found.append(each)
            waiting.extend(each.operands)
    return sorted(found, key=lambda each: each.number)


class Graph:
    """Makes nodes, each only once."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Node] = {}
        self._count = 0

    def node(
        self,
        operation: str,
        details: Hashable,
        operands: Sequence[Node],
        shape: Sequence[int],
        *,
        is_real: bool = True,
        depends: int | None = None,
        value: Any = None,
    ) -> Node:
        """The node of this operation on these operands."""
        shape = tuple(map(int, shape))
        key = (operation, details, tuple(operand.number for operand in operands), shape)
        if key not in self._known:
            if depends is None:
                depends = max((operand.depends for operand in operands), default=CONSTANT)
            self._known[key] = Node(self._count, operation, details, tuple(operands), shape, is_real, depends, value)
            self._count += 1
        return self._known[key]

    def view(self, view: View, is_real: bool) -> Node:
        """A part of a variable."""
        return self.node("view", view, (), view.shape, is_real=is_real, depends=VARIABLE)

    def constant(self, value: Any, shape: Sequence[int], *, is_real: bool, key: Hashable = None) -> Node:
        """A constant; ``value`` is a function that gives it, or None. Without a key it is equal to no other."""
        details = ("at", self._count) if key is None else key
        return self.node("constant", details, (), shape, is_real=is_real, depends=CONSTANT, value=value)

    # Layout ----------------------------------------------------------------------------------------------------------

    def reshaped(self, node: Node, shape: Sequence[int]) -> Node:
        shape = tuple(map(int, shape))
        if node.shape == shape:
            return node
        if node.operation == "view":
            view = node.details.reshaped(shape)
            if view is not None:
                return self.view(view, node.is_real)
        if node.operation == "reshape":
            return self.reshaped(node.operands[0], shape)
        return self.node("reshape", None, (node,), shape, is_real=node.is_real)

    def transposed(self, node: Node, order: Sequence[int]) -> Node:
        order = tuple(map(int, order))
        if order == tuple(range(len(order))):
            return node
        if node.operation == "view":
            return self.view(node.details.transposed(order), node.is_real)
        return self.node("transpose", order, (node,), [node.shape[axis] for axis in order], is_real=node.is_real)

    def broadcast(self, node: Node, shape: Sequence[int], axes: Sequence[int]) -> Node:
        """``jax.lax.broadcast_in_dim``; where it adds axes of length one only, that is a reshape."""
        shape, axes = tuple(map(int, shape)), tuple(map(int, axes))
        if math.prod(node.shape) == math.prod(shape):
            return self.reshaped(node, shape)
        return self.node("broadcast_in_dim", axes, (node,), shape, is_real=node.is_real)


def reshape_groups(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]] | None:
    """The smallest groups of axes of both shapes that hold the same elements; None where there are none.

    Axes of length one belong to no group.
    """
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    groups = []
    i = j = 0
    while i < len(left) and j < len(right):
        first_i, first_j = i, j
        size_left, size_right = before[left[i]], after[right[j]]
        while size_left != size_right:
            if size_left < size_right:
                i += 1
                if i == len(left):
                    return None
                size_left *= before[left[i]]
            else:
                j += 1
                if j == len(right):
                    return None
                size_right *= after[right[j]]
        i, j = i + 1, j + 1
        groups.append((left[first_i:i], right[first_j:j]))
    return groups if i == len(left) and j == len(right) else None
