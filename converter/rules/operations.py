"""What can be done to the arrays of a step. Each operation knows the spec of its result without reading anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from converter.errors import UnsupportedCheckpoint
from converter.tree import LeafSpec, array_spec, numpy_dtype


class Operation(Protocol):
    """Makes one target value from the values of the source leaves of a step."""

    @property
    def name(self) -> str:
        """How the plan prints it; empty where nothing is done."""

    def spec(self, sources: Sequence[LeafSpec]) -> LeafSpec:
        """The spec of the result."""

    def apply(self, values: Sequence[Any]) -> Any:
        """The result. Identity hands on the very object it was given."""


@dataclass(frozen=True, slots=True)
class Rewrap:
    """The same array in another container."""

    name: str = ""

    def spec(self, sources: Sequence[LeafSpec]) -> LeafSpec:
        return sources[0]

    def apply(self, values: Sequence[Any]) -> Any:
        return values[0]


@dataclass(frozen=True, slots=True)
class CastCounter:
    """A step counter as the other framework holds it: an array of another integer dtype, the number unchanged.

    A Linen ``TrainState`` counts in a Python int, or int32 once a jitted step has run; ``nnx.Optimizer`` in uint32.
    """

    dtype: str

    @property
    def name(self) -> str:
        return f"as {self.dtype}"

    def spec(self, sources: Sequence[LeafSpec]) -> LeafSpec:
        return array_spec(self.dtype, sources[0].shape)

    def apply(self, values: Sequence[Any]) -> Any:
        """Raises: UnsupportedCheckpoint where the number does not fit the dtype."""
        counter = np.asarray(values[0])
        info = np.iinfo(numpy_dtype(self.dtype))
        whole = counter.dtype.kind in "iuO"  # a Python int of more than 64 bits makes an array of objects
        if not whole or (counter.size and not (info.min <= counter.min() and counter.max() <= info.max)):
            raise UnsupportedCheckpoint(
                f"step: expected a number from {info.min} to {info.max} ({self.dtype}), found {counter}",
                "Drop it with --drop step.",
            )
        return counter.astype(self.dtype)


@dataclass(frozen=True, slots=True)
class Fill:
    """A value that stands in no source leaf."""

    filled: LeafSpec
    reason: str
    value: Callable[[], Any] = field(default=lambda: None, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.reason

    def spec(self, sources: Sequence[LeafSpec]) -> LeafSpec:
        return self.filled

    def apply(self, values: Sequence[Any]) -> Any:
        return self.value()


REWRAP = Rewrap()
