"""A file in which arrays stand one after the other with a few bytes around them, written by several threads.

What the source has on disk in the form that the file wants is copied by the system, everything else passes through
memory piece by piece. Formats say what stands around the arrays (``Framing``) and how other leaves are spelled.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from converter.formats.checkpoint import Progress, Strategy, Written
from converter.formats.sharing import copied_bytes, open_source, write_at
from converter.formats.streaming import ARRAYS, digest_function, in_parallel, leaf_pieces, of_the_source
from converter.paths import Path
from converter.stored import Extent
from converter.tree import Leaf, LeafSpec, Tree

BUFFER_SIZE = 1 << 20
"""Small leaves are gathered to writes of this size; larger payloads go to the system as they are."""

LEAST_COPY = 1 << 16
"""Arrays of fewer bytes are not worth a system call of their own."""

_SMALL = 1 << 14
"""Bytes of a leaf below which writing it is mostly Python's own work, for which threads only wait for each other."""

Framing = Callable[[LeafSpec], Iterable[bytes | int]]
"""What stands around the bytes of an array, and how many of these come next."""

Spelling = Callable[[Path, LeafSpec, Any], bytes]
"""The bytes of a leaf that is no array."""


def strategies(tree: Tree) -> dict[Path, Strategy]:
    """How each array gets there; see ``Format.strategies``."""
    return {
        path: Strategy.STREAM if _extents(leaf) is None else Strategy.COPY
        for path, leaf in tree.items()
        if leaf.spec.kind in ARRAYS
    }


def write_items(
    number: int, items: Iterable[tuple[Path, bytes | Leaf]], framing: Framing, spell: Spelling, progress: Progress
) -> Written:
    """Writes bytes and leaves one after the other, from the beginning of an open file.

    Args:
      number: the file's descriptor.
      progress: called with the bytes and leaves that were added since the last call.

    Raises:
      UnreadableCheckpoint: the source is damaged, or became shorter.
      OSError: the file system refused.
      RuntimeError: a leaf whose value is not what its spec announced; a defect of the source's reader.
    """
    return _Output(number, framing, progress).write(_jobs(items, framing, spell))


def _payload(path: Path, leaf: Leaf) -> Iterator[Any]:
    """The bytes of an array: where they are, if they can be copied as they are, else the bytes themselves."""
    extents = _extents(leaf)
    yield from leaf_pieces(path, leaf) if extents is None else extents


def _extents(leaf: Leaf) -> list[Extent] | None:
    """Where on disk the bytes of an array stand one after the other as the file wants them; None where they do not."""
    if leaf.spec.nbytes < LEAST_COPY:
        return None
    grid = leaf.grid()
    chunks = grid.bare_chunks() if grid is not None else None
    if not chunks:
        return None
    extents = [chunk for chunk in chunks if isinstance(chunk, Extent)]
    # What is too short for its shape is left to those who read it, and complain.
    fits = sum(extent.length for extent in extents) == leaf.spec.nbytes
    return extents if fits and len(extents) == len(chunks) else None


class _Rest:
    """Hands out so and so many bytes of a payload at a time."""

    def __init__(self, payload: Iterator[Any]) -> None:
        self._payload = payload
        self._left: Any = b""

    def take(self, size: int) -> Iterator[Any]:
        while size:
            if not _size(self._left):
                self._left = next(self._payload)
            taken = min(size, _size(self._left))
            yield _part(self._left, 0, taken)
            self._left = _part(self._left, taken, _size(self._left))
            size -= taken

    def finish(self) -> None:
        """Lets the payload come to its end, where it may say that something was wrong."""
        for _ in self._payload:
            pass


def _size(item: Any) -> int:
    return item.length if isinstance(item, Extent) else len(item)


def _part(item: Any, start: int, stop: int) -> Any:
    if isinstance(item, Extent):
        return Extent(item.file, item.offset + start, stop - start)
    if stop - start == len(item):
        return item
    return memoryview(item)[start:stop]


