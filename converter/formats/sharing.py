"""Getting bytes of the source's files into the destination without passing through this process.

Files that are never rewritten in place are linked: the destination then names the very bytes of the source. All others,
and all where links are impossible or unwanted, are copied by the system, which on some file systems (XFS, btrfs) makes
the copy share the source's blocks until one of them is changed.
"""

from __future__ import annotations

import bisect
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from converter.errors import UnreadableCheckpoint
from converter.formats.checkpoint import Progress
from converter.formats.streaming import WORKERS, in_parallel
from converter.stored import Extent

_BLOCK = 4096
"""Ranges are copied in whole blocks to places that are as far into a block, or no file system could share them."""

_GAP = 4096
"""Ranges that are so close to each other are copied as one."""

_LEAST_SHARE = 1 << 26
"""Bytes that are worth a thread and a file of their own."""

_AT_ONCE = 1 << 26
_WORTH_BEGINNING = 1 << 20
_BUFFER = 1 << 22

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTSUP)
_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY)


@dataclass(slots=True)
class _Copied:
    """Ranges of a source file that are copied to a file of their own, and where they get to.

    Attributes:
      source: the file they are in.
      target: the file they go to.
      extents: what is wanted, ascending.
      starts, places: where the ranges that cover all of it begin in either file: parallel lists, ascending.
    """

    source: str
    target: str
    extents: Sequence[Extent]
    starts: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def place(self, extent: Extent) -> Extent:
        run = bisect.bisect_right(self.starts, extent.offset) - 1
        return Extent(self.target, self.places[run] + extent.offset - self.starts[run], extent.length)


