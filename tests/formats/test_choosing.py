"""Which format a path is read and written as, and what is said of files that are something else."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from converter.errors import UnreadableCheckpoint, UsageError
from converter.formats import FORMATS, SOURCES, destination_format, open_checkpoint


@pytest.mark.parametrize(
    ("destination", "name", "chosen"),
    [
        ("out", None, "orbax"),
        ("out.msgpack", None, "msgpack"),
        ("out.safetensors", None, "safetensors"),
        ("out.npz", "orbax", "orbax"),
        ("out", "safetensors", "safetensors"),
        ("model.safetensors", "msgpack", "msgpack"),
    ],
)
def test_destinations(destination: str, name: str | None, chosen: str) -> None:
    assert destination_format(Path(destination), name) == chosen


@pytest.mark.parametrize(
    ("destination", "name", "words"),
    [
        ("out.npz", None, "out.npz: npz files are read, not written"),
        ("out", "npz", "npz files are read, not written"),
        ("out", "hdf5", "no format 'hdf5'"),
    ],
)
def test_destinations_that_cannot_be_written(destination: str, name: str | None, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        destination_format(Path(destination), name)
    assert words in str(refused.value)
    assert "orbax, orbax-v1, msgpack, hf-msgpack, safetensors" in str(refused.value)


def test_every_format_is_found_whatever_its_file_is_called(tmp_path: Path) -> None:
    arrays = {"params/a": np.ones(3, np.float32)}
    np.savez(tmp_path / "npz", **arrays)
    (tmp_path / "npz.npz").rename(tmp_path / "npz")
    tree = open_checkpoint(tmp_path / "npz").tree
    for name, format in FORMATS.items():
        format.write(tree, tmp_path / name, lambda *_: None)
    for name in SOURCES.keys() | FORMATS.keys():
        assert open_checkpoint(tmp_path / name).format == (SOURCES.get(name) or FORMATS[name]).name
        assert [each.sniff(tmp_path / name) for each in SOURCES.values()].count(True) == 1


def _zip(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr(name, b"something")
    return stream.getvalue()


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


FOREIGN = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "a Git LFS pointer", "git lfs pull"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(80), "an HDF5 file", "numpy.savez"),
    "npy": (_npy(), "one NumPy array", "numpy.savez"),
    "gguf": (b"GGUF" + bytes(80), "a GGUF file", "made from"),
    "pickle": (pickle.dumps({"params": [1.0]}), "a Python pickle", "if you trust it"),
    "pytorch": (_zip("archive/data.pkl"), "a PyTorch checkpoint", "safetensors.torch.save_file"),
    "zip": (_zip("model/config.json"), "a zip archive", "Unpack it"),
    "gzip": (gzip.compress(b"something"), "a file that gzip has compressed", "Unpack it"),
}


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".msgpack"])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_called_by_their_names(name: str, suffix: str, tmp_path: Path) -> None:
    data, words, advice = FOREIGN[name]
    place = tmp_path / f"file{suffix}"
    place.write_bytes(data)
    with pytest.raises(UnreadableCheckpoint) as refused:
        open_checkpoint(place)
    assert f"{place} is no checkpoint: expected" in str(refused.value)
    assert f"found {words}" in str(refused.value)
    assert advice in str(refused.value)


def test_a_pointer_in_the_place_of_a_shard(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"a": np.ones(1)}, tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors").write_bytes(FOREIGN["lfs"][0])
    with pytest.raises(UnreadableCheckpoint, match="a Git LFS pointer"):
        open_checkpoint(tmp_path / "model.safetensors")
