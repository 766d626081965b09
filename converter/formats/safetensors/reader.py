"""The tree of a safetensors checkpoint: its leaves under their paths, none of them read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from converter.errors import UnreadableCheckpoint
from converter.formats import zarr
from converter.formats.checkpoint import Checkpoint
from converter.formats.flat_names import SEPARATORS, tree_of_names
from converter.formats.provenance import KEY, describe, read_record
from converter.formats.raw import raw_leaf
from converter.formats.safetensors.files import Found, find_files
from converter.formats.safetensors.header import Header, Stored
from converter.formats.safetensors.names import RECORD_KEY, TREE_KEY, Naming, read_naming
from converter.formats.strict_json import parse_json
from converter.paths import Path, path_order
from converter.stored import Extent
from converter.tree import LazyLeaf, Leaf, LeafKind, LeafSpec, array_spec, empty_spec


def read_checkpoint(path: FilePath, format: str) -> Checkpoint:
    """Reads the header of a file, or of all shards of an index; see ``SafetensorsFormat.open`` for the errors."""
    found = find_files(path)
    namings = {file: _naming(file, header, found) for file, header in found.headers.items()}
    leaves = [leaf for file, header in found.headers.items() for leaf in _leaves(file, header, namings[file])]
    if len(found.headers) > 1:  # shards say nothing about the order of all
        leaves.sort(key=lambda leaf: path_order(leaf[0]))
    separator = next(iter(namings.values())).separator
    noted = _noted(found)
    record = _record(noted)
    return Checkpoint(
        path=path,
        location=found.location,
        format=format,
        tree=tree_of_names(found.location, leaves, separator),
        facts=_facts(found, separator, noted, record),
        metadata={} if record is None else {KEY: record},
        files=(found.location, *found.headers),
    )


def _naming(file: FilePath, header: Header, found: Found) -> Naming:
    """How the names of a file are to be read; all shards together tell what joins their keys."""
    names = (name for each in found.headers.values() for name in each.arrays)
    try:
        return read_naming(header.metadata, names)
    except ValueError as error:
        raise UnreadableCheckpoint(
            f"{file} is damaged: expected what flax-convert writes as {TREE_KEY} into its metadata, found {error}",
            "Remove the entry from the metadata, or copy the file again.",
        ) from None


def _leaves(file: FilePath, header: Header, naming: Naming) -> Iterator[tuple[Path, Leaf]]:
    path_of_file = str(file.absolute())
    for name, stored in header.arrays.items():
        extent = Extent(path_of_file, stored.begin, stored.end - stored.begin)
        spec = _spec(stored, naming.kinds.get(name, ""))
        yield naming.path(name), raw_leaf(spec, extent, dtype=zarr.type_string(stored.dtype))
    for kind, names in naming.empty.items():
        yield from ((naming.path(name), LazyLeaf(empty_spec(kind), _nothing)) for name in names)


def _nothing() -> None:
    """The value of an empty container."""


_PYTHON = {("int", "int64"), ("int", "uint64"), ("float", "float64"), ("bool", "bool")}


def _spec(stored: Stored, kind: str) -> LeafSpec:
    """What an array is; what the metadata say of it counts only where it fits."""
    if kind == "numpy" and not stored.shape:
        return LeafSpec(LeafKind.NUMPY_SCALAR, stored.dtype)
    if (kind, stored.dtype) in _PYTHON and not stored.shape:
        return LeafSpec(LeafKind.SCALAR, kind)
    return array_spec(stored.dtype, stored.shape)


def _noted(found: Found) -> dict[str, str]:
    """What the headers say beyond the tree."""
    noted: dict[str, str] = {}
    for header in found.headers.values():
        noted |= {key: value for key, value in header.metadata.items() if key != TREE_KEY}
    return noted


def _record(noted: Mapping[str, str]) -> Mapping[str, Any] | None:
    """Where the file comes from, if it says so in a form that can be read."""
    try:
        return read_record({KEY: parse_json(noted.get(RECORD_KEY, "null").encode())})
    except ValueError:
        return None


def _facts(found: Found, separator: str, noted: Mapping[str, str], record: Mapping[str, Any] | None) -> dict[str, str]:
    facts = {"names": f"joined by {SEPARATORS[separator]}"}
    if found.location not in found.headers:
        facts["shards"] = str(len(found.headers))
    size = sum(file.stat().st_size for file in found.headers)
    facts["size of the file" if found.location in found.headers else "size of the files"] = f"{size} bytes"
    if record is not None:
        facts["converted from"] = describe(record)
        noted = {key: value for key, value in noted.items() if key != RECORD_KEY}
    if noted:
        facts["metadata"] = ", ".join(f"{key} {value[:60]}" for key, value in sorted(noted.items()))
    return facts
