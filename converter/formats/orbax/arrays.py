"""The arrays of an Orbax item: dtype and shape of all at once, how each of them lies on disk, values one by one.

An array is a zarr 2 or zarr 3 array named after its leaf. All of them lie either in OCDBT databases (key-value stores
in files ``manifest.ocdbt`` and ``d/*``; see ``databases``) or in one directory each.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from converter.dtypes import is_common_dtype, numpy_dtype
from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats import decoding, zarr
from converter.formats.chunks import chunk_bytes
from converter.formats.orbax.databases import Databases
from converter.formats.orbax.metadata import Entry, SavedArray, key_prefix
from converter.formats.zarr import ZarrArray
from converter.grid import Chunk, Grid, Index
from converter.paths import format_path
from converter.stored import Extent
from converter.tree import LeafSpec, array_spec

if TYPE_CHECKING:
    import numpy as np

_INCOMPLETE = "The checkpoint is incomplete; copy it again or use another step."
_DAMAGED = "The checkpoint is damaged or incomplete; copy it again or use another step."
_ZEROS = (
    "If there are no more, these parts are zeros, which this Orbax did not store: merge the databases with "
    "orbax.checkpoint.type_handlers.merge_ocdbt_per_process_files."
)


class ArrayStore:
    """The arrays below one item directory.

    Args:
      directory: the item directory.
      zarr3: the arrays are zarr 3; zarr 2 if false.
      all_stored: chunks of zeros are stored too, in arrays of any kind, so an absent chunk is an error.
    """

    def __init__(self, directory: FilePath, zarr3: bool, all_stored: bool) -> None:
        self.databases = Databases(directory)
        self.version = "zarr3" if zarr3 else "zarr2"
        self._directory = directory
        self._all_stored = all_stored
        self._arrays: dict[str, ZarrArray] = {}

    @property
    def layout(self) -> str:
        """``OCDBT, zarr2``, ``OCDBT (never merged), zarr2``, ``files, zarr3`` …"""
        where = "OCDBT (never merged)" if self.databases.unmerged else "OCDBT" if self.databases else "files"
        return f"{where}, {self.version}"

    def specs(self, entries: Sequence[Entry]) -> list[LeafSpec]:
        """What is known of every array without reading it.

        Raises:
          UnreadableCheckpoint: the metadata of an array is missing or damaged; a database of a process is missing.
          UnsupportedCheckpoint: a dtype that NumPy and ml_dtypes do not know.
        """
        texts = [self._metadata(entry) for entry in entries]
        if None in texts:
            raise self._without_data([entry for entry, text in zip(entries, texts, strict=True) if text is None])
        # Most arrays of a big checkpoint share their metadata, letter for letter.
        parsed: dict[bytes | None, tuple[ZarrArray, LeafSpec]] = {}
        specs: list[LeafSpec] = []
        for entry, text in zip(entries, texts, strict=True):
            if text not in parsed:
                array = _parse(entry, text or b"")
                parsed[text] = array, array_spec(array.dtype, array.form.shape)
            array, spec = parsed[text]
            if entry.expected not in (None, spec):
                problem = f"expected {entry.expected}, as noted beside it, found {spec}"
                raise UnreadableCheckpoint(f"{format_path(entry.path)}: its array is another one: {problem}", _DAMAGED)
            self._arrays[entry.name] = array
            specs.append(spec)
        if self.databases.unmerged:
            self._refuse_lost_parts(entries)
        return specs

    def _without_data(self, entries: Sequence[Entry]) -> UnreadableCheckpoint:
        notes = [f" (written to {entry.written_to})" if entry.written_to else "" for entry in entries]
        names = [f"{format_path(entry.path)}{note}" for entry, note in zip(entries, notes, strict=True)]
        unmerged = f" ({self.databases.describe()})" if self.databases.unmerged else ""
        return UnreadableCheckpoint(
            f"{self._directory}: some leaves are listed, but without array data: {_listed(names)}{unmerged}",
            "Copy the directories of the arrays here too: remote ones are not read." if any(notes) else _INCOMPLETE,
        )

    def grid(self, entry: Entry, saved: SavedArray) -> Grid:
        """How an array lies on disk, one of those whose ``specs`` were asked for.

        Raises:
          UnreadableCheckpoint: a chunk is missing that should be there.
        """
        array = self._arrays[entry.name]
        chunks = self._chunks(entry, array)
        made = Grid(array.noted(saved.write_shape, saved.partition), chunks, True, saved)
        if array.form.encoding.is_raw:
            self._check_lengths(entry, array, chunks)
        if (self._all_stored or array.stores_zeros) and len(chunks) != array.form.number:
            lost = next(index for index in made.form.indices() if index not in chunks)
            raise UnreadableCheckpoint(
                f"{format_path(entry.path)}: its chunk {array.chunk_key(lost)} is missing in {self._directory}",
                _DAMAGED,
            )
        return made

    def _refuse_lost_parts(self, entries: Sequence[Entry]) -> None:
        """Refuses arrays whose missing chunks may lie in the database of a process that is not there.

        Where chunks of zeros need not be stored (zarr 3 before Orbax 0.7), an array without any chunk is taken for
        zeros, unless a process is known to be missing; one that has only some of its chunks could be either.
        """
        lost: list[str] = []
        may_be_zeros = False
        for entry in entries:
            array = self._arrays[entry.name]
            stored, number = len(self._chunks(entry, array)), array.form.number
            surely = self._all_stored or array.stores_zeros or bool(self.databases.lost)
            if stored < number and (stored or surely):
                lost.append(f"{format_path(entry.path)} ({number - stored} of {number} chunks)")
                may_be_zeros |= not surely
        if lost:
            raise UnreadableCheckpoint(
                f"{self._directory}: {self.databases.describe()}; parts of arrays are in none of them: {_listed(lost)}",
                f"Copy the directories of all processes here. {_ZEROS if may_be_zeros else ''}".rstrip(),
            )

    def _check_lengths(self, entry: Entry, array: ZarrArray, chunks: Mapping[Index, Chunk]) -> None:
        """Refuses chunks of bare elements that are too few or too many: nobody reads them where they are linked to."""
        size = array.chunk_nbytes
        for index, chunk in chunks.items():
            length = len(chunk) if isinstance(chunk, bytes) else chunk.length
            if length != size:
                raise UnreadableCheckpoint(
                    f"{format_path(entry.path)}: its chunk {array.chunk_key(index)} in {self._directory} is damaged: "
                    f"expected {size} bytes, found {length}",
                    "Copy the checkpoint again, or use another step.",
                )

    def read(self, entry: Entry, saved: SavedArray) -> np.ndarray[Any, Any]:
        """The value of one array, in C order.

        Raises:
          UnreadableCheckpoint: a chunk is missing, truncated or cannot be decoded.
        """
        grid = self.grid(entry, saved)
        try:
            return decoding.read(grid) if decoding.can_decode(grid) else self._read_with_tensorstore(entry)
        except UnreadableCheckpoint as error:
            raise UnreadableCheckpoint(
                f"{format_path(entry.path)}: its array cannot be read: {error.message}", error.advice
            ) from None

    # Keys and values -------------------------------------------------------------------------------------------------

    def _prefix(self, entry: Entry) -> str:
        """What the keys of an array begin with.

        Raises:
          UnreadableCheckpoint: a name that leads out of the directory.
        """
        if not self.databases and (entry.name[:1] == "/" or "\0" in entry.name or ".." in entry.name.split("/")):
            problem = f"the name {entry.name!r} leaves {self._directory}"
            raise UnreadableCheckpoint(f"{format_path(entry.path)}: {problem}", _DAMAGED)
        return key_prefix(entry.name)

    def _metadata(self, entry: Entry) -> bytes | None:
        """``.zarray`` (zarr 2) or ``zarr.json`` (zarr 3), None where it is absent."""
        key = self._prefix(entry) + zarr.METADATA_KEYS[self.version]
        if self.databases:
            value = self.databases.values.get(key.encode())
            return value if value is None else chunk_bytes(value)
        try:
            return (self._directory / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _chunks(self, entry: Entry, array: ZarrArray) -> dict[Index, Chunk]:
        """The chunks that are stored."""
        prefix = self._prefix(entry)
        if not self.databases:
            files = _files(self._directory / prefix)
            _check_number(array, len(files))
            place = f"{self._directory}/{prefix}"
            return {index: Extent(place + key, 0, files[key]) for index, key in array.places() if key in files}
        values = self.databases.values
        if array.form.number > 1:
            _check_number(array, len(values))
        stored: dict[Index, Chunk] = {}
        for index, key in array.places():
            chunk = values.get(f"{prefix}{key}".encode())
            if chunk is not None:
                stored[index] = chunk
        return stored

    def _read_with_tensorstore(self, entry: Entry) -> np.ndarray[Any, Any]:
        """For codecs that only TensorStore knows; the whole array is in memory."""
        import numpy as np
        import tensorstore as ts

        driver = "zarr3" if self.version == "zarr3" else "zarr"
        context = ts.Context()
        with _reporting("TensorStore"):
            place = self._copy_in_memory(entry, context) if self.databases else self._file_spec(entry)
            opened = ts.open({"driver": driver, "kvstore": place}, open=True, read=True, context=context).result()
            return np.asarray(opened.read().result())

    def _file_spec(self, entry: Entry) -> dict[str, Any]:
        return {"driver": "file", "path": f"{self._directory}/{self._prefix(entry)}"}

    def _copy_in_memory(self, entry: Entry, context: Any) -> dict[str, Any]:
        """The values of one array in a store of TensorStore's own, which knows no union of databases."""
        import tensorstore as ts

        spec = {"driver": "memory", "path": self._prefix(entry)}
        store = ts.KvStore.open(spec, context=context).result()
        prefix = self._prefix(entry).encode()
        for key, value in self.databases.values.items():
            if key.startswith(prefix):
                store[key.removeprefix(prefix)] = chunk_bytes(value)
        return spec


