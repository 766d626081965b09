"""Completing an optax state on the Linen side, compared with the train states that flax and optax make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training import train_state

from converter.errors import ModelError
from converter.models import Model, linen_model, nnx_model
from converter.paths import format_path
from converter.planning.plan import Plan
from converter.planning.planner import make_plan
from converter.planning.request import Request
from converter.tree import LeafKind, Tree
from tests.building import saved, saved_nnx, texts


class Net(nnx.Module):
    """Two layers and a norm, which has no matrix: all of it can be masked out."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.down = nnx.Linear(3, 2, use_bias=False, rngs=rngs)


def linen_params() -> dict[str, Any]:
    """What ``Net`` has, as Linen's params."""
    ones = jnp.ones
    return {
        "up": {"kernel": ones((2, 3)), "bias": ones(3)},
        "norm": {"scale": ones(3), "bias": ones(3)},
        "down": {"kernel": ones((3, 2))},
    }


def matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def labels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: "matrices" if leaf.ndim > 1 else "others", params)


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "adamw with a schedule": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 10)),
    "chain of masked": lambda: optax.chain(optax.clip(1.0), optax.masked(optax.adamw(0.1), matrices)),
    "masked momentum": lambda: optax.chain(optax.masked(optax.trace(0.9), matrices), optax.clip(1.0), optax.scale(0.1)),
    "multi_transform": lambda: optax.multi_transform(
        {"matrices": optax.adam(0.1), "others": optax.sgd(0.1, momentum=0.9)}, labels
    ),
    "MultiSteps": lambda: optax.MultiSteps(optax.adamw(0.1), 2).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adamw(0.1), 3),
}


def bundle(tx: optax.GradientTransformation, suffix: str | None = "value") -> Tree:
    model = Net(nnx.Rngs(0))
    return saved_nnx(
        {"model": nnx.state(model), "optimizer": nnx.state(nnx.Optimizer(model, tx, wrt=nnx.Param))}, suffix
    )


def real(tx: optax.GradientTransformation) -> dict[str, str]:
    """The leaves of flax's own train state; all that hold nothing count as one kind."""
    state = train_state.TrainState.create(apply_fn=None, params=linen_params(), tx=tx)
    return specs(saved(state))


def specs(tree: Tree) -> dict[str, str]:
    found = {format_path(path): str(leaf.spec) for path, leaf in tree.items()}
    nothing = {format_path(path): "nothing" for path, leaf in tree.items() if leaf.spec.kind is LeafKind.EMPTY}
    return {**found, **nothing, "step": "int32[]"}


def converted(tree: Tree, tx: Any = None, model: Model | None = None) -> Plan:
    return make_plan(tree, Request("linen", optimizer=tx, linen_model=model))


def without_empty(tree: Tree) -> Tree:
    """As a msgpack file holds it: masked-out moments are not there at all."""
    return Tree((path, leaf) for path, leaf in tree.items() if leaf.spec.kind is not LeafKind.EMPTY)


# With the optimizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_the_optimizer_the_train_state_is_that_of_flax(name: str):
    tx = OPTIMIZERS[name]()
    plan = converted(bundle(tx), tx)
    assert plan.problems == ()
    assert specs(plan.tree()) == real(tx)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_moments_need_not_be_recorded(name: str):
    tx = OPTIMIZERS[name]()
    plan = converted(without_empty(bundle(tx, None)), tx)
    assert plan.problems == ()
    assert specs(plan.tree()) == real(tx)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_positions_are_those_of_the_real_tuples(name: str):
    """The keys have the kinds that jax.tree_util gives them: the result restores into a train state."""
    tx = OPTIMIZERS[name]()
    state = train_state.TrainState.create(apply_fn=None, params=linen_params(), tx=tx)
    kinds = {format_path(path): [type(key) for key in path] for path in saved(state)}
    found = {format_path(path): [type(key) for key in path] for path in converted(bundle(tx), tx).tree()}
    assert found == kinds


