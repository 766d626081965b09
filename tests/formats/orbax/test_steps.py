"""Steps and items are chosen as their names say."""

from __future__ import annotations

import shutil
from pathlib import Path as FilePath

import flax
import flax.training.checkpoints
import flax.training.train_state
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from converter.errors import (
    UnreadableCheckpoint,
    UsageError,
)
from tests.formats.orbax.support import FORMAT, assert_reads, needs_v1, of_pytree, v1

pytestmark = pytest.mark.filterwarnings("ignore")


def test_chooses_among_the_steps_of_a_manager(tmp_path: FilePath) -> None:
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (9, 10, 100):
            manager.save(step, args=ocp.args.StandardSave({"step": jnp.asarray(step)}))
            manager.wait_until_finished()
    (tmp_path / "run" / "200.orbax-checkpoint-tmp").mkdir()
    latest, chosen = FORMAT.open(tmp_path / "run"), FORMAT.open(tmp_path / "run", step=9)
    assert FORMAT.sniff(tmp_path / "run")
    assert (latest.steps, latest.step, latest.items, latest.item) == ((9, 10, 100), 100, ("default",), "default")
    assert latest.location == tmp_path / "run" / "100" / "default"
    assert latest.facts["unfinished saves"] == "200.orbax-checkpoint-tmp"
    assert [int(checkpoint.tree[("step",)].fetch()) for checkpoint in (latest, chosen)] == [100, 9]
    with pytest.raises(UsageError, match="no step 7; its steps: 9, 10, 100"):
        FORMAT.open(tmp_path / "run", step=7)
    with pytest.raises(UnreadableCheckpoint, match=r"step 200 of .* is an unfinished save"):
        FORMAT.open(tmp_path / "run", step=200)
    with pytest.raises(UnreadableCheckpoint, match="is an unfinished save"):
        FORMAT.open(tmp_path / "run" / "200.orbax-checkpoint-tmp")
    assert FORMAT.open(tmp_path / "run" / "10").item == "default"
    with pytest.raises(UsageError, match="no step directories"):
        FORMAT.open(tmp_path / "run" / "10", step=10)


def test_chooses_among_the_items_of_a_manager(tmp_path: FilePath) -> None:
    options = ocp.CheckpointManagerOptions(step_prefix="ck", step_format_fixed_length=4)
    items = {"weights": {"a": jnp.ones(1)}, "opt": {"a": jnp.ones(2)}}
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        arguments = {name: ocp.args.PyTreeSave(item) for name, item in items.items()}
        arguments |= {"config": ocp.args.JsonSave({"width": 3}), "array": ocp.args.ArraySave(jnp.ones(3))}
        manager.save(5, args=ocp.args.Composite(**arguments))
        manager.wait_until_finished()
    checkpoint = FORMAT.open(tmp_path / "run", item="opt")
    assert checkpoint.location == tmp_path / "run" / "ck_0005" / "opt"
    assert (checkpoint.step, checkpoint.items, checkpoint.item) == (5, ("opt", "weights"), "opt")
    assert checkpoint.kinds == {"array": "array", "config": "JSON", **dict.fromkeys(checkpoint.items, "pytree")}
    assert checkpoint.facts["written by"] == "Orbax PyTreeCheckpointHandler"
    assert_reads(checkpoint, of_pytree(items["opt"]))
    with pytest.raises(UsageError, match="several items: opt, weights\nChoose one with --item opt or --item weights"):
        FORMAT.open(tmp_path / "run")
    with pytest.raises(UsageError, match="no item 'params'; its items: opt, weights"):
        FORMAT.open(tmp_path / "run", item="params")
    with pytest.raises(UsageError, match=r"item 'config' of .* is no tree of arrays but JSON"):
        FORMAT.open(tmp_path / "run", item="config")
    with pytest.raises(UsageError, match="is one item itself"):
        FORMAT.open(checkpoint.location, item="opt")


@needs_v1
def test_chooses_the_items_that_orbax_names_itself(tmp_path: FilePath) -> None:
    v1.save_checkpointables(tmp_path / "saved", {"state": {"a": jnp.ones(1)}, "other": {"a": jnp.ones(2)}})
    checkpoint = FORMAT.open(tmp_path / "saved")
    assert (checkpoint.items, checkpoint.item, checkpoint.steps) == (("other", "state"), "state", ())
    assert_reads(FORMAT.open(tmp_path / "saved", item="other"), of_pytree({"a": jnp.ones(2)}))


@needs_v1
def test_reads_steps_of_the_v1_checkpointer_and_of_flax(tmp_path: FilePath) -> None:
    checkpointer = v1.training.Checkpointer(tmp_path / "v1")
    checkpointer.save_pytree(3, {"a": jnp.ones(1)})
    checkpointer.close()
    for step in (9, 10):
        flax.training.checkpoints.save_checkpoint(tmp_path / "flax", {"a": jnp.full(1, step)}, step, keep=5)
    first, second = FORMAT.open(tmp_path / "v1"), FORMAT.open(tmp_path / "flax")
    assert FORMAT.sniff(tmp_path / "v1")
    assert FORMAT.sniff(tmp_path / "flax")
    assert (first.steps, first.step, first.location.parent.name) == ((3,), 3, "3")
    assert (second.steps, second.step, second.items) == ((9, 10), 10, ())
    assert second.location == tmp_path / "flax" / "checkpoint_10"


def test_refuses_steps_that_cannot_be_told_apart(saved: FilePath, tmp_path: FilePath) -> None:
    for name in ("a_1", "a_2", "b_3"):
        shutil.copytree(saved, tmp_path / "series" / name)
    with pytest.raises(UsageError, match="several series of steps: a_<step>, b_<step>"):
        FORMAT.open(tmp_path / "series")
    assert FORMAT.open(tmp_path / "series", step=3).location.name == "b_3"
    for name in ("1", "01"):
        shutil.copytree(saved, tmp_path / "twice" / name)
    with pytest.raises(UsageError, match="step 1 several times: 01, 1"):
        FORMAT.open(tmp_path / "twice")


def test_reads_items_with_names_like_steps(saved: FilePath, tmp_path: FilePath) -> None:
    for name in ("model_0", "opt"):
        shutil.copytree(saved, tmp_path / "step" / name)
    assert FORMAT.open(tmp_path / "step", item="model_0").items == ("model_0", "opt")
