"""Paths, patterns, specs and trees: the neutral value in the middle."""

from __future__ import annotations

import re
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from converter.dtypes import numpy_dtype
from converter.errors import UnsupportedCheckpoint, UsageError
from converter.paths import IndexKey, IntKey, Path, PathGlob, format_path, parse_path, path_order
from converter.tree import (
    KEY_WORDS,
    LazyLeaf,
    LeafKind,
    LeafSpec,
    Tree,
    array_spec,
    containers,
    empty_spec,
    nest,
    parse_array_spec,
)
from tests.building import leaf_of, tree_of, tree_with

ODD_KEYS = [
    "",
    " ",
    " a",
    "a ",
    "/",
    "a/b",
    '"',
    '"a"',
    'a"b',
    "\\",
    "\\n",
    "\n",
    "\t",
    "\x00",
    "\x7f",
    "\u200b",
    "\xa0",
]
ODD_KEYS += [
    "\u2028",
    "\ud800",
    "é",
    "e\u0301",
    "层",
    "🙂",
    "('kernel', 'u')",
    "*",
    "**",
    "?",
    "[0]",
    ".",
    "..",
    "#",
    "0",
]

keys = st.one_of(st.sampled_from(ODD_KEYS), st.text(max_size=6), st.text("ab/\"\\ \n'", max_size=6))
paths = st.lists(keys, min_size=1, max_size=4).map(tuple)


# Paths as text -------------------------------------------------------------------------------------------------------


@given(paths)
def test_a_printed_path_reads_back(path: Path):
    assert parse_path(format_path(path)) == path


@given(paths)
def test_a_printed_path_is_one_line_of_printable_text(path: Path):
    assert format_path(path).isprintable()


def test_the_empty_path_prints_as_nothing():
    assert format_path(()) == ""
    assert parse_path("") == ()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("params", "Dense_0", "kernel"), "params/Dense_0/kernel"),
        (("params", "layer norm", "scale"), "params/layer norm/scale"),
        (("batch_stats", "layer_instance/kernel/u"), 'batch_stats/"layer_instance/kernel/u"'),
        (("batch_stats", "('kernel', 'u')"), "batch_stats/('kernel', 'u')"),
        (("größe", "层"), "größe/层"),
        (("", "a"), '""/a'),
        ((" a", "a "), '" a"/"a "'),
        (('"', 'a"b'), '"\\""/a"b'),
        (("\\", "a\\"), "\\/a\\"),
        (("a\nb",), '"a\\nb"'),
        ((IntKey("0"), IndexKey("1")), "0/1"),
    ],
)
def test_paths_as_text(path: Path, text: str):
    assert format_path(path) == text
    assert parse_path(text) == path


def test_keys_that_were_read_are_plain_names():
    assert [type(key) for key in parse_path('a/0/"b/c"')] == [str, str, str]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("/", "column 1"),
        ("/a", "column 1"),
        ("a//b", "column 3"),
        ("a/", "ends in a slash"),
        ('"a"/', "ends in a slash"),
        ('"a', "column 1"),
        ('a/"b', "column 3"),
        ('"a"b', "column 1"),
        ('"a""b"', "column 1"),
        ('"\\', "column 1"),
        ('"\\"', "column 1"),
        ('"\\q"', "\\q"),
        ('"\\u12"/a', "\\u12"),
        ('"a\nb"', "a"),
    ],
)
def test_what_is_no_path(text: str, named: str):
    with pytest.raises(UsageError) as caught:
        parse_path(text)
    assert named in caught.value.message
    assert caught.value.advice


@given(st.one_of(st.text('ab/"\\un0\n', max_size=8), st.text(max_size=8)))
def test_any_text_is_a_path_or_a_usage_error(text: str):
    try:
        path = parse_path(text)
    except UsageError:
        return
    assert parse_path(format_path(path)) == path


def test_the_kind_of_a_key_does_not_count_in_comparisons():
    assert (IntKey("0"), "a") == ("0", "a") == (IndexKey("0"), "a")
    assert {IntKey("0"): 1}[IndexKey("0")] == 1


# Order ---------------------------------------------------------------------------------------------------------------


