"""Damage is one clear error, whatever is damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from converter.errors import (
    ConverterError,
    UnreadableCheckpoint,
    UnsupportedCheckpoint,
)
from tests.formats.orbax.support import FORMAT, cut, plain_files, pytree, zarr3_files

pytestmark = pytest.mark.filterwarnings("ignore")


def open_and_read_all(path: FilePath) -> None:
    for leaf in FORMAT.open(path).tree.values():
        leaf.fetch()


def delete_values(saved: FilePath) -> None:
    for file in (saved / "ocdbt.process_0" / "d").iterdir():
        file.unlink()


def delete_index(saved: FilePath) -> None:
    for file in (saved / "d").iterdir():
        file.unlink()


def delete_manifests(saved: FilePath) -> None:
    for file in saved.rglob("manifest.ocdbt"):
        file.unlink()


def rename_leaf(saved: FilePath) -> None:
    file = saved / "_METADATA"
    file.write_text(file.read_text().replace('"key": "small"', '"key": "other"'))


DAMAGES: Mapping[str, tuple[Callable[[FilePath], Any], str]] = {
    "manifest cut": (lambda saved: cut(saved / "manifest.ocdbt"), "manifest.ocdbt is damaged: expected"),
    "manifest empty": (lambda saved: (saved / "manifest.ocdbt").write_bytes(b""), "manifest.ocdbt is damaged"),
    "manifests deleted": (delete_manifests, "without array data: a, b, small"),
    "index deleted": (delete_index, "cannot be read: No such file"),
    "index cut": (lambda saved: cut(next((saved / "d").iterdir())), "B-tree node .* is damaged"),
    "values deleted": (delete_values, "cannot be read: No such file"),
    "values cut": (
        lambda saved: cut(max(saved.rglob("d/*"), key=os.path.getsize)),
        "is damaged: expected values within",
    ),
    "_METADATA deleted": (lambda saved: (saved / "_METADATA").unlink(), "_METADATA is missing"),
    "_METADATA cut": (lambda saved: cut(saved / "_METADATA"), "_METADATA is damaged: no JSON"),
    "_METADATA a list": (lambda saved: (saved / "_METADATA").write_text("[]"), "_METADATA is damaged: it is not"),
    "_METADATA of others": (lambda saved: (saved / "_METADATA").write_text('{"a": 1}'), "_METADATA is damaged"),
    "leaf without data": (rename_leaf, "without array data: other\nThe checkpoint is incomplete"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_clear_error(name: str, saved: FilePath) -> None:
    damage, message = DAMAGES[name]
    damage(saved)
    with pytest.raises(UnreadableCheckpoint, match=message) as caught:
        open_and_read_all(saved)
    assert "tensorstore_spec" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("saver", [plain_files, zarr3_files], ids=lambda saver: saver.__name__)
def test_damage_in_plain_files(saver: Callable[[FilePath, Any], None], tmp_path: FilePath) -> None:
    saver(tmp_path / "saved", {"a": {"w": jnp.zeros((3, 4))}, "b": jnp.ones(2)})
    chunk = next(path for path in (tmp_path / "saved" / "a.w").rglob("*") if path.is_file() and "zarr" not in path.name)
    metadata = next((tmp_path / "saved" / "a.w").glob("*zarr*"))
    for damage, message in (
        (lambda: cut(chunk), "^a/w: its array cannot be read"),
        (chunk.unlink, "^a/w: its chunk (c/0/0|0.0) is missing"),  # zeros are stored too: it is not a sparse array
        (lambda: metadata.write_text("{"), "^a/w: its array metadata are damaged"),
        (lambda: metadata.write_text('{"shape": [3], "dtype": "<U3"}'), "^a/w: an array of dtype '<U3'"),
        (lambda: metadata.write_text('{"shape": [3], "dtype": "float7"}'), "^a/w: the dtype 'float7' is unknown"),
        (metadata.unlink, "without array data: a/w"),
    ):
        damage()
        with pytest.raises(ConverterError, match=message):
            open_and_read_all(tmp_path / "saved")


def test_damage_in_texts_and_key_metadata(tmp_path: FilePath) -> None:
    pytree(tmp_path / "saved", {"a": {"t": "text"}, "k": jax.random.key(0)})
    strings = tmp_path / "saved" / "_strings.json"
    strings.write_text('{"a.t": 3}')
    with pytest.raises(UnreadableCheckpoint, match=r"a/t: expected a text in .*_strings.json, found 3"):
        open_and_read_all(tmp_path / "saved")
    strings.write_text("{}")
    with pytest.raises(UnreadableCheckpoint, match="a/t: its text is missing"):
        open_and_read_all(tmp_path / "saved")
    (tmp_path / "saved" / "array_metadatas" / "process_0").write_text("{}")
    with pytest.raises(UnreadableCheckpoint, match="process_0 is damaged: it is not Orbax array metadata"):
        FORMAT.open(tmp_path / "saved")


def test_refuses_what_is_no_checkpoint(tmp_path: FilePath) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "sub").mkdir(parents=True)
    (tmp_path / "other" / "notes.txt").touch()
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"')
    for name in ("empty", "other", "tensorflow"):
        assert not FORMAT.sniff(tmp_path / name)
        with pytest.raises(UnreadableCheckpoint, match="holds no tree of arrays\nName the directory"):
            FORMAT.open(tmp_path / name)
    assert not FORMAT.sniff(tmp_path / "other" / "notes.txt")
    assert not FORMAT.sniff(tmp_path / "absent")
    with pytest.raises(UnreadableCheckpoint, match="is a file"):
        FORMAT.open(tmp_path / "other" / "notes.txt")
    with pytest.raises(UnreadableCheckpoint, match="does not exist"):
        FORMAT.open(tmp_path / "absent")


def test_what_the_file_system_refuses_is_one_clear_error(saved: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(directory))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UnreadableCheckpoint, match=f"^{saved} cannot be read: Permission denied$"):
        FORMAT.open(saved)
    assert not FORMAT.sniff(saved.parent)


def test_refuses_steps_without_trees_and_unfinished_items(saved: FilePath, tmp_path: FilePath) -> None:
    with ocp.CheckpointManager(tmp_path / "json") as manager:
        manager.save(1, args=ocp.args.JsonSave({"a": 1}))
        manager.wait_until_finished()
    with pytest.raises(UnreadableCheckpoint, match=r"holds no tree of arrays, only default \(JSON\)"):
        FORMAT.open(tmp_path / "json")
    shutil.copytree(saved, tmp_path / "step" / "default.orbax-checkpoint-tmp")
    assert FORMAT.sniff(tmp_path / "step")
    with pytest.raises(UnreadableCheckpoint, match="holds only unfinished saves"):
        FORMAT.open(tmp_path / "step")


def test_refuses_names_that_collide(tmp_path: FilePath) -> None:
    pytree(tmp_path / "saved", {"a": {"b": jnp.ones(1)}, "a.b": jnp.zeros(1), "c.d": None, "c": {"d": None}})
    with pytest.raises(
        UnsupportedCheckpoint, match=r"share one name:\n  a/b is stored as a.b\n  a.b is stored as a.b\n"
    ):
        FORMAT.open(tmp_path / "saved")


def test_refuses_to_leave_the_checkpoint(saved: FilePath, tmp_path: FilePath) -> None:
    plain_files(tmp_path / "plain", {"a": jnp.ones(1)})
    (tmp_path / "plain" / "a").rename(tmp_path / "elsewhere")
    (tmp_path / "plain" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnreadableCheckpoint, match="plain/a is a symbolic link that leaves the checkpoint"):
        FORMAT.open(tmp_path / "plain")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "1").symlink_to(saved)
    with pytest.raises(UnreadableCheckpoint, match="run/1 is a symbolic link that leaves"):
        FORMAT.open(tmp_path / "run")
    assert FORMAT.open(tmp_path / "run" / "1").tree.keys() == FORMAT.open(saved).tree.keys()
    plain_files(tmp_path / "dots", {"k": jnp.ones(1)})
    metadata = tmp_path / "dots" / "_METADATA"
    metadata.write_text(metadata.read_text().replace('"key": "k"', '"key": "../dots/k"'))
    with pytest.raises(UnreadableCheckpoint, match="leaves"):
        FORMAT.open(tmp_path / "dots")


def test_follows_links_inside_the_checkpoint(saved: FilePath) -> None:
    (saved / "d").rename(saved / "real")
    (saved / "d").symlink_to("real")
    (saved / "real" / "loop").symlink_to("..")
    open_and_read_all(saved)
