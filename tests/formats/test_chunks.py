"""The bytes of chunks: many small ones are read together, and are what each of them is by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.errors import UnreadableCheckpoint
from converter.formats import chunks
from converter.formats.chunks import chunk_bytes, small_chunks
from converter.stored import Extent

SIZES = {"a": 5000, "b": 900}

many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def extents(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Anywhere in either file, or where the one before ended or a few bytes later."""
    found: list[tuple[str, int, int]] = []
    for name in draw(st.lists(st.sampled_from(sorted(SIZES)), max_size=12)):
        start = draw(st.integers(0, SIZES[name]))
        if found and found[-1][0] == name and draw(st.booleans()):
            start = min(found[-1][1] + found[-1][2] + draw(st.integers(0, 30)), SIZES[name])
        found.append((name, start, draw(st.integers(0, min(200, SIZES[name] - start)))))
    return found


@given(extents(), st.sampled_from([1, 100, 1 << 18]))
@many
def test_small_chunks_are_those_that_are_asked_for(
    tmp_path: Path, places: list[tuple[str, int, int]], together: int
) -> None:
    for name, size in SIZES.items():
        (tmp_path / name).write_bytes(bytes(7 * number % 251 for number in range(size)))
    wanted = [Extent(str(tmp_path / name), start, length) for name, start, length in places]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_TOGETHER", together)
        patch.setattr(chunks, "_GAP", 20)
        assert list(small_chunks(wanted)) == [chunk_bytes(extent) for extent in wanted]


def test_a_file_that_ends_before_is_named(tmp_path: Path) -> None:
    file = tmp_path / "short"
    file.write_bytes(bytes(50))
    with pytest.raises(UnreadableCheckpoint, match=r"short is too short: expected 60 bytes at 0, found 50"):
        list(small_chunks([Extent(str(file), 0, 10), Extent(str(file), 10, 50)]))
