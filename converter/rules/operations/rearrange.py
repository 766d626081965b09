"""Splitting, merging and reordering axes, written as einops writes it: ``d (h k) -> d h k, h=4``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.grid import Grid, reshaped, transposed
from converter.rules.language.fault import Fault
from converter.rules.operations.operation import (
    Harmless,
    NotInvertible,
    Operation,
    Specs,
    Unfit,
    require_arrays,
    shaped,
    with_shape,
)
from converter.tree import LeafSpec

Side = tuple[tuple[str, ...], ...]
"""The axes of an array; each is made of named ones, of none where its length is 1."""


@dataclass(frozen=True, slots=True)
class Rearrange(Harmless):
    """The same elements with other axes: composite ones taken apart, axes put into another order, put together again.

    Attributes:
      before: the axes of the source.
      after: the axes of the result, from the same names.
      lengths: lengths of named axes; at most one name of each source axis may be without.
    """

    before: Side
    after: Side
    lengths: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        lengths = "".join(f", {axis}={length}" for axis, length in self.lengths)
        return f"rearrange {_side_text(self.before)} -> {_side_text(self.after)}{lengths}"

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        require_arrays("rearrange", sources)
        return tuple(shaped(spec, _shape(self.after, self._lengths(spec))) for spec in sources)

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        return [self._rearranged(value, spec) for value, spec in zip(values, specs, strict=True)]

    def _rearranged(self, value: Any, spec: LeafSpec) -> Any:
        lengths = self._lengths(spec)
        flat_before, flat_after = _flat(self.before), _flat(self.after)
        words = tuple(value.shape[len(spec.shape) :])  # the data of a PRNG key has an axis behind those of its spec
        shape = (*_shape(self.after, lengths), *words)
        if flat_before != flat_after:
            value = with_shape(value, (*(lengths[axis] for axis in flat_before), *words))
            order = [flat_before.index(axis) for axis in flat_after]
            value = value.transpose((*order, *range(len(order), len(order) + len(words))))
        return value if tuple(value.shape) == shape else with_shape(value, shape)

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        made = [self._regridded(grid, spec) for grid, spec in zip(grids, specs, strict=True)]
        known = [grid for grid in made if grid is not None]
        return known if len(known) == len(made) else None

    def _regridded(self, grid: Grid, spec: LeafSpec) -> Grid | None:
        lengths = self._lengths(spec)
        before, after = _flat(self.before), _flat(self.after)
        words = grid.form.shape[len(spec.shape) :]
        made = reshaped(grid, (*(lengths[axis] for axis in before), *words)) if before != after else grid
        if before != after and made is not None:
            rest = range(len(before), len(before) + len(words))
            made = transposed(made, (*(before.index(axis) for axis in after), *rest))
        return made and reshaped(made, (*_shape(self.after, lengths), *words))

    def inverse(self) -> Operation:
        unknown = _undetermined(self.after, dict(self.lengths))
        if unknown:
            raise NotInvertible(
                f"{self.name!r} does not say how long {' or '.join(unknown[:-1])} is (write {unknown[0]}=…)"
            )
        return Rearrange(self.after, self.before, self.lengths)

    def _lengths(self, spec: LeafSpec) -> Mapping[str, int]:
        """The length of every named axis in a leaf of that spec."""
        if len(spec.shape) != len(self.before):
            raise Unfit(f"{self.name!r} expects {_axes_text(len(self.before))}, found {spec}")
        lengths = dict(self.lengths)
        for group, size in zip(self.before, spec.shape, strict=True):
            given = math.prod(lengths.get(axis, 1) for axis in group)
            unknown = [axis for axis in group if axis not in lengths]
            if size % given or (not unknown and size != given):
                text = f"a multiple of {given}" if unknown else str(given)
                raise Unfit(f"{self.name!r} expects {text} along {_group_text(group)}, found {spec}")
            lengths |= dict.fromkeys(unknown, size // given)
        return lengths


def _flat(side: Side) -> tuple[str, ...]:
    return tuple(axis for group in side for axis in group)


def _shape(side: Side, lengths: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(lengths[axis] for axis in group) for group in side)


def _undetermined(side: Side, lengths: Mapping[str, int]) -> list[str]:
    """The names in the first axis that no single length would determine; empty where all of them are determined."""
    unknown = ([axis for axis in group if axis not in lengths] for group in side)
    return next((axes for axes in unknown if len(axes) > 1), [])


def _side_text(side: Side) -> str:
    return " ".join(map(_group_text, side))


def _group_text(group: Sequence[str]) -> str:
    if not group:
        return "1"
    return group[0] if len(group) == 1 else f"({' '.join(group)})"


def _axes_text(count: int) -> str:
    return "1 axis" if count == 1 else f"{count} axes"


# Reading -------------------------------------------------------------------------------------------------------------

_FORM = "Write it as in: rearrange d (h k) -> d h k, h=4"
_TOKEN = re.compile(r"\s*(?:(?P<axis>[A-Za-z_][A-Za-z0-9_]*|1(?![A-Za-z0-9_]))|(?P<bracket>[()])|(?P<other>\S))")
_LENGTH = re.compile(r"\s*(?P<axis>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<length>[0-9]{1,18})\s*")


def parse_rearrange(text: str) -> Rearrange:
    """Reads ``d (h k) -> d h k, h=4``.

    Raises:
      Fault: not of that form, axes that stand on one side only, or lengths that are missing on the left side.
    """
    expression, *lengths = text.split(",")
    left, arrow, right = expression.partition("->")
    if not arrow:
        raise Fault("'->' is missing", max(len(expression.rstrip()) - 1, 0), _FORM)
    before, after = _parse_side(left, 0), _parse_side(right, len(left) + len(arrow))
    for names, others in ((before, after), (after, before)):
        for axis, offset in names[1].items():
            if axis not in others[1]:
                raise Fault(f"axis {axis!r} stands on one side only", offset, "Axes of length one are written 1.")
    known: dict[str, int] = {}
    position = len(expression) + 1
    for part in lengths:
        axis, length = _parse_length(part, position)
        if axis not in before[1] or axis in known:
            wrong = "there is no axis" if axis not in before[1] else "there are two lengths for"
            raise Fault(f"{wrong} {axis!r}", position + part.index(axis))
        known[axis] = length
        position += len(part) + 1
    missing = _undetermined(before[0], known)
    if missing:
        raise Fault(
            f"the lengths of {' and '.join(missing)} are both unknown", before[1][missing[0]], f"Add , {missing[0]}=…"
        )
    return Rearrange(before[0], after[0], tuple(known.items()))


def _parse_length(part: str, position: int) -> tuple[str, int]:
    match = _LENGTH.fullmatch(part)
    start = position + len(part) - len(part.lstrip())
    if match is None or int(match["length"]) < 1:
        raise Fault(f"expected the length of an axis, found {part.strip()!r}", start, _FORM)
    return match["axis"], int(match["length"])


def _parse_side(text: str, start: int) -> tuple[Side, dict[str, int]]:
    """The axes, and where each name stands."""
    side: list[tuple[str, ...]] = []
    seen: dict[str, int] = {}
    group: list[str] | None = None
    opened = 0
    for kind, token, offset in _tokens(text, start):
        if kind == "axis":
            if token in seen:
                raise Fault(f"axis {token!r} stands twice on one side", offset, _FORM)
            names = () if token == "1" else (token,)
            seen |= dict.fromkeys(names, offset)
            if group is None:
                side.append(names)
            else:
                group += names
        elif token == "(" and group is None:
            group, opened = [], offset
        elif token == ")" and group is not None:
            side.append(tuple(group))
            group = None
        else:
            raise Fault(f"unexpected {token!r}", offset, _FORM)
    if group is not None:
        raise Fault("'(' is not closed", opened, _FORM)
    return tuple(side), seen


def _tokens(text: str, start: int) -> Iterator[tuple[str, str, int]]:
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        yield kind, match[kind], start + match.start(kind)
