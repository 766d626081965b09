"""What is written is read back by TensorStore and by the reader, is the same every time, and appears whole."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import resource
from pathlib import Path
from typing import Any

import pytest
import tensorstore as ts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.errors import DestinationError
from converter.formats.ocdbt import MAX_INLINE_BYTES, read_database, write_database, writer
from converter.stored import Extent

from .support import Values, base, contents, dumped, height, listed, opened

many = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

FILES = ("d/values", "d/more values", "ocdbt.process_0/d/é", "top")
FILE_BYTES = 3000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with data files."""
    return with_files(tmp_path / "database")


def with_files(path: Path) -> Path:
    for number, name in enumerate(FILES):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(random.Random(number).randbytes(FILE_BYTES))
    return path


def extent(directory: Path, file: int, offset: int, length: int) -> Extent:
    offset %= FILE_BYTES + 1
    return Extent(str(directory / FILES[file]), offset, length % (FILE_BYTES - offset + 1))


def files_of(directory: Path) -> dict[str, str]:
    """The digests of all files, by their paths."""
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def assert_written(directory: Path, values: Values) -> None:
    found = read_database(directory)
    assert list(found.items()) == sorted(values.items())
    assert dumped(directory) == values
    assert listed(directory) == contents(values)


# Any values ----------------------------------------------------------------------------------------------------------

keys = st.one_of(
    st.binary(max_size=4),
    st.text(max_size=4).map(str.encode),
    st.lists(st.sampled_from([b"params", b".", b"/", b"a", b"0", "é".encode()]), max_size=6).map(b"".join),
    st.sampled_from([b"", b"/", b"k" * 5000, b"k" * 65535]),
)
places = st.tuples(st.integers(0, len(FILES) - 1), st.integers(0, FILE_BYTES), st.integers(0, FILE_BYTES))
inline = st.binary(max_size=20) | st.sampled_from([b"", bytes(127), bytes(128), bytes(MAX_INLINE_BYTES)])


@many
@given(st.dictionaries(keys, places | inline, max_size=30), st.sampled_from([1, 100, 400, 100_000_000]))
def test_anything(directory: Path, drawn: dict[bytes, Any], limit: int) -> None:
    values = {k: extent(directory, *value) if isinstance(value, tuple) else value for k, value in drawn.items()}
    write_database(directory, values, max_decoded_node_bytes=limit)
    assert_written(directory, values)


