"""flax msgpack files: the same bytes as flax, the same values as flax, lazily, and clear errors for everything else."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize, to_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.errors import (
    ConverterError,
    DestinationError,
    UnreadableCheckpoint,
    UnsupportedCheckpoint,
    UsageError,
)
from converter.formats.msgpack import MsgpackFormat, writer
from converter.formats.msgpack.values import CHUNKED_ARRAY
from converter.formats.msgpack.wire import MAX_DEPTH
from converter.paths import IndexKey, IntKey, Key, Path, format_path
from converter.tree import LazyLeaf, Leaf, LeafKind, LeafSpec, Tree, array_spec, empty_spec, nest

ROOT = FilePath(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "corpus"
FORMAT = MsgpackFormat()

many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# Helpers ---------------------------------------------------------------------------------------------------------


def spec_of(value: Any) -> LeafSpec:
    match value:
        case None:
            return empty_spec("none")
        case dict() | list() | tuple():
            return empty_spec(type(value).__name__)
        case np.generic():
            return LeafSpec(LeafKind.NUMPY_SCALAR, value.dtype.name)
        case bool() | int() | float() | complex():
            return LeafSpec(LeafKind.SCALAR, type(value).__name__)
        case str() | bytes():
            return LeafSpec(LeafKind.TEXT, type(value).__name__)
        case _:
            return array_spec(value.dtype.name, value.shape)


def flatten(nested: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(nested, dict) and nested:
        for key, child in nested.items():
            yield from flatten(child, (*path, IntKey(key) if isinstance(key, int) else key))
    elif isinstance(nested, list | tuple) and nested:
        for position, child in enumerate(nested):
            yield from flatten(child, (*path, IndexKey(position)))
    else:
        yield path, nested


def tree_of(nested: Any) -> Tree:
    return Tree((path, LazyLeaf(spec_of(value), lambda value=value: value)) for path, value in flatten(nested))


def ignore_progress(nbytes: int, leaves: int) -> None:
    pass


def written(tree: Tree, directory: FilePath) -> bytes:
    file = directory / "written.msgpack"
    file.unlink(missing_ok=True)
    FORMAT.write(tree, file, ignore_progress)
    return file.read_bytes()


def opened(data: bytes, directory: FilePath) -> Tree:
    file = directory / "opened.msgpack"
    file.write_bytes(data)
    return FORMAT.open(file).tree


def fetched(tree: Tree) -> Any:
    """The tree as nested containers of values, as ``msgpack_restore`` gives it."""
    empty = {"none": None, "dict": {}, "list": []}
    return nest(
        (path, empty[leaf.spec.dtype] if leaf.spec.kind is LeafKind.EMPTY else leaf.fetch())
        for path, leaf in tree.items()
    )


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal in structure, order, types and bits."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, np.ndarray | np.generic):
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
    else:
        assert repr(ours) == repr(theirs)


# Any tree --------------------------------------------------------------------------------------------------------

DTYPES = [
    *(np.dtype(name) for name in ("bool", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32")),
    *(np.dtype(name) for name in ("float64", "complex64", "complex128", "datetime64[ns]")),
    *(np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")),
    *(np.dtype(getattr(ml_dtypes, name)) for name in ("int4", "uint4", "int2")),
]


def array(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(seed).integers(0, 2, shape)
    return np.asarray(values).astype(dtype)


arrays = st.builds(
    array,
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=4).map(tuple) | st.sampled_from([(255,), (300,), (70_000,)]),
    st.integers(0, 9),
)
leaves = st.one_of(
    arrays,
    arrays.filter(lambda values: values.ndim > 1).map(lambda values: values.T),
    st.sampled_from(DTYPES).map(lambda dtype: array(dtype, ())[()]),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from(
        [base + near for base in (-(2**31), -(2**15), -128, -32, 128, 2**16, 2**32) for near in (-1, 0, 1)]
    ),
    st.floats(),
    st.booleans(),
    st.complex_numbers(),
    st.text(max_size=40) | st.just("long " * 60),
    st.binary(max_size=40) | st.just(b"long " * 60),
    st.none(),
)
names = st.text(max_size=6) | st.sampled_from(["", "a/b", "a.b", "kernel", "0", "ключ", "k" * 32, "k" * 300])
trees = st.recursive(
    leaves,
    lambda children: (
        st.dictionaries(names, children, max_size=20)
        | st.lists(children, max_size=4)
        | st.lists(children, max_size=3).map(tuple)
    ),
    max_leaves=25,
)


@many
@given(trees)
def test_writes_the_bytes_of_flax(tmp_path: FilePath, nested: Any) -> None:
    assert written(tree_of(nested), tmp_path) == to_bytes(nested)


@many
@given(trees)
def test_reads_what_flax_reads(tmp_path: FilePath, nested: Any) -> None:
    data = to_bytes(nested)
    assert_same(fetched(opened(data, tmp_path)), msgpack_restore(data))


@many
@given(trees)
def test_writing_what_was_read_changes_nothing(tmp_path: FilePath, nested: Any) -> None:
    data = to_bytes(nested)
    assert written(opened(data, tmp_path), tmp_path) == data


@many
@given(arrays, st.sampled_from([1, 7, 8, 64]))
def test_splits_large_arrays_like_flax(tmp_path: FilePath, values: np.ndarray[Any, Any], limit: int) -> None:
    values = values.reshape(-1)[:1000] if values.ndim == 1 else values
    nested = {"a": {"large": values}, "scalar": np.complex128(3), "transposed": values.T}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flax.serialization, "MAX_CHUNK_SIZE", limit)
        patch.setattr(writer, "MAX_CHUNK_SIZE", limit)
        data = to_bytes(nested)
        assert written(tree_of(nested), tmp_path) == data
    tree = opened(data, tmp_path)
    assert tree["a", "large"].spec == array_spec(values.dtype.name, values.shape)
    assert_same(fetched(tree), msgpack_restore(data))


def test_writes_small_and_large_leaves_side_by_side(tmp_path: FilePath) -> None:
    """They are written by several threads, those of small leaves by one."""

    def layers(count: int) -> dict[str, Any]:
        return {f"layer_{number}": {"kernel": np.full((3, 5), number, np.float32)} for number in range(count)}

    large = {f"large_{number}": np.arange(500_000, dtype=np.int32) + number for number in range(3)}
    some = {f"some_{number}": np.full(30_000, number, np.int16) for number in range(40)}
    nested = {"a": layers(300), **large, "b": layers(200), **some, "c": layers(9000)}
    assert written(tree_of(nested), tmp_path) == to_bytes(nested)


def test_splits_a_single_large_array(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 100)
    monkeypatch.setattr(writer, "MAX_CHUNK_SIZE", 100)
    values = np.arange(60, dtype=np.int32).reshape(5, 12)
    data = msgpack_serialize(values)
    assert written(tree_of(values), tmp_path) == data
    assert_same(opened(data, tmp_path)[()].fetch(), values)


# Reading, case by case -------------------------------------------------------------------------------------------


def test_specs_and_keys(tmp_path: FilePath) -> None:
    data = msgpack_serialize(
        {
            "w": np.zeros((2, 3), ml_dtypes.bfloat16),
            "s": np.float32(1),
            "l": [1, 2.5],
            "e": {"d": {}, "l": [], "n": None},
        }
    )
    tree = opened(data, tmp_path)
    assert {format_path(path): str(leaf.spec) for path, leaf in tree.items()} == {
        "e/d": "{}",
        "e/l": "[]",
        "e/n": "None",
        "l/0": "int",
        "l/1": "float",
        "s": "float32()",
        "w": "bfloat16[2,3]",
    }
    assert isinstance(list(tree)[3][1], IndexKey)
    tree = opened(msgpack.packb({1: {-2: True}}), tmp_path)
    assert [type(key) for path in tree for key in path] == [IntKey, IntKey]
    assert list(tree) == [("1", "-2")]


@pytest.mark.parametrize("value", [7, "text", 1 + 2j, None, np.float32(0), np.zeros(()), np.zeros((0, 3))])
def test_a_single_value_has_the_empty_path(tmp_path: FilePath, value: Any) -> None:
    tree = opened(to_bytes(value), tmp_path)
    assert list(tree) == [()]
    assert_same(tree[()].fetch(), value)
    assert written(tree, tmp_path) == to_bytes(value)


FORMS = {
    "fixext 4": (b"\xd6\x02\x92\x01\xcc\x02", 1 + 2j),
    "fixext 16": (b"\xd8\x01\x93\x90\xa7float32\xc4\x04\0\0\x80\x3f", np.ones((), np.float32)),
    "ext 16": (b"\xc8\0\x0b\x01\x93\x91\x01\xa4int8\xc4\x01\x05", np.array([5], np.int8)),
    "ext 32": (b"\xc9\0\0\0\x0b\x03\x93\x90\xa5uint8\xc4\x01\x05", np.uint8(5)),
    "long headers": (
        b"\xdf\0\0\0\x01\xdb\0\0\0\x01a\xdd\0\0\0\x02\xd2\xff\xff\xff\xff\xca\x3f\x80\0\0",
        {"a": [-1, 1.0]},
    ),
    "array of the time before bytes had a type": (
        b"\xc7\x0a\x01\x93\x91\x01\xa4int8\xa1\x05",
        np.array([5], np.int8),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_reads_every_form(tmp_path: FilePath, form: str) -> None:
    data, value = FORMS[form]
    if form != "array of the time before bytes had a type":
        assert_same(msgpack_restore(data), value)
    assert_same(fetched(opened(data, tmp_path)), value)


def test_arrays_are_read_only_and_outlive_the_checkpoint(tmp_path: FilePath) -> None:
    def first_of_two() -> np.ndarray[Any, Any]:
        tree = opened(to_bytes({"a": np.arange(100_000), "b": np.arange(5)}), tmp_path)
        values: np.ndarray[Any, Any] = tree["a",].fetch()
        tree["b",].fetch()
        return values

    values = first_of_two()
    assert not values.flags.writeable
    assert np.array_equal(values, np.arange(100_000))


def test_a_file_that_shrinks_is_not_touched(tmp_path: FilePath) -> None:
    tree = opened(to_bytes({"a": np.zeros(100_000)}), tmp_path)
    os.truncate(tmp_path / "opened.msgpack", 100)
    with pytest.raises(UnreadableCheckpoint, match="shrank from 800"):
        tree["a",].fetch()


# Laziness --------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from converter.formats.msgpack import MsgpackFormat
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
before = peak()
tree = MsgpackFormat().open(Path(sys.argv[1])).tree
if sys.argv[2] == "all":
    assert not any(leaf.fetch().any() for leaf in tree.values())
elif sys.argv[2] == "last":
    assert list(tree.values())[-1].fetch() == 5
heavy = {"jax", "flax", "orbax", "tensorstore", "msgpack"} & set(sys.modules)
print(len(tree), peak() - before, *heavy)
"""


