"""``converter.inspect``: trees drawn, filters, totals, items together, shardings, and who wrote it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import converter
from converter.errors import UsageError
from converter.folding import fold_names
from converter.formats import FORMATS
from converter.inspection.drawing import draw, grow
from converter.tree import Tree
from tests.building import tree_at, tree_of
from tests.formats.orbax.support import on_a_mesh

CHECKPOINTS = Path(__file__).resolve().parents[2] / "fixtures" / "checkpoints"
CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"


def drawn(tree: Tree) -> list[str]:
    return draw(grow((path, (leaf.spec, "")) for path, leaf in tree.items()))


# The drawing ---------------------------------------------------------------------------------------------------------


def test_equal_siblings_are_folded_and_totals_are_those_of_all() -> None:
    layer = {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
    tree = tree_of({"params": {"layers_0": layer, "layers_1": layer, "layers_2": {"kernel": layer["kernel"]}}})
    assert drawn(tree) == [
        "params              5 leaves, 96 B",
        "├─ layers_{0…1}     4 leaves, 72 B",
        "│  ├─ kernel        float32[2,3]",
        "│  └─ bias          float32[3]",
        "└─ layers_2/kernel  float32[2,3]",
    ]


def test_a_wrapper_shares_the_line_of_its_variable_and_nothing_is_lost() -> None:
    tree = tree_of({"a": {"kernel": {"value": np.zeros(2)}, "empty": {}, "none": None}, "b": np.int32(3)})
    lines = [" ".join(line.split()) for line in drawn(tree)]
    assert lines == ["a 1 leaf, 16 B", "├─ kernel/value float64[2]", "├─ empty {}", "└─ none None", "b int32[]"]


def test_a_single_leaf_is_drawn() -> None:
    assert drawn(tree_of(np.zeros(3, np.int8))) == ["int8[3]"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.integers(0, 6)), unique=True, max_size=20))
def test_folded_names_stand_for_all_of_them(parts: list[tuple[str, int, int]]) -> None:
    names = [f"{stem}_{one}_x_{other}" for stem, one, other in parts]
    folded = fold_names([(name, None) for name in names])
    positions = [position for _, members in folded for position in members]
    assert sorted(positions) == list(range(len(names)))
    assert len({text for text, _ in folded}) == len(folded)


def test_names_of_unequal_things_are_not_folded() -> None:
    folded = fold_names([("a_0", "x"), ("a_1", "y"), ("a_2", "x"), ("b", "x")])
    assert folded == [("a_{0,2}", (0, 2)), ("a_1", (1,)), ("b", (3,))]


def test_the_nested_tree_as_json() -> None:
    found = converter.inspect(CHECKPOINTS / "nnx_mlp_standard" / "checkpoint").to_json(tree=True)["tree"]
    assert (found["leaves"], found["bytes"]) == (4, 544)
    assert [child["name"] for child in found["children"]] == ["down", "up"]
    kernel = found["children"][1]["children"][1]["children"][0]
    assert kernel == {"name": "value", "leaves": 1, "bytes": 240, "leaf": "float32[6,10]"}


# Filters and totals --------------------------------------------------------------------------------------------------


def test_filters_choose_what_is_shown_and_counted() -> None:
    root = CHECKPOINTS / "nnx_model_optimizer_standard" / "checkpoint"
    whole = converter.inspect(root)
    # With and without the wrapper around Variables.
    for filters in (["model/**/kernel"], ["model/**/kernel/value"], ["model/block_0/**/kernel", "model/**/kernel"]):
        found = converter.inspect(root, filters=filters)
        assert list(found.by_collection()) == ["params"]
        expected = [path for path in whole.checkpoint.tree if path[0] == "model" and path[-2] == "kernel"]
        assert list(found.shown) == expected
        assert found.by_collection()["params"].leaves == len(expected) == len(found.to_json()["leaves"])
    with pytest.raises(UsageError, match=r"--filter 'model/kernel' matches no leaf"):
        converter.inspect(root, filters=["model/**", "model/kernel"])


def test_totals_by_collection_and_dtype_add_up(tmp_path: Path) -> None:
    values = {
        "params/a/kernel": jnp.zeros((2, 3), jnp.bfloat16),
        "params/a/bias": np.zeros(3, np.float32),
        "params/b/kernel": np.zeros((4, 3), np.float32),
        "batch_stats/n/mean": np.zeros(3, np.float32),
    }
    FORMATS["msgpack"].write(tree_at(values), tmp_path / "saved", lambda *_: None)
    shown = converter.inspect(tmp_path / "saved").to_json()
    assert shown["totals"]["params"] == {
        "leaves": 3,
        "elements": 21,
        "bytes": 72,
        "dtypes": {
            "float32": {"leaves": 2, "elements": 15, "bytes": 60},
            "bfloat16": {"leaves": 1, "elements": 6, "bytes": 12},
        },
    }
    assert shown["dtypes"]["float32"] == {"leaves": 3, "elements": 18, "bytes": 72}
    assert sum(total["bytes"] for total in shown["dtypes"].values()) == shown["bytes"]


# Items and steps -----------------------------------------------------------------------------------------------------


def test_all_items_are_shown_where_none_is_chosen() -> None:
    root = CHECKPOINTS / "linen_train_state_composite" / "checkpoint"
    found = converter.inspect(root)
    items = {name: converter.inspect(root, item=name) for name in ("opt_state", "params")}
    assert found.checkpoint.kinds == {"config": "JSON", "opt_state": "pytree", "params": "pytree"}
    leaves = [(name, *path) for name, item in items.items() for path in item.checkpoint.tree]
    assert list(found.checkpoint.tree) == leaves
    assert found.parameters == items["params"].parameters
    assert "items           config (JSON), opt_state (pytree), params (pytree)" in found.text().splitlines()
    only = converter.inspect(root, filters=["params/**"])
    assert [path[0] for path in only.shown] == ["params"] * 4
    assert only.by_collection()["params"].leaves == 4


def test_many_steps_are_listed_in_short(tmp_path: Path) -> None:
    step = CHECKPOINTS / "linen_train_state_manager" / "checkpoint" / "1"
    for number in range(0, 2000, 100):
        shutil.copytree(step, tmp_path / "run" / str(number))
    found = converter.inspect(tmp_path / "run")
    assert "0, 100, 200, 300, …, 1600, 1700, 1800, 1900, 20 together (latest 1900)" in found.text()
    assert found.to_json()["steps"] == list(range(0, 2000, 100))


# Shardings -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layer = {"kernel": on_a_mesh((2, 4), "data", None), "bias": on_a_mesh((4,), ("data", "model"))}
    place = tmp_path_factory.mktemp("sharded") / "saved"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(place, {"params": {"layers_0": layer, "layers_1": layer, "plain": jnp.ones(2)}})
    return place


def test_shardings_are_shown_where_they_are_noted(sharded: Path) -> None:
    found = converter.inspect(sharded)
    lines = found.text().splitlines()
    assert "mesh        data=1, model=1" in lines
    assert "params/layers_{0…1}/bias    float32[4]    P(('data', 'model'))" in lines
    assert "params/layers_{0…1}/kernel  float32[2,4]  P('data', None)" in lines
    assert "params/plain                float32[2]" in lines
    leaves = {leaf["path"]: leaf.get("sharding") for leaf in found.to_json()["leaves"]}
    mesh = {"data": 1, "model": 1}
    assert leaves["params/layers_0/kernel"] == {"mesh": mesh, "partition": ["data", None]}
    assert json.loads(json.dumps(leaves["params/layers_0/bias"]))["partition"] == [["data", "model"]]
    assert leaves["params/plain"] is None
    assert any(line.endswith("P('data', None)") for line in found.text(tree=True).splitlines())


def test_shardings_are_not_parsed_where_there_is_no_mesh(monkeypatch: pytest.MonkeyPatch, sharded: Path) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("converter.formats.orbax.metadata._read_shardings", forbidden)
    assert "P(" not in converter.inspect(CHECKPOINTS / "nnx_encoder_pytree" / "checkpoint").text()
    with pytest.raises(AssertionError, match="parsed"):
        converter.inspect(sharded).text()


@pytest.mark.parametrize("damage", ['{"x": 1, "NamedSharding": []}', "NamedSharding", "[]"])
def test_damaged_shardings_are_left_out(damage: str, sharded: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded, tmp_path / "copy")
    (tmp_path / "copy" / "_sharding").write_text(damage)
    assert "P(" not in converter.inspect(tmp_path / "copy").text()


# Versions ------------------------------------------------------------------------------------------------------------


def test_what_the_installed_orbax_writes(sharded: Path) -> None:
    version = converter.inspect(sharded).checkpoint.facts["version"]
    assert within(version, ocp.__version__), version


def within(text: str, version: str) -> bool:
    """Whether the bounds that are told hold a version."""

    def number(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    bounds = text.removeprefix("as Orbax ").removesuffix(" writes it")
    if bounds.startswith("up to "):
        return number(version) <= number(bounds.removeprefix("up to "))
    if bounds.endswith(" or later"):
        return number(version) >= number(bounds.removesuffix(" or later"))
    first, last = bounds.split(" to ")
    return number(first) <= number(version) <= number(last)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs the checkpoint corpus in ../shared/corpus")
def test_the_versions_that_wrote_the_corpus_are_within_the_bounds() -> None:
    told: dict[str, set[str]] = {}
    for file in sorted(CORPUS.glob("*/how.json")):
        how = json.loads(file.read_text())
        wrote = how.get("versions", {}).get("orbax-checkpoint")
        root = file.parent / "ckpt"
        if "FAILED" in how or not wrote or not root.is_dir() or not FORMATS["orbax"].sniff(root):
            continue
        version = converter.inspect(root).checkpoint.facts.get("version")
        if version is not None:
            assert within(version, wrote), (file.parent.name, version)
            told.setdefault(wrote, set()).add(version)
    assert all(len(versions) == 1 for versions in told.values())
    assert len(told) > 4


def test_files_that_contradict_each_other_tell_no_version(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINTS / "linen_dense_standard" / "checkpoint", tmp_path / "copy")
    (tmp_path / "copy" / "checkpoint").write_bytes(b"\x80")  # an empty map, as Orbax wrote beside arrays until 0.5.15
    assert "version" not in converter.inspect(tmp_path / "copy").checkpoint.facts
