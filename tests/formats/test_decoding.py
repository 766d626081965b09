"""Arrays as TensorStore wrote them, decoded by our own code in every way there is: whole, and piece by piece."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter import scratch
from converter.dtypes import element_bits
from converter.errors import UnreadableCheckpoint
from converter.formats import decoding, zarr
from converter.formats.chunks import forget_files
from converter.grid import Axis, Encoding, Form, Grid
from converter.stored import Extent
from tests.grids import encoded

Array = np.ndarray[Any, Any]

TINY = 1 << 16
"""Bytes that ``scratch`` keeps in memory at the least: its budget is 16 times that."""

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextlib.contextmanager
def limit(directory: Path, nbytes: int) -> Iterator[None]:
    """Lets arrays and pieces be no larger than that, so that small arrays take the ways of large ones."""
    with scratch.room(directory, 0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch._room, "limit", nbytes)
        yield


# TensorStore's arrays ------------------------------------------------------------------------------------------------

DTYPES = ("float32", "bfloat16", "int4", "float8_e4m3fn", "bool", "complex64", "int64")

ZSTD, GZIP = {"id": "zstd", "level": 1}, {"id": "gzip", "level": 1}
CODECS: dict[str, list[Any]] = {
    "": [],
    "zstd": [{"name": "zstd", "configuration": {"level": 1}}],
    "gzip": [{"name": "gzip", "configuration": {"level": 1}}],
}


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def random_array(name: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    numbers = np.random.default_rng(seed).integers(-8, 8, shape)
    return np.asarray(numbers).astype(dtype_of(name))


def zarr2(array: Array, chunks: tuple[int, ...], compression: str, order: str = "C", fill: Any = None) -> Any:
    """The specification of a zarr 2 array."""
    compressor = {"": None, "zstd": ZSTD, "gzip": GZIP}[compression]
    name = array.dtype.name if array.dtype.kind == "V" else array.dtype.str
    metadata = {"chunks": chunks, "compressor": compressor, "order": order, "shape": array.shape, "dtype": name}
    return {"driver": "zarr", "metadata": {**metadata, "fill_value": fill}}


def zarr3(
    array: Array,
    chunks: tuple[int, ...],
    compression: str,
    inner: tuple[int, ...] = (),
    fill: Any = None,
    endian: str = "little",
) -> Any:
    """The same of zarr 3, in shards where there is an inner shape."""
    codecs = [{"name": "bytes", "configuration": {"endian": endian}}, *CODECS[compression]]
    if inner:
        codecs = [{"name": "sharding_indexed", "configuration": {"chunk_shape": inner, "codecs": codecs}}]
    grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
    metadata = {"shape": array.shape, "chunk_grid": grid, "codecs": codecs, "data_type": array.dtype.name}
    return {"driver": "zarr3", "metadata": metadata | ({} if fill is None else {"fill_value": fill})}


def stored(directory: Path, array: Array, spec: Any, part: Any = ...) -> tuple[Grid, Array]:
    """Lets TensorStore write (a part of) the array, and returns it as a grid of files and as TensorStore reads it."""
    place = {"kvstore": {"driver": "file", "path": f"{directory}/", "file_io_sync": False}}
    opened = ts.open({**spec, **place, "store_data_equal_to_fill_value": True}, create=True).result()
    opened[part].write(array[part]).result()
    version = "zarr2" if spec["driver"] == "zarr" else "zarr3"
    return grid_of(directory, version), np.asarray(opened.read().result())


def grid_of(directory: Path, version: str) -> Grid:
    found = zarr.parse((directory / zarr.METADATA_KEYS[version]).read_bytes())
    form = found.form
    chunks = {}
    for index in form.indices():
        file = directory / found.chunk_key(index)
        if file.is_file():
            chunks[index] = Extent(str(file), 0, file.stat().st_size)
    return Grid(form, chunks)


def joined(grid: Grid) -> bytes:
    return b"".join(bytes(piece) for piece in decoding.pieces(grid))


def assert_decodes(grid: Grid, expected: Array, directory: Path) -> None:
    """All ways lead to the same bytes; under a small limit no piece is larger than that, but for an element."""
    for nbytes in (1 << 20, 60, 1):
        with limit(directory, nbytes):
            found = decoding.read(grid)
            assert (found.dtype, found.shape) == (expected.dtype.newbyteorder("="), expected.shape)
            assert (element_bits(found) == element_bits(expected.astype(found.dtype))).all()
            assert joined(grid) == found.tobytes()
            sizes = [len(piece) for piece in decoding.pieces(grid)]
            assert max(sizes, default=0) <= max(nbytes, expected.itemsize)


LAYOUTS = [
    ((5, 6), (5, 6)),  # one chunk
    ((5, 6), (2, 6)),  # rows, the last chunk stands out
    ((5, 6), (2, 4)),
    ((5, 6), (7, 9)),  # more than the array
    ((5, 6), (1, 1)),
    ((24,), (7,)),
    ((2, 3, 4), (1, 3, 4)),
    ((2, 3, 4), (2, 2, 3)),
    ((2, 3, 4), (1, 1, 4)),
    ((), ()),
]


def layouts(dtype: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What is the same for all dtypes is tried with two of them."""
    return LAYOUTS if dtype in ("float32", "bfloat16") else LAYOUTS[2::5]


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [*DTYPES, ">f4"])
def test_zarr2(dtype: str, order: str, compression: str, tmp_path: Path) -> None:
    for number, (shape, chunks) in enumerate(layouts(dtype)):
        if order == "F" and len(shape) < 2:  # TensorStore knows no such thing
            continue
        array = random_array(dtype, shape, number)
        directory = tmp_path / str(number)
        grid, read = stored(directory, array, zarr2(array, chunks, compression, order))
        assert_decodes(grid, read, tmp_path)


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr3(dtype: str, sharded: bool, compression: str, tmp_path: Path) -> None:
    for number, (shape, chunks) in enumerate(layouts(dtype)):
        array = random_array(dtype, shape, number)
        # The largest proper part of each axis: some of them smaller than the chunk, none of them larger.
        inner = tuple(next((n for n in range(c - 1, 0, -1) if c % n == 0), 1) for c in chunks) if sharded else ()
        directory = tmp_path / str(number)
        grid, read = stored(directory, array, zarr3(array, chunks, compression, inner))
        assert grid.encoding.sharded is bool(inner)
        assert_decodes(grid, read, tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_zarr3_in_the_other_byte_order(dtype: str, tmp_path: Path) -> None:
    array = random_array(dtype, (5, 6))
    grid, read = stored(tmp_path / "array", array, zarr3(array, (2, 4), "", endian="big"))
    assert read.tobytes() == array.tobytes()
    if decoding.can_decode(grid):
        assert_decodes(grid, array, tmp_path)
    else:
        assert not grid.encoding.is_raw


FILLS: list[tuple[str, int, Any]] = [
    ("float32", 2, None),
    ("float32", 2, 1.5),
    ("float32", 2, "NaN"),
    ("float32", 2, "-Infinity"),
    ("bfloat16", 3, 1.5),
    ("bfloat16", 3, "NaN"),
    ("bfloat16", 3, "0x7fc1"),
    ("float32", 3, "0x7fc00001"),
    ("float32", 3, 1.5),
    ("int4", 3, -3),
    ("bool", 3, True),
    ("bool", 2, True),
    ("complex64", 3, [1.0, -2.0]),
    ("complex64", 3, ["NaN", "Infinity"]),
    ("complex64", 2, None),
    ("int64", 2, 7),
    ("int64", 3, 2**60 + 1),
    ("uint64", 3, 2**64 - 1),
    (">f4", 2, 2.5),
]


@pytest.mark.parametrize(("dtype", "version", "fill"), FILLS)
def test_chunks_that_are_missing(dtype: str, version: int, fill: Any, tmp_path: Path) -> None:
    array = random_array(dtype, (5, 6))
    for number, (compression, inner) in enumerate(itertools.product(["", "zstd"], [(), (1, 2)])):
        if version == 2 and inner:
            continue
        made = zarr2(array, (2, 4), compression, fill=fill) if version == 2 else None
        spec = made or zarr3(array, (2, 4), compression, inner, fill)
        directory = tmp_path / str(number)
        grid, read = stored(directory, array, spec, np.s_[1:3, 1:4])
        assert not grid.is_complete
        assert_decodes(grid, read, tmp_path)


def test_an_array_without_any_chunk(tmp_path: Path) -> None:
    array = np.ones((3, 3), np.float32)
    grid, read = stored(tmp_path / "array", array, zarr2(array, (2, 2), "", fill=4.0), np.s_[0:0])
    assert not grid.chunks
    assert (read == 4).all()
    assert_decodes(grid, read, tmp_path)


def test_other_indices_of_shards_are_left_to_tensorstore(tmp_path: Path) -> None:
    """The index may stand in front, or have no checksum; Orbax writes neither."""
    array = random_array("float32", (4, 6))
    for number, said in enumerate(
        (
            {"index_location": "start"},
            {"index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]},
            {"index_codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]},
        )
    ):
        spec = zarr3(array, (4, 6), "", (2, 3))
        spec["metadata"]["codecs"][0]["configuration"] |= said
        grid, read = stored(tmp_path / str(number), array, spec)
        assert (read == array).all()
        assert not decoding.can_decode(grid)


# Any grid ------------------------------------------------------------------------------------------------------------


@given(st.data())
@many
def test_any_grid(tmp_path: Path, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=4)))
    chunk = tuple(data.draw(st.integers(1, size + 2)) for size in shape)
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    array = random_array(data.draw(st.sampled_from(DTYPES)), shape)
    places = list(np.ndindex(*(math.ceil(size / length) for size, length in zip(shape, chunk, strict=True))))
    missing = data.draw(st.lists(st.sampled_from(places), max_size=2)) if places else []
    grid = encoded(array, chunk, order, missing=missing)
    expected = array.copy()
    for index in missing:
        start = [i * length for i, length in zip(index, chunk, strict=True)]
        expected[tuple(slice(s, s + length) for s, length in zip(start, chunk, strict=True))] = 0
    assert_decodes(grid, expected, tmp_path)


# Damage --------------------------------------------------------------------------------------------------------------


def one_chunk(data: bytes, compression: str, size: int) -> Grid:
    """A grid of bytes in one chunk."""
    return Grid(Form((Axis(size, size, size),), (0,), Encoding("|u1", compression)), {(0,): data})


def refused(grid: Grid, directory: Path) -> None:
    for nbytes in (1 << 20, 100, 1):
        with limit(directory, nbytes):
            with pytest.raises(UnreadableCheckpoint):
                decoding.read(grid)
            with pytest.raises(UnreadableCheckpoint):
                joined(grid)


CONTENT = bytes(range(250)) * 4
PACKED = {"": CONTENT, "zstd": zstandard.compress(CONTENT), "gzip": gzip.compress(CONTENT)}
STREAMED = zstandard.ZstdCompressor().compressobj()
UNSIZED = STREAMED.compress(CONTENT) + STREAMED.flush()


@pytest.mark.parametrize("compression", PACKED)
def test_chunks_that_are_cut_off(compression: str, tmp_path: Path) -> None:
    data = PACKED[compression]
    for length in (0, 1, 4, len(data) // 2, len(data) - 1):
        refused(one_chunk(data[:length], compression, len(CONTENT)), tmp_path)


@pytest.mark.parametrize("compression", PACKED)
@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1, 1, 100_000])
def test_chunks_of_another_size(compression: str, size: int, tmp_path: Path) -> None:
    refused(one_chunk(PACKED[compression], compression, size), tmp_path)
    if compression == "zstd":
        refused(one_chunk(UNSIZED, compression, size), tmp_path)


