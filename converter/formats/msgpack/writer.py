"""Writing a tree as a flax msgpack file, leaf by leaf and straight from the arrays' buffers.

The bytes are those of ``flax.serialization.msgpack_serialize`` for the same nested dict (flax 0.5 to 0.12).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from converter.errors import ConverterError, DestinationError, UnsupportedCheckpoint
from converter.formats.checkpoint import Progress
from converter.formats.msgpack import wire
from converter.formats.msgpack.values import CHUNKED_ARRAY, EXT_ARRAY, EXT_COMPLEX, EXT_NUMPY_SCALAR
from converter.tree import Key, Leaf, LeafKind, LeafSpec, Path, Tree, format_path, numpy_dtype

MAX_CHUNK_SIZE = 2**30
"""Arrays of more bytes are split, as by flax's constant of the same name: msgpack ends at 2³² - 1 bytes per value."""

BUFFER_SIZE = 1 << 20
"""Small leaves are gathered to writes of this size; larger payloads go to the system as they are."""

Buffer = bytes | memoryview


class _Node(dict[Key, "_Node | Leaf"]):
    """An inner node of the nesting."""


def write(tree: Tree, destination: FilePath, progress: Progress) -> None:
    """Writes ``tree`` to ``destination``; a file that was not finished is removed.

    ``progress`` is called with the bytes and leaves that were added since the last call.

    Raises:
      UnsupportedCheckpoint: leaves that msgpack cannot hold; whatever their specs tell is found before writing.
      DestinationError: the destination exists, or the file system refused.
      RuntimeError: a leaf whose value is not what its spec announced; a defect of the source's reader.
    """
    _refuse_unsupported(tree)
    try:
        stream = destination.open("xb", buffering=BUFFER_SIZE)
    except OSError as error:
        raise _refused(destination, error) from None
    try:
        for path, item in _unfold(_nested(tree)):
            if isinstance(item, bytes):
                _put(stream, destination, item)
            else:
                _put_leaf(stream, destination, path, item, progress)
        _finish(stream, destination)
    except BaseException:
        # Closing flushes, which fails again on a full disk: the first error is the one to tell.
        with suppress(OSError):
            stream.close()
        with suppress(OSError):
            destination.unlink()
        raise


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
            numpy_dtype(spec.dtype)
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


def _put_leaf(stream: BinaryIO, destination: FilePath, path: Path, leaf: Leaf, progress: Progress) -> None:
    value = leaf.fetch()
    if leaf.spec.kind not in (LeafKind.ARRAY, LeafKind.NUMPY_SCALAR):
        _put(stream, destination, _spell_value(path, leaf.spec, value))
        progress(0, 1)
        return
    array = _checked_array(path, leaf.spec, value)
    split = leaf.spec.kind is LeafKind.ARRAY and array.nbytes > MAX_CHUNK_SIZE
    for piece in _split_pieces(array) if split else _array_pieces(array, leaf.spec.kind):
        _put(stream, destination, piece)
        if isinstance(piece, memoryview):
            progress(piece.nbytes, 0)
    progress(0, 1)


def _checked_array(path: Path, spec: LeafSpec, value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    # The file has no place for a byte order: all arrays in it are little-endian, as on every machine that runs JAX.
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype != numpy_dtype(spec.dtype) or array.shape != spec.shape:
        found = f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
        raise RuntimeError(f"{format_path(path)}: expected {spec} from its metadata, found {found} when it was read")
    return array


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


def _array_pieces(array: NDArray[Any], kind: LeafKind = LeafKind.ARRAY) -> Iterator[Buffer]:
    """[[length of each axis], name of the dtype, payload] inside of an extension value."""
    shape = wire.spell_array_head(array.ndim) + b"".join(map(wire.spell_int, array.shape))
    head = wire.spell_array_head(3) + shape + wire.spell_text(array.dtype.name) + wire.spell_bytes_head(array.nbytes)
    code = EXT_ARRAY if kind is LeafKind.ARRAY else EXT_NUMPY_SCALAR
    yield wire.spell_ext_head(code, len(head) + array.nbytes) + head
    # bfloat16 and its like have no buffer of their own, hence the view as bytes; a strided array is copied first.
    yield np.ascontiguousarray(array.reshape(-1)).view(np.uint8).data


def _split_pieces(array: NDArray[Any]) -> Iterator[Buffer]:
    """What flax's ``_chunk`` makes of an array that is too large for one value."""
    flat = array.reshape(-1)
    length = max(1, MAX_CHUNK_SIZE // array.itemsize)
    starts = range(0, flat.size, length)
    yield wire.spell_map_head(3) + wire.spell_text(CHUNKED_ARRAY) + wire.spell_bool(True)
    yield wire.spell_text("shape") + wire.spell_map_head(array.ndim)
    yield b"".join(wire.spell_text(str(axis)) + wire.spell_int(n) for axis, n in enumerate(array.shape))
    yield wire.spell_text("chunks") + wire.spell_map_head(len(starts))
    for number, start in enumerate(starts):
        yield wire.spell_text(str(number))
        yield from _array_pieces(flat[start : start + length])


# The file --------------------------------------------------------------------------------------------------------


def _put(stream: BinaryIO, destination: FilePath, data: Buffer) -> None:
    try:
        stream.write(data)
    except OSError as error:
        raise _refused(destination, error) from None


def _finish(stream: BinaryIO, destination: FilePath) -> None:
    try:
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
    except OSError as error:
        raise _refused(destination, error) from None


def _refused(destination: FilePath, error: OSError) -> DestinationError:
    return DestinationError(
        f"{destination} cannot be written: {error.strerror or error}.",
        "Check the path, its permissions and the space left, or choose another destination.",
    )
