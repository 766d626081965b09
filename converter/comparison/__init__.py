"""Comparing any two checkpoints: what is in one alone, what has another shape, dtype or value."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, TypeVar

from converter.comparison.pairing import Pairing, Side, pair
from converter.comparison.values import EQUAL, Distance, ValuesCompared, compare_pairs, measurable
from converter.errors import UsageError
from converter.folding import columns, fold, fold_names
from converter.formats.checkpoint import Checkpoint, Progress
from converter.inspection import is_chosen, refuse_unused
from converter.opening import open_source
from converter.paths import PathGlob
from converter.planning.wording import count, size_text
from converter.scratch import room
from converter.verification.structure import same_spec

T = TypeVar("T")

SHOWN = 40
"""Rows of each kind that are shown to people."""


@dataclass(frozen=True)
class Comparison:
    """How two checkpoints differ.

    Attributes:
      a, b: the checkpoints.
      pairing: which of their leaves belong together.
      filters: only leaves that match one of these patterns are compared; all without patterns.
      values: how the values of leaves differ that agree in dtype and shape, and after these the values of those that
        are ``measurable``; None where they were not compared.
    """

    a: Checkpoint
    b: Checkpoint
    pairing: Pairing
    filters: tuple[PathGlob, ...] = ()
    values: ValuesCompared | None = None

    @property
    def ok(self) -> bool:
        """Whether no difference was found."""
        return not (any(self.pairing.only) or self.changed or self.different)

    @cached_property
    def changed(self) -> list[tuple[Side, Side]]:
        """Pairs of another shape or dtype."""
        return [(a, b) for a, b in self.pairing.pairs if not same_spec(a.leaf.spec, b.leaf.spec)]

    @cached_property
    def comparable(self) -> list[tuple[Side, Side]]:
        """Pairs of the same shape and dtype: the bits of these can be compared."""
        return [(a, b) for a, b in self.pairing.pairs if same_spec(a.leaf.spec, b.leaf.spec)]

    @cached_property
    def measurable(self) -> list[tuple[Side, Side]]:
        """Changed pairs of numbers that agree in shape: it can be said how far they are apart."""
        return [(a, b) for a, b in self.changed if measurable(a.leaf.spec, b.leaf.spec)]

    @cached_property
    def apart(self) -> list[Distance | None]:
        """How far the values of each changed pair are apart; None where that means nothing, or was not measured."""
        if self.values is None:
            return [None] * len(self.changed)
        found = iter(self.values.distances[len(self.comparable) :])
        return [next(found) if measurable(a.leaf.spec, b.leaf.spec) else None for a, b in self.changed]

    @cached_property
    def different(self) -> list[tuple[Side, Side, Distance]]:
        """Pairs of other values."""
        if self.values is None:
            return []
        found = zip(self.comparable, self.values.distances, strict=False)
        return [(a, b, distance) for (a, b), distance in found if distance is not EQUAL]

    @property
    def nbytes(self) -> int:
        """Bytes of arrays whose values can be compared."""
        return sum(a.leaf.spec.nbytes for a, _ in (*self.comparable, *self.measurable))

    def with_values(self, memory_budget: int, progress: Progress) -> Comparison:
        """The same, with the values compared too.

        Raises:
          UnreadableCheckpoint: an array is damaged.
        """
        with room(FilePath(tempfile.gettempdir()), memory_budget):
            return replace(self, values=compare_pairs([*self.comparable, *self.measurable], progress))

    def text(self, verbose: bool = False) -> str:
        """For people: both checkpoints, differences folded over layers, and a line that sums up.

        Args:
          verbose: show every row.
        """
        most = None if verbose else SHOWN
        lines = [self._described("A", self.a, 0), self._described("B", self.b, 1)]
        for title, sides in zip(("only in A", "only in B"), self.pairing.only, strict=True):
            lines += _section(title, _only_rows(sides), most)
        lines += _section("changed", _pair_rows(self.changed, self.apart), most)
        lines += _section("different", _distance_rows(self.different), most)
        lines += fold((f"note  {note}",) for note in self.pairing.notes)[:most]
        return "\n".join([*lines, self._summary()])

    def _described(self, name: str, checkpoint: Checkpoint, side: int) -> str:
        title = self.pairing.dialects[side].title if self.pairing.dialects else "compared by path"
        return f"{name}  {checkpoint.location} ({checkpoint.format}, {title})"

    def _summary(self) -> str:
        leaves = count(len(self.pairing.pairs), "leaf", "leaves")
        only_a, only_b = map(len, self.pairing.only)
        found = {
            "only in A": only_a,
            "only in B": only_b,
            "changed": len(self.changed),
            "different": len(self.different),
        }
        if self.ok:
            return f"equal: {leaves}, {self._values_summary()}"
        listed = ", ".join(f"{number:,} {what}" for what, number in found.items() if number)
        return f"DIFFERENT: {listed}; {leaves} in both, {self._values_summary()}"

    def _values_summary(self) -> str:
        if self.values is None:
            return "values not compared (--values does)"
        equal = len(self.comparable) - len(self.different)
        same = f", {self.values.same_place:,} of them the same bytes on disk" if self.values.same_place else ""
        return f"values of {equal:,} equal bit for bit{same} ({size_text(self.values.nbytes)} compared)"

    def to_json(self) -> dict[str, Any]:
        """The same, unfolded, as plain JSON values."""
        sides = zip(("a", "b"), (self.a, self.b), (0, 1), strict=True)
        return {
            "ok": self.ok,
            **{name: self._side_json(checkpoint, side) for name, checkpoint, side in sides},
            "filter": [glob.text for glob in self.filters],
            "paired": len(self.pairing.pairs),
            "only_in_a": [_leaf_json(side) for side in self.pairing.only[0]],
            "only_in_b": [_leaf_json(side) for side in self.pairing.only[1]],
            "changed": [
                {"a": _leaf_json(a), "b": _leaf_json(b), "distance": None if distance is None else distance.to_json()}
                for (a, b), distance in zip(self.changed, self.apart, strict=True)
            ],
            "values": None if self.values is None else self._values_json(self.values),
            "notes": list(self.pairing.notes),
        }

    def _side_json(self, checkpoint: Checkpoint, side: int) -> dict[str, Any]:
        return {
            "path": str(checkpoint.path),
            "location": str(checkpoint.location),
            "format": checkpoint.format,
            "step": checkpoint.step,
            "item": checkpoint.item,
            "dialect": self.pairing.dialects[side].title if self.pairing.dialects else None,
        }

    def _values_json(self, values: ValuesCompared) -> dict[str, Any]:
        different = [
            {"path_a": a.name, "path_b": b.name, "leaf": str(a.leaf.spec), **distance.to_json()}
            for a, b, distance in self.different
        ]
        return {
            "leaves": len(values.distances),
            "bytes": values.nbytes,
            "same_bytes_on_disk": values.same_place,
            "different": different,
        }


def compare(
    a: FilePath,
    b: FilePath,
    *,
    steps: tuple[int | None, int | None] = (None, None),
    items: tuple[str | None, str | None] = (None, None),
    filters: Sequence[PathGlob] = (),
) -> Comparison:
    """Compares the structure of two checkpoints; no array is read before ``Comparison.with_values``.

    Raises:
      UnreadableCheckpoint, UnsupportedCheckpoint: one of them cannot be read.
      UsageError: no such step or item, several items and none chosen, or a pattern that matches no leaf.
    """
    one, other = _opened(a, steps[0], items[0], "a"), _opened(b, steps[1], items[1], "b")
    pairing = pair(one.tree, other.tree)
    if filters:
        refuse_unused(filters, one.tree, other.tree)
        pairing = _filtered(pairing, filters)
    return Comparison(one, other, pairing, tuple(filters))


def _opened(path: FilePath, step: int | None, item: str | None, side: str) -> Checkpoint:
    try:
        return open_source(path, step=step, item=item)
    except UsageError as error:
        for option in ("--step", "--item"):
            error.advice = error.advice.replace(option, f"{option}-{side}")
        raise


def _filtered(pairing: Pairing, filters: Sequence[PathGlob]) -> Pairing:
    """What matches on either side; where two leaves became one, one of them is enough."""

    def chosen(*sides: Side) -> bool:
        return any(is_chosen(path, filters) for side in sides for path in side.paths)

    only_a, only_b = (tuple(side for side in sides if chosen(side)) for sides in pairing.only)
    return replace(pairing, pairs=tuple(p for p in pairing.pairs if chosen(*p)), only=(only_a, only_b))


# Rows for people -----------------------------------------------------------------------------------------------------


def _section(title: str, rows: Iterable[tuple[str, ...]], most: int | None) -> list[str]:
    lines = columns(rows)
    shown = lines[:most]
    if len(shown) < len(lines):
        shown.append(f"… and {len(lines) - len(shown)} more (--verbose shows all)")
    return [f"{title}:", *(f"  {line}" for line in shown)] if lines else []


def _folded(held: Sequence[T], name: Callable[[T], str], kind: Callable[[T], Any]) -> list[tuple[str, list[T]]]:
    """Leaves whose names differ in one number, and that are of one kind, together."""
    return [(text, [held[n] for n in members]) for text, members in fold_names([(name(h), kind(h)) for h in held])]


def _only_rows(sides: Sequence[Side]) -> list[tuple[str, ...]]:
    rows = _folded(sides, lambda side: side.name, lambda side: side.leaf.spec)
    return [(name, str(members[0].leaf.spec)) for name, members in rows]


def _pair_rows(pairs: Sequence[tuple[Side, Side]], apart: Sequence[Distance | None]) -> list[tuple[str, ...]]:
    found = [(a, b, distance) for (a, b), distance in zip(pairs, apart, strict=True)]
    rows = _folded(found, lambda p: p[0].name, lambda p: (p[0].leaf.spec, p[1].leaf.spec))
    return [
        (
            _both(name, [(a, b) for a, b, _ in members]),
            f"{members[0][0].leaf.spec} → {members[0][1].leaf.spec}",
            _summed(distance for _, _, distance in members),
        )
        for name, members in rows
    ]


def _distance_rows(found: Sequence[tuple[Side, Side, Distance]]) -> list[tuple[str, ...]]:
    rows = _folded(found, lambda p: p[0].name, lambda p: (p[0].leaf.spec, p[2].texts))
    return [
        (
            _both(name, [(a, b) for a, b, _ in members]),
            str(members[0][0].leaf.spec),
            _summed(distance for _, _, distance in members),
        )
        for name, members in rows
    ]


def _summed(distances: Iterable[Distance | None]) -> str:
    """Those of several leaves as one; nothing where there are none."""
    known = [distance for distance in distances if distance is not None]
    return str(sum(known, EQUAL)) if known else ""


def _both(name: str, pairs: Sequence[tuple[Side, Side]]) -> str:
    """What leaves are called in A, and in B where that differs."""
    others = [text for text, _ in fold_names([(b.name, None) for _, b in pairs])]
    return name if others == [name] else f"{name} = {' + '.join(others)}"


def _leaf_json(side: Side) -> dict[str, Any]:
    return {"path": side.name, "leaf": str(side.leaf.spec), "bytes": side.leaf.spec.nbytes}
