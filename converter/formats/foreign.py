"""Files that are something else: recognised by their first bytes, so that their owner is told what to do with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath

_ZIP = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A kind of file: what it is called, how it begins, and what its owner can do."""

    title: str
    begins: bytes
    advice: str


_KINDS = (
    Foreign(
        "a Git LFS pointer, which stands in the place of the file",
        b"version https://git-lfs",
        "Fetch the file itself with git lfs pull.",
    ),
    Foreign(
        "an HDF5 file, as Keras writes",
        b"\x89HDF\r\n\x1a\n",
        "Read it with h5py and save its arrays with numpy.savez, under names such as params/dense/kernel.",
    ),
    Foreign(
        "one NumPy array (.npy)",
        b"\x93NUMPY",
        "Save the arrays of a checkpoint with numpy.savez, under names such as params/dense/kernel.",
    ),
    Foreign("a GGUF file, as llama.cpp reads", b"GGUF", "Name the checkpoint that it was made from."),
    *(
        Foreign(
            "a Python pickle, which is not read, because reading one runs code",
            b"\x80" + bytes([protocol]),
            "Load it yourself if you trust it, and save its arrays with Orbax or flax.serialization.to_bytes.",
        )
        for protocol in range(2, 6)
    ),
    Foreign("a file that gzip has compressed", b"\x1f\x8b", "Unpack it."),
)

_PYTORCH = Foreign(
    "a PyTorch checkpoint (.pt, .bin), which is a pickle and is not read, because reading one runs code",
    _ZIP,
    "Load it yourself if you trust it, and save its tensors with safetensors.torch.save_file.",
)
_ARCHIVE = Foreign("a zip archive", _ZIP, "Unpack it, and name the checkpoint inside.")


def recognised(file: FilePath) -> Foreign | None:
    """What the file is, if it is one of these."""
    try:
        with file.open("rb") as stream:
            first = stream.read(32)
    except OSError:
        return None
    if first.startswith(_ZIP):
        return _PYTORCH if any(name.endswith("data.pkl") for name in _members(file)) else _ARCHIVE
    return next((kind for kind in _KINDS if first.startswith(kind.begins)), None)


def _members(file: FilePath) -> list[str]:
    import zipfile

    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return []
