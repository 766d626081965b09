"""Writing a tree as safetensors files, piece by piece; what the source has in that form is copied by the system.

For the same arrays and metadata the bytes are those of ``safetensors.numpy.save_file`` (0.8).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from converter import __version__
from converter.errors import DestinationError
from converter.formats.checkpoint import Progress, Written, refuse_objections
from converter.formats.one_file import write_items
from converter.formats.provenance import read_record
from converter.formats.safetensors.files import KIND
from converter.formats.safetensors.header import can_hold, order, spell_header
from converter.formats.safetensors.names import RECORD_KEY, TREE_KEY, name_leaves, tell_names
from converter.formats.several_files import write_directory
from converter.formats.streaming import whole_or_nothing
from converter.paths import Path, format_path
from converter.tree import Leaf, LeafKind, LeafSpec, Tree


def write(tree: Tree, destination: FilePath, progress: Progress, metadata: Mapping[str, Any] | None = None) -> Written:
    """Writes ``tree`` to ``destination``; a file that was not finished is removed.

    Args:
      progress: called with the bytes and leaves that were added since the last call.
      metadata: what to note of the checkpoint itself; of this only the record of the conversion has a place.

    Raises:
      UnsupportedCheckpoint: leaves that safetensors cannot hold; found before writing.
      DestinationError: the destination exists, or the file system refused.
      RuntimeError: a leaf whose value is not what its spec announced; a defect of the source's reader.
    """
    refuse_objections("a safetensors file", objections(tree))
    if os.path.lexists(destination):
        raise DestinationError(f"{destination} exists already")
    return _write_file(tree, destination, progress, name_leaves(tree), noted(metadata or {}))


def write_shards(
    tree: Tree, directory: FilePath, progress: Progress, most: int, metadata: Mapping[str, Any] | None = None
) -> Written:
    """Writes ``tree`` below ``directory``, with at most so many bytes of arrays in each file if there are several.

    Each file says all that is to be said of its own leaves, and where the checkpoint comes from.

    Raises:
      as ``write``; also ``UsageError`` where the files would be too many.
    """
    refuse_objections("a safetensors file", objections(tree))
    names, told = name_leaves(tree), noted(metadata or {})
    return write_directory(
        tree,
        directory,
        KIND,
        most,
        named={path: names[path] for path in tree.full()},
        size=_stored_size,
        write=lambda part, file: _write_file(part, file, progress, names, told),
    )


def _write_file(
    tree: Tree, file: FilePath, progress: Progress, names: Mapping[Path, str], metadata: Mapping[str, str]
) -> Written:
    header, ordered = _lay_out(tree, names, metadata)
    with whole_or_nothing(file), file.open("xb") as stream:
        items: list[tuple[Path, bytes | Leaf]] = [((), header), *ordered]
        written = write_items(stream.fileno(), items, _framing, _spell_number, progress)
        progress(0, len(tree) - len(ordered))
        return written


def noted(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What the header says of the file itself. ``format`` is what Hugging Face's loaders ask for."""
    record = read_record(metadata)
    text = {} if record is None else {RECORD_KEY: json.dumps(record, ensure_ascii=False, separators=(",", ":"))}
    return {"format": "flax", "flax_convert.version": __version__, **text}


def _lay_out(
    tree: Tree, names: Mapping[Path, str], metadata: Mapping[str, str]
) -> tuple[bytes, list[tuple[Path, Leaf]]]:
    """The header, and the leaves in the order of the file."""
    dtypes = {path: _stored_dtype(tree[path]) for path in tree.full()}
    ordered = sorted(dtypes, key=lambda path: order(names[path], dtypes[path]))
    arrays = ((names[path], dtypes[path], tree[path].spec.shape) for path in ordered)
    header = spell_header(arrays, {**metadata, TREE_KEY: tell_names(tree, names)})
    return header, [(path, tree[path]) for path in ordered]


def _framing(spec: LeafSpec) -> Iterator[bytes | int]:
    yield spec.nbytes


# Python numbers become arrays without axes ---------------------------------------------------------------------------

_NUMBERS = {"bool": ("bool", "<?"), "int": ("int64", "<q"), "float": ("float64", "<d")}


def _stored_dtype(leaf: Leaf) -> str:
    if leaf.spec.kind is not LeafKind.SCALAR:
        return leaf.spec.dtype
    is_large = leaf.spec.dtype == "int" and leaf.fetch() >= 2**63
    return "uint64" if is_large else _NUMBERS[leaf.spec.dtype][0]


def _stored_size(leaf: Leaf) -> int:
    if leaf.spec.kind is not LeafKind.SCALAR:
        return leaf.spec.nbytes
    return struct.calcsize(_NUMBERS[leaf.spec.dtype][1])


def _spell_number(path: Path, spec: LeafSpec, value: Any) -> bytes:
    if type(value).__name__ != spec.dtype:
        raise RuntimeError(
            f"{format_path(path)}: expected {spec} from its metadata, found {type(value).__name__} when it was read"
        )
    is_large = spec.dtype == "int" and value >= 2**63
    return struct.pack("<Q" if is_large else _NUMBERS[spec.dtype][1], value)


# What safetensors cannot hold ----------------------------------------------------------------------------------------


def objections(tree: Tree) -> dict[Path, str]:
    """Why a safetensors file cannot hold some leaves. Python ints are fetched, arrays are not."""
    return {path: problem for path, leaf in tree.items() if (problem := _problem(path, leaf))}


def _problem(path: Path, leaf: Leaf) -> str:
    spec = leaf.spec
    try:
        ".".join(path).encode()
    except UnicodeEncodeError:
        return "has a name that is no Unicode text"
    match spec.kind:
        case LeafKind.KEY:
            return f"{spec} is a typed PRNG key, for which safetensors has no form"
        case LeafKind.TEXT:
            return f"{spec} is text, and safetensors holds arrays only"
        case LeafKind.SCALAR if spec.dtype not in _NUMBERS:
            return f"{spec} is a Python number for which safetensors has no dtype"
        case LeafKind.SCALAR if spec.dtype == "int" and not -(2**63) <= leaf.fetch() < 2**64:
            return "int needs more than 64 bits"
        case LeafKind.ARRAY | LeafKind.NUMPY_SCALAR if not can_hold(spec.dtype):
            return f"{spec} has a dtype that safetensors does not have"
        case _:
            return ""
