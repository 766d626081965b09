"""Operations that only move elements: renaming, stacking, concatenating, reshaping, transposing, and chains of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from converter.grid import Grid, concatenated, reshaped, split, stacked, transposed, unstacked
from converter.rules.operations.operation import (
    Harmless,
    Operation,
    Specs,
    Unfit,
    axis_of,
    groups,
    joined,
    require_arrays,
    shaped,
    with_shape,
)
from converter.tree import LeafSpec


@dataclass(frozen=True, slots=True)
class Rewrap(Harmless):
    """The same arrays in another container, under other names."""

    name: str = ""

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        return tuple(sources)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        return list(values)

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        return list(grids)

    def inverse(self) -> Operation:
        return self


REWRAP = Rewrap()


@dataclass(frozen=True, slots=True)
class Stack(Harmless):
    """``count`` arrays of one shape become one with a new axis, as a scan over layers wants them."""

    count: int
    axis: int = 0

    @property
    def name(self) -> str:
        return f"stack of {self.count}, axis {self.axis}"

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        require_arrays("stack", sources)
        made = []
        for group in groups("stack", sources, self.count):
            first = group[0]
            different = next((spec for spec in group if spec != first), None)
            if different is not None:
                raise Unfit(f"stack needs equal leaves, found {first} and {different}")
            shape = list(first.shape)
            shape.insert(axis_of("stack", self.axis, len(shape) + 1), self.count)
            made.append(shaped(first, tuple(shape)))
        return tuple(made)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        made = []
        for group, (first, *_) in zip(*(groups("stack", x, self.count) for x in (values, specs)), strict=True):
            axis = axis_of("stack", self.axis, len(first.shape) + 1)
            made.append(joined("stack", group, axis))
        return made

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        pairs = zip(*(groups("stack", items, self.count) for items in (grids, specs)), strict=True)
        return _all(stacked(g, axis_of("stack", self.axis, len(s[0].shape) + 1)) for g, s in pairs)

    def inverse(self) -> Operation:
        return Unstack(self.count, self.axis)


@dataclass(frozen=True, slots=True)
class Unstack(Harmless):
    """One array becomes the ``count`` arrays along one of its axes, which disappears."""

    count: int
    axis: int = 0

    @property
    def name(self) -> str:
        return f"unstack, axis {self.axis}"

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        require_arrays("unstack", sources)
        made = []
        for spec in sources:
            axis = axis_of("unstack", self.axis, len(spec.shape))
            if spec.shape[axis] != self.count:
                raise Unfit(f"unstack into {self.count} along axis {self.axis} does not fit {spec}")
            made += [spec._replace(shape=spec.shape[:axis] + spec.shape[axis + 1 :])] * self.count
        return tuple(made)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        made = []
        for value, spec in zip(values, specs, strict=True):
            before = (slice(None),) * axis_of("unstack", self.axis, len(spec.shape))
            made += [value[(*before, index, ...)] for index in range(self.count)]
        return made

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        pairs = zip(grids, specs, strict=True)
        return _flat(unstacked(grid, axis_of("unstack", self.axis, len(spec.shape))) for grid, spec in pairs)

    def inverse(self) -> Operation:
        return Stack(self.count, self.axis)


@dataclass(frozen=True, slots=True)
class Concat(Harmless):
    """Arrays become one, end to end along an axis. Without ``sizes`` they all have the same length there."""

    count: int
    axis: int = -1
    sizes: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return f"concat of {self.count}, axis {self.axis}"

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        require_arrays("concat", sources)
        made = []
        for group in groups("concat", sources, self.count):
            first = group[0]
            axis = axis_of("concat", self.axis, len(first.shape))
            sizes = tuple(spec.shape[axis] for spec in group if len(spec.shape) > axis)
            expected = self.sizes or (first.shape[axis],) * self.count
            if sizes != expected:
                raise Unfit(
                    f"concat expects lengths {_listed(expected)} along axis {self.axis}, found {_listed(sizes)}"
                )
            for spec in group:
                if spec._replace(shape=_with(spec.shape, axis, first.shape[axis])) != first:
                    raise Unfit(f"concat needs leaves that differ along axis {self.axis} alone: {first} and {spec}")
            made.append(first._replace(shape=_with(first.shape, axis, sum(expected))))
        return tuple(made)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        made = []
        for group, (first, *_) in zip(*(groups("concat", x, self.count) for x in (values, specs)), strict=True):
            axis = axis_of("concat", self.axis, len(first.shape))
            made.append(joined("concatenate", group, axis))
        return made

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        pairs = zip(*(groups("concat", items, self.count) for items in (grids, specs)), strict=True)
        return _all(concatenated(g, axis_of("concat", self.axis, len(s[0].shape))) for g, s in pairs)

    def inverse(self) -> Operation:
        return Split(self.count, self.axis, self.sizes)


@dataclass(frozen=True, slots=True)
class Split(Harmless):
    """One array becomes several along one of its axes: of equal lengths, or of the given ``sizes``."""

    count: int
    axis: int = -1
    sizes: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return f"split in {self.count}, axis {self.axis}"

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        require_arrays("split", sources)
        made = []
        for spec in sources:
            axis = axis_of("split", self.axis, len(spec.shape))
            made += [spec._replace(shape=_with(spec.shape, axis, size)) for size in self._sizes(spec, axis)]
        return tuple(made)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        made = []
        for value, spec in zip(values, specs, strict=True):
            axis = axis_of("split", self.axis, len(spec.shape))
            start = 0
            for size in self._sizes(spec, axis):
                made.append(value[(*(slice(None),) * axis, slice(start, start + size))])
                start += size
        return made

    def _sizes(self, spec: LeafSpec, axis: int) -> tuple[int, ...]:
        length = spec.shape[axis]
        if self.sizes is None and length % self.count:
            raise Unfit(f"split into {self.count} equal parts along axis {self.axis} does not fit {spec}")
        sizes = self.sizes or (length // self.count,) * self.count
        if len(sizes) != self.count or sum(sizes) != length:
            raise Unfit(f"split into lengths {_listed(sizes)} along axis {self.axis} does not fit {spec}")
        return sizes

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        places = [(axis_of("split", self.axis, len(spec.shape)), spec) for spec in specs]
        pairs = zip(grids, places, strict=True)
        return _flat(split(grid, axis, self._sizes(spec, axis)) for grid, (axis, spec) in pairs)

    def inverse(self) -> Operation:
        return Concat(self.count, self.axis, self.sizes)


@dataclass(frozen=True, slots=True)
class Reshape(Harmless):
    """The same elements, in the same order, in another shape."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"reshape [{_listed(self.before)}] → [{_listed(self.after)}]"

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        require_arrays("reshape", sources)
        for spec in sources:
            if spec.shape != self.before or math.prod(self.before) != math.prod(self.after):
                raise Unfit(f"{self.name} does not fit {spec}")
        return tuple(shaped(spec, self.after) for spec in sources)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        # The data of a PRNG key has an axis of words behind those of its spec.
        pairs = zip(values, specs, strict=True)
        return [with_shape(value, (*self.after, *value.shape[len(spec.shape) :])) for value, spec in pairs]

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        pairs = zip(grids, specs, strict=True)
        return _all(reshaped(grid, (*self.after, *grid.form.shape[len(spec.shape) :])) for grid, spec in pairs)

    def inverse(self) -> Operation:
        return Reshape(self.after, self.before)


