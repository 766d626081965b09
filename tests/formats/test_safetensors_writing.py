"""Writing safetensors files: the bytes are the library's, wherever leaves come from, and paths come back exactly."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.flax
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import converter
from converter import scratch
from converter.errors import DestinationError, UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats import FORMATS, one_file, open_checkpoint
from converter.formats.checkpoint import PLAIN, Strategy, Writing
from converter.formats.safetensors.header import spell_header
from converter.paths import IndexKey, IntKey, Path
from converter.tree import LazyLeaf, LeafKind, LeafSpec, Tree
from tests.building import PrngKey, prng_key, tree_of
from tests.formats.odd_paths import PATHS, tree_at

SAFETENSORS, MSGPACK, ORBAX = FORMATS["safetensors"], FORMATS["msgpack"], FORMATS["orbax"]

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

DTYPES = ("float32", "bfloat16", "float16", "float8_e5m2", "float8_e4m3fn", "bool", "int64", "uint8", "uint16")

SOURCES = ("memory", "msgpack", "safetensors", "orbax", "orbax compressed")


def quiet(nbytes: int, leaves: int) -> None:
    pass


@contextlib.contextmanager
def memory(directory: FilePath, nbytes: int, copy: int) -> Iterator[None]:
    """Room for so many bytes at a time; arrays of ``copy`` bytes or more are copied by the system."""
    with scratch.room(directory, 0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch._room, "limit", nbytes)
        patch.setattr(one_file, "LEAST_COPY", copy)
        yield


def source(kind: str, nested: dict[str, Any], directory: FilePath) -> Tree:
    """The tree, lying there in one of many ways."""
    place = directory / "source"
    match kind:
        case "memory":
            return tree_of(nested)
        case "msgpack":
            place.write_bytes(flax.serialization.msgpack_serialize(nested))
            return MSGPACK.open(place).tree
        case "safetensors":
            SAFETENSORS.write(tree_of(nested), place, quiet)
            return SAFETENSORS.open(place).tree
        case _:
            ORBAX.write(tree_of(nested), place, quiet, writing=Writing(compress=kind.endswith("compressed")))
            return ORBAX.open(place).tree


def written(tree: Tree, directory: FilePath) -> bytes:
    file = directory / "written"
    file.unlink(missing_ok=True)
    SAFETENSORS.write(tree, file, quiet)
    return file.read_bytes()


def flat(nested: dict[str, Any]) -> dict[str, Any]:
    return {".".join(path): leaf.fetch() for path, leaf in tree_of(nested).items()}


def as_the_library(data: bytes, nested: dict[str, Any]) -> bytes:
    """What the library makes of the same arrays and metadata; releases of it differ in the order of the latter."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    made = safetensors.numpy.save(flat(nested), {"a": "b"})
    begin = json.dumps({"__metadata__": metadata}, ensure_ascii=False, separators=(",", ":"))[:-1]
    text = made[8 : 8 + int.from_bytes(made[:8], "little")]
    text = text.rstrip().replace(b'{"__metadata__":{"a":"b"}', begin.encode(), 1)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + made[8 + int.from_bytes(made[:8], "little") :]


ARRAYS = st.builds(
    lambda dtype, shape, seed: np.asarray(np.random.default_rng(seed).integers(0, 8, shape)).astype(
        getattr(ml_dtypes, dtype, dtype)
    ),
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 6), max_size=3).map(tuple),
    st.integers(0, 100),
)
NAMES = st.text('abcé01_~"\\\n', min_size=1, max_size=3)
NESTED = st.dictionaries(NAMES, ARRAYS | st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=4), min_size=1, max_size=5)


@pytest.mark.parametrize("kind", SOURCES)
@given(NESTED, st.sampled_from([1, 50, 1 << 16]), st.sampled_from([1, 60, 1 << 20]))
@many
def test_any_tree(
    kind: str, tmp_path_factory: pytest.TempPathFactory, nested: dict[str, Any], copy: int, room: int
) -> None:
    directory = tmp_path_factory.mktemp("tree")
    tree = source(kind, nested, directory)
    with memory(directory, room, copy):
        data = written(tree, directory)
        assert data == as_the_library(data, nested)


LARGE = {
    "rows": np.random.default_rng(0).standard_normal((600, 50)),
    "odd": np.arange(301 * 333, dtype=np.float32).reshape(301, 333),
    "flat": np.arange(70_000).astype(ml_dtypes.bfloat16),
    "deep": {"small": np.ones(3, np.float32), "zeros": np.zeros((2, 3, 20_000), np.float32)},
}
"""Arrays of more than the 64 KiB from which on the system copies."""


