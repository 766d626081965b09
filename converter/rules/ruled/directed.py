"""One rule in one direction: from the leaves that belong together to the link between them and what they become."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from converter.paths import Path
from converter.rules.language.patterns import Captures, PathPattern, Value
from converter.rules.language.rule_set import Rule
from converter.rules.language.steps import GroupStep, ShuffleStep
from converter.rules.link import Link, Name
from converter.rules.operations import Operation, Unfit, chain
from converter.rules.operations.operation import Specs, axis_of
from converter.tree import LeafKind, LeafSpec

Shared = tuple[tuple[str, Value], ...]
"""The captures that both sides have: what tells one group of leaves from another."""


class Uncountable(ValueError):
    """How many leaves an operation gives is not known; the text says of which."""


@dataclass(slots=True)
class Group:
    """The source leaves that one operation makes the same target leaves of.

    Attributes:
      collection: of all of them.
      shared: the captures that both sides have.
      members: names by the captures of the source side only, in the order of ``DirectedRule.taken``.
    """

    collection: str
    shared: Shared
    members: dict[tuple[int, ...], Name] = field(default_factory=dict)


class DirectedRule:
    """A rule with patterns on both sides, read from its source side to its target side.

    Attributes:
      taken: captures of the source side only; leaves are counted by them, the last one running fastest.
      given: the same for the target side.
    """

    def __init__(self, rule: Rule, to: Literal["linen", "nnx"]) -> None:
        assert rule.linen is not None
        assert rule.nnx is not None
        self.rule = rule
        self.source, self.target = (rule.linen, rule.nnx) if to == "nnx" else (rule.nnx, rule.linen)
        steps = [stage for stage in rule.stages if isinstance(stage, GroupStep)]
        linen_only = tuple(step.capture for step in reversed(steps) if step.joins)
        nnx_only = tuple(step.capture for step in steps if not step.joins)
        self.taken, self.given = (linen_only, nnx_only) if to == "nnx" else (nnx_only, linen_only)
        self._backwards = to == "linen"
        self._stages = rule.stages[::-1] if self._backwards else rule.stages
        self._steps = {step.capture: step for step in steps}
        self._shared = tuple(name for name in self.source.captures if name in self.target.captures)
        self._made: dict[object, tuple[Operation, tuple[LeafSpec, ...] | None, dict[str, int]]] = {}

    def key(self, captures: Captures) -> tuple[Shared, tuple[int, ...]]:
        """The group that a leaf belongs to, and its place among the members."""
        place = tuple(value for name in self.taken if isinstance(value := captures[name], int))
        return tuple((name, captures[name]) for name in self._shared), place

    def step_of(self, capture: str) -> GroupStep:
        return self._steps[capture]

    # Completeness ------------------------------------------------------------------------------------------------

    def counts(self, group: Group) -> dict[str, int]:
        """How many values every taken capture has, where none is missing."""
        found = {}
        for at, name in enumerate(self.taken):
            named = len(self.source.captures[name].alternatives) or len(self._steps[name].sizes or ())
            found[name] = max(named, *(place[at] + 1 for place in group.members))
        return found

    def missing(self, group: Group, counts: Mapping[str, int]) -> Iterator[Path]:
        """The paths of members that are not there."""
        sizes = tuple(counts[name] for name in self.taken)
        if math.prod(sizes) == len(group.members):
            return
        for place in _places(sizes):
            if place not in group.members:
                yield self.source.build({**dict(group.shared), **dict(zip(self.taken, place, strict=True))})

    # Carrying out ------------------------------------------------------------------------------------------------

    def link(
        self, group: Group, counts: Mapping[str, int], sources: Mapping[Name, LeafSpec], known: Mapping[str, int]
    ) -> tuple[Link, tuple[LeafSpec, ...] | None]:
        """The link of a complete group, and the specs of its targets; None where those of its sources are unknown.

        Args:
          counts: how many values every taken capture has.
          known: the same for given captures, as far as something else than the arrays tells.

        Raises:
          Unfit: an operation does not go with the arrays.
          NotInvertible: the way back loses something.
          Uncountable: neither arrays nor ``known`` tell how many leaves there will be.
        """
        names = tuple(group.members[place] for place in _places(tuple(counts[name] for name in self.taken)))
        specs = tuple(sources[name] for name in names)
        key = (specs, tuple(counts.items()), tuple(known.items()))
        if key not in self._made:
            self._made[key] = self._operation(specs, counts, known)
        operation, results, all_counts = self._made[key]
        targets = tuple((group.collection, path) for path in self._target_paths(group, all_counts))
        return Link(names, targets, operation), results

    def _operation(
        self, sources: Specs, counts: Mapping[str, int], known: Mapping[str, int]
    ) -> tuple[Operation, tuple[LeafSpec, ...] | None, dict[str, int]]:
        every = dict(counts)
        specs = None if any(spec.kind is LeafKind.EMPTY for spec in sources) else tuple(sources)
        operations: list[Operation] = []
        for stage in self._stages:
            operation: Operation
            if isinstance(stage, ShuffleStep):
                operation = stage.operation(every)
            elif isinstance(stage, GroupStep):
                if stage.capture in self.given:
                    every[stage.capture] = self._parts(stage, specs, known)
                operation = self._grouping(stage, every[stage.capture])
            else:
                operation = stage.operation
            operation = operation.inverse() if self._backwards else operation
            specs = None if specs is None else operation.specs(specs)
            operations.append(operation)
        return chain(*operations), specs, every

    @staticmethod
    def _grouping(step: GroupStep, count: int) -> Operation:
        if step.sizes and count != len(step.sizes):
            raise Unfit(f"{step.text!r} expects {len(step.sizes)} leaves, found {count}")
        return step.operation(count)

    def _parts(self, step: GroupStep, specs: Specs | None, known: Mapping[str, int]) -> int:
        """How many leaves every leaf becomes."""
        named = len(self.target.captures[step.capture].alternatives) or len(step.sizes or ())
        if named:
            return named
        if step.whole_axis and specs:
            axis = axis_of(step.word, step.axis, len(specs[0].shape))
            if not specs[0].shape[axis]:
                raise Unfit(f"{step.text!r}: {specs[0]} has no elements along this axis, so no leaves")
            return specs[0].shape[axis]
        if step.capture in known:
            return known[step.capture]
        raise Uncountable(f"how many values {step.capture!r} of {step.text!r} has is not known")

    def _target_paths(self, group: Group, counts: Mapping[str, int]) -> Iterator[Path]:
        shared = dict(group.shared)
        for place in _places(tuple(counts[name] for name in self.given)):
            yield self.target.build({**shared, **dict(zip(self.given, place, strict=True))})

    def misread(self, path: Path, group: Group) -> bool:
        """Whether the target pattern reads a name that it made as something else, so that there is no way back."""
        captures = self.target.match(path)
        return captures is None or any(captures[name] != value for name, value in group.shared)


def counted(pattern: PathPattern, paths: Iterable[Path], shared: tuple[str, ...]) -> dict[Shared, dict[str, int]]:
    """By the shared captures, how many values the other number captures of a pattern have among some paths."""
    found: dict[Shared, dict[str, int]] = {}
    for path in paths:
        captures = pattern.match(path)
        if captures is not None:
            counts = found.setdefault(tuple((name, captures[name]) for name in shared), {})
            for name, value in captures.items():
                if name not in shared and isinstance(value, int):
                    counts[name] = max(counts.get(name, 0), value + 1)
    return found


def _places(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All combinations, the last number running fastest; lazily, however many there are."""
    if not counts:
        yield ()
        return
    for place in _places(counts[:-1]):
        for last in range(counts[-1]):
            yield (*place, last)
