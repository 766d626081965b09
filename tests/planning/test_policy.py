"""What is left behind, by whose word, and that it is always listed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from converter.models import linen_model, nnx_model
from converter.paths import format_path
from converter.planning.plan import Plan
from converter.planning.planner import make_plan
from converter.planning.request import Request
from converter.tree import LeafKind, Tree
from tests.building import ZERO, collections, globs, prng_key, saved_nnx, texts, tree_of

DENSE = {"kernel": ZERO, "bias": ZERO}
COUNT = np.int32(3)

TRAIN_STATE = {
    "step": COUNT,
    "params": {"up": DENSE, "frozen": DENSE},
    "opt_state": [{"count": COUNT, "mu": {"up": DENSE, "frozen": DENSE}}, None],
    "batch_stats": {"norm": {"mean": ZERO, "var": ZERO}},
    "ema_params": {"up": DENSE, "frozen": DENSE},
}

NNX_STATE = {
    "up": {name: {"value": ZERO} for name in DENSE},
    "norm": {"mean": {"value": ZERO}, "var": {"value": ZERO}},
    "dropout": {"rngs": {"key": {"value": prng_key()}, "count": {"value": np.uint32(0)}}},
}


def planned(nested: Any, to: Any, **wishes: Any) -> Plan:
    return make_plan(tree_of(nested), Request(to, **wishes))


def dropped(plan: Plan) -> dict[str, str]:
    """The reason for every dropped leaf, by its path in the source."""
    return {format_path(drop.source): drop.reason for drop in plan.drops}


def kept(plan: Plan) -> list[str]:
    return texts(held.source for step in plan.steps for held in step.sources)


def full(tree: Tree) -> list[str]:
    return texts(path for path, leaf in tree.items() if leaf.spec.kind is not LeafKind.EMPTY)


# By pattern ----------------------------------------------------------------------------------------------------------


def test_nothing_is_dropped_unasked():
    plan = planned(TRAIN_STATE, "nnx")
    assert plan.drops == plan.problems == ()
    assert sorted(kept(plan)) == sorted(full(tree_of(TRAIN_STATE)))


def test_a_dropped_parameter_takes_its_mirrors_along():
    plan = planned(TRAIN_STATE, "nnx", drop=globs("params/frozen/kernel"))
    assert plan.problems == ()
    assert dropped(plan) == {
        "params/frozen/kernel": "--drop 'params/frozen/kernel'",
        "opt_state/0/mu/frozen/kernel": "mirrors params/frozen/kernel, which is dropped",
        "ema_params/frozen/kernel": "mirrors params/frozen/kernel, which is dropped",
    }
    assert sorted([*kept(plan), *dropped(plan)]) == sorted(full(tree_of(TRAIN_STATE)))


def test_drops_know_their_specs():
    plan = planned(
        {"params": {"up": DENSE, "old": {"w": np.zeros((2, 3), np.int8)}}}, "nnx", drop=globs("params/old/*")
    )
    assert [(format_path(drop.source), str(drop.spec)) for drop in plan.drops] == [("params/old/w", "int8[2,3]")]


@pytest.mark.parametrize("pattern", ["step", "opt_state/**", "ema_params/**", "batch_stats/norm/*", "**/mu/**"])
def test_any_part_can_be_dropped(pattern: str):
    plan = planned(TRAIN_STATE, "nnx", drop=globs(pattern))
    assert plan.problems == ()
    assert dropped(plan) == {
        path: f"--drop {pattern!r}"
        for path in full(tree_of(TRAIN_STATE))
        if globs(pattern)[0].matches(tuple(path.split("/")))
    }
    assert sorted([*kept(plan), *dropped(plan)]) == sorted(full(tree_of(TRAIN_STATE)))


@pytest.mark.parametrize("pattern", ["model/up/kernel", "params/up/kernel", "**/up/kernel"])
def test_patterns_name_the_path_of_the_file_or_collection_and_path(pattern: str):
    nested = {"model": {"up": DENSE}, "optimizer": {"step": COUNT, "opt_state": {"0": {"mu": {"up": DENSE}}}}}
    plan = planned(nested, "linen", drop=globs(pattern))
    assert plan.problems == ()
    assert set(dropped(plan)) == {"model/up/kernel", "optimizer/opt_state/0/mu/up/kernel"}


def test_drop_names_paths_without_wrappers():
    plan = planned(NNX_STATE, "linen", drop=globs("up/kernel"))
    assert "up/kernel" in dropped(plan)
    assert plan.problems == ()


def test_keep_excepts_from_drop():
    plan = planned(TRAIN_STATE, "nnx", drop=globs("params/**"), keep=globs("params/up/*"))
    assert plan.problems == ()
    assert set(dropped(plan)) == {
        f"{field}frozen/{name}" for field in ("params/", "opt_state/0/mu/", "ema_params/") for name in DENSE
    }


def test_keeping_a_mirror_of_a_dropped_parameter_does_not_lose_it_unnoticed():
    plan = planned(TRAIN_STATE, "nnx", drop=globs("params/frozen/*"), keep=globs("opt_state/**"))
    accounted = {*kept(plan), *dropped(plan)}
    lost = set(full(tree_of(TRAIN_STATE))) - accounted
    assert not lost or plan.problems


@pytest.mark.parametrize("wishes", [{"drop": globs("params/nothing/**")}, {"keep": globs("params/nothing/**")}])
def test_a_pattern_that_matches_nothing_is_a_problem(wishes: Any):
    plan = planned(TRAIN_STATE, "nnx", **wishes)
    (problem,) = plan.problems
    assert problem == f"--{next(iter(wishes))} 'params/nothing/**' matches no leaf"
    assert "as inspect prints them" in plan.advice


def test_all_unused_patterns_are_named_at_once():
    plan = planned(TRAIN_STATE, "nnx", drop=globs("a", "params/up/bias", "b"), keep=globs("c"))
    assert plan.problems == ("--drop 'a' matches no leaf", "--drop 'b' matches no leaf", "--keep 'c' matches no leaf")


def test_a_pattern_covered_by_another_is_not_unused():
    plan = planned(TRAIN_STATE, "nnx", drop=globs("params/frozen/**", "params/frozen/bias", "ema_params/frozen/bias"))
    assert plan.problems == ()


# By default ----------------------------------------------------------------------------------------------------------


def test_random_state_stays_with_nnx():
    plan = planned(NNX_STATE, "linen")
    assert plan.problems == ()
    assert dropped(plan) == dict.fromkeys(
        ["dropout/rngs/key", "dropout/rngs/count"],
        "NNX random state: Linen takes it as an argument of apply (--keep carries it along)",
    )


def test_random_state_can_be_carried_along_and_back():
    there = planned(NNX_STATE, "linen", keep=globs("**/rngs/*"))
    assert there.problems == there.drops == ()
    targets = {format_path(step.target) for step in there.steps}
    assert {"RngKey/dropout/rngs/key", "RngCount/dropout/rngs/count"} <= targets
    back = make_plan(there.tree(), Request("nnx"))
    assert back.problems == back.drops == ()
    assert {format_path(step.target) for step in back.steps} == {f"{p}/value" for p in kept(there)}


@pytest.mark.parametrize("collection", ["intermediates", "perturbations"])
def test_what_every_call_makes_anew_is_dropped(collection: str):
    nested = {"params": {"up": DENSE}, collection: {"up": {"out": ZERO}}}
    plan = planned(nested, "nnx")
    assert dropped(plan) == {f"{collection}/up/out": "made anew by every call (--keep carries it along)"}
    assert planned(nested, "nnx", keep=globs(f"{collection}/**")).drops == ()


def test_a_cache_is_no_such_thing():
    plan = planned({"params": {"a": DENSE}, "cache": {"a": {"cached_key": ZERO}}}, "nnx")
    assert plan.drops == plan.problems == ()


# Params only ---------------------------------------------------------------------------------------------------------


def test_params_only():
    plan = planned(TRAIN_STATE, "nnx", params_only=True)
    assert plan.problems == ()
    assert kept(plan) == [path for path in full(tree_of(TRAIN_STATE)) if path.startswith("params/")]
    assert set(dropped(plan).values()) == {"--params-only"}
    assert sorted([*kept(plan), *dropped(plan)]) == sorted(full(tree_of(TRAIN_STATE)))


def test_params_only_has_exceptions():
    plan = planned(TRAIN_STATE, "nnx", params_only=True, keep=globs("batch_stats/**"))
    assert {path.split("/")[0] for path in kept(plan)} == {"params", "batch_stats"}


def test_params_only_knows_what_the_user_calls_params():
    nested = {"up": {name: {"value": ZERO} for name in DENSE}, "pos_embed": {"value": ZERO}}
    plan = planned(nested, "linen", params_only=True, collections=collections({"pos_embed": "params"}))
    assert plan.problems == plan.drops == ()
    assert "pos_embed" in kept(plan)


def test_params_only_does_not_guess():
    """What nobody calls a parameter may be one: it is refused by name, as without the option."""
    nested = {"up": {name: {"value": ZERO} for name in DENSE}, "pos_embed": {"value": ZERO}}
    plan = planned(nested, "linen", params_only=True)
    assert [problem for problem in plan.problems if "pos_embed" in problem]


def test_params_only_leaves_arrays_behind_that_the_model_knows_as_no_variables():
    model = nnx.Dict(conv=nnx.Conv(1, 1, (2,), mask=jnp.ones((2, 1, 1)), rngs=nnx.Rngs(0)))
    tree = saved_nnx(nnx.state(model))
    plan = make_plan(tree, Request("linen", nnx_model=nnx_model(model), params_only=True))
    assert plan.problems == ()
    assert dropped(plan) == {"conv/mask": "--params-only"}


# Random state and models ---------------------------------------------------------------------------------------------


class LinenDropout(nn.Module):
    """A layer and dropout: Linen keeps no random state for it."""

    def setup(self) -> None:
        self.up = nn.Dense(1)
        self.dropout = nn.Dropout(0.5, deterministic=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(self.up(x))


def test_random_state_can_be_carried_along_where_both_models_are_given():
    """The Linen model has no such variables, which is no reason to refuse what the user asked for."""
    module = nnx.Dict(up=nnx.Linear(1, 1, rngs=nnx.Rngs(0)), dropout=nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    models = {"nnx_model": nnx_model(module), "linen_model": linen_model(LinenDropout(), [jnp.ones((1, 1))])}
    source = saved_nnx(nnx.state(module))
    there = make_plan(source, Request("linen", keep=globs("**/rngs/*"), **models))
    assert there.problems == there.drops == ()
    back = make_plan(there.tree(), Request("nnx", **models))
    assert back.problems == back.drops == back.filled == ()
    assert sorted(texts(back.tree())) == sorted(texts(source))


# Empty leaves --------------------------------------------------------------------------------------------------------


def test_empty_leaves_are_not_worth_a_drop():
    nested = {
        "params": {"up": DENSE, "none": {}},
        "opt_state": [{"mu": {"up": {"kernel": ZERO, "bias": None}}}, ()],
        "step": 1,
    }
    plan = planned(nested, "nnx", drop=globs("params/up/bias"))
    assert dropped(plan) == {"params/up/bias": "--drop 'params/up/bias'"}
    assert texts(entry.source for entry in plan.ignored) == ["params/none", "opt_state/1"]