def sparse_file(file: FilePath, count: int, nbytes: int, *, last: bool) -> None:
    """A valid file with ``count`` arrays of ``nbytes`` zeros each, none of which takes space on the disk."""
    with file.open("wb") as stream:
        stream.write(b"\xde" + struct.pack(">H", count + last))
        for number in range(count):
            head = b"\x93\x91\xce" + struct.pack(">I", nbytes) + b"\xa5uint8\xc6" + struct.pack(">I", nbytes)
            stream.write(b"\xa4a%03d\xc9" % number + struct.pack(">I", len(head) + nbytes) + b"\x01" + head)
            stream.seek(nbytes, os.SEEK_CUR)
        if last:
            stream.write(b"\xa4last\x05")
        stream.truncate(stream.tell())


def measured(file: FilePath, fetch: str) -> tuple[int, float, list[str]]:
    if not FilePath("/proc/self/status").exists():
        pytest.skip("measures memory through /proc")
    command = [sys.executable, "-c", MEASURE, str(file), fetch]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return int(output[0]), float(output[1]), output[2:]


def test_opening_reads_no_payload(tmp_path: FilePath) -> None:
    file = tmp_path / "large.msgpack"
    sparse_file(file, 4, 2**31, last=True)
    leaves, megabytes, heavy = measured(file, "last")
    assert leaves == 5
    assert megabytes < 20
    assert not heavy, "reading needs numpy alone"