def test_a_frame_that_does_not_tell_its_size(tmp_path: Path) -> None:
    assert_decodes(one_chunk(UNSIZED, "zstd", len(CONTENT)), np.frombuffer(CONTENT, np.uint8), tmp_path)


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_chunks_that_unpack_to_far_more(compression: str, tmp_path: Path) -> None:
    """They are not unpacked any further than they should be."""
    zeros = bytes(1 << 26)
    bomb = zstandard.compress(zeros) if compression == "zstd" else gzip.compress(zeros, 1)
    refused(one_chunk(bomb, compression, 1000), tmp_path)


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=12))
def test_damage_does_not_spoil_the_chunks_after_it(chunks: list[tuple[int, bool]]) -> None:
    """One decompressor serves many chunks."""
    for cut, sized in chunks:
        frame = PACKED["zstd"] if sized else UNSIZED
        with contextlib.suppress(UnreadableCheckpoint):
            joined(one_chunk(frame[: len(frame) - cut], "zstd", len(CONTENT)))
        assert joined(one_chunk(frame, "zstd", len(CONTENT))) == CONTENT


def test_threads_do_not_disturb_each_other() -> None:
    contents = [bytes([number]) * 100_000 for number in range(64)]
    grids = [one_chunk(zstandard.compress(content), "zstd", len(content)) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(joined, grids * 4)) == contents * 4


