"""From a tree to a plan: the direction, everything that is refused, all at once, and how a plan reads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flax import nnx

from converter.errors import ConversionRefused, UnsupportedCheckpoint, UsageError
from converter.models import nnx_model, nnx_model_from_factory
from converter.paths import format_path
from converter.planning.plan import Plan
from converter.planning.planner import choose_reading, make_plan
from converter.planning.request import Request
from converter.tree import Tree
from tests.building import ZERO, collections, globs, prng_key, saved_nnx, texts, tree_at, tree_of, tree_with

DENSE = {"kernel": ZERO, "bias": ZERO}
COUNT = np.int32(3)
GATES = ["ii", "if", "ig", "io", "hi", "hf", "hg", "ho"]


def planned(nested: Any, to: Any, **wishes: Any) -> Plan:
    return make_plan(tree_of(nested), Request(to, **wishes))


def accounted(plan: Plan) -> list[str]:
    """The sources of all steps, and everything that is said to be left behind."""
    used = [held.source for step in plan.steps for held in step.sources]
    return sorted(texts([*used, *(drop.source for drop in plan.drops), *(entry.source for entry in plan.ignored)]))


# The direction -------------------------------------------------------------------------------------------------------


def test_the_reading_is_one_of_the_other_framework():
    ambiguous = tree_of({"up": DENSE})
    assert choose_reading(ambiguous, "nnx").framework == "linen"
    assert choose_reading(ambiguous, "linen").framework == "nnx"


@pytest.mark.parametrize(
    ("nested", "to", "title"),
    [
        ({"params": {"up": DENSE}}, "linen", "Linen variables"),
        ({"up": {"kernel": {"value": ZERO}}}, "nnx", "nnx.State of a model"),
        ({"step": 1, "params": {"up": DENSE}}, "linen", "Linen TrainState"),
    ],
)
def test_the_wrong_direction_is_refused(nested: Any, to: Any, title: str):
    with pytest.raises(UsageError) as caught:
        planned(nested, to)
    assert title in caught.value.message
    other = {"linen": "nnx", "nnx": "linen"}[to]
    assert f"{to}-to-{other}" in caught.value.advice


@pytest.mark.parametrize("to", ["linen", "nnx"])
@pytest.mark.parametrize("nested", [{}, {"params": {}}, ZERO, [{"count": COUNT, "mu": DENSE}, None]])
def test_nothing_to_convert(nested: Any, to: Any):
    with pytest.raises(UnsupportedCheckpoint, match="cannot be converted"):
        planned(nested, to)


# What is undecided ---------------------------------------------------------------------------------------------------


def test_undecided_variables_are_refused_by_name():
    plan = planned(
        {"pos_embed": {"value": ZERO}, "up": {"kernel": {"value": ZERO}}, "count": {"value": COUNT}}, "linen"
    )
    assert plan.problems == (
        "pos_embed: float32[]: nothing tells whether it is a parameter or belongs to another collection",
        "count: int32[]: nothing tells whether it is a parameter or belongs to another collection",
    )
    assert "--collection" in plan.advice
    assert "--nnx-model" in plan.advice


def test_the_user_decides():
    nested = {"pos_embed": {"value": ZERO}, "count": {"value": COUNT}}
    plan = planned(nested, "linen", collections=collections({"pos_embed": "params", "count": "counter"}))
    assert plan.problems == ()
    assert texts(step.target for step in plan.steps) == ["params/pos_embed", "counter/count"]


class Count(nnx.Variable):
    """A type that Flax does not know."""


class Counting(nnx.Module):
    """A parameter, a counter, and an array that is no Variable."""

    def __init__(self) -> None:
        self.pos_embed = nnx.Param(np.ones(2, np.float32))
        self.count = Count(np.zeros((), np.int32))
        self.mask = nnx.data(np.ones(3, np.float32))


def test_the_model_decides():
    plan = make_plan(
        saved_nnx(nnx.state(Counting())), Request("linen", nnx_model=nnx_model(Counting()), drop=globs("mask"))
    )
    assert plan.problems == ()
    assert texts(step.target for step in plan.steps) == ["Count/count", "params/pos_embed"]


def test_arrays_that_are_no_variables_are_left_behind_and_listed():
    plan = make_plan(saved_nnx(nnx.state(Counting())), Request("linen", nnx_model=nnx_model(Counting())))
    assert not plan.problems
    (drop,) = [drop for drop in plan.drops if drop.source == ("mask",)]
    assert "no Variable" in drop.reason


def test_arrays_that_are_no_variables_come_from_the_model():
    counting = nnx_model_from_factory(Counting)
    there = make_plan(saved_nnx(nnx.state(Counting())), Request("linen", nnx_model=counting)).tree()
    back = make_plan(there, Request("nnx", nnx_model=counting))
    assert not back.problems
    (mask,) = [step for step in back.steps if step.target == ("mask",)]
    np.testing.assert_array_equal(mask.fetch(), nnx.state(Counting())["mask"])


def test_a_counter_beside_an_optimizer_is_no_parameter():
    """Adam's own ``count`` tells nothing about a variable of the model that is called so."""
    nested = {
        "model": {"up": DENSE, "count": COUNT},
        "optimizer": {"step": COUNT, "opt_state": {"0": {"count": COUNT, "mu": {"up": DENSE}}}},
    }
    plan = planned(nested, "linen")
    targets = {format_path(held.source): format_path(step.target) for step in plan.steps for held in step.sources}
    assert targets.get("model/count") != "params/count"
    assert [problem for problem in plan.problems if problem.startswith("model/count: ")]


