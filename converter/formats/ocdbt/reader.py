"""Reading an OCDBT database: which keys its latest version has, and where their values lie.

A database may come from anywhere. Nothing in it can lead to a file outside of its directory (save through symbolic
links, which the caller has to judge), and what is read never takes much more memory than ``MAX_MEMORY``.
"""

from __future__ import annotations

import operator
import os
import stat
from collections.abc import Sequence
from itertools import compress, islice
from pathlib import Path
from typing import NamedTuple

from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats.ocdbt.frames import MANIFEST_MAGIC, NODE_MAGIC, unwrap
from converter.formats.ocdbt.wire import MAX_NUMBER, Allowance, Cursor, DataFile, damaged, read_files
from converter.stored import Extent

MANIFEST_FILE = "manifest.ocdbt"

MISSING = MAX_NUMBER
"""Offset and length of the root of an empty database, which has no nodes."""

MAX_MEMORY = 2**30
"""For everything that is decoded, in bytes: enough for some three million keys. TensorStore has no such limit."""

_NODE_BYTES = 4096
"""What a node costs of it at the least, since a node takes time however small it is."""

_MANIFEST_KINDS = ("single", "numbered")


class _Reference(NamedTuple):
    """A node of the B-tree that was named by its parent or by the manifest; all keys below it begin with ``prefix``."""

    file: DataFile
    offset: int
    length: int
    height: int
    prefix: bytes = b""


def read_database(directory: Path) -> dict[bytes, bytes | Extent]:
    """Every key of the latest version in ascending order, with its value or the place of its value on disk.

    Args:
      directory: holds ``manifest.ocdbt``.

    Raises:
      UnreadableCheckpoint: a file is missing or damaged, or one is named that lies elsewhere.
      UnsupportedCheckpoint: a database in several manifests, of an unknown version, or too large.
    """
    return _Database(directory).read()


class _Database:
    def __init__(self, directory: Path) -> None:
        self.root = os.path.abspath(directory)
        self.allowance = Allowance(MAX_MEMORY)
        self.sizes: dict[str, int] = {}

    def read(self) -> dict[bytes, bytes | Extent]:
        manifest = os.path.join(self.root, MANIFEST_FILE)
        frame = self._bytes(manifest, 0, self._size(manifest, "the manifest"))
        root = _read_root(unwrap(frame, MANIFEST_MAGIC, manifest, self.allowance))
        values: dict[bytes, bytes | Extent] = {}
        pending = [] if root is None else [root]
        while pending:
            node = pending.pop()
            cursor = self._open(node)
            files = read_files(cursor, node.file.base)
            if node.height:
                pending += reversed(_children(cursor, node, files))
            else:
                self._add_leaf(cursor, node, files, values)
            cursor.finish()
        return values

    def _open(self, node: _Reference) -> Cursor:
        """The body of a node, after its height."""
        file = self._path(node.file)
        place = f"{file}: the B-tree node of {node.length} bytes at byte {node.offset}"
        if node.offset + node.length > self._size(file, place):
            raise damaged(place, "to find it in the file", f"the end of the file at byte {self.sizes[file]}")
        self.allowance.spend(_NODE_BYTES, place)
        cursor = unwrap(self._bytes(file, node.offset, node.length), NODE_MAGIC, place, self.allowance)
        height = cursor.take(1)[0]
        if height != node.height:
            raise cursor.damaged(f"a node of height {node.height}", f"height {height}")
        return cursor

    def _add_leaf(
        self, cursor: Cursor, node: _Reference, files: Sequence[DataFile], values: dict[bytes, bytes | Extent]
    ) -> None:
        count = _read_count(cursor)
        shared, added = cursor.numbers(count - 1), cursor.numbers(count)
        keys = _sorted_keys(cursor, shared, added, node.prefix)
        if values and keys[0] <= next(reversed(values)):
            raise cursor.damaged(f"keys after {next(reversed(values))!r}, the last of the node before", repr(keys[0]))
        lengths, kinds = cursor.numbers(count), cursor.take(count)
        stored = kinds.count(1)
        if kinds.count(0) + stored != count:
            raise cursor.damaged("values of kind 0 (inline) or 1 (in a file)", f"kind {max(kinds)}")
        if stored == count:
            values.update(zip(keys, self._extents(cursor, files, lengths), strict=True))
            return
        extents = iter(self._extents(cursor, files, list(compress(lengths, kinds))))
        inline = iter(cursor.pieces(list(compress(lengths, map(operator.not_, kinds)))))
        values.update(zip(keys, [next(extents) if kind else next(inline) for kind in kinds], strict=True))

    def _extents(self, cursor: Cursor, files: Sequence[DataFile], lengths: Sequence[int]) -> list[Extent]:
        """The columns of file and offset that follow, as extents that have been found to lie in their files."""
        ids, offsets = cursor.numbers(len(lengths)), cursor.numbers(len(lengths))
        _check_ids(cursor, files, ids)
        paths = {number: self._path(files[number]) for number in set(ids)}
        sizes = {number: self._size(path, cursor.place) for number, path in paths.items()}
        extents = list(map(Extent, map(paths.__getitem__, ids), offsets, lengths))
        ends = map(operator.add, offsets, lengths)
        for extent, end, size in zip(extents, ends, map(sizes.__getitem__, ids), strict=True):
            if end > size:
                raise damaged(
                    cursor.place,
                    f"values within the {size} bytes of {extent.file}",
                    f"one of {extent.length} bytes at byte {extent.offset}",
                )
        return extents

    # Files

    def _path(self, file: DataFile) -> str:
        return os.path.join(self.root, os.fsdecode(file.path))

    def _size(self, file: str, user: str) -> int:
        """The size of a regular file that ``user`` needs."""
        if file not in self.sizes:
            try:
                status = os.stat(file)
            except OSError as error:
                raise _refused(file, f"{error.strerror}; {user} needs it") from None
            if not stat.S_ISREG(status.st_mode):
                raise _refused(file, f"it is no regular file; {user} needs it")
            self.sizes[file] = status.st_size
        return self.sizes[file]

    def _bytes(self, file: str, offset: int, length: int) -> bytes:
        self.allowance.spend(length, file)
        try:
            with open(file, "rb") as stream:
                stream.seek(offset)
                return stream.read(length)
        except OSError as error:
            raise _refused(file, str(error.strerror)) from None


