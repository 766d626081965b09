"""Databases by TensorStore and Orbax are read as TensorStore reads them; damage and malice end in clear errors."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorstore as ts

from converter.errors import ConverterError, UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats.ocdbt import read_database, reader
from converter.formats.ocdbt.frames import MANIFEST_MAGIC, NODE_MAGIC, wrap
from converter.formats.ocdbt.wire import spell_numbers
from converter.stored import Extent

from .support import contents, dumped, height, inner, install, leaf, listed, manifest, opened

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "fixtures" / "checkpoints"
CORPUS = ROOT.parent / "shared" / "corpus"


def assert_read(directory: Path) -> None:
    """What is read is what TensorStore reads, and lies where TensorStore says."""
    found = read_database(directory)
    assert list(found) == sorted(found)
    assert found == dumped(Path(os.path.abspath(directory)))
    assert contents(found) == listed(directory)


# What others wrote ---------------------------------------------------------------------------------------------------

DATABASES = {
    str(file.parent.relative_to(root)): file.parent
    for root in (FIXTURES, CORPUS)
    for file in sorted(root.rglob("manifest.ocdbt"))
}


def test_there_are_databases_to_read() -> None:
    assert len(DATABASES) > 50


@pytest.mark.parametrize("name", DATABASES)
def test_checkpoints(name: str) -> None:
    assert_read(DATABASES[name])


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs the checkpoint corpus in ../shared/corpus")
def test_some_checkpoints_have_several_directories_of_data_files() -> None:
    extents = [value for path in DATABASES.values() for value in read_database(path).values()]
    assert any("/ocdbt.process_0/d/" in value.file for value in extents if isinstance(value, Extent))


# What TensorStore writes ---------------------------------------------------------------------------------------------

KEYS = [
    b"",
    b"a",
    b"a/",
    b"a/b",
    b"a.b",
    b"\0",
    b"\xff\xfe",
    "ключ".encode(),
    b"k" * 300,
    *(b"%d" % i for i in range(60)),
]


@pytest.mark.parametrize("compression", [{"id": "zstd", "level": 3}, None])
@pytest.mark.parametrize(("node_bytes", "least"), [(8_000_000, 0), (1000, 1), (250, 2), (1, 5)])
@pytest.mark.parametrize("inline_bytes", [0, 8, 1000])
def test_trees_of_any_height(
    tmp_path: Path, compression: object, node_bytes: int, least: int, inline_bytes: int
) -> None:
    config = {"max_decoded_node_bytes": node_bytes, "max_inline_value_bytes": inline_bytes, "compression": compression}
    store = opened(tmp_path, **config)
    with ts.Transaction() as transaction:
        for number, key in enumerate(KEYS):
            store.with_transaction(transaction)[key] = bytes([number]) * number
    assert height(tmp_path) >= least
    assert len(read_database(tmp_path)) == len(KEYS)
    assert_read(tmp_path)


def test_many_versions_and_deletions(tmp_path: Path) -> None:
    store = opened(tmp_path, max_decoded_node_bytes=100, max_inline_value_bytes=4, version_tree_arity_log2=1)
    for number in range(30):
        store[f"key{number * 7 % 11}"] = b"%d" % number * (number % 5)
        if number % 3 == 0:
            del store[f"key{number % 11}"]
        assert contents(read_database(tmp_path)) == {key: store[key] for key in store.list().result()}
    assert_read(tmp_path)
    store.delete_range(ts.KvStore.KeyRange()).result()
    assert read_database(tmp_path) == {}
    store["again"] = b"value"
    assert contents(read_database(tmp_path)) == {b"again": b"value"}


def test_copied_nodes(tmp_path: Path) -> None:
    """One node may be the child of several, under another prefix for each."""
    store = opened(tmp_path, max_decoded_node_bytes=300, max_inline_value_bytes=4)
    with ts.Transaction() as transaction:
        for number in range(60):
            store.with_transaction(transaction)[f"one/{number}"] = b"%d" % number * 9
    for name in ("two", "three"):
        (store / "one/").experimental_copy_range_to(store / f"{name}/").result()
    assert len(read_database(tmp_path)) == 180
    assert_read(tmp_path)


def test_a_new_database_is_empty(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store["a"] = b"b"
    del store["a"]
    assert read_database(tmp_path) == {}


def test_places_do_not_depend_on_how_the_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path, max_inline_value_bytes=0)["a"] = b"value"
    expected = read_database(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert read_database(Path()) == read_database(tmp_path / "d" / "..") == expected
    assert contents(expected) == {b"a": b"value"}


def test_numbered_manifests_are_refused(tmp_path: Path) -> None:
    opened(tmp_path, manifest_kind="numbered")["a"] = b"b"
    with pytest.raises(UnsupportedCheckpoint, match="expected manifest_kind single, found numbered"):
        read_database(tmp_path)
    install(tmp_path, [leaf()], kind=7)
    with pytest.raises(UnsupportedCheckpoint, match="found 7"):
        read_database(tmp_path)


# Damage --------------------------------------------------------------------------------------------------------------


def refused(directory: Path, problem: str, error: type[ConverterError] = UnreadableCheckpoint) -> None:
    with pytest.raises(error, match=problem) as caught:
        read_database(directory)
    assert str(directory) in caught.value.message
    assert caught.value.advice


def small_database(directory: Path) -> None:
    store = opened(directory, max_inline_value_bytes=4, max_decoded_node_bytes=60)
    with ts.Transaction() as transaction:
        for key, value in {"a": b"1", "b": b"value", "c": b"3"}.items():
            store.with_transaction(transaction)[key] = value


def alter_every_byte(content: bytes) -> Iterator[bytes]:
    for position in range(len(content)):
        yield content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :]


def truncate(content: bytes) -> Iterator[bytes]:
    return (content[:length] for length in range(len(content)))


@pytest.mark.parametrize("damage", [alter_every_byte, truncate])
def test_damage(tmp_path: Path, damage: Callable[[bytes], Iterator[bytes]]) -> None:
    small_database(tmp_path)
    expected = read_database(tmp_path)
    assert height(tmp_path) > 0
    noticed = dict.fromkeys(["manifest.ocdbt", "d"], 0)
    for file in [tmp_path / "manifest.ocdbt", *(tmp_path / "d").iterdir()]:
        original = file.read_bytes()
        for damaged in damage(original):
            file.write_bytes(damaged)
            # The bytes may be of a value, or of an older version.
            with contextlib.suppress(UnreadableCheckpoint):
                assert read_database(tmp_path) == expected
                continue
            noticed[file.relative_to(tmp_path).parts[0]] += 1
        if file.name == "manifest.ocdbt":
            assert noticed["manifest.ocdbt"] == len(original)
        file.write_bytes(original)
    assert noticed["d"] > 100
    assert read_database(tmp_path) == expected


def test_missing_and_odd_files(tmp_path: Path) -> None:
    refused(tmp_path, "manifest.ocdbt cannot be read: No such file or directory; the manifest needs it")
    install(tmp_path, [leaf([b"a"], [], files=[b"d/values"], extents=[(0, 0, 5)])])
    refused(tmp_path, "d/values cannot be read: No such file .*d/nodes: the B-tree node of .* needs it")
    (tmp_path / "d" / "values").mkdir()
    refused(tmp_path, "d/values cannot be read: it is no regular file")
    (tmp_path / "d" / "values").rmdir()
    os.mkfifo(tmp_path / "d" / "values")
    refused(tmp_path, "d/values cannot be read: it is no regular file")
    (tmp_path / "d" / "values").unlink()
    (tmp_path / "d" / "values").write_bytes(b"1234")
    refused(tmp_path, "expected values within the 4 bytes of .*d/values, found one of 5 bytes at byte 0")
    (tmp_path / "d" / "values").write_bytes(b"12345")
    assert read_database(tmp_path) == {b"a": Extent(str(tmp_path / "d" / "values"), 0, 5)}
    (tmp_path / "d" / "nodes").unlink()
    refused(tmp_path, "d/nodes cannot be read: No such file")
    shutil.rmtree(tmp_path / "d")
    refused(tmp_path, "d/nodes cannot be read: No such file")
    (tmp_path / "manifest.ocdbt").write_bytes(b"")
    refused(tmp_path, "manifest.ocdbt is damaged: expected at least 18 bytes, found 0")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files(tmp_path: Path) -> None:
    install(tmp_path, [leaf()])
    (tmp_path / "d" / "nodes").chmod(0)
    refused(tmp_path, "d/nodes cannot be read: Permission denied")


# Malice: checksums are in order --------------------------------------------------------------------------------------


def test_databases_made_by_hand(tmp_path: Path) -> None:
    """So that the next tests fail for the reason that they name."""
    first, second = leaf([b"a", b"ab"], [b"1", b"2"]), leaf([b"", b"x"], [b"3", b"4"])
    sizes = [len(wrap(body, NODE_MAGIC, compress=False)) for body in (first, second)]
    install(
        tmp_path, [first, second, inner([b"a", b"b"], [(0, sizes[0]), (sizes[0], sizes[1])], prefixes=[0, 1])], level=1
    )
    assert read_database(tmp_path) == {b"a": b"1", b"ab": b"2", b"b": b"3", b"bx": b"4"}
    assert_read(tmp_path)


LEAVES: dict[str, bytes] = {
    "expected a node of height 0 .* found height 1": b"\1" + leaf()[1:],
    "expected at least one entry": b"\0\0\0",
    "expected keys in ascending order": leaf([b"b", b"a"]),
    "expected keys in ascending order .* others": leaf([b"a", b"a"]),
    r"kind 0 \(inline\) or 1 \(in a file\) .* found kind 2": leaf(kinds=b"\0\2"),
    "expected the end .* found 1 more bytes": leaf() + b"\0",
    "expected 2 more bytes": leaf()[:-1],
    "the number of one of 0 data files .* found 0": leaf([b"a"], [], extents=[(0, 0, 1)]),
    "the number of one of 1 data files .* found 1": leaf([b"a"], [], files=[b"d/nodes"], extents=[(1, 0, 1)]),
    "expected values within the .* bytes": leaf([b"a"], [], files=[b"d/nodes"], extents=[(0, 2**64 - 1, 2**64 - 1)]),
    "stays in the directory": leaf([b"a"], [], files=[b"../nodes"], extents=[(0, 0, 1)]),
    "names the data file b'/etc/passwd'": leaf([b"a"], [], files=[b"/etc/passwd"], extents=[(0, 0, 1)]),
    "more numbers at byte": b"\0\0" + spell_numbers([2**40]) + bytes(100),
    "more numbers": b"\0" + spell_numbers([2**40]) + bytes(100),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("problem", LEAVES)
def test_leaves_that_nobody_writes(tmp_path: Path, problem: str, compress: bool) -> None:
    install(tmp_path, [LEAVES[problem]], compress=compress)
    refused(tmp_path, problem)


def test_inner_nodes_that_nobody_writes(tmp_path: Path) -> None:
    child = leaf()
    size = len(wrap(child, NODE_MAGIC, compress=False))
    itself = (size, len(wrap(inner([b"a"], [(0, size)]), NODE_MAGIC, compress=False)))
    for problem, root in {
        "expected keys after b'b', the last of the node before .* found b'a'": inner([b"a", b"b"], [(0, size)] * 2),
        "expected prefixes of children within the first key": inner([b"a"], [(0, size)], prefixes=[2]),
        "to find it in the file, found the end of the file": inner([b"a"], [(0, 2**63)]),
        "to find it in the file, found the end of the file ": inner([b"a"], [(2**64 - 1, size)]),
        f"expected {size} bytes as its header says, found {size - 1}": inner([b"a"], [(0, size - 1)]),
        "the first bytes 0cdb20de, found db20de": inner([b"a"], [(1, size)]),
        "expected a node of height 0 .* found height 1": inner([b"a"], [itself]),
        "names the data file b'd/../nodes'": inner([b"a"], [(0, size)], files=[b"d/../nodes"]),
    }.items():
        install(tmp_path, [child, root], level=1)
        refused(tmp_path, problem)


@pytest.mark.parametrize("part", ["manifest", "leaf", "inner node"])
def test_every_altered_byte_under_a_correct_checksum(tmp_path: Path, part: str) -> None:
    nodes = [leaf([b"a", b"ab", b"b"], [b"1" * 130], files=[b"d/nodes"], extents=[(0, 0, 5), (0, 130, 20)])]
    size = len(wrap(nodes[0], NODE_MAGIC, compress=False))
    nodes.append(inner([b"a"], [(0, size)], prefixes=[0]))
    install(tmp_path, nodes, level=1)
    assert len(read_database(tmp_path)) == 3
    root = manifest(size, len(wrap(nodes[1], NODE_MAGIC, compress=False)), level=1)
    original = {"manifest": root, "leaf": nodes[0], "inner node": nodes[1]}[part]
    for position, value in itertools.product(range(len(original))[:70], (0, 1, 0x7F, 0xFF)):
        altered = bytes([*original[:position], value, *original[position + 1 :]])
        if part == "manifest":
            (tmp_path / "manifest.ocdbt").write_bytes(wrap(altered, MANIFEST_MAGIC, compress=False))
        else:
            install(tmp_path, [altered if body is original else body for body in nodes], level=1)
        with contextlib.suppress(UnreadableCheckpoint, UnsupportedCheckpoint):
            read_database(tmp_path)


MANIFESTS: dict[str, Callable[[int], bytes]] = {
    "found the end of the file": lambda size: manifest(0, size + 1),
    "expected a node of height 3": lambda size: manifest(0, size, level=3),
    "the number of one of 1 data files": lambda size: manifest(0, size, number=1),
    "expected at least one entry": lambda size: manifest(0, size, versions=0),
    "more numbers": lambda size: manifest(0, size, versions=2**63),
    "names the data file b'../d/nodes'": lambda size: manifest(0, size, path=b"../d/nodes"),
    "it is no regular file": lambda size: manifest(0, size, path=b"d"),
    "no regular file": lambda size: manifest(0, size, path=b""),
    "expected 16 more bytes": lambda size: b"short",
}


@pytest.mark.parametrize("problem", MANIFESTS)
def test_manifests_that_nobody_writes(tmp_path: Path, problem: str) -> None:
    install(tmp_path, [leaf()])
    size = (tmp_path / "d" / "nodes").stat().st_size
    (tmp_path / "manifest.ocdbt").write_bytes(wrap(MANIFESTS[problem](size), MANIFEST_MAGIC, compress=False))
    refused(tmp_path, problem)


def test_small_files_that_stand_for_large_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_MEMORY", 2**22)
    too_large = "the index of the database needs more memory than the 0.00391 GiB allowed"

    install(tmp_path, [leaf([b"k" * 60_000 + bytes([i]) for i in range(100)], [b""] * 100)], compress=True)
    assert (tmp_path / "d" / "nodes").stat().st_size < 1000
    refused(tmp_path, too_large, UnsupportedCheckpoint)

    install(tmp_path, [leaf([b"a"], [bytes(2**22)])], compress=True)
    assert (tmp_path / "d" / "nodes").stat().st_size < 1000
    refused(tmp_path, too_large, UnsupportedCheckpoint)

    # Each layer has the one below it twice.
    bodies, offset = [leaf([b""], [b""])], 0
    for level in range(1, 40):
        size = len(wrap(bodies[-1], NODE_MAGIC, compress=False))
        bodies.append(inner([b"0", b"1"], [(offset, size)] * 2, level=level, prefixes=[1, 1]))
        offset += size
    install(tmp_path, bodies, level=39)
    assert (tmp_path / "d" / "nodes").stat().st_size < 3000
    refused(tmp_path, too_large, UnsupportedCheckpoint)

    with (tmp_path / "manifest.ocdbt").open("wb") as stream:
        stream.truncate(2**40)
    refused(tmp_path, too_large, UnsupportedCheckpoint)
