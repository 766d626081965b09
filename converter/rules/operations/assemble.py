"""Arrays put together from parts of others, wherever these lie: for what no cutting and joining of axes describes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from converter import scratch
from converter.rules.operations.operation import Harmless, Operation, Specs, Unfit, joined, shaped
from converter.tree import LeafKind, LeafSpec

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, ...]


def positions(start: int, runs: Iterable[tuple[int, int]]) -> np.ndarray[Any, Any]:
    """The positions that runs of (so many, so far apart) lead to, with an axis for each run."""
    import numpy as np

    found = np.full((), start, np.int64)
    for size, stride in runs:
        found = found[..., None] + np.arange(size) * stride
    return found


class Part(NamedTuple):
    """Elements of a source that are elements of a result. Positions are those in C order.

    Attributes:
      source, result: the numbers of the arrays.
      starts: the positions of the first element in both.
      steps: the others are reached by these: so many elements, so far apart in the source, and so far in the result.
    """

    source: int
    result: int
    starts: tuple[int, int]
    steps: tuple[tuple[int, int, int], ...]

    def runs(self, side: int) -> list[tuple[int, int]]:
        """The steps in the source (0) or in the result (1): so many elements, so far apart."""
        return [(step[0], step[1 + side]) for step in self.steps]


@dataclass(frozen=True, slots=True)
class Assemble(Harmless):
    """Puts every element of the sources to one place of the results.

    Attributes:
      parts: they cover all sources and all results, each element once.
      before, after: the shapes of sources and results.
    """

    parts: tuple[Part, ...]
    before: tuple[Shape, ...]
    after: tuple[Shape, ...]

    @property
    def name(self) -> str:
        return f"put together from {len(self.parts)} parts"

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        expected = ", ".join(map(str, map(list, self.before)))
        if tuple(spec.shape for spec in sources) != self.before:
            raise Unfit(f"expected arrays of the shapes {expected}, found {', '.join(map(str, sources))}")
        kinds = {(spec.kind, spec.dtype) for spec in sources}
        if len(kinds) > 1 or any(kind is not LeafKind.ARRAY for kind, _ in kinds):
            raise Unfit(f"expected arrays of one dtype, found {', '.join(map(str, sources))}")
        return tuple(shaped(sources[0], shape) for shape in self.after)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        import numpy as np

        if all(isinstance(value, np.ndarray) for value in values):
            return self._copied(values)
        flat = joined("concatenate", [value.reshape(-1) for value in values], 0)
        return [flat[index] for index in self._indices()]

    def _copied(self, values: Sequence[np.ndarray[Any, Any]]) -> list[Any]:
        made = [scratch.empty(shape, values[0].dtype) for shape in self.after]
        whole = [scratch.contiguous(value) for value in values]
        for part in self.parts:
            scratch.copy(_seen(made[part.result], part, 1), _seen(whole[part.source], part, 0))
        return list(made)

    def _indices(self) -> list[np.ndarray[Any, Any]]:
        """For each result where its elements stand among those of all sources, one source after the other."""
        import numpy as np

        starts = np.cumsum([0, *map(math.prod, self.before)])
        found = [np.empty(math.prod(shape), np.int64) for shape in self.after]
        for part in self.parts:
            here, there = (positions(part.starts[side], part.runs(side)) for side in (0, 1))
            found[part.result][there] = here + starts[part.source]
        return [index.reshape(shape) for index, shape in zip(found, self.after, strict=True)]

    def inverse(self) -> Operation:
        parts = (
            Part(result, source, starts[::-1], tuple((size, there, here) for size, here, there in steps))
            for source, result, starts, steps in self.parts
        )
        return Assemble(tuple(parts), self.after, self.before)


def _seen(array: np.ndarray[Any, Any], part: Part, side: int) -> np.ndarray[Any, Any]:
    """A part of an array in C order, as a view with an axis for each step."""
    import numpy as np

    shape = [size for size, _ in part.runs(side)]
    strides = [stride * array.itemsize for _, stride in part.runs(side)]
    # The buffer is bytes, because the dtypes of ml_dtypes have no buffers.
    memory = array.reshape(-1).view(np.uint8)
    return np.ndarray(shape, array.dtype, memory, part.starts[side] * array.itemsize, strides)
