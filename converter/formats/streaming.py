"""The bytes of leaves on their way to a file: in pieces, read ahead by a thread of their own, with a digest."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, TypeVar

from converter.dtypes import described, numpy_dtype
from converter.errors import DestinationError
from converter.formats import decoding
from converter.formats.checkpoint import Progress, undisturbed
from converter.paths import Path, format_path
from converter.tree import Leaf, LeafKind, LeafSpec

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


class SourceError(Exception):
    """The system refused something while the source was read; not to be taken for a refusal of the destination."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def whole_or_nothing(destination: FilePath) -> Iterator[None]:
    """Removes the file or directory that is being written if that fails.

    Raises:
      DestinationError: what the file system refused.
    """
    try:
        yield
    except BaseException as error:
        with undisturbed():
            if destination.is_dir():
                shutil.rmtree(destination, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    destination.unlink()
        if isinstance(error, SourceError):
            raise error.error from None
        if not isinstance(error, OSError):
            raise
        raise DestinationError(
            f"{destination} cannot be written: {error.strerror or error}",
            "Check the path, its permissions and the space left; nothing was left behind.",
        ) from error


ARRAYS = (LeafKind.ARRAY, LeafKind.NUMPY_SCALAR, LeafKind.KEY)
"""Leaves whose bytes are those of an array."""

WORKERS = min(os.cpu_count() or 1, 4)
"""Threads that read, copy and decompress at a time."""

LARGE = 1 << 20
"""Bytes of a leaf that are worth a thread of its own."""

_BATCH_BYTES, _BATCH_PARTS = 1 << 20, 1000

_AHEAD = 2
"""Pieces that are read ahead; each of them may be as large as ``scratch.limit()``."""


def leaf_pieces(path: Path, leaf: Leaf) -> Iterator[Any]:
    """The bytes of an array in C order, little-endian, in buffers that fit in memory.

    Raises:
      UnreadableCheckpoint: the source is damaged.
      RuntimeError: the value is not what the spec announced; a defect of the source's reader.
    """
    grid = leaf.grid()
    if grid is not None and decoding.can_decode(grid):
        return decoding.pieces(grid)
    return decoding.array_pieces(checked_array(path, leaf.spec, leaf.fetch()))


def checked_array(path: Path, spec: LeafSpec, value: Any) -> np.ndarray[Any, Any]:
    """The value as a NumPy array, if it is what the spec says.

    Raises:
      RuntimeError: it is not.
    """
    import numpy as np

    array = np.asarray(value)
    dtype, rank = ("uint32", len(spec.shape)) if spec.kind is LeafKind.KEY else (spec.dtype, None)
    if array.dtype.newbyteorder("=") != numpy_dtype(dtype) or array.shape[:rank] != spec.shape:
        where, found = format_path(path), described(array)
        raise RuntimeError(f"{where}: expected {spec} from its metadata, found {found} when it was read")
    return array


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, made by a thread of their own while the caller works. Errors are raised in their place."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=_AHEAD)
    stopped = threading.Event()

    def put(item: tuple[bool, Any]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except OSError as error:
            put((False, SourceError(error)))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, name="flax-convert-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if not more:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        stopped.set()
        thread.join()


class _Stopped(Exception):
    """Another thread has failed; what this one does is of no use any more."""


def in_parallel(work: Callable[[T, Callable[[], None]], None], jobs: Sequence[T], threads: int = WORKERS) -> None:
    """Does all jobs, some at a time: decompressing and copying leave Python's lock alone.

    Args:
      work: called with a job and a function that it has to call often; that raises where going on is of no use.
      jobs: begun in their order.
      threads: how many there may be; one is the caller's own.
    """
    stopped = threading.Event()

    def go_on() -> None:
        if stopped.is_set():
            raise _Stopped

    if len(jobs) <= 1 or threads == 1:
        for job in jobs:
            work(job, go_on)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads, "flax-convert-worker") as pool:
        futures = [pool.submit(work, job, go_on) for job in jobs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def leaf_by_leaf(
    sizes: Sequence[int], at_once: Callable[[int], T | None], thoroughly: Callable[[int], T], progress: Progress
) -> list[T]:
    """What is found out about each leaf, cheaply or else by reading it; large leaves are read by several threads.

    Args:
      sizes: the bytes of every leaf.
      at_once: what can be said of a leaf, by its number, without reading it; None where that is nothing.
      thoroughly: the same in any case, called after ``at_once``.
      progress: called with the bytes of a leaf, and 1, when it is done.
    """
    found: dict[int, T] = {}
    large: list[int] = []
    reported = threading.Lock()

    def read(number: int, _: Callable[[], None] | None = None) -> None:
        found[number] = thoroughly(number)
        with reported:
            progress(sizes[number], 1)

    for number, size in enumerate(sizes):
        known = at_once(number)
        if known is not None:
            found[number] = known
            progress(size, 1)
        elif size < LARGE:
            read(number)
        else:
            large.append(number)
    in_parallel(read, large)
    return [found[number] for number in range(len(sizes))]


def of_the_source(pieces: Iterable[T]) -> Iterator[T]:
    """The same pieces; what the system refuses meanwhile is the source's fault.

    Raises:
      SourceError
    """
    try:
        yield from pieces
    except OSError as error:
        raise SourceError(error) from error


def in_turn(
    leaves: Iterable[tuple[Path, Leaf]], pieces: Callable[[Path, Leaf], Iterator[Any]]
) -> Iterator[tuple[tuple[Path, Leaf], Iterator[Any]]]:
    """Every leaf with its bytes, read ahead. The bytes of one have to be taken before the next one is asked for."""

    def parts() -> Iterator[tuple[int, Any]]:
        for path, leaf in leaves:
            for piece in pieces(path, leaf):
                yield len(piece), ((path, leaf), piece)
            yield 0, ((path, leaf), None)

    flat = (part for batch in ahead(_batches(parts())) for part in batch)
    for first in flat:

        def rest(part: Any = first) -> Iterator[Any]:
            while part[1] is not None:
                yield part[1]
                part = next(flat)

        yield first[0], rest()


def _batches(parts: Iterable[tuple[int, T]]) -> Iterator[list[T]]:
    """Small parts together: handing each of 50,000 leaves to another thread takes longer than reading them."""
    batch: list[T] = []
    size = 0
    for nbytes, part in parts:
        batch.append(part)
        size += nbytes
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_PARTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def digest(pieces: Iterable[Any]) -> int:
    """crc32c of all bytes."""
    extend = digest_function()
    value = 0
    for piece in pieces:
        value = extend(value, piece)
    return value


def digest_function() -> Callable[[int, Any], int]:
    """Continues a crc32c by the bytes of a buffer."""
    import google_crc32c

    def extend(value: int, piece: Any) -> int:
        if isinstance(piece, bytes):
            return int(google_crc32c.extend(value, piece))
        import numpy as np

        data = np.frombuffer(piece, np.uint8)
        data.flags.writeable = False  # the library takes nothing else
        return int(google_crc32c.extend(value, data)) if data.size else value

    return extend
