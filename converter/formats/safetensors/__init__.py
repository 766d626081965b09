"""safetensors files: arrays under flat names, one after the other, with a header in JSON.

A checkpoint is a file, or shards with an index (``model.safetensors.index.json``), or a directory that holds
one of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath

from converter.errors import UnreadableCheckpoint, UsageError
from converter.formats import zarr
from converter.formats.checkpoint import PLAIN, Checkpoint, Progress, Strategy, Writing, Written
from converter.formats.flat_names import SEPARATORS, tree_of_names
from converter.formats.foreign import recognised
from converter.formats.one_file import strategies
from converter.formats.raw import raw_leaf
from converter.formats.safetensors.files import INDEX_SUFFIX, SUFFIX, Found, find_files, is_directory_of_files
from converter.formats.safetensors.header import Header, Stored, looks_like_safetensors
from converter.formats.safetensors.names import TREE_KEY, Naming, read_naming
from converter.formats.safetensors.writer import objections, write
from converter.stored import Extent
from converter.tree import Leaf, LeafKind, LeafSpec, Path, Tree, array_spec, empty_spec, path_order


class SafetensorsFormat:
    """See ``converter.formats.checkpoint.Format``."""

    name = "safetensors"

    def sniff(self, path: FilePath) -> bool:
        """Whether ``path`` begins like such a file, or is called like one or its index, or a directory with one."""
        if path.is_dir():
            return is_directory_of_files(path)
        if looks_like_safetensors(path):
            return True
        return path.name.endswith((SUFFIX, INDEX_SUFFIX)) and recognised(path) is None

    def open(self, path: FilePath, *, step: int | None = None, item: str | None = None) -> Checkpoint:
        """Reads the header of a file, or of all shards that an index names.

        Raises:
          UnreadableCheckpoint: damaged, cut short, or a shard is missing.
          UnsupportedCheckpoint: dtypes that cannot be read, or names that make no tree.
          UsageError: a step or an item, of which there are none; a directory of several checkpoints; one shard of many.
        """
        if step is not None:
            raise UsageError(f"{path} has no step {step}: safetensors files have none", "Leave out --step.")
        if item is not None:
            raise UsageError(f"{path} has no item {item!r}: safetensors files hold a single tree", "Leave out --item.")
        found = find_files(path)
        namings = {file: _naming(file, header, found) for file, header in found.headers.items()}
        leaves = [leaf for file, header in found.headers.items() for leaf in _leaves(file, header, namings[file])]
        if len(found.headers) > 1:  # shards say nothing about the order of all
            leaves.sort(key=lambda leaf: path_order(leaf[0]))
        separator = next(iter(namings.values())).separator
        return Checkpoint(
            path=path,
            location=found.location,
            format=self.name,
            tree=tree_of_names(found.location, leaves, separator),
            facts=_facts(found, separator),
            files=(found.location, *found.headers),
        )

    def objections(self, tree: Tree) -> Mapping[Path, str]:
        """Why a safetensors file cannot hold some leaves: typed PRNG keys, texts, dtypes such as int4."""
        return objections(tree)

    def strategies(self, tree: Tree, writing: Writing) -> Mapping[Path, Strategy]:
        """How each array gets there: one that lies in the source as the file holds it is copied as it is."""
        return strategies(tree)

    def write(
        self,
        tree: Tree,
        destination: FilePath,
        progress: Progress,
        *,
        final: FilePath | None = None,
        writing: Writing = PLAIN,
    ) -> Written:
        """Writes ``tree`` as one file; see ``converter.formats.safetensors.writer.write``.

        The file shares nothing with the source and has no compression, whatever ``writing`` wishes.

        Raises:
          UnsupportedCheckpoint: leaves that safetensors cannot hold, such as typed PRNG keys.
          DestinationError: the destination exists, or the file system refused.
        """
        return write(tree, destination, progress)


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
        yield from ((naming.path(name), Leaf(empty_spec(kind), _nothing)) for name in names)


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


def _facts(found: Found, separator: str) -> dict[str, str]:
    facts = {"names": f"joined by {SEPARATORS[separator]}"}
    if found.location not in found.headers:
        facts["shards"] = str(len(found.headers))
    size = sum(file.stat().st_size for file in found.headers)
    facts["size of the file" if found.location in found.headers else "size of the files"] = f"{size} bytes"
    noted: dict[str, str] = {}
    for header in found.headers.values():
        noted |= {key: value for key, value in header.metadata.items() if key != TREE_KEY}
    if noted:
        facts["metadata"] = ", ".join(f"{key} {value[:60]}" for key, value in sorted(noted.items()))
    return facts
