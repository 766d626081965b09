"""A lazy index of a flax msgpack file: where each leaf lies, found by walking over the headers.

Payloads are skipped, never read: indexing costs time and memory per leaf, not per byte. The walk keeps its own stack,
so that no nesting, however deep, meets Python's recursion limit.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from converter import scratch
from converter.dtypes import numpy_dtype
from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats import zarr
from converter.formats.msgpack.values import (
    CHUNKED_ARRAY,
    EXT_ARRAY,
    EXT_COMPLEX,
    EXT_NUMPY_SCALAR,
    Entry,
    array_entry,
    complex_entry,
    decode,
    joined_entry,
)
from converter.formats.msgpack.wire import MAX_DEPTH, Family, Head, Reader
from converter.formats.raw import raw_grid
from converter.formats.t5x import SPEC_KEYS
from converter.grid import Axis, Chunk, Encoding, Grid, whole
from converter.paths import IndexKey, IntKey, Key, Path
from converter.stored import Extent
from converter.tree import LeafKind, LeafSpec, Tree, empty_spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_CHUNKS = 4096
"""As how many chunks an array that flax split is seen at most."""

KEPT_BYTES = 1 << 24
"""Where leaves are small, finding their headers touches every page: after so many bytes the pages are given back."""


def map_file(file: FilePath) -> mmap.mmap:
    """Maps a whole file for reading.

    Raises:
      UnreadableCheckpoint: missing, no regular file, empty, or the system refuses to open or map it.
    """
    if not file.is_file():
        problem = "is not a regular file" if file.exists() else "does not exist"
        raise UnreadableCheckpoint(f"{file} {problem}.", "Check the path.")
    try:
        with file.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        problem = error.strerror or str(error)
        raise UnreadableCheckpoint(
            f"{file} cannot be read: {problem}.", "Check its permissions and the disk."
        ) from None
    except ValueError:
        raise UnreadableCheckpoint(
            f"{file} is empty: expected a msgpack value at byte 0, found the end of the file.",
            "It was probably never written to the end: use another checkpoint.",
        ) from None


def index(file: FilePath, data: mmap.mmap) -> list[tuple[Path, Entry]]:
    """Where every leaf lies, in the order of the file. ``data`` maps ``file``.

    Raises:
      UnreadableCheckpoint: damaged.
      UnsupportedCheckpoint: keys, extension types or dtypes that flax never writes, or the placeholder of an array that
        is stored elsewhere.
    """
    return _Walk(file, data).run()


@dataclass(slots=True)
class _Container:
    """A map or an array that is being walked; ``first`` is the number of entries before it."""

    path: Path
    head: Head
    first: int
    done: int = 0
    keys: dict[Key, type[Key]] = field(default_factory=dict)


class _Walk:
    def __init__(self, file: FilePath, data: mmap.mmap) -> None:
        self.reader = Reader(file, data)
        self.size = self.reader.size
        self.entries: list[tuple[Path, Entry]] = []
        self.open: list[_Container] = []
        self.kept = 0
        self.names: dict[bytes, Key] = {}
        self.forms: dict[tuple[int, int], tuple[bytes, LeafSpec]] = {}

    def run(self) -> list[tuple[Path, Entry]]:
        offset = self._value((), 0)
        while self.open:
            container = self.open[-1]
            if container.done == container.head.value:
                self._close(self.open.pop())
                continue
            if container.head.family is Family.MAP:
                key, offset = self._key(container, offset)
            else:
                key = IndexKey(container.done)
            container.done += 1
            offset = self._value((*container.path, key), offset)
            if offset - self.kept > KEPT_BYTES:
                self.reader.forget(self.kept, offset)
                self.kept = offset
        if offset != self.size:
            self.reader.path = ()
            raise self.reader.damaged(offset, "the end of the file", f"{self.size - offset} more bytes")
        return self.entries

    def _key(self, container: _Container, offset: int) -> tuple[Key, int]:
        reader = self.reader
        reader.path = container.path
        head = reader.head(offset, self.size)
        if head.family is Family.TEXT:
            key, end = self._name(head), head.body + head.value
        elif head.family is Family.INT:
            key, end = IntKey(head.value), head.body
        else:
            raise self._unsupported(f"has a key that is neither text nor an int: {head}")
        if key in container.keys:
            if container.keys[key] is not type(key):
                raise self._unsupported(f"has both the int {key} and the text {str(key)!r} as a key")
            raise reader.damaged(offset, "each key of a map only once", f"the key {str(key)!r} again")
        container.keys[key] = type(key)
        return key, end

    def _name(self, head: Head) -> Key:
        """The text of a key; most stand in a file many times."""
        raw = self.reader.data[head.body : head.body + head.value]
        if raw not in self.names:
            self.names[raw] = decode(self.reader, self.reader.extent(head), "a key")
        return self.names[raw]

    def _value(self, path: Path, offset: int) -> int:
        """Adds the leaf at ``offset``, or opens the container there; tells where the next header begins."""
        self.reader.path = path
        head = self.reader.head(offset, self.size)
        if head.family in (Family.MAP, Family.ARRAY) and head.value:
            if len(self.open) == MAX_DEPTH:
                raise self.reader.damaged(offset, f"at most {MAX_DEPTH} containers inside each other", str(head))
            self.open.append(_Container(path, head, len(self.entries)))
            return head.body
        self.entries.append((path, self._entry(head)))
        return head.body + (head.value if head.family in (Family.TEXT, Family.BYTES, Family.EXT) else 0)

    def _close(self, container: _Container) -> None:
        self.reader.path = container.path
        if container.keys.keys() >= SPEC_KEYS:
            raise self._in_a_directory("is the TensorStore spec of an array, as in the index of a T5X checkpoint")
        if CHUNKED_ARRAY not in container.keys:
            return
        depth = len(container.path)
        parts = {path[depth:]: entry for path, entry in self.entries[container.first :]}
        del self.entries[container.first :]
        self.entries.append((container.path, joined_entry(self.reader, container.head.offset, parts)))

    def _entry(self, head: Head) -> Entry:
        match head.family:
            case Family.EXT if head.code in (EXT_ARRAY, EXT_NUMPY_SCALAR):
                return self._array(head)
            case Family.NIL:
                return Entry(empty_spec("none"))
            case Family.MAP:
                return Entry(empty_spec("dict"))
            case Family.ARRAY:
                return Entry(empty_spec("list"))
            case Family.TEXT:
                self._refuse_placeholder(head)
                return Entry(LeafSpec(LeafKind.TEXT, "str"), (self.reader.extent(head),))
            case Family.BYTES:
                return Entry(LeafSpec(LeafKind.TEXT, "bytes"), (self.reader.extent(head),))
            case Family.EXT if head.code == EXT_COMPLEX:
                return complex_entry(self.reader, head)
            case Family.EXT:
                raise self._unsupported(f"is {head}; flax knows 1 (array), 2 (complex) and 3 (NumPy scalar)")
            case _:
                return Entry(LeafSpec(LeafKind.SCALAR, type(head.value).__name__), value=head.value)

    def _array(self, head: Head) -> Entry:
        """An array. What stands before its data mostly stands before that of the last one as long, byte for byte."""
        length, body, code = head.value, head.body, head.code
        prefix, like = self.forms.get((code, length), (b"", None))
        start = body + len(prefix)
        if like is not None and self.reader.data[body:start] == prefix:
            return Entry(like, (Extent(self.reader.absolute, start, length - len(prefix)),))
        entry = array_entry(self.reader, head)
        prefix = self.reader.data[body : entry.extents[0].offset]
        self.forms[code, length] = prefix, entry.spec
        return entry

    def _refuse_placeholder(self, head: Head) -> None:
        """The marks are Orbax' ``PLACEHOLDER_PREFIX`` and ``MP_ARRAY_PH`` of ``flax.training.checkpoints``."""
        file = self.reader.file
        text = self.reader.data[head.body : head.body + min(head.value, 80)].decode(errors="replace")
        if text.startswith("PLACEHOLDER://"):
            raise self._in_a_directory(f"is an Orbax placeholder ({text!r}), as in the index of an Orbax checkpoint")
        if text.startswith("//GDAPlaceholder:"):
            raise self._unsupported(
                f"is the placeholder of a multi-process array ({text!r}), which flax stored apart, in {file.name}_gda",
                "Restore it with flax.training.checkpoints.restore_checkpoint(…, gda_manager=…), then save it with "
                "Orbax, or with flax.serialization.to_bytes from arrays that one process holds.",
            )

    def _in_a_directory(self, problem: str) -> UnsupportedCheckpoint:
        return self._unsupported(
            f"{problem} whose arrays lie in directories beside it",
            f"Name the directory instead of the file: {self.reader.file.parent}",
        )

    def _unsupported(self, problem: str, advice: str = "") -> UnsupportedCheckpoint:
        return UnsupportedCheckpoint(
            f"{self.reader.place()} {problem}.",
            advice
            or "Only what flax writes can be read: restore the file with the program that wrote it, and save it "
            "again with flax.serialization.to_bytes.",
        )


