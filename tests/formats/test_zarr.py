"""The metadata of zarr arrays: what is written for a grid says what the grid says, to us and to TensorStore."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.errors import UnsupportedCheckpoint
from converter.formats import zarr
from converter.grid import Axis, Encoding, Grid
from tests.grids import decoded, encoded

DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "int8", "uint64", "bool", "complex64")

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def plain_grids(draw: st.DrawFn) -> Grid:
    """Arrays in chunks that are nothing but their elements, in C or F order."""
    dtype = zarr.numpy_dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
    # What stands out beyond the end is garbage, of which TensorStore wants none among booleans.
    chunk = tuple(draw(st.integers(1, size + 1)) if dtype.kind != "b" else size for size in shape)
    axes = tuple(range(len(shape)))
    array = np.asarray(np.random.default_rng(0).integers(0, 2, shape)).astype(dtype)
    encoding = Encoding(zarr.type_string(array.dtype.name))
    return encoded(array, chunk, draw(st.sampled_from([axes, axes[::-1]])), encoding=encoding)


@given(plain_grids(), st.sampled_from(["zarr2", "zarr3"]))
@many
def test_tensorstore_reads_what_the_metadata_say(tmp_path: Path, grid: Grid, version: str) -> None:
    assert zarr.can_hold(grid, version) is (version == "zarr2" or grid.form.is_c_ordered)
    if not zarr.can_hold(grid, version):
        return
    text = zarr.metadata(grid.form, version)
    found = zarr.parse(text)
    form = found.form
    assert (form.shape, form.chunk_shape) == (grid.form.shape, grid.form.chunk_shape)
    assert form.encoding.dtype == grid.encoding.dtype
    assert grid.form.runs(*(axis for axis in form.order if grid.axes[axis].chunk > 1))
    assert form.encoding.is_raw
    assert form.encoding.container == version
    directory = tmp_path / str(len(list(tmp_path.iterdir())))
    for key, data in {zarr.METADATA_KEYS[version]: text, **_chunks(found, grid)}.items():
        (directory / key).parent.mkdir(parents=True, exist_ok=True)
        (directory / key).write_bytes(data)
    driver = "zarr" if version == "zarr2" else "zarr3"
    opened = ts.open({"driver": driver, "kvstore": f"file://{directory}/"}, open=True).result()
    assert np.asarray(opened.read().result()).tobytes() == decoded(grid).tobytes()


def _chunks(found: zarr.ZarrArray, grid: Grid) -> dict[str, Any]:
    return {found.chunk_key(index): chunk for index, chunk in grid.chunks.items()}


@given(plain_grids(), st.sampled_from(["zarr2", "zarr3"]))
def test_metadata_of_what_was_read_are_what_was_read(grid: Grid, version: str) -> None:
    """Also compressors, fill values and whatever else is beyond us."""
    if not zarr.can_hold(grid, version):
        return
    content = json.loads(zarr.metadata(grid.form, version))
    if version == "zarr2":
        content |= {"compressor": {"id": "blosc", "cname": "lz4"}, "fill_value": 1}
    else:
        content |= {"attributes": {"a": [1]}, "fill_value": 1, "codecs": [content["codecs"][0], {"name": "crc32c"}]}
    first = zarr.parse(json.dumps(content).encode())
    assert first.form.encoding.compression == "?"
    again = Grid(first.form, {})
    assert json.loads(zarr.metadata(again.form, version)) == content


def sharded(**said: Any) -> dict[str, Any]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    parts = {"chunk_shape": [2, 3], "codecs": [little], "index_codecs": [little, {"name": "crc32c"}], **said}
    return {
        "shape": [4, 6],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 6]}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "sharding_indexed", "configuration": parts}],
        "fill_value": 0,
        "node_type": "array",
        "zarr_format": 3,
    }


def test_shards_with_other_axes() -> None:
    found = zarr.parse(json.dumps(sharded()).encode())
    grid = Grid(found.form, {})
    new = grid.laid((Axis(3, 1, 1, 1), *grid.axes), (0, 1, 2), {})
    again = zarr.parse(zarr.metadata(new.form, "zarr3"))
    assert [(axis.size, axis.chunk, axis.inner) for axis in again.form.axes] == [(3, 1, 1), (4, 4, 2), (6, 6, 3)]
    assert again.form.encoding == found.form.encoding


def test_names_of_axes_do_not_outlive_them() -> None:
    found = zarr.parse(json.dumps({**sharded(), "dimension_names": ["x", "y"]}).encode())
    grid = Grid(found.form, {})
    assert json.loads(zarr.metadata(grid.form, "zarr3"))["dimension_names"] == ["x", "y"]
    new = grid.laid((Axis(3, 1, 1, 1), *grid.axes), (0, 1, 2), {})
    assert "dimension_names" not in json.loads(zarr.metadata(new.form, "zarr3"))


def test_chunks_of_the_other_version_are_not_held() -> None:
    for version, other in (("zarr2", "zarr3"), ("zarr3", "zarr2")):
        grid = encoded(np.ones((2, 3), np.float32), encoding=Encoding("<f4", "zstd", version, "{}"))
        assert zarr.can_hold(grid, version)
        assert not zarr.can_hold(grid, other)


def test_what_no_version_can_say() -> None:
    array = np.ones((2, 3, 4), np.float32)
    bare = Encoding("<f4")
    for version in ("zarr2", "zarr3"):
        assert not zarr.can_hold(encoded(array, order=(1, 0, 2), encoding=bare), version)
        assert not zarr.can_hold(encoded(array, (1, 3, 4), missing=[(0, 0, 0)], encoding=bare), version)
        assert not zarr.can_hold(encoded(array, encoding=Encoding(">f4")), version)
        assert not zarr.can_hold(encoded(array, encoding=Encoding("<f4", "zstd")), version)
        # Axes of which a chunk has one element only may stand anywhere.
        assert zarr.can_hold(encoded(array, (1, 3, 4), order=(1, 0, 2), encoding=bare), version)


BAD_2: list[dict[str, Any]] = [
    {"shape": [3]},
    {"chunks": [0, 3]},
    {"chunks": [-1, 3]},
    {"shape": [-2, 3]},
    {"shape": None},
    {"shape": "ab"},
    {"shape": "23"},
    {"shape": [2.0, 3]},
    {"chunks": ["2", "3"]},
    {"compressor": "zstd"},
    {"dtype": 7},
    {"dtype": "float99"},
    {"dtype": "|O"},
    {"dtype": [["a", "<f4"]]},
]


@pytest.mark.parametrize("change", BAD_2, ids=str)
def test_damaged_metadata(change: dict[str, Any]) -> None:
    grid = encoded(np.ones((2, 3), np.float32), encoding=Encoding("<f4"))
    content = json.loads(zarr.metadata(grid.form, "zarr2")) | change
    with pytest.raises((KeyError, TypeError, ValueError, UnsupportedCheckpoint)):
        zarr.parse(json.dumps(content).encode())


@pytest.mark.parametrize("key", ["shape", "chunks", "dtype", "order", "compressor"])
def test_metadata_that_are_missing(key: str) -> None:
    content = json.loads(zarr.metadata(encoded(np.ones((2, 3), np.float32), encoding=Encoding("<f4")).form, "zarr2"))
    del content[key]
    with pytest.raises(KeyError):
        zarr.parse(json.dumps(content).encode())


@pytest.mark.parametrize("parts", [[], [2], [2, 3, 1], [0, 3], [4, 4]], ids=str)
def test_parts_that_no_chunk_consists_of(parts: list[int]) -> None:
    with pytest.raises(ValueError, match="parts"):
        zarr.parse(json.dumps(sharded(chunk_shape=parts)).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7", b"null", b'"data_type"', b"\xff", b'{"data_type": []}'])
def test_no_metadata_at_all(text: bytes) -> None:
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError, UnsupportedCheckpoint)):
        zarr.parse(text)


def test_other_orders_of_axes_are_refused() -> None:
    """In a shape that was changed they would mean something else."""
    content = sharded()
    content["codecs"] = [
        {"name": "transpose", "configuration": {"order": [1, 0]}},
        {"name": "bytes", "configuration": {"endian": "little"}},
    ]
    with pytest.raises(UnsupportedCheckpoint, match="written by way of transpose and bytes"):
        zarr.parse(json.dumps(content).encode())


def test_chunks_have_as_many_bytes_as_elements() -> None:
    for name in DTYPES:
        assert zarr.dtype_name(zarr.type_string(name)) == name
        grid = encoded(np.ones((2, 3), zarr.numpy_dtype(name)), encoding=Encoding(zarr.type_string(name)))
        assert grid.nbytes == math.prod(grid.form.shape) * zarr.numpy_dtype(name).itemsize