def test_numbers_come_in_numeric_order_and_before_names():
    wanted = [
        "0",
        "2",
        "10",
        "10/a",
        "a",
        "layers/2/kernel",
        "layers/10/bias",
        "layers/10/kernel",
        "layers_10",
        "layers_2",
    ]
    assert [format_path(p) for p in sorted(map(parse_path, sorted(wanted)), key=path_order)] == wanted


@given(st.lists(paths, max_size=6))
def test_any_paths_can_be_ordered(unordered: list[Path]):
    ordered = sorted(unordered, key=path_order)
    assert sorted(ordered) == sorted(unordered)
    assert [path for path in ordered if all(key.isalpha() for key in path)] == sorted(
        path for path in unordered if all(key.isalpha() for key in path)
    )


def test_digits_beyond_ascii_are_names():
    assert sorted([("²",), ("٣",), ("10",), ("9",)], key=path_order) == [("9",), ("10",), ("²",), ("٣",)]


# Patterns ------------------------------------------------------------------------------------------------------------


def reference_match(pattern: Path, path: Path) -> bool:
    """Patterns as a regular expression over the keys, each of which is followed by a slash."""
    expression = ""
    for key in pattern:
        if key == "**":
            expression += "(?:[^/]*/)*"
        else:
            expression += "".join({"*": "[^/]*", "?": "[^/]"}.get(c, re.escape(c)) for c in key) + "/"
    return re.fullmatch(expression, "".join(f"{key}/" for key in path)) is not None


@given(
    st.lists(st.one_of(st.just("**"), st.text("ab*?", min_size=1, max_size=3)), min_size=1, max_size=4).map(tuple),
    st.lists(st.text("ab", max_size=3), max_size=5).map(tuple),
)
@example(("**",), ())
@example(("**", "a", "**"), ("b", "a"))
@example(("a**b",), ("aab",))
def test_patterns_match_as_the_reference_does(pattern: Path, path: Path):
    assert PathGlob(format_path(pattern)).matches(path) == reference_match(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("params/*/kernel", ["params/Dense_0/kernel"], ["params/kernel", "params/a/b/kernel", "params/Dense_0/bias"]),
        ("params/**/kernel", ["params/kernel", "params/a/kernel", "params/a/b/kernel"], ["kernel", "params/kernel/a"]),
        ("**", ["a", "a/b/c"], []),
        ("params/**", ["params", "params/a/b"], ["a/params"]),
        ("layers_?/bias", ["layers_0/bias"], ["layers_10/bias", "layers_/bias"]),
        ("Dense_*", ["Dense_0", "Dense_"], ["dense_0", "Dense_0/kernel"]),
        ('stats/"layer/kernel/u"', ['stats/"layer/kernel/u"'], ["stats/layer/kernel/u"]),
        ("stats/*", ['stats/"layer/kernel/u"'], ["stats/layer/kernel/u"]),
        ('stats/"layer/*/u"', ['stats/"layer/kernel/u"'], ['stats/"layer/kernel/v"']),
        ("stats/('kernel', 'u')", ["stats/('kernel', 'u')"], ["stats/kernel"]),
        ('""/a', ['""/a'], ["a"]),
    ],
)
def test_what_patterns_match(pattern: str, matching: list[str], other: list[str]):
    glob = PathGlob(pattern)
    assert [text for text in matching + other if glob.matches(parse_path(text))] == matching


@given(paths)
@example(("a[0]", "kernel"))
@example(("[!a]",))
def test_a_path_without_wildcards_is_a_pattern_for_itself_alone(path: Path):
    path = tuple(key.translate({ord("*"): None, ord("?"): None}) for key in path)
    glob = PathGlob(format_path(path))
    assert glob.matches(path)
    assert not glob.matches((*path, "a"))
    assert not glob.matches(path[1:])


def test_only_stars_and_question_marks_are_wild():
    assert not PathGlob("layers[01]/kernel").matches(("layers0", "kernel"))


def test_patterns_match_whatever_the_kind_of_a_key():
    assert PathGlob("opt_state/0/*").matches(("opt_state", IndexKey("0"), IntKey("3")))


def test_an_empty_pattern_is_refused():
    with pytest.raises(UsageError, match="matches no leaf"):
        PathGlob("")


