"""Training goes on after a conversion as if nothing had happened: the same parameters and optimizer state, bit for bit.

A model is trained in one framework, saved by that framework's own saver, converted, restored by the other framework's
own reader into what a training script has at hand, and then takes one more step there and, for comparison, where it
came from. Both steps are given the same gradients and run eagerly, operation by operation, so there is nothing to round
differently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx, serialization
from flax.training import train_state
from flax.training.dynamic_scale import DynamicScale

from fixtures.models import OPTIMIZERS
from fixtures.values import key_texts

from . import support

STEPS = 3
"""Odd, so that MultiSteps(every_k_schedule=2) is saved in the middle of an accumulation."""

# The model: a list, batch statistics and random state, all small -----------------------------------------------------


class LinenNet(nn.Module):
    """Rows of four numbers to rows of two; the layers are ``layers_0`` and ``layers_1``."""

    def setup(self):
        self.layers = [nn.Dense(3), nn.Dense(2)]
        self.norm = nn.BatchNorm()
        self.dropout = nn.Dropout(0.2)

    def __call__(self, x, train=False):
        x = self.norm(nn.relu(self.layers[0](x)), use_running_average=not train)
        return self.layers[1](self.dropout(x, deterministic=not train))


class NnxNet(nnx.Module):
    """The same model; the layers are ``layers/0`` and ``layers/1``."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x, train=False):
        x = self.norm(nnx.relu(self.layers[0](x)), use_running_average=not train)
        return self.layers[1](self.dropout(x, deterministic=not train))


INPUTS = jnp.sin(jnp.arange(20.0)).reshape(5, 4)


def loss(outputs: jax.Array) -> jax.Array:
    return jnp.mean((outputs - 1) ** 2)


@jax.jit
def linen_gradients(params: Any, batch_stats: Any, key: jax.Array) -> tuple[Any, Any]:
    """The gradients, and the new batch statistics."""

    def objective(params: Any) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, updates = LinenNet().apply(
            variables, INPUTS, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return loss(outputs), updates["batch_stats"]

    return jax.grad(objective, has_aux=True)(params)


@nnx.jit
def nnx_gradients(model: NnxNet) -> nnx.State:
    """The gradients; the batch statistics and the random state move on."""
    return nnx.grad(lambda model: loss(model(INPUTS, train=True)))(model)


class TrainState(train_state.TrainState):
    batch_stats: Any = None


def new_train_state(optimizer: str, seed: int = 0) -> TrainState:
    variables = LinenNet().init(jax.random.key(seed), INPUTS)
    return TrainState.create(apply_fn=LinenNet().apply, tx=OPTIMIZERS[optimizer](), **variables)


def new_nnx(optimizer: str, seed: int = 0) -> tuple[NnxNet, nnx.Optimizer]:
    model = NnxNet(nnx.Rngs(seed))
    return model, nnx.Optimizer(model, OPTIMIZERS[optimizer](), wrt=nnx.Param)


# Training, and one more step -----------------------------------------------------------------------------------------


@functools.cache
def trained_train_state(optimizer: str) -> TrainState:
    state = new_train_state(optimizer)
    for key in jax.random.split(jax.random.key(7), STEPS):
        gradients, batch_stats = linen_gradients(state.params, state.batch_stats, key)
        state = state.apply_gradients(grads=gradients, batch_stats=batch_stats)
    return state


@functools.cache
def _trained_nnx(optimizer: str) -> tuple[nnx.GraphDef, nnx.State]:
    model, trainer = new_nnx(optimizer)
    for _ in range(STEPS):
        trainer.update(model, nnx_gradients(model))
    return nnx.split((model, trainer))


def trained_nnx(optimizer: str) -> tuple[NnxNet, nnx.Optimizer]:
    """Copies, because modules are mutable."""
    graph, state = _trained_nnx(optimizer)
    return nnx.merge(graph, jax.tree.map(jnp.copy, state))


def some_gradients(params: Any) -> Any:
    """Gradients in Linen's layout, of no model in particular."""
    return jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype) + 0.1).reshape(leaf.shape), params)