def _refused(file: str, reason: str) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(
        f"{file} cannot be read: {reason}.",
        "The checkpoint is incomplete, or not yours to read: copy it again, or use another step.",
    )


# Manifests and nodes ---------------------------------------------------------------------------------------------


def _read_root(manifest: Cursor) -> _Reference | None:
    """The root of the latest version, None if that has no keys."""
    manifest.take(16)  # a unique name of the database
    kind = manifest.number()
    if kind != 0:
        name = _MANIFEST_KINDS[kind] if kind < len(_MANIFEST_KINDS) else kind
        raise UnsupportedCheckpoint(
            f"{manifest.place}: expected manifest_kind single, found {name}.",
            "Orbax writes single manifests only: restore it with the program that wrote it and save it again.",
        )
    manifest.numbers(2)  # limits that a writer has to keep
    manifest.take(1)  # the arity of the tree of versions
    if manifest.number():
        manifest.take(4)  # the level of compression
    files = read_files(manifest, b"")
    count = _read_count(manifest)
    generations, heights = manifest.numbers(count), manifest.take(count)
    ids, offsets, lengths = manifest.numbers(count), manifest.numbers(count), manifest.numbers(count)
    manifest.numbers(3 * count)  # statistics
    manifest.take(8 * count)  # times
    # What follows are nodes with older versions: the manifest itself has the latest ones.
    latest = max(range(count), key=generations.__getitem__)
    if offsets[latest] == lengths[latest] == MISSING:
        return None
    _check_ids(manifest, files, ids)
    return _Reference(files[ids[latest]], offsets[latest], lengths[latest], heights[latest])


def _children(cursor: Cursor, node: _Reference, files: Sequence[DataFile]) -> list[_Reference]:
    count = _read_count(cursor)
    shared, added, fixed = cursor.numbers(count - 1), cursor.numbers(count), cursor.numbers(count)
    keys = _sorted_keys(cursor, shared, added)
    if any(map(operator.gt, fixed, map(len, keys))):
        raise cursor.damaged("prefixes of children within the first key of each", "a longer one")
    ids, offsets, lengths = cursor.numbers(count), cursor.numbers(count), cursor.numbers(count)
    cursor.numbers(3 * count)  # statistics
    _check_ids(cursor, files, ids)
    return [
        _Reference(files[number], offset, length, node.height - 1, node.prefix + key[:kept])
        for key, kept, number, offset, length in zip(keys, fixed, ids, offsets, lengths, strict=True)
    ]


def _read_count(cursor: Cursor) -> int:
    """The number of entries of a node, or of versions in a manifest."""
    count = cursor.number()
    if not count:
        raise cursor.damaged("at least one entry", "none")
    return count


def _sorted_keys(cursor: Cursor, shared: Sequence[int], added: Sequence[int], prefix: bytes = b"") -> list[bytes]:
    keys = cursor.names(shared, added)
    if not all(map(operator.lt, keys, islice(keys, 1, None))):
        raise cursor.damaged("keys in ascending order", "others")
    if prefix:
        cursor.allowance.spend(len(prefix) * len(keys), cursor.place)
        keys = [prefix + key for key in keys]
    return keys


def _check_ids(cursor: Cursor, files: Sequence[DataFile], ids: Sequence[int]) -> None:
    if ids and max(ids) >= len(files):
        raise cursor.damaged(f"the number of one of {len(files)} data files", str(max(ids)))
