"""Paths: where in a tree a leaf is, in memory and as text, and patterns over them.

A *path* is a tuple of keys. A key is its text; the subclasses of ``str`` remember which container the key came
from. They compare and hash by their text, because the same key has different kinds in different files: position 0 of
an optax state is a sequence index in an Orbax train state, the text ``"0"`` in a msgpack file and an ``int`` dict key
in an ``nnx.State``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence

from converter.errors import UsageError

Key = str


class IntKey(str):
    """A dict key that is an ``int`` in memory (``nnx.State`` uses them for the items of a list)."""

    __slots__ = ()


class IndexKey(str):
    """A position in a list or tuple."""

    __slots__ = ()


class TupleKey(str):
    """A dict key that is a tuple of texts in memory, as nnx.SpectralNorm has them; written as Python writes it."""

    __slots__ = ()


Path = tuple[Key, ...]


def format_path(path: Path) -> str:
    """Prints a path: ``params/Dense_0/kernel``. Keys that would be ambiguous are quoted as JSON strings.

    ``parse_path`` is the exact inverse, up to the kind of each key.
    """
    return "/".join(map(_quote, path))


def format_keys(path: Path) -> Sequence[str]:
    """What ``format_path`` puts slashes between."""
    return tuple(map(_quote, path))


@functools.lru_cache(maxsize=1 << 16)
def _quote(key: Key) -> str:
    plain = key and "/" not in key and not key.startswith('"') and key.isprintable() and key == key.strip()
    return str(key) if plain else json.dumps(str(key))


_SEGMENT = re.compile(r'"(?:[^"\\]|\\.)*"(?=/|$)|[^/"][^/]*')


def parse_path(text: str) -> Path:
    """Reads what ``format_path`` prints; every key comes back as a plain name.

    Raises:
      UsageError: an empty segment or an unfinished quote.
    """
    keys: list[Key] = []
    position = 0
    while position < len(text):
        match = _SEGMENT.match(text, position)
        if match is None:
            raise UsageError(
                f"cannot read the path {text!r}: unexpected {text[position]!r} at column {position + 1}",
                'Separate keys by single slashes; put a key that contains a slash in quotes: "a/b"/kernel.',
            )
        segment = match.group()
        keys.append(_unquoted(segment, text) if segment.startswith('"') else segment)
        position = match.end()
        if position < len(text):
            position += 1
            if position == len(text):
                raise UsageError(f"the path {text!r} ends in a slash", "Remove the last slash.")
    return tuple(keys)


def _unquoted(segment: str, text: str) -> Key:
    try:
        return str(json.loads(segment))
    except ValueError as error:
        raise UsageError(
            f"cannot read the path {text!r}: {segment} is no JSON string ({error})",
            "Inside quotes write backslashes, quotes and control characters as JSON does.",
        ) from None


def path_order(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sorting key: alphabetical, but numbers in numeric order (``layers/10`` after ``layers/2``)."""
    return tuple((0, int(key), "") if key.isascii() and key.isdigit() else (1, 0, key) for key in path)


class PathGlob:
    """A pattern over paths: ``*`` and ``?`` match within one key, a key ``**`` matches any number of keys.

    No other character is special.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        keys = parse_path(text)
        if not keys:
            raise UsageError("an empty pattern matches no leaf", "Write a pattern such as 'params/**/kernel'.")
        self._keys = tuple(None if key == "**" else _key_pattern(key) for key in keys)

    def matches(self, path: Path) -> bool:
        return _glob(self._keys, path)

    def __repr__(self) -> str:
        return f"PathGlob({self.text!r})"


def _key_pattern(key: Key) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(character, re.escape(character)) for character in key), re.DOTALL)


def _glob(pattern: tuple[re.Pattern[str] | None, ...], path: Path) -> bool:
    if not pattern:
        return not path
    first, rest = pattern[0], pattern[1:]
    if first is None:
        return any(_glob(rest, path[start:]) for start in range(len(path) + 1))
    return bool(path) and first.fullmatch(path[0]) is not None and _glob(rest, path[1:])


# Leaves ----------------------------------------------------------------------------------------------------------