def step_both(state: TrainState, model: NnxNet, trainer: nnx.Optimizer) -> TrainState:
    """One more step on both sides, with the same gradients."""
    gradients = some_gradients(state.params)
    by_path = {"/".join(key_texts(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)}
    of_nnx = [
        (path, variable.replace(by_path[in_linen(path)]))
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    ]
    trainer.update(model, nnx.from_flat_state(of_nnx))
    return state.apply_gradients(grads=gradients)


# Comparing -----------------------------------------------------------------------------------------------------------


def in_linen(path: Any) -> str:
    return "/".join(map(str, path)).replace("layers/", "layers_")


def leaves_of(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {in_linen(key_texts(path)): np.asarray(leaf) for path, leaf in leaves}


def assert_same_leaves(linen: Mapping[str, Any], of_nnx: Mapping[str, Any]) -> None:
    assert linen.keys() == of_nnx.keys()
    for path, leaf in linen.items():
        assert (leaf.dtype, leaf.shape) == (of_nnx[path].dtype, of_nnx[path].shape), path
        assert leaf.tobytes() == of_nnx[path].tobytes(), f"{path}: {leaf} and {of_nnx[path]}"


def assert_same(state: TrainState, model: NnxNet, trainer: nnx.Optimizer) -> None:
    """Parameters, statistics, optimizer state and step, bit for bit."""
    assert_same_leaves(leaves_of(state.params), leaves_of(nnx.state(model, nnx.Param)))
    assert_same_leaves(leaves_of(state.batch_stats), leaves_of(nnx.state(model, nnx.BatchStat)))
    assert_same_leaves(leaves_of(state.opt_state), leaves_of(nnx.state(trainer)["opt_state"]))
    assert int(state.step) == int(trainer.step[...])


# Saving and restoring, as scripts do ---------------------------------------------------------------------------------


def save_standard(path: Path, tree: Any) -> None:
    with ocp.StandardCheckpointer() as saver:
        saver.save(path, tree)


def save_in_manager(path: Path, tree: Any) -> None:
    with ocp.CheckpointManager(path) as manager:
        manager.save(STEPS, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()


def save_bytes(path: Path, tree: Any) -> None:
    path.write_bytes(serialization.to_bytes(tree))


def both_of_nnx(model: NnxNet, trainer: nnx.Optimizer) -> Any:
    return {"model": nnx.state(model), "optimizer": nnx.state(trainer)}


def split_of_nnx(model: NnxNet, trainer: nnx.Optimizer) -> Any:
    return nnx.split((model, trainer))[1]


def pure_of_nnx(model: NnxNet, trainer: nnx.Optimizer) -> Any:
    """Without random state, which flax.serialization cannot write."""
    without_rng = nnx.state(model, nnx.Not(nnx.RngState))
    return {"model": nnx.to_pure_dict(without_rng), "optimizer": nnx.to_pure_dict(nnx.state(trainer))}


SAVERS: Mapping[str, tuple[Callable[[Path, Any], None], Callable[..., Any], str]] = {
    "StandardCheckpointer": (save_standard, both_of_nnx, "orbax"),
    "CheckpointManager": (save_in_manager, split_of_nnx, "orbax"),
    "to_bytes": (save_bytes, pure_of_nnx, "msgpack"),
}
"""How the source is saved, what of NNX, and the format it is converted to."""

COMBINATIONS = [(optimizer, saver) for optimizer in OPTIMIZERS for saver in ("StandardCheckpointer", "to_bytes")]
COMBINATIONS += [(optimizer, "CheckpointManager") for optimizer in ("adamw_schedule", "chain_masked")]


def restore_train_state(path: Path, target: Any) -> Any:
    if path.suffix == ".msgpack":
        return serialization.from_bytes(target, path.read_bytes())
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(path, target)


def restore_nnx(path: Path, optimizer: str) -> tuple[NnxNet, nnx.Optimizer]:
    """Into a model and an optimizer that were made with other values."""
    model, trainer = new_nnx(optimizer, seed=5)
    if path.suffix == ".msgpack":
        # The arrays of msgpack_restore are NumPy's and read-only, which nnx.Optimizer would write into.
        held = jax.tree.map(jnp.asarray, serialization.msgpack_restore(path.read_bytes()))
        for module, pure in ((model, held["model"]), (trainer, held["optimizer"])):
            state = nnx.state(module)
            nnx.replace_by_pure_dict(state, nnx.restore_int_paths(pure))
            nnx.update(module, state)
        return model, trainer
    abstract = nnx.eval_shape(lambda: new_nnx(optimizer))
    with ocp.StandardCheckpointer() as reader:
        held = reader.restore(path, both_of_nnx(*abstract))
    nnx.update(model, held["model"])
    nnx.update(trainer, held["optimizer"])
    return model, trainer


def destination(directory: Path, format: str) -> Path:
    return directory / ("converted.msgpack" if format == "msgpack" else "converted")


# The tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "saver"), COMBINATIONS)
def test_linen_to_nnx(optimizer: str, saver: str, tmp_path: Path) -> None:
    state = trained_train_state(optimizer)
    save, _, format = SAVERS[saver]
    save(tmp_path / "source", state)
    path = destination(tmp_path, format)
    report = support.convert(tmp_path / "source", path, "nnx", nnx_model=NnxNet)
    assert not report.plan.drops
    model, trainer = restore_nnx(path, optimizer)
    assert_same(state, model, trainer)
    state = step_both(state, model, trainer)
    assert int(trainer.step[...]) == STEPS + 1
    assert_same(state, model, trainer)


@pytest.mark.parametrize(("optimizer", "saver"), COMBINATIONS)
def test_nnx_to_linen(optimizer: str, saver: str, tmp_path: Path) -> None:
    model, trainer = trained_nnx(optimizer)
    save, layout, format = SAVERS[saver]
    save(tmp_path / "source", layout(model, trainer))
    path = destination(tmp_path, format)
    known = {"nnx_model": NnxNet, "optimizer": OPTIMIZERS[optimizer]}
    report = support.convert(tmp_path / "source", path, "linen", **known)
    random_state = {"dropout/rngs/count", "dropout/rngs/key"} if format == "orbax" else set()
    assert {"/".join(drop.source[1:]) for drop in report.plan.drops} == random_state
    state = restore_train_state(path, new_train_state(optimizer, seed=5))
    assert_same(state, model, trainer)
    state = step_both(state, model, trainer)
    assert int(state.step) == STEPS + 1
    assert_same(state, model, trainer)


def test_a_jitted_train_state_counts_in_int32(tmp_path: Path) -> None:
    """There and back: the step that comes back is what a jitted training step makes of it."""
    state = trained_train_state("adamw_schedule")
    state = jax.jit(lambda state: state.apply_gradients(grads=some_gradients(state.params)))(state)
    assert state.step.dtype == jnp.int32
    save_standard(tmp_path / "source", state)
    support.convert(tmp_path / "source", tmp_path / "nnx", "nnx", nnx_model=NnxNet)
    model, trainer = restore_nnx(tmp_path / "nnx", "adamw_schedule")
    assert trainer.step[...].dtype == jnp.uint32
    assert_same(state, model, trainer)
    known = {"nnx_model": NnxNet, "optimizer": OPTIMIZERS["adamw_schedule"]}
    support.convert(tmp_path / "nnx", tmp_path / "linen", "linen", **known)
    again = restore_train_state(tmp_path / "linen", state.replace(step=jnp.zeros((), jnp.int32)))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert again.step.dtype == jnp.int32
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_linen_to_nnx_model_and_optimizer(tmp_path: Path) -> None:
    """Restored into one ``nnx.ModelAndOptimizer``, as the older API had it."""
    state = trained_train_state("adamw_schedule")
    save_standard(tmp_path / "source", state)
    path = tmp_path / "converted"
    support.convert(tmp_path / "source", path, "nnx", nnx_model=NnxNet, nnx_bundle="model-and-optimizer")
    trainer = nnx.ModelAndOptimizer(NnxNet(nnx.Rngs(5)), OPTIMIZERS["adamw_schedule"]())
    with ocp.StandardCheckpointer() as reader:
        nnx.update(trainer, reader.restore(path, nnx.state(trainer)))
    assert_same(state, trainer.model, trainer)


def test_nnx_model_and_optimizer_to_linen(tmp_path: Path) -> None:
    trainer = nnx.ModelAndOptimizer(NnxNet(nnx.Rngs(0)), OPTIMIZERS["adamw_schedule"]())
    for _ in range(STEPS):
        trainer.update(nnx_gradients(trainer.model))
    save_standard(tmp_path / "source", nnx.state(trainer))
    known = {"nnx_model": NnxNet, "optimizer": OPTIMIZERS["adamw_schedule"]}
    support.convert(tmp_path / "source", tmp_path / "converted", "linen", **known)
    state = restore_train_state(tmp_path / "converted", new_train_state("adamw_schedule", seed=5))
    assert_same(state, trainer.model, trainer)


@pytest.mark.parametrize("optimizer", ["adamw_schedule", "chain_masked"])
def test_an_optimizer_alone_to_linen(optimizer: str, tmp_path: Path) -> None:
    """The model tells the shapes of the parameters, from which the optimizer makes its state."""
    _, trainer = trained_nnx(optimizer)
    save_standard(tmp_path / "source", nnx.state(trainer))
    known = {"nnx_model": NnxNet, "optimizer": OPTIMIZERS[optimizer]}
    support.convert(tmp_path / "source", tmp_path / "converted", "linen", **known)
    target = new_train_state(optimizer, seed=5)
    held = restore_train_state(tmp_path / "converted", {"step": target.step, "opt_state": target.opt_state})
    assert_same_leaves(leaves_of(held["opt_state"]), leaves_of(nnx.state(trainer)["opt_state"]))
    assert int(held["step"]) == STEPS


@pytest.mark.parametrize("optimizer", ["adamw_schedule", "chain_masked"])
def test_an_optimizer_alone_to_nnx(optimizer: str, tmp_path: Path) -> None:
    state = trained_train_state(optimizer)
    save_standard(tmp_path / "source", {"step": state.step, "opt_state": state.opt_state})
    support.convert(tmp_path / "source", tmp_path / "converted", "nnx", nnx_model=NnxNet)
    _, trainer = new_nnx(optimizer, seed=5)
    with ocp.StandardCheckpointer() as reader:
        nnx.update(trainer, reader.restore(tmp_path / "converted", nnx.state(trainer)))
    assert_same_leaves(leaves_of(state.opt_state), leaves_of(nnx.state(trainer)["opt_state"]))
    assert int(trainer.step[...]) == STEPS


# What people add to a train state ------------------------------------------------------------------------------------


class EmaTrainState(TrainState):
    """With a moving average of the parameters."""

    ema_params: Any = None


def averaged(average: Any, params: Any) -> Any:
    return jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, average, params)


def with_average(state: TrainState) -> EmaTrainState:
    average = jax.tree.map(lambda leaf: 2 * leaf, state.params)
    fields = {name: getattr(state, name) for name in TrainState.__dataclass_fields__}
    return EmaTrainState(**fields, ema_params=averaged(average, state.params))


def assert_same_average(state: EmaTrainState, average: nnx.State) -> None:
    assert_same_leaves(leaves_of(state.ema_params), leaves_of(average))


def test_ema_params_to_nnx(tmp_path: Path) -> None:
    state = with_average(trained_train_state("adamw_schedule"))
    save_standard(tmp_path / "source", state)
    support.convert(tmp_path / "source", tmp_path / "converted", "nnx", nnx_model=NnxNet)
    model, trainer = new_nnx("adamw_schedule", seed=5)
    target = {**both_of_nnx(model, trainer), "ema_params": nnx.state(model, nnx.Param)}
    with ocp.StandardCheckpointer() as reader:
        held = reader.restore(tmp_path / "converted", target)
    nnx.update(model, held["model"])
    nnx.update(trainer, held["optimizer"])
    average = held["ema_params"]
    assert_same(state, model, trainer)
    assert_same_average(state, average)
    state = step_both(state, model, trainer)
    state = state.replace(ema_params=averaged(state.ema_params, state.params))
    assert_same(state, model, trainer)
    assert_same_average(state, averaged(average, nnx.state(model, nnx.Param)))


def test_ema_params_to_linen(tmp_path: Path) -> None:
    model, trainer = trained_nnx("adamw_schedule")
    params = nnx.state(model, nnx.Param)
    average = averaged(jax.tree.map(lambda leaf: 2 * leaf, params), params)
    save_standard(tmp_path / "source", {**both_of_nnx(model, trainer), "ema_params": average})
    known = {"nnx_model": NnxNet, "optimizer": OPTIMIZERS["adamw_schedule"]}
    support.convert(tmp_path / "source", tmp_path / "converted", "linen", **known)
    target = with_average(new_train_state("adamw_schedule", seed=5))
    state = restore_train_state(tmp_path / "converted", target)
    assert_same(state, model, trainer)
    assert_same_average(state, average)


class LoadedTrainState(TrainState):
    """With a PRNG key and loss scaling: fields that no NNX module has."""

    key: Any = None
    dynamic_scale: DynamicScale | None = None


def test_a_key_and_loss_scaling_survive_both_ways(tmp_path: Path) -> None:
    plain = trained_train_state("adamw_schedule")
    fields = {name: getattr(plain, name) for name in TrainState.__dataclass_fields__}
    state = LoadedTrainState(**fields, key=jax.random.key(3), dynamic_scale=DynamicScale(fin_steps=4, scale=512.0))
    save_standard(tmp_path / "source", state)
    support.convert(tmp_path / "source", tmp_path / "nnx", "nnx", nnx_model=NnxNet)
    known = {"nnx_model": NnxNet, "optimizer": OPTIMIZERS["adamw_schedule"]}
    support.convert(tmp_path / "nnx", tmp_path / "linen", "linen", **known)
    target = LoadedTrainState(
        **{name: getattr(new_train_state("adamw_schedule", seed=5), name) for name in TrainState.__dataclass_fields__},
        key=jax.random.key(0),
        dynamic_scale=DynamicScale(),
    )
    again = restore_train_state(tmp_path / "linen", target)
    assert jnp.issubdtype(again.key.dtype, jax.dtypes.prng_key)
    assert (jax.random.key_data(again.key) == jax.random.key_data(state.key)).all()
    assert (again.dynamic_scale.fin_steps, again.dynamic_scale.scale) == (4, 512.0)
    assert int(again.step) == STEPS
    assert_equal_trees(again.replace(key=None, step=0), state.replace(key=None, step=0))


def assert_equal_trees(found: Any, expected: Any) -> None:
    found, expected = leaves_of(found), leaves_of(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].tobytes() == leaf.tobytes(), path


class LinenLine(nn.Module):
    """A model with parameters alone."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="line")(x)


class NnxLine(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.line = nnx.Linear(4, 2, rngs=rngs)


def test_a_train_state_made_of_whole_variables(tmp_path: Path) -> None:
    """``TrainState.create(params=module.init(…))`` saves parameters below ``params/params``."""
    tx = optax.adam(1e-2)
    variables = LinenLine().init(jax.random.key(0), INPUTS)
    state = train_state.TrainState.create(apply_fn=LinenLine().apply, params=variables, tx=tx)
    state = state.apply_gradients(grads=some_gradients(state.params))
    save_standard(tmp_path / "source", state)
    support.convert(tmp_path / "source", tmp_path / "nnx", "nnx", nnx_model=NnxLine)
    model = NnxLine(nnx.Rngs(5))
    trainer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    with ocp.StandardCheckpointer() as reader:
        held = reader.restore(tmp_path / "nnx", both_of_nnx(model, trainer))
    nnx.update(model, held["model"])
    nnx.update(trainer, held["optimizer"])
    flat = state.replace(params=state.params["params"])
    gradients = some_gradients(flat.params)
    state = state.apply_gradients(grads={"params": gradients})
    trainer.update(
        model,
        nnx.from_flat_state(
            [
                (path, variable.replace(gradients[path[0]][path[1]]))
                for path, variable in nnx.to_flat_state(nnx.state(model))
            ]
        ),
    )
    assert_same_leaves(leaves_of(state.params["params"]), leaves_of(nnx.state(model)))
    moments = {path.replace("/params/", "/"): leaf for path, leaf in leaves_of(state.opt_state).items()}
    assert_same_leaves(moments, leaves_of(nnx.state(trainer)["opt_state"]))
    assert int(state.step) == int(trainer.step[...]) == 2
    # On the way back they get their usual place.
    support.convert(tmp_path / "nnx", tmp_path / "linen", "linen", optimizer=tx)
    usual = train_state.TrainState.create(apply_fn=LinenLine().apply, params=variables["params"], tx=tx)
    assert_equal_trees(restore_train_state(tmp_path / "linen", usual).params, flat.params)
