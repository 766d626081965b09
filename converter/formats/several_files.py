"""Writing a tree as a directory: one file, or where that would hold too many bytes, shards with an index of them.

Formats say how a part of the tree becomes a file. Names and index are those of ``converter.formats.shards``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as FilePath

from converter.errors import DestinationError, UsageError
from converter.formats.checkpoint import Written
from converter.formats.shards import Kind
from converter.formats.streaming import whole_or_nothing
from converter.paths import Path
from converter.tree import Leaf, Tree

MOST_FILES = 99_999
"""The names of shards count with five digits."""


def write_directory(
    tree: Tree,
    directory: FilePath,
    kind: Kind,
    most: int,
    *,
    named: Mapping[Path, str],
    size: Callable[[Leaf], int],
    write: Callable[[Tree, FilePath], Written],
) -> Written:
    """Writes ``tree`` below ``directory``, leaves in order; what was not finished is removed.

    Args:
      most: bytes of arrays in one file; a larger array has a file of its own.
      named: what the index calls the leaves; those that it does not name are left out.
      size: bytes that a leaf takes in its file.
      write: writes a part of the tree as a file.

    Raises:
      DestinationError: the directory exists, or the file system refused.
      UsageError: more files than there are names for.
    """
    if os.path.lexists(directory):
        raise DestinationError(f"{directory} exists already")
    sizes = {path: size(leaf) for path, leaf in tree.items()}
    parts = list(_parts(tree, sizes, most))
    if len(parts) > MOST_FILES:
        raise UsageError(
            f"with at most {most} bytes in each, {directory} would have {len(parts)} files: expected {MOST_FILES}",
            "Give a larger --max-shard-size.",
        )
    written = Written()
    places: dict[str, str] = {}
    with whole_or_nothing(directory):
        directory.mkdir()
        for number, part in enumerate(parts, 1):
            file = directory / kind.name(kind.stem, number, len(parts))
            written.add(write(part, file))
            places |= {named[path]: file.name for path in part if path in named}
        if len(parts) > 1:
            _write_index(directory / f"{kind.stem}{kind.index_suffix}", places, sum(sizes.values()))
    return written


def _parts(tree: Tree, sizes: Mapping[Path, int], most: int) -> Iterator[Tree]:
    """As many leaves in each part as fit; leaves without bytes make no part alone, or no index would name it."""
    part: list[tuple[Path, Leaf]] = []
    taken = 0
    for path, leaf in tree.items():
        if taken and sizes[path] and taken + sizes[path] > most:
            yield Tree(part)
            part, taken = [], 0
        part.append((path, leaf))
        taken += sizes[path]
    yield Tree(part)


def _write_index(index: FilePath, places: Mapping[str, str], total: int) -> None:
    content = {"metadata": {"total_size": total}, "weight_map": dict(places)}
    index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
