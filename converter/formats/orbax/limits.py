"""What Orbax cannot hold, found by trying orbax-checkpoint 0.12.8 with tensorstore 0.1.86.

Orbax itself reports the first of such leaves when some files have been written, or mixes leaves up without a word.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from converter.errors import UnsupportedCheckpoint
from converter.formats.checkpoint import refuse_objections
from converter.formats.orbax.arrays import is_storable
from converter.formats.orbax.metadata import refuse_shared_names
from converter.paths import Path, format_path
from converter.tree import KEY_WORDS, Leaf, LeafKind, LeafSpec, Tree

_LONGEST_NAME = 65_000
"""Bytes; OCDBT's keys end at 65,535, and to the name they add the number of a chunk."""

_NO_ELEMENTS = "has no elements; Orbax refuses arrays of size zero"


def refuse_unsupported(tree: Tree) -> None:
    """Refuses a tree that Orbax would not save whole. Python ints are fetched, arrays are not.

    Raises:
      UnsupportedCheckpoint: lists every leaf at fault.
    """
    if not tree or (tree.keys() == {()} and tree[()].spec.kind is LeafKind.EMPTY):
        raise UnsupportedCheckpoint("the tree has no leaves, and Orbax does not save an empty tree")
    texts = [path for path, leaf in tree.items() if leaf.spec.kind is LeafKind.TEXT]
    refuse_objections("Orbax", {**leaf_objections(tree), **_mixed_up_texts(texts)})
    refuse_shared_names([(path, ".".join(path)) for path in tree.full()])


def leaf_objections(tree: Tree) -> dict[Path, str]:
    """Why Orbax cannot hold some leaves, each for itself."""
    return {
        path: f"{leaf.spec} {objection}"
        for path, leaf in tree.items()
        if (objection := _name_objection(path) or _objection(path, leaf)) is not None
    }


def _name_objection(path: Path) -> str | None:
    """Why no key of the database can begin with this path."""
    name = ".".join(path)
    if len(name) < _LONGEST_NAME // 4 and name.isascii():
        return None
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "has a name that is no Unicode text"
    return f"has a name of {length} bytes, of which Orbax can store {_LONGEST_NAME}" if length > _LONGEST_NAME else None


def _objection(path: Path, leaf: Leaf) -> str | None:
    """Why Orbax cannot hold this leaf, if so."""
    spec = leaf.spec
    match spec.kind:
        case LeafKind.ARRAY | LeafKind.NUMPY_SCALAR:
            return _array_objection(spec)
        case LeafKind.KEY:
            if spec.dtype not in KEY_WORDS and leaf.grid() is None:
                return "is of an implementation that JAX does not have"
            return None if spec.size else _NO_ELEMENTS
        case LeafKind.SCALAR if spec.dtype == "complex":
            return "is a Python number; Orbax holds complex numbers in arrays only"
        case LeafKind.SCALAR if spec.dtype == "int" and not -(2**63) <= leaf.fetch() < 2**64:
            return "needs more than 64 bits"
        case LeafKind.TEXT if spec.dtype != "str":
            return "is no text"
        case LeafKind.TEXT if re.search("~(?![01])", ".".join(path)):
            return "has a tilde in its path, where Orbax keeps texts under JSON pointers"
        case _:
            return None


@functools.lru_cache(maxsize=4096)
def _array_objection(spec: LeafSpec) -> str | None:
    if not is_storable(spec.dtype):
        return "has a dtype that TensorStore cannot store"
    return None if spec.size else _NO_ELEMENTS


def _mixed_up_texts(paths: Sequence[Path]) -> dict[Path, str]:
    """Texts live in one JSON object where a slash in a key nests, so ``a`` and ``a/b`` cannot both be texts."""
    names = {tuple(".".join(path).split("/")): path for path in paths}
    return {
        path: f"str cannot stand beside the text {format_path(names[name[:depth]])}"
        for name, path in names.items()
        for depth in range(1, len(name))
        if name[:depth] in names
    }
