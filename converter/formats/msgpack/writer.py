"""Writing a tree as a flax msgpack file, piece by piece; what the source has in that form is copied by the system.

The bytes are those of ``flax.serialization.msgpack_serialize`` for the same nested dict (flax 0.5 to 0.12).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from converter.errors import ConverterError, DestinationError, UnsupportedCheckpoint
from converter.formats.checkpoint import Progress, Strategy, Written
from converter.formats.msgpack import wire
from converter.formats.msgpack.values import CHUNKED_ARRAY, EXT_ARRAY, EXT_COMPLEX, EXT_NUMPY_SCALAR
from converter.formats.sharing import copied_bytes, open_source, write_at
from converter.formats.streaming import (
    ARRAYS,
    digest_function,
    in_parallel,
    leaf_pieces,
    of_the_source,
    whole_or_nothing,
)
from converter.stored import Extent
from converter.tree import Key, Leaf, LeafKind, LeafSpec, Path, Tree, format_path, item_size

MAX_CHUNK_SIZE = 2**30
"""Arrays of more bytes are split, as by flax's constant of the same name: msgpack ends at 2³² - 1 bytes per value."""

BUFFER_SIZE = 1 << 20
"""Small leaves are gathered to writes of this size; larger payloads go to the system as they are."""

LEAST_COPY = 1 << 16
"""Arrays of fewer bytes are not worth a system call of their own."""


class _Node(dict[Key, "_Node | Leaf"]):
    """An inner node of the nesting."""


def write(tree: Tree, destination: FilePath, progress: Progress) -> Written:
    """Writes ``tree`` to ``destination``; a file that was not finished is removed.

    ``progress`` is called with the bytes and leaves that were added since the last call.

    Raises:
      UnsupportedCheckpoint: leaves that msgpack cannot hold; whatever their specs tell is found before writing.
      DestinationError: the destination exists, or the file system refused.
      RuntimeError: a leaf whose value is not what its spec announced; a defect of the source's reader.
    """
    _refuse_unsupported(tree)
    if os.path.lexists(destination):
        raise DestinationError(f"{destination} exists already")
    with whole_or_nothing(destination), destination.open("xb") as stream:
        return _Output(stream.fileno(), progress).write(_jobs(_unfold(_nested(tree))))


def strategies(tree: Tree) -> dict[Path, Strategy]:
    """How each array gets there; see ``Format.strategies``."""
    return {
        path: Strategy.STREAM if _extents(leaf) is None else Strategy.COPY
        for path, leaf in tree.items()
        if leaf.spec.kind in ARRAYS
    }


def objections(tree: Tree) -> dict[Path, str]:
    """Why a msgpack file cannot hold some leaves, as far as their specs tell."""
    return {path: problem for path, leaf in tree.items() if (problem := _problem(path, leaf.spec))}


def _refuse_unsupported(tree: Tree) -> None:
    problems = objections(tree)
    if problems:
        lines = [f"  {format_path(path)}: {problem}" for path, problem in problems.items()]
        raise UnsupportedCheckpoint(
            "\n".join(["a msgpack file cannot hold these leaves:", *lines]),
            f"Drop them (--drop '{format_path(next(iter(problems)))}'), or write an Orbax checkpoint instead.",
        )


def _problem(path: Path, spec: LeafSpec) -> str:
    if len(path) > wire.MAX_DEPTH:
        return f"lies below more than {wire.MAX_DEPTH} containers"
    if spec.kind is LeafKind.KEY:
        return f"{spec} is a typed PRNG key, for which msgpack has no form"
    if spec.kind in (LeafKind.ARRAY, LeafKind.NUMPY_SCALAR):
        try:
            item_size(spec.dtype)
        except ConverterError as error:
            return error.message
    return ""


def _nested(tree: Tree) -> _Node | Leaf:
    """Inner nodes in the order in which their first leaves stand; a map tells its size before its entries."""
    root = _Node()
    for path, leaf in tree.items():
        if not path:
            return leaf
        node = root
        for key in path[:-1]:
            child = node.setdefault(key, _Node())
            assert isinstance(child, _Node), "Tree has no leaf below a leaf"
            node = child
        node[path[-1]] = leaf
    return root


def _unfold(root: _Node | Leaf) -> Iterator[tuple[Path, bytes | Leaf]]:
    """The leaves in order, between the bytes of the maps and keys around them; without recursion, like the reader."""
    if isinstance(root, Leaf):
        yield (), root
        return
    yield (), wire.spell_map_head(len(root))
    path: list[Key] = []
    pending = [iter(root.items())]
    while pending:
        key, child = next(pending[-1], (None, None))
        if key is None or child is None:
            pending.pop()
            del path[-1:]
            continue
        # flax.serialization.to_state_dict turns positions and int keys into text.
        yield (*path, key), _spell_text((*path, key), key)
        if isinstance(child, Leaf):
            yield (*path, key), child
        else:
            yield (*path, key), wire.spell_map_head(len(child))
            path.append(key)
            pending.append(iter(child.items()))


# Leaves ----------------------------------------------------------------------------------------------------------


def _payload(path: Path, leaf: Leaf) -> Iterator[Any]:
    """The bytes of an array: where they are, if they can be copied as they are, else the bytes themselves."""
    extents = _extents(leaf)
    yield from leaf_pieces(path, leaf) if extents is None else extents


