"""safetensors files: arrays under flat names, one after the other, with a header in JSON.

A checkpoint is a file, or shards with an index (``model.safetensors.index.json``), or a directory that holds
one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath

from converter.errors import UsageError
from converter.formats.checkpoint import PLAIN, Checkpoint, Progress, Strategy, Writing, Written
from converter.paths import Path
from converter.tree import Tree


class SafetensorsFormat:
    """See ``converter.formats.checkpoint.Format``."""

    name = "safetensors"

    def sniff(self, path: FilePath) -> bool:
        """Whether ``path`` begins like such a file, or is called like one or its index, or a directory with one."""
        from converter.formats.foreign import recognised
        from converter.formats.safetensors.files import INDEX_SUFFIX, SUFFIX, is_directory_of_files
        from converter.formats.safetensors.header import looks_like_safetensors

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
        from converter.formats.safetensors.reader import read_checkpoint

        return read_checkpoint(path, self.name)

    def objections(self, tree: Tree) -> Mapping[Path, str]:
        """Why a safetensors file cannot hold some leaves: typed PRNG keys, texts, dtypes such as int4."""
        from converter.formats.safetensors.writer import objections

        return objections(tree)

    def strategies(self, tree: Tree, writing: Writing) -> Mapping[Path, Strategy]:
        """How each array gets there: one that lies in the source as the file holds it is copied as it is."""
        from converter.formats.one_file import strategies

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
        """Writes ``tree`` as one file, or with ``writing.max_shard`` as a directory of one or several files.

        They share nothing with the source and have no compression, whatever ``writing`` wishes; their headers note
        where they come from.

        Raises:
          UnsupportedCheckpoint: leaves that safetensors cannot hold, such as typed PRNG keys.
          DestinationError: the destination exists, or the file system refused.
          UsageError: the shards would be too many.
        """
        from converter.formats.safetensors.writer import write, write_shards

        if writing.max_shard is not None:
            return write_shards(tree, destination, progress, writing.max_shard, writing.metadata)
        return write(tree, destination, progress, writing.metadata)
