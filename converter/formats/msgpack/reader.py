"""The tree of a msgpack checkpoint, from one file or from the shards of an index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath

from converter.formats.msgpack.files import files_of
from converter.formats.msgpack.index import MappedLeaves, index, map_file
from converter.formats.shards import check_agreement
from converter.tree import LeafKind, Tree


@dataclass(frozen=True, slots=True)
class Read:
    """What the files hold.

    Attributes:
      tree: their leaves.
      facts: for people.
      files: all files; none where there is only the one that was named.
    """

    tree: Tree
    facts: Mapping[str, str]
    files: tuple[FilePath, ...]


def read_files(location: FilePath) -> Read:
    """Indexes a file, or all shards of an index; see ``MsgpackFormat.open`` for the errors."""
    named, files = files_of(location)
    trees: list[Tree] = []
    held: dict[FilePath, list[str]] = {}
    size = split = 0
    for file in files:
        data = map_file(file)
        entries = index(file, data)
        size += len(data)
        split += sum(len(entry.extents) > 1 for _, entry in entries)
        if named:
            # A container without leaves has no name in the index; the whole of a shard may be one.
            entries = [(path, entry) for path, entry in entries if path]
            held[file] = ["/".join(path) for path, entry in entries if entry.spec.kind is not LeafKind.EMPTY]
        trees.append(MappedLeaves(file, data).tree(entries))
    if named:
        check_agreement(location, named, held)
    facts = {"size of the files" if named else "size of the file": f"{size} bytes"}
    if named:
        facts["shards"] = str(len(files))
    if split:
        facts["arrays split into chunks"] = str(split)
    tree = trees[0] if len(trees) == 1 else Tree(leaf for each in trees for leaf in each.items())
    return Read(tree, facts, (location, *files) if named else ())