class SharedFiles:
    """The files of a destination that hold bytes of the source.

    Args:
      directory: where they are made; created when the first of them is.
      copy: link to nothing.
      progress: told of bytes as they are copied.

    Attributes:
      linked, copied: bytes that were asked for and got there in either way.
      unused: bytes of linked files that nobody asked for.
    """

    def __init__(self, directory: FilePath, *, copy: bool, progress: Progress) -> None:
        self.linked = self.copied = self.unused = 0
        self._directory = directory
        self._copy = copy
        self._progress = progress
        self._links: dict[str, str] = {}
        self._copies: dict[str, list[_Copied]] = {}
        self._lock = threading.Lock()
        self._count = 0

    def new_file(self) -> str:
        """The path for one more file; its number makes the name, so that equal input gives equal names."""
        self._directory.mkdir(exist_ok=True)
        self._count += 1
        return f"{self._directory}/{self._count:08d}"

    def add(self, extents: Iterable[tuple[Extent, bool]]) -> None:
        """Brings bytes over, all of them at once: each file is linked or opened once, several are copied at a time.

        Args:
          extents: with each whether its file may be linked.

        Raises:
          OSError: the file system refused.
        """
        wanted: dict[str, list[Extent]] = {}
        linkable: dict[str, bool] = {}
        for extent, may_link in extents:
            wanted.setdefault(extent.file, []).append(extent)
            linkable[extent.file] = linkable.get(extent.file, True) and may_link
        begun: list[_Copied] = []
        for file, ranges in wanted.items():
            nbytes = sum(extent.length for extent in set(ranges))
            if linkable[file] and not self._copy and self._link(file):
                self.linked += nbytes
                self.unused += max(os.stat(file).st_size - nbytes, 0)
                self._progress(nbytes, 0)
            else:
                self._copies[file] = [_Copied(file, self.new_file(), share) for share in _shares(ranges)]
                begun += self._copies[file]
                self.copied += nbytes
        in_parallel(self._copy_ranges, begun)

    def place(self, extent: Extent) -> Extent:
        """Where bytes that were added are now."""
        link = self._links.get(extent.file)
        if link is not None:
            return extent._replace(file=link)
        shares = self._copies[extent.file]
        share = bisect.bisect_right(shares, extent.offset, key=lambda copied: copied.extents[0].offset) - 1
        return shares[share].place(extent)

    def _link(self, file: str) -> bool:
        target = self.new_file()
        try:
            os.link(os.path.realpath(file), target)  # of a symbolic link it would make another one
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._count -= 1
            return False
        self._links[file] = target
        return True

    def _copy_ranges(self, copied: _Copied, go_on: Callable[[], None]) -> None:
        source = open_source(copied.source)
        try:
            made = os.open(copied.target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                size = os.fstat(source).st_size
                end = 0
                for start, stop in _runs(copied.extents, size):
                    place = -(-end // _BLOCK) * _BLOCK
                    copied.starts.append(start)
                    copied.places.append(place)
                    for done in copied_bytes(copied.source, source, made, start, place, stop - start):
                        go_on()
                        with self._lock:
                            self._progress(done, 0)
                    end = place + stop - start
            finally:
                os.close(made)
        finally:
            os.close(source)


def copied_bytes(file: str, source: int, target: int, start: int, place: int, length: int) -> Iterator[int]:
    """Copies a range of an open file to a place in another, and tells time and again how many bytes more are there.

    Raises:
      UnreadableCheckpoint: ``file``, which ``source`` was opened from, ends before.
    """
    while length:
        done = copy_range(source, target, min(length, _AT_ONCE), start, place)
        if not done:
            raise UnreadableCheckpoint(f"{file} became shorter while it was copied", "Copy it again.")
        start, place, length = start + done, place + done, length - done
        yield done


def _shares(ranges: list[Extent]) -> list[list[Extent]]:
    """The ranges of one file in ascending order, divided among threads where there is enough to copy.

    Each share gets a file of its own: two threads that write to one file wait for each other.
    """
    ranges = sorted(ranges)
    size = max(sum(extent.length for extent in ranges) // WORKERS, _LEAST_SHARE)
    shares: list[list[Extent]] = [[]]
    filled = end = 0
    for extent in ranges:
        if filled >= size and extent.offset >= end:
            shares.append([])
            filled = 0
        shares[-1].append(extent)
        filled, end = filled + extent.length, max(end, extent.offset + extent.length)
    return shares


def _runs(extents: Iterable[Extent], size: int) -> list[tuple[int, int]]:
    """Ranges of a file that cover all extents, which ascend, in whole blocks, ascending and apart from each other."""
    runs: list[tuple[int, int]] = []
    for extent in extents:
        start = extent.offset // _BLOCK * _BLOCK
        stop = min(-(-(extent.offset + extent.length) // _BLOCK) * _BLOCK, max(size, extent.offset + extent.length))
        if runs and start <= runs[-1][1] + _GAP:
            runs[-1] = runs[-1][0], max(runs[-1][1], stop)
        else:
            runs.append((start, stop))
    return runs


def open_source(file: str) -> int:
    """A descriptor for reading.

    Raises:
      UnreadableCheckpoint: the system refuses.
    """
    try:
        return os.open(file, os.O_RDONLY)
    except OSError as error:
        raise UnreadableCheckpoint(f"{file} cannot be read: {error.strerror}", "Check its permissions.") from None


def copy_range(source: int, target: int, length: int, start: int, place: int) -> int:
    """Copies up to ``length`` bytes between open files, in the kernel where it can; tells how many.

    Args:
      source, target: file descriptors.
      start, place: where the bytes are and where they go, in bytes from the beginning.
    """
    if hasattr(os, "copy_file_range"):
        try:
            done = os.copy_file_range(source, target, length, start, place)
            begin_writeback(target, place, done)
            return done
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
    data = os.pread(source, min(length, _BUFFER), start)
    return os.pwrite(target, data, place)


def write_at(number: int, data: Any, place: int) -> None:
    """Writes all of a buffer into an open file."""
    view = memoryview(data).cast("B")
    start, size = place, len(view)
    while len(view):
        done = os.pwrite(number, view, place)
        view, place = view[done:], place + done
    begin_writeback(number, start, size)


def begin_writeback(number: int, start: int, length: int) -> None:
    """Lets the system begin to bring dirty pages to the disk, where they have to be in the end.

    Linux does so when it is told that a range is not needed; pages that are still dirty stay in memory nevertheless.
    """
    if length >= _WORTH_BEGINNING and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(number, start, length, os.POSIX_FADV_DONTNEED)
