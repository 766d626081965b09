"""Items that Orbax saved side by side, converted as one training state: the same as if they had been saved as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import converter
from converter.errors import UsageError
from fixtures import trees
from fixtures.cards import describe
from fixtures.make import CHECKPOINTS

from . import support

try:
    from orbax.checkpoint import v1
except ImportError:  # where it has not been released yet
    from orbax.checkpoint.experimental import v1

OPTIMIZER = "adamw_schedule"
SETTINGS = {"learning_rate": 0.01, "name": "a run"}


def by_manager(path: Path, items: Mapping[str, Any]) -> None:
    arguments = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    with ocp.CheckpointManager(path) as manager:
        manager.save(2, args=ocp.args.Composite(**arguments, settings=ocp.args.JsonSave(SETTINGS)))
        manager.wait_until_finished()


def by_v1(path: Path, items: Mapping[str, Any]) -> None:
    save = getattr(v1, "save_checkpointables", None) or v1.save
    save(path, {**items, "settings": SETTINGS})


SAVERS = [by_manager, by_v1]


def save_alone(path: Path, tree: Any) -> None:
    with ocp.StandardCheckpointer() as writer:
        writer.save(path, tree)


def read(path: Path) -> Any:
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(path)


def assert_same(one: Any, other: Any) -> None:
    assert describe(one) == describe(other)


@pytest.mark.parametrize("save", SAVERS)
def test_linen_parameters_and_optimizer_convert_as_their_train_state_does(
    tmp_path: Path, save: Callable[[Path, Mapping[str, Any]], None]
):
    state = trees.linen_train_state(OPTIMIZER, "mlp")
    save(tmp_path / "items", {"params": state.params, "opt_state": state.opt_state})
    save_alone(tmp_path / "alone", {"params": state.params, "opt_state": state.opt_state})
    support.convert(tmp_path / "items", tmp_path / "a", "nnx")
    support.convert(tmp_path / "alone", tmp_path / "b", "nnx")
    assert_same(read(tmp_path / "a"), read(tmp_path / "b"))
    assert converter.verify(tmp_path / "items", tmp_path / "a").ok


@pytest.mark.parametrize("save", SAVERS)
def test_an_nnx_model_and_its_optimizer_convert_as_a_bundle_does(
    tmp_path: Path, save: Callable[[Path, Mapping[str, Any]], None]
):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    items = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
    save(tmp_path / "items", items)
    save_alone(tmp_path / "alone", items)
    support.convert(tmp_path / "items", tmp_path / "a", "linen")
    support.convert(tmp_path / "alone", tmp_path / "b", "linen")
    assert_same(read(tmp_path / "a"), read(tmp_path / "b"))


def test_settings_go_along_into_a_step_and_stay_behind_elsewhere(tmp_path: Path):
    state = trees.linen_train_state(OPTIMIZER, "mlp")
    by_v1(tmp_path / "items", {"params": state.params, "opt_state": state.opt_state})
    report = converter.convert(tmp_path / "items", tmp_path / "run", "nnx", as_step=1)
    assert any("settings" in note and "goes along" in note for note in report.plan.notes)
    report = converter.convert(tmp_path / "items", tmp_path / "alone", "nnx")
    assert any("settings" in note and "stays behind" in note for note in report.plan.notes)
    load = getattr(v1, "load_checkpointables", None) or v1.load
    assert json.loads(json.dumps(jax.tree.map(_plain, load(tmp_path / "run" / "1")["settings"]))) == SETTINGS


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | np.ndarray | jax.Array) else value


def test_a_step_kept_by_itself_counts_the_train_state(tmp_path: Path):
    state = trees.linen_train_state(OPTIMIZER, "mlp")
    arguments = {
        "params": ocp.args.StandardSave(state.params),
        "opt_state": ocp.args.StandardSave(state.opt_state),
        "step": ocp.args.PyTreeSave(np.int32(7)),
    }
    with ocp.CheckpointManager(tmp_path / "items") as manager:
        manager.save(7, args=ocp.args.Composite(**arguments))
        manager.wait_until_finished()
    converter.convert(tmp_path / "items", tmp_path / "out", "nnx")
    step = read(tmp_path / "out")["optimizer"]["step"]["value"]
    assert (step.dtype, int(step)) == (np.uint32, 7)


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("names", [("generator", "discriminator"), ("model", "params")])
def test_two_models_are_refused_with_the_list(
    tmp_path: Path, save: Callable[[Path, Mapping[str, Any]], None], names: tuple[str, str]
):
    kernels = [{"dense": {"kernel": jnp.ones((2, size))}} for size in (3, 4)]
    save(tmp_path / "items", dict(zip(names, kernels, strict=True)))
    with pytest.raises(UsageError, match="holds several items") as caught:
        converter.convert(tmp_path / "items", tmp_path / "out", "nnx")
    for name in names:
        assert name in caught.value.message
        assert f"--item {name}" in caught.value.advice


def test_beside_another_model_the_default_item_is_taken_and_the_other_one_named(tmp_path: Path):
    kernels = [{"dense": {"kernel": jnp.ones((2, size))}} for size in (3, 4)]
    by_manager(tmp_path / "items", {"state": kernels[0], "critic": kernels[1]})
    report = converter.convert(tmp_path / "items", tmp_path / "out", "nnx")
    assert "only the item state is converted, not critic (--item chooses)" in report.plan.notes


def test_one_item_can_still_be_chosen(tmp_path: Path):
    source = CHECKPOINTS / "linen_train_state_composite" / "checkpoint"
    report = converter.convert(source, tmp_path / "out", "nnx", item="params")
    assert "only the item params is converted, not opt_state (--item chooses)" in report.plan.notes
    assert len(read(tmp_path / "out")) == 2


def test_inspect_says_which_items_it_read_as_what():
    found = converter.inspect(CHECKPOINTS / "nnx_composite" / "checkpoint")
    assert found.checkpoint.kinds == {"config": "JSON", "model": "pytree", "optimizer": "pytree"}
    titles = {name: part.dialects[0].title for name, part in found.parts.items()}
    assert titles == {"model": "nnx.State of a model", "optimizer": "nnx.State of an nnx.Optimizer"}
