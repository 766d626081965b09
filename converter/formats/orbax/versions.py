"""Which versions of Orbax write the files of an item as they are.

No file names the version that wrote it, but fields and files came and went. Each bound below is certain: it stands in
Orbax's change log, or releases on both sides of it were looked at (checkpoints written by orbax-checkpoint 0.2.0,
0.4.4, 0.5.11, 0.6.4, 0.11.0, 0.11.25 and 0.12.8, and the source of 0.11.31). The bounds are those of the form: other
programs write it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

from converter.formats.orbax.metadata import LEGACY_FILE, METADATA_FILE, ItemMetadata

Version = tuple[int, int, int]

STEP_METADATA, INDICATOR = "_CHECKPOINT_METADATA", "orbax.checkpoint"

PRESENT: tuple[tuple[str, Version], ...] = (
    (METADATA_FILE, (0, 3, 2)),
    (STEP_METADATA, (0, 5, 11)),
    ("store_array_data_equal_to_fill_value", (0, 7, 0)),
    ("custom_metadata", (0, 11, 1)),
    (INDICATOR, (0, 11, 19)),
    ("use_ocdbt", (0, 11, 26)),
)
"""What is there, and the first version that may have written it."""

ABSENT: tuple[tuple[str, Version], ...] = (
    ("use_ocdbt", (0, 11, 30)),
    ("custom_metadata", (0, 11, 24)),
    ("store_array_data_equal_to_fill_value", (0, 10, 3)),
    ("use_zarr3", (0, 6, 3)),
    (METADATA_FILE, (0, 5, 10)),
)
"""What is missing, and the last version that may have left it out. Only what lies in the item itself counts: the files
of a step get lost where somebody copies an item out of it."""

LAST_WITH_LEGACY_FILE, FIRST_WITHOUT = (0, 5, 15), (0, 5, 16)
"""Every tree had a msgpack file ``checkpoint`` beside its arrays until Orbax 0.5.16."""


def versions(directory: FilePath, metadata: ItemMetadata) -> str:
    """``0.5.16 to 0.10.3``, ``up to 0.5.10``, ``0.11.26 or later`` …; empty where the files contradict each other."""
    found = set(_found(directory, metadata))
    first = [version for name, version in PRESENT if name in found]
    last = [version for name, version in ABSENT if name not in found]
    if LEGACY_FILE in found:
        last.append(LAST_WITH_LEGACY_FILE)
    else:
        first.append(FIRST_WITHOUT)
    lower, upper = max(first, default=None), min(last, default=None)
    if lower is None:
        return f"up to {_text(upper)}" if upper else ""
    if upper is None:
        return f"{_text(lower)} or later"
    return f"{_text(lower)} to {_text(upper)}" if lower <= upper else ""


def _found(directory: FilePath, metadata: ItemMetadata) -> Iterator[str]:
    yield from metadata.fields
    for name in (METADATA_FILE, LEGACY_FILE):
        if (directory / name).is_file():
            yield name
    for name in (STEP_METADATA, INDICATOR):
        if (directory / name).is_file() or (directory.parent / name).is_file():
            yield name


def _text(version: Version) -> str:
    return ".".join(map(str, version))
