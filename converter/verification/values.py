"""Has every leaf of the destination the very bits that the plan makes from the source?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.formats.checkpoint import Progress
from converter.planning.plan import Step
from converter.tree import LeafKind, Tree, element_bits, format_path
from converter.verification.structure import Difference


@dataclass(frozen=True, slots=True)
class ValuesResult:
    """The outcome of comparing leaves bit for bit.

    Attributes:
      leaves: how many leaves were compared.
      nbytes: how many bytes of arrays.
      differences: the leaves that differ.
    """

    leaves: int
    nbytes: int
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "leaves": self.leaves,
            "bytes": self.nbytes,
            "differences": [difference.to_json() for difference in self.differences],
        }


def compare_values(steps: Iterable[Step], destination: Tree, progress: Progress) -> ValuesResult:
    """Makes every target leaf from the source once more and compares it with the one that was written.

    Leaves that the destination does not have are left to ``compare_structure``.
    """
    leaves = nbytes = 0
    differences: list[Difference] = []
    for step in steps:
        found = destination.get(step.target)
        if found is None or step.spec.kind is LeafKind.EMPTY:
            continue
        difference = value_difference(step.value(), found.fetch())
        if difference is not None:
            differences.append(Difference(format_path(step.target), *difference))
        leaves += 1
        nbytes += step.spec.nbytes
        progress(step.spec.nbytes, 1)
    return ValuesResult(leaves, nbytes, tuple(differences))


def value_difference(expected: Any, found: Any) -> tuple[str, str] | None:
    """How two values differ, as (expected, found); None where their bits are equal. NaNs are compared by their bits."""
    if not hasattr(expected, "dtype") and not hasattr(found, "dtype"):
        # repr tells 1 from True and from 1.0, and makes NaN equal to itself.
        return None if repr(expected) == repr(found) else (repr(expected), repr(found))
    left, right = np.asarray(expected), np.asarray(found)
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return _described(left), _described(right)
    left_bits, right_bits = element_bits(left), element_bits(right)
    if np.array_equal(left_bits, right_bits):
        return None
    wrong = np.flatnonzero((left_bits != right_bits).any(axis=-1))
    index = ",".join(map(str, np.unravel_index(int(wrong[0]), left.shape)))
    return (
        f"{left.reshape(-1)[wrong[0]]} at [{index}]",
        f"{right.reshape(-1)[wrong[0]]} there, and {wrong.size} of {left.size} elements differ",
    )


def _described(array: np.ndarray[Any, Any]) -> str:
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