def test_reading_leaf_by_leaf_keeps_one_leaf_in_memory(tmp_path: FilePath) -> None:
    file = tmp_path / "large.msgpack"
    sparse_file(file, 16, 2**24, last=False)
    leaves, megabytes, _ = measured(file, "all")
    assert leaves == 16
    assert megabytes < 3 * 16 + 20


# Directories of steps --------------------------------------------------------------------------------------------


def save_steps(directory: FilePath, *names: str) -> None:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_bytes(to_bytes({"name": name}))


def test_the_latest_step_in_numeric_order(tmp_path: FilePath) -> None:
    save_steps(tmp_path, "checkpoint_9", "checkpoint_10", "checkpoint_1", "checkpoint_11.5", "checkpoint_tmp", "tmp99")
    (tmp_path / "checkpoint_77.orbax-checkpoint-tmp-1").write_bytes(b"\x80")
    (tmp_path / "checkpoint_10_gda").mkdir()
    (tmp_path / "events.out.tfevents.123").write_bytes(b"\x18\0\0\0")
    (tmp_path / "notes.txt").write_text("hello")
    assert FORMAT.sniff(tmp_path)
    checkpoint = FORMAT.open(tmp_path)
    assert (checkpoint.steps, checkpoint.step) == ((1, 9, 10), 10)
    assert checkpoint.path == tmp_path
    assert checkpoint.location == tmp_path / "checkpoint_10"
    assert checkpoint.format == "msgpack"
    assert "checkpoint_11.5" in " ".join(checkpoint.facts.values())
    assert checkpoint.tree["name",].fetch() == "checkpoint_10"
    assert FORMAT.open(tmp_path, step=9).tree["name",].fetch() == "checkpoint_9"