# Specs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "text", "size", "nbytes"),
    [
        (array_spec("float32", (8, 128)), "float32[8,128]", 1024, 4096),
        (array_spec("bfloat16", (3, 2)), "bfloat16[3,2]", 6, 12),
        (array_spec("int4", (3,)), "int4[3]", 3, 3),
        (array_spec("float8_e4m3fn", (5,)), "float8_e4m3fn[5]", 5, 5),
        (array_spec("bool"), "bool[]", 1, 1),
        (array_spec("complex64", (2, 0)), "complex64[2,0]", 0, 0),
        (LeafSpec(LeafKind.NUMPY_SCALAR, "float64"), "float64()", 1, 8),
        (LeafSpec(LeafKind.SCALAR, "int"), "int", 1, 0),
        (LeafSpec(LeafKind.TEXT, "str"), "str", 1, 0),
        (LeafSpec(LeafKind.KEY, "threefry2x32"), "key<threefry2x32>[]", 1, 8),
        (LeafSpec(LeafKind.KEY, "rbg", (3,)), "key<rbg>[3]", 3, 48),
        (empty_spec("none"), "None", 0, 0),
        (empty_spec("dict"), "{}", 0, 0),
        (empty_spec("list"), "[]", 0, 0),
        (empty_spec("tuple"), "()", 0, 0),
        (empty_spec("node"), "(empty)", 0, 0),
    ],
)
def test_specs(spec: LeafSpec, text: str, size: int, nbytes: int):
    assert (str(spec), spec.size, spec.nbytes) == (text, size, nbytes)


@pytest.mark.parametrize("implementation", KEY_WORDS)
def test_words_of_keys_are_those_of_jax(implementation: str):
    data = jax.random.key_data(jax.random.key(0, impl=implementation))
    assert data.shape == (KEY_WORDS[implementation],)
    assert LeafSpec(LeafKind.KEY, implementation).nbytes == data.nbytes


def test_shapes_become_python_ints():
    spec = array_spec("float32", np.array([2, 3]))
    assert spec == array_spec("float32", (2, 3))
    assert [type(n) for n in spec.shape] == [int, int]


DTYPES = """
bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128 datetime64[ns]
bfloat16 int2 int4 uint2 uint4 float4_e2m1fn float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz
float8_e5m2 float8_e5m2fnuz float8_e8m0fnu
"""

NO_DTYPES = """
object void void8 V8 str S5 U3 bytes M8 M8[ns] datetime datetime64[xs] f4 <f4 >f4 float int double half f4,f4 (2,)f4
Float32 float33 fp8 bfloat16[2] i b ? complex O {} , float\x00
"""

NO_SPECS = """
float32 float32[ float32] [3] float32[-1] float32[a] float32[1,,2] float32[,] float32[1.5] float32(3) float32[3]x
float32[3][4] 3[3] fp32[3] object[1] f4[2] str[] int[3] key<threefry2x32>[]
"""


@pytest.mark.parametrize("name", DTYPES.split())
def test_dtypes_by_name(name: str):
    dtype = numpy_dtype(name)
    assert dtype.name == name
    assert dtype == np.dtype(getattr(ml_dtypes, name, name))


@pytest.mark.parametrize("name", ["", " ", "float32 ", *NO_DTYPES.split()])
def test_names_that_are_no_dtype(name: str):
    with pytest.raises(UnsupportedCheckpoint, match="unknown to NumPy"):
        numpy_dtype(name)


@given(st.text("<>=|?biufcmMOSUV0123456789,() []{}:", max_size=8))
def test_any_other_text_is_refused_as_a_dtype(name: str):
    with pytest.raises(UnsupportedCheckpoint):
        numpy_dtype(name)


@given(
    st.sampled_from(["float32", "bfloat16", "int4", "bool", "uint32", "float8_e5m2"]),
    st.lists(st.integers(0, 10**12), max_size=4).map(tuple),
)
def test_a_printed_array_spec_reads_back(dtype: str, shape: tuple[int, ...]):
    spec = array_spec(dtype, shape)
    assert parse_array_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("float32[]", ()),
        (" float32 [ ] ", ()),
        ("float32[3]", (3,)),
        ("float32[3,]", (3,)),
        ("float32[ 2 , 3 ]", (2, 3)),
    ],
)
def test_spelling_of_array_specs(text: str, shape: tuple[int, ...]):
    assert parse_array_spec(text) == array_spec("float32", shape)


@pytest.mark.parametrize("text", ["", "float32[1 2]", *NO_SPECS.split()])
def test_what_is_no_array_spec(text: str):
    with pytest.raises(UsageError) as caught:
        parse_array_spec(text)
    assert repr(text) in caught.value.message
    assert "float32" in caught.value.advice


