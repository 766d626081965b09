"""Numbers, sorted texts, tables of files and frames: what is spelled is read back, and damage is told from content."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import google_crc32c
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats.ocdbt.frames import MANIFEST_MAGIC, NODE_MAGIC, unwrap, wrap
from converter.formats.ocdbt.wire import (
    ENTRY_BYTES,
    MAX_NAME_BYTES,
    MAX_NUMBER,
    Allowance,
    Cursor,
    DataFile,
    read_files,
    spell_files,
    spell_names,
    spell_numbers,
    stays_inside,
)


def cursor(data: bytes, allowance: int = 2**20) -> Cursor:
    return Cursor(data, "the file", Allowance(allowance))


# Numbers -------------------------------------------------------------------------------------------------------------

numbers = st.integers(0, 200) | st.integers(0, MAX_NUMBER) | st.sampled_from([127, 128, 2**14, 2**63, MAX_NUMBER])


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (2**14, "808001"),
        (MAX_NUMBER, "ffffffffffffffffff01"),
    ],
)
def test_a_number(value: int, spelled: str) -> None:
    assert spell_numbers([value]).hex() == spelled
    assert cursor(bytes.fromhex(spelled)).number() == value


@given(st.lists(st.lists(numbers, max_size=20), max_size=4))
def test_columns_of_numbers(columns: list[list[int]]) -> None:
    reading = cursor(b"".join(map(spell_numbers, columns)) + b"rest")
    assert [list(reading.numbers(len(column))) for column in columns] == columns
    assert reading.take(reading.left) == b"rest"
    reading.finish()


@given(st.lists(numbers, min_size=1, max_size=20), st.data())
def test_columns_cut_short(column: list[int], data: st.DataObject) -> None:
    spelled = spell_numbers(column)
    cut = data.draw(st.integers(0, len(spelled) - 1))
    with pytest.raises(UnreadableCheckpoint, match=f"the file is damaged: expected {len(column)} more numbers"):
        cursor(spelled[:cut]).numbers(len(column))


@pytest.mark.parametrize("count", [9, 10, 11, 10_000])
def test_numbers_that_do_not_end(count: int) -> None:
    with pytest.raises(UnreadableCheckpoint, match=r"at most ten bytes|more numbers"):
        cursor(b"\x80" * count).number()


def test_impossible_numbers_and_counts() -> None:
    with pytest.raises(UnreadableCheckpoint, match="at most 64 bits at byte 10 of 10"):
        cursor(b"\xff" * 9 + b"\x02").number()
    with pytest.raises(UnreadableCheckpoint, match=rf"{2**64 - 1} more numbers at byte 0 of 3 \(decompressed\)"):
        cursor(b"abc").numbers(2**64 - 1)
    with pytest.raises(UnreadableCheckpoint, match="expected 4 more bytes at byte 0 of 3"):
        cursor(b"abc").take(4)
    with pytest.raises(UnreadableCheckpoint, match=f"{2**64 - 2} more bytes"):
        cursor(b"abc").pieces([2**63 - 1] * 2)
    with pytest.raises(UnreadableCheckpoint, match=r"expected the end at byte 0 of 3 .* found 3 more bytes"):
        cursor(b"abc").finish()


# Names ---------------------------------------------------------------------------------------------------------------

names = st.lists(
    st.binary(max_size=5)
    | st.lists(st.sampled_from([b"params", b"a", b"/", b".", b"\0", b"\xff"]), max_size=9).map(b"".join)
    | st.integers(0, 300).map(lambda count: b"k" * count),
    min_size=1,
    max_size=20,
    unique=True,
).map(sorted)


@given(names, st.binary(max_size=3))
def test_names(wanted: list[bytes], column: bytes) -> None:
    spelled = spell_names(wanted, column)
    reading = cursor(spelled)
    shared, added = reading.numbers(len(wanted) - 1), reading.numbers(len(wanted))
    assert reading.take(len(column)) == column
    assert reading.names(shared, added) == wanted
    reading.finish()
    for one, other, length in zip(wanted, wanted[1:], shared, strict=False):
        assert one[:length] == other[:length]
        assert one[length : length + 1] != other[length : length + 1]


@pytest.mark.parametrize(
    ("shared", "added", "problem"),
    [
        ([2], [1, 1], "repeats more than there are"),
        ([0], [1, 3], "expected 4 more bytes"),
        ([MAX_NUMBER], [1, 1], "names of at most 65535 bytes"),
        ([MAX_NAME_BYTES], [1, 1], "names of at most 65535 bytes .* found 65536"),
    ],
)
def test_impossible_names(shared: Sequence[int], added: Sequence[int], problem: str) -> None:
    with pytest.raises(UnreadableCheckpoint, match=problem):
        cursor(b"abc").names(shared, added)


def test_names_cost_what_they_take_in_memory() -> None:
    size = 4 * 1000 + 6 + 4 * ENTRY_BYTES
    assert len(cursor(bytes(1003), size).names([1000] * 3, [1000, 1, 1, 1])) == 4
    with pytest.raises(UnsupportedCheckpoint, match="the file: the index of the database needs more memory than"):
        cursor(bytes(1003), size - 4).names([1000] * 3, [1000, 1, 1, 1])


# Tables of files -----------------------------------------------------------------------------------------------------

paths = st.lists(st.sampled_from(["a", "b", "...", "..a", "é", "ab", "abc"]), min_size=1, max_size=4)


@given(st.sets(paths.map("/".join).map(str.encode), max_size=6).map(sorted))
def test_files(wanted: list[bytes]) -> None:
    reading = cursor(spell_files(wanted))
    assert read_files(reading, b"") == [DataFile(b"", path) for path in wanted]
    reading.finish()
    assert [file.path for file in read_files(cursor(spell_files(wanted)), b"base/")] == [b"base/" + p for p in wanted]


def spelled_files(texts: Sequence[bytes], bases: Sequence[int]) -> bytes:
    return spell_numbers([len(texts)]) + spell_names(texts, spell_numbers(bases))


def test_bases_add_up() -> None:
    table = spelled_files([b"a/b", b"p/q/d/1", b"p/q/d/2", b"p/q/e/1"], [0, 4, 4, 2])
    assert read_files(cursor(table), b"") == [
        DataFile(b"", b"a/b"),
        DataFile(b"p/q/", b"p/q/d/1"),
        DataFile(b"p/q/", b"p/q/d/2"),
        DataFile(b"p/", b"p/q/e/1"),
    ]
    assert read_files(cursor(table), b"x/")[1] == DataFile(b"x/p/q/", b"x/p/q/d/1")
    assert read_files(cursor(spelled_files([b""], [0])), b"") == [DataFile(b"", b"")]
    with pytest.raises(UnreadableCheckpoint, match=r"within the 3 bytes of the path .* found one of 4 bytes"):
        read_files(cursor(spelled_files([b"a/b"], [4])), b"")


OUTSIDE = [b"/etc/passwd", b"..", b"../a", b"a/../../b", b"a/..", b"./a", b"a//b", b"a/", b"a/\0/b", b"/"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_lead_elsewhere(path: bytes) -> None:
    assert not stays_inside(path)
    with pytest.raises(UnreadableCheckpoint, match=r"names the data file .*: expected a path that stays"):
        read_files(cursor(spelled_files([path], [0])), b"")
    with pytest.raises(UnreadableCheckpoint, match="stays in the directory"):
        read_files(cursor(spelled_files([path], [len(path)])), b"base/")
    for start in range(1, len(path)):
        with pytest.raises(UnreadableCheckpoint, match="stays in the directory"):
            read_files(cursor(spelled_files([path[start:]], [0])), path[:start])


@pytest.mark.parametrize("path", [b"a", b"a/b", b"...", b"..a/b..", b"a/.b/c", b"a\\b", "é".encode()])
def test_paths_that_stay(path: bytes) -> None:
    assert stays_inside(path)


# Frames --------------------------------------------------------------------------------------------------------------


def body_of(frame: bytes, allowance: int = 2**20) -> bytes:
    return unwrap(frame, NODE_MAGIC, "the file", Allowance(allowance)).data


def signed(start: bytes, length: int | None = None) -> bytes:
    """A frame of version, compression and body, with length and checksum in order."""
    size = len(start) + 16 if length is None else length
    frame = NODE_MAGIC.to_bytes(4, "big") + size.to_bytes(8, "little") + start
    return frame + google_crc32c.value(frame).to_bytes(4, "little")


@given(st.binary(max_size=200) | st.integers(0, 10_000).map(bytes), st.booleans())
def test_frames(body: bytes, compress: bool) -> None:
    assert body_of(wrap(body, NODE_MAGIC, compress=compress)) == body


def test_a_frame_byte_by_byte() -> None:
    assert wrap(b"abc", NODE_MAGIC, compress=False) == signed(b"\0\0abc")
    assert wrap(b"", MANIFEST_MAGIC, compress=False).hex() == "0cdb3a2a1200000000000000000005ea9ea8"


@pytest.mark.parametrize("compress", [False, True])
def test_every_damage_of_a_frame(compress: bool) -> None:
    frame = wrap(b"some bytes", NODE_MAGIC, compress=compress)
    for position in range(len(frame)):
        for flipped in (1, 0x80, 0xFF):
            damaged = bytearray(frame)
            damaged[position] ^= flipped
            with pytest.raises(UnreadableCheckpoint, match="the file is damaged: expected"):
                body_of(bytes(damaged))
        with pytest.raises(UnreadableCheckpoint, match="the file is damaged: expected"):
            body_of(frame[:position])
    with pytest.raises(UnreadableCheckpoint, match="bytes as its header says"):
        body_of(frame + b"\0")
    with pytest.raises(UnreadableCheckpoint, match="the first bytes 0cdb20de, found 0cdb3a2a"):
        body_of(wrap(b"", MANIFEST_MAGIC, compress=False))


@pytest.mark.parametrize("start", [b"\1\0", b"\0\2", b"\x80\1\0", b"\0\xff\xff\3"])
def test_frames_of_the_future(start: bytes) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="expected version 0 of the format, compression 0 or 1, found"):
        body_of(signed(start))


ZSTD = zstandard.ZstdCompressor().compress(b"abc" * 100)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "expected a whole zstd frame"),
        (ZSTD[:-1], "expected a whole zstd frame"),
        (b"no zstd at all", "expected a zstd frame, found"),
        (ZSTD[:6] + b"\xff" + ZSTD[7:], "expected a zstd frame, found"),
        (ZSTD + b"more", "nothing else, found 4 more bytes"),
        (ZSTD + bytes(9000), "expected a zstd frame, found"),
    ],
)
def test_frames_with_a_damaged_body(body: bytes, problem: str) -> None:
    with pytest.raises(UnreadableCheckpoint, match=problem):
        body_of(signed(b"\0\1" + body))


def without_size(body: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    compressed = compressor.compress(body) + compressor.flush()
    assert zstandard.frame_content_size(compressed) == -1
    return compressed


def test_frames_that_do_not_tell_their_size() -> None:
    assert body_of(signed(b"\0\1" + without_size(b"abc" * 1000))) == b"abc" * 1000


@pytest.mark.parametrize("told", [b"\x10", b"\x30"])
def test_frames_that_tell_another_size(told: bytes) -> None:
    body = zstandard.ZstdCompressor().compress(bytes(32))
    assert body[4:6] == b"\x20\x20"  # a single segment of 32 bytes
    with pytest.raises(UnreadableCheckpoint, match="expected a zstd frame, found"):
        body_of(signed(b"\0\1" + body[:5] + told + body[6:]))


@pytest.mark.parametrize(
    ("frame", "needed"),
    [
        (wrap(bytes(2**20), NODE_MAGIC, compress=False), 2**20),
        (wrap(bytes(2**20), NODE_MAGIC, compress=True), 2**20),
        (signed(b"\0\1" + without_size(bytes(2**20))), 2**21),
    ],
    ids=["raw", "compressed", "compressed without size"],
)
def test_frames_larger_than_allowed(frame: bytes, needed: int) -> None:
    assert body_of(frame, needed) == bytes(2**20)
    with pytest.raises(UnsupportedCheckpoint, match=r"the file: .* needs more memory than the 0\.00\d+ GiB allowed"):
        body_of(frame, needed - 1)


@given(st.binary(max_size=40), st.booleans())
def test_anything_in_a_frame(body: bytes, compress: bool) -> None:
    with contextlib.suppress(UnreadableCheckpoint, UnsupportedCheckpoint):
        body_of(signed(b"\0\1" + body if compress else body))