def test_any_prefix(tmp_path: FilePath) -> None:
    save_steps(tmp_path, "run2-model_003", "run2-model_020")
    assert FORMAT.open(tmp_path).steps == (3, 20)
    assert FORMAT.open(tmp_path).location.name == "run2-model_020"


def test_steps_that_cannot_be_chosen(tmp_path: FilePath) -> None:
    save_steps(tmp_path, "checkpoint_3", "checkpoint_5")
    with pytest.raises(UsageError, match="step 4 is not there; msgpack files: 3, 5"):
        FORMAT.open(tmp_path, step=4)
    with pytest.raises(UsageError, match="no item"):
        FORMAT.open(tmp_path, item="model")
    with pytest.raises(UsageError, match="single file"):
        FORMAT.open(tmp_path / "checkpoint_3", step=3)
    (tmp_path / "checkpoint_7").mkdir()
    with pytest.raises(UsageError, match="up to step 5 with directories up to step 7"):
        FORMAT.open(tmp_path)
    with pytest.raises(UsageError, match="step 7 is a directory"):
        FORMAT.open(tmp_path, step=7)
    assert FORMAT.open(tmp_path, step=5).step == 5
    save_steps(tmp_path, "G_3")
    with pytest.raises(UsageError, match="several series of checkpoints: G_3, checkpoint_5"):
        FORMAT.open(tmp_path)


def test_a_damaged_latest_step_is_not_passed_over(tmp_path: FilePath) -> None:
    save_steps(tmp_path, "checkpoint_3")
    (tmp_path / "checkpoint_4").touch()
    with pytest.raises(UnreadableCheckpoint, match="checkpoint_4 is empty"):
        FORMAT.open(tmp_path)


@pytest.mark.parametrize("marker", ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "checkpoint"])
def test_leaves_orbax_directories_alone(tmp_path: FilePath, marker: str) -> None:
    save_steps(tmp_path, "checkpoint_3", marker)
    assert not FORMAT.sniff(tmp_path)
    with pytest.raises(UnreadableCheckpoint, match="holds no flax msgpack checkpoint"):
        FORMAT.open(tmp_path)


# Recognising -----------------------------------------------------------------------------------------------------

OURS = {
    "an empty dict": to_bytes({}),
    "params": to_bytes({"params": {"kernel": np.zeros(3)}}),
    "many keys": to_bytes({str(number): 0 for number in range(70_000)}),
    "int keys": msgpack_serialize({0: {"kernel": np.zeros(3)}}),
    "array": to_bytes(np.zeros((3, 4))),
    "small array": to_bytes(np.ones((), np.float32)),
    "numpy scalar": to_bytes(np.float32(1)),
}
FOREIGN = {
    "empty": b"",
    "text": b"hello",
    "json": b'{"a": 1}',
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "hdf5": b"\x89HDF\r\n\x1a\n",
    "zip": b"PK\x03\x04",
    "gzip": b"\x1f\x8b\x08\0",
    "zstd": b"\x28\xb5\x2f\xfd",
    "safetensors": struct.pack("<Q", 64) + b'{"a":' + b" " * 60,
    "safetensors of an unlucky length": struct.pack("<Q", 0xA188) + b'{"a":' + b" " * 0xA188,
    "cut off": b"\x81",
    "int": b"\x05",
    **{f"pickle {protocol}": pickle.dumps({"params": [1]}, protocol) for protocol in range(2, 6)},
}


@pytest.mark.parametrize("name", [*OURS, *FOREIGN])
def test_sniff(tmp_path: FilePath, name: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(OURS.get(name, FOREIGN.get(name, b"")))
    assert FORMAT.sniff(file) == (name in OURS)
    assert not FORMAT.sniff(tmp_path)
    assert not FORMAT.sniff(tmp_path / "missing")


# Damaged and unsupported files -----------------------------------------------------------------------------------


def ext(code: int, *fields: Any) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(list(fields)))


def packed(value: Any) -> bytes:
    return msgpack.packb({"layer": {"w": value}})


def split(shape: Any, chunks: Any) -> bytes:
    return packed({CHUNKED_ARRAY: True, "shape": shape, "chunks": chunks})


