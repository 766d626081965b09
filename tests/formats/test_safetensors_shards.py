"""Directories of safetensors files: the library reads each of them, and all together give back the tree exactly."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.flax
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import converter
from converter.errors import DestinationError, UnreadableCheckpoint, UnsupportedCheckpoint, UsageError
from converter.formats import FORMATS, open_checkpoint
from converter.formats.checkpoint import Writing
from converter.paths import Path
from converter.tree import Tree
from tests.building import prng_key, tree_of
from tests.formats.odd_paths import PATHS, tree_at

SAFETENSORS = FORMATS["safetensors"]
INDEX = "model.safetensors.index.json"

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(tree: Tree, place: FilePath, most: int, metadata: Any = None) -> FilePath:
    writing = Writing(max_shard=most, metadata=metadata or {})
    SAFETENSORS.write(tree, place, lambda *_: None, writing=writing)
    return place


def loaded(directory: FilePath) -> dict[str, dict[str, np.ndarray]]:
    """What the library reads, by file."""
    return {file.name: safetensors.numpy.load_file(file) for file in sorted(directory.glob("*.safetensors"))}


@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=8), most=st.integers(1, 200))
@many
def test_every_array_lies_in_one_file_of_the_size_asked_for(
    sizes: list[int], most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arrays = {str(at): np.arange(size, dtype=np.int8) for at, size in enumerate(sizes)}
    place = write(tree_of({"a": arrays}), tmp_path_factory.mktemp("tree") / "out", most)
    files = loaded(place)
    for held in files.values():
        taken = [array.nbytes for array in held.values() if array.nbytes]
        assert len(taken) <= 1 or sum(taken) <= most
    pairs = [(name, array.tobytes()) for held in files.values() for name, array in held.items()]
    assert sorted(pairs) == sorted((f"a.{name}", array.tobytes()) for name, array in arrays.items())
    if len(files) == 1:
        assert [file.name for file in place.iterdir()] == ["model.safetensors"]
        return
    count = len(files)
    assert list(files) == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    index = json.loads((place / INDEX).read_text())
    assert index["metadata"] == {"total_size": sum(sizes)}
    assert index["weight_map"] == {name: file for file, held in files.items() for name in held}


@given(PATHS, st.sampled_from([1, 8, 9, 1000]))
@example({("a", "b.c"): "array", ("a.b", "c"): "array", ("a", "b", "c"): "array"}, 1)
@example({("none",): "none", ("a",): "array", ("b", "none"): "none", ("b.dict",): "dict", ("b", "c"): "array"}, 1)
@settings(many, max_examples=200)
def test_paths_come_back_with_every_kind_of_key(
    tmp_path_factory: pytest.TempPathFactory, paths: dict[Path, str], most: int
) -> None:
    tree = tree_at(paths)
    place = write(tree, tmp_path_factory.mktemp("paths") / "out", most)
    found = open_checkpoint(place).tree
    described = {path: ([type(key) for key in path], leaf.spec) for path, leaf in tree.items()}
    assert {path: ([type(key) for key in path], leaf.spec) for path, leaf in found.items()} == described
    assert all(repr(leaf.fetch()) == repr(found[path].fetch()) for path, leaf in tree.items())
    for file in place.glob("*.safetensors"):
        safetensors.deserialize(file.read_bytes())


@pytest.mark.parametrize("name", ["safetensors", "hf-msgpack"])
def test_containers_without_leaves_at_the_beginning_are_not_lost(name: str, tmp_path: FilePath) -> None:
    """Alone in a file they would be in none that the index names."""
    tree = tree_of({"first": {}, "a": np.ones(9, np.int8), "b": np.ones(9, np.int8), "last": {}})
    FORMATS[name].write(tree, tmp_path / "out", lambda *_: None, writing=Writing(max_shard=4))
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert set(open_checkpoint(tmp_path / "out").tree) == set(tree)


def test_the_library_reads_each_file_and_all_say_where_they_come_from(tmp_path: FilePath) -> None:
    nested = {"a": {"kernel": np.arange(6, dtype=np.float32)}, "b": np.ones(12, ml_dtypes.bfloat16), "n": 3}
    record = {"source": {"name": "run"}, "version": "1", "direction": "nnx-to-linen"}
    place = write(tree_of(nested), tmp_path / "out", 24, {"flax_convert": record})
    expected = {"model-00001-of-00003.safetensors": "a.kernel", "model-00002-of-00003.safetensors": "b"}
    for file, name in expected.items():
        with safetensors.safe_open(place / file, "flax") as opened:
            assert opened.metadata()["format"] == "flax"
            assert json.loads(opened.metadata()["flax_convert.from"]) == record
        found = safetensors.flax.load_file(place / file)
        assert list(found) == [name]
    assert json.loads((place / INDEX).read_text())["metadata"] == {"total_size": 24 + 24 + 8}
    facts = open_checkpoint(place).facts
    assert facts["shards"] == "3"
    assert facts["converted from"].startswith("run (")


def test_many_parts_are_as_one_file(tmp_path: FilePath) -> None:
    """Also where larger arrays are copied, and with a budget that is smaller than they are."""
    arrays = {f"layer_{n}": {"kernel": np.full((300, 100), n, np.float32)} for n in range(5)}
    FORMATS["msgpack"].write(tree_of(arrays), tmp_path / "source", lambda *_: None)
    converter.convert(tmp_path / "source", tmp_path / "one.safetensors", "nnx")
    options: Any = {"to_format": "safetensors", "max_shard_size": 250_000, "memory_budget": "1MiB"}
    report = converter.convert(tmp_path / "source", tmp_path / "many", "nnx", **options, verify="full")
    assert report.written is not None
    assert report.written.copied == 600_000
    assert report.values is not None
    assert report.values.reader == "safetensors"
    one, *shards = (loaded(tmp_path)["one.safetensors"], *loaded(tmp_path / "many").values())
    assert [len(shard) for shard in shards] == [2, 2, 1]
    merged = {name: array for shard in shards for name, array in shard.items()}
    assert {name: array.tobytes() for name, array in merged.items()} == {n: a.tobytes() for n, a in one.items()}
    converter.convert(tmp_path / "source", tmp_path / "again", "nnx", **options)
    assert {file.name: file.read_bytes() for file in (tmp_path / "many").iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()
    }


# What is refused -----------------------------------------------------------------------------------------------------


def test_a_name_of_one_file_is_no_directory_of_shards(tmp_path: FilePath) -> None:
    FORMATS["msgpack"].write(tree_of({"a": np.ones(3)}), tmp_path / "source", lambda *_: None)
    with pytest.raises(UsageError, match="is the name of one file") as refused:
        converter.convert(tmp_path / "source", tmp_path / "out.safetensors", "nnx", max_shard_size="1GB")
    assert "Name a directory" in refused.value.advice
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_more_shards_than_names(monkeypatch: pytest.MonkeyPatch, tmp_path: FilePath) -> None:
    monkeypatch.setattr("converter.formats.several_files.MOST_FILES", 2)
    with pytest.raises(UsageError, match="would have 3 files: expected 2"):
        write(tree_of([np.ones(2)] * 3), tmp_path / "out", 1)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_refused(tmp_path: FilePath) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DestinationError, match="exists already"):
        write(tree_of({"a": np.ones(1)}), tmp_path / "out", 1)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_no_file_can_hold_is_refused_before_anything_is_written(tmp_path: FilePath) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="b: key<threefry2x32>"):
        write(tree_of({"a": np.ones(3), "b": prng_key()}), tmp_path / "out", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_cut_meanwhile_leaves_no_shard_behind(tmp_path: FilePath) -> None:
    arrays = {name: np.ones(50_000, np.float32) for name in "abc"}
    SAFETENSORS.write(tree_of(arrays), tmp_path / "source", lambda *_: None)
    tree = open_checkpoint(tmp_path / "source").tree
    with (tmp_path / "source").open("r+b") as stream:
        stream.truncate(300_000)
    with pytest.raises(UnreadableCheckpoint):
        write(tree, tmp_path / "out", 1)
    assert [each.name for each in tmp_path.iterdir()] == ["source"]
