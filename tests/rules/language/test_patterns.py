"""Patterns over paths: what they match, what they build, and where they are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.paths import IntKey, parse_path
from converter.rules.language.fault import Fault
from converter.rules.language.patterns import PathPattern, PatternIndex
from converter.rules.language.templates import Template


def matched(pattern: str, path: str) -> dict[str, object] | None:
    return PathPattern.parse(pattern).match(parse_path(path))


def pair(left: str, right: str) -> tuple[PathPattern, PathPattern]:
    one, other = Template.parse(left), Template.parse(right)
    return PathPattern(one, other), PathPattern(other, one)


@pytest.mark.parametrize(
    ("pattern", "path", "captures"),
    [
        ("head/kernel", "head/kernel", {}),
        ("layers/{i}/w", "layers/0/w", {"i": 0}),
        ("layer_{i}/w", "layer_10/w", {"i": 10}),
        ("{i}", "7", {"i": 7}),
        ("a/{p:q|k|v}_proj", "a/k_proj", {"p": 1}),
        ("a/{p:if|if_}x", "a/if_x", {"p": 1}),
        ("a/{n:*}/b", "a/Dense_0/b", {"n": "Dense_0"}),
        ("a/{n:*}/b", 'a/"x/y"/b', {"n": "x/y"}),
        ("{n:*}_{i}", "a_b_12", {"n": "a_b", "i": 12}),
        ("x/{r:**}", "x/a/b", {"r": ("a", "b")}),
        ("{r:**}/kernel", "a/kernel/kernel", {"r": ("a", "kernel")}),
        ("a/{r:**}/b/c", "a/1/2/b/c", {"r": ("1", "2")}),
        ("block_{i}/norm_{i}", "block_3/norm_3", {"i": 3}),
        ("{i}_{i}", "3_3", {"i": 3}),
        ("{{{i}}}", '"{3}"', {"i": 3}),
        ('"a/b"/{i}', '"a/b"/0', {"i": 0}),
        ('"a/{i}"/b', '"a/4"/b', {"i": 4}),
        ('"*"/b', "*/b", {}),
        ('"\\u00e9\\n"', '"é\\n"', {}),
        ("a b/{i}", "a b/1", {"i": 1}),
        ("über/{n:*}", "über/ß", {"n": "ß"}),
    ],
)
def test_a_match_gives_captures_and_captures_give_the_path(pattern: str, path: str, captures: dict[str, object]):
    assert matched(pattern, path) == captures
    assert PathPattern.parse(pattern).build(captures) == parse_path(path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("layers/{i}", "layers/01"),
        ("layers/{i}", "layers/-1"),
        ("layers/{i}", "layers/x"),
        ("layers/{i}", "layers/٣"),
        ("layers/{i}", "layers/" + "9" * 5000),
        ("layers/{i}", "layers/1/2"),
        ("layers/{i}", "layers"),
        ("layer_{i}", "layer_"),
        ("layer_{i}", "layer_1\n"),
        ("{p:q|k}_proj", "v_proj"),
        ("{p:a.b|c}", "axb"),
        ("a{n:*}", "a"),
        ("a/{r:**}", "a"),
        ("{r:**}/a/b", "a/b"),
        ("block_{i}/norm_{i}", "block_3/norm_4"),
        ("{i}_{i}", "3_4"),
        ("a/b", "a/c"),
        ("A", "a"),
    ],
)
def test_what_does_not_match(pattern: str, path: str):
    assert matched(pattern, path) is None


def test_numbers_alone_become_int_keys_and_texts_stay_texts():
    built = PathPattern.parse("layers/{i}/b_{i}/{n:*}").build({"i": 3, "n": "3"})
    assert [type(key) for key in built] == [str, IntKey, str, str]


def test_alternatives_of_both_sides_correspond_by_position():
    left, right = pair("attn/{p:query|key|value}/kernel", "{p:q|k|v}/w")
    assert right.build(left.match(("attn", "key", "kernel"))) == ("k", "w")
    assert left.build(right.match(("v", "w"))) == ("attn", "value", "kernel")


def test_a_type_is_given_on_either_side():
    for left, right in (("{p:a|b}/{i}", "{i}/{p}"), ("{p}/{i}", "{i}/{p:a|b}")):
        one, other = pair(left, right)
        assert other.build(one.match(("b", "4"))) == ("4", "b")
        assert one.match(("c", "4")) is None
    one, other = pair("x/{r}", "{r:**}")
    assert other.build(one.match(("x", "y", "z"))) == ("y", "z")


def test_without_a_type_on_both_sides_a_capture_is_a_number():
    one, _ = pair("{i}/a", "{i}/b")
    assert one.match(("x", "a")) is None
    assert one.match(("0", "a")) == {"i": 0}


@pytest.mark.parametrize(
    ("pattern", "column", "message"),
    [
        ("", 1, "empty pattern"),
        ("/a", 1, "empty segment"),
        ("a//b", 3, "empty segment"),
        ("a/", 2, "empty segment"),
        ("a/{i", 3, "not closed"),
        ("a/{p:x/y}", 3, "not closed"),
        ("a/i}", 4, "without"),
        ("a/{}", 3, "no name"),
        ("a/{1x}", 4, "no name"),
        ("a/{i j}", 4, "no name"),
        ("a/{i:}", 6, "no type"),
        ("a/{i:int}", 6, "no type"),
        ("a/{i:[0-9]+}", 6, "no type"),
        ("a/{p:q||k}", 6, "no type"),
        ("a/{p:q|k*}", 6, "no type"),
        ("a/{p:***}", 6, "no type"),
        ("a/{p:q|k|q}", 6, "twice"),
        ("a/{i}{j}", 6, "side by side"),
        ("a/x_{r:**}", 5, "segment of its own"),
        ("{r:**}/a/{s:**}", 10, "second"),
        ("{r:**}/{r}", 8, "second"),
        ("a/*/b", 3, "no wildcard"),
        ("a/**", 3, "no wildcard"),
        ("{p:a|b}/{p:a|c}", 9, "another type"),
        ('a/"b', 3, "not closed"),
        ('a/"b"c/d', 6, "behind a quoted"),
        ('"a\\x"', 3, "no JSON"),
        ('"a{i"', 3, "not closed"),
        ('"\\u0041{1}"', 9, "no name"),
    ],
)
def test_faults_point_at_the_character(pattern: str, column: int, message: str):
    with pytest.raises(Fault, match=message) as caught:
        PathPattern.parse(pattern)
    assert caught.value.offset + 1 == column


@pytest.mark.parametrize(
    ("left", "right", "column", "message"),
    [
        ("a/{p:x|y}", "{p:*}", 3, "alternatives here and any text"),
        ("a/{p:x|y}", "{p:x|y|z}", 3, "2 here and 3"),
        ("a/b_{r}", "{r:**}", 5, "segment of its own"),
    ],
)
def test_both_sides_have_to_agree(left: str, right: str, column: int, message: str):
    with pytest.raises(Fault, match=message) as caught:
        pair(left, right)
    assert caught.value.offset + 1 == column


# Properties ----------------------------------------------------------------------------------------------------------

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
PATHS = st.lists(KEYS | st.sampled_from(["a", "b", "0", "12", "a_1", "q"]), min_size=1, max_size=5).map(tuple)
SEGMENTS = ["a", "b", "{i}", "a_{i}", "{p:q|k}", "{n:*}", "{m:*}_{j}", "{r:**}"]


@st.composite
def patterns(draw: st.DrawFn) -> PathPattern:
    segments = draw(st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=4))
    keep_rest = [s for at, s in enumerate(segments) if s != "{r:**}" or "{r:**}" not in segments[:at]]
    return PathPattern.parse("/".join(keep_rest))


@given(st.lists(patterns(), max_size=6), PATHS)
def test_the_index_finds_what_matches(several: list[PathPattern], path: tuple[str, ...]):
    index = PatternIndex(several)
    matching = [at for at, pattern in enumerate(several) if pattern.match(path) is not None]
    found = index.matching(path)
    assert set(matching) <= set(found)
    assert [at for at in found if several[at].match(path) is not None] == matching
    assert index.matching(path) == found


@given(patterns(), PATHS)
def test_what_was_matched_is_built_again(pattern: PathPattern, path: tuple[str, ...]):
    captures = pattern.match(path)
    if captures is not None:
        assert pattern.build(captures) == path


@given(patterns(), st.integers(0, 10**17), st.integers(0, 1), KEYS, PATHS)
def test_what_was_built_is_matched(pattern: PathPattern, i: int, p: int, text: str, rest: tuple[str, ...]):
    path = pattern.build({"i": i, "j": i, "p": p, "n": text, "m": text, "r": rest})
    captures = pattern.match(path)
    assert captures is not None
    assert pattern.build(captures) == path


@given(PATHS)
def test_every_path_is_a_pattern_of_itself(path: tuple[str, ...]):
    from converter.paths import format_path

    text = "/".join(format_path((key,)) if '"' not in key else format_path((f"/{key}",)) for key in path)
    expected = tuple(f"/{key}" if '"' in key else key for key in path)
    escaped = text.replace("{", "{{").replace("}", "}}")
    if "*" not in escaped:
        assert PathPattern.parse(escaped).match(expected) == {}