ONES = ext(1, (2,), "float32", b"\0" * 8)
DAMAGED = {
    "trailing bytes": (to_bytes({"a": 1}) + b"\0\0", "byte 4 of 6: expected the end of the file, found 2 more bytes"),
    "absurd map": (b"\xdf\xff\xff\xff\xff" + b"\0" * 35, "found a map of 4294967295 entries, more than the bytes left"),
    "absurd array": (b"\xdd\xff\xff\xff\xff" + b"\0" * 35, "found an array of 4294967295 entries"),
    "absurd text": (b"\xdb\xff\xff\xff\xff" + b"\0" * 35, "found 4294967295 bytes of text"),
    "absurd extension": (b"\xc9\xff\xff\xff\xff\x01" + b"\0" * 35, "found 4294967295 bytes of extension type 1"),
    "no value": (b"\x82\xa1a\x01\xa1b", "byte 6 of 6 (b): expected 1 more byte of a msgpack value, found the end of"),
    "unused byte": (b"\x81\xa1a\xc1", "expected the start of a msgpack value, found the byte 0xc1"),
    "key not UTF-8": (b"\x81\xa3a\xff\xfe\x01", "byte 3 of 6: expected a key in UTF-8, found the bytes b'\\xff\\xfe'"),
    "key twice": (b"\x82\xa1a\x01\xa1a\x02", "expected each key of a map only once, found the key 'a' again"),
    "too deep": (b"\x81\xa1a" * (MAX_DEPTH + 1) + b"\0", "expected at most 512 containers inside each other"),
    "far too deep": (b"\x91" * 1_000_000 + b"\0", "expected at most 512 containers inside each other"),
    "shape too small": (
        packed(ext(1, (2, 3), "int8", b"12345")),
        "(layer/w): expected a shape that fits 5 bytes of data",
    ),
    "shape too large": (packed(ext(1, (2**40, 2**40), "int8", b"1")), "found int8[1099511627776,1099511627776]"),
    "zero-size shape too large": (packed(ext(1, (0, 2**63), "int8", b"")), "found int8[0,9223372036854775808]"),
    "negative shape": (packed(ext(1, (-1, -3), "int8", b"123")), "expected a shape without negative lengths"),
    "too many axes": (packed(ext(1, (1,) * 65, "int8", b"1")), "expected at most 64 axes"),
    "absurd axes": (
        packed(msgpack.ExtType(1, b"\x93\xdd\xff\xff\xff\xff")),
        "an array of 4294967295 entries, more than",
    ),
    "shape of text": (packed(ext(1, ("2",), "int8", b"12")), "expected the length of an axis, found 1 byte of text"),
    "array of two fields": (packed(ext(1, (2,), "int8")), "expected shape, dtype and data of an array"),
    "array not of fields": (
        packed(msgpack.ExtType(1, b"\x01")),
        "expected shape, dtype and data of an array, found an int",
    ),
    "array without a body": (packed([msgpack.ExtType(1, b""), 5]), "found the end of the value around it"),
    "dtype not UTF-8": (packed(ext(1, (2,), b"\xff", b"12")), "expected the name of a dtype in UTF-8"),
    "data of ints": (packed(ext(1, (2,), "int8", 12)), "expected the data of an array, found an int (12)"),
    "data and more": (
        packed(msgpack.ExtType(1, ext(1, (2,), "int8", b"12").data + b"3")),
        "up to the end of the array",
    ),
    "scalar with axes": (packed(ext(3, (2,), "int8", b"12")), "expected the empty shape of a NumPy scalar"),
    "complex of three": (
        packed(ext(2, 1.0, 2.0, 3.0)),
        "expected the real and the imaginary part, found an array of 3",
    ),
    "complex of text": (packed(ext(2, 1.0, "2")), "expected the imaginary part, found 1 byte of text"),
    "complex and more": (packed(msgpack.ExtType(2, ext(2, 1, 2).data + b"3")), "expected the end of a complex number"),
    "split without shape": (
        packed({CHUNKED_ARRAY: True, "chunks": {"0": ONES, "1": ONES}}),
        "a shape that fits 16 bytes",
    ),
    "split without chunks": (split({"0": 2}, {}), "found chunks"),
    "split into nothing": (
        packed({CHUNKED_ARRAY: True, "shape": {"0": 2}}),
        "as the chunks of a split array, found none",
    ),
    "split with a gap": (split({"0": 4}, {"0": ONES, "2": ONES}), "found chunks/2"),
    "split of two dtypes": (split({"0": 4}, {"0": ONES, "1": ext(1, (2,), "int32", b"\0" * 8)}), "arrays of one dtype"),
    "split into ints": (
        split({"0": 2}, {"0": 1, "1": 2}),
        "arrays of one dtype as the chunks of a split array, found int",
    ),
    "split shape of text": (split({"0": "2"}, {"0": ONES}), "expected ints as the shape of a split array, found str"),
    "split that lacks a part": (split({"0": 6}, {"0": ONES, "1": ONES}), "found float32[6]"),
    "negative split": (split({"0": -1, "1": -2}, {"0": ONES}), "expected a shape without negative lengths"),
}
UNSUPPORTED = {
    "unknown dtype": (packed(ext(1, (1,), "float7", b"1")), "layer/w: the dtype 'float7' is unknown to NumPy"),
    "object dtype": (packed(ext(1, (1,), "object", b"12345678")), "layer/w: the dtype 'object' is unknown to NumPy"),
    "record dtype": (packed(ext(1, (1,), "f4,f4", b"12345678")), "layer/w: the dtype 'f4,f4' is unknown to NumPy"),
    "no dtype": (packed(ext(1, (1,), "(2,", b"12345678")), "layer/w: the dtype '(2,' is unknown to NumPy"),
    "dtype without size": (packed(ext(1, (1,), "str", b"")), "layer/w: the dtype 'str' is unknown to NumPy"),
    "foreign byte order": (packed(ext(1, (1,), ">f4", b"1234")), "layer/w: the dtype '>f4' is unknown to NumPy"),
    "no attribute": (
        packed(ext(1, (1,), "finfo", b"1234")),
        "layer/w: the dtype 'finfo' is unknown to NumPy",
    ),
    "extension type": (packed(msgpack.Timestamp(5)), "layer/w is 4 bytes of extension type -1; flax knows"),
    "long extension": (packed(msgpack.Timestamp(2**40)), "layer/w is 12 bytes of extension type -1; flax knows"),
    "bytes key": (msgpack.packb({"a": {b"k": 1}}), "a has a key that is neither text nor an int: 1 byte"),
    "float key": (msgpack.packb({1.5: 1}), "has a key that is neither text nor an int: a float (1.5)"),
    "int and text key": (msgpack.packb({1: 2, "1": 3}), "has both the int 1 and the text '1' as a key"),
    "Orbax placeholder": (packed("PLACEHOLDER://layer.w"), "layer/w is an Orbax placeholder ('PLACEHOLDER://layer.w')"),
    "multi-process array": (packed("//GDAPlaceholder:layer/w"), "layer/w is the placeholder of a multi-process array"),
}


