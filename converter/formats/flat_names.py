"""Files that hold arrays under one flat name each, with the keys of a tree joined: ``params/Dense_0/kernel``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path as FilePath

from converter.errors import UnsupportedCheckpoint
from converter.paths import Path
from converter.tree import Leaf, Tree

SEPARATORS = {"/": "slashes", ".": "dots"}


def separator_of(names: Iterable[str]) -> str:
    """What joins the keys: a slash where any name has one, as big_vision and scenic write; else a dot, as PyTorch does.

    Keys with dots are common where slashes join them (``layers_0.5x``), the other way round they are not.
    """
    return "/" if any("/" in name for name in names) else "."


def split_name(name: str, separator: str) -> Path:
    """The keys of a name; an empty one where two separators meet."""
    return tuple(name.split(separator))


def tree_of_names(file: FilePath, leaves: Collection[tuple[Path, Leaf]], separator: str) -> Tree:
    """The tree of leaves whose names have been split.

    Raises:
      UnsupportedCheckpoint: one name is the beginning of another.
    """
    try:
        return Tree(leaves)
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(
            f"{file}: its names make no tree with {SEPARATORS[separator]} between keys: {error.message}",
            "Rename one of the two, or leave it out, with the library that wrote the file.",
        ) from None
