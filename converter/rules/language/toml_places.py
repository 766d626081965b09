"""Where keys and values stand in a TOML text. The reader of the standard library tells only what they are."""

from __future__ import annotations

import bisect
import json
import re

Place = tuple[str | int, ...]
"""The way to a value through tables and arrays: ``("rule", 0, "to_nnx", 1)``."""

_TOKEN = re.compile(
    r"""[ \t]*(?:
      (?P<text>\"\"\"(?:[^\\]|\\.)*?\"{3,5}|'''.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')
    | (?P<comment>\#[^\n]*)
    | (?P<mark>[\[\]{}=,.\n])
    | (?P<bare>[^\s\[\]{}=,."'\#]+)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\u.{4}|\\U.{8}|\\[ \t]*\n\s*|\\.|[^\\]", re.DOTALL)


class TomlPlaces:
    """Lines and columns, both from 1, of what stands in a text that ``tomllib`` has read without complaint.

    Line ends are single newlines.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self._tokens = [
            (str(m.lastgroup), m[str(m.lastgroup)], m.start(str(m.lastgroup))) for m in _TOKEN.finditer(text)
        ]
        self._tokens = [token for token in self._tokens if token[0] != "comment"]
        self._at = 0
        self._keys: dict[Place, int] = {}
        self._values: dict[Place, tuple[str, int]] = {}
        self._read_statements()

    def line_and_column(self, offset: int) -> tuple[int, int]:
        line = bisect.bisect_right(self._lines, offset)
        return line, offset - self._lines[line - 1] + 1

    def of_key(self, place: Place) -> tuple[int, int]:
        """Where a key stands, or the header of a table."""
        return self.line_and_column(self._keys.get(place, 0))

    def of_value(self, place: Place, character: int | None = None) -> tuple[int, int]:
        """Where a value begins, or that character of a text as ``tomllib`` gives it."""
        token, start = self._values.get(place, ("", self._keys.get(place, 0)))
        return self.line_and_column(start if character is None else start + _offset_inside(token, character))

    # A parser of what is known to be right. Positions in arrays and tables in arrays are counted alike.

    def _next(self) -> tuple[str, str, int]:
        self._at += 1
        return self._tokens[self._at - 1]

    def _peek(self, mark: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at][:2] == ("mark", mark)

    def _skip(self, *marks: str) -> None:
        while any(map(self._peek, marks)):
            self._at += 1

    def _read_statements(self) -> None:
        table: Place = ()
        counts: dict[Place, int] = {}
        while True:
            self._skip("\n")
            if self._at >= len(self._tokens):
                return
            if not self._peek("["):
                self._read_pair(table)
                continue
            start = self._next()[2]
            array = self._peek("[") and self._tokens[self._at][2] == start + 1
            self._skip("[")
            table = ()
            for key in self._read_key()[0]:
                table = (*table, key)
                # A header below an array of tables means its last table.
                if table in counts:
                    table = (*table, counts[table] - 1)
            if array:
                if isinstance(table[-1], int):
                    table = table[:-1]
                counts[table] = counts.get(table, 0) + 1
                table = (*table, counts[table] - 1)
            self._keys[table] = start
            self._skip("]")

    def _read_key(self) -> tuple[list[str], int]:
        """The parts of a dotted key, and where it begins."""
        parts: list[str] = []
        start = self._tokens[self._at][2]
        while True:
            kind, token, _ = self._next()
            parts.append(_plain(token) if kind == "text" else token)
            if not self._peek("."):
                return parts, start
            self._at += 1

    def _read_pair(self, table: Place) -> None:
        parts, start = self._read_key()
        place: Place = table
        for part in parts:
            place = (*place, part)
            self._keys.setdefault(place, start)
        self._skip("=")
        self._read_value(place)

    def _read_value(self, place: Place) -> None:
        kind, token, start = self._next()
        self._values[place] = (token if kind == "text" else "", start)
        if kind == "mark" and token == "[":
            position = 0
            self._skip("\n")
            while not self._peek("]"):
                self._keys[*place, position] = self._tokens[self._at][2]
                self._read_value((*place, position))
                position += 1
                self._skip("\n", ",")
            self._at += 1
        elif kind == "mark":
            self._skip("\n")
            while not self._peek("}"):
                self._read_pair(place)
                self._skip("\n", ",")
            self._at += 1
        elif kind == "bare":  # numbers have points, times have blanks
            while self._at < len(self._tokens) and not any(map(self._peek, "\n,]}")):
                self._at += 1


def _plain(token: str) -> str:
    """The key that a quoted token spells."""
    if token.startswith("'"):
        return token[1:-1]
    return str(json.loads(re.sub(r"\\U(.{8})", lambda m: json.dumps(chr(int(m[1], 16)))[1:-1], token)))


def _offset_inside(token: str, character: int) -> int:
    """The position in a quoted token of a character of the text that it stands for."""
    quotes = 3 if token[:3] in ('"""', "'''") else min(len(token), 1)
    position = quotes + (quotes == 3 and token[3:4] == "\n")
    if token[:1] != '"':
        return position + character
    for match in _ESCAPE.finditer(token, position, len(token) - quotes):
        if re.fullmatch(r"\\[ \t]*\n\s*", match.group()):
            continue
        if character == 0:
            return match.start()
        character -= 1
    return len(token) - quotes
