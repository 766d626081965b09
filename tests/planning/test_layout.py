"""Where leaves go: styles, bundles, leaves without a place, and leaves that want the same one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from converter.models import Model, ModelVariable
from converter.paths import IndexKey, format_path
from converter.planning.plan import Plan
from converter.planning.planner import make_plan
from converter.planning.request import Request
from converter.tree import array_spec
from tests.building import ZERO, collections, texts, tree_at, tree_of

DENSE = {"kernel": ZERO, "bias": ZERO}
COUNT = np.int32(3)
VARIABLES = {"params": {"up": DENSE}, "batch_stats": {"norm": {"mean": ZERO, "var": ZERO}}}
ADAM = [{"count": COUNT, "mu": {"up": DENSE}}, None]
TRAIN_STATE = {"step": COUNT, "opt_state": ADAM, **VARIABLES, "ema": {"up": DENSE}}
OPTIMIZER = {"step": np.uint32(3), "opt_state": {"0": {"count": COUNT, "mu": {"up": DENSE}}}}
MODEL = {"up": DENSE, "norm": {"mean": ZERO, "var": ZERO}}


def planned(nested: Any, to: Any, **wishes: Any) -> Plan:
    return make_plan(tree_of(nested), Request(to, **wishes))


def targets(plan: Plan) -> list[str]:
    assert plan.problems == ()
    return texts(step.target for step in plan.steps)


# NNX -----------------------------------------------------------------------------------------------------------------


def test_a_model_alone_needs_no_prefix():
    plan = planned(VARIABLES, "nnx")
    assert plan.target.title == "nnx.State of a model"
    assert targets(plan) == ["up/kernel/value", "up/bias/value", "norm/mean/value", "norm/var/value"]


def test_a_pure_dict_has_no_wrappers():
    plan = planned(VARIABLES, "nnx", nnx_style="pure")
    assert plan.target.title == "pure dict of a model"
    assert targets(plan) == ["up/kernel", "up/bias", "norm/mean", "norm/var"]


@pytest.mark.parametrize(
    ("bundle", "title", "model", "optimizer"),
    [
        ("dict", "nnx.State of {model, optimizer}", "model/", "optimizer/"),
        ("tuple", "nnx.State of {0, 1}", "0/", "1/"),
        ("model-and-optimizer", "nnx.State of an nnx.ModelAndOptimizer", "model/", ""),
    ],
)
def test_bundles(bundle: Any, title: str, model: str, optimizer: str):
    plan = planned(TRAIN_STATE, "nnx", nnx_bundle=bundle)
    assert plan.target.title == title
    assert targets(plan) == [
        f"{optimizer}step/value",
        f"{optimizer}opt_state/0/count/value",
        f"{optimizer}opt_state/0/mu/up/kernel/value",
        f"{optimizer}opt_state/0/mu/up/bias/value",
        f"{model}up/kernel/value",
        f"{model}up/bias/value",
        f"{model}norm/mean/value",
        f"{model}norm/var/value",
        "ema/up/kernel/value",
        "ema/up/bias/value",
    ]


def test_an_optimizer_state_alone_becomes_an_optimizer():
    plan = planned({"step": COUNT, "opt_state": ADAM}, "nnx")
    assert plan.target.title == "nnx.State of an nnx.Optimizer"
    assert targets(plan)[0] == "step/value"
    assert "opt_state/0/mu/up/kernel/value" in targets(plan)


def test_params_only_leaves_a_bare_model():
    assert targets(planned(TRAIN_STATE, "nnx", params_only=True)) == ["up/kernel/value", "up/bias/value"]


# Linen ---------------------------------------------------------------------------------------------------------------


def test_a_model_becomes_variables():
    plan = planned(MODEL, "linen")
    assert plan.target.title == "Linen variables"
    assert targets(plan) == ["params/up/kernel", "params/up/bias", "batch_stats/norm/mean", "batch_stats/norm/var"]


def test_bare_params():
    plan = planned({"up": DENSE, "norm": {"scale": ZERO}}, "linen", linen_style="params")
    assert plan.target.title == "Linen params (without the collection level)"
    assert targets(plan) == ["up/kernel", "up/bias", "norm/scale"]


def test_training_makes_a_train_state():
    plan = planned({"model": MODEL, "optimizer": OPTIMIZER, "epoch": 7}, "linen")
    assert plan.target.title == "Linen TrainState"
    assert targets(plan) == [
        "params/up/kernel",
        "params/up/bias",
        "batch_stats/norm/mean",
        "batch_stats/norm/var",
        "step",
        "opt_state/0/count",
        "opt_state/0/mu/up/kernel",
        "opt_state/0/mu/up/bias",
        "epoch",
    ]
    opt_state = plan.steps[5].target
    assert isinstance(opt_state[1], IndexKey)


def test_a_model_can_be_made_a_train_state_without_training():
    plan = planned(MODEL, "linen", linen_style="train-state")
    assert targets(plan) == ["params/up/kernel", "params/up/bias", "batch_stats/norm/mean", "batch_stats/norm/var"]


def test_boxes_come_from_the_linen_model():
    spec = array_spec("float32")
    variables = [
        ModelVariable("params", ("up", name), spec, ("up", name), boxed=name == "kernel") for name in ("kernel", "bias")
    ]
    nested = {"model": {"up": DENSE}, "optimizer": OPTIMIZER}
    plan = planned(nested, "linen", linen_model=Model("linen", None, tuple(variables)))
    assert "params/up/kernel/value" in targets(plan)
    assert "params/up/bias" in targets(plan)
    assert "opt_state/0/mu/up/kernel/value" in targets(plan)


# No place ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["variables", "params"])
def test_all_leaves_without_a_place_are_named(style: Any):
    nested = {"model": {"up": DENSE}, "optimizer": OPTIMIZER, "epoch": 7}
    plan = planned(nested, "linen", linen_style=style)
    assert [problem.split(":")[0] for problem in plan.problems] == [
        "optimizer/step",
        "optimizer/opt_state/0/count",
        "optimizer/opt_state/0/mu/up/kernel",
        "optimizer/opt_state/0/mu/up/bias",
        "epoch",
    ]
    assert plan.problems[0] == f"optimizer/step: uint32[] has no place in {plan.target.title}"
    assert "--linen-style" in plan.advice


def test_batch_statistics_have_no_place_in_bare_params():
    plan = planned(MODEL, "linen", linen_style="params")
    assert [problem.split(":")[0] for problem in plan.problems] == ["norm/mean", "norm/var"]


# The same place ------------------------------------------------------------------------------------------------------


def test_one_path_in_two_collections_has_one_place_in_nnx():
    plan = planned({"params": {"n": {"w": ZERO}}, "counter": {"n": {"w": COUNT}}}, "nnx")
    assert plan.problems == ("params/n/w and counter/n/w both go to n/w/value",)
    assert "--drop" in plan.advice


def test_an_extra_field_may_not_take_the_place_of_a_variable():
    plan = planned({"step": 1, "params": {"up": DENSE}, "opt_state": [], "model": {"up": {"kernel": ZERO}}}, "nnx")
    assert len(plan.problems) == 1
    assert "params/up/kernel and model/up/kernel both go to model/up/kernel/value" in plan.problems


def test_a_collection_may_not_take_the_place_of_an_optimizer_state():
    tree = tree_at(
        {
            "model/0/count/value": ZERO,
            "model/w/value": ZERO,
            "optimizer/opt_state/0/count/value": COUNT,
            "optimizer/step/value": COUNT,
        }
    )
    told = collections({"model/0/count": "opt_state", "model/w": "params"})
    plan = make_plan(tree, Request("linen", collections=told))
    (problem,) = plan.problems
    assert problem.endswith("both go to opt_state/0/count")


@pytest.mark.parametrize("style", ["state", "pure"])
def test_a_leaf_may_not_lie_below_another(style: Any):
    """A plan without problems can be carried out."""
    plan = planned({"params": {"n": ZERO}, "counter": {"n": {"w": COUNT}}}, "nnx", nnx_style=style)
    if not plan.problems:
        assert len(plan.tree()) == len(plan.steps)


# Steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "to", "spec", "operation"),
    [
        (3, "nnx", "uint32[]", "as uint32"),
        (np.int32(3), "nnx", "uint32[]", "as uint32"),
        (np.uint32(3), "nnx", "uint32[]", ""),
        (np.uint32(3), "linen", "int32[]", "as int32"),
        (np.int32(3), "linen", "int32[]", ""),
        (np.array([3, 3], np.int32), "nnx", "uint32[2]", "as uint32"),
    ],
)
def test_steps_are_counted_as_the_framework_does(value: Any, to: str, spec: str, operation: str):
    nested = {"step": value, "params": {"up": DENSE}, "opt_state": []}
    if to == "linen":
        nested = {"model": {"up": DENSE}, "optimizer": {"step": value, "opt_state": {}}}
    (step,) = [step for step in planned(nested, to).steps if "step" in step.target]
    assert (str(step.spec), step.operation.name) == (spec, operation)
    np.testing.assert_array_equal(step.fetch(), value)
    assert str(step.fetch().dtype) == spec.partition("[")[0]


def test_everything_but_steps_is_handed_on_as_it_is():
    nested = {"step": 3, "opt_state": ADAM, "params": {"up": DENSE}, "epoch": 7, "note": "ünicode"}
    plan = planned(nested, "nnx")
    for step in plan.steps:
        (held,) = step.sources
        if format_path(held.source) != "step":
            assert step.operation.name == ""
            assert step.fetch() is held.leaf.fetch()
            assert step.spec == held.leaf.spec
