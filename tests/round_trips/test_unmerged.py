"""OCDBT databases of several processes that Orbax never merged: together they are the checkpoint, or it is refused.

A save is taken apart by TensorStore's own driver as Orbax lays it out: chunks spread over ``ocdbt.process_N``, metadata
in that of process 0, no manifest beside them. The corpus has saves of two real processes.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

import converter
from converter.errors import UnreadableCheckpoint
from fixtures.cards import describe

from . import support

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
RANDOM = np.random.default_rng(7)
PARAMS = {
    "Dense_0": {"kernel": RANDOM.standard_normal((192, 24), np.float32), "bias": np.zeros(24, np.float32)},
    "Dense_1": {"kernel": RANDOM.standard_normal((48, 16), np.float32), "bias": np.ones(3, np.float32)},
}
CHUNK = 64 * 24


def save(directory: Path, zarr3: bool = False) -> Path:
    """A checkpoint with arrays of several chunks, larger than what OCDBT keeps in its index."""
    variables = jax.tree.map(jnp.asarray, {"params": PARAMS})
    arguments = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK), variables)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_zarr3=zarr3)) as checkpointer:
        checkpointer.save(directory, ocp.args.PyTreeSave(variables, save_args=arguments))
    return directory


def database(directory: Path) -> ts.KvStore:
    base = {"driver": "file", "path": f"{directory}/"}
    return ts.KvStore.open({"driver": "ocdbt", "base": base, "config": {"max_inline_value_bytes": 1024}}).result()


def split(merged: Path, directory: Path, processes: int) -> Path:
    """The same save before its databases were merged."""
    shutil.copytree(merged, directory, ignore=shutil.ignore_patterns("d", "manifest.ocdbt", "ocdbt.process_*"))
    store = database(merged)
    parts = [database(directory / f"ocdbt.process_{number}") for number in range(processes)]
    chunk = 0
    for key in store.list().result():
        is_metadata = key.endswith((b".zarray", b"zarr.json"))
        parts[0 if is_metadata else chunk % processes][key] = store[key]
        chunk += not is_metadata
    return directory


@pytest.fixture(scope="module", params=["zarr2", "zarr3"])
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("merged") / "save", zarr3=request.param == "zarr3")


@pytest.fixture
def unmerged(merged: Path, tmp_path: Path) -> Path:
    return split(merged, tmp_path / "source" / "save", 3)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def is_zarr3(directory: Path) -> bool:
    return bool(json.loads((directory / "_METADATA").read_text())["use_zarr3"])


def set_all_stored(directory: Path, value: bool) -> None:
    file = directory / "_METADATA"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"store_array_data_equal_to_fill_value": value}))


# What is read --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 11])
def test_the_databases_together_are_the_checkpoint(merged: Path, processes: int, tmp_path: Path) -> None:
    inspection = converter.inspect(split(merged, tmp_path / "save", processes))
    assert inspection.to_json()["facts"]["layout"].startswith("OCDBT (never merged), zarr")
    support.assert_equal(support.read_ourselves(inspection.checkpoint.tree), support.read(merged))


def test_orbax_merges_them_into_the_same(merged: Path, unmerged: Path) -> None:
    """The way these tests take a save apart is Orbax's."""
    found = support.read_ourselves(converter.inspect(unmerged).checkpoint.tree)
    context = ts.Context({"cache_pool#ocdbt": {}})
    asyncio.run(ocp.type_handlers.merge_ocdbt_per_process_files(unmerged, context, use_zarr3=is_zarr3(unmerged)))
    support.assert_equal(support.read(unmerged), found)


def test_conversions_give_what_those_of_the_merged_one_give(merged: Path, unmerged: Path, out: Path) -> None:
    support.convert(unmerged, out / "nnx", "nnx")
    support.convert(merged, out / "expected", "nnx")
    support.assert_equal(support.read(out / "nnx"), support.read(out / "expected"))
    assert converter.verify(unmerged, out / "nnx").ok
    assert converter.diff(unmerged, merged, values=True).ok
    assert converter.diff(unmerged, out / "nnx", values=True).ok
    support.convert(out / "nnx", out / "back", "linen")
    support.assert_equal(support.read(out / "back"), support.read(merged))


def test_the_files_of_all_processes_are_linked_to(unmerged: Path, out: Path) -> None:
    support.convert(unmerged, out / "nnx", "nnx")
    made = {file.stat().st_ino for file in (out / "nnx" / "d").iterdir()}
    for process in unmerged.glob("ocdbt.process_*"):
        linked = made & {file.stat().st_ino for file in (process / "d").iterdir()}
        assert linked
        made -= linked
    assert len(made) == 1, "only the index is new"
    shutil.rmtree(unmerged)
    assert len(support.read(out / "nnx")) == 4


def test_a_compressor_that_only_tensorstore_knows(tmp_path: Path) -> None:
    unmerged = split(save(tmp_path / "merged"), tmp_path / "save", 3)
    parts = [database(unmerged / f"ocdbt.process_{number}") for number in range(3)]
    prefix, scratch = "params.Dense_1.kernel/", ts.KvStore.open("memory://").result()
    metadata = json.loads(parts[0][f"{prefix}.zarray"]) | {"compressor": {"id": "blosc"}}
    array = ts.open({"driver": "zarr", "metadata": metadata}, kvstore=scratch, create=True).result()
    array[...] = PARAMS["Dense_1"]["kernel"]
    for number, key in enumerate(scratch.list().result()):
        parts[number % 3][prefix.encode() + key] = scratch[key]
        for other in (number + 1, number + 2):
            del parts[other % 3][prefix.encode() + key]
    tree = {"/".join(path): leaf for path, leaf in converter.inspect(unmerged).checkpoint.tree.items()}
    np.testing.assert_array_equal(tree["params/Dense_1/kernel"].fetch(), PARAMS["Dense_1"]["kernel"])


