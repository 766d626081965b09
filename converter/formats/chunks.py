"""The bytes of chunks, wherever they are: in memory, or in a file of which the latest ones stay open."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from converter.errors import UnreadableCheckpoint
from converter.grid import Chunk
from converter.stored import Extent

_COMPARED = 1 << 20
"""Bytes of two chunks that are read and compared at a time."""

SMALL = 1 << 14
"""Bytes that are read in one go."""

_TOGETHER, _GAP = 1 << 18, 1 << 10
"""Bytes that are read together at the most, and bytes between two chunks that are read along."""

_OPEN_FILES = 64

COPY_AGAIN = "Copy the checkpoint again, or use another step."


class _Files:
    """Open files by path, the latest of them: opening one for each of 50,000 chunks would take longer than reading."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, os.stat_result]] = {}
        self._lock = threading.Lock()

    def read(self, extent: Extent) -> bytes:
        """Raises: UnreadableCheckpoint: the file is missing, shorter, or cannot be read."""
        if extent.length <= SMALL:
            data = self._read_small(extent)
            _require_all(extent, len(data))
            return data
        with self._lent(extent.file) as number:
            data = os.pread(number, extent.length, extent.offset)
            while 0 < len(data) < extent.length:  # the system gives 2 GiB at a time
                more = os.pread(number, extent.length - len(data), extent.offset + len(data))
                if not more:
                    break
                data += more
        _require_all(extent, len(data))
        return data

    def _read_small(self, extent: Extent) -> bytes:
        """Others wait meanwhile, which is sooner done than lending them a descriptor."""
        try:
            with self._lock:
                return os.pread(self._number(extent.file), extent.length, extent.offset)
        except OSError as error:
            raise _unreadable(extent.file, error) from None

    def read_into(self, extent: Extent, buffer: memoryview) -> None:
        """Fills a buffer as long as the extent. Raises: as ``read``."""
        done = 0
        with self._lent(extent.file) as number:
            while done < extent.length:
                count = os.preadv(number, [buffer[done:]], extent.offset + done)
                if not count:
                    break
                done += count
        _require_all(extent, done)

    @contextlib.contextmanager
    def _lent(self, path: str) -> Iterator[int]:
        """A descriptor that nobody else closes meanwhile."""
        try:
            with self._lock:
                number = os.dup(self._number(path))
            try:
                yield number
            finally:
                os.close(number)
        except OSError as error:
            raise _unreadable(path, error) from None

    def _number(self, path: str) -> int:
        """The descriptor of the file that has this name now."""
        found = os.stat(path)
        known = self._open.get(path)
        if known is not None and os.path.samestat(known[1], found):
            return known[0]
        if known is not None or len(self._open) >= _OPEN_FILES:
            os.close(self._open.pop(path if known is not None else next(iter(self._open)))[0])
        number = os.open(path, os.O_RDONLY)
        self._open[path] = number, os.fstat(number)
        return number

    def forget(self) -> None:
        """Closes all, so that files which are removed give their space back."""
        with self._lock:
            for number, _ in self._open.values():
                os.close(number)
            self._open.clear()


def _unreadable(path: str, error: OSError) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(f"{path} cannot be read: {error.strerror}", COPY_AGAIN)


def _require_all(extent: Extent, found: int) -> None:
    if found != extent.length:
        raise UnreadableCheckpoint(
            f"{extent.file} is too short: expected {extent.length} bytes at {extent.offset}, found {found}", COPY_AGAIN
        )


FILES = _Files()


def forget_files() -> None:
    """Closes all files that were read, so that those which are removed give their space back."""
    FILES.forget()


def small_chunks(extents: Sequence[Extent]) -> Iterator[bytes]:
    """The bytes of many extents of a few bytes, one after the other: those that follow each other are read together.

    Raises:
      UnreadableCheckpoint: a file is missing, shorter, or cannot be read.
    """
    first = 0
    while first < len(extents):
        file, start, length = extents[first]
        last, end = first + 1, start + length
        while last < len(extents) and extents[last].file == file and 0 <= extents[last].offset - end <= _GAP:
            end = extents[last].offset + extents[last].length
            last += 1
            if end - start > _TOGETHER:
                break
        data = FILES.read(Extent(file, start, end - start))
        for each in extents[first:last]:
            yield data[each.offset - start : each.offset - start + each.length]
        first = last


class ChunkReader(io.RawIOBase):
    """A chunk as a file that decompressors can read from."""

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), length_of(self._chunk) - self._at)
        part = part_of(self._chunk, self._at, size)
        if isinstance(part, bytes):
            buffer[:size] = part
        else:
            FILES.read_into(part, memoryview(buffer)[:size])
        self._at += size
        return size


def length_of(chunk: Chunk) -> int:
    return len(chunk) if isinstance(chunk, bytes) else chunk.length


def chunk_bytes(chunk: Chunk) -> bytes:
    return chunk if isinstance(chunk, bytes) else FILES.read(chunk)


def same_bytes(left: Chunk, right: Chunk) -> bool:
    """Whether two chunks are equal as they are on disk.

    Raises:
      UnreadableCheckpoint: one of them is not there.
    """
    size = length_of(left)
    if size != length_of(right):
        return False
    if isinstance(left, bytes) or isinstance(right, bytes) or size <= _COMPARED:
        return chunk_bytes(left) == chunk_bytes(right)
    buffers = bytearray(_COMPARED), bytearray(_COMPARED)
    for start in range(0, size, _COMPARED):
        length = min(_COMPARED, size - start)
        for chunk, buffer in zip((left, right), buffers, strict=True):
            place = Extent(chunk.file, chunk.offset + start, length)
            FILES.read_into(place, memoryview(buffer)[:length])
        # What is left behind the last bytes is of the round before, in both.
        if buffers[0] != buffers[1]:
            return False
    return True


def part_of(chunk: Chunk, offset: int, length: int) -> Chunk:
    if offset + length > length_of(chunk):
        raise UnreadableCheckpoint(
            f"a chunk is damaged: expected {offset + length} bytes or more, found {length_of(chunk)}", COPY_AGAIN
        )
    if isinstance(chunk, bytes):
        return chunk[offset : offset + length]
    return Extent(chunk.file, chunk.offset + offset, length)