@pytest.mark.parametrize("name", [*DAMAGED, *UNSUPPORTED])
def test_errors_say_what_is_wrong(tmp_path: FilePath, name: str) -> None:
    data, message = {**DAMAGED, **UNSUPPORTED}[name]
    file = tmp_path / "bad.msgpack"
    file.write_bytes(data)
    with pytest.raises(UnreadableCheckpoint if name in DAMAGED else UnsupportedCheckpoint) as caught:
        FORMAT.open(file)
    assert str(file) in caught.value.message
    assert message in caught.value.message
    assert caught.value.advice


def test_missing_and_empty_files(tmp_path: FilePath) -> None:
    with pytest.raises(UnreadableCheckpoint, match="does not exist"):
        FORMAT.open(tmp_path / "missing")
    (tmp_path / "empty").touch()
    with pytest.raises(UnreadableCheckpoint, match="empty is empty: expected a msgpack value at byte 0"):
        FORMAT.open(tmp_path / "empty")
    with pytest.raises(UnreadableCheckpoint, match="holds no flax msgpack checkpoint"):
        FORMAT.open(tmp_path)


def test_text_that_is_not_utf_8_is_found_when_it_is_read(tmp_path: FilePath) -> None:
    leaf = opened(b"\x81\xa1a\xa2x\xff", tmp_path)["a",]
    with pytest.raises(UnreadableCheckpoint, match=r"byte 5 of 6 \(a\): expected text in UTF-8"):
        leaf.fetch()


def test_the_deepest_tree(tmp_path: FilePath) -> None:
    path = ("a",) * MAX_DEPTH
    data = written(Tree([(path, LazyLeaf(LeafSpec(LeafKind.SCALAR, "int"), lambda: 5))]), tmp_path)
    assert list(opened(data, tmp_path)) == [path]
    msgpack_restore(data)
    with pytest.raises(UnsupportedCheckpoint, match="more than 512 containers"):
        written(Tree([((*path, "a"), LazyLeaf(empty_spec("none"), lambda: None))]), tmp_path)