def test_dropping_a_counter_leaves_that_of_the_optimizer_alone():
    nested = {
        "model": {"up": DENSE, "count": COUNT},
        "optimizer": {"step": COUNT, "opt_state": {"0": {"count": COUNT, "mu": {"up": DENSE}}}},
    }
    plan = planned(nested, "linen", drop=globs("model/count"))
    assert texts(drop.source for drop in plan.drops) == ["model/count"]


def test_another_dtype_than_the_model_declares_is_mentioned_or_refused():
    """Files keep their dtypes; live objects have to fit."""
    half = {"up": {"kernel": np.zeros((1, 1), np.float16), "bias": np.zeros(1, np.float32)}}
    model = nnx_model(nnx.Dict(up=nnx.Linear(1, 1, rngs=nnx.Rngs(0))))
    difference = "params/up/kernel: float16[1,1] in the checkpoint, float32[1,1] in the model"
    plan = planned({"params": half}, "nnx", nnx_model=model)
    assert (plan.problems, plan.notes) == ((), (difference,))
    assert {str(step.spec) for step in plan.steps} == {"float16[1,1]", "float32[1]"}
    assert planned({"params": half}, "nnx", nnx_model=model, exact_dtypes=True).problems == (difference,)


# Two into one --------------------------------------------------------------------------------------------------------


def cell(*gates: str) -> Any:
    return {gate: {"kernel": ZERO} for gate in gates}


class Lists(nnx.Module):
    """An item of a list, and an attribute with the name that Linen would give to the item."""

    def __init__(self) -> None:
        self.layers = nnx.List([nnx.Linear(1, 1, rngs=nnx.Rngs(0))])
        self.layers_0 = nnx.Linear(1, 1, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("tree", "to"),
    [
        (tree_of({"params": {"cell": cell(*GATES, "if_")}}), "nnx"),
        (tree_of({"cell": cell(*GATES, "if_")}), "linen"),
        (tree_of({"params": {"n": {"w": ZERO}}, "counter": {"n": {"w": COUNT}}}), "nnx"),
    ],
)
def test_no_leaf_is_lost_where_two_get_one_name(tree: Tree, to: Any):
    plan = make_plan(tree, Request(to))
    assert plan.problems or accounted(plan) == sorted(texts(tree))


def test_an_item_and_an_attribute_do_not_become_one():
    state = saved_nnx(nnx.state(Lists()))
    plan = make_plan(state, Request("linen", nnx_model=nnx_model(Lists())))
    assert plan.problems or accounted(plan) == sorted(text.removesuffix("/value") for text in texts(state))


def test_two_leaves_that_mean_the_same_are_refused():
    """A variables dict inside ``params``, and batch statistics beside it."""
    stats = {"n": {"mean": ZERO}}
    tree = tree_of(
        {"step": 1, "params": {"params": {"n": DENSE}, "batch_stats": stats}, "opt_state": [], "batch_stats": stats}
    )
    plan = make_plan(tree, Request("nnx"))
    assert plan.problems == ("params/batch_stats/n/mean and batch_stats/n/mean both mean batch_stats/n/mean",)


# All at once ---------------------------------------------------------------------------------------------------------


def test_problems_of_all_kinds_are_refused_together():
    nested = {
        "model": {"up": {"kernel": ZERO}, "pos_embed": ZERO},
        "optimizer": {"step": COUNT, "opt_state": {"0": {"mu": {"up": {"kernel": ZERO}}}}},
    }
    plan = planned(nested, "linen", linen_style="params", drop=globs("nothing"), keep=globs("no/thing"))
    with pytest.raises(ConversionRefused) as caught:
        plan.check()
    assert caught.value.problems == plan.problems
    assert len(plan.problems) == 5
    text = str(caught.value)
    for word in (
        "refused, 5 problems",
        "'nothing' matches",
        "'no/thing' matches",
        "pos_embed",
        "optimizer/step",
        "mu/up/kernel",
    ):
        assert word in text
    for advice in ("inspect prints them", "--collection", "--linen-style"):
        assert text.count(advice) == 1