def test_what_two_databases_have_alike(unmerged: Path) -> None:
    expected = support.read_ourselves(converter.inspect(unmerged).checkpoint.tree)
    first, second = database(unmerged / "ocdbt.process_0"), database(unmerged / "ocdbt.process_1")
    for key in first.list().result():
        second[key] = first[key]
    support.assert_equal(support.read_ourselves(converter.inspect(unmerged).checkpoint.tree), expected)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs the checkpoint corpus in ../shared/corpus")
@pytest.mark.parametrize("name", ["cur_v12_2proc_std", "cur_v12_2proc_zarr3"])
def test_what_two_real_processes_saved(name: str, tmp_path: Path, out: Path) -> None:
    merged = CORPUS / name / "ckpt"
    source = tmp_path / "save"
    shutil.copytree(merged, source, ignore=lambda place, _: {"d", "manifest.ocdbt"} if Path(place) == merged else set())
    expected = support.read_ourselves(converter.inspect(merged).checkpoint.tree)
    support.assert_equal(support.read_ourselves(converter.inspect(source).checkpoint.tree), expected)
    support.convert(source, out / "nnx", "nnx")
    assert converter.diff(merged, out / "nnx", values=True).ok
    shutil.rmtree(source / "ocdbt.process_1")
    assert "ocdbt.process_1 is missing; parts of arrays are in none of them" in refusal(source)


# What is missing -----------------------------------------------------------------------------------------------------


def refusal(directory: Path) -> str:
    with pytest.raises(UnreadableCheckpoint) as refused:
        converter.inspect(directory)
    return str(refused.value)


def test_a_process_in_between_is_missing(unmerged: Path) -> None:
    shutil.rmtree(unmerged / "ocdbt.process_1")
    words = "its OCDBT databases (ocdbt.process_0, ocdbt.process_2) were never merged, and ocdbt.process_1 is missing"
    text = refusal(unmerged)
    assert words in text
    assert "params/Dense_0/kernel (4 of 12 chunks)" in text
    set_all_stored(unmerged, False)
    assert words in refusal(unmerged)


def test_the_process_with_the_metadata_is_missing(unmerged: Path) -> None:
    shutil.rmtree(unmerged / "ocdbt.process_0")
    text = refusal(unmerged)
    assert "without array data: params/Dense_0/bias, " in text
    assert "never merged, and ocdbt.process_0 is missing" in text


def test_the_last_process_is_missing(unmerged: Path) -> None:
    """Nothing tells how many there were, but chunks of zeros would have been stored too."""
    shutil.rmtree(unmerged / "ocdbt.process_2")
    words = "(ocdbt.process_0, ocdbt.process_1) were never merged; parts of arrays are in none of them"
    text = refusal(unmerged)
    assert words in text
    assert "these parts are zeros" not in text
    set_all_stored(unmerged, False)
    text = refusal(unmerged)
    assert words in text
    assert ("If there are no more, these parts are zeros" in text) == is_zarr3(unmerged)


def test_a_last_process_that_left_array_metadata(unmerged: Path) -> None:
    (unmerged / "array_metadatas" / "process_1").write_text('{"array_metadatas": []}')
    (unmerged / "array_metadatas" / "process_3").write_text('{"array_metadatas": []}')
    assert converter.inspect(unmerged).checkpoint.tree, "it had nothing to write: all chunks are there"
    for name in ("ocdbt.process_1", "ocdbt.process_2"):
        shutil.rmtree(unmerged / name)
    assert "ocdbt.process_1, ocdbt.process_2, ocdbt.process_3 are missing" in refusal(unmerged)


def drop_chunks(directory: Path, name: str) -> None:
    for place in directory.glob("ocdbt.process_*"):
        store = database(place)
        for key in store.list().result():
            if key.startswith(f"{name}/".encode()) and not key.endswith((b".zarray", b"zarr.json")):
                del store[key]


def test_arrays_of_zeros_that_an_old_orbax_did_not_store(unmerged: Path) -> None:
    drop_chunks(unmerged, "params.Dense_0.bias")
    assert "params/Dense_0/bias (1 of 1 chunks)" in refusal(unmerged)
    set_all_stored(unmerged, False)
    if not is_zarr3(unmerged):  # without a fill value TensorStore has always stored zeros too
        assert "params/Dense_0/bias (1 of 1 chunks)" in refusal(unmerged)
        return
    found = support.read_ourselves(converter.inspect(unmerged).checkpoint.tree)
    assert found == support.flat(describe({"params": PARAMS}))


def test_databases_that_contradict_each_other(unmerged: Path) -> None:
    first, last = database(unmerged / "ocdbt.process_0"), database(unmerged / "ocdbt.process_2")
    key = next(key for key in first.list().result() if key.startswith(b"params.Dense_1.kernel/") and b"zarr" not in key)
    last[key] = first[key][::-1]
    text = refusal(unmerged)
    assert f"{unmerged}/ocdbt.process_0 and {unmerged}/ocdbt.process_2 hold different values of {key.decode()}" in text