# Reading the leaves ----------------------------------------------------------------------------------------------


class MappedLeaves:
    """Hands out the leaves of an indexed file.

    Arrays are read-only views of the mapped file. The pages of one array are given back to the system when the next
    is fetched, so that reading a file of any size leaf by leaf keeps about one leaf in memory. An earlier array stays
    valid: its pages come back when they are touched.
    """

    def __init__(self, file: FilePath, data: mmap.mmap) -> None:
        self._reader = Reader(file, data)
        self._last = range(0)  # shared by threads without a lock: at worst a page is given back late

    def tree(self, entries: list[tuple[Path, Entry]]) -> Tree:
        return Tree((path, _MappedLeaf(entry.spec, path, entry, self)) for path, entry in entries)

    def grid(self, entry: Entry) -> Grid | None:
        """How an array lies in the file: in one piece, or cut between two of its rows; None for other leaves."""
        if entry.spec.kind not in (LeafKind.ARRAY, LeafKind.NUMPY_SCALAR):
            return None
        if len(entry.extents) == 1:
            return raw_grid(entry.spec, entry.extents[0])
        shape = entry.spec.shape
        rows = max(shape[0], 1) if shape else 1
        length = _chunk_length(entry, rows)
        if length is None:
            return None
        form = whole(shape, Encoding(zarr.type_string(entry.spec.dtype)))
        if shape:
            form = replace(form, axes=(Axis(shape[0], length, length), *form.axes[1:]))
        row = entry.spec.nbytes // rows
        chunks: dict[tuple[int, ...], Chunk] = {}
        for extent in entry.extents if entry.spec.size else ():
            for start in range(0, extent.length, length * row):
                place = (len(chunks), *(0,) * (len(shape) - 1)) if shape else ()
                chunks[place] = extent._replace(offset=extent.offset + start, length=length * row)
        return Grid(form, chunks)

    def fetch(self, path: Path, entry: Entry) -> Any:
        """The value of a leaf."""
        reader = self._reader
        reader.check_size()
        match entry.spec.kind:
            case LeafKind.ARRAY:
                return self._array(entry)
            case LeafKind.NUMPY_SCALAR:
                return self._array(entry)[()]
            case LeafKind.TEXT:
                extent = entry.extents[0]
                if entry.spec.dtype == "bytes":
                    return reader.data[extent.offset : extent.offset + extent.length]
                return decode(Reader(reader.file, reader.data, path), extent, "text")
            case _:
                return entry.value

    def _array(self, entry: Entry) -> NDArray[Any]:
        dtype, shape = numpy_dtype(entry.spec.dtype), entry.spec.shape
        if len(entry.extents) == 1:
            return self._view(entry.extents[0], dtype).reshape(shape)
        joined = scratch.empty((entry.spec.size,), dtype)
        filled = 0
        for extent in entry.extents:
            part = self._view(extent, dtype)
            scratch.copy(joined[filled : filled + part.size], part)
            filled += part.size
        return joined.reshape(shape)

    def _view(self, extent: Extent, dtype: np.dtype[Any]) -> NDArray[Any]:
        import numpy as np

        self._reader.forget(self._last.start, self._last.stop)
        self._last = range(extent.offset, extent.offset + extent.length)
        if not extent.length:
            return np.empty(0, dtype)
        return np.frombuffer(self._reader.data, dtype, extent.length // dtype.itemsize, extent.offset)


@dataclass(slots=True)
class _MappedLeaf:
    """A leaf, with all that it takes to find it."""

    spec: LeafSpec
    path: Path
    entry: Entry
    leaves: MappedLeaves

    def fetch(self) -> Any:
        return self.leaves.fetch(self.path, self.entry)

    def grid(self) -> Grid | None:
        return self.leaves.grid(self.entry)


def _chunk_length(entry: Entry, rows: int) -> int | None:
    """The number of rows (along the first axis) by which all cuts of a split array can be counted, if there is one."""
    row = entry.spec.nbytes // rows
    if not row or any(extent.length % row for extent in entry.extents):
        return None
    length = math.gcd(*(extent.length // row for extent in entry.extents))
    return length if rows // length <= MOST_CHUNKS else None