def sample() -> bytes:
    values = array(np.dtype(np.float32), (3, 4))
    state = {
        "params": {"Dense_0": {"kernel": values, "bias": values[0]}, "ключ": np.zeros((), np.int8)},
        "opt_state": {"0": {"count": np.int32(3)}, "1": {}, "2": [1, -500, 2.5, 1 + 2j, None, True, "text", b"bytes"]},
        "large": {CHUNKED_ARRAY: True, "shape": {"0": 2, "1": 4}, "chunks": {"0": values[0], "1": values[1]}},
        "half": array(np.dtype(ml_dtypes.bfloat16), (2, 2)),
        "step": 70_000,
    }
    return to_bytes(state)


SAMPLE = sample()


def survives(data: bytes, directory: FilePath) -> None:
    with suppress(ConverterError):
        for leaf in opened(data, directory).values():
            leaf.fetch()


@many
@given(st.integers(0, len(SAMPLE) - 1))
def test_truncated_files_are_refused(tmp_path: FilePath, length: int) -> None:
    with pytest.raises(UnreadableCheckpoint):
        opened(SAMPLE[:length], tmp_path)


@settings(many, max_examples=400)
@given(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255))
def test_a_changed_byte_is_survived(tmp_path: FilePath, position: int, byte: int) -> None:
    survives(SAMPLE[:position] + bytes([byte]) + SAMPLE[position + 1 :], tmp_path)


@many
@given(st.binary(max_size=60), st.integers(0, len(SAMPLE)), st.integers(0, 8))
def test_noise_is_survived(tmp_path: FilePath, noise: bytes, position: int, removed: int) -> None:
    survives(noise, tmp_path)
    survives(SAMPLE[:position] + noise + SAMPLE[position + removed :], tmp_path)


# Writing, case by case -------------------------------------------------------------------------------------------


def leaf_of(spec: LeafSpec, value: Any = None) -> Leaf:
    return LazyLeaf(spec, lambda: value)


def test_empty_containers_and_the_kinds_of_keys(tmp_path: FilePath) -> None:
    kinds: list[Key] = ["none", "dict", "list", "tuple", "node"]
    tree = Tree(
        [
            *((("empty", kind), leaf_of(empty_spec(kind))) for kind in kinds),
            (("list", IndexKey(0), IntKey(7)), leaf_of(spec_of(1), 1)),
            (("later",), leaf_of(spec_of(2), 2)),
            (("list", IndexKey(1)), leaf_of(spec_of(3), 3)),
        ]
    )
    data = written(tree, tmp_path)
    assert data == to_bytes(
        {
            "empty": {"none": None, "dict": {}, "list": [], "tuple": (), "node": {}},
            "list": [{7: 1}, 3],
            "later": 2,
        }
    )
    assert data.index(b"list", 40) < data.index(b"later"), "in the order in which groups are first met"
    assert written(Tree(), tmp_path) == to_bytes({})


def test_live_and_unusual_arrays(tmp_path: FilePath) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    nested = {
        "jax": jnp.asarray(values, jnp.bfloat16),
        "jax scalar": jnp.float32(2),
        "transposed": values.transpose(2, 0, 1),
        "every other": values.reshape(-1)[::-2],
        "broadcast": np.broadcast_to(np.float32(3), (4, 5)),
        "Fortran": np.asfortranarray(values),
    }
    assert written(tree_of(nested), tmp_path) == to_bytes(nested)


def test_big_endian_arrays_keep_their_values(tmp_path: FilePath) -> None:
    values = np.array([1, 2, 3], ">f4")
    assert written(tree_of({"a": values}), tmp_path) == to_bytes({"a": values.astype("<f4")})


def test_progress_adds_up(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_CHUNK_SIZE", 64)
    tree = tree_of({"a": np.zeros(100), "b": {"c": np.float32(1), "d": 5, "e": None}})
    calls: list[tuple[int, int]] = []
    FORMAT.write(tree, tmp_path / "file", lambda nbytes, leaves: calls.append((nbytes, leaves)))
    assert sum(nbytes for nbytes, _ in calls) == tree.nbytes == 804
    assert sum(leaves for _, leaves in calls) == len(tree)


def test_all_leaves_without_a_form_are_named_before_writing(tmp_path: FilePath) -> None:
    key = leaf_of(LeafSpec(LeafKind.KEY, "threefry2x32", (4,)))
    tree = Tree([(("rngs", "a b/c"), key), (("w",), leaf_of(spec_of(1), 1)), (("k",), key)])
    with pytest.raises(UnsupportedCheckpoint) as caught:
        FORMAT.write(tree, tmp_path / "file", ignore_progress)
    assert 'rngs/"a b/c": key<threefry2x32>[4] is a typed PRNG key' in caught.value.message
    assert "\n  k: key" in caught.value.message
    assert "--drop 'rngs/\"a b/c\"'" in caught.value.advice
    assert "--to-format" in caught.value.advice
    assert not list(tmp_path.iterdir())
    with pytest.raises(UnsupportedCheckpoint, match="float7"):
        written(Tree([(("w",), leaf_of(array_spec("float7", (2,))))]), tmp_path)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800"])
def test_values_without_a_form(tmp_path: FilePath, value: Any) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"^a/b: .*msgpack cannot hold it"):
        written(tree_of({"a": {"b": value}}), tmp_path)
    assert not list(tmp_path.iterdir()), "no partial file is left"