def _extents(leaf: Leaf) -> list[Extent] | None:
    """Where on disk the bytes of an array stand one after the other as the file wants them; None where they do not."""
    if leaf.spec.nbytes < LEAST_COPY:
        return None
    grid = leaf.grid()
    if grid is None or not grid.encoding.is_raw or not grid.is_c_ordered or not grid.is_complete:
        return None
    if not grid.axes or any(not axis.is_whole for axis in grid.axes[1:]) or grid.axes[0].size % grid.axes[0].chunk:
        return None
    chunks = [grid.chunks[index] for index in grid.indices()]
    extents = [chunk for chunk in chunks if isinstance(chunk, Extent)]
    # What is too short for its shape is left to those who read it, and complain.
    fits = sum(extent.length for extent in extents) == leaf.spec.nbytes
    return extents if fits and len(extents) == len(chunks) else None


def _spell_value(path: Path, spec: LeafSpec, value: Any) -> bytes:
    if spec.kind is LeafKind.EMPTY:
        return wire.NIL if spec.dtype == "none" else wire.spell_map_head(0)
    if type(value).__name__ != spec.dtype:
        raise RuntimeError(
            f"{format_path(path)}: expected {spec} from its metadata, found {type(value).__name__} when it was read"
        )
    match value:
        case bool():
            return wire.spell_bool(value)
        case int():
            return _spell_int(path, value)
        case float():
            return wire.spell_float(value)
        case complex():
            pair = wire.spell_array_head(2) + wire.spell_float(value.real) + wire.spell_float(value.imag)
            return wire.spell_ext_head(EXT_COMPLEX, len(pair)) + pair
        case str():
            return _spell_text(path, value)
        case _:
            return wire.spell_bytes_head(len(value)) + bytes(value)


def _spell_int(path: Path, value: int) -> bytes:
    try:
        return wire.spell_int(value)
    except OverflowError as error:
        raise UnsupportedCheckpoint(f"{format_path(path)}: {error}; msgpack cannot hold it.", "Drop it.") from None


def _spell_text(path: Path, text: str) -> bytes:
    try:
        return wire.spell_text(text)
    except UnicodeEncodeError:
        problem = f"{format_path(path)}: UTF-8 cannot encode the text {text!r}, so that msgpack cannot hold it."
        raise UnsupportedCheckpoint(problem, "Rename or drop it.") from None


def _spell_array_head(kind: LeafKind, dtype: str, shape: tuple[int, ...], nbytes: int) -> bytes:
    """[[length of each axis], name of the dtype, payload] inside of an extension value, up to the payload."""
    axes = wire.spell_array_head(len(shape)) + b"".join(map(wire.spell_int, shape))
    head = wire.spell_array_head(3) + axes + wire.spell_text(dtype) + wire.spell_bytes_head(nbytes)
    code = EXT_ARRAY if kind is LeafKind.ARRAY else EXT_NUMPY_SCALAR
    return wire.spell_ext_head(code, len(head) + nbytes) + head


def _framing(spec: LeafSpec) -> Iterator[bytes | int]:
    """What stands around the bytes of an array, and how many of these come next; split as flax's ``_chunk`` does."""
    if spec.kind is not LeafKind.ARRAY or spec.nbytes <= MAX_CHUNK_SIZE:
        yield _spell_array_head(spec.kind, spec.dtype, spec.shape, spec.nbytes)
        yield spec.nbytes
        return
    itemsize = item_size(spec.dtype)
    length = max(1, MAX_CHUNK_SIZE // itemsize)
    starts = range(0, spec.size, length)
    yield wire.spell_map_head(3) + wire.spell_text(CHUNKED_ARRAY) + wire.spell_bool(True)
    yield wire.spell_text("shape") + wire.spell_map_head(len(spec.shape))
    yield b"".join(wire.spell_text(str(axis)) + wire.spell_int(n) for axis, n in enumerate(spec.shape))
    yield wire.spell_text("chunks") + wire.spell_map_head(len(starts))
    for number, start in enumerate(starts):
        size = min(length, spec.size - start)
        yield wire.spell_text(str(number)) + _spell_array_head(spec.kind, spec.dtype, (size,), size * itemsize)
        yield size * itemsize


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


def _jobs(items: Iterator[tuple[Path, bytes | Leaf]]) -> list[_Job]:
    """The file in parts of about ``BUFFER_SIZE``, or one large array: where each of them lies follows from specs."""
    jobs = [_Job(0)]
    for path, item in items:
        if jobs[-1].size >= BUFFER_SIZE:
            jobs.append(_Job(jobs[-1].offset + jobs[-1].size))
        job = jobs[-1]
        job.leaves += isinstance(item, Leaf)
        if isinstance(item, Leaf) and item.spec.kind in ARRAYS:
            job.parts.append((path, item))
            job.size += sum(part if isinstance(part, int) else len(part) for part in _framing(item.spec))
        else:
            data = item if isinstance(item, bytes) else _spell_value(path, item.spec, item.fetch())
            job.parts.append(data)
            job.size += len(data)
    return jobs


class _Output:
    """The file while several threads write it."""

    def __init__(self, number: int, progress: Progress) -> None:
        self._number = number
        self._progress = progress
        self._written = Written()
        self._extend = digest_function()
        self._lock = threading.Lock()

    def write(self, jobs: list[_Job]) -> Written:
        in_parallel(self._run, jobs)
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
        for part in _framing(leaf.spec):
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
