"""Writing an OCDBT database whose values lie in data files already, or are small enough to stand in its index.

The same values give the same bytes: names and numbers that TensorStore draws at random are made of the content here.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from converter.errors import DestinationError
from converter.formats.ocdbt.frames import MANIFEST_MAGIC, NODE_MAGIC, wrap
from converter.formats.ocdbt.reader import MANIFEST_FILE, MISSING
from converter.formats.ocdbt.wire import MAX_NAME_BYTES, spell_files, spell_names, spell_numbers, stays_inside
from converter.stored import Extent

MAX_INLINE_BYTES = 1024
"""Of a value that stands in the index, as Orbax configures its databases."""

MAX_NODE_BYTES = 100_000_000
"""Of a decoded node by TensorStore's estimate, as Orbax configures its databases."""

_MAX_ENTRIES = 2**20
"""Of a node; TensorStore refuses more."""

_LEAF_ENTRY_BYTES, _EXTENT_BYTES, _INNER_ENTRY_BYTES = 16, 16, 56
"""What TensorStore's estimate counts for an entry besides its key, its value and the paths of files."""

# Of manifests. All but the kind is of no consequence to a database that is written once, but has to be there.
_SINGLE = 0
_VERSION_ARITY_LOG2 = 4
_ZSTD, _ZSTD_LEVEL = 1, 0
_GENERATION = 1
_COMMIT_TIME = 0

_INDEX_DIRECTORY = "d"
_NAME_BYTES = 16


class _Node(NamedTuple):
    """A node in the file of nodes; from ``offset`` on the columns that name it elsewhere.

    Attributes:
      first: the first key below it.
      keys: how many there are below it.
      tree_bytes: the length of this and of all nodes below it.
      stored_bytes: the length of all values below it that lie in data files.
    """

    first: bytes
    height: int
    offset: int
    length: int
    keys: int
    tree_bytes: int
    stored_bytes: int


def write_database(
    directory: Path, values: Mapping[bytes, bytes | Extent], *, max_decoded_node_bytes: int = MAX_NODE_BYTES
) -> None:
    """Writes ``manifest.ocdbt``, which is replaced at once or not at all, and a file of nodes in ``d``.

    Whether and when all of it has to be on the disk is the caller's business.

    Args:
      directory: exists, and holds the files of all extents.
      values: in any order; bytes of at most ``MAX_INLINE_BYTES``.
      max_decoded_node_bytes: nodes that TensorStore would call larger are split.

    Raises:
      ValueError: a key or a value is too long, or an extent is not in a file below ``directory``.
      DestinationError: the file system refused.
    """
    root = os.path.abspath(directory)
    keys = sorted(values)
    ordered = [values[key] for key in keys]
    _check_lengths(keys, ordered)
    paths = _data_files(root, ordered)
    index, name, top = _index(keys, ordered, paths, max_decoded_node_bytes)
    manifest = wrap(_manifest(name, top, max_decoded_node_bytes), MANIFEST_MAGIC, compress=False)
    try:
        if index:
            with suppress(FileExistsError):
                os.mkdir(os.path.join(root, _INDEX_DIRECTORY))
            _put(os.path.join(root, name), index)
        _put(os.path.join(root, MANIFEST_FILE), manifest)
    except OSError as error:
        raise DestinationError(
            f"{root} cannot be written: {error.strerror or error}.",
            "Check the path, its permissions and the space left, or choose another destination.",
        ) from None


def _check_lengths(keys: Sequence[bytes], values: Sequence[bytes | Extent]) -> None:
    longest = max(keys, key=len, default=b"")
    if len(longest) > MAX_NAME_BYTES:
        raise ValueError(f"a key of {len(longest)} bytes: OCDBT ends at {MAX_NAME_BYTES}")
    for key, value in zip(keys, values, strict=True):
        if isinstance(value, bytes) and len(value) > MAX_INLINE_BYTES:
            raise ValueError(f"{key!r}: a value of {len(value)} bytes has to lie in a file, not in the index")


def _data_files(root: str, values: Sequence[bytes | Extent]) -> dict[str, bytes]:
    """The paths from the directory of the database to the files of all extents, which must be there."""
    ends: dict[str, int] = {}
    for value in values:
        if isinstance(value, Extent):
            file, offset, length = value
            end = offset + length
            if end > ends.get(file, -1):
                ends[file] = end
            if offset < 0 or length < 0:
                raise ValueError(f"{value} is no part of a file")
    paths = {file: os.fsencode(file[len(root) + 1 :]) if file.startswith(f"{root}/") else b"" for file in ends}
    for file, path in paths.items():
        if not stays_inside(path):
            raise ValueError(f"{file} is not below {root}, or not by a plain path")
        if not os.path.isfile(file) or os.path.getsize(file) < ends[file]:
            raise ValueError(f"{file} is no file of at least {ends[file]} bytes")
    return paths


# Nodes -----------------------------------------------------------------------------------------------------------


