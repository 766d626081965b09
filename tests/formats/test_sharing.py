"""Bytes of the source in the destination's files: linked where that is possible, else copied, and nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.errors import UnreadableCheckpoint
from converter.formats import sharing
from converter.formats.sharing import SharedFiles
from converter.stored import Extent

BLOCK = 4096

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def source(directory: Path, size: int, name: str = "source") -> Path:
    """A file in which no two stretches are alike."""
    file = directory / name
    file.write_bytes(b"".join(number.to_bytes(4, "big") for number in range(-(-size // 4)))[:size])
    return file


def content(extent: Extent) -> bytes:
    return Path(extent.file).read_bytes()[extent.offset :][: extent.length]


def shared(directory: Path, extents: Sequence[Extent], *, linkable: bool = True, copy: bool = False) -> SharedFiles:
    directory.mkdir(exist_ok=True)
    files = SharedFiles(directory / "d", copy=copy, progress=lambda *_: None)
    files.add((extent, linkable) for extent in extents)
    for extent in extents:
        place = files.place(extent)
        assert Path(place.file).parent == directory / "d"
        assert (place.length, content(place)) == (extent.length, content(extent))
    return files


def refusing(number: int) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


# Links ---------------------------------------------------------------------------------------------------------------


def test_files_are_linked_once(tmp_path: Path) -> None:
    file = source(tmp_path, 10_000)
    extents = [Extent(str(file), 0, 100), Extent(str(file), 5000, 100), Extent(str(file), 0, 100)]
    files = shared(tmp_path / "out", extents)
    assert [path.name for path in (tmp_path / "out" / "d").iterdir()] == ["00000001"]
    assert (tmp_path / "out" / "d" / "00000001").stat().st_ino == file.stat().st_ino
    assert (files.linked, files.copied, files.unused) == (200, 0, 9800)


@pytest.mark.parametrize("copy", [False, True])
def test_what_must_not_be_linked_is_copied(copy: bool, tmp_path: Path) -> None:
    file = source(tmp_path, 10_000)
    files = shared(tmp_path / "out", [Extent(str(file), 100, 5000)], linkable=copy, copy=copy)
    assert (files.linked, files.copied, files.unused) == (0, 5000, 0)
    assert file.stat().st_nlink == 1


def test_a_file_of_which_one_part_must_not_be_linked_is_copied(tmp_path: Path) -> None:
    file = source(tmp_path, 10_000)
    files = SharedFiles(tmp_path / "d", copy=False, progress=lambda *_: None)
    files.add([(Extent(str(file), 0, 10), True), (Extent(str(file), 20, 10), False)])
    assert (files.linked, files.copied, file.stat().st_nlink) == (0, 20, 1)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_links_are_impossible_ranges_are_copied(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(number))
    file, other = source(tmp_path, 10_000), source(tmp_path, 300, "other")
    files = shared(tmp_path / "out", [Extent(str(file), 0, 10), Extent(str(other), 7, 10), Extent(str(file), 50, 10)])
    assert (files.linked, files.copied, files.unused) == (0, 30, 0)
    assert sorted(path.name for path in (tmp_path / "out" / "d").iterdir()) == ["00000001", "00000002"]


def test_other_refusals_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        shared(tmp_path / "out", [Extent(str(source(tmp_path, 100)), 0, 100)])


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    """A link to a link would show nothing once the source is gone."""
    file = source(tmp_path, 10_000)
    link = tmp_path / "link"
    link.symlink_to(file.name)
    files = shared(tmp_path / "out", [Extent(str(link), 0, 100)])
    made = tmp_path / "out" / "d" / "00000001"
    assert files.linked == 100
    assert not made.is_symlink()
    assert made.stat().st_ino == file.stat().st_ino


# Copies --------------------------------------------------------------------------------------------------------------

RANGES = st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 9000)), min_size=1, max_size=8)


@given(RANGES, st.sampled_from([1 << 26, 10_000, 1]))
@many
def test_any_ranges(tmp_path: Path, ranges: list[tuple[int, int]], least_share: int) -> None:
    """Whether they are copied together, or into several files at a time."""
    file = tmp_path / "source"
    if not file.exists():
        source(tmp_path, 70_001)
    extents = [Extent(str(file), offset, length) for offset, length in ranges]
    out = tmp_path / str(len(list(tmp_path.iterdir())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "_LEAST_SHARE", least_share)
        patch.setattr(sharing, "WORKERS", 3)
        files = shared(out, extents, copy=True)
    assert files.copied == sum(extent.length for extent in set(extents))
    made = list((out / "d").iterdir())
    assert len(made) == 1 or least_share < 1 << 26
    for extent in extents:  # else no file system could share their blocks
        assert files.place(extent).offset % BLOCK == extent.offset % BLOCK
    written, wanted = file.read_bytes(), bytearray(70_001)
    for offset, length in ranges:
        first, last = max(offset - 2 * BLOCK, 0), min(offset + length + 2 * BLOCK, 70_001)
        wanted[first:last] = b"\1" * (last - first)
    # What stands in the copy is near to what was asked for; nothing else of the source got there.
    for found in (path.read_bytes() for path in made):
        for start in range(0, len(found) - 3, BLOCK):
            place = written.find(found[start : start + BLOCK])
            assert place >= 0
            assert any(wanted[place : place + BLOCK])


def test_large_files_are_divided_where_no_range_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_LEAST_SHARE", 1000)
    monkeypatch.setattr(sharing, "WORKERS", 2)
    file = source(tmp_path, 100_000)
    extents = [Extent(str(file), 0, 30_000), Extent(str(file), 29_000, 30_000), Extent(str(file), 59_000, 41_000)]
    files = shared(tmp_path / "out", extents, copy=True)
    assert len({files.place(extent).file for extent in extents}) == 2
    assert files.place(extents[0]).file == files.place(extents[1]).file


def test_little_more_than_wanted_is_copied(tmp_path: Path) -> None:
    file = source(tmp_path, 1 << 20)
    shared(tmp_path / "out", [Extent(str(file), 0, 1), Extent(str(file), 1 << 19, 1)], copy=True)
    assert sum(path.stat().st_size for path in (tmp_path / "out" / "d").iterdir()) == 2 * BLOCK


@pytest.mark.parametrize("number", [None, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EPERM])
def test_where_the_system_does_not_copy_we_do(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if number is None:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", refusing(number), raising=False)
    monkeypatch.setattr(sharing, "_BUFFER", 1000)
    file = source(tmp_path, 50_000)
    shared(tmp_path / "out", [Extent(str(file), 3, 40_000)], copy=True)


def test_copies_that_stop_short_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda a, b, size, *places: copy(a, b, min(size, 777), *places))
    shared(tmp_path / "out", [Extent(str(source(tmp_path, 50_000)), 3, 40_000)], copy=True)


def test_a_full_disk_is_the_destinations_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", refusing(errno.ENOSPC), raising=False)
    with pytest.raises(OSError, match="No space left"):
        shared(tmp_path / "out", [Extent(str(source(tmp_path, 100)), 0, 100)], copy=True)


@pytest.mark.parametrize("kernel", [True, False])
def test_files_that_have_become_shorter(kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    file = source(tmp_path, 5000)
    with pytest.raises(UnreadableCheckpoint, match="became shorter"):
        shared(tmp_path / "out", [Extent(str(file), 4000, 9000)], copy=True)


def test_files_that_are_gone(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCheckpoint, match="cannot be read: No such file"):
        shared(tmp_path / "out", [Extent(str(tmp_path / "none"), 0, 10)], copy=True)


def test_progress_is_the_bytes_that_were_asked_for_or_a_little_more(tmp_path: Path) -> None:
    file = source(tmp_path, 100_000)
    for copy in (False, True):
        told: list[int] = []
        files = SharedFiles(tmp_path / str(copy), copy=copy, progress=lambda nbytes, _, told=told: told.append(nbytes))
        files.add([(Extent(str(file), 10, 50_000), True)])
        assert 50_000 <= sum(told) <= 50_000 + 2 * BLOCK


def test_without_bytes_there_is_no_directory(tmp_path: Path) -> None:
    SharedFiles(tmp_path / "d", copy=False, progress=lambda *_: None).add([])
    assert not (tmp_path / "d").exists()
