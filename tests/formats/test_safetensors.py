"""Reading safetensors files: those of the library as it reads them, and damaged ones refused by name."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter import scratch
from converter.errors import ConverterError, UnreadableCheckpoint, UnsupportedCheckpoint, UsageError
from converter.formats import open_checkpoint
from converter.formats.safetensors.header import DTYPES
from converter.paths import format_path
from converter.tree import Tree

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def numpy_type(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def _is_known(dtype: str) -> bool:
    try:
        safetensors.numpy.save({"a": np.zeros(1, numpy_type(dtype))})
    except Exception:
        return False
    return True


KNOWN = [dtype for dtype in DTYPES.values() if _is_known(dtype)]
"""The dtypes that the installed library can write."""


def array_of(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    """Random bits, NaNs included."""
    kind = numpy_type(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    data = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, size, np.uint8)
    return data.view(kind).reshape(shape)


def saved(place: Path, arrays: dict[str, Any], **metadata: str) -> Path:
    safetensors.numpy.save_file(arrays, place, metadata or None)
    return place


def values(tree: Tree) -> dict[str, Any]:
    return {format_path(path): leaf.fetch() for path, leaf in tree.items()}


def assert_equal(found: Any, expected: Any) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


# What the library writes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4), (5,)], ids=str)
def test_every_dtype(shape: tuple[int, ...], tmp_path: Path) -> None:
    assert {"bfloat16", "float8_e4m3fn", "float8_e5m2"} < set(KNOWN)
    arrays = {dtype: array_of(dtype, shape) for dtype in KNOWN}
    tree = open_checkpoint(saved(tmp_path / "a", arrays)).tree
    assert set(values(tree)) == set(KNOWN)
    for path, leaf in tree.items():
        assert_equal(leaf.fetch(), arrays[path[0]])


def test_an_array_that_is_larger_than_the_budget_lies_in_a_file(tmp_path: Path) -> None:
    array = array_of("float32", (300, 1000))
    tree = open_checkpoint(saved(tmp_path / "a", {"a": array})).tree
    with scratch.room(tmp_path, 1 << 20):
        found = tree[("a",)].fetch()
        assert scratch._mapping(found) is not None
        assert_equal(found, array)


@pytest.mark.parametrize(
    ("names", "paths"),
    [
        (["a.b.kernel", "a.c"], ["a/b/kernel", "a/c"]),
        (["a/b.5/kernel", "c"], ["a/b.5/kernel", "c"]),
        (["layers.0.kernel", "layers.10.kernel"], ["layers/0/kernel", "layers/10/kernel"]),
        (["a..b", ".c", "d."], ['a/""/b', '""/c', 'd/""']),
        (["", "x"], ['""', "x"]),
        (["~é\n.x"], ['"~\\u00e9\\n"/x']),
    ],
    ids=str,
)
def test_names_without_a_word_about_them(names: list[str], paths: list[str], tmp_path: Path) -> None:
    arrays = {name: np.full(2, number, np.float32) for number, name in enumerate(names)}
    found = open_checkpoint(saved(tmp_path / "a", arrays)).tree
    expected = {path: number for number, path in enumerate(paths)}
    assert {format_path(path): leaf.fetch()[0] for path, leaf in found.items()} == expected


def test_facts(tmp_path: Path) -> None:
    place = saved(tmp_path / "a", {"a/b": np.ones(2, np.float32)}, format="pt", author="somebody")
    facts = open_checkpoint(place).facts
    assert facts["names"] == "joined by slashes"
    assert facts["metadata"] == "author somebody, format pt"


@pytest.mark.parametrize("names", [("a", "a.b"), ("a", "a/b"), ("x.y.z", "x.y")], ids=str)
def test_a_name_that_is_the_beginning_of_another(names: tuple[str, ...], tmp_path: Path) -> None:
    place = saved(tmp_path / "a", {name: np.ones(1, np.int8) for name in names})
    with pytest.raises(UnsupportedCheckpoint, match=r"its names make no tree with (dots|slashes).*below the leaf"):
        open_checkpoint(place)


@pytest.mark.parametrize("option", [{"step": 3}, {"item": "params"}], ids=str)
def test_there_are_no_steps_and_items(option: dict[str, Any], tmp_path: Path) -> None:
    place = saved(tmp_path / "a", {"a": np.ones(1, np.int8)})
    with pytest.raises(UsageError, match=r"has no (step|item)"):
        open_checkpoint(place, **option)


def test_a_file_that_is_cut_after_it_was_opened(tmp_path: Path) -> None:
    place = saved(tmp_path / "a", {"a": np.ones(1000, np.float32)})
    tree = open_checkpoint(place).tree
    os.truncate(place, 2000)
    with pytest.raises(UnreadableCheckpoint, match="too short"):
        tree[("a",)].fetch()


# Damage --------------------------------------------------------------------------------------------------------------


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


EIGHT = bytes(8)
TWICE = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}'
DEEP = b'{"a":' + b"[" * 100_000

DAMAGED: dict[str, tuple[bytes, str]] = {
    "three bytes": (b"\x08\0\0", "expected the length of the header in 8 bytes, found a file of 3 bytes"),
    "a header of 4 EiB": (struct.pack("<Q", 1 << 62) + b"{}", "at most 100000000 bytes, found a length of"),
    "a header behind the end": (struct.pack("<Q", 100) + b"{}", "a header of 100 bytes, found 2 bytes"),
    "no JSON": (file_of(b"{nonsense}"), "a header in JSON, found no JSON"),
    "no object": (file_of(b"[1, 2]  "), "a JSON object as the header"),
    "no UTF-8": (file_of(b'{"\xff\xfe":1}'), "found bytes that are no UTF-8"),
    "half a character": (file_of(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", EIGHT), "names in Unicode"),
    "nested too deeply": (file_of(DEEP), "a header in JSON, found"),
    "NaN": (file_of(b'{"a":NaN}'), "NaN is none of its values"),
    "a name twice": (file_of(TWICE, EIGHT), "'a' twice"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "texts by name as __metadata__"),
    "metadata that are an array": (file_of({"__metadata__": entry()}, EIGHT), "texts by name as __metadata__"),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": [2]}}, EIGHT), "dtype, shape and data_offsets of 'a'"),
    "no entry": (file_of({"a": 3}, EIGHT), "dtype, shape and data_offsets of 'a'"),
    "a negative length": (file_of({"a": entry(shape=[-2])}, EIGHT), "the shape of 'a', found [-2]"),
    "a length that is true": (file_of({"a": entry(shape=[True, 2])}, EIGHT), "the shape of 'a'"),
    "a length of 2.0": (file_of({"a": entry(shape=[2.0])}, EIGHT), "the shape of 'a'"),
    "65 axes": (file_of({"a": entry(shape=[1] * 65)}, EIGHT), "at most 64 axes"),
    "one offset": (file_of({"a": entry(offsets=[8])}, EIGHT), "the first byte of 'a'"),
    "offsets backwards": (file_of({"a": entry(offsets=[8, 0])}, EIGHT), "the first byte of 'a'"),
    "an offset behind the end": (file_of({"a": entry(offsets=[8, 16])}, EIGHT), "8 bytes that belong to nothing"),
    "too few bytes": (
        file_of({"a": entry(shape=[3])}, EIGHT),
        "as many bytes for 'a' as float32[3] has, found 8 bytes",
    ),
    "too many elements": (file_of({"a": entry(shape=[0, 2**62])}, b""), "as many bytes for 'a'"),
    "more elements than fit": (file_of({"a": entry(shape=[2**40, 2**40])}, EIGHT), "as many bytes for 'a'"),
    "an overlap": (file_of({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "'b' to begin where 'a' ends"),
    "a hole": (file_of({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "4 bytes that belong to nothing"),
    "a hole at the beginning": (file_of({"a": entry(offsets=[4, 12])}, bytes(12)), "to begin where the header ends"),
    "cut short": (file_of({"a": entry()}, bytes(7)), "the end of the file, found a file of"),
    "bytes behind the last": (file_of({"a": entry()}, bytes(9)), "the end of the file, found a file of"),
    "a tree of numbers": (file_of({"__metadata__": {"flax_convert.tree": "3"}}), "flax-convert writes as"),
    "a tree without separator": (file_of({"__metadata__": {"flax_convert.tree": "{}"}}), "flax-convert writes as"),
    "a tree that is no JSON": (file_of({"__metadata__": {"flax_convert.tree": "{"}}), "flax-convert writes as"),
    "a tree of odd keys": (
        file_of({"__metadata__": {"flax_convert.tree": '{"separator":".","paths":{"a":[true]}}'}}),
        "flax-convert writes as",
    ),
    "odd containers": (
        file_of({"__metadata__": {"flax_convert.tree": '{"separator":".","empty":{"sack":["a"]}}'}}),
        "flax-convert writes as",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name: str, tmp_path: Path) -> None:
    data, words = DAMAGED[name]
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(UnreadableCheckpoint) as refused:
        open_checkpoint(tmp_path / "a.safetensors")
    assert words in str(refused.value)
    assert "a.safetensors is damaged" in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("name", [name for name in DAMAGED if "tree" not in name and name != "odd containers"])
def test_the_library_refuses_the_same(name: str) -> None:
    """All but this: it takes two entries of one name for one, if their bytes add up."""
    with pytest.raises(Exception):  # noqa: B017
        safetensors.deserialize(DAMAGED[name][0])


@pytest.mark.parametrize(
    ("dtype", "words"),
    [("F99", "'F99', which safetensors 0.8 does not have"), ("F4", "whose elements share bytes"), (3, "dtype 3")],
)
def test_dtypes_that_cannot_be_read(dtype: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(file_of({"layer.kernel": entry(dtype)}, EIGHT))
    with pytest.raises(UnsupportedCheckpoint) as refused:
        open_checkpoint(tmp_path / "a.safetensors")
    assert words in str(refused.value)
    assert "'layer.kernel'" in str(refused.value)


SAMPLE = safetensors.numpy.save(
    {"a.b": np.arange(6, dtype=np.float32), "a.c": np.ones((2, 2), np.int8), "d": np.full((), 3.0)},
    {"format": "flax", "flax_convert.tree": '{"separator":".","kinds":{"d":"float"},"empty":{"dict":["e"]}}'},
)


@given(st.integers(0, len(SAMPLE)))
@many
def test_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    place = tmp_path_factory.mktemp("cut") / "a.safetensors"
    place.write_bytes(SAMPLE[:length])
    if length == len(SAMPLE):
        assert len(open_checkpoint(place).tree) == 4
        return
    with pytest.raises(UnreadableCheckpoint):
        open_checkpoint(place)


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@many
def test_any_bytes_changed(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]) -> None:
    """Whatever was changed, all is read or an error says what is wrong; and what we read, the library reads so too."""
    data = bytearray(SAMPLE)
    for place, value in changes:
        data[place] = value
    file = tmp_path_factory.mktemp("changed") / "a.safetensors"
    file.write_bytes(data)
    try:
        tree = open_checkpoint(file).tree
    except ConverterError:
        return
    found = sorted(np.asarray(value).tobytes() for path, value in values(tree).items() if value is not None)
    assert found == sorted(bytes(held["data"]) for _, held in safetensors.deserialize(bytes(data)))


# Shards --------------------------------------------------------------------------------------------------------------

PARTS: dict[str, dict[str, Any]] = {
    "model-00001-of-00002.safetensors": {"a.kernel": array_of("float32", (3, 4)), "a.bias": array_of("float32", (4,))},
    "model-00002-of-00002.safetensors": {"b.kernel": array_of("bfloat16", (2, 2))},
}
INDEX = "model.safetensors.index.json"


def sharded(directory: Path, **others: str) -> Path:
    directory.mkdir()
    for file, arrays in PARTS.items():
        saved(directory / file, arrays, format="flax")
    named = {name: file for file, arrays in PARTS.items() for name in arrays} | others
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": named}))
    return directory


@pytest.mark.parametrize("named", ["", INDEX], ids=["directory", "index"])
def test_shards(named: str, tmp_path: Path) -> None:
    found = open_checkpoint(sharded(tmp_path / "model") / named)
    assert found.location == tmp_path / "model" / INDEX
    assert found.facts["shards"] == "2"
    expected = {name.replace(".", "/"): array for arrays in PARTS.values() for name, array in arrays.items()}
    assert values(found.tree).keys() == expected.keys()
    for path, value in values(found.tree).items():
        assert_equal(value, expected[path])


def _refused(error: type[ConverterError], path: Path, *words: str) -> None:
    with pytest.raises(error) as refused:
        open_checkpoint(path)
    for word in words:
        assert word in str(refused.value)


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    (sharded(tmp_path / "model") / "model-00002-of-00002.safetensors").unlink()
    _refused(UnreadableCheckpoint, tmp_path / "model", INDEX, "model-00002-of-00002.safetensors for 1 of its arrays")


def test_a_shard_that_is_damaged(tmp_path: Path) -> None:
    os.truncate(sharded(tmp_path / "model") / "model-00002-of-00002.safetensors", 70)
    _refused(UnreadableCheckpoint, tmp_path / "model", "model-00002-of-00002.safetensors is damaged")


def test_an_array_that_is_in_no_shard(tmp_path: Path) -> None:
    place = sharded(tmp_path / "model", **{"c.kernel": "model-00002-of-00002.safetensors"})
    _refused(UnreadableCheckpoint, place, "'c.kernel' is not in model-00002-of-00002.safetensors")


def test_an_array_that_is_in_another_shard(tmp_path: Path) -> None:
    place = sharded(tmp_path / "model", **dict(zip(["b.kernel", "a.bias"], PARTS, strict=True)))
    words = ("'b.kernel' is not in model-00001", "'a.bias' is not in model-00002", "'a.bias' is in model-00001")
    _refused(UnreadableCheckpoint, place, *words)


def test_an_array_that_is_in_two_shards(tmp_path: Path) -> None:
    place = sharded(tmp_path / "model")
    saved(place / "model-00002-of-00002.safetensors", {"b.kernel": np.ones(1), "a.bias": np.ones(1)})
    _refused(UnreadableCheckpoint, place, "'a.bias' is in model-00002-of-00002.safetensors too")


def test_an_array_that_the_index_does_not_name(tmp_path: Path) -> None:
    place = sharded(tmp_path / "model")
    saved(place / "model-00002-of-00002.safetensors", {"b.kernel": np.ones(1), "new": np.ones(1)})
    _refused(
        UnreadableCheckpoint, place, "'new' is in model-00002-of-00002.safetensors, and the index does not name it"
    )


def test_one_shard_is_no_checkpoint(tmp_path: Path) -> None:
    shard = sharded(tmp_path / "model") / "model-00001-of-00002.safetensors"
    _refused(UsageError, shard, "is shard 1 of 2", str(tmp_path / "model" / INDEX))
    (tmp_path / "model" / INDEX).unlink()
    _refused(UsageError, shard, "is shard 1 of 2", f"{INDEX} is not beside it")
    _refused(UnreadableCheckpoint, tmp_path / "model", "no index that names them", INDEX)
    only = saved(tmp_path / "model-00001-of-00001.safetensors", {"a": np.ones(1)})
    assert len(open_checkpoint(only).tree) == 1


def test_a_directory_of_one_file_and_of_several(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors", {"a": np.ones(1)})
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(tmp_path).location == tmp_path / "model.safetensors"
    other = saved(tmp_path / "other.safetensors", {"a": np.ones(1)})
    _refused(UsageError, tmp_path, "holds several checkpoints: model.safetensors, other.safetensors")
    other.rename(tmp_path / "flax_model.msgpack")
    _refused(UsageError, tmp_path, "holds several checkpoints: flax_model.msgpack, model.safetensors")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "as weight_map"),
        ("{", "expected JSON"),
        ('{"weight_map": {}}', "as weight_map"),
        ('{"weight_map": {"a": 3}}', "as weight_map"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "names of files beside it"),
        ('{"weight_map": {"a": "/etc/a.safetensors"}}', "names of files beside it"),
        ('{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}', "'a' twice"),
    ],
)
def test_a_damaged_index(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    _refused(UnreadableCheckpoint, tmp_path / INDEX, words, INDEX)


def test_an_index_of_other_files(tmp_path: Path) -> None:
    place = tmp_path / "pytorch_model.bin.index.json"
    place.write_text('{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}')
    _refused(UnsupportedCheckpoint, place, "pytorch_model-00001-of-00002.bin", "which are not safetensors")
