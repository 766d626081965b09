"""npz files: ``numpy.savez`` with a flat name for each array, as big_vision and scenic write (``params/head/kernel``).

They are read, not written. The arrays of ``numpy.savez`` lie in the file as they are and can be copied from there;
those of ``numpy.savez_compressed`` are unpacked when they are fetched.
"""

from __future__ import annotations

from pathlib import Path as FilePath

from converter.errors import UsageError
from converter.formats.checkpoint import Checkpoint

_BEGINNING = b"PK\x03\x04"
_NAME = 30
"""Where the name of the first member stands; its length stands in the two bytes from 26 on."""


class NpzFormat:
    """See ``converter.formats.checkpoint.Source``."""

    name = "npz"

    def sniff(self, path: FilePath) -> bool:
        """Whether ``path`` is a zip archive whose first member is called like an array."""
        if not path.is_file():
            return False
        try:
            with path.open("rb") as stream:
                first = stream.read(_NAME)
                name = stream.read(int.from_bytes(first[26:28], "little"))
        except OSError:
            return False
        return first.startswith(_BEGINNING) and name.endswith(b".npy")

    def open(self, path: FilePath, *, step: int | None = None, item: str | None = None) -> Checkpoint:
        """Reads the header of every array.

        Raises:
          UnreadableCheckpoint: damaged or cut short.
          UnsupportedCheckpoint: arrays that hold no numbers, or names that make no tree.
          UsageError: a step or an item, of which there are none.
        """
        from converter.formats.npz.archive import read_archive

        if step is not None:
            raise UsageError(f"{path} has no step {step}: npz files have none", "Leave out --step.")
        if item is not None:
            raise UsageError(f"{path} has no item {item!r}: npz files hold a single tree", "Leave out --item.")
        tree, facts = read_archive(path)
        return Checkpoint(path=path, location=path, format=self.name, tree=tree, facts=facts)
