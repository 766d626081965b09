"""Who uses a result, and which of its axes is summed over first.

The scores of attention are a product of queries and keys; nothing in the product itself says which is which. But the
softmax that follows sums over the keys, so the operand whose own axis is summed over first holds the keys.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

from converter.rules.align.graph import Node, live, reshape_groups
from converter.rules.align.pushing import ELEMENTWISE, REDUCTIONS

SEARCHED = 300
"""How many axes of results are looked at."""


class Consumers:
    """The nodes that results depend on, operands first, and who uses each of them."""

    def __init__(self, results: Sequence[Node]) -> None:
        self.nodes = live(results)
        self._users: dict[int, list[tuple[Node, int]]] = defaultdict(list)
        for node in self.nodes:
            for place, operand in enumerate(node.operands):
                self._users[operand.number].append((node, place))

    def distances_to_sums(self, node: Node, axes: Sequence[int]) -> tuple[float, float]:
        """How many operations further on the last and the first of the axes are summed over.

        Groups of queries that share their keys are summed over with the heads; what marks queries is that their
        positions are not. Nothing, or what is never summed over, is infinitely far away.
        """
        found = [self._distance_to_sum(node, axis) for axis in axes if node.shape[axis] > 1]
        return max(found, default=math.inf), min(found, default=math.inf)

    def _distance_to_sum(self, node: Node, axis: int) -> float:
        waiting = deque([(node, axis, 0)])
        seen: set[tuple[int, int]] = set()
        while waiting and len(seen) < SEARCHED:
            node, axis, distance = waiting.popleft()
            if (node.number, axis) in seen:
                continue
            seen.add((node.number, axis))
            for user, place in self._users[node.number]:
                if _sums(user, place, axis):
                    return distance
                waiting.extend((user, after, distance + 1) for after in _followed(user, node, axis))
        return math.inf


def _sums(user: Node, place: int, axis: int) -> bool:
    if user.operation in REDUCTIONS:
        return axis in user.details
    return user.operation == "dot_general" and axis in user.details[0][place]


def _followed(user: Node, node: Node, axis: int) -> Iterator[int]:
    """The axes of a result that an axis of an operand becomes."""
    if user.operation in ELEMENTWISE:
        yield axis
    elif user.operation in REDUCTIONS:
        yield axis - sum(other < axis for other in user.details)
    elif user.operation == "transpose":
        yield user.details.index(axis)
    elif user.operation == "broadcast_in_dim":
        yield user.details[axis]
    elif user.operation == "slice" and user.details[0] != axis:
        yield axis
    elif user.operation == "reshape":
        for before, after in reshape_groups(node.shape, user.shape) or ():
            if axis in before:
                yield from after
