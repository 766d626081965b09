"""Rule files: what they say as values, and where they are wrong, to the character."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from converter.errors import UsageError
from converter.paths import parse_path
from converter.rules.language.fault import Fault
from converter.rules.language.rule_file import read_rules
from converter.rules.language.rule_set import RuleSet
from converter.rules.language.steps import GroupStep, LeafStep, ShuffleStep, parse_step, stages
from converter.rules.operations import Cast, Concat, Select, Split, Stack, Transpose, Unstack
from converter.rules.operations.rearrange import parse_rearrange
from converter.tree import array_spec

EXAMPLE = """\
default = "auto"

[[rule]]
linen = "params/vit/encoder/layer/{i}/attention/attention/{p:key|query|value}/kernel"
nnx   = "encoder/layers/{i}/attn/{p}/kernel"
to_nnx = ["rearrange d (h k) -> d h k, h=4"]

[[rule]]  # the second one
nnx = "head/bias"
fill = "zeros"
leaf = "float32[10]"

[[rule]]
linen = "pooler/{r:**}"
drop = "NNX has none"
"""


def message(given: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read_rules(given)
    return caught.value.message


def position(text: str) -> tuple[int, int, str]:
    """Line and column of the one error in a text, and its message."""
    where, _, what = message(text).partition(": ")
    name, line, column = where.split(", ")
    assert name == "the rules"
    return int(line.removeprefix("line ")), int(column.removeprefix("column ")), what


# Values --------------------------------------------------------------------------------------------------------------


def test_what_a_file_says(tmp_path: Path):
    file = tmp_path / "map.toml"
    file.write_text(EXAMPLE, encoding="utf-8")
    rules = read_rules(file)
    assert (rules.default, rules.source) == ("auto", str(file))
    first, second, third = rules.rules
    assert [rule.where for rule in rules.rules] == [f"{file}, line {line}" for line in (3, 8, 13)]
    assert first.collection == "params"
    assert first.linen.match(parse_path("vit/encoder/layer/3/attention/attention/query/kernel")) == {"i": 3, "p": 1}
    assert first.stages == (LeafStep(*_step("rearrange d (h k) -> d h k, h=4")),)
    assert (second.linen, second.fill, second.leaf) == (None, 0.0, array_spec("float32", (10,)))
    assert (third.nnx, third.drop, third.collection) == (None, "NNX has none", None)


def _step(text: str) -> tuple[str, Any]:
    return text, parse_rearrange(text.removeprefix("rearrange "))


def test_the_same_in_every_form(tmp_path: Path):
    import tomllib

    content = tomllib.loads(EXAMPLE)
    file = tmp_path / "map.toml"
    file.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.replace("\n", "\r\n").encode())
    forms = [EXAMPLE, str(file), file, content, read_rules(content)]
    for form in forms:
        rules = read_rules(form)
        assert rules.default == "auto"
        assert [rule.drop for rule in rules.rules] == [None, None, "NNX has none"]
    assert read_rules(content["rule"]).default == "refuse"
    assert [rule.where for rule in read_rules(content).rules] == ["rule 1", "rule 2", "rule 3"]
    assert read_rules('[[rule]]\nlinen="a"\ndrop="b"').rules[0].where == "the rules, line 1"
    assert read_rules("\n") == RuleSet(())


@pytest.mark.parametrize(
    ("rule", "collection", "name"),
    [
        ({"linen": "params/a"}, "params", ("a",)),
        ({"linen": "batch_stats/a"}, "batch_stats", ("a",)),
        ({"linen": "a/params"}, None, ("a", "params")),
        ({"linen": "counter/a"}, None, ("counter", "a")),
        ({"linen": "params/a", "collection": "counter"}, "counter", ("params", "a")),
        ({"linen": "{c:params|batch_stats}/a"}, None, ("params", "a")),
    ],
)
def test_collections(rule: dict[str, str], collection: str | None, name: tuple[str, ...]):
    (read,) = read_rules([{**rule, "drop": "why"}]).rules
    assert read.collection == collection
    assert read.linen.match(name) is not None


def test_rules_decide_collections_of_nnx_variables():
    rules = read_rules(
        [
            {"linen": "batch_stats/bn/{n:*}", "nnx": "norm/{n}"},
            {"linen": "params/{r:**}", "nnx": "{r}"},
            {"linen": "cache/a", "nnx": "x/y/z"},
            {"linen": "b/c", "nnx": "b/c"},
        ]
    )
    assert rules.collection_of(("kernel",)) == "params"
    assert rules.collection_of(("norm", "mean")) is None  # two rules say different things
    assert rules.collection_of(("b", "c")) == "params"
    assert read_rules([{"linen": "b/c", "nnx": "b/c"}]).collection_of(("b", "c")) is None


@pytest.mark.parametrize(
    ("text", "operation"),
    [
        ("transpose", Transpose()),
        (" transpose  1 0 2 ", Transpose((1, 0, 2))),
        ("cast float32 -> bfloat16", Cast("float32", "bfloat16")),
        ("cast float32->int4", Cast("float32", "int4")),
        ("select 0, axis=1", Select(1, 0)),
        ("select 2:5, axis=-1", Select(-1, 2, 5)),
        ("select 3", Select(0, 3)),
    ],
)
def test_operations_on_every_leaf(text: str, operation: Any):
    assert parse_step(text) == LeafStep(text, operation)


@pytest.mark.parametrize(
    ("text", "operation"),
    [
        ("stack i", Stack(3, 0)),
        ("stack i, axis=1", Stack(3, 1)),
        ("unstack i, axis = -1", Unstack(3, -1)),
        ("concat i", Concat(3, -1)),
        ("concat i, axis=0, sizes=8 8 16", Concat(3, 0, (8, 8, 16))),
        ("split i,sizes=1 2 3 , axis=1", Split(3, 1, (1, 2, 3))),
    ],
)
def test_operations_on_groups(text: str, operation: Any):
    step = parse_step(text)
    assert isinstance(step, GroupStep)
    assert step.capture == "i"
    assert step.operation(3) == operation


def test_leaves_are_shuffled_only_where_they_are_not_side_by_side():
    join_i, join_j, part = parse_step("stack i"), parse_step("stack j"), parse_step("split p")
    assert stages([join_j, join_i]) == (join_j, join_i)
    assert stages([join_i, part]) == (join_i, part)
    assert stages([part, join_i]) == (part, ShuffleStep(("i", "p"), ("p", "i")), join_i)
    assert stages([join_j, part, join_i]) == (join_j, part, ShuffleStep(("i", "p"), ("p", "i")), join_i)


# Errors in operations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("", 1, "empty operation"),
        ("  ", 2, "empty operation"),
        ("stak i", 1, "no operation 'stak'"),
        ("stack", 6, "name of a capture"),
        ("stack i j", 7, "name of a capture"),
        ("stack i, axis", 10, "expected axis="),
        ("stack i, axis=x", 15, "whole number"),
        ("stack i, axis= 1.5", 16, "whole number"),
        ("stack i, sizes=1 2", 10, "expected axis="),
        ("stack i, axis=1, axis=2", 18, "twice"),
        ("concat i, sizes=1", 17, "lengths"),
        ("concat i, sizes=1 0", 17, "lengths"),
        ("concat i, size=1 1", 11, "expected axis=… or sizes=…"),
        ("transpose 0 0", 11, "every axis from 0 to 1"),
        ("transpose 1, 0", 14, "nothing more"),
        ("transpose x", 11, "axes"),
        ("cast float32", 12, "'->'"),
        ("cast float32 -> real", 17, "no dtype 'real'"),
        ("cast flt -> float32", 6, "no dtype 'flt'"),
        ("cast float32 ->", 15, "no dtype ''"),
        ("select x", 8, "index"),
        ("select 5:2", 8, "index"),
        ("select -1", 8, "index"),
        ("select 1, axes=0", 11, "expected axis="),
        ("rearrange a b -> b", 11, "one side only"),
        ("rearrange", 10, "'->' is missing"),
    ],
)
def test_operations_that_cannot_be_read(text: str, column: int, what: str):
    with pytest.raises(Fault, match=what) as caught:
        parse_step(text)
    assert caught.value.offset + 1 == column
    assert caught.value.advice


# Errors in files -----------------------------------------------------------------------------------------------------

A_B = '[[rule]]\nlinen = "a/{i}"\nnnx = "b/{i}"\n'


@pytest.mark.parametrize(
    ("text", "line", "column", "what"),
    [
        ("a = \n", 1, 5, "no TOML: Invalid value"),
        ('x = "a\n', 1, 7, "no TOML"),
        ("[[rule]\n", 1, 7, "no TOML"),
        ('[[rule]]\nlinen = """\n', 3, 1, "no TOML"),
        ("default = 'x'\n", 1, 11, "'x' is no default"),
        ("defaults = 'auto'\n", 1, 1, "no key 'defaults'"),
        ("rule = 'x'\n", 1, 8, "list of rules"),
        ("rule = ['x']\n", 1, 9, "expected a rule"),
        ("[rule]\nlinen = 'a'\n", 1, 1, "list of rules"),
        ("[[rule]]\n", 1, 1, "neither linen nor nnx"),
        (A_B + "[[rule]]\nlinen = 'a'\n", 5, 1, "only linen"),
        (A_B + "drop = 'x'\n", 4, 1, "linen and nnx and drop"),
        (A_B + "fill = 'zeros'\n", 4, 1, "linen and nnx and fill"),
        ("[[rule]]\nlinen = 'a'\ndrop = 'x'\nfill = 0\n", 4, 1, "linen and drop and fill"),
        ("[[rule]]\nlinen = 'a'\ndrop = 'x'\nto_nnx = []\n", 4, 1, "to_nnx does not belong"),
        ("[[rule]]\nlinen = 'a'\ndrop = 'x'\nleaf = 'int8[]'\n", 4, 1, "leaf does not belong"),
        (A_B + "lnen = 'x'\n", 4, 1, "no key 'lnen'"),
        ("[[rule]]\nlinen = 1\nnnx = 'a'\n", 2, 9, "expected a text for linen"),
        ("[[rule]]\nlinen = 'a/{i'\nnnx = 'a'\n", 2, 12, "not closed"),
        ('[[rule]]\nlinen = "a\\u002f{i"\nnnx = "a"\n', 2, 17, "not closed"),
        ("[[rule]]\nlinen = '''\na/{i'''\nnnx = 'a'\n", 3, 3, "not closed"),
        ("[[rule]]\nlinen = 'a'\nnnx = 'a/*'\n", 3, 10, "no wildcard"),
        ("[[rule]]\nlinen = 'params'\nnnx = 'a'\n", 2, 10, "is a collection"),
        ("[[rule]]\nlinen = 'params/a/{i'\nnnx = 'a'\n", 2, 19, "not closed"),
        ("[[rule]]\nlinen = 'a'\ncollection = ''\ndrop = 'x'\n", 3, 14, "empty collection"),
        ("[[rule]]\nlinen = 'a/{i}'\nnnx = 'a'\n", 2, 12, "'i' stands on this side only"),
        ("[[rule]]\nlinen = 'params/a/{i}'\nnnx = 'a'\n", 2, 19, "'i' stands on this side only"),
        ("[[rule]]\nlinen = 'a'\nnnx = 'a_{i}'\n", 3, 10, "'i' stands on this side only"),
        ("[[rule]]\nlinen = '{p:a|b}'\nnnx = 'x/{p:*}'\n", 2, 10, "alternatives here"),
        (A_B + "to_nnx = 'stack i'\n", 4, 10, "list of operations"),
        (A_B + "to_nnx = ['transpose', 3]\n", 4, 24, "as a text, found 3"),
        (A_B + "to_nnx = ['transpose',\n  'stak i']\n", 5, 4, "no operation 'stak'"),
        (A_B + "to_nnx = ['stack i']\n", 4, 18, "'i' stands on both sides"),
        (A_B + "to_nnx = ['stack j']\n", 4, 18, "no capture 'j'"),
        ("[[rule]]\nlinen = 'a_{i}'\nnnx = 'a'\nto_nnx = ['unstack i']\n", 4, 20, "on the other side only"),
        ("[[rule]]\nlinen = 'a_{i}'\nnnx = 'a'\nto_nnx = ['stack i', 'stack i']\n", 4, 29, "used by an operation"),
        ("[[rule]]\nlinen = '{n:*}'\nnnx = 'a'\nto_nnx = ['stack n']\n", 4, 18, "takes any text"),
        ("[[rule]]\nlinen = '{p:q|k}'\nnnx = 'a'\nto_nnx = ['concat p, sizes=1 2 3']\n", 4, 22, "3 sizes for the 2"),
        ("[[rule]]\nnnx = 'a'\nfill = 'twos'\n", 3, 8, "cannot fill"),
        ("[[rule]]\nnnx = 'a'\nfill = true\n", 3, 8, "cannot fill"),
        ("[[rule]]\nnnx = 'a'\nfill = nan\n", 3, 8, "cannot fill"),
        ("[[rule]]\nnnx = 'a'\nfill = 0\nleaf = 'float33[1]'\n", 4, 9, "float33"),
        ("rule = [{linen = 'a', nnx = 'b/{'}]\n", 1, 32, "not closed"),
    ],
)
def test_errors_say_line_and_column(text: str, line: int, column: int, what: str):
    found = position(text)
    assert found[:2] == (line, column), found
    assert what in found[2]


