"""Writing a tree as a flax msgpack file, piece by piece; what the source has in that form is copied by the system.

The bytes are those of ``flax.serialization.msgpack_serialize`` for the same nested dict (flax 0.5 to 0.12).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

from converter.dtypes import item_size
from converter.errors import ConverterError, DestinationError, UnsupportedCheckpoint
from converter.formats.checkpoint import Progress, Written, refuse_objections
from converter.formats.msgpack import wire
from converter.formats.msgpack.values import CHUNKED_ARRAY, EXT_ARRAY, EXT_COMPLEX, EXT_NUMPY_SCALAR
from converter.formats.one_file import write_items
from converter.formats.streaming import whole_or_nothing
from converter.paths import Key, Path, format_path
from converter.tree import Leaf, LeafKind, LeafSpec, Tree

MAX_CHUNK_SIZE = 2**30
"""Arrays of more bytes are split, as by flax's constant of the same name: msgpack ends at 2³² - 1 bytes per value."""


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
    refuse_objections("a msgpack file", objections(tree))
    if os.path.lexists(destination):
        raise DestinationError(f"{destination} exists already")
    with whole_or_nothing(destination), destination.open("xb") as stream:
        items = _unfold(_nested(tree))
        return write_items(stream.fileno(), items, _framing, _spell_value, progress)


def objections(tree: Tree) -> dict[Path, str]:
    """Why a msgpack file cannot hold some leaves, as far as their specs tell."""
    return {path: problem for path, leaf in tree.items() if (problem := _problem(path, leaf.spec))}


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
    if not isinstance(root, _Node):
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
        if not isinstance(child, _Node):
            yield (*path, key), child
        else:
            yield (*path, key), wire.spell_map_head(len(child))
            path.append(key)
            pending.append(iter(child.items()))


# Leaves ----------------------------------------------------------------------------------------------------------


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


@functools.lru_cache(maxsize=4096)
def _spell_array_head(kind: LeafKind, dtype: str, shape: tuple[int, ...], nbytes: int) -> bytes:
    """[[length of each axis], name of the dtype, payload] inside of an extension value, up to the payload.

    Most arrays of a large checkpoint share theirs with many others.
    """
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
