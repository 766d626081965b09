"""How far two arrays are apart, in all the ways in which that can be said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from converter.dtypes import described
from converter.proof.outputs import TOLERANCE

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """How far one output of the two models is apart.

    Attributes:
      name: the path of the output in the returned pytree, "output" for a single array.
      spec: shape and dtype of Linen's output.
      max_abs: the largest absolute difference.
      scale: the largest absolute value of Linen's output.
      limit: what ``max_abs`` may be.
      bitwise: whether all bits are equal.
      max_relative: the largest difference of two numbers relative to the larger one of them, at most 2.
      max_ulp: how many numbers of their type lie between two numbers at most; None where they are no floating-point
        numbers of one type.
    """

    name: str
    spec: str
    max_abs: float
    scale: float
    limit: float
    bitwise: bool
    max_relative: float = 0.0
    max_ulp: int | None = None

    @property
    def ok(self) -> bool:
        return self.bitwise or self.max_abs <= self.limit

    @property
    def excess(self) -> float:
        """The difference in units of the limit."""
        return self.max_abs / self.limit if self.limit else float("inf") if self.max_abs else 0.0

    def joined(self, other: OutputDifference) -> OutputDifference:
        """The same output in two runs: whatever is worse, and the limit that goes with the largest difference."""
        worse, better = (self, other) if self.excess >= other.excess else (other, self)
        ulps = [each.max_ulp for each in (self, other) if each.max_ulp is not None]
        return replace(
            worse,
            spec=self.spec,
            bitwise=worse.bitwise and better.bitwise,
            max_relative=max(worse.max_relative, better.max_relative),
            max_ulp=max(ulps, default=None),
        )

    def __str__(self) -> str:
        if self.bitwise:
            return f"{self.name} {self.spec}: bit for bit equal"
        text = f"{self.name} {self.spec}: max abs difference {self.max_abs:.3g} (limit {self.limit:.3g})"
        text += f", max relative {self.max_relative:.3g}"
        return text if self.max_ulp is None else f"{text}, {self.max_ulp} ULP"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "spec": self.spec,
            "max_abs": self.max_abs,
            "max_relative": self.max_relative,
            "max_ulp": self.max_ulp,
            "limit": self.limit,
            "bitwise": self.bitwise,
        }


def difference(name: str, left: Array, right: Array) -> OutputDifference:
    """How far an output of Linen (left) and NNX, of one shape, are apart."""
    import numpy as np

    spec = described(left)
    if not {left.dtype.kind, right.dtype.kind}.isdisjoint("USO"):  # texts and other objects among the outputs
        equal = bool(np.array_equal(left, right))
        return OutputDifference(name, spec, 0.0 if equal else np.inf, 0.0, 0.0, equal)
    bitwise = left.dtype == right.dtype and left.tobytes() == right.tobytes()
    wide = np.complex128 if left.dtype.kind == "c" else np.float64
    a, b = left.astype(wide), right.astype(wide)
    # Where both are NaN, or the same infinity, there is no difference; where only one is, it is infinite.
    with np.errstate(invalid="ignore"):
        gaps = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        gaps = np.where(np.isnan(gaps), np.inf, gaps)
        larger = np.maximum(np.abs(a), np.abs(b))
        relative = np.where((gaps == 0) | ~np.isfinite(gaps), np.minimum(gaps, 2.0), gaps / np.where(gaps, larger, 1))
    finite = np.abs(a[np.isfinite(a)])
    scale = float(finite.max()) if finite.size else 0.0
    limit = TOLERANCE.get(left.dtype.name, 0.0) * max(scale, 1e-30)
    largest, most = float(gaps.max(initial=0.0)), float(relative.max(initial=0.0))
    return OutputDifference(name, spec, largest, scale, limit, bitwise, most, _ulps(left, right))


_HALVES = {"complex64": "float32", "complex128": "float64"}


def _ulps(left: Array, right: Array) -> int | None:
    """The largest number of steps from one number to the other, over all pairs neither of which is NaN."""
    import jax.numpy as jnp
    import numpy as np

    if left.dtype != right.dtype or not jnp.issubdtype(left.dtype, jnp.inexact) or left.dtype.itemsize > 16:
        return None
    if left.dtype.name in _HALVES:
        left, right = (np.ascontiguousarray(each).view(_HALVES[left.dtype.name]) for each in (left, right))
    places = [_place(each) for each in (left, right)]
    known = ~(np.isnan(left) | np.isnan(right)).reshape(-1)
    upper, lower = np.maximum(*places)[known], np.minimum(*places)[known]
    # Unsigned numbers wrap around, which takes the difference of two that lie further apart than int64 reaches.
    return int((upper.view(np.uint64) - lower.view(np.uint64)).max(initial=0))


def _place(array: Array) -> Array:
    """The position of each number among all numbers of its type, with zero at 0."""
    import numpy as np

    bits = np.ascontiguousarray(array).reshape(-1).view(f"i{array.dtype.itemsize}").astype(np.int64)
    lowest = -(1 << (8 * array.dtype.itemsize - 1))
    return np.where(bits < 0, np.int64(lowest) - bits, bits)