@pytest.mark.parametrize("kind", SOURCES)
def test_large_arrays(kind: str, tmp_path: FilePath) -> None:
    tree = source(kind, LARGE, tmp_path)
    copied = [way for way in SAFETENSORS.strategies(tree, PLAIN).values() if way is Strategy.COPY]
    assert len(copied) == (4 if kind in ("msgpack", "safetensors", "orbax") else 0)
    for budget in (1, 1 << 30):
        with scratch.room(tmp_path, budget):
            data = written(tree, tmp_path)
        assert data == as_the_library(data, LARGE)
    found = SAFETENSORS.write(tree, tmp_path / "again", quiet)
    large = sum(array.nbytes for array in flat(LARGE).values()) - 12
    assert (found.copied, found.streamed) == ((large, 12) if copied else (0, large + 12))


@pytest.mark.parametrize("format", ["orbax", "msgpack"])
def test_it_is_copied_from(format: str, tmp_path: FilePath) -> None:
    SAFETENSORS.write(tree_of(LARGE), tmp_path / "source", quiet)
    tree = open_checkpoint(tmp_path / "source").tree
    target = FORMATS[format]
    assert list(target.strategies(tree, PLAIN).values()).count(Strategy.COPY) == (5 if format == "orbax" else 4)
    assert target.write(tree, tmp_path / "out", quiet).linked == 0
    found = target.open(tmp_path / "out").tree
    assert {path: leaf.fetch().tobytes() for path, leaf in found.items()} == {
        path: leaf.fetch().tobytes() for path, leaf in tree_of(LARGE).items()
    }


def test_real_loaders_read_it(tmp_path: FilePath) -> None:
    nested = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.ones(2, ml_dtypes.bfloat16)}
    SAFETENSORS.write(tree_of(nested), tmp_path / "out", quiet)
    for loader in (safetensors.numpy.load_file, safetensors.flax.load_file):
        found = loader(tmp_path / "out")
        assert found.keys() == {"a.kernel", "b"}
        for name, array in flat(nested).items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(np.asarray(found[name]), array)
    with safetensors.safe_open(tmp_path / "out", "np") as opened:
        assert opened.metadata()["format"] == "flax"
        assert set(opened.metadata()) == {"format", "flax_convert.version", "flax_convert.tree"}


# Paths ---------------------------------------------------------------------------------------------------------------


@given(PATHS)
@example({("a", "b.c"): "array", ("a.b", "c"): "array", ("a", "b", "c"): "array"})
@example({("__metadata__",): "array"})
@example({("a", IntKey("0")): "array", ("a", "1"): "array", ("b", IndexKey("0")): "array"})
@example({(): "array"})
@settings(many, max_examples=300)
def test_paths_come_back_with_every_kind_of_key(
    tmp_path_factory: pytest.TempPathFactory, paths: dict[Path, str]
) -> None:
    tree = tree_at(paths)
    file = tmp_path_factory.mktemp("paths") / "a"
    SAFETENSORS.write(tree, file, quiet)
    found = open_checkpoint(file).tree
    described = {path: ([type(key) for key in path], leaf.spec) for path, leaf in tree.items()}
    assert {path: ([type(key) for key in path], leaf.spec) for path, leaf in found.items()} == described
    safetensors.deserialize(file.read_bytes())


def test_lists_take_little_room(tmp_path: FilePath) -> None:
    """What numeric keys are is noted once for each container, not for each array."""
    layer = {"kernel": np.ones(1, np.int8), "bias": np.ones(1, np.int8)}
    SAFETENSORS.write(tree_of({"layers": dict(enumerate([layer] * 20)), "opt": [layer] * 3}), tmp_path / "a", quiet)
    with safetensors.safe_open(tmp_path / "a", "np") as opened:
        told = json.loads(opened.metadata()["flax_convert.tree"])
    assert told == {"separator": ".", "ints": ["layers"], "positions": ["opt"]}


# Leaves that are no arrays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [0, -(2**63), 2**63 - 1, 2**63, 2**64 - 1, True, False, 0.1, -0.0, float("inf"), float("nan")], ids=str
)
def test_python_numbers_come_back(value: Any, tmp_path: FilePath) -> None:
    SAFETENSORS.write(tree_of({"a": {"n": value}, "b": np.ones(2)}), tmp_path / "a", quiet)
    leaf = open_checkpoint(tmp_path / "a").tree[("a", "n")]
    assert leaf.spec == LeafSpec(LeafKind.SCALAR, type(value).__name__)
    assert repr(leaf.fetch()) == repr(value)
    found = safetensors.numpy.load_file(tmp_path / "a")["a.n"]
    assert found.shape == ()
    assert repr(found.item()) == repr(value)