def _check_number(array: ZarrArray, stored: int) -> None:
    """Refuses an array of so many chunks that nearly all of them must be missing: a damaged shape."""
    form = array.form
    if form.number > 1000 * (stored + 1000):
        raise UnreadableCheckpoint(
            f"an array {list(form.shape)} in chunks {list(form.chunk_shape)} would have {form.number} chunks, "
            f"and the checkpoint has {stored} values",
            "Its metadata are damaged; copy the checkpoint again or use another step.",
        )


def _files(directory: FilePath) -> dict[str, int]:
    """The files below a directory by relative name, with their sizes."""
    found: dict[str, int] = {}
    pending = [(str(directory), "")]
    while pending:
        place, prefix = pending.pop()
        with os.scandir(place) as entries:
            for each in entries:
                if each.is_dir():
                    pending.append((each.path, f"{prefix}{each.name}/"))
                else:
                    found[prefix + each.name] = each.stat().st_size
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _parse(entry: Entry, text: bytes) -> ZarrArray:
    """Reads ``.zarray`` (zarr 2) or ``zarr.json`` (zarr 3)."""
    try:
        array = zarr.parse(text)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableCheckpoint(
            f"{format_path(entry.path)}: its array metadata are damaged: {error!r} in {text[:80]!r}", _DAMAGED
        ) from None
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(f"{format_path(entry.path)}: {error.message}", error.advice) from None
    return array


@functools.cache
def is_storable(dtype: str, driver: str = "zarr") -> bool:
    """Whether the zarr driver of the installed TensorStore knows the dtype, found by making such an array in memory.

    0.1.86 lacks uint2, uint4, float6 and float8_e4m3; 0.1.76 lacks float4 and float8_e8m0fnu too.
    """
    if is_common_dtype(dtype) and dtype != "uint4":  # every supported TensorStore has these; the others are tried
        return True
    import tensorstore as ts

    spec = {"driver": driver, "kvstore": "memory://"}
    try:
        ts.open(spec, dtype=ts.dtype(numpy_dtype(dtype)), shape=[1], create=True).result()
    except (TypeError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _reporting(what: str) -> Iterator[None]:
    """TensorStore reports all damage as ValueError and the like, and appends its whole specification."""
    try:
        yield
    except (ValueError, KeyError, NotImplementedError, OSError, RuntimeError) as error:
        reason = str(error).partition(" [tensorstore_spec=")[0].partition(" [source locations=")[0]
        raise UnreadableCheckpoint(f"{what}: {reason}", _DAMAGED) from None
