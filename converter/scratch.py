"""Large arrays outside of memory: above a limit an array lies in a file that has no name and goes away with the array.

Whatever makes an array during a conversion asks ``empty`` for its room, and passes over large ones in ``blocks``. So no
code has to know how large a leaf is, and peak memory does not follow the largest one.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import mmap
import operator
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from converter.errors import DestinationError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


DEFAULT_BUDGET = 512 << 20
"""Bytes of memory that a conversion may take beside what the interpreter and the libraries take."""

_SHARES = 16
"""The part of the budget that an array or piece may take: several are in memory at a time, read ahead or being made."""

_LEAST = 1 << 16
"""Bytes that are held in memory whatever the budget."""


@dataclass(slots=True)
class _Room:
    """Where large arrays go, and from how many bytes on; None keeps all in memory."""

    directory: FilePath | None = None
    limit: int = DEFAULT_BUDGET // _SHARES


_room = _Room()


@contextlib.contextmanager
def room(directory: FilePath, budget: int) -> Iterator[None]:
    """While it is entered, large arrays lie in files below ``directory`` and all others together keep to ``budget``.

    Args:
      directory: must exist; nothing stays in it.
      budget: bytes.
    """
    before = _room.directory, _room.limit
    _room.directory, _room.limit = directory, max(budget // _SHARES, _LEAST)
    try:
        yield
    finally:
        _room.directory, _room.limit = before


class _Own(threading.local):
    """A smaller limit for what one thread does just now; None where it has none of its own."""

    limit: int | None = None


_own = _Own()


def limit() -> int:
    """Bytes up to which an array, or a part of one, is held in memory."""
    return _room.limit if _own.limit is None else min(_room.limit, _own.limit)


@contextlib.contextmanager
def shared(nbytes: int, count: int) -> Iterator[None]:
    """While this thread has entered it, ``count`` arrays of ``nbytes`` together are in memory, or else in files."""
    before, allowed = _own.limit, _room.limit * _SHARES // 4  # several threads may each have such a share
    if nbytes > allowed:
        _own.limit = min(limit(), max(allowed // count, _LEAST))
    try:
        yield
    finally:
        _own.limit = before


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], order: Any = "C") -> Array:
    """An array of undefined values, in memory or in a file.

    Raises:
      DestinationError: there is no space for the file.
    """
    import numpy as np

    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if _room.directory is None or size <= limit():
        return np.empty(shape, dtype, order)
    try:
        with tempfile.TemporaryFile(dir=_room.directory, prefix=".flax-convert-scratch-") as file:
            if hasattr(os, "posix_fallocate"):
                # Without its space reserved, a full disk would end the process when a page is touched.
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # a mapping keeps its file open
            return np.empty(shape, dtype, order)
        raise DestinationError(
            f"{_room.directory} has no room for {size} bytes of an array that is too large for the memory budget: "
            f"{error.strerror}",
            "Free some space, or allow more memory with --memory-budget.",
        ) from None
    return np.ndarray(shape, dtype, mapped, order=order)


def full(shape: tuple[int, ...], dtype: np.dtype[Any], value: Any) -> Array:
    """An array that holds one value everywhere."""
    array = empty(shape, dtype)
    for where in _parts(array, array):
        array[where] = value
        release(array)
    return array


def copy(target: Array, source: Array) -> Array:
    """Copies elements, as ``astype`` converts them, and returns ``target``, with few pages of both in memory.

    Parts are gathered in memory before they are put in place: what is in one piece here may be in thousands there.
    """
    import numpy as np

    if _mapping(target) is _mapping(source) is None:
        target[...] = source.astype(target.dtype, copy=False)
        return target
    for where in _parts(None, target, source):
        out, into = source[where], target[where]
        held = np.empty(out.shape, target.dtype)
        for part in _parts(out, out):
            held[part] = out[part].astype(target.dtype, copy=False)
            release(source)
        for part in _parts(into, into):
            into[part] = held[part]
            release(target)
    return target


def contiguous(array: Array) -> Array:
    """The array in C order: itself, or a copy."""
    return array if array.flags.c_contiguous else copy(empty(array.shape, array.dtype), array)


def blocks(array: Array) -> Iterator[Array]:
    """The elements in C order, as one-dimensional arrays that fit in memory."""
    import numpy as np

    if array.flags.c_contiguous:
        flat, count = array.reshape(-1), max(1, limit() // array.itemsize)
        for start in range(0, flat.size, count):
            yield flat[start : start + count]
            release(array)
    elif array.strides[0] != max(map(abs, array.strides)) and array.nbytes > limit():
        # Walking over its rows would touch every page of the source once for each of them.
        yield from blocks(contiguous(array))
    else:
        rows = len(array)
        while rows > 1 and _touched(array, (rows, *array.shape[1:])) > limit():
            rows = -(-rows // 2)
        for start in range(0, len(array), rows):
            part = array[start : start + rows] if rows > 1 else array[start]
            if rows > 1 or part.nbytes <= limit():
                yield np.ascontiguousarray(part).reshape(-1)
                release(array)
            else:
                yield from blocks(part)


def pairs(left: Array, right: Array) -> Iterator[tuple[Array, Array]]:
    """The elements of two arrays of one shape beside each other, as ``blocks``."""
    a, b = contiguous(left).reshape(-1), contiguous(right).reshape(-1)
    count = max(1, limit() // max(a.itemsize, b.itemsize))
    for start in range(0, a.size, count):
        yield a[start : start + count], b[start : start + count]
        release(a)
        release(b)


def _parts(touching: Array | None, *arrays: Array) -> Iterator[tuple[Any, ...]]:
    """Indices that cut arrays of one shape into parts, each of which spreads over little of all of them.

    Args:
      touching: the array whose pages that are touched by a part fit in memory; without it, its elements do.
    """
    box = shape = arrays[0].shape
    if not all(shape):
        return

    def size(part: tuple[int, ...]) -> int:
        return math.prod(part) * arrays[0].itemsize if touching is None else _touched(touching, part)

    while max(box, default=1) > 1 and size(box) > limit():
        halved = [(*box[:axis], -(-n // 2), *box[axis + 1 :]) for axis, n in enumerate(box) if n > 1]
        box = min(halved, key=lambda each: sum(_touched(array, each) for array in arrays))
    for start in itertools.product(*map(range, (0,) * len(shape), shape, box)):
        yield (..., *map(slice, start, map(operator.add, start, box)))


_AROUND = max(1 << 16, mmap.PAGESIZE)
"""Linux maps so many bytes around one that is read, if it has them in memory."""


def _touched(array: Array, box: tuple[int, ...]) -> int:
    """About how many bytes of memory are used by access to a part of an array that has the shape ``box``."""
    run, runs = array.itemsize, 1
    if _mapping(array) is None:
        return run * math.prod(box)
    for stride, length in sorted(zip(map(abs, array.strides), box, strict=True)):
        if stride <= max(run, _AROUND):
            run += stride * (length - 1)
        else:
            runs *= length
    return runs * max(run, _AROUND)


def release(array: Array) -> None:
    """Takes the pages of a mapped array out of this process; their contents stay in the file."""
    mapping = _mapping(array)
    if mapping is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapping(array: Array) -> mmap.mmap | None:
    """The mapped file that an array is a view of."""
    import numpy as np

    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, mmap.mmap) else None