@given(st.sampled_from(["zstd", "gzip"]), st.integers(0, 400), st.integers(1, 255))
@many
def test_garbled_chunks(tmp_path: Path, compression: str, place: int, change: int) -> None:
    data = bytearray(PACKED[compression])
    data[place % len(data)] ^= change
    for nbytes in (1 << 20, 1):
        with limit(tmp_path, nbytes), contextlib.suppress(UnreadableCheckpoint):
            assert len(joined(one_chunk(bytes(data), compression, len(CONTENT)))) == len(CONTENT)


@given(st.integers(0, 10_000), st.integers(1, 255), st.integers(0, 60))
@many
def test_garbled_shards(tmp_path: Path, place: int, change: int, cut: int) -> None:
    array = random_array("float32", (4, 6))
    directory = tmp_path / "array"
    if not directory.exists():
        stored(directory, array, zarr3(array, (4, 6), "zstd", (2, 3)))
    data = bytearray((directory / "c" / "0" / "0").read_bytes())
    data[place % len(data)] ^= change
    grid = grid_of(directory, "zarr3")
    with contextlib.suppress(UnreadableCheckpoint):
        decoding.read(replace(grid, chunks={(0, 0): bytes(data[: len(data) - cut])}))


def test_files_that_are_missing_or_too_short(tmp_path: Path) -> None:
    file = tmp_path / "file"
    grid = one_chunk(b"", "", 1000)
    refused(replace(grid, chunks={(0,): Extent(str(file), 0, 1000)}), tmp_path)
    file.write_bytes(bytes(999))
    refused(replace(grid, chunks={(0,): Extent(str(file), 0, 1000)}), tmp_path)
    refused(replace(grid, chunks={(0,): Extent(str(file), 5000, 1000)}), tmp_path)
    forget_files()


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    file, new = tmp_path / "file", tmp_path / "new"
    grid = replace(one_chunk(b"", "", 3), chunks={(0,): Extent(str(file), 0, 3)})
    file.write_bytes(b"old")
    assert joined(grid) == b"old"
    new.write_bytes(b"new")
    new.rename(file)
    assert joined(grid) == b"new"
    forget_files()


@pytest.mark.parametrize("inner", [[0, 3], [3, 3], [8, 6], [2]])
def test_parts_that_do_not_divide_a_chunk(inner: list[int], tmp_path: Path) -> None:
    array = random_array("float32", (4, 6))
    stored(tmp_path, array, zarr3(array, (4, 6), "", (2, 3)))
    content = json.loads((tmp_path / "zarr.json").read_bytes())
    content["codecs"][0]["configuration"]["chunk_shape"] = inner
    with pytest.raises(ValueError, match="parts"):
        zarr.parse(json.dumps(content).encode())
