"""Patterns over the names of variables, made from the names: what they differ in becomes a capture.

Rules of equal layers are folded to one: ``layers_0 … layers_11`` becomes ``layers_{i}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from converter.paths import Path
from converter.rules.align.layouts import Inexpressible

_NUMBER = re.compile(r"(?<![0-9])(?:0|[1-9][0-9]*)(?![0-9])")


@dataclass(frozen=True, slots=True)
class Hole:
    """A capture in a pattern.

    Attributes:
      name: its name.
      words: what it takes, in this order; empty for any number.
    """

    name: str
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "{" + self.name + (":" + "|".join(self.words) if self.words else "") + "}"


Segment = tuple[str | Hole, ...]
Pattern = tuple[Segment, ...]


def literal(path: Path) -> Pattern:
    """The pattern of one name."""
    return tuple((str(key),) for key in path)


def pattern_text(pattern: Pattern) -> str:
    """The pattern as rule files write it."""
    return "/".join(map(_segment_text, pattern))


def _segment_text(segment: Segment) -> str:
    parts = [part if isinstance(part, Hole) else part.replace("{", "{{").replace("}", "}}") for part in segment]
    plain = "".join(map(str, parts))
    text = "".join(part for part in parts if isinstance(part, str))
    if not plain or "/" in text or "*" in text or plain.startswith('"'):
        return json.dumps(plain, ensure_ascii=False)
    return plain


def over_digits(paths: Mapping[tuple[int, ...], Path], names: Sequence[str]) -> Pattern:
    """The pattern of several names that are counted by digits.

    Args:
      paths: the names.
      names: of the captures, one for each digit.

    Raises:
      Inexpressible: the names have no such pattern.
    """
    lengths = {len(path) for path in paths.values()}
    if len(lengths) > 1:
        raise Inexpressible("the names of the variables have nothing in common")
    segments = []
    used: dict[str, tuple[str, ...]] = {}
    for at in range(lengths.pop()):
        texts = {place: str(path[at]) for place, path in paths.items()}
        segments.append(_over_digits(texts, names, used))
    if any(name not in used for name in names):
        raise Inexpressible("the names of the variables do not tell which is which")
    return tuple(segments)


def _over_digits(
    texts: Mapping[tuple[int, ...], str], names: Sequence[str], used: dict[str, tuple[str, ...]]
) -> Segment:
    if len(set(texts.values())) == 1:
        return (next(iter(texts.values())),)
    for digit, name in enumerate(names):
        words: dict[int, str] = {}
        if all(words.setdefault(place[digit], text) == text for place, text in texts.items()):
            segment, hole = _hole([words[value] for value in sorted(words)], name)
            if used.setdefault(name, hole.words) != hole.words:
                break
            return segment
    raise Inexpressible("the names of the variables differ in several places at once")


def _hole(words: Sequence[str], name: str) -> tuple[Segment, Hole]:
    """A segment that takes these words, and the capture in it."""
    common = _common(words)
    match = _NUMBER.match(words[0], common)
    if match is not None:
        before, after = words[0][:common], words[0][match.end() :]
        if list(words) == [f"{before}{value}{after}" for value in range(len(words))]:
            hole = Hole(name)
            return tuple(part for part in (before, hole, after) if part), hole
    rest = [word[common:] for word in words]
    behind = _common([word[::-1] for word in rest])
    before, after = words[0][:common], words[0][len(words[0]) - behind :] if behind else ""
    inner = tuple(word[: len(word) - behind] for word in rest)
    if not all(inner):
        before, inner, after = "", tuple(words), ""
    if any(not word or set(word) & set("{}|*/") for word in inner) or len(set(inner)) < len(inner):
        raise Inexpressible("the names of the variables cannot be written as alternatives")
    hole = Hole(name, inner)
    return tuple(part for part in (before, hole, after) if part), hole


def _common(words: Sequence[str]) -> int:
    """How many characters all words begin with, without tearing a number apart."""
    length = 0
    while all(len(word) > length for word in words) and len({word[length] for word in words}) == 1:
        length += 1
    while length and words[0][length - 1].isdigit() and any(word[length : length + 1].isdigit() for word in words):
        length -= 1
    return length


# Folding -------------------------------------------------------------------------------------------------------------

Spot = tuple[int, int, int, int]
"""A number in a pattern: segment, part, and where it begins and ends."""


def numbers_in(pattern: Pattern) -> list[tuple[Spot, str]]:
    """The numbers that stand in a pattern, and where."""
    found = []
    for at, segment in enumerate(pattern):
        for place, part in enumerate(segment):
            if isinstance(part, str):
                found += [((at, place, *match.span()), match.group()) for match in _NUMBER.finditer(part)]
    return found


def with_hole(pattern: Pattern, spot: Spot, hole: Hole) -> Pattern:
    """The pattern with a capture in the place of a number."""
    at, place, start, end = spot
    segment = pattern[at]
    text = segment[place]
    assert isinstance(text, str)
    parts = [part for part in (text[:start], hole, text[end:]) if part]
    made = (*segment[:place], *parts, *segment[place + 1 :])
    return (*pattern[:at], made, *pattern[at + 1 :])


def blanked(pattern: Pattern, spot: Spot) -> Hashable:
    """The pattern without the number, to compare it with others."""
    return with_hole(pattern, spot, Hole("?"))


def beside_captures(pattern: Pattern, spot: Spot) -> bool:
    """Whether a capture in this place would touch another one, from which it could not be told."""
    at, place, start, end = spot
    segment, text = pattern[at], pattern[at][place]
    assert isinstance(text, str)
    before = start == 0 and place > 0
    return before or (end == len(text) and place + 1 < len(segment))