class LinenUp(nn.Module):
    """One layer whose kernel is boxed."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3, name="up", kernel_init=nn.with_partitioning(nn.initializers.ones, ("in", "out")))(x)


def test_boxes_of_the_linen_model_are_in_the_optimizer_state_too():
    tx = optax.adamw(0.1)
    model = nnx.Dict(up=nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    tree = saved_nnx({"model": nnx.state(model), "optimizer": nnx.state(nnx.Optimizer(model, tx, wrt=nnx.Param))})
    plan = converted(tree, tx, linen_model(LinenUp(), [jnp.ones((1, 2))]))
    assert plan.problems == ()
    params = LinenUp().init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    assert specs(plan.tree()) == specs(saved(train_state.TrainState.create(apply_fn=None, params=params, tx=tx)))


# The wrong one -------------------------------------------------------------------------------------------------------


def test_every_leaf_that_another_optimizer_does_not_have_is_named():
    plan = converted(bundle(optax.sgd(0.1, momentum=0.9)), optax.adam(0.1))
    found = "\n".join(plan.problems)
    assert "opt_state/0/count: expected int32[] by the optimizer, found nothing" in found
    assert "opt_state/0/mu/up/kernel: expected float32[2,3] by the optimizer, found nothing" in found
    assert "opt_state/0/trace/up/kernel: float32[2,3] in the checkpoint, not in the optimizer" in found
    assert len(plan.problems) == 1 + 2 * 5 + 5
    assert "--optimizer" in plan.advice


def test_another_shape_is_named():
    tx = optax.adafactor(0.1, min_dim_size_to_factor=2)
    tree = bundle(tx)
    plan = converted(tree, optax.adafactor(0.1, min_dim_size_to_factor=100))
    problems = [problem for problem in plan.problems if "v_row/up/kernel" in problem]
    assert len(problems) == 1
    assert "expected float32[1] by the optimizer, found float32[2]" in problems[0]


def test_what_is_no_optimizer():
    with pytest.raises(ModelError, match=r"expected an optax\.GradientTransformation, found int"):
        converted(bundle(optax.sgd(0.1)), 7)


def test_an_optimizer_that_fails():
    def init(params: Any) -> Any:
        raise ZeroDivisionError("no luck")

    with pytest.raises(ModelError, match="ZeroDivisionError: no luck"):
        converted(bundle(optax.adam(0.1)), optax.GradientTransformation(init, optax.adam(0.1).update))


# An optimizer saved alone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "adamw with a schedule"])
def test_the_moments_of_an_optimizer_saved_alone_are_known_to_it(name: str):
    """The parameters are not at hand, which is no reason to say that their moments are not the optimizer's."""
    tx = OPTIMIZERS[name]()
    tree = saved_nnx(nnx.state(nnx.Optimizer(Net(nnx.Rngs(0)), tx, wrt=nnx.Param)))
    plan = converted(tree, tx)
    assert [problem for problem in plan.problems if "not in the optimizer" in problem] == []
    if not plan.problems:
        assert specs(plan.tree()).items() <= real(tx).items()


ALONE: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": OPTIMIZERS["adam"],
    "masked": lambda: optax.masked(optax.adam(0.1), matrices),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "MultiSteps": OPTIMIZERS["MultiSteps"],
}
"""Moments that are masked out, or that have other shapes than their parameters, among them."""


@pytest.mark.parametrize("name", ALONE)
def test_moments_alone_are_not_mistaken_for_parameters(name: str):
    """A model tells the names, and its shapes are not those of all moments."""
    model = Net(nnx.Rngs(0))
    tree = saved_nnx(nnx.state(nnx.Optimizer(model, ALONE[name](), wrt=nnx.Param)))
    there = make_plan(tree, Request("linen", nnx_model=nnx_model(model)))
    assert there.problems == ()
    back = make_plan(there.tree(), Request("nnx", nnx_model=nnx_model(model)))
    assert back.problems == ()
    assert sorted(texts(back.tree())) == sorted(texts(tree))


def test_nothing_false_is_said_of_moments_whose_parameters_are_not_at_hand():
    tx = ALONE["adafactor"]()
    tree = saved_nnx(nnx.state(nnx.Optimizer(Net(nnx.Rngs(0)), tx, wrt=nnx.Param)))
    assert [problem for problem in converted(tree, tx).problems if "by the optimizer, found float32" in problem] == []


# Without the optimizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_the_optimizer_gaps_are_filled_and_nothing_is_invented(name: str):
    tx = OPTIMIZERS[name]()
    tree = bundle(tx)
    plan = converted(tree)
    assert plan.problems == ()
    found, wanted = specs(plan.tree()), real(tx)
    assert found.items() <= wanted.items()
    missing = [path for path in wanted if path not in found]
    assert all(wanted[path] == "nothing" for path in missing)
    has_optimizer_state = any("opt_state" in path for path in tree)
    assert any("--optimizer SPEC adds them" in note for note in plan.notes) == has_optimizer_state


def test_positions_in_front_are_filled():
    tx = optax.chain(optax.clip(1.0), optax.identity(), optax.trace(0.9), optax.scale(0.1))
    plan = converted(bundle(tx))
    empty = {format_path(s.target): s.operation.name for s in plan.steps if s.spec.kind is LeafKind.EMPTY}
    assert empty == dict.fromkeys(["opt_state/0", "opt_state/1"], "a member of the optimizer state without arrays")
    assert all(step.fetch() is None for step in plan.steps if step.spec.kind is LeafKind.EMPTY)
    assert plan.filled == ()


def test_nothing_is_added_on_the_way_to_nnx():
    tx = OPTIMIZERS["chain of masked"]()
    state = train_state.TrainState.create(apply_fn=None, params=linen_params(), tx=tx)
    plan = make_plan(saved(state), Request("nnx", optimizer=tx))
    assert plan.problems == ()
    found = {format_path(path): str(leaf.spec) for path, leaf in plan.tree().items()}
    wanted = {format_path(path): str(leaf.spec) for path, leaf in bundle(tx).items()}
    assert found == wanted


def test_moments_are_handed_on_as_they_are():
    tree = bundle(optax.adam(0.1))
    plan = converted(tree, optax.adam(0.1))
    steps = {format_path(held.source): step for step in plan.steps for held in step.sources}
    source = tree["optimizer", "opt_state", "0", "nu", "up", "kernel", "value"]
    assert steps["optimizer/opt_state/0/nu/up/kernel"].fetch() is source.fetch()
