"""T5X checkpoints: a msgpack file with TensorStore's specs, and an array in a directory for each of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from flax import serialization

import converter
from converter.errors import ConverterError, UnreadableCheckpoint, UnsupportedCheckpoint

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "checkpoints" / "linen_t5x" / "checkpoint"
KERNEL = ("optimizer", "target", "up", "kernel")
NAME = "target.up.kernel"

Spec = dict[str, Any]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A copy of the fixture's only step."""
    shutil.copytree(FIXTURE, tmp_path / "t5x")
    return tmp_path / "t5x" / "checkpoint_3"


def edit(saved: Path, change: Callable[[Spec], Any]) -> None:
    """Changes the spec of one kernel."""
    file = saved / "checkpoint"
    tree = serialization.msgpack_restore(file.read_bytes())
    spec = tree
    for key in KERNEL:
        spec = spec[key]
    change(spec)
    file.write_bytes(serialization.msgpack_serialize(tree))


def values(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {"/".join(at): np.asarray(leaf.fetch()) for at, leaf in converter.inspect(path).checkpoint.tree.items()}


def kernel(path: Path) -> np.ndarray[Any, Any]:
    return values(path)["/".join(KERNEL)]


# What is read --------------------------------------------------------------------------------------------------------


def test_the_steps_of_a_model_directory(saved: Path) -> None:
    shutil.copytree(saved, saved.with_name("checkpoint_10"))
    shutil.copytree(saved, saved.with_name("checkpoint_20.tmp-1667000000"))
    inspection = converter.inspect(saved.parent)
    assert (inspection.checkpoint.steps, inspection.checkpoint.step) == ((3, 10), 10)
    facts = inspection.checkpoint.facts
    assert facts["written by"] == "T5X"
    assert facts["layout"] == "files, zarr2"
    assert facts["unfinished saves"] == "checkpoint_20.tmp-1667000000"
    assert "version" not in facts, "the versions of Orbax that write such files"
    with pytest.raises(UnreadableCheckpoint, match=r"step 20 of .* is an unfinished save"):
        converter.inspect(saved.parent, step=20)


def test_arrays_are_linked_to_and_come_back(saved: Path, tmp_path: Path) -> None:
    converter.convert(saved, tmp_path / "nnx", "nnx")
    chunks = {file.stat().st_ino for file in saved.glob("*.*/[0-9]*")}
    linked = {file.stat().st_ino for file in (tmp_path / "nnx" / "d").iterdir()}
    assert len(chunks) == len(chunks & linked) == 24
    assert converter.verify(saved, tmp_path / "nnx").ok
    converter.convert(tmp_path / "nnx", tmp_path / "linen", "linen")
    assert converter.diff(saved, tmp_path / "linen", values=True).ok


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_other_dtypes(dtype: str, saved: Path) -> None:
    array = np.arange(30).reshape(6, 5).astype(getattr(ml_dtypes, dtype, dtype))
    shutil.rmtree(saved / NAME)
    metadata = {"compressor": {"id": "gzip"}, "shape": [6, 5], "chunks": [2, 5]}
    place = {"driver": "file", "path": f"{saved}/{NAME}"}
    spec = {"driver": "zarr", "dtype": dtype, "metadata": metadata, "kvstore": place}
    ts.open(spec, create=True).result()[...].write(array).result()
    edit(saved, lambda old: old.update(dtype=dtype, metadata=metadata))
    found = kernel(saved)
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


def in_a_bucket(spec: Spec) -> None:
    spec["kvstore"] = {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": f"{NAME}/"}


def in_a_named_bucket(spec: Spec) -> None:
    spec["kvstore"] = {"driver": "gcs", "bucket": "models", "path": f"run/checkpoint_3/{NAME}/"}


def at_an_address(spec: Spec) -> None:
    spec["kvstore"] = {"driver": "gfile", "path": f"gs://models/run/checkpoint_3/{NAME}/"}


def on_another_machine(spec: Spec) -> None:
    spec["kvstore"] = {"driver": "file", "path": f"/home/other/run/checkpoint_3/{NAME}/"}


def before_tensorstore_0_1_14(spec: Spec) -> None:
    spec["kvstore"] = {"driver": "file"}
    spec["path"] = NAME


def with_the_whole_domain(spec: Spec) -> None:
    spec["transform"] = {"input_inclusive_min": [0, 0], "input_exclusive_max": [[6], [10]]}


PORTABLE: dict[Callable[[Spec], None], str] = {
    in_a_bucket: f" (written to gcs://<bucket>/{NAME})",
    in_a_named_bucket: f" (written to gcs://models/run/checkpoint_3/{NAME})",
    at_an_address: f" (written to gs://models/run/checkpoint_3/{NAME})",
    on_another_machine: f" (written to /home/other/run/checkpoint_3/{NAME})",
    before_tensorstore_0_1_14: "",
    with_the_whole_domain: "",
}
"""Ways to name the array, all of which find it beside the file; and where it was written if it is not there."""


@pytest.mark.parametrize("change", PORTABLE, ids=lambda change: change.__name__)
def test_arrays_are_beside_the_file_wherever_they_were_written(change: Callable[[Spec], None], saved: Path) -> None:
    expected = kernel(saved)
    edit(saved, change)
    np.testing.assert_array_equal(kernel(saved), expected)
    shutil.rmtree(saved / NAME)
    with pytest.raises(UnreadableCheckpoint) as refused:
        converter.inspect(saved)
    where = PORTABLE[change]
    assert f"without array data: {'/'.join(KERNEL)}{where}\n" in str(refused.value)
    assert ("remote ones are not read" in str(refused.value)) == bool(where)


# What is refused -----------------------------------------------------------------------------------------------------


def part_of_the_domain(spec: Spec) -> None:
    spec["transform"] = {"input_inclusive_min": [0, 0], "input_exclusive_max": [[3], [10]]}


REFUSED: dict[str, tuple[Callable[[Spec], Any], type[ConverterError], str]] = {
    "another driver": (lambda spec: spec.update(driver="n5"), UnsupportedCheckpoint, "TensorStore's driver 'n5'"),
    "another store": (
        lambda spec: spec["kvstore"].update(driver="memory"),
        UnsupportedCheckpoint,
        "TensorStore's store 'memory'",
    ),
    "bfloat16 of old": (
        lambda spec: spec.update(dtype="uint16"),
        UnsupportedCheckpoint,
        "uint16, which stands for bfloat16 in checkpoints of T5X before version 3",
    ),
    "a part": (part_of_the_domain, UnsupportedCheckpoint, "a part of an array"),
    "another shape": (
        lambda spec: spec["metadata"].update(shape=[10, 6]),
        UnreadableCheckpoint,
        "its array is another one: expected float32[10,6], as noted beside it, found float32[6,10]",
    ),
    "another dtype": (
        lambda spec: spec.update(dtype="int32"),
        UnreadableCheckpoint,
        "expected int32[6,10], as noted beside it, found float32[6,10]",
    ),
    "no path": (lambda spec: spec["kvstore"].pop("path"), UnreadableCheckpoint, "expected the TensorStore spec of"),
    "no shape": (lambda spec: spec["metadata"].pop("shape"), UnreadableCheckpoint, "expected the TensorStore spec of"),
    "an address": (
        lambda spec: spec.update(kvstore="s3://bucket/name"),
        UnreadableCheckpoint,
        "expected the TensorStore spec of a zarr array",
    ),
    "a way out": (
        lambda spec: spec["kvstore"].update(path=f"../checkpoint_3/{NAME}/"),
        UnreadableCheckpoint,
        f"the name '../checkpoint_3/{NAME}' leaves",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_specs_that_t5x_does_not_write(name: str, saved: Path) -> None:
    change, error, words = REFUSED[name]
    edit(saved, change)
    with pytest.raises(error) as refused:
        converter.inspect(saved)
    assert str(refused.value).startswith("optimizer/target/up/kernel: ")
    assert words in str(refused.value)
    assert refused.value.advice
    assert refused.value.__cause__ is None


def test_a_missing_chunk_is_not_taken_for_zeros(saved: Path, tmp_path: Path) -> None:
    (saved / NAME / "1.0").unlink()
    with pytest.raises(UnreadableCheckpoint, match=r"optimizer/target/up/kernel: its chunk 1\.0 is missing"):
        converter.convert(saved, tmp_path / "nnx", "nnx")
    assert os.listdir(tmp_path) == ["t5x"]


def test_a_chunk_that_is_cut(saved: Path) -> None:
    chunk = saved / NAME / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:30])
    with pytest.raises(UnreadableCheckpoint, match=r"up/kernel: .*gzip"):
        kernel(saved)


def test_the_file_without_its_directory(saved: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint) as refused:
        converter.inspect(saved / "checkpoint")
    assert "is the TensorStore spec of an array, as in the index of a T5X checkpoint" in str(refused.value)
    assert f"Name the directory instead of the file: {saved}" in str(refused.value)