def _index(
    keys: Sequence[bytes], values: Sequence[bytes | Extent], paths: Mapping[str, bytes], limit: int
) -> tuple[bytearray, str, _Node | None]:
    """All nodes one after the other, the path of the file to hold them, and the last of them, which is the root."""
    content, nodes = bytearray(), []
    costs = [len(value) if isinstance(value, bytes) else _EXTENT_BYTES + len(paths[value.file]) for value in values]
    costs = [_LEAF_ENTRY_BYTES + len(key) + cost for key, cost in zip(keys, costs, strict=True)]
    for start, stop in _ranges(costs, limit, least=1):
        body, stored = _leaf_body(keys[start:stop], values[start:stop], paths)
        frame = wrap(body, NODE_MAGIC, compress=True)
        nodes.append(_Node(keys[start], 0, len(content), len(frame), stop - start, len(frame), stored))
        content += frame

    # Inner nodes name their file, which therefore takes its name from the leaves and what else decides on inner nodes.
    digest = hashlib.blake2b(content, digest_size=_NAME_BYTES, salt=limit.to_bytes(8, "little"))
    name = f"{_INDEX_DIRECTORY}/{digest.hexdigest()}"
    while len(nodes) > 1:
        costs = [_INNER_ENTRY_BYTES + len(node.first) + len(name) for node in nodes]
        parents = []
        for start, stop in _ranges(costs, limit, least=2):
            children = nodes[start:stop]
            frame = wrap(_inner_body(children, name), NODE_MAGIC, compress=True)
            parents.append(_parent(children, len(content), len(frame)))
            content += frame
        nodes = parents
    return content, name, nodes[0] if nodes else None


def _ranges(costs: Sequence[int], limit: int, least: int) -> Iterator[tuple[int, int]]:
    """Cuts entries into runs that cost no more than the limit, unless that were less than ``least`` entries."""
    start = total = 0
    for stop, cost in enumerate(costs):
        total += cost
        if stop - start >= least and (total > limit or stop - start == _MAX_ENTRIES):
            yield start, stop
            start, total = stop, cost
    if costs:
        yield start, len(costs)


def _leaf_body(
    keys: Sequence[bytes], values: Sequence[bytes | Extent], paths: Mapping[str, bytes]
) -> tuple[bytes, int]:
    """A leaf, and how many bytes of values it has outside."""
    extents = [value for value in values if isinstance(value, Extent)]
    files = sorted({paths[extent.file] for extent in extents})
    numbers = {path: number for number, path in enumerate(files)}
    ids = {file: numbers[path] for file, path in paths.items() if path in numbers}
    parts = [
        bytes([0]),
        spell_files(files),
        spell_numbers([len(keys)]),
        spell_names(keys),
        spell_numbers([value.length if isinstance(value, Extent) else len(value) for value in values]),
        bytes([isinstance(value, Extent) for value in values]),
        spell_numbers([ids[extent.file] for extent in extents]),
        spell_numbers([extent.offset for extent in extents]),
        *(value for value in values if not isinstance(value, Extent)),
    ]
    return b"".join(parts), sum(extent.length for extent in extents)


def _inner_body(children: Sequence[_Node], name: str) -> bytes:
    height = children[0].height + 1
    none = bytes(len(children))
    parts = [
        bytes([height]),
        spell_files([name.encode()]),
        spell_numbers([len(children)]),
        # Children have their keys in full, hence their prefixes are empty; all of them lie in the first file.
        spell_names([child.first for child in children], none),
        none,
        *_spell_nodes(children),
    ]
    return b"".join(parts)


def _parent(children: Sequence[_Node], offset: int, length: int) -> _Node:
    keys, tree, stored = (sum(column) for column in zip(*(child[4:] for child in children), strict=True))
    return _Node(children[0].first, children[0].height + 1, offset, length, keys, tree + length, stored)


def _spell_nodes(nodes: Sequence[_Node]) -> list[bytes]:
    """Where nodes lie in their file, and their statistics."""
    return [spell_numbers(column) for column in zip(*(node[2:] for node in nodes), strict=True)]


def _manifest(name: str, top: _Node | None, limit: int) -> bytes:
    """A manifest of one version."""
    root = _Node(b"", 0, MISSING, MISSING, 0, 0, 0) if top is None else top
    parts = [
        bytes.fromhex(name.rpartition("/")[2]),  # a unique name
        spell_numbers([_SINGLE, MAX_INLINE_BYTES, limit]),
        bytes([_VERSION_ARITY_LOG2, _ZSTD]),
        struct.pack("<i", _ZSTD_LEVEL),
        spell_files([b"" if top is None else name.encode()]),
        spell_numbers([1, _GENERATION]),  # one version, which has this number
        bytes([root.height, 0]),  # in the first file
        *_spell_nodes([root]),
        struct.pack("<Q", _COMMIT_TIME),
        spell_numbers([0]),  # no nodes with older versions
    ]
    return b"".join(parts)


# Files -----------------------------------------------------------------------------------------------------------


def _put(file: str, content: bytes | bytearray) -> None:
    """Makes a file appear complete. One of that name is replaced, not written to: other directories may link to it."""
    unfinished = f"{file}.tmp"
    try:
        with open(unfinished, "wb") as stream:
            stream.write(content)
        os.replace(unfinished, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise
