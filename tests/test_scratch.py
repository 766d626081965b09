"""Arrays that lie in files: they hold what NumPy's would, keep their pages out of memory, and leave nothing behind."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter import scratch
from converter.errors import DestinationError

Array = np.ndarray[Any, Any]

LIMIT = 1 << 16
DTYPES = ("float32", "int8", "bfloat16", "complex128")

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """The smallest budget there is: arrays above 64 KiB lie in files."""
    with scratch.room(tmp_path, 1):
        assert scratch.limit() == LIMIT
        yield tmp_path
    assert list(tmp_path.iterdir()) == []


def is_mapped(array: Array) -> bool:
    return scratch._mapping(array) is not None


def numbers(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    values = np.random.default_rng(0).integers(-100, 100, shape)
    return np.asarray(values).astype(getattr(ml_dtypes, dtype, dtype))


def mapped(array: Array) -> Array:
    """The same array in a file, in the same order."""
    made = scratch.empty(array.shape, array.dtype)
    made[...] = array
    return made


# Making --------------------------------------------------------------------------------------------------------------


def test_only_large_arrays_lie_in_files(room: Path) -> None:
    assert not is_mapped(scratch.empty((LIMIT,), np.dtype("u1")))
    assert is_mapped(scratch.empty((LIMIT + 1,), np.dtype("u1")))
    assert is_mapped(scratch.empty((3, LIMIT), np.dtype("f8"), "F"))
    assert scratch.empty((3, LIMIT), np.dtype("f8"), "F").flags.f_contiguous


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (LIMIT, 0)])
def test_arrays_of_few_or_no_elements(shape: tuple[int, ...], room: Path) -> None:
    array = scratch.empty(shape, np.dtype("f4"))
    assert array.shape == shape
    assert scratch.full(shape, np.dtype("f4"), 3.0).tobytes() == np.full(shape, 3.0, np.float32).tobytes()
    assert scratch.copy(array, np.ones(shape, np.float32)).tobytes() == np.ones(shape, np.float32).tobytes()
    assert sum(block.size for block in scratch.blocks(array)) == array.size


def test_files_have_no_name_and_go_with_their_array(room: Path) -> None:
    array = scratch.full((LIMIT,), np.dtype("f4"), 1.5)
    assert list(room.iterdir()) == []
    assert (array == 1.5).all()
    view = array[::2]
    del array
    assert (view == 1.5).all()


def test_without_room_everything_is_in_memory() -> None:
    assert not is_mapped(scratch.empty((scratch.limit() + 1,), np.dtype("u1")))


def test_room_within_room(tmp_path: Path) -> None:
    before = scratch.limit()
    with scratch.room(tmp_path, 64 << 20):
        with scratch.room(tmp_path, 32 << 20):
            assert scratch.limit() == 2 << 20
        assert scratch.limit() == 4 << 20
    assert scratch.limit() == before


def test_arrays_that_are_there_together_share_the_limit(tmp_path: Path) -> None:
    with scratch.room(tmp_path, 16 << 20):
        with scratch.shared(4 << 20, 100):
            assert scratch.limit() == 1 << 20
        with scratch.shared((4 << 20) + 1, 3):  # three of the largest that fit are not too many
            assert scratch.limit() == 1 << 20
        with scratch.shared(1 << 30, 32):
            assert scratch.limit() == 1 << 17
        with scratch.shared(1 << 30, 10**6):
            assert scratch.limit() == LIMIT
        assert scratch.limit() == 1 << 20


def test_no_space(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(DestinationError, match=r"has no room for 131072 bytes .*: No space left on device"):
        scratch.empty((2 * LIMIT,), np.dtype("u1"))


def test_no_more_files(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then an array may be larger than the budget, rather than not there at all."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert scratch.empty((2 * LIMIT,), np.dtype("u1")).shape == (2 * LIMIT,)


# Copies --------------------------------------------------------------------------------------------------------------


@st.composite
def views(draw: st.DrawFn, sizes: tuple[int, ...] = (1, 2, 3, 31, 100)) -> Array:
    """Any view of a mapped array or of one in memory: transposed, with steps, reversed, broadcast."""
    shape = tuple(draw(st.lists(st.sampled_from(sizes), min_size=1, max_size=3)))
    array = numbers(shape, draw(st.sampled_from(DTYPES)))
    array = mapped(array) if draw(st.booleans()) else array
    if draw(st.booleans()):
        array = array.transpose(draw(st.permutations(range(array.ndim))))
    steps = draw(st.lists(st.sampled_from([1, 1, 2, -1, -3]), min_size=array.ndim, max_size=array.ndim))
    array = array[tuple(slice(None, None, step) for step in steps)]
    return np.broadcast_to(array, (draw(st.sampled_from([1, 2, 5])), *array.shape)) if draw(st.booleans()) else array


@given(views())
@many
def test_blocks_are_the_elements_in_order(tmp_path: Path, array: Array) -> None:
    with scratch.room(tmp_path, 1):
        found = [block.copy() for block in scratch.blocks(array)]
    assert all(block.ndim == 1 and block.nbytes <= LIMIT for block in found)
    assert np.concatenate([block.view(np.uint8) for block in found]).tobytes() == array.tobytes()


@given(views(), st.data())
@many
def test_copies_are_numpys(tmp_path: Path, array: Array, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(array.ndim)))
    with scratch.room(tmp_path, 1):
        made = scratch.empty(tuple(array.shape[axis] for axis in order), array.dtype)
        target = made.transpose(np.argsort(order))
        assert scratch.copy(target, array) is target
        assert target.tobytes() == array.tobytes()
        whole = scratch.contiguous(array)
    assert whole.flags.c_contiguous
    assert whole.tobytes() == array.tobytes()
    assert list(tmp_path.iterdir()) == []


@given(views())
@many
def test_pairs_stand_beside_each_other(tmp_path: Path, array: Array) -> None:
    other = np.asfortranarray(array).astype(np.complex128)
    with scratch.room(tmp_path, 1):
        found = [(left.copy(), right.copy()) for left, right in scratch.pairs(array, other)]
    assert all(max(left.nbytes, right.nbytes) <= LIMIT and left.size == right.size for left, right in found)
    assert b"".join(left.tobytes() for left, _ in found) == array.tobytes()
    assert b"".join(right.tobytes() for _, right in found) == other.tobytes()


def test_copies_convert_as_numpy_does(room: Path) -> None:
    array = mapped(numbers((300, 400)))
    for dtype in (ml_dtypes.bfloat16, np.int8, np.float64, ml_dtypes.float8_e4m3fn):
        found = scratch.copy(scratch.empty(array.shape[::-1], np.dtype(dtype)).T, array)
        assert found.tobytes() == array.astype(dtype).tobytes()


def test_not_a_number_keeps_its_bits(room: Path) -> None:
    for words, dtype in ((np.arange(0x7F80, 0x8000, dtype="u2"), ml_dtypes.bfloat16), (np.arange(256), np.int64)):
        array = mapped(np.tile(words, 500).view(dtype).reshape(500, -1))
        assert scratch.contiguous(array.T).tobytes() == array.T.tobytes()


# Memory --------------------------------------------------------------------------------------------------------------


def mapped_bytes() -> int:
    """Bytes of mapped files that are in this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells what is in memory on Linux only")
@pytest.mark.parametrize("shape", [(2048, 2048), (16, 1 << 18), (1 << 18, 16), (64, 64, 1024)])
def test_few_pages_stay(shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which elements are walked over."""
    most, found, release = 1 << 20, [0], scratch.release

    def seen(array: Array) -> None:
        found.append(mapped_bytes())
        release(array)

    with scratch.room(tmp_path, 16 * most):
        source = scratch.full(shape, np.dtype("f4"), 1)
        target = scratch.empty(shape[::-1], np.dtype("f4"))
        before = mapped_bytes()
        monkeypatch.setattr(scratch, "release", seen)
        scratch.copy(target, source.T)
        assert sum(int(block.sum()) for block in scratch.blocks(source.T)) == source.size
        assert sum(int(block.sum()) for block in scratch.blocks(target)) == source.size
    assert max(found) - before <= 2 * most
    assert source.nbytes == 16 * most
