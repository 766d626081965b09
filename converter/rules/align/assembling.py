"""Parts that no cutting and joining of axes explains, put to their places one by one.

A kernel for queries, keys and gates at once has blocks of unlike widths and was made of arrays of unlike ranks; that of
a cell that takes its input and its state side by side has blocks along two axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from converter.rules.align.elements import Elements, Shape
from converter.rules.align.layouts import Inexpressible
from converter.rules.operations import Assemble, Part
from converter.rules.operations.assemble import positions

Numbers = tuple[int, ...]

_MOST = 1 << 26
"""Elements that are looked at one by one to see that each of them is in one part."""


def assembly_of(
    group: Sequence[Elements], shapes: tuple[Mapping[int, Shape], Mapping[int, Shape]]
) -> tuple[Numbers, Numbers, Assemble]:
    """The numbers of the variables of both sides, and the operation that makes those of NNX from those of Linen.

    Args:
      group: all pairs of parts of these variables.
      shapes: the shapes of the variables of both sides.

    Raises:
      Inexpressible: the parts overlap, or leave something out.
    """
    linen, nnx = (tuple(dict.fromkeys((e.linen, e.nnx)[side] for e in group)) for side in (0, 1))
    for side, numbers in enumerate((linen, nnx)):
        for number in numbers:
            own = [e for e in group if (e.linen, e.nnx)[side] == number]
            lattices = [(e.starts[side], e.runs(side)) for e in own]
            if not _cover(lattices, math.prod(shapes[side][number])):
                raise Inexpressible("the parts that are used overlap, or leave something out")
    parts = tuple(Part(linen.index(e.linen), nnx.index(e.nnx), e.starts, e.steps) for e in group)
    before, after = (tuple(shapes[side][n] for n in own) for side, own in enumerate((linen, nnx)))
    return linen, nnx, Assemble(parts, before, after)


Lattice = tuple[int, list[tuple[int, int]]]
"""A first position, and the steps to the others: so many, so far apart."""


def _cover(lattices: list[Lattice], total: int) -> bool:
    """Whether each position below ``total`` is in one of them, and in one only."""
    import numpy as np

    if sum(math.prod(size for size, _ in steps) for _, steps in lattices) != total:
        return False
    lattices, total = _rows(lattices, total)
    if total > _MOST:
        raise Inexpressible("the parts are too many to be put together one by one")
    seen = np.zeros(total, bool)
    for start, steps in lattices:
        seen[positions(start, steps)] = True
    return bool(seen.all())


def _rows(lattices: list[Lattice], total: int) -> tuple[list[Lattice], int]:
    """The same for one row, where all rows are alike."""
    while lattices:
        outer = {max(steps, key=lambda step: step[1], default=(1, 0)) for _, steps in lattices}
        size, stride = next(iter(outer))
        if len(outer) > 1 or size < 2 or size * stride != total:
            break
        lattices = [(start, [step for step in steps if step != (size, stride)]) for start, steps in lattices]
        if any(start >= stride for start, _ in lattices):
            break
        total = stride
    return lattices, total