def test_keys_without_a_form(tmp_path: FilePath) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="UTF-8 cannot encode"):
        written(tree_of({"\ud800": 1}), tmp_path)


@pytest.mark.parametrize(
    ("spec", "value", "found"),
    [
        (array_spec("float32", (2,)), np.zeros(3, np.float32), r"float32\[3\]"),
        (array_spec("float32", (2,)), np.zeros(2), r"float64\[2\]"),
        (LeafSpec(LeafKind.SCALAR, "int"), True, "bool"),
        (LeafSpec(LeafKind.SCALAR, "float"), np.float64(1), "float64"),
    ],
)
def test_values_unlike_their_spec_are_a_defect(tmp_path: FilePath, spec: LeafSpec, value: Any, found: str) -> None:
    with pytest.raises(RuntimeError, match=f"w: expected .* from its metadata, found {found} when it was read"):
        written(Tree([(("w",), leaf_of(spec, value))]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_destinations_that_cannot_be_written(tmp_path: FilePath) -> None:
    tree = tree_of({"a": np.zeros(100_000)})
    with pytest.raises(DestinationError, match="No such file or directory"):
        FORMAT.write(tree, tmp_path / "missing" / "file", ignore_progress)
    existing = tmp_path / "existing"
    existing.write_text("keep me")
    with pytest.raises(DestinationError, match="exists already"):
        FORMAT.write(tree, existing, ignore_progress)
    assert existing.read_text() == "keep me"


@pytest.mark.parametrize("size", [100, 2_000_000])
def test_a_full_disk(tmp_path: FilePath, size: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        with pytest.raises(DestinationError, match="File too large"):
            FORMAT.write(tree_of({"a": np.zeros(size, np.uint8)}), tmp_path / "file", ignore_progress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [OSError("the source is gone"), UnreadableCheckpoint("bad chunk"), KeyboardInterrupt()]
)
def test_failures_of_the_source_pass_through(tmp_path: FilePath, error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        written(Tree([(("a",), leaf_of(spec_of(1), 1)), (("b",), LazyLeaf(array_spec("int8"), fail))]), tmp_path)
    assert not list(tmp_path.iterdir())


# Checkpoints of other years --------------------------------------------------------------------------------------

PATTERNS = ("a_f053_legacy_*", "c_f069_legacy_*", "*_to_bytes", "*legacy_msgpack")
CARDS = sorted({card for pattern in PATTERNS for card in CORPUS.glob(f"{pattern}/how.json")})


def described(value: Any) -> dict[str, Any]:
    """A leaf as the cards of the corpus tell it: a Python number, or shape, dtype and the start of a SHA-256."""
    if isinstance(value, int | float | str | np.float64):
        return {"py": type(value).__name__, "v": value}
    values = np.asarray(value)
    sha = hashlib.sha256(values.tobytes()).hexdigest()[:16]
    return {"shape": list(values.shape), "dtype": values.dtype.name, "sha": sha}


@pytest.mark.skipif(not CARDS, reason="the corpus of old checkpoints is not here")
@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_old_checkpoints(tmp_path: FilePath, card: FilePath) -> None:
    told = json.loads(card.read_text())
    directory = card.parent / told["ckpt"]
    (file,) = directory.iterdir()
    assert FORMAT.sniff(file)
    assert FORMAT.sniff(directory) == file.name[-1].isdigit()
    checkpoint = FORMAT.open(directory if FORMAT.sniff(directory) else file)
    assert checkpoint.location == file
    found = {
        format_path(path): described(leaf.fetch())
        for path, leaf in checkpoint.tree.items()
        if leaf.spec.kind is not LeafKind.EMPTY
    }
    expected = {
        path: {name: fact for name, fact in leaf.items() if name != "type"} for path, leaf in told["leaves"].items()
    }
    assert found == expected
    if "chunked" not in card.parent.name:
        assert written(checkpoint.tree, tmp_path) == file.read_bytes()
