"""Rules applied to variables: links both ways, and every problem that there can be, shown folded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from converter.folding import fold
from converter.paths import IntKey, parse_path
from converter.rules.language.rule_file import read_rules
from converter.rules.link import Correspondence, Link, Name, format_name
from converter.rules.operations import Cast, Concat, Drop, Fill, Rewrap, Split, Stack, Unstack, fill_number
from converter.rules.ruled.apply import apply_rules
from converter.tree import LeafKind, LeafSpec, array_spec, empty_spec, parse_array_spec

UNKNOWN = empty_spec("node")


def named(text: str) -> Name:
    """``params:a/b`` as a name; ``a/b`` is in params, ``:a/b`` in no collection."""
    collection, colon, path = text.rpartition(":")
    return (collection if colon else "params"), parse_path(path)


def variables(specs: Mapping[str, str | LeafSpec]) -> dict[Name, LeafSpec]:
    return {named(n): parse_array_spec(spec) if isinstance(spec, str) else spec for n, spec in specs.items()}


def some(*names: str, spec: str = "float32[4,4]") -> dict[Name, LeafSpec]:
    return variables(dict.fromkeys(names, spec))


def apply(
    rules: Any, to: str, sources: Mapping[Name, LeafSpec], targets: Mapping[Name, LeafSpec] | None = None, **more: Any
) -> Correspondence:
    return apply_rules(read_rules(rules), to, sources, targets, **more)[0]  # type: ignore[arg-type]


def problems(found: Correspondence) -> list[str]:
    return [problem for problem, _ in found.problems]


def clean(found: Correspondence) -> list[Link]:
    assert problems(found) == []
    return found.links


def made(links: list[Link], specs: Mapping[Name, LeafSpec]) -> dict[Name, LeafSpec]:
    """What the links make of leaves of these specs."""
    return {
        name: spec
        for link in links
        for name, spec in zip(link.targets, link.operation.specs([specs[n] for n in link.sources]), strict=True)
    }


def values_made(links: list[Link], values: Mapping[Name, np.ndarray]) -> dict[Name, np.ndarray]:
    found = {}
    for link in links:
        taken = [values[name] for name in link.sources]
        specs = [array_spec(value.dtype.name, value.shape) for value in taken]
        found.update(zip(link.targets, link.operation.apply(taken, specs), strict=True))
    return found


def numbered(specs: Mapping[Name, LeafSpec]) -> dict[Name, np.ndarray]:
    values, start = {}, 0
    for name, spec in specs.items():
        values[name] = np.arange(start, start + spec.size, dtype=spec.dtype).reshape(spec.shape)
        start += spec.size
    return values


def text(links: list[Link]) -> dict[str, str]:
    """Targets by sources, as texts."""
    return {" + ".join(map(format_name, x.sources)): " + ".join(map(format_name, x.targets)) for x in links}


# Names ---------------------------------------------------------------------------------------------------------------

VIT = """
[[rule]]
linen = "params/vit/layer/{i}/attention/{p:query|key|value}/kernel"
nnx   = "encoder/layers/{i}/attn/{p:q|k|v}/kernel"
to_nnx = ["rearrange d (h k) -> d h k, h=4"]
"""


def test_names_and_shapes_both_ways():
    linen = some("vit/layer/0/attention/key/kernel", "vit/layer/10/attention/value/kernel", spec="float32[16,8]")
    links = clean(apply(VIT, "nnx", linen))
    nnx = made(links, linen)
    assert nnx == some("encoder/layers/0/attn/k/kernel", "encoder/layers/10/attn/v/kernel", spec="float32[16,4,2]")
    back = clean(apply(VIT, "linen", nnx))
    assert made(back, nnx) == linen
    assert back == [link.reversed() for link in links]


def test_items_of_nnx_lists_are_numbers_and_keys_of_linen_are_texts():
    (link,) = clean(apply(VIT, "nnx", some("vit/layer/3/attention/key/kernel", spec="float32[16,8]")))
    assert isinstance(link.targets[0][1][2], IntKey)
    (link,) = clean(apply(VIT, "linen", {link.targets[0]: array_spec("float32", (16, 4, 2))}))
    assert {type(key) for key in link.targets[0][1]} == {str}


def test_the_name_of_the_model_is_used():
    rules = [{"linen": "counter/a", "nnx": "a", "collection": "counter"}, {"linen": "b/{i}", "nnx": "b/{i}"}]
    targets = {("Count", ("a",)): UNKNOWN, ("params", ("b", IntKey("0"))): UNKNOWN}
    links = clean(apply(rules, "nnx", some("counter:counter/a", "b/0"), targets))
    assert [link.targets[0] for link in links] == list(targets)
    assert isinstance(links[1].targets[0][1][1], IntKey)


def test_variables_keep_their_collection_unless_the_rule_names_it():
    every = [{"linen": "a/{n:*}", "nnx": "b/{n}"}]
    assert text(clean(apply(every, "nnx", some("batch_stats:a/mean", "a/x")))) == {
        "batch_stats/a/mean": "batch_stats/b/mean",
        "params/a/x": "params/b/x",
    }
    stats = [{"linen": "batch_stats/a/{n:*}", "nnx": "b/{n}"}]
    assert text(clean(apply(stats, "linen", some(":b/mean")))) == {"b/mean": "batch_stats/a/mean"}
    assert text(clean(apply(stats, "linen", some("batch_stats:b/mean")))) == {
        "batch_stats/b/mean": "batch_stats/a/mean"
    }
    assert problems(apply(stats, "linen", some("params:b/mean")))[0].startswith("rule 1: the rule matches nothing")


# Groups --------------------------------------------------------------------------------------------------------------


def test_ten_comes_after_two():
    rules = [{"linen": "layer_{i}/w", "nnx": "layers/w", "to_nnx": ["stack i"]}]
    linen = some(*(f"layer_{i}/w" for i in sorted(map(str, range(12)))))
    (link,) = clean(apply(rules, "nnx", linen))
    assert [name[1][0] for name in link.sources] == [f"layer_{i}" for i in range(12)]
    assert link.operation == Stack(12, 0)
    (back,) = clean(apply(rules, "linen", made([link], linen)))
    assert back.targets == link.sources
    assert back.operation == Unstack(12, 0)


def test_alternatives_are_joined_in_their_order():
    rules = [{"linen": "{p:query|key|value}/w", "nnx": "qkv/w", "to_nnx": ["concat p, axis=-1, sizes=8 4 4"]}]
    linen = variables({"key/w": "float32[2,4]", "value/w": "float32[2,4]", "query/w": "float32[2,8]"})
    (link,) = clean(apply(rules, "nnx", linen))
    assert [name[1][0] for name in link.sources] == ["query", "key", "value"]
    assert link.operation == Concat(3, -1, (8, 4, 4))
    assert made([link], linen) == some("qkv/w", spec="float32[2,16]")
    (back,) = clean(apply(rules, "linen", some("qkv/w", spec="float32[2,16]")))
    assert (back.targets, back.operation) == (link.sources, Split(3, -1, (8, 4, 4)))


def test_scanned_layers_at_axis_one():
    rules = [{"linen": "layers/{rest:**}", "nnx": "layers/{i}/{rest}", "to_nnx": ["unstack i, axis=1"]}]
    linen = variables({"layers/mlp/w": "float32[5,3,7]", "layers/norm/scale": "float32[5,3]"})
    nnx = made(clean(apply(rules, "nnx", linen)), linen)
    assert nnx == {
        **some(*(f"layers/{i}/mlp/w" for i in range(3)), spec="float32[5,7]"),
        **some(*(f"layers/{i}/norm/scale" for i in range(3)), spec="float32[5]"),
    }
    assert made(clean(apply(rules, "linen", nnx)), nnx) == linen


MIXED = {
    "nested": ("l{i}/b{j}/w", "w", ["stack j", "stack i, axis=1"]),
    "nested the other way": ("l{i}/b{j}/w", "w", ["stack i", "stack j"]),
    "taken apart and together": ("l{i}/{p:q|k|v}/w", "{s:a|b}/w", ["concat p", "split s, axis=0", "stack i"]),
    "taken apart first": ("w/{i}/{j}", "w/{s:a|b}/{n}", ["unstack n, axis=1", "split s, axis=0", "stack j", "stack i"]),
    "shared captures between": ("{g}/l{i}/{r:**}", "{r}/x{g}/{n}", ["transpose", "stack i, axis=2", "unstack n"]),
    "with operations on leaves": ("l{i}/w", "w", ["rearrange a (b c) -> b a c, b=2", "stack i", "transpose 1 0 3 2"]),
    "split into numbers": ("w/{i}", "w/{n}", ["split n, axis=0, sizes=1 3", "stack i"]),
}


@pytest.mark.parametrize("rule", MIXED.values(), ids=MIXED)
def test_operations_in_any_order_are_undone(rule: tuple[str, str, list[str]]):
    names = {
        part
        for i in range(3)
        for j in range(2)
        for part in (f"l{i}/b{j}/w", f"l{i}/w", f"w/{i}/{j}", f"w/{i}", *(f"l{i}/{p}/w" for p in "qkv"))
    } | {f"{g}/l{i}/deep/w" for g in range(2) for i in range(3)}
    rules = read_rules([{"linen": rule[0], "nnx": rule[1], "to_nnx": rule[2]}])
    linen = {name: spec for name, spec in some(*names).items() if rules.rules[0].linen.match(name[1])}
    links = clean(apply(rules, "nnx", linen))
    nnx = made(links, linen)
    back = clean(apply(rules, "linen", nnx))
    values = numbered(linen)
    there = values_made(links, values)
    again = values_made(back, there)
    assert again.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(again[name], value)
    by_reversal = values_made([link.reversed() for link in links], there)
    for name, value in values.items():
        np.testing.assert_array_equal(by_reversal[name], value)


def test_what_stands_in_nested_stacks():
    rules = [{"linen": "l{i}/b{j}", "nnx": "w", "to_nnx": ["stack j", "stack i"]}]
    linen = some(*(f"l{i}/b{j}" for i in range(2) for j in range(3)), spec="int32[]")
    values = {name: np.array(int(name[1][0][1]) * 10 + int(name[1][1][1])) for name in linen}
    (value,) = values_made(clean(apply(rules, "nnx", linen)), values).values()
    np.testing.assert_array_equal(value, [[0, 1, 2], [10, 11, 12]])
    rules[0]["to_nnx"] = ["stack i", "stack j"]
    (value,) = values_made(clean(apply(rules, "nnx", linen)), values).values()
    np.testing.assert_array_equal(value, [[0, 10], [1, 11], [2, 12]])


def test_what_stands_in_parts_that_are_stacked():
    rules = [{"linen": "l{i}", "nnx": "{p:a|b}", "to_nnx": ["split p", "stack i"]}]
    values = {named("l0"): np.array([1, 2]), named("l1"): np.array([3, 4])}
    found = values_made(clean(apply(rules, "nnx", some("l0", "l1", spec="int64[2]"))), values)
    np.testing.assert_array_equal(found[named("a")], [[1], [3]])
    np.testing.assert_array_equal(found[named("b")], [[2], [4]])


STEPS = {
    "p": ["concat p, axis=0", "concat p", "stack p", "stack p, axis=1"],
    "i": ["stack i", "stack i, axis=-1"],
    "j": ["stack j", "stack j, axis=1"],
    "s": ["split s, axis=0", "split s", "split s, axis=1, sizes=1 3", "unstack s"],
    "n": ["unstack n", "unstack n, axis=1"],
    "": ["transpose", "transpose 1 0", "rearrange a (b c) -> b a c, b=2"],
}

SHARED = {"{r:**}": "deep/w", "{g}/w": "7/w", "{m:*}_{g}": "a_b_7"}


@st.composite
def rule_sets(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[Name, LeafSpec]]:
    """Rules with several steps in any order, and variables that they cover, in any order."""
    rules, names = [], []
    for number in range(draw(st.integers(1, 3))):
        joined = draw(st.lists(st.sampled_from("ijp"), unique=True, max_size=3))
        parted = draw(st.lists(st.sampled_from("ns"), unique=True, max_size=2))
        others = [""] * draw(st.integers(0, 2))
        steps = [draw(st.sampled_from(STEPS[name])) for name in draw(st.permutations([*joined, *parted, *others]))]
        patterns = {"p": "{p:x|y}", "s": "{s:u|v}", "i": "i_{i}", "j": "j_{j}", "n": "{n}"}
        shared = draw(st.sampled_from(list(SHARED)))
        linen = "/".join([f"l{number}", *(patterns[name] for name in joined), shared])
        nnx = "/".join([f"n{number}", shared, *(patterns[name] for name in parted)])
        rules.append({"linen": linen, "nnx": nnx, "to_nnx": steps})
        options = [
            ["x", "y"] if name == "p" else [f"{name}_{at}" for at in range(draw(st.integers(1, 12)))] for name in joined
        ]
        names += ["/".join([f"l{number}", *place, SHARED[shared]]) for place in itertools.product(*options)]
    return rules, some(*draw(st.permutations(names)), spec="int32[4,4]")


@given(rule_sets())
def test_there_and_back_is_where_it_began(case: tuple[list[dict[str, Any]], dict[Name, LeafSpec]]):
    rules, linen = case
    found = apply(rules, "nnx", linen)
    for problem in problems(found):  # nothing but operations that do not fit the shapes, in this order
        assert ": rule" in problem
    linen = {name: linen[name] for link in found.links for name in link.sources}
    event(f"{len(found.links)} links, {len(found.problems)} problems")
    values = numbered(linen)
    there = values_made(found.links, values)
    nnx = {name: array_spec("int32", value.shape) for name, value in there.items()}
    assert made(found.links, linen) == nnx
    rules = [rule for at, rule in enumerate(rules) if any(name[1][0] == f"l{at}" for name in linen)]
    again = values_made(clean(apply(rules, "linen", nnx)), there)
    assert again.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(again[name], value)


# Rules of one side ---------------------------------------------------------------------------------------------------


def test_dropped_on_one_way_and_made_by_nothing_on_the_other():
    rules = [{"linen": "pooler/{r:**}", "drop": "not in NNX"}]
    linen = some("pooler/a/w", "pooler/b")
    links = clean(apply(rules, "nnx", linen))
    assert links == [Link((name,), (), Drop("not in NNX")) for name in linen]
    back = apply(rules, "linen", {}, linen)
    assert clean(back) == []
    assert back.notes == [f"params/pooler/{n} is made by no rule: not in NNX (rule 1)" for n in ("a/w", "b")]


@pytest.mark.parametrize(("fill", "number"), [("zeros", 0), ("ones", 1), (2.5, 2.5), (-1, -1)])
def test_filled_on_one_way_and_checked_on_the_other(fill: Any, number: float):
    rules = [{"linen": "{r:**}/w", "nnx": "{r}/w"}, {"nnx": "head/bias", "fill": fill, "leaf": "float32[3]"}]
    links = clean(apply(rules, "nnx", some("head/w", "a/w")))
    name, spec = ("", ("head", "bias")), array_spec("float32", (3,))
    assert links[-1] == Link((), (name,), fill_number(spec, number, links[-1].operation.name), named("head/w"))
    np.testing.assert_array_equal(links[-1].operation.apply([], [])[0], np.full(3, number, np.float32))
    back = clean(apply(rules, "linen", {named("head/w"): UNKNOWN, named("head/bias"): spec}))
    drop = next(link for link in back if not link.targets)
    assert drop.operation == links[-1].operation.inverse()
    assert drop.operation.objection([np.full(3, number + 1)], [spec])
    assert not drop.operation.objection([np.full(3, number)], [spec])


def test_the_model_tells_what_is_filled():
    rules = [{"linen": "{i}/w", "nnx": "{i}/w"}, {"nnx": "{i}/b", "fill": "zeros"}]
    targets = some("0/w", "1/w", "0/b", "1/b")
    links = clean(apply(rules, "nnx", some("0/w", "1/w"), targets))
    assert set(made(links, targets)) == set(targets)
    assert [link.beside for link in links[2:]] == [named("0/w"), named("1/w")]


def test_values_of_a_new_model():
    rules = [{"linen": "params/b", "fill": "model"}]
    fill = Fill((array_spec("float32", (2,)),), "new", lambda: [np.zeros(2)])
    (link,) = clean(apply(rules, "linen", {}, some("b", spec="float32[2]"), model_value=lambda name: fill))
    assert (link.targets, link.operation) == ((named("b"),), fill)
    (back,) = clean(apply(rules, "nnx", some("b")))
    assert isinstance(back.operation, Drop)
    assert back.operation.expected is None
    found = apply(rules, "linen", {}, some("b"))
    assert problems(found) == ["params/b: rule 1 fills it from a model, and there is none"]


@pytest.mark.parametrize(
    ("rule", "to", "targets", "problem"),
    [
        ({"nnx": "b", "fill": 0}, "nnx", None, "b: rule 1 does not say its dtype and shape"),
        ({"nnx": "{i}/b", "fill": 0, "leaf": "int8[]"}, "nnx", None, "rule 1: which variables it fills is not known"),
        (
            {"linen": "b", "fill": 0, "leaf": "int8[]"},
            "linen",
            None,
            "b: rule 1 does not say in which collection it is",
        ),
        ({"nnx": "b", "fill": 0}, "nnx", {}, "rule 1: the rule matches nothing in the NNX model (b)"),
        (
            {"nnx": "b", "fill": 0, "leaf": "int8[3]"},
            "nnx",
            {"b": "int8[4]"},
            "params/b: expected int8[4] by the model, found int8[3] (made by rule 1)",
        ),
        (
            {"nnx": "b", "fill": 0},
            "nnx",
            {"RngKey:b": LeafSpec(LeafKind.KEY, "threefry2x32")},
            "RngKey/b: rule 1 cannot fill key<threefry2x32>[] with a number",
        ),
    ],
)
def test_what_cannot_be_filled(rule: Any, to: str, targets: Any, problem: str):
    assert problems(apply([rule], to, {}, None if targets is None else variables(targets))) == [problem]


def test_a_filled_key_cannot_be_compared_with_a_number():
    rules = [{"nnx": "b", "fill": 0, "leaf": "int8[]"}]
    found = apply(rules, "linen", {("", ("b",)): LeafSpec(LeafKind.KEY, "rbg")})
    assert problems(found) == ["b: expected an array of 0 by rule 1, found key<rbg>[]"]


# Defaults ------------------------------------------------------------------------------------------------------------


def test_what_no_rule_covers():
    rule = [{"linen": "a", "nnx": "b"}]
    sources = some("a", "c/0/w", "c/1/w")
    refused, left = apply_rules(read_rules({"rule": rule}), "nnx", sources)
    assert problems(refused) == [f"params/c/{i}/w: float32[4,4], no rule covers it" for i in range(2)]
    assert left == {}
    auto, left = apply_rules(read_rules({"rule": rule, "default": "auto"}), "nnx", sources)
    assert list(left) == list(sources)[1:]
    assert len(clean(auto)) == 1
    dropped, left = apply_rules(read_rules({"rule": rule, "default": "drop"}), "nnx", sources)
    assert [link.targets for link in clean(dropped)] == [(named("b"),), (), ()]
    assert left == {}


# Problems ------------------------------------------------------------------------------------------------------------


def test_gaps_and_missing_alternatives_are_named():
    rules = [{"linen": "l{i}/{p:q|k}", "nnx": "w", "to_nnx": ["concat p", "stack i"]}]
    found = apply(rules, "nnx", some("l0/q", "l0/k", "l2/q", "l2/k", "l3/q"))
    steps = "('stack i', 'concat p')"
    assert problems(found) == [
        f"params/{name}: missing in the checkpoint, needed by rule 1 {steps}" for name in ("l1/q", "l1/k", "l3/k")
    ]
    assert found.links == []


def test_an_enormous_number_is_no_enormous_list():
    rules = [{"linen": "l{i}", "nnx": "w", "to_nnx": ["stack i"]}]
    found = problems(apply(rules, "nnx", some("l0", "l123456789012345678")))
    assert len(found) == 21
    assert found[-1] == "rule 1: even more variables are missing in the checkpoint ('stack i')"


def test_two_rules_for_one_leaf():
    rules = '[[rule]]\nlinen="a/{n:*}"\nnnx="{n}"\n[[rule]]\nlinen="{n:*}/b"\nnnx="x/{n}"\n'
    found = apply(rules, "nnx", some("a/b", "a/c", "c/b"))
    assert problems(found) == ["params/a/b: matches 2 rules, the rules, line 1 and the rules, line 4"]
    assert len(found.links) == 2


def test_collisions():
    rules = [{"linen": "a/{n:*}", "nnx": "{n}"}, {"linen": "b/{n:*}", "nnx": "{n}"}]
    found = apply(rules, "nnx", some("a/x", "b/x", "b/y", "batch_stats:a/y"))
    assert problems(found) == ["x: made 2 times, by rule 1 and rule 2", "y: made 2 times, by rule 2 and rule 1"]


def test_names_that_could_be_read_in_another_way():
    rules = [{"linen": "{a:*}/{b:*}", "nnx": "{a}_{b}"}]
    assert text(clean(apply(rules, "nnx", some("x/y")))) == {"params/x/y": "params/x_y"}
    found = apply(rules, "nnx", some("x/y_z"))
    assert problems(found) == ["params/x/y_z: rule 1 would read its new name in another way"]


def test_unused_rules():
    rules = """
