"""Patterns over paths with named captures, which read names and make names: ``encoder/layers/{i}/{p:q|k|v}/kernel``.

Nothing here knows rule files or operations.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from converter.paths import IntKey, Key, Path
from converter.rules.language.fault import Fault
from converter.rules.language.templates import Capture, Kind, Segment, Template

Value = int | str | Path
"""What a capture holds: a number, the position among its alternatives, a text, or whole segments."""

Captures = Mapping[str, Value]


class PathPattern:
    """A pattern whose captures all have a type.

    ``other`` is the pattern of the other side of a rule: it types captures that have no type here. A capture without a
    type on both sides is a number. Alternatives on both sides correspond by position.

    Attributes:
      text: as the user wrote it.
      captures: the first occurrence of every capture by its name.

    Raises:
      Fault: types that contradict each other, or a capture of segments that shares its segment or is not the only one.
    """

    def __init__(self, template: Template, other: Template | None = None) -> None:
        self.text = template.text
        self.captures = _typed(template.types(), other.types() if other else {})
        self._segments = tuple(
            tuple(part.like(self.captures[part.name]) if isinstance(part, Capture) else part for part in segment)
            for segment in template.segments
        )
        self._rest = _rest_position(self._segments)
        self._tests = tuple(_test(segment) for segment in self._segments)
        self.shortest = len(self._segments)
        self._numbers = {name: {text: n for n, text in enumerate(c.alternatives)} for name, c in self.captures.items()}

    @classmethod
    def parse(cls, text: str) -> PathPattern:
        """A pattern that stands alone. Raises: Fault."""
        return cls(Template.parse(text))

    def __repr__(self) -> str:
        return f"PathPattern({self.text!r})"

    @property
    def front(self) -> tuple[re.Pattern[str] | str, ...]:
        """What each of the first segments must be: a text, or a match of the expression."""
        return self._tests[: self._rest]

    @property
    def back(self) -> tuple[re.Pattern[str] | str, ...]:
        """The same for the last segments, where a capture of segments stands before them."""
        return () if self._rest is None else self._tests[self._rest + 1 :]

    @property
    def fixed_length(self) -> bool:
        """Whether all its paths have ``shortest`` segments, rather than at least that many."""
        return self._rest is None

    def match(self, path: Path) -> dict[str, Value] | None:
        """What the captures hold, or None where the path is not of this pattern."""
        if len(path) < self.shortest or (self._rest is None and len(path) > self.shortest):
            return None
        found: dict[str, Value] = {}
        keys: Iterable[Key] = path
        if self._rest is not None:
            end = len(path) - len(self.back)
            for part in self._segments[self._rest]:
                assert isinstance(part, Capture)
                found[part.name] = path[self._rest : end]
            keys = itertools.chain(path[: self._rest], path[end:])
        for test, key in zip(itertools.chain(self.front, self.back), keys, strict=True):
            if isinstance(test, str):
                if test != key:
                    return None
                continue
            match = test.fullmatch(key)
            if match is None:
                return None
            for name, text in match.groupdict().items():
                value = self._value(name, text)
                if found.setdefault(name, value) != value:
                    return None
        return found

    def _value(self, name: str, text: str) -> Value:
        match self.captures[name].kind:
            case Kind.NUMBER:
                return int(text)
            case Kind.ALTERNATIVES:
                return self._numbers[name][text]
            case _:
                return text

    def build(self, captures: Captures) -> Path:
        """The path that holds these captures. A segment that is a number alone becomes an ``IntKey``."""
        path: list[Key] = []
        for segment in self._segments:
            if len(segment) == 1 and isinstance(segment[0], Capture):
                value = captures[segment[0].name]
                if isinstance(value, tuple):
                    path += value
                    continue
                if segment[0].kind is Kind.NUMBER:
                    path.append(IntKey(value))
                    continue
            path.append("".join(part if isinstance(part, str) else _spelled(part, captures) for part in segment))
        return tuple(path)


def _spelled(capture: Capture, captures: Captures) -> str:
    value = captures[capture.name]
    return capture.alternatives[value] if capture.alternatives and isinstance(value, int) else str(value)


def _typed(own: Mapping[str, Capture], other: Mapping[str, Capture]) -> dict[str, Capture]:
    typed = {}
    for name, capture in own.items():
        opposite = other.get(name)
        if capture.kind is None:
            given = opposite if opposite and opposite.kind else Capture(name, Kind.NUMBER)
            typed[name] = capture.like(given)
            continue
        if opposite and opposite.kind:
            if capture.kind is not opposite.kind:
                raise Fault(
                    f"capture {name!r} is {capture.kind.value} here and {opposite.kind.value} on the other side",
                    capture.offset,
                    "Give the type on one side, or the same on both.",
                )
            if len(capture.alternatives) != len(opposite.alternatives):
                counts = f"{len(capture.alternatives)} here and {len(opposite.alternatives)} on the other side"
                raise Fault(
                    f"capture {name!r} has different numbers of alternatives: {counts}",
                    capture.offset,
                    "Alternatives correspond by their position.",
                )
        typed[name] = capture
    return typed


def _rest_position(segments: Sequence[Segment]) -> int | None:
    """Where the capture of whole segments stands."""
    position = None
    for at, segment in enumerate(segments):
        for part in segment:
            if isinstance(part, Capture) and part.kind is Kind.REST:
                if len(segment) > 1:
                    raise Fault(
                        f"capture {part.name!r} takes whole segments, so it must be a segment of its own", part.offset
                    )
                if position is not None:
                    raise Fault("a second capture of whole segments cannot be told from the first", part.offset)
                position = at
    return position


def _test(segment: Segment) -> re.Pattern[str] | str:
    if all(isinstance(part, str) for part in segment):
        return "".join(map(str, segment))
    seen: set[str] = set()
    expression = ""
    for part in segment:
        if isinstance(part, str):
            expression += re.escape(part)
        elif part.name in seen:
            expression += f"(?P={part.name})"
        else:
            seen.add(part.name)
            expression += f"(?P<{part.name}>{_expression(part)})"
    return re.compile(expression, re.DOTALL)


def _expression(capture: Capture) -> str:
    match capture.kind:
        case Kind.NUMBER:
            return "0|[1-9][0-9]{0,17}"  # int() is slow for endless numbers and refuses the longest
        case Kind.ALTERNATIVES:
            return "|".join(map(re.escape, capture.alternatives))
        case _:
            return ".+"


class PatternIndex:
    """Which of several patterns a path matches, told for very many paths.

    For every depth it is known which patterns allow which key there, as the bits of a number.
    """

    def __init__(self, patterns: Sequence[PathPattern]) -> None:
        self._patterns = patterns
        self._lengths: dict[int, int] = {}
        depth = max((len(pattern.front) for pattern in patterns), default=0)
        self._front = [_Column([p.front[at : at + 1] for p in patterns]) for at in range(depth)]
        depth = max((len(pattern.back) for pattern in patterns), default=0)
        self._back = [_Column([p.back[::-1][at : at + 1] for p in patterns]) for at in range(depth)]

    def matching(self, path: Path) -> list[int]:
        """The positions of the patterns; ``PathPattern.match`` has the last word where a capture stands twice."""
        fitting = self._lengths.get(len(path), -1)
        if fitting < 0:
            fitting = self._lengths[len(path)] = _bits(
                p.shortest == len(path) if p.fixed_length else p.shortest <= len(path) for p in self._patterns
            )
        for column, key in zip(self._front, path, strict=False):
            fitting &= column[key]
        for column, key in zip(self._back, reversed(path), strict=False):
            fitting &= column[key]
        return [at for at in range(fitting.bit_length()) if fitting >> at & 1]


class _Column(dict[Key, int]):
    """The patterns that allow each key at one depth; ``tests`` holds what each demands there, if anything."""

    def __init__(self, tests: Sequence[Sequence[re.Pattern[str] | str]]) -> None:
        super().__init__()
        self._free = _bits(not test for test in tests)
        demands = dict.fromkeys(test[0] for test in tests if test)
        masks = {demand: _bits(list(test) == [demand] for test in tests) for demand in demands}
        self._texts = {text: mask for text, mask in masks.items() if isinstance(text, str)}
        self._expressions = [(test, mask) for test, mask in masks.items() if not isinstance(test, str)]

    def __missing__(self, key: Key) -> int:
        allowed = self._free | self._texts.get(key, 0)
        for expression, mask in self._expressions:
            if expression.fullmatch(key):
                allowed |= mask
        self[key] = allowed
        return allowed


def _bits(truths: Iterable[bool]) -> int:
    return sum(1 << at for at, true in enumerate(truths) if true)
