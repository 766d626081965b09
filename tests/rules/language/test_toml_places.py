"""Where things stand in TOML texts, compared with what the reader of the standard library finds there."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.rules.language.toml_places import Place, TomlPlaces

TEXTS = [
    "a = \"one\"\nb = 'two'\n",
    "# comment [[x]]\n\n  a.b = 'x'  # 'comment'\n\"q k\" = \"v\"\n'[' = \"w\"",
    '[[rule]]\nlinen = "a"\nto_nnx = ["x", \'y\',\n  # between\n  "z",\n]\n[[rule]]\nlinen = "b"\n',
    'rule = [{linen = "a", nnx = "b"}, {linen = "c", to_nnx = ["d", ["e"]]}]\n',
    'n = 1.5\nt = 1979-05-27 07:32:00.5\nb = true\nx = [1.5, 2e3, "s", {k = 1.0, m = "v"}]\nlast = "l"\n',
    '[[a]]\nx = "1"\n[a.b]\ny = "2"\n[[a.c]]\nz = "3"\n[[a.c]]\nz = "4"\n[[a]]\nx = "5"\n[[a.c]]\nz = "6"\n',
    'a = """\nfirst\nsecond"""\nb = \'\'\'\nx\'y\'\'\'\nc = """q"r"""\nd = """"q""""\n',
    'a = """one \\\n     two"""\nb = "t\\u0041\\"z\\\\"\n"\\u0041" = "k"\n"\\U0001F600" = "k"',
    "[ t . u ]\n x = 'y'\n[t.'v w']\nx = 'z'",
    "",
]


def strings(value: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from strings(child, (*place, key))


@pytest.mark.parametrize("text", TEXTS)
def test_every_character_of_every_string_is_found(text: str):
    places = TomlPlaces(text)
    lines = text.split("\n")
    for place, value in strings(tomllib.loads(text)):
        for at, character in enumerate(value):
            line, column = places.of_value(place, at)
            found = (lines[line - 1] + "\n")[column - 1]
            assert found == character or found == "\\", (place, at)
        line, column = places.of_value(place)
        assert lines[line - 1][column - 1] in "\"'"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.integers(0, 3), st.data())
def test_escapes_are_counted_as_one_character(value: str, before: int, data: st.DataObject):
    text = "\n" * before + f"  k = {json.dumps(value)}  # k\n"
    if any(ord(character) > 0xFFFF or ord(character) == 0x7F for character in value):
        text = "\n" * before + f"  k = {json.dumps(value, ensure_ascii=False)}\n".replace("\x7f", "\\u007f")
    assert tomllib.loads(text) == {"k": value}
    line, column = TomlPlaces(text).of_value(("k",), data.draw(st.integers(0, len(value))))
    assert line == before + 1
    assert 8 <= column <= len(text) - before


def test_headers_and_keys():
    text = "default = 'x'\n\n[[rule]]\nlinen = 'a'\n  [[rule]] # second\n  nnx = 'b'\n"
    places = TomlPlaces(text)
    assert places.of_key(("rule", 0)) == (3, 1)
    assert places.of_key(("rule", 1)) == (5, 3)
    assert places.of_key(("rule", 1, "nnx")) == (6, 3)
    assert places.of_value(("rule", 1, "nnx")) == (6, 9)
    assert places.of_key(("default",)) == (1, 1)
