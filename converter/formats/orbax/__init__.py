"""Orbax checkpoints: a directory per item, read and written without Orbax."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path as FilePath
from typing import Any

from converter.errors import UnreadableCheckpoint
from converter.formats.checkpoint import PLAIN, PYTREE, Checkpoint, Progress, Strategy, Writing, Written
from converter.formats.orbax import layout
from converter.formats.orbax.arrays import ArrayStore
from converter.formats.orbax.legacy import Placeholder, read_legacy_tree
from converter.formats.orbax.metadata import (
    EMPTY_TYPES,
    LEGACY_FILE,
    METADATA_FILE,
    Entry,
    ItemMetadata,
    SavedArrays,
    Strings,
    handler_of,
    names_on_disk,
    read_item_metadata,
    read_shardings,
    refuse_shared_names,
)
from converter.formats.orbax.versions import versions
from converter.formats.provenance import KEY, describe, read_record
from converter.formats.t5x import ArrayReference
from converter.grid import Grid
from converter.paths import Path, format_path
from converter.tree import LazyLeaf, Leaf, LeafKind, LeafSpec, Tree, empty_spec

_PYTHON_TYPES: Mapping[str, type] = {"bool": bool, "int": int, "uint": int, "complex": complex}
"""Type of a Python scalar by the letters its dtype begins with; anything else is a float."""


class OrbaxFormat:
    """Reads what Orbax 0.1 to 0.12 and T5X wrote, and writes the layout of 0.12.

    Neither jax nor Orbax is imported for either: the layout on disk is stable, the classes are not.

    Args:
      v1: write what ``orbax.checkpoint.v1.save`` does, a directory that holds the item, in the place of the item alone.
    """

    name = "orbax"

    def __init__(self, *, v1: bool = False) -> None:
        self._v1 = v1

    def sniff(self, path: FilePath) -> bool:
        """Whether ``path`` is an Orbax item, a directory of items or a directory of steps."""
        return layout.looks_like_orbax(path)

    def open(self, path: FilePath, *, step: int | None = None, item: str | None = None) -> Checkpoint:
        """Reads names, dtypes and shapes; arrays are read when a leaf is fetched.

        Args:
          path: an item, a step or a root of steps.
          step: the step to read; without it the latest that is complete.
          item: the item to read; without it the only one, else ``default`` or ``state``.

        Raises:
          UnreadableCheckpoint: no Orbax checkpoint, unfinished, damaged, without the data of some process, or with
            links that leave it.
          UnsupportedCheckpoint: leaves that share a name, values in files of other processes, unknown dtypes.
          UsageError: no such step or item, or several items and none chosen.
        """
        try:
            location = layout.locate(path, step, item)
            attached = layout.attached(location)
            for directory in (location.directory, *(each.directory for each in attached.values())):
                _refuse_links_outside(location.root, directory)
            metadata, inline = _read_metadata(location.directory)
            store = ArrayStore(location.directory, metadata.zarr3, metadata.all_stored)
            tree = Tree(_leaves(location.directory, metadata, inline, store))
            facts = dict(_facts(location, metadata, store))
        except OSError as error:
            raise UnreadableCheckpoint(f"{error.filename or path} cannot be read: {error.strerror or error}") from None
        return Checkpoint(
            path=path,
            location=location.directory,
            format=self.name,
            tree=tree,
            steps=location.steps,
            step=location.step,
            items=location.items,
            item=location.item,
            kinds=dict(sorted({**dict.fromkeys(location.items, PYTREE), **location.others}.items())),
            shardings=partial(read_shardings, location.directory, metadata.entries),
            facts=facts,
            metadata=_noted(location, metadata),
            attached=attached,
        )

    def items(self, path: FilePath, step: int | None = None) -> tuple[str, ...]:
        """Names of the items of a step that are trees, where the user has a choice; see ``open`` for the errors."""
        return layout.choices(path, step)

    def step_names(self, path: FilePath) -> list[tuple[int, str]]:
        """The steps of a directory and what they are called in it; none where it is one checkpoint itself."""
        return layout.step_names(path)

    def objections(self, tree: Tree) -> Mapping[Path, str]:
        """Why Orbax cannot hold some leaves: dtypes that TensorStore lacks, arrays without elements, bytes …"""
        from converter.formats.orbax.limits import leaf_objections

        return leaf_objections(tree)

    def strategies(self, tree: Tree, writing: Writing) -> Mapping[Path, Strategy]:
        """How each array gets there: bytes that need not change stay where they are."""
        from converter.formats.orbax.writer import strategies

        return strategies(tree, writing)

    def write(
        self,
        tree: Tree,
        destination: FilePath,
        progress: Progress,
        *,
        final: FilePath | None = None,
        writing: Writing = PLAIN,
    ) -> Written:
        """Writes ``tree`` as one item, in the layout of the current Orbax.

        Args:
          tree: the leaves; a few pieces of an array are in memory at a time.
          destination: the directory to make: the item, or that of a step or v1 checkpoint which holds it.
          progress: told of every leaf when it is done.
          final: where the caller will move ``destination`` to; Orbax notes a path in ``commit_success.txt``.
          writing: what the user wants of it.

        Raises:
          UnsupportedCheckpoint: leaves that Orbax cannot hold, all of them listed; nothing has been written.
          DestinationError: the file system refused; nothing is left behind.
        """
        from converter.formats.orbax.surroundings import surroundings
        from converter.formats.orbax.writer import save

        around = surroundings(writing.attached, v1=self._v1, as_step=writing.as_step)
        return save(tree, destination, progress, final, writing, around)


def _refuse_links_outside(root: FilePath, directory: FilePath) -> None:
    """Follows every symlink of an item: TensorStore would read whatever file a received checkpoint links to.

    Raises:
      UnreadableCheckpoint: a link leaves the directory that the user named.
    """
    first = os.path.realpath(directory)
    if not FilePath(first).is_relative_to(root):
        raise _outside(str(directory), first)
    pending, seen = [first], {first}
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                target = entry.path
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if not FilePath(target).is_relative_to(root):
                        raise _outside(entry.path, target)
                    if target in seen:
                        continue
                    seen.add(target)
                if entry.is_dir():
                    pending.append(target)


def _outside(link: str, target: str) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(
        f"{link} is a symbolic link that leaves the checkpoint: it leads to {target}",
        "If you trust the checkpoint, name the directory that the link leads to, or copy it with 'cp -rL'.",
    )


def _read_metadata(directory: FilePath) -> tuple[ItemMetadata, Mapping[Path, Leaf]]:
    """The leaves of an item, and the values that stand in the msgpack file of an older one."""
    legacy_file = directory / LEGACY_FILE
    if (directory / METADATA_FILE).exists() or not legacy_file.is_file():
        metadata = read_item_metadata(directory)
        has_inline = any(entry.inline for entry in metadata.entries)
        legacy = read_legacy_tree(legacy_file) if has_inline else {}
        return metadata, _inline(legacy)
    legacy = read_legacy_tree(legacy_file)
    entries = tuple(_legacy_entry(path, leaf) for path, leaf in legacy.items())
    refuse_shared_names(names_on_disk(entries))
    is_t5x = any(entry.expected is not None for entry in entries)
    return ItemMetadata(entries, is_t5x=is_t5x), _inline(legacy)


def _inline(legacy: Mapping[Path, Leaf | Placeholder | ArrayReference]) -> dict[Path, Leaf]:
    return {path: leaf for path, leaf in legacy.items() if not isinstance(leaf, Placeholder | ArrayReference)}


def _legacy_entry(path: Path, leaf: Leaf | Placeholder | ArrayReference) -> Entry:
    match leaf:
        case Placeholder():
            return Entry(path, leaf.name, "np.ndarray")
        case ArrayReference():
            return Entry(path, leaf.name, "np.ndarray", expected=leaf.spec, written_to=leaf.written_to)
        case _:
            return Entry(path, "", "", inline=True)


def _leaves(
    directory: FilePath, metadata: ItemMetadata, inline: Mapping[Path, Leaf], store: ArrayStore
) -> Iterator[tuple[Path, Leaf]]:
    """The leaves in the order of the file."""
    strings = Strings(directory)
    saved = SavedArrays(directory)
    specs = iter(store.specs([entry for entry in metadata.entries if entry.is_array]))
    for entry in metadata.entries:
        if entry.is_array:
            yield entry.path, _array_leaf(entry, next(specs), saved, store)
        elif entry.is_empty:
            yield entry.path, LazyLeaf(empty_spec(EMPTY_TYPES[entry.value_type]), lambda: None)
        elif entry.inline:
            if entry.path not in inline:
                raise UnreadableCheckpoint(f"{format_path(entry.path)}: its value is missing in {directory}/checkpoint")
            yield entry.path, inline[entry.path]
        else:
            yield entry.path, LazyLeaf(LeafSpec(LeafKind.TEXT, "str"), partial(strings.__getitem__, entry))


@dataclass(slots=True)
class _StoredArray:
    """The leaf of an array, with all that it takes to find it."""

    spec: LeafSpec
    entry: Entry
    saved: SavedArrays
    store: ArrayStore

    def fetch(self) -> Any:
        return self.store.read(self.entry, self.saved[self.entry])

    def grid(self) -> Grid:
        return self.store.grid(self.entry, self.saved[self.entry])


def _array_leaf(entry: Entry, spec: LeafSpec, saved: SavedArrays, store: ArrayStore) -> Leaf:
    implementation = saved.key_implementation(entry)
    if implementation is not None:
        spec = LeafSpec(LeafKind.KEY, implementation, spec.shape[:-1])
    array = _StoredArray(spec, entry, saved, store)
    if implementation is None and entry.value_type == "scalar" and not spec.shape:
        python_type = _PYTHON_TYPES.get(spec.dtype.rstrip("0123456789"), float)
        return LazyLeaf(
            LeafSpec(LeafKind.SCALAR, python_type.__name__), lambda: python_type(array.fetch().item()), array.grid
        )
    return array


def _facts(location: layout.Location, metadata: ItemMetadata, store: ArrayStore) -> Iterator[tuple[str, str]]:
    """What a person may want to know beside the tree."""
    saved = location.saved
    yield "layout", store.layout
    pattern = "ocdbt.process_[0-9]*" if store.databases else "array_metadatas/process_*"
    processes = sum(1 for _ in location.directory.glob(pattern))
    if processes > 1:
        yield "processes", str(processes)
    handler = handler_of(saved, location.item or location.directory.name)
    if handler:
        yield "written by", f"Orbax {handler}"
    if metadata.is_t5x:
        yield "written by", "T5X"
    elif known := versions(location.directory, metadata):
        yield "version", f"as Orbax {known} writes it"
    committed = saved.get("commit_timestamp_nsecs")
    if isinstance(committed, int):
        yield "saved", datetime.fromtimestamp(committed // 10**9, UTC).isoformat()
    noted = _noted(location, metadata)
    record = read_record(noted)
    if record is not None:
        yield "converted from", describe(record)
        noted = {name: value for name, value in noted.items() if name != KEY}
    for name, value in (("custom metadata", noted), ("metrics", saved.get("metrics"))):
        if value:
            yield name, json.dumps(value, ensure_ascii=False)
    if location.unfinished:
        yield "unfinished saves", ", ".join(location.unfinished)


def _noted(location: layout.Location, metadata: ItemMetadata) -> dict[str, Any]:
    """The metadata that the user gave the step and the item; what is no dict gets a name."""
    noted: dict[str, Any] = {}
    for value in (location.saved.get("custom_metadata"), metadata.custom):
        if isinstance(value, dict):
            noted |= value
        elif value:
            noted["custom_metadata"] = value
    return noted