def test_numpy_scalars_come_back(tmp_path: FilePath) -> None:
    spec = LeafSpec(LeafKind.NUMPY_SCALAR, "bfloat16")
    SAFETENSORS.write(Tree([(("a",), LazyLeaf(spec, lambda: ml_dtypes.bfloat16(1.5)))]), tmp_path / "a", quiet)
    leaf = open_checkpoint(tmp_path / "a").tree[("a",)]
    assert leaf.spec == spec
    assert leaf.fetch() == 1.5


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (prng_key(), "key<threefry2x32>[] is a typed PRNG key, for which safetensors has no form"),
        (PrngKey(np.zeros((2, 4), np.uint32), "rbg"), "key<rbg>[2] is a typed PRNG key"),
        (np.ones(2, ml_dtypes.int4), "int4[2] has a dtype that safetensors does not have"),
        (np.ones(2, np.complex128), "complex128[2] has a dtype"),
        (1j, "complex is a Python number for which safetensors has no dtype"),
        (2**64, "int needs more than 64 bits"),
        (-(2**63) - 1, "int needs more than 64 bits"),
        ("text", "str is text, and safetensors holds arrays only"),
        (b"bytes", "bytes is text"),
    ],
    ids=str,
)
def test_what_it_cannot_hold_is_refused(value: Any, words: str, tmp_path: FilePath) -> None:
    tree = tree_of({"params": {"kernel": np.ones(2), "odd": value}})
    assert list(SAFETENSORS.objections(tree)) == [("params", "odd")]
    with pytest.raises(UnsupportedCheckpoint) as refused:
        SAFETENSORS.write(tree, tmp_path / "a", quiet)
    assert f"params/odd: {words}" in str(refused.value)
    assert "--drop 'params/odd'" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_unicode(tmp_path: FilePath) -> None:
    tree = tree_of({"\ud800": np.ones(1)})
    assert SAFETENSORS.objections(tree) == {("\ud800",): "has a name that is no Unicode text"}


def test_a_header_that_nobody_would_read(monkeypatch: pytest.MonkeyPatch, tmp_path: FilePath) -> None:
    monkeypatch.setattr("converter.formats.safetensors.header.MAX_HEADER", 400)
    with pytest.raises(UnsupportedCheckpoint, match=r"the header would have \d+ bytes, and safetensors reads 400"):
        SAFETENSORS.write(tree_of({"a" * 400: np.ones(1)}), tmp_path / "a", quiet)
    assert list(tmp_path.iterdir()) == []


# The file ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(9))
def test_arrays_are_aligned(length: int) -> None:
    header = spell_header([("a" * length, "uint64", (1,)), ("b", "int8", (3,))], {})
    assert len(header) % 8 == 0
    assert int.from_bytes(header[:8], "little") == len(header) - 8


def test_an_existing_file_is_refused(tmp_path: FilePath) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(DestinationError, match="exists already"):
        SAFETENSORS.write(tree_of({"a": np.ones(1)}), tmp_path / "a", quiet)
    assert (tmp_path / "a").read_text() == "mine"


def test_a_source_that_is_cut_meanwhile(tmp_path: FilePath) -> None:
    tree = source("safetensors", LARGE, tmp_path)
    with (tmp_path / "source").open("r+b") as stream:
        stream.truncate(300_000)
    with pytest.raises(UnreadableCheckpoint):
        written(tree, tmp_path)
    assert not (tmp_path / "written").exists()


def test_progress_counts_everything(tmp_path: FilePath) -> None:
    done = np.zeros(2, int)

    def count(nbytes: int, leaves: int) -> None:
        done[:] += (nbytes, leaves)

    tree = tree_of({**LARGE, "empty": {}, "none": None, "number": 3})
    SAFETENSORS.write(tree, tmp_path / "a", count)
    assert tuple(done) == (tree.nbytes, len(tree))


def test_provenance(tmp_path: FilePath) -> None:
    source = tmp_path / "source.msgpack"
    source.write_bytes(flax.serialization.to_bytes({"params": {"dense": {"kernel": np.ones((2, 3), np.float32)}}}))
    for name in ("one", "other"):
        converter.convert(source, tmp_path / f"{name}.safetensors", "nnx")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()
    with safetensors.safe_open(tmp_path / "one.safetensors", "numpy") as opened:
        noted = opened.metadata()
    record = json.loads(noted["flax_convert.from"])
    assert noted["format"] == "flax"
    assert (record["direction"], record["source"]["name"]) == ("linen-to-nnx", "source.msgpack")
    assert str(tmp_path) not in noted["flax_convert.from"]
    converter.convert(tmp_path / "one.safetensors", tmp_path / "back.safetensors", "linen")
    back = converter.inspect(tmp_path / "back.safetensors")
    assert back.checkpoint.facts["converted from"].endswith("nnx-to-linen; 1 earlier conversion")
    assert "flax_convert.from" not in back.checkpoint.facts["metadata"]


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"source": 1}', '{"source": {}}'])
def test_a_damaged_record_is_shown_as_it_is(text: str, tmp_path: FilePath) -> None:
    file = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(2)}, file, {"flax_convert.from": text})
    facts = converter.inspect(file).checkpoint.facts
    assert "flax_convert.from" in facts.get("metadata", "") or "converted from" in facts
