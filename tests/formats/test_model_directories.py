"""Directories of Hugging Face's: one msgpack file, or shards with an index, read and written without transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import converter
from converter.errors import ConversionRefused, UnreadableCheckpoint, UnsupportedCheckpoint, UsageError
from converter.formats import FORMATS, open_checkpoint
from converter.formats.checkpoint import Writing
from fixtures.make import CHECKPOINTS
from tests.building import tree_of

FORMAT = FORMATS["hf-msgpack"]
SHARDS = CHECKPOINTS / "linen_params_hf_shards" / "checkpoint"
INDEX = "flax_model.msgpack.index.json"


def write(nested: Any, place: Path, max_shard: int | None = None) -> Path:
    FORMAT.write(tree_of(nested), place, lambda *_: None, writing=Writing(max_shard=max_shard))
    return place


def restored(directory: Path) -> dict[tuple[str, ...], Any]:
    """What flax reads from all files, by flat keys."""
    found: dict[tuple[str, ...], Any] = {}
    for file in sorted(directory.glob("*.msgpack")):
        part = flatten_dict(serialization.msgpack_restore(file.read_bytes()))
        assert not part.keys() & found.keys()
        found |= part
    return found


NESTED = {"layer": {str(number): {"kernel": np.full((3, 4), number, np.float32)} for number in range(5)}}


def test_one_file_is_what_flax_writes(tmp_path: Path):
    write(NESTED, tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["flax_model.msgpack"]
    assert (tmp_path / "out/flax_model.msgpack").read_bytes() == serialization.to_bytes(NESTED)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8), most=st.integers(1, 200))
def test_shards_hold_every_array_once_and_no_more_than_asked_for(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int
):
    place = tmp_path_factory.mktemp("model") / "out"
    nested = {"a": {str(at): np.arange(size, dtype=np.int8) for at, size in enumerate(sizes)}}
    write(nested, place, most)
    found = restored(place)
    assert {key: value.tobytes() for key, value in found.items()} == {
        key: value.tobytes() for key, value in flatten_dict(nested).items()
    }
    files = sorted(place.glob("*.msgpack"))
    for file in files:
        held = flatten_dict(serialization.msgpack_restore(file.read_bytes()))
        assert len(held) == 1 or sum(value.nbytes for value in held.values()) <= most
    tree = open_checkpoint(place).tree
    assert list(tree) == list(flatten_dict(nested))
    if len(files) > 1:
        index = json.loads((place / INDEX).read_text())
        assert index["metadata"] == {"total_size": sum(sizes)}
        assert {name: (place / file).is_file() for name, file in index["weight_map"].items()} == {
            "/".join(key): True for key in found
        }


def test_shards_are_copied_and_compared_like_any_file(tmp_path: Path):
    report = converter.convert(SHARDS, tmp_path / "nnx", "nnx")
    assert report.ok
    report = converter.convert(
        tmp_path / "nnx", tmp_path / "out", "linen", to_format="hf-msgpack", max_shard_size="1kB", verify="full"
    )
    assert report.values is not None
    assert report.values.reader == "Flax"
    assert converter.verify(tmp_path / "nnx", tmp_path / "out").ok
    assert converter.verify(SHARDS, tmp_path / "nnx").ok


@pytest.mark.parametrize("name", ["", INDEX])
def test_the_directory_stands_for_its_index(name: str):
    found = open_checkpoint(SHARDS / name)
    assert found.location == SHARDS / INDEX
    assert found.facts["shards"] == "3"
    assert {file.name for file in found.files} == {each.name for each in SHARDS.iterdir()}


def _without_shard(place: Path) -> None:
    (place / "flax_model-00002-of-00003.msgpack").unlink()


def _without_index(place: Path) -> None:
    (place / INDEX).unlink()


def _renamed(place: Path) -> None:
    index = json.loads((place / INDEX).read_text())
    first = min(index["weight_map"])
    index["weight_map"]["other"] = index["weight_map"].pop(first)
    (place / INDEX).write_text(json.dumps(index))


def _no_json(place: Path) -> None:
    (place / INDEX).write_text("{")


def _outside(place: Path) -> None:
    (place / INDEX).write_text(json.dumps({"weight_map": {"a": "../secret.msgpack"}}))


def _of_torch(place: Path) -> None:
    (place / INDEX).write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))


def _cut_short(place: Path) -> None:
    file = place / "flax_model-00003-of-00003.msgpack"
    file.write_bytes(file.read_bytes()[:-5])


def _two_models(place: Path) -> None:
    shutil.copy(place / "flax_model-00001-of-00003.msgpack", place / "flax_model.msgpack")


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (_without_shard, UnreadableCheckpoint, "names flax_model-00002-of-00003.msgpack for"),
        (_without_index, UnreadableCheckpoint, f"no index that names them: expected {INDEX}"),
        (_renamed, UnreadableCheckpoint, "'other' is not in"),
        (_no_json, UnreadableCheckpoint, "expected JSON"),
        (_outside, UnreadableCheckpoint, "expected names of files beside it"),
        (_of_torch, UnsupportedCheckpoint, "which are not flax msgpack"),
        (_cut_short, UnreadableCheckpoint, "flax_model-00003-of-00003.msgpack"),
        (_two_models, UsageError, "holds several checkpoints"),
    ],
)
def test_damage_is_called_by_its_name(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], words: str
):
    place = tmp_path / "model"
    shutil.copytree(SHARDS, place)
    damage(place)
    with pytest.raises(error) as caught:
        open_checkpoint(place)
    assert words in str(caught.value)


def test_one_shard_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(UsageError, match="is shard 2 of 3 of a checkpoint\nName the index instead"):
        open_checkpoint(SHARDS / "flax_model-00002-of-00003.msgpack")
    shutil.copy(SHARDS / "flax_model-00002-of-00003.msgpack", tmp_path)
    with pytest.raises(UsageError, match="is not beside it"):
        open_checkpoint(tmp_path / "flax_model-00002-of-00003.msgpack")


def test_a_shard_of_the_source_is_never_the_destination():
    with pytest.raises(converter.DestinationError, match="is the source"):
        converter.convert(SHARDS / INDEX, SHARDS / "flax_model-00001-of-00003.msgpack", "nnx", force=True)


def test_only_linen_params_go_there(tmp_path: Path):
    with pytest.raises(UsageError, match="are Linen modules"):
        converter.convert(SHARDS, tmp_path / "out", "nnx", to_format="hf-msgpack")
    source = CHECKPOINTS / "nnx_composite" / "checkpoint"
    with pytest.raises(ConversionRefused, match="has no place in Linen params"):
        converter.convert(source, tmp_path / "out", "linen", to_format="hf-msgpack")
    report = converter.convert(source, tmp_path / "out", "linen", to_format="hf-msgpack", params_only=True)
    assert report.plan.target.title == "Linen params (without the collection level)"


def test_keys_with_slashes_have_no_name_in_an_index(tmp_path: Path):
    with pytest.raises(UnsupportedCheckpoint, match="a/b"):
        write({"a/b": np.ones(3), "c": np.ones(3)}, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["0", "many", "-3"])
def test_sizes_that_are_none(tmp_path: Path, size: str):
    nnx = CHECKPOINTS / "nnx_mlp_standard" / "checkpoint"
    with pytest.raises(UsageError, match="as the size of a shard"):
        converter.convert(nnx, tmp_path / "out", "linen", to_format="hf-msgpack", max_shard_size=size)
    with pytest.raises(UsageError, match="is not split into shards"):
        converter.convert(nnx, tmp_path / "out", "linen", max_shard_size="1GB")
