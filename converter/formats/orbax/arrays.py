"""The arrays of an Orbax item, read through TensorStore: dtype and shape of all at once, values one by one.

An array is a zarr 2 or zarr 3 array named after its leaf. All of them lie either in one OCDBT database (a key-value
store in the files ``manifest.ocdbt`` and ``d/*``) or in one directory each. Orbax up to 0.4 with ``use_ocdbt=False``
leaves OCDBT databases ``ocdbt.process_N`` that nobody ever merged into one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats.orbax.metadata import Entry
from converter.tree import LeafSpec, array_spec, format_path, numpy_dtype

_CACHE_BYTES = 100_000_000
"""For the decoded index of an OCDBT database, as Orbax grants itself; array data are not cached."""


class ArrayStore:
    """The arrays below one item directory.

    Args:
      directory: the item directory.
      zarr3: the arrays are zarr 3; zarr 2 if false.
      all_stored: chunks of zeros are stored too, so an absent chunk is an error.

    Raises:
      UnsupportedCheckpoint: OCDBT databases of several processes that were never merged.
    """

    def __init__(self, directory: FilePath, zarr3: bool, all_stored: bool) -> None:
        self.database = _find_database(directory)
        self.zarr3 = zarr3
        self._directory = directory
        self._all_stored = all_stored
        self._context: Any = None
        self._store: Any = None

    @property
    def layout(self) -> str:
        """``OCDBT, zarr2``, ``files, zarr3`` …"""
        return f"{'files' if self.database is None else 'OCDBT'}, {'zarr3' if self.zarr3 else 'zarr2'}"

    def specs(self, entries: Sequence[Entry]) -> list[LeafSpec]:
        """What is known of every array without reading it.

        Raises:
          UnreadableCheckpoint: the metadata of an array is missing or damaged.
          UnsupportedCheckpoint: a dtype that NumPy and ml_dtypes do not know.
        """
        if not entries:
            return []
        texts = self._read_metadata(entries)
        missing = [format_path(entry.path) for entry, text in zip(entries, texts, strict=True) if text is None]
        if missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise UnreadableCheckpoint(
                f"{self._directory}: some leaves are listed, but without array data: {listed}",
                "The checkpoint is incomplete; copy it again or use another step.",
            )
        # Most arrays of a big checkpoint share their metadata, letter for letter.
        parsed: dict[bytes | None, LeafSpec] = {}
        for entry, text in zip(entries, texts, strict=True):
            if text not in parsed:
                parsed[text] = _parse_array(entry, text or b"")
        return [parsed[text] for text in texts]

    def read(self, entry: Entry) -> np.ndarray[Any, Any]:
        """The value of one array, in C order.

        Raises:
          UnreadableCheckpoint: a chunk is missing, truncated or cannot be decoded.
        """
        import tensorstore as ts

        spec = {
            "driver": "zarr3" if self.zarr3 else "zarr",
            "kvstore": self._store_spec(self._prefix(entry)),
            "cache_pool": "cache_pool#data",
            "fill_missing_data_reads": not self._all_stored,
        }

        self._open()
        with _reporting(entry, "its array cannot be read"):
            return np.asarray(ts.open(spec, context=self._context, open=True, read=True).result().read().result())

    def _prefix(self, entry: Entry) -> str:
        """What the keys of an array begin with; the name is empty where the whole tree is one array.

        Raises:
          UnreadableCheckpoint: a name that leads out of the directory.
        """
        if self.database is None and ".." in entry.name.split("/"):
            raise UnreadableCheckpoint(f"{format_path(entry.path)}: the name {entry.name!r} leaves {self._directory}")
        return f"{entry.name}/" if entry.name else ""

    def _store_spec(self, prefix: str = "") -> dict[str, Any]:
        directory = {"driver": "file", "path": f"{self.database or self._directory}/"}
        if self.database is None:
            return {**directory, "path": f"{self._directory}/{prefix}"}
        return {"driver": "ocdbt", "base": directory, "path": prefix}

    def _open(self) -> Any:
        """The key-value store. It stays open, or TensorStore would decode the index of the database for every read."""
        import tensorstore as ts

        if self._store is None:
            pools = {"cache_pool": {"total_bytes_limit": _CACHE_BYTES}, "cache_pool#data": {"total_bytes_limit": 0}}
            self._context = ts.Context(pools)
            self._store = ts.KvStore.open(self._store_spec(), context=self._context).result()
        return self._store

    def _read_metadata(self, entries: Sequence[Entry]) -> list[bytes | None]:
        """``.zarray`` (zarr 2) or ``zarr.json`` (zarr 3) of every entry, ``None`` for absent ones."""
        inner = "zarr.json" if self.zarr3 else ".zarray"
        keys = [self._prefix(entry) + inner for entry in entries]
        known = {} if self.database is None else _small_values(self.database, inner)
        store = self._open()
        # All reads are issued before the first is awaited, so TensorStore runs them side by side.
        pending = [None if key in known else store.read(key) for key in keys]
        values: list[bytes | None] = []
        for entry, key, future in zip(entries, keys, pending, strict=True):
            if future is None:
                values.append(known[key])
                continue
            with _reporting(entry, "its array metadata cannot be read"):
                result = future.result()
            values.append(result.value if result.state == "value" else None)
        return values


def _find_database(directory: FilePath) -> FilePath | None:
    """The directory of the OCDBT database, None where every array has a directory of its own."""
    if (directory / "manifest.ocdbt").is_file():
        return directory
    unmerged = sorted(manifest.parent for manifest in directory.glob("ocdbt.process_*/manifest.ocdbt"))
    if len(unmerged) > 1:
        raise UnsupportedCheckpoint(
            f"{directory} is an Orbax checkpoint of {len(unmerged)} processes whose OCDBT databases "
            f"({', '.join(path.name for path in unmerged)}) were never merged: manifest.ocdbt is missing",
            "Restore it with the Orbax version that wrote it and save it again.",
        )
    return unmerged[0] if unmerged else None


def _small_values(database: FilePath, inner: str) -> dict[str, bytes]:
    """The values that an OCDBT database of one index node keeps inside that node, for keys that end in ``inner``.

    Orbax allows index nodes of 100 MB, so nearly every database has one, and a lookup in it takes time in proportion to
    its size: 4 s for the metadata of 50,000 arrays, against 0.2 s for this. Databases of more nodes, and values in data
    files, are left to ordinary reads.

    Raises:
      UnreadableCheckpoint: the manifest or the node is missing or damaged.
    """
    import tensorstore as ts

    with _reporting(None, f"{database}: its OCDBT database cannot be read"):
        base = ts.KvStore.open({"driver": "file", "path": f"{database}/"}).result()
        versions = ts.ocdbt.dump(base).result().get("versions")
        latest = max(versions, key=lambda version: version["generation_number"]) if versions else {}
        location = latest.get("root", {}).get("location")
        if location is None or latest.get("root_height") != 0:
            return {}
        node = ts.ocdbt.dump(base, location).result()
    suffix = inner.encode()
    inline = [entry for entry in node["entries"] if "inline_value" in entry and entry["key"].endswith(suffix)]
    return {entry["key"].decode(errors="replace"): entry["inline_value"] for entry in inline}


def _parse_array(entry: Entry, text: bytes) -> LeafSpec:
    """Reads ``.zarray`` (zarr 2) or ``zarr.json`` (zarr 3)."""
    try:
        content = json.loads(text)
        dtype = content["data_type"] if "data_type" in content else content["dtype"]
        shape = [int(size) for size in content["shape"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableCheckpoint(
            f"{format_path(entry.path)}: its array metadata are damaged: {error!r} in {text[:80]!r}"
        ) from None
    if not isinstance(dtype, str) or re.fullmatch(r"[<>|][OSUVMm]\d*", dtype):
        raise UnsupportedCheckpoint(f"{format_path(entry.path)}: an array of dtype {dtype!r} cannot be a leaf")
    # zarr 2 writes NumPy's type strings ("<f4") where they exist, names ("bfloat16") elsewhere; zarr 3 writes names.
    name = np.dtype(dtype).name if re.fullmatch(r"[<>|][biufc]\d+", dtype) else dtype
    try:
        spec = array_spec(numpy_dtype(name).name, shape)
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(f"{format_path(entry.path)}: {error.message}", error.advice) from None
    if not is_storable(name, "zarr3" if "data_type" in content else "zarr"):
        raise UnsupportedCheckpoint(
            f"{format_path(entry.path)}: the installed TensorStore does not know the dtype {name}",
            "Upgrade tensorstore.",
        )
    return spec


@functools.cache
def is_storable(dtype: str, driver: str = "zarr") -> bool:
    """Whether the zarr driver of the installed TensorStore knows the dtype, found by making such an array in memory.

    0.1.86 lacks uint2, uint4, float6 and float8_e4m3; 0.1.76 lacks float4 and float8_e8m0fnu too.
    """
    import tensorstore as ts

    spec = {"driver": driver, "kvstore": "memory://"}
    try:
        ts.open(spec, dtype=ts.dtype(numpy_dtype(dtype)), shape=[1], create=True).result()
    except (TypeError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _reporting(entry: Entry | None, what: str) -> Iterator[None]:
    """TensorStore reports all damage as ValueError and the like, and appends its whole specification."""
    try:
        yield
    except (ValueError, KeyError, NotImplementedError, OSError, RuntimeError) as error:
        where = f"{format_path(entry.path)}: " if entry is not None else ""
        reason = str(error).partition(" [tensorstore_spec=")[0].partition(" [source locations=")[0]
        raise UnreadableCheckpoint(
            f"{where}{what}: {reason}", "The checkpoint is damaged or incomplete; copy it again or use another step."
        ) from None