def test_a_long_list_of_problems_is_folded_or_cut_but_counted():
    nested = {f"w{n}": {"value": ZERO} for n in range(100)}
    with pytest.raises(ConversionRefused) as caught:
        planned(nested, "linen").check()
    assert len(caught.value.problems) == 100
    assert "100 problems" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 60


def test_a_plan_without_problems_passes():
    planned({"params": DENSE}, "nnx").check()


# Train states --------------------------------------------------------------------------------------------------------


def test_fields_of_a_train_state_become_collections_where_the_user_says_so():
    nested = {"step": 1, "params": {"up": DENSE}, "opt_state": [], "counter": {"count": COUNT}}
    plain = planned(nested, "nnx")
    assert "counter/count/value" in texts(step.target for step in plain.steps)
    told = planned(nested, "nnx", collections=collections({"**/count": "counter"}))
    assert "model/count/value" in texts(step.target for step in told.steps)


def test_boxes_are_taken_off_and_mentioned():
    tree = tree_with("params/up/kernel/value", "params/up/bias", "params/down/kernel/value")
    plan = make_plan(tree, Request("nnx"))
    assert texts(step.target for step in plan.steps) == ["up/kernel/value", "up/bias/value", "down/kernel/value"]
    assert [note for note in plan.notes if note.startswith("2 partitioned parameters")]


# How it reads --------------------------------------------------------------------------------------------------------


def test_the_text_of_a_plan():
    layers = {f"layers_{n}": {"kernel": np.zeros((2, 3), np.float32)} for n in range(4)}
    nested = {"params": {**layers, "none": {}}, "intermediates": {"out": ZERO}, "cache": {"cache_index": COUNT}}
    plan = planned(nested, "nnx")
    assert plan.text().splitlines() == [
        "Linen variables → nnx.State of a model",
        "",
        "layers_{0…3}/kernel/value  ← params/layers_{0…3}/kernel  float32[2,3]",
        "cache_index/value          ← cache/cache_index           int32[]",
        "",
        "dropped:",
        "  intermediates/out  float32[]  made anew by every call (--keep carries it along)",
        "",
        "holds nothing:",
        "  params/none  empty: it holds no array",
    ]


def test_the_text_of_a_refused_plan_ends_with_advice():
    plan = planned({"w": {"value": ZERO}}, "linen")
    assert plan.text().splitlines()[-3:] == ["problem:", f"  {plan.problems[0]}", plan.advice]


def test_the_json_of_a_plan():
    tree = tree_at(
        {"model/w/kernel/value": ZERO, "model/rngs/key/value": prng_key(), "model/rngs/count/value": np.uint32(0)}
    )
    tree = Tree([*tree.items(), *tree_at({"optimizer/step/value": np.uint32(1)}).items()])
    found = make_plan(tree, Request("linen")).to_json()
    assert json.loads(json.dumps(found)) == found
    reason = "NNX random state: Linen takes it as an argument of apply (--keep carries it along)"
    assert found == {
        "from": {"framework": "NNX", "dialect": "nnx.State of {model, optimizer}"},
        "to": {"framework": "Linen", "dialect": "Linen TrainState"},
        "steps": [
            {
                "target": "params/w/kernel",
                "leaf": "float32[]",
                "sources": ["model/w/kernel"],
                "operation": "rewrap",
                "bytes": 4,
            },
            {"target": "step", "leaf": "int32[]", "sources": ["optimizer/step"], "operation": "as int32", "bytes": 4},
        ],
        "dropped": [
            {"source": "model/rngs/key", "leaf": "key<threefry2x32>[]", "reason": reason},
            {"source": "model/rngs/count", "leaf": "uint32[]", "reason": reason},
        ],
        "conditions": [],
        "empty": [],
        "bytes": {},
        "notes": found["notes"],
        "problems": [],
    }


def test_planning_reads_nothing():
    def unread() -> Any:
        raise AssertionError("a leaf was fetched")

    source = tree_of({"step": COUNT, "params": {"up": DENSE}, "opt_state": [{"mu": {"up": DENSE}}]})
    tree = Tree((path, type(leaf)(leaf.spec, unread)) for path, leaf in source.items())
    plan = make_plan(tree, Request("nnx"))
    assert len(plan.text()) > 0
    assert len(plan.to_json()["steps"]) == len(plan.tree()) == 5
