"""Random state that only the NNX model has: filled in from it, or left to it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from converter.models import Model, nnx_model, nnx_model_from_factory
from converter.paths import format_path
from converter.planning.plan import Plan
from converter.planning.planner import make_plan
from converter.planning.request import Request
from converter.tree import LeafKind
from tests.building import globs, saved_nnx, tree_of


class Net(nnx.Module):
    """Two streams of random numbers; more parameters than could be allocated."""

    def __init__(self, rngs: nnx.Rngs, width: int = 2):
        self.up = nnx.Linear(2, width, rngs=rngs)
        self.dropouts = nnx.List([nnx.Dropout(0.1, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)])


def small(rngs: nnx.Rngs | None = None) -> Net:
    return Net(rngs or nnx.Rngs(3, dropout=4))


PARAMS = {"params": {"up": {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}}}


def planned(model: Model | None, **wishes: Any) -> Plan:
    return make_plan(tree_of(PARAMS), Request("nnx", nnx_model=model, **wishes))


def words(rngs_state: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(rngs_state))


def test_random_state_is_the_one_a_new_model_starts_from():
    plan = planned(nnx_model_from_factory(small))
    assert plan.problems == plan.drops == ()
    fresh = saved_nnx(nnx.state(small()))
    assert {format_path(path): str(leaf.spec) for path, leaf in plan.tree().items()} == {
        format_path(path): str(leaf.spec) for path, leaf in fresh.items()
    }
    assert len(plan.filled) == 4
    for step in plan.filled:
        np.testing.assert_array_equal(step.fetch(), fresh[step.target].fetch())
        assert step.operation.name == "the model's own initial random state"


def test_each_stream_has_its_own_key():
    keys = [step.fetch() for step in planned(nnx_model_from_factory(small)).filled if step.spec.kind is LeafKind.KEY]
    assert len(keys) == 2
    assert keys[0].tolist() != keys[1].tolist()
    assert all((key.dtype, key.shape) == (np.uint32, (2,)) for key in keys)


def test_a_factory_that_asks_for_rngs_gets_them():
    plan = planned(nnx_model_from_factory(Net))
    fresh = saved_nnx(nnx.state(Net(nnx.Rngs(0))))
    for step in plan.filled:
        np.testing.assert_array_equal(step.fetch(), fresh[step.target].fetch())


def test_a_module_gives_the_state_that_it_is_in():
    module = small()
    module.train()
    module.dropouts[0](jnp.ones(3))
    values = {format_path(step.target): step.fetch() for step in planned(nnx_model(module)).filled}
    assert values["dropouts/0/rngs/count/value"] == 1
    assert values["dropouts/1/rngs/count/value"] == 0
    np.testing.assert_array_equal(values["dropouts/1/rngs/key/value"], words(module.dropouts[1].rngs.key[...]))


def test_parameters_are_not_made():
    """Their initial values would not fit into any memory."""
    huge = nnx_model_from_factory(lambda rngs: Net(rngs, 10**12))
    kernel, bias = np.broadcast_to(np.float32(0), (2, 10**12)), np.broadcast_to(np.float32(0), (10**12,))
    tree = tree_of({"params": {"up": {"kernel": kernel, "bias": bias}}})
    plan = make_plan(tree, Request("nnx", nnx_model=huge))
    assert plan.problems == ()
    assert sorted(step.fetch().size for step in plan.filled) == [1, 1, 2, 2]


def test_random_state_can_be_left_to_the_model():
    plan = planned(nnx_model(small()), fill_random_state=False)
    assert plan.problems == plan.filled == ()
    assert plan.notes == ("random state is not written: the NNX model keeps its own",)
    assert len(plan.steps) == 2


def test_without_a_model_there_is_none():
    plan = planned(None)
    assert plan.problems == plan.filled == plan.notes == ()


def test_random_state_that_was_carried_along_is_not_made_anew():
    """The counters tell how much of each stream has been used."""
    module = small()
    module.train()
    module.dropouts[1](jnp.ones(3))
    there = make_plan(
        saved_nnx(nnx.state(module)), Request("linen", keep=globs("**/rngs/*"), nnx_model=nnx_model(small()))
    )
    assert there.problems == there.drops == ()
    back = make_plan(there.tree(), Request("nnx", nnx_model=nnx_model_from_factory(small)))
    assert back.problems == back.filled == ()
    source = saved_nnx(nnx.state(module))
    assert {format_path(path) for path in back.tree()} == {format_path(path) for path in source}
    for path, leaf in back.tree().items():
        np.testing.assert_array_equal(leaf.fetch(), source[path].fetch())


def test_random_state_is_not_written_with_params_only():
    plan = planned(nnx_model(small()), params_only=True)
    assert plan.problems == plan.filled == ()


def test_the_model_of_a_bundle_gets_its_random_state():
    tree = tree_of({"step": 1, "opt_state": [], **PARAMS})
    plan = make_plan(tree, Request("nnx", nnx_model=nnx_model_from_factory(small), nnx_bundle="tuple"))
    assert plan.problems == ()
    assert {format_path(step.target) for step in plan.filled} == {
        f"0/dropouts/{item}/rngs/{name}/value" for item in range(2) for name in ("key", "count")
    }
