"""Reading the patterns of rule files: segments of text and named captures. The grammar is in docs/rules.md."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from converter.rules.language.fault import Fault


class Kind(enum.Enum):
    """What a capture takes; the values are how messages call it."""

    NUMBER = "a whole number"
    ALTERNATIVES = "alternatives"
    TEXT = "any text (*)"
    REST = "whole segments (**)"


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture as it is written; ``kind`` is None where the name stands alone and the other pattern may type it."""

    name: str
    kind: Kind | None = None
    alternatives: tuple[str, ...] = ()
    offset: int = 0

    def like(self, other: Capture) -> Capture:
        """This occurrence with the type of another."""
        return replace(self, kind=other.kind, alternatives=other.alternatives)


Segment = tuple[str | Capture, ...]


_Units = list[tuple[str, int]]
"""The characters of one segment, each with its position in the text of the pattern."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_JSON_CHARACTER = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\[\"\\/bfnrt]|[^\"\\\x00-\x1f]"
)
_CAPTURE_ADVICE = "Captures are {i} (a number), {p:q|k|v} (one of several), {name:*} (any text), {rest:**} (segments)."
_BRACES_ADVICE = "Write {{ and }} for braces in a name."


@dataclass(frozen=True, slots=True)
class Template:
    """A pattern as it is written, where captures need not have a type yet."""

    text: str
    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises: Fault."""
        if not text:
            raise Fault("an empty pattern matches no variable", 0, "Write the path of a variable, such as head/kernel.")
        return cls(text, tuple(_segment(units, quoted) for units, quoted in _split(text)))

    def captures(self) -> Iterator[Capture]:
        """All occurrences, in order."""
        return (part for segment in self.segments for part in segment if isinstance(part, Capture))

    def types(self) -> dict[str, Capture]:
        """The first occurrence of every capture, with its type if any of the occurrences gives one.

        Raises:
          Fault: two occurrences with different types.
        """
        found: dict[str, Capture] = {}
        for capture in self.captures():
            first = found.setdefault(capture.name, capture)
            if first.kind is None:
                found[capture.name] = first.like(capture)
            elif capture.kind is not None and capture != replace(first, offset=capture.offset):
                raise Fault(f"capture {capture.name!r} has another type here than before", capture.offset)
        return found

    def below(self) -> Template:
        """The pattern without its first segment."""
        return replace(self, segments=self.segments[1:])


def _split(text: str) -> Iterator[tuple[_Units, bool]]:
    """The segments, and whether each is quoted."""
    position = 0
    while True:
        if text.startswith('"', position):
            units, end = _quoted(text, position)
        else:
            end = text.find("/", position) if "/" in text[position:] else len(text)
            units = list(zip(text[position:end], range(position, end), strict=True))
        if not units:
            raise Fault("an empty segment", min(position, len(text) - 1), "Separate segments by single slashes.")
        yield units, text.startswith('"', position)
        if end == len(text):
            return
        position = end + 1


def _quoted(text: str, start: int) -> tuple[_Units, int]:
    units: _Units = []
    position = start + 1
    while position < len(text) and text[position] != '"':
        match = _JSON_CHARACTER.match(text, position)
        if match is None:
            raise Fault("no JSON character", position, "Inside quotes write backslashes and quotes as JSON does.")
        units.append((str(json.loads(f'"{match.group()}"')), position))
        position = match.end()
    if position >= len(text):
        raise Fault("a quote that is not closed", start, 'Close it with ".')
    if position + 1 < len(text) and text[position + 1] != "/":
        raise Fault("text behind a quoted segment", position + 1, "Quote the whole segment.")
    return units, position + 1


def _segment(units: _Units, quoted: bool) -> Segment:
    parts: list[str | Capture] = []
    literal = ""
    position = 0
    while position < len(units):
        character, offset = units[position]
        if character in "{}" and "".join(c for c, _ in units[position : position + 2]) == character * 2:
            literal += character
            position += 2
        elif character == "{":
            end = next((at for at in range(position, len(units)) if units[at][0] == "}"), None)
            if end is None:
                raise Fault("'{' is not closed in its segment", offset, _BRACES_ADVICE)
            if literal:
                parts.append(literal)
            elif parts:
                raise Fault("two captures side by side cannot be told apart", offset, "Put text between them.")
            parts.append(_capture(units[position + 1 : end], offset))
            literal = ""
            position = end + 1
        elif character == "}":
            raise Fault("'}' without '{'", offset, _BRACES_ADVICE)
        elif character == "*" and not quoted:
            raise Fault("'*' is no wildcard outside of a capture", offset, "Write {name:*} or {rest:**}.")
        else:
            literal += character
            position += 1
    return (*parts, literal) if literal else tuple(parts)


def _capture(units: _Units, offset: int) -> Capture:
    text = "".join(character for character, _ in units)
    name, colon, kind = text.partition(":")
    if not _NAME.fullmatch(name):
        raise Fault(f"{name!r} is no name for a capture", offset + 1 if text else offset, _CAPTURE_ADVICE)
    if not colon:
        return Capture(name, offset=offset)
    if kind in ("*", "**"):
        return Capture(name, Kind.TEXT if kind == "*" else Kind.REST, offset=offset)
    alternatives = tuple(kind.split("|"))
    at = units[len(name)][1]
    if len(alternatives) < 2 or not all(alternatives) or any(set(text) & set("{*") for text in alternatives):
        raise Fault(f"{kind!r} is no type of a capture", at + 1, _CAPTURE_ADVICE)
    if len(set(alternatives)) < len(alternatives):
        raise Fault(f"an alternative of {name!r} stands twice", at + 1)
    return Capture(name, Kind.ALTERNATIVES, alternatives, offset)
