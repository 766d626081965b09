"""Varieties that Orbax no longer writes, made by hand."""

from __future__ import annotations

from pathlib import Path as FilePath

import flax
import flax.training.checkpoints
import flax.training.train_state
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from converter.errors import (
    UnreadableCheckpoint,
    UnsupportedCheckpoint,
)
from converter.paths import format_path
from tests.formats.orbax.support import FORMAT, bits, cut, legacy, of_pytree, of_tree, plain_files, values

pytestmark = pytest.mark.filterwarnings("ignore")


def test_reads_values_in_the_msgpack_file(tmp_path: FilePath) -> None:
    content = {
        "a": {"w": values("bfloat16", (2, 3)), "scalar": np.float32(2.5), "zero_d": np.asarray(3.0)},
        "list": [1, {"x": 2.5}, None, [], {}],
        "complex": 1 + 2j,
        "text": "hello",
    }
    legacy(tmp_path / "saved", content)
    checkpoint = FORMAT.open(tmp_path / "saved")
    assert FORMAT.sniff(tmp_path / "saved")
    assert checkpoint.facts["version"] == "as Orbax up to 0.5.10 writes it"
    assert {format_path(path): str(leaf.spec) for path, leaf in checkpoint.tree.items()} == {
        "a/w": "bfloat16[2,3]",
        "a/scalar": "float32()",
        "a/zero_d": "float64[]",
        "list/0": "int",
        "list/1/x": "float",
        "list/2": "None",
        "list/3": "[]",
        "list/4": "{}",
        "complex": "complex",
        "text": "str",
    }
    assert bits(checkpoint.tree[("a", "w")].fetch()) == bits(content["a"]["w"])
    assert checkpoint.tree[("list", "1", "x")].fetch() == 2.5
    assert checkpoint.tree[("complex",)].fetch() == 1 + 2j


def test_reads_arrays_in_pieces(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)
    legacy(tmp_path / "saved", {"a": np.arange(12, dtype=np.float32).reshape(3, 4)})
    (leaf,) = FORMAT.open(tmp_path / "saved").tree.values()
    np.testing.assert_array_equal(leaf.fetch(), np.arange(12, dtype=np.float32).reshape(3, 4))


def test_reads_placeholders_of_arrays(tmp_path: FilePath) -> None:
    plain_files(tmp_path / "saved", {"a": {"w": jnp.arange(3)}, "l": [jnp.ones(2)]})
    (tmp_path / "saved" / "_METADATA").unlink()
    (tmp_path / "saved" / "checkpoint").write_bytes(
        msgpack.packb({"a": {"w": "PLACEHOLDER://a.w"}, "l": ["PLACEHOLDER://l.0"], "n": None})
    )
    expected = of_pytree({"a": {"w": jnp.arange(3)}, "l": [jnp.ones(2)], "n": None})
    assert of_tree(FORMAT.open(tmp_path / "saved").tree) == expected


def test_refuses_msgpack_files_it_cannot_read(tmp_path: FilePath) -> None:
    legacy(tmp_path / "saved", {"a": np.ones(3), "b": "//GDAPlaceholder:b"})
    with pytest.raises(UnsupportedCheckpoint, match="b: the value was saved by several processes"):
        FORMAT.open(tmp_path / "saved")
    cut(tmp_path / "saved" / "checkpoint")
    with pytest.raises(UnreadableCheckpoint, match="checkpoint is damaged: no msgpack tree"):
        FORMAT.open(tmp_path / "saved")
    (tmp_path / "saved" / "checkpoint").write_bytes(msgpack.packb({"a": msgpack.ExtType(9, b"x")}))
    with pytest.raises(UnreadableCheckpoint, match="unknown msgpack extension 9"):
        FORMAT.open(tmp_path / "saved")


def test_reads_the_database_of_one_process_that_was_never_merged(saved: FilePath) -> None:
    expected = of_tree(FORMAT.open(saved).tree)
    (saved / "manifest.ocdbt").unlink()
    assert of_tree(FORMAT.open(saved).tree) == expected
