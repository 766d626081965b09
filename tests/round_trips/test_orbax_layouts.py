"""Steps of a CheckpointManager and checkpoints of Orbax's v1 API, read by those themselves, with what they say of
themselves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import converter
from converter.errors import DestinationError, UsageError
from converter.formats.provenance import describe, read_record
from fixtures.make import CHECKPOINTS

try:
    from orbax.checkpoint import v1
except ImportError:  # where it has not been released yet
    from orbax.checkpoint.experimental import v1

DENSE = CHECKPOINTS / "linen_dense_standard" / "checkpoint"
ENCODER_V1 = CHECKPOINTS / "linen_encoder_v1" / "checkpoint"
COMPOSITE = CHECKPOINTS / "linen_train_state_composite" / "checkpoint"
TRAIN_STATE = CHECKPOINTS / "linen_train_state_manager" / "checkpoint"
LEGACY = next(CHECKPOINTS.glob("*/checkpoint/checkpoint_3")).parent
CONFIG = {"learning_rate": 0.01}


def plain(path: Path) -> Any:
    """What Orbax reads from one item."""
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(path)


def assert_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other)


def wrapped(variables: Mapping[str, Any]) -> Any:
    """The ``nnx.State`` of the same names as these parameters, as nested dicts."""
    return jax.tree.map(lambda leaf: {"value": leaf}, variables["params"])


def custom_metadata(step: Path) -> Any:
    return json.loads((step / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]


# Steps of a CheckpointManager ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [ocp.args.StandardRestore, ocp.args.PyTreeRestore, None])
def test_a_manager_restores_the_step_by_every_argument(tmp_path: Path, arguments: Any):
    converter.convert(DENSE, tmp_path / "run", "nnx", as_step=12)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        assert list(manager.all_steps()) == [12]
        restored = manager.restore(12, args=arguments() if arguments else None)
    assert_equal(restored, wrapped(plain(DENSE)))


def test_a_step_is_added_to_those_of_a_manager_and_it_goes_on_from_there(tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(TRAIN_STATE, run)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    converter.convert(DENSE, run, "nnx", as_step=5)
    assert {file: file.read_bytes() for file in before} == before
    with ocp.CheckpointManager(run) as manager:
        assert list(manager.all_steps()) == [1, 2, 5]
        assert manager.latest_step() == 5
        manager.save(6, args=ocp.args.StandardSave(manager.restore(5)))
        manager.wait_until_finished()
        assert_equal(manager.restore(6), wrapped(plain(DENSE)))


def test_v1_loads_the_step_of_a_manager(tmp_path: Path):
    converter.convert(DENSE, tmp_path / "run", "nnx", as_step=0)
    assert_equal(v1.load(tmp_path / "run" / "0"), wrapped(plain(DENSE)))


@pytest.mark.parametrize("format", ["orbax", "orbax-v1"])
def test_json_items_go_along(tmp_path: Path, format: str):
    converter.convert(COMPOSITE, tmp_path / "run", "nnx", item="params", as_step=3, to_format=format)
    step = tmp_path / "run" / "3"
    assert converter.inspect(tmp_path / "run").checkpoint.attached.keys() == {"config"}
    if format == "orbax":
        with ocp.CheckpointManager(tmp_path / "run") as manager:
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(), config=ocp.args.JsonRestore())
            restored = manager.restore(3, args=arguments)
            assert restored.config == CONFIG
            assert_equal(restored.state, wrapped({"params": plain(COMPOSITE / "3" / "params")}))
    load = getattr(v1, "load_checkpointables", None) or v1.load
    assert load(step)["config"] == CONFIG


def test_a_step_that_exists_is_replaced_only_by_force(tmp_path: Path):
    converter.convert(DENSE, tmp_path / "run", "nnx", as_step=1)
    with pytest.raises(DestinationError, match=r"run/1 exists already"):
        converter.convert(DENSE, tmp_path / "run", "nnx", as_step=1)
    converter.convert(ENCODER_V1, tmp_path / "run", "nnx", as_step=1, force=True)
    assert len(converter.inspect(tmp_path / "run").checkpoint.tree) == 23


@pytest.mark.parametrize(
    ("source", "format", "message"),
    [
        (DENSE, "orbax", "is a checkpoint itself"),
        (DENSE, "msgpack", "is a checkpoint itself"),
        (ENCODER_V1, "orbax-v1", "is a checkpoint itself"),
        (LEGACY, "orbax", "steps of other names"),
        (TRAIN_STATE, "msgpack", "steps of other names"),
    ],
)
def test_what_is_no_directory_of_such_steps_is_refused(tmp_path: Path, source: Path, format: str, message: str):
    shutil.copytree(source, tmp_path / "there")
    with pytest.raises(DestinationError, match=message):
        converter.convert(DENSE, tmp_path / "there", "nnx", as_step=1, to_format=format)


def test_steps_are_counted_from_0(tmp_path: Path):
    with pytest.raises(UsageError, match="step -1"):
        converter.convert(DENSE, tmp_path / "run", "nnx", as_step=-1)
    assert list(tmp_path.iterdir()) == []


def test_a_step_in_msgpack_is_one_of_flax_training_checkpoints(tmp_path: Path):
    from flax.training import checkpoints

    for step in (3, 20):
        converter.convert(DENSE, tmp_path / "run", "nnx", as_step=step, to_format="msgpack")
    assert checkpoints.latest_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint_20")
    assert_equal(checkpoints.restore_checkpoint(tmp_path / "run", None, step=3), plain(DENSE)["params"])


# v1 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [DENSE, ENCODER_V1], ids=["zarr2", "zarr3"])
def test_v1_loads_what_is_laid_out_as_it_does_itself(tmp_path: Path, source: Path):
    converter.convert(source, tmp_path / "out", "nnx", to_format="orbax-v1", verify="full")
    expected = plain(source / "state" if source is ENCODER_V1 else source)
    found = v1.load(tmp_path / "out")
    for path, leaf in jax.tree.leaves_with_path(found):
        keys = [key.key for key in path[:-1]]
        held = [collection for collection in expected.values() if _at(collection, keys) is not None]
        np.testing.assert_array_equal(leaf, _at(held[0], keys))
    assert len(jax.tree.leaves(found)) == len(jax.tree.leaves(expected))
    v1.save(tmp_path / "its own", {"a": np.zeros(2)})
    assert {each.name for each in (tmp_path / "out").iterdir()} == {e.name for e in (tmp_path / "its own").iterdir()}


def _at(tree: Any, keys: list[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def test_a_checkpointer_of_v1_finds_its_steps(tmp_path: Path):
    converter.convert(DENSE, tmp_path / "run", "nnx", to_format="orbax-v1", as_step=4)
    with v1.training.Checkpointer(tmp_path / "run") as reader:
        assert reader.latest.step == 4
        assert_equal(reader.load(4), wrapped(plain(DENSE)))


# What a checkpoint says of itself ------------------------------------------------------------------------------------

RECORD = {
    "version": converter.__version__,
    "direction": "linen-to-nnx",
    "source": {"name": "checkpoint", "format": "orbax", "dialect": "Linen variables"},
    "dialect": "nnx.State of a model",
}


def test_orbax_itself_tells_where_a_checkpoint_comes_from(tmp_path: Path):
    converter.convert(DENSE, tmp_path / "out", "nnx")
    converter.convert(DENSE, tmp_path / "run", "nnx", as_step=1)
    converter.convert(DENSE, tmp_path / "v1", "nnx", to_format="orbax-v1")
    with ocp.StandardCheckpointer() as reader:
        assert reader.metadata(tmp_path / "out").custom_metadata == {"flax_convert": RECORD}
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        assert manager.metadata(1).custom_metadata == {"flax_convert": RECORD}
    metadata = getattr(v1, "metadata", None) or v1.pytree_metadata
    assert metadata(tmp_path / "v1").custom_metadata == {"flax_convert": RECORD}


def test_the_user_s_own_metadata_stay_and_earlier_conversions_are_listed(tmp_path: Path):
    tree = {"params": {"dense": {"kernel": np.ones((2, 3), np.float32)}}}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(tmp_path / "a", args=ocp.args.StandardSave(tree), custom_metadata={"run": 7, "who": "é"})
    converter.convert(tmp_path / "a", tmp_path / "b", "nnx")
    converter.convert(tmp_path / "b", tmp_path / "c", "linen")
    converter.convert(tmp_path / "c", tmp_path / "d", "nnx")
    noted = custom_metadata(tmp_path / "d")
    record = noted.pop("flax_convert")
    assert noted == {"run": 7, "who": "é"}
    assert record["source"]["name"] == "c"
    assert [each["source"]["name"] for each in record["before"]] == ["b", "a"]
    facts = converter.inspect(tmp_path / "d").checkpoint.facts
    assert facts["converted from"] == (
        f"c (orbax, Linen variables) by flax-convert {converter.__version__} linen-to-nnx; 2 earlier conversions"
    )
    assert json.loads(facts["custom metadata"]) == noted


def test_the_record_is_the_same_each_time_and_holds_no_place(tmp_path: Path):
    rules = tmp_path / "rules.toml"
    rules.write_text('default = "auto"\n')
    records = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        converter.convert(TRAIN_STATE, tmp_path / name / "out", "nnx", step=1, rules=rules)
        records.append(custom_metadata(tmp_path / name / "out"))
    assert records[0] == records[1]
    record = records[0]["flax_convert"]
    assert record["rules_sha256"] == hashlib.sha256(rules.read_bytes()).hexdigest()
    assert (record["source"]["step"], record["source"]["item"]) == (1, "default")
    assert str(tmp_path) not in json.dumps(records)
    assert str(CHECKPOINTS) not in json.dumps(records)


def test_rules_of_the_same_content_have_the_same_digest():
    from converter.rules.language.rule_file import read_rules

    text = '[[rule]]\nlinen = "a/{x}"\nnnx = "b/{x}"\n'
    values = {"rule": [{"nnx": "b/{x}", "linen": "a/{x}"}]}
    digests = {read_rules(given).digest for given in (values, values["rule"], dict(reversed(list(values.items()))))}
    assert read_rules(text).digest == hashlib.sha256(text.encode()).hexdigest()
    assert len(digests) == 1
    assert read_rules(text.replace("b", "c")).digest != read_rules(text).digest


@pytest.mark.parametrize("noted", [{}, {"flax_convert": 3}, {"flax_convert": {}}, {"flax_convert": {"source": "x"}}])
def test_what_is_no_record_of_ours_is_not_read_as_one(noted: dict[str, Any]):
    assert read_record(noted) is None


@pytest.mark.parametrize("record", [{"source": {}}, {"source": {"name": 3, "step": None}, "before": "no list"}])
def test_a_record_that_lacks_entries_is_described_all_the_same(record: dict[str, Any]):
    assert describe(record).startswith(str(record["source"].get("name", "?")))