[[rule]]
linen = "a"
nnx = "b"

[[rule]]
linen = "gone/{r:**}"
drop = "why"

[[rule]]
nnx = "also/{r:**}"
drop = "why"
"""
    assert problems(apply(rules, "nnx", some("a"))) == [
        "the rules, line 6: the rule matches nothing in the checkpoint (gone/{r:**})"
    ]
    assert problems(apply(rules, "linen", some("b"))) == [
        "the rules, line 10: the rule matches nothing in the checkpoint (also/{r:**})"
    ]


def test_shape_conflicts_are_folded():
    linen = some(
        *(f"vit/layer/{i}/attention/{p}/kernel" for i in range(12) for p in ("query", "key")), spec="int8[9,6]"
    )
    lines = fold((problem,) for problem in problems(apply(VIT, "nnx", linen)))
    operation = "'rearrange d (h k) -> d h k, h=4'"
    assert lines == [
        f"params/vit/layer/{{0…11}}/attention/{p}/kernel: the rules, line 2: {operation} expects a multiple of 4 along "
        "(h k), found int8[9,6]"
        for p in ("query", "key")
    ]


def test_the_whole_table():
    targets = some(*(f"layers/{i}/w" for i in range(4)), spec="float32[4]")
    rules = [{"linen": "layer_{i}/w", "nnx": "layers/{i}/w"}, {"linen": "none", "nnx": "x"}]
    sources = some(*(f"layer_{i}/{leaf}" for i in range(4) for leaf in ("w", "b")), "layer_4/w")
    found = apply(rules, "nnx", sources, targets)
    assert fold((problem,) for problem in problems(found)) == [
        "params/layers/{0…3}/w: expected float32[4] by the model, found float32[4,4] (made by rule 1)",
        "params/layers/4/w: made by rule 1, no such variable in the NNX model",
        "rule 2: the rule matches nothing in the checkpoint (none)",
        "params/layer_{0…3}/b: float32[4,4], no rule covers it",
    ]


def test_unequal_leaves_cannot_be_stacked():
    rules = [{"linen": "l{i}", "nnx": "w", "to_nnx": ["stack i"]}]
    found = apply(rules, "nnx", variables({"l0": "float32[2]", "l1": "float32[3]"}))
    assert problems(found) == [
        "params/l0 and 1 more: rule 1: stack needs equal leaves, found float32[2] and float32[3]"
    ]


def test_other_dtypes_than_the_models_are_remarks():
    found = apply([{"linen": "a", "nnx": "b"}], "nnx", some("a"), some("b", spec="bfloat16[4,4]"))
    assert len(clean(found)) == 1
    assert found.dtypes == ["params/b: float32[4,4] in the checkpoint, bfloat16[4,4] in the model"]


def test_rules_that_lose_something_go_one_way():
    rules = [{"linen": "{n:*}/w", "nnx": "{n}/v", "to_nnx": ["select 0, axis=1"]}]
    linen = some("a/w", "b/w")
    assert len(clean(apply(rules, "nnx", linen))) == 2
    assert problems(apply(rules, "linen", some("a/v", "b/v"))) == [
        "rule 1: the rule has no way to Linen: what 'select 0, axis 1' leaves out is not on the other side"
    ]
    rules = [{"linen": "w", "nnx": "w", "to_nnx": ["rearrange a b -> (a b)"]}]
    assert "write a=…" in problems(apply(rules, "linen", some("w", spec="int8[4]")))[0]


def test_casts():
    rules = [{"linen": "w", "nnx": "w", "to_nnx": ["cast float32 -> bfloat16"]}]
    assert clean(apply(rules, "nnx", some("w")))[0].operation == Cast("float32", "bfloat16")
    assert made(clean(apply(rules, "linen", some("w", spec="bfloat16[2]"))), some("w", spec="bfloat16[2]")) == some(
        "w", spec="float32[2]"
    )
    assert "cast float32 → bfloat16 does not fit int8[2]" in problems(apply(rules, "nnx", some("w", spec="int8[2]")))[0]


# Unknown shapes ------------------------------------------------------------------------------------------------------


def test_without_shapes_names_are_linked_all_the_same():
    links = clean(apply(VIT, "nnx", {named("vit/layer/0/attention/key/kernel"): UNKNOWN}))
    assert links[0].operation.name == "rearrange d (h k) -> d h k, h=4"
    rules = [{"linen": "a_{i}", "nnx": "a", "to_nnx": ["stack i"]}]
    assert clean(apply(rules, "nnx", {named("a_0"): UNKNOWN, named("a_1"): UNKNOWN}))[0].operation == Stack(2)


def test_without_shapes_the_model_tells_how_many_there_are():
    rules = [{"linen": "a_{i}/{n:*}", "nnx": "a/{n}", "to_nnx": ["stack i"]}]
    targets = some(*(f"a_{i}/w" for i in range(3)), "a_0/b")
    (link,) = clean(apply(rules, "linen", {named("a/w"): UNKNOWN}, targets))
    assert link.operation == Unstack(3)
    assert problems(apply(rules, "linen", {named("a/w"): UNKNOWN})) == [
        "params/a/w: rule 1: how many values 'i' of 'stack i' has is not known"
    ]


def test_how_many_parts_is_told_by_sizes_or_the_model():
    rules = [{"linen": "a_{i}", "nnx": "a", "to_nnx": ["concat i"]}]
    nnx = some("a", spec="int8[6]")
    assert "is not known" in problems(apply(rules, "linen", nnx))[0]
    links = clean(apply(rules, "linen", nnx, some("a_0", "a_1", "a_2", spec="int8[2]")))
    assert links[0].operation == Split(3)


def test_an_empty_axis_makes_no_leaves():
    rules = [{"linen": "a", "nnx": "a/{i}", "to_nnx": ["unstack i"]}]
    assert "so no leaves" in problems(apply(rules, "nnx", some("a", spec="int8[0,2]")))[0]


def test_a_rule_without_operations_rewraps():
    (link,) = clean(apply([{"linen": "a", "nnx": "b"}], "nnx", some("a")))
    assert link.operation == Rewrap()
