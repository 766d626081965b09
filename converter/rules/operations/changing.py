"""Operations that change, leave out or invent values, and what they demand of the values so that nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from converter import scratch
from converter.dtypes import element_bits, numpy_dtype
from converter.errors import ConversionRefused, UnsupportedCheckpoint
from converter.grid import Grid
from converter.rules.operations.moving import REWRAP
from converter.rules.operations.operation import (
    Harmless,
    NotInvertible,
    Operation,
    Specs,
    Unfit,
    axis_of,
    require_arrays,
)
from converter.tree import LeafKind, LeafSpec, array_spec

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class CastCounter(Harmless):
    """A step counter as the other framework holds it: an array of another integer dtype, the number unchanged.

    A Linen ``TrainState`` counts in a Python int, or int32 once a jitted step has run; ``nnx.Optimizer`` in uint32.
    """

    dtype: str

    @property
    def name(self) -> str:
        return f"as {self.dtype}"

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        return tuple(array_spec(self.dtype, spec.shape) for spec in sources)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        """Raises: UnsupportedCheckpoint where the number does not fit the dtype."""
        import numpy as np

        return [self._cast(np.asarray(value)) for value in values]

    def _cast(self, counter: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        import numpy as np

        info = np.iinfo(numpy_dtype(self.dtype))
        whole = counter.dtype.kind in "iuO"  # a Python int of more than 64 bits makes an array of objects
        if not whole or (counter.size and not (info.min <= counter.min() and counter.max() <= info.max)):
            raise UnsupportedCheckpoint(
                f"step: expected a number from {info.min} to {info.max} ({self.dtype}), found {counter}",
                "Drop it with --drop step.",
            )
        return counter.astype(self.dtype)

    def inverse(self) -> Operation:
        raise NotInvertible("a step counter gets its dtype from the framework, not from its source")


@dataclass(frozen=True, slots=True)
class Cast:
    """Another dtype. With ``exact`` every value has to survive, else what it is rounded to is what the rule wants."""

    before: str
    after: str
    exact: bool = False

    @property
    def name(self) -> str:
        return f"cast {self.before} → {self.after}"

    @property
    def looks_at_values(self) -> bool:
        return self.exact

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        for spec in sources:
            if spec.kind not in (LeafKind.ARRAY, LeafKind.NUMPY_SCALAR) or spec.dtype != self.before:
                raise Unfit(f"{self.name} does not fit {spec}")
        return tuple(spec._replace(dtype=self.after) for spec in sources)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        import numpy as np

        with np.errstate(over="ignore", invalid="ignore"):
            return [_in_dtype(value, numpy_dtype(self.after)) for value in values]

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        return None

    def objection(self, values: Sequence[Any], specs: Specs) -> str:
        if not self.exact:
            return ""
        for value, narrowed in zip(values, self.apply(values, specs), strict=True):
            if not _same_bits(value, _in_dtype(narrowed, numpy_dtype(self.before))):
                return f"not every value survives {self.name}"
        return ""

    def inverse(self) -> Operation:
        import numpy as np

        widening = np.can_cast(numpy_dtype(self.after), numpy_dtype(self.before), "safe")
        return Cast(self.after, self.before, exact=not widening)

    def lossy(self) -> Operation:
        return replace(self, exact=False)


@dataclass(frozen=True, slots=True)
class Select(Harmless):
    """A part of an array: one index along an axis, which disappears, or the range from ``start`` up to ``stop``."""

    axis: int
    start: int
    stop: int | None = None

    @property
    def name(self) -> str:
        return f"select {self._text}, axis {self.axis}"

    @property
    def _text(self) -> str:
        return str(self.start) if self.stop is None else f"{self.start}:{self.stop}"

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        require_arrays("select", sources)
        made = []
        for spec in sources:
            axis = axis_of("select", self.axis, len(spec.shape))
            if not 0 <= self.start < (self.stop or self.start + 1) <= spec.shape[axis]:
                raise Unfit(f"{self.name} does not fit {spec}")
            kept = () if self.stop is None else (self.stop - self.start,)
            made.append(spec._replace(shape=spec.shape[:axis] + kept + spec.shape[axis + 1 :]))
        return tuple(made)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        index: Any = self.start if self.stop is None else slice(self.start, self.stop)
        made = []
        for value, spec in zip(values, specs, strict=True):
            before = (slice(None),) * axis_of("select", self.axis, len(spec.shape))
            made.append(value[(*before, index, ...)])
        return made

    def inverse(self) -> Operation:
        raise NotInvertible(f"what {self.name!r} leaves out is not on the other side")


@dataclass(frozen=True, slots=True)
class Drop:
    """Leaves that have no place on the other side. With ``expected`` they may hold that number only."""

    reason: str
    expected: float | None = None

    @property
    def name(self) -> str:
        return self.reason

    @property
    def looks_at_values(self) -> bool:
        return self.expected is not None

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        return ()

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        return []

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        return []

    def objection(self, values: Sequence[Any], specs: Specs) -> str:
        if self.expected is None or all(_holds_only(_concrete(value), self.expected) for value in values):
            return ""
        return f"{self.reason}, and not all its values are {self.expected:g}"

    def inverse(self) -> Operation:
        raise NotInvertible(f"it was dropped: {self.reason}")

    def lossy(self) -> Operation:
        return replace(self, expected=None)


@dataclass(frozen=True, slots=True)
class Fill(Harmless):
    """Values that stand in no source leaf.

    Attributes:
      filled: the specs of the results.
      reason: where the values come from.
      value: makes the values, one for each spec; None for leaves that hold nothing.
      number: what the values are, if they are all one number; dropping them is then harmless.
    """

    filled: tuple[LeafSpec, ...]
    reason: str
    value: Callable[[], Sequence[Any]] | None = field(default=None, repr=False, compare=False)
    number: float | None = None

    @property
    def name(self) -> str:
        return self.reason

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        return self.filled

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        if self.number is not None:
            return [scratch.full(spec.shape, numpy_dtype(spec.dtype), self.number) for spec in self.filled]
        return list(self.value()) if self.value is not None else [None] * len(self.filled)

    def inverse(self) -> Operation:
        if self.number is None:
            raise NotInvertible(f"its values stand on one side only ({self.reason})")
        return Drop(self.reason, self.number)


def fill_number(spec: LeafSpec, number: float, reason: str) -> Fill:
    return Fill((spec,), reason, number=number)


@dataclass(frozen=True, slots=True)
class Copies(Harmless):
    """One array in several places, each time after an operation of its own: weights that are tied on one side only."""

    views: tuple[Operation, ...]

    @property
    def name(self) -> str:
        changed = ", ".join(view.name for view in self.views if view.name)
        return f"{len(self.views)} copies" + (f" ({changed})" if changed else "")

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        return tuple(spec for source in sources for view in self.views for spec in view.specs((source,)))

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        pairs = zip(values, specs, strict=True)
        return [made for value, spec in pairs for view in self.views for made in view.apply((value,), (spec,))]

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        made: list[Grid] = []
        for grid, spec in zip(grids, specs, strict=True):
            for view in self.views:
                seen = view.regrid((grid,), (spec,))
                if seen is None:
                    return None
                made += seen
        return made

    def inverse(self) -> Operation:
        return Agree(tuple(view.inverse() for view in self.views))


@dataclass(frozen=True, slots=True)
class Agree:
    """Arrays that must hold the same, each after an operation of its own, become one.

    Without ``required`` the first one counts and the others are lost.
    """

    views: tuple[Operation, ...]
    required: bool = True

    @property
    def name(self) -> str:
        return f"one of {len(self.views)} equal copies" if self.required else f"the first of {len(self.views)}"

    @property
    def looks_at_values(self) -> bool:
        return self.required

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        seen = self._seen(sources, lambda view, spec: view.specs((spec,))[0])
        for group in seen:
            different = next((spec for spec in group if spec != group[0]), None)
            if different is not None:
                raise Unfit(f"copies of one array must be equal, found {group[0]} and {different}")
        return tuple(group[0] for group in seen)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        pairs = list(zip(values, specs, strict=True))
        return [group[0] for group in self._seen(pairs, lambda view, pair: view.apply(pair[:1], pair[1:])[0])]

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        count = len(self.views)
        return self.views[0].regrid(grids[::count], specs[::count])

    def objection(self, values: Sequence[Any], specs: Specs) -> str:
        if not self.required:
            return ""
        pairs = list(zip(values, specs, strict=True))
        for group in self._seen(pairs, lambda view, pair: view.apply(pair[:1], pair[1:])[0]):
            if not all(_same_bits(group[0], value) for value in group[1:]):
                return "they are one array on the other side, and they do not hold the same values"
        return ""

    def _seen(self, items: Sequence[Any], look: Callable[[Operation, Any], Any]) -> list[list[Any]]:
        count = len(self.views)
        if len(items) % count:
            raise Unfit(f"{count} copies of one array expected, found {len(items)}")
        starts = range(0, len(items), count)
        return [[look(view, items[start + i]) for i, view in enumerate(self.views)] for start in starts]

    def inverse(self) -> Operation:
        return Copies(tuple(view.inverse() for view in self.views))

    def lossy(self) -> Operation:
        return replace(self, required=False)


def without_casts(operation: Operation) -> Operation:
    """The operation for arrays that already have another dtype than the parameter they belong to."""
    from converter.rules.operations.moving import Chain, chain

    if isinstance(operation, Chain):
        return chain(*map(without_casts, operation.operations))
    return REWRAP if isinstance(operation, Cast) else operation


def _in_dtype(value: Any, dtype: np.dtype[Any]) -> Any:
    import numpy as np

    if isinstance(value, np.generic):
        return value.astype(dtype)
    if not isinstance(value, np.ndarray):
        import jax

        # Unless they are enabled JAX has no 64-bit types, and would quietly take narrower ones.
        if jax.dtypes.canonicalize_dtype(dtype) == dtype:
            return value.astype(dtype)
        value = _concrete(value, f"JAX has no {dtype.name} unless its 64-bit types are enabled")
    array = np.asarray(value)
    return scratch.copy(scratch.empty(array.shape, dtype), array)


def _concrete(value: Any, why: str = "whether they survive the conversion has to be checked") -> np.ndarray[Any, Any]:
    """The values themselves.

    Raises:
      ConversionRefused: there are none yet, inside ``jax.jit``.
    """
    import sys

    import numpy as np

    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.core.Tracer):
        raise ConversionRefused(
            "the conversion depends on the values of arrays, which are not known inside jax.jit:",
            [why],
            "Convert outside jax.jit, or allow what may be lost (allow_lossy=True).",
        )
    return np.asarray(value)


def _holds_only(array: np.ndarray[Any, Any], number: float) -> bool:
    return all(bool((block == number).all()) for block in scratch.blocks(array))


def _same_bits(left: Any, right: Any) -> bool:
    import numpy as np

    a, b = _concrete(left), _concrete(right)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return all(np.array_equal(element_bits(x), element_bits(y)) for x, y in scratch.pairs(a, b))
