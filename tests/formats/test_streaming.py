"""Reading ahead in a thread: the same items in the same order, errors in their place, and no thread left behind."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import DestinationError, UnreadableCheckpoint
from converter.formats import streaming
from converter.formats.streaming import (
    SourceError,
    ahead,
    checked_array,
    digest,
    in_parallel,
    in_turn,
    of_the_source,
    whole_or_nothing,
)
from converter.tree import LazyLeaf, Leaf, LeafKind, LeafSpec, array_spec


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "flax-convert-ahead"]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert readers() == []


# Items ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_the_same_items_in_the_same_order(count: int) -> None:
    assert list(ahead(range(count))) == list(range(count))
    assert list(ahead([None] * count)) == [None] * count


def test_only_a_few_items_are_made_before_they_are_wanted() -> None:
    made: list[int] = []
    items = ahead(made.append(number) or number for number in range(100))
    for taken in range(50):
        assert next(items) == taken
        assert len(made) <= taken + 2 + streaming._AHEAD
    items.close()


def test_errors_come_after_the_items_before_them() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise UnreadableCheckpoint("damaged")

    found: list[int] = []
    with pytest.raises(UnreadableCheckpoint, match="damaged"):
        found.extend(ahead(items()))
    assert found == [1, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), RuntimeError("defect"), StopIteration()])
def test_errors_of_any_kind_are_handed_on(error: BaseException) -> None:
    class Items:
        def __iter__(self) -> Iterator[int]:
            raise error

    with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)):
        list(ahead(Items()))


def test_refusals_by_the_system_are_told_apart_from_those_of_the_destination() -> None:
    def items() -> Iterator[int]:
        raise OSError(errno.EIO, "Input/output error")
        yield

    with pytest.raises(SourceError) as raised:
        list(ahead(items()))
    assert raised.value.error.errno == errno.EIO


def test_a_consumer_that_stops() -> None:
    items = ahead(iter(range(10**9)))
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert readers() == []


def test_a_consumer_that_fails() -> None:
    def fail() -> None:
        for item in ahead(iter(range(10**9))):
            assert 1 / (3 - item)

    with pytest.raises(ZeroDivisionError):
        fail()


def test_two_at_a_time() -> None:
    assert list(zip(ahead(range(50)), ahead(range(50)), strict=True)) == list(zip(range(50), range(50), strict=True))


# Leaves --------------------------------------------------------------------------------------------------------------

NOTHING = LazyLeaf(array_spec("uint8", (0,)), lambda: None)


@given(st.lists(st.lists(st.binary(max_size=5), max_size=4), max_size=30), st.integers(1, 40), st.integers(1, 10))
@settings(deadline=None, max_examples=50)
def test_every_leaf_gets_its_own_pieces(leaves: list[list[bytes]], nbytes: int, parts: int) -> None:
    named = [((str(number),), NOTHING) for number in range(len(leaves))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_BATCH_BYTES", nbytes)
        patch.setattr(streaming, "_BATCH_PARTS", parts)
        turns = in_turn(named, lambda path, leaf: iter(leaves[int(path[0])]))
        assert [(path, list(pieces)) for (path, _), pieces in turns] == [
            (path, pieces) for (path, _), pieces in zip(named, leaves, strict=True)
        ]


def test_errors_come_with_the_leaf_they_belong_to() -> None:
    def pieces(path: tuple[str, ...], leaf: Leaf) -> Iterator[bytes]:
        yield b"first"
        if path == ("bad",):
            raise UnreadableCheckpoint("bad is damaged")

    turns = in_turn([(("good",), NOTHING), (("bad",), NOTHING), (("late",), NOTHING)], pieces)
    with pytest.raises(UnreadableCheckpoint, match="bad is damaged"):
        assert [path for (path, _), rest in turns if list(rest)] == [("good",)]


def test_what_is_not_what_was_announced() -> None:
    spec = array_spec("float32", (2, 3))
    for wrong in (np.ones((2, 3)), np.ones((3, 2), np.float32), np.ones(6, np.float32), np.ones((2, 3, 1), np.float32)):
        with pytest.raises(RuntimeError, match=r"a/b: expected float32\[2,3\] from its metadata, found float"):
            checked_array(("a", "b"), spec, wrong)
    key = LeafSpec(LeafKind.KEY, "threefry2x32", (3,))
    assert checked_array(("k",), key, np.ones((3, 2), np.uint32)).shape == (3, 2)
    with pytest.raises(RuntimeError):
        checked_array(("k",), key, np.ones((3, 2), np.int32))


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_digests_do_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert digest(pieces) == google_crc32c.value(whole) == digest([memoryview(bytearray(whole))])


# Several threads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_job_is_done_once(count: int) -> None:
    done: list[int] = []
    in_parallel(lambda job, go_on: done.append(job), range(count))
    assert sorted(done) == list(range(count))


def test_one_thread_is_the_callers_own() -> None:
    done: list[tuple[int, threading.Thread]] = []
    in_parallel(lambda job, go_on: done.append((job, threading.current_thread())), range(50), threads=1)
    assert done == [(job, threading.current_thread()) for job in range(50)]


@pytest.mark.parametrize("count", [1, 2, 50])
def test_the_first_job_that_fails_is_heard_and_stops_the_others(count: int) -> None:
    def work(job: int, go_on: Callable[[], None]) -> None:
        if job == 0:
            raise UnreadableCheckpoint("damaged")
        while True:
            go_on()

    with pytest.raises(UnreadableCheckpoint, match="damaged"):
        in_parallel(work, range(count))


def test_what_the_system_refuses_of_the_source_is_no_refusal_of_the_destination() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"first"
        raise OSError(errno.EIO, "Input/output error")

    found = of_the_source(pieces())
    assert next(found) == b"first"
    with pytest.raises(SourceError) as raised:
        next(found)
    assert raised.value.error.errno == errno.EIO


# All or nothing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DestinationError),
        (SourceError(OSError(errno.EIO, "Input/output error")), OSError),
        (UnreadableCheckpoint("damaged"), UnreadableCheckpoint),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_nothing_stays_of_what_failed(error: BaseException, raised: Any, directory: bool, tmp_path: Path) -> None:
    destination = tmp_path / "out"

    def write() -> None:
        if directory:
            (destination / "d").mkdir(parents=True)
            (destination / "d" / "1").touch()
        else:
            destination.touch()
        raise error

    with pytest.raises(raised), whole_or_nothing(destination):
        write()
    assert list(tmp_path.iterdir()) == []