@dataclass(frozen=True, slots=True)
class Transpose(Harmless):
    """Other order of the axes; without ``axes`` the reverse."""

    axes: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return "transpose" if self.axes is None else f"transpose {_listed(self.axes)}"

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        require_arrays("transpose", sources)
        return tuple(s._replace(shape=tuple(s.shape[axis] for axis in self._axes(s))) for s in sources)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        made = []
        for value, spec in zip(values, specs, strict=True):
            words = range(len(spec.shape), len(value.shape))
            made.append(value.transpose((*self._axes(spec), *words)))
        return made

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        pairs = zip(grids, specs, strict=True)
        return [transposed(g, (*self._axes(s), *range(len(s.shape), len(g.axes)))) for g, s in pairs]

    def _axes(self, spec: LeafSpec) -> tuple[int, ...]:
        rank = len(spec.shape)
        axes = tuple(reversed(range(rank))) if self.axes is None else self.axes
        if sorted(axes) != list(range(rank)):
            raise Unfit(f"{self.name} does not fit {spec}")
        return axes

    def inverse(self) -> Operation:
        if self.axes is None:
            return self
        return Transpose(tuple(self.axes.index(axis) for axis in range(len(self.axes))))


@dataclass(frozen=True, slots=True)
class MoveAxis(Harmless):
    """One axis elsewhere, the others in their order, as ``numpy.moveaxis``: a scan's axis, whatever follows it."""

    source: int
    destination: int

    @property
    def name(self) -> str:
        return f"moveaxis {self.source} → {self.destination}"

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        require_arrays("moveaxis", sources)
        return tuple(spec for source in sources for spec in self._transpose(source).specs((source,)))

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        pairs = zip(values, specs, strict=True)
        return [made for value, spec in pairs for made in self._transpose(spec).apply((value,), (spec,))]

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        pairs = zip(grids, specs, strict=True)
        return _flat(self._transpose(spec).regrid((grid,), (spec,)) for grid, spec in pairs)

    def _transpose(self, spec: LeafSpec) -> Transpose:
        rank = len(spec.shape)
        source = axis_of("moveaxis", self.source, rank)
        axes = [axis for axis in range(rank) if axis != source]
        axes.insert(axis_of("moveaxis", self.destination, rank), source)
        return Transpose(tuple(axes))

    def inverse(self) -> Operation:
        return MoveAxis(self.destination, self.source)