def test_errors_in_dicts_say_rule_and_key():
    cases = {
        "rule 1, linen, column 3": {"linen": "a/{", "nnx": "a"},
        "rule 1, to_nnx 2, column 7": {"linen": "a", "nnx": "a", "to_nnx": ["transpose", "stack i"]},
        "rule 1, drop": {"linen": "a", "drop": 3},
        "rule 1": {},
    }
    for where, rule in cases.items():
        assert message([rule]).startswith(f"{where}: ")
    assert message({"x": 1}).startswith("the rules, x: ")


def test_known_keys_are_listed():
    with pytest.raises(UsageError) as caught:
        read_rules([{"lin": "a"}])
    assert "linen, nnx, collection, to_nnx, drop, fill, leaf" in caught.value.advice


def test_a_default_behind_a_rule_is_told_where_it_belongs():
    with pytest.raises(UsageError, match="no key 'default'") as caught:
        read_rules("[[rule]]\nlinen = 'a'\nnnx = 'b'\ndefault = 'auto'\n")
    assert "Put default in front of the first [[rule]]." in caught.value.advice


def test_files_that_cannot_be_read(tmp_path: Path):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"a = '\xff'")
    assert message(tmp_path / "none.toml") == f"{tmp_path / 'none.toml'}: there is no such file"
    assert message(tmp_path) == f"{tmp_path} is a directory, expected a file of rules"
    assert message(binary) == f"{binary} is not UTF-8: byte 5 cannot be read"
    assert "cannot be read" in message("a\0b")
    assert "cannot be read" in message(binary / "below")
    file = tmp_path / "map.toml"
    file.write_text("[[rule]]\nlinen = 'a/{'\n", encoding="utf-8")
    assert message(file).startswith(f"{file}, line 2, column 1: the rule has only linen")


def test_depth_does_not_end_in_a_traceback():
    assert "no TOML" in message("a = " + "[" * 100_000 + "\n")


DOCUMENT = Path(__file__).parents[3] / "docs" / "rules.md"
EXAMPLES = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_the_document_can_be_read(text: str):
    assert read_rules(text).rules


def test_operations_of_the_document_and_their_ways_back():
    rows = re.findall(r"^\| (`[a-z]+.*) \| (`.*) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    checked = 0
    for there, back in rows:
        for text, inverse in zip(re.findall("`(.*?)`", there), re.findall("`(.*?)`", back), strict=False):
            step, undone = parse_step(text), parse_step(inverse)
            if isinstance(step, GroupStep) and isinstance(undone, GroupStep):
                assert step.operation(3).inverse() == dataclasses.replace(undone, sizes=step.sizes).operation(3)
            elif isinstance(step, LeafStep) and isinstance(undone, LeafStep):
                assert step.operation.inverse().name == undone.operation.name
            checked += 1
    assert checked == 9