def test_an_empty_database(tmp_path: Path) -> None:
    write_database(tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.ocdbt"]
    assert_written(tmp_path, {})
    opened(tmp_path)["a"] = b"b"
    assert read_database(tmp_path) == {b"a": b"b"}


def numbered(directory: Path, count: int) -> dict[bytes, bytes | Extent]:
    values: dict[bytes, bytes | Extent] = {}
    for i in range(count // 2):
        values[b"params.layers_%d.kernel/.zarray" % i] = b'{"shape": [%d]}' % i
        values[b"params.layers_%d.kernel/0.0" % i] = extent(directory, i % 3, i, 100 + i)
    return values


@pytest.mark.parametrize(("limit", "least"), [(10_000, 1), (1000, 2), (300, 4), (1, 10)])
def test_trees(directory: Path, limit: int, least: int) -> None:
    values = numbered(directory, 1000)
    write_database(directory, values, max_decoded_node_bytes=limit)
    assert height(directory) >= least
    assert_written(directory, values)


def test_nodes_keep_the_limit_and_tell_their_statistics(directory: Path) -> None:
    values = numbered(directory, 1000)
    write_database(directory, values, max_decoded_node_bytes=2000)
    store = ts.KvStore.open(base(directory)).result()
    dump = ts.ocdbt.dump(store).result()
    assert dump["config"]["max_decoded_node_bytes"] == 2000
    assert dump["config"]["max_inline_value_bytes"] == MAX_INLINE_BYTES

    def check(reference: dict[str, Any], level: int) -> None:
        node = ts.ocdbt.dump(store, reference["location"]).result()
        own = int(reference["location"].rpartition(":")[2])
        entries, told = node["entries"], reference["statistics"]
        assert node["height"] == level
        assert sum(len(entry["key"]) for entry in entries) < 2000
        if level:
            assert len(entries) > 1
            for entry in entries:
                check(entry, level - 1)
            below = [entry["statistics"] for entry in entries]
            for name, extra in (("num_keys", 0), ("num_tree_bytes", own), ("num_indirect_value_bytes", 0)):
                assert told[name] == sum(statistics[name] for statistics in below) + extra
        else:
            stored = [entry["indirect_value"] for entry in entries if "indirect_value" in entry]
            assert told["num_keys"] == len(entries)
            assert told["num_tree_bytes"] == own
            assert told["num_indirect_value_bytes"] == sum(int(value.rpartition(":")[2]) for value in stored)

    (version,) = dump["versions"]
    check(version["root"], version["root_height"])
    assert version["root"]["statistics"]["num_keys"] == 1000


def test_no_node_has_more_entries_than_tensorstore_reads(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert writer._MAX_ENTRIES == 1024 * 1024
    monkeypatch.setattr(writer, "_MAX_ENTRIES", 10)
    values = numbered(directory, 200)
    write_database(directory, values)
    assert height(directory) == 2
    assert_written(directory, values)


@pytest.mark.parametrize("limit", [300, 100_000_000])
def test_tensorstore_goes_on_writing(directory: Path, limit: int) -> None:
    values = numbered(directory, 200)
    write_database(directory, values, max_decoded_node_bytes=limit)
    store = opened(directory, max_inline_value_bytes=MAX_INLINE_BYTES, max_decoded_node_bytes=limit)
    store["new"] = b"value" * 1000
    del store["params.layers_1.kernel/0.0"]
    expected = contents(values) | {b"new": b"value" * 1000}
    del expected[b"params.layers_1.kernel/0.0"]
    assert contents(read_database(directory)) == listed(directory) == expected


def test_arrays(tmp_path: Path) -> None:
    """Through the zarr driver, under another name: what all of this is for."""
    kvstore = {"driver": "ocdbt", "base": base(tmp_path), "config": {"max_inline_value_bytes": MAX_INLINE_BYTES}}
    spec = {
        "driver": "zarr",
        "kvstore": {**kvstore, "path": "old/"},
        "metadata": {"shape": [4, 3000], "chunks": [2, 3000], "compressor": None},
    }
    array = ts.open(spec, dtype=ts.int32, create=True).result()
    array[...] = array_values = ts.array([[i * j for j in range(3000)] for i in range(4)], dtype=ts.int32)
    values = read_database(tmp_path)
    assert sum(isinstance(value, Extent) for value in values.values()) == 2
    write_database(tmp_path, {key.replace(b"old/", b"new/"): value for key, value in values.items()})
    new = ts.open({"driver": "zarr", "kvstore": {**kvstore, "path": "new/"}}).result()
    assert (new.read().result() == array_values.read().result()).all()


# The same every time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [300, 100_000_000])
def test_the_same_values_give_the_same_bytes(tmp_path: Path, limit: int) -> None:
    found = []
    for name in ("one", "two"):
        directory = with_files(tmp_path / name)
        items = list(numbered(directory, 300).items())
        random.Random(name).shuffle(items)
        write_database(directory, dict(items), max_decoded_node_bytes=limit)
        found.append(files_of(directory))
        write_database(directory, dict(items), max_decoded_node_bytes=limit)
        assert files_of(directory) == found[-1]
    assert found[0] == found[1]
    assert len(found[0]) == len(FILES) + 2


def test_other_values_do_not_touch_the_nodes_of_a_database(directory: Path) -> None:
    names = []
    for values, limit in itertools.product(({b"a": b"1", b"b": b"2"}, {b"a": b"1", b"b": b"3"}), (1, 2)):
        before = files_of(directory)
        write_database(directory, values, max_decoded_node_bytes=limit)
        after = files_of(directory)
        names += after.keys() - before.keys() - {"manifest.ocdbt"}
        assert {name: after[name] for name in before if name != "manifest.ocdbt"} == {
            name: digest for name, digest in before.items() if name != "manifest.ocdbt"
        }
    assert len(set(names)) == 4


# Refusals and failures -----------------------------------------------------------------------------------------------


def test_what_no_database_holds(directory: Path, tmp_path: Path) -> None:
    inside = str(directory / "d" / "values")
    outside = tmp_path / "outside"
    outside.write_bytes(b"12345")
    for values, problem in [
        ({b"k" * 65536: b""}, "a key of 65536 bytes"),
        ({b"a": bytes(1025)}, "b'a': a value of 1025 bytes has to lie in a file"),
        ({b"a": Extent(inside, 0, FILE_BYTES + 1)}, "is no file of at least 3001 bytes"),
        ({b"a": Extent(inside, -1, 1)}, "is no part of a file"),
        ({b"a": Extent(inside, 1, -1)}, "is no part of a file"),
        ({b"a": Extent(str(outside), 0, 1)}, "is not below"),
        ({b"a": Extent("d/values", 0, 1)}, "is not below"),
        ({b"a": Extent(f"{directory}/d/../../outside", 0, 1)}, "or not by a plain path"),
        ({b"a": Extent(f"{directory}/missing", 0, 1)}, "missing is no file"),
        ({b"a": Extent(str(directory), 0, 1)}, "is not below"),
        ({b"a": Extent(f"{directory}/d", 0, 0)}, "/d is no file"),
    ]:
        before = files_of(directory)
        with pytest.raises(ValueError, match=problem):
            write_database(directory, values)
        assert files_of(directory) == before


def test_destinations_that_cannot_be_written(tmp_path: Path) -> None:
    for values in ({}, {b"a": b"1"}):
        with pytest.raises(DestinationError, match="missing cannot be written: No such file or directory"):
            write_database(tmp_path / "missing", values)
    assert not (tmp_path / "missing").exists()
    (tmp_path / "d").touch()
    with pytest.raises(DestinationError, match="cannot be written: Not a directory"):
        write_database(tmp_path, {b"a": b"1"})
    assert [file.name for file in tmp_path.iterdir()] == ["d"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="learns of open files through /proc")
def test_a_full_disk(directory: Path) -> None:
    write_database(directory, {b"old": b"value"})
    before = files_of(directory)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limits[1]))
    try:
        with pytest.raises(DestinationError, match="File too large"):
            write_database(directory, {b"new": b"value"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_of(directory) == before


def test_an_interruption_leaves_the_old_database(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_database(directory, {b"old": b"value"})
    replace = os.replace

    def interrupted(source: str, target: str) -> None:
        if target.endswith("manifest.ocdbt"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_database(directory, {b"new": b"value"})
    assert not list(directory.rglob("*.tmp"))
    assert listed(directory) == {b"old": b"value"}


def test_files_that_are_linked_elsewhere_keep_their_bytes(directory: Path, tmp_path: Path) -> None:
    write_database(directory, {b"a": b"value"})
    (nodes,) = set((directory / "d").iterdir()) - {directory / name for name in FILES}
    for file in (nodes, directory / "manifest.ocdbt"):
        os.link(file, tmp_path / file.name)
        file.write_bytes(b"something else")
    write_database(directory, {b"a": b"value"})
    for file in (nodes, directory / "manifest.ocdbt"):
        assert (tmp_path / file.name).read_bytes() == b"something else"
    assert listed(directory) == {b"a": b"value"}