@dataclass(frozen=True, slots=True)
class Chain:
    """Operations one after the other."""

    operations: tuple[Operation, ...]

    @property
    def name(self) -> str:
        return ", ".join(operation.name for operation in self.operations if operation.name)

    @property
    def looks_at_values(self) -> bool:
        return any(operation.looks_at_values for operation in self.operations)

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        for operation in self.operations:
            sources = operation.specs(sources)
        return tuple(sources)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        for operation in self.operations:
            values, specs = operation.apply(values, specs), operation.specs(specs)
        return list(values)

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        made: list[Grid] | None = list(grids)
        for operation in self.operations:
            made = operation.regrid(made, specs) if made is not None else None
            specs = operation.specs(specs)
        return made

    def objection(self, values: Sequence[Any], specs: Specs) -> str:
        for operation in self.operations:
            objection = operation.objection(values, specs)
            if objection:
                return objection
            values, specs = operation.apply(values, specs), operation.specs(specs)
        return ""

    def inverse(self) -> Operation:
        return chain(*(operation.inverse() for operation in reversed(self.operations)))

    def lossy(self) -> Operation:
        return Chain(tuple(operation.lossy() for operation in self.operations))


def chain(*operations: Operation) -> Operation:
    """The operations one after the other, in the simplest form."""
    effective: list[Operation] = []
    for operation in operations:
        effective += operation.operations if isinstance(operation, Chain) else [operation]
    effective = [operation for operation in effective if operation != REWRAP]
    if len(effective) < 2:
        return effective[0] if effective else REWRAP
    return Chain(tuple(effective))


def _all(grids: Iterable[Grid | None]) -> list[Grid] | None:
    """The grids, unless one of them could not be made."""
    made = list(grids)
    known = [grid for grid in made if grid is not None]
    return known if len(known) == len(made) else None


def _flat(parts: Iterable[Sequence[Grid] | None]) -> list[Grid] | None:
    """The parts of all, unless those of one could not be made."""
    made: list[Grid] = []
    for grids in parts:
        if grids is None:
            return None
        made += grids
    return made


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