# The file --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Job:
    """A part of the file, written by one thread: bytes, and arrays whose bytes have to be fetched.

    Attributes:
      offset: where it begins.
      size: how long it is.
      leaves: how many of the leaves it holds.
      parts: in the order of the file.
    """

    offset: int
    size: int = 0
    leaves: int = 0
    parts: list[bytes | tuple[Path, Leaf]] = field(default_factory=list)

    @property
    def is_of_small_leaves(self) -> bool:
        return self.size < _SMALL * self.leaves


def _jobs(items: Iterable[tuple[Path, bytes | Leaf]], framing: Framing, spell: Spelling) -> list[_Job]:
    """The file in parts of about ``BUFFER_SIZE``, or one large array: where each of them lies follows from specs."""
    jobs = [_Job(0)]
    for path, item in items:
        if jobs[-1].size >= BUFFER_SIZE:
            jobs.append(_Job(jobs[-1].offset + jobs[-1].size))
        job = jobs[-1]
        job.leaves += not isinstance(item, bytes)
        if not isinstance(item, bytes) and item.spec.kind in ARRAYS:
            job.parts.append((path, item))
            job.size += sum(part if isinstance(part, int) else len(part) for part in framing(item.spec))
        else:
            data = item if isinstance(item, bytes) else spell(path, item.spec, item.fetch())
            job.parts.append(data)
            job.size += len(data)
    return jobs


class _Output:
    """The file while several threads write it."""

    def __init__(self, number: int, framing: Framing, progress: Progress) -> None:
        self._number = number
        self._framing = framing
        self._progress = progress
        self._written = Written()
        self._extend = digest_function()
        self._lock = threading.Lock()

    def write(self, jobs: list[_Job]) -> Written:
        in_parallel(self._run, [job for job in jobs if not job.is_of_small_leaves])
        in_parallel(self._run, [job for job in jobs if job.is_of_small_leaves], threads=1)
        return self._written

    def _run(self, job: _Job, go_on: Callable[[], None]) -> None:
        place = _Place(self._number, job.offset)
        for part in job.parts:
            if isinstance(part, bytes):
                place.put(part)
            else:
                self._put(*part, place, go_on)
        place.flush()
        with self._lock:
            self._progress(0, job.leaves)

    def _put(self, path: Path, leaf: Leaf, place: _Place, go_on: Callable[[], None]) -> None:
        payload = _Rest(of_the_source(_payload(path, leaf)))
        digest: int | None = 0
        for part in self._framing(leaf.spec):
            if isinstance(part, bytes):
                place.put(part)
                continue
            for piece in payload.take(part):
                go_on()
                if isinstance(piece, Extent):
                    digest = None
                    place.copy(piece, go_on)
                else:
                    digest = None if digest is None else self._extend(digest, piece)
                    place.put(piece)
                with self._lock:
                    self._progress(_size(piece), 0)
        payload.finish()
        with self._lock:
            if digest is None:
                self._written.copied += leaf.spec.nbytes
            else:
                self._written.digests[path] = digest
                self._written.streamed += leaf.spec.nbytes


class _Place:
    """Where one thread is in the file; it gathers small parts."""

    def __init__(self, number: int, offset: int) -> None:
        self._number = number
        self._offset = offset
        self._parts: list[Any] = []
        self._size = 0

    def put(self, data: Any) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= BUFFER_SIZE:
            self.flush()

    def flush(self) -> None:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        write_at(self._number, data, self._offset)
        self._offset += self._size
        self._parts, self._size = [], 0

    def copy(self, extent: Extent, go_on: Callable[[], None]) -> None:
        self.flush()
        source = open_source(extent.file)
        try:
            for _ in copied_bytes(extent.file, source, self._number, extent.offset, self._offset, extent.length):
                go_on()
            self._offset += extent.length
        finally:
            os.close(source)