# Trees ---------------------------------------------------------------------------------------------------------------


def test_a_tree_keeps_its_order_and_reads_nothing():
    def unread() -> Any:
        raise AssertionError("a leaf was fetched")

    wanted = [("b", "a"), ("a",), ("b", "0")]
    tree = Tree((path, LazyLeaf(array_spec("float32", (2, 3)), unread)) for path in wanted)
    assert list(tree) == wanted
    assert len(tree) == 3
    assert tree.nbytes == 3 * 24
    assert tree["b", IndexKey("0")].spec == array_spec("float32", (2, 3))
    assert ("c",) not in tree


def test_children_are_the_keys_below_a_node():
    tree = tree_with("b/x", "a", "b/y/0", "b/y/1", "c/b/z")
    assert list(tree.children()) == ["b", "a", "c"]
    assert list(tree.children("b")) == ["x", "y"]
    assert list(tree.children("b", "y")) == ["0", "1"]
    assert list(tree.children("a")) == []
    assert list(tree.children("nowhere")) == []
    assert [path for path in tree if tree.is_alone(path)] == [("c", "b", "z")]


def test_containers_are_all_that_paths_lead_through():
    assert containers([("a", "b", "c"), ("a", "d"), ("e",)]) == {(), ("a",), ("a", "b")}
    assert containers([()]) == containers([]) == set()


@pytest.mark.parametrize("second", [("a", "0"), ("a", IndexKey("0")), ("a", IntKey("0"))])
def test_a_path_stands_only_once(second: Path):
    with pytest.raises(UnsupportedCheckpoint, match="a/0 stands twice"):
        Tree([(("a", "0"), leaf_of(1)), (second, leaf_of(2))])


@pytest.mark.parametrize(("upper", "lower"), [(("a",), ("a", "b")), (("a",), ("a", "b", "c")), ((), ("a",))])
@pytest.mark.parametrize("upper_first", [True, False])
def test_no_leaf_lies_below_another(upper: Path, lower: Path, upper_first: bool):
    order = [upper, lower] if upper_first else [lower, upper]
    with pytest.raises(UnsupportedCheckpoint, match=f"{format_path(lower)} lies below the leaf"):
        Tree((path, leaf_of(1)) for path in order)


def test_leaves_may_share_the_beginning_of_a_key():
    assert len(tree_with("a", "ab", "ab_c", "b/a", "b/ab")) == 5


# Nesting -------------------------------------------------------------------------------------------------------------

nested = st.recursive(
    st.integers(),
    lambda children: st.one_of(
        st.dictionaries(keys, children, min_size=1, max_size=3),
        st.dictionaries(st.integers(0, 20), children, min_size=1, max_size=3),
        st.lists(children, min_size=1, max_size=12),
    ),
    max_leaves=12,
)


@given(nested, st.randoms())
def test_nesting_restores_what_was_flattened(value: Any, random: Any):
    flat = [(path, leaf.fetch()) for path, leaf in tree_of(value).items()]
    random.shuffle(flat)
    assert nest(flat) == value


def test_nothing_nests_to_an_empty_dict():
    assert nest([]) == {}


def test_a_single_value_needs_no_path():
    assert nest([((), 7)]) == 7


def test_positions_are_put_in_numeric_order():
    assert nest((("a", IndexKey(str(n))), n) for n in reversed(range(12))) == {"a": list(range(12))}


def test_plain_numbers_are_names():
    assert nest([(("a", "0"), 1), (("a", "1"), 2)]) == {"a": {"0": 1, "1": 2}}


def test_a_node_with_positions_and_names_is_a_dict():
    assert nest([(("a", IndexKey("0")), 1), (("a", "b"), 2)]) == {"a": {"0": 1, "b": 2}}


def test_containers_can_be_values():
    assert nest([(("a", "b"), {"c": 1}), (("a", "d"), [])]) == {"a": {"b": {"c": 1}, "d": []}}


def test_a_sequence_with_a_hole_is_refused():
    with pytest.raises(UnsupportedCheckpoint, match="a/b is a sequence with positions 0, 2: some are missing"):
        nest([(("a", "b", IndexKey("0")), 1), (("a", "b", IndexKey("2")), 2)])
