"""Another order of leaves, between operations that take or give several of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from converter.grid import Grid
from converter.rules.operations.operation import Harmless, Operation, Specs, groups
from converter.tree import LeafSpec


@dataclass(frozen=True, slots=True)
class Regroup(Harmless):
    """Leaves counted by several numbers, the last one running fastest, are counted in another order of these numbers.

    The arrays stay as they are. It stands between a split and a stack: the parts of every layer come one after the
    other, and what is stacked are equal parts of different layers.

    Attributes:
      counts: how many there are of each number.
      order: the positions of the numbers in their new order.
    """

    counts: tuple[int, ...]
    order: tuple[int, ...]
    name: str = ""

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        return tuple(self._reordered(sources))

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        return self._reordered(values)

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        return self._reordered(grids)

    def _reordered(self, items: Sequence[Any]) -> list[Any]:
        steps = [math.prod(self.counts[at + 1 :]) for at in range(len(self.counts))]
        runs = [range(0, self.counts[at] * steps[at], steps[at]) for at in self.order]
        positions = [sum(offsets) for offsets in itertools.product(*runs)]
        return [group[at] for group in groups("regroup", items, math.prod(self.counts)) for at in positions]

    def inverse(self) -> Operation:
        counts = tuple(self.counts[at] for at in self.order)
        return Regroup(counts, tuple(self.order.index(at) for at in range(len(self.order))))
