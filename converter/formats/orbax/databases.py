"""The OCDBT databases of an Orbax item.

Every process saves its part of the arrays into a database of its own, ``ocdbt.process_<id>``; one of them writes the
metadata of all arrays. Orbax then merges them: a manifest beside these directories names all keys of all of them. Where
that never happened (Orbax up to 0.4 with ``use_ocdbt=False``, a save that was killed, a manifest that was not copied
along) the databases together still are the checkpoint.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path as FilePath

from converter.errors import UnreadableCheckpoint
from converter.formats.chunks import same_bytes
from converter.formats.ocdbt import MANIFEST_FILE, read_database
from converter.grid import Chunk

_PROCESS = "ocdbt.process_"


class Databases:
    """All OCDBT databases of an item as one.

    Attributes:
      unmerged: they are those of processes.
    """

    def __init__(self, directory: FilePath) -> None:
        merged = (directory / MANIFEST_FILE).is_file()
        of_processes = (file.parent for file in directory.glob(f"{_PROCESS}*/{MANIFEST_FILE}"))
        self._places = [directory] if merged else sorted(of_processes, key=_order)
        self._directory = directory
        self.unmerged = bool(self._places) and not merged

    def __bool__(self) -> bool:
        return bool(self._places)

    @functools.cached_property
    def values(self) -> Mapping[bytes, Chunk]:
        """The values of all keys.

        Raises:
          UnreadableCheckpoint: a database is damaged, or two of them have different values of one key.
        """
        values: dict[bytes, Chunk] = {}
        origins: list[tuple[FilePath, Mapping[bytes, Chunk]]] = []
        for place in self._places:
            read = read_database(place)
            for key in values.keys() & read.keys():
                if not same_bytes(values[key], read[key]):
                    other = next(origin for origin, held in origins if key in held)
                    raise UnreadableCheckpoint(
                        f"{other} and {place} hold different values of {key.decode(errors='replace')}",
                        "They are of different saves, or one of them is damaged; copy the checkpoint again.",
                    )
            values |= read
            origins.append((place, read))
        return values

    def describe(self) -> str:
        """Which databases there are and which seem to be missing, for errors about what is in none of them."""
        names = ", ".join(place.name for place in self._places)
        text = f"its OCDBT databases ({names}) were never merged"
        if lost := self.lost:
            text += f", and {', '.join(lost)} {'is' if len(lost) == 1 else 'are'} missing"
        return text

    @functools.cached_property
    def lost(self) -> list[str]:
        """The directories of processes that should be there as well: those before the last one that is known.

        A process that had nothing to write made none, so this alone is no damage.
        """
        if not self.unmerged:
            return []
        have = {_number(place.name) for place in self._places}
        known = {_number(file.name) for file in (self._directory / "array_metadatas").glob("process_*")}
        return [f"{_PROCESS}{number}" for number in range(max(have | known, default=-1) + 1) if number not in have]


def _number(name: str) -> int:
    """The process of ``ocdbt.process_10`` or ``process_10``, -1 where it has no number."""
    digits = name.rpartition("process_")[2]
    return int(digits) if digits.isdecimal() else -1


def _order(place: FilePath) -> tuple[int, str]:
    """Process 10 comes after process 2."""
    return _number(place.name), place.name
