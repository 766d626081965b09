"""Writing Linen params as ``FlaxPreTrainedModel.from_pretrained`` of transformers 4 loads them.

The destination is a directory, in which ``config.json`` is still missing: that belongs to the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath

from converter.formats.checkpoint import PLAIN, Progress, Writing, Written, refuse_objections
from converter.formats.msgpack import MsgpackFormat
from converter.formats.msgpack.files import KIND
from converter.paths import Path
from converter.tree import Tree

MAX_SHARD = 10_000_000_000
"""Bytes of arrays in one file, beyond which transformers makes another."""

SEPARATOR = "/"


class HuggingFaceFormat(MsgpackFormat):
    """Reads msgpack files, and writes a model directory with one or several of them."""

    def objections(self, tree: Tree) -> Mapping[Path, str]:
        """As in one file; also keys with the slash that joins keys in the index."""
        found = dict(super().objections(tree))
        for path in tree:
            if any(SEPARATOR in key for key in path):
                found.setdefault(path, f"has a key with {SEPARATOR!r}, which joins keys in the index of shards")
        return found

    def write(
        self,
        tree: Tree,
        destination: FilePath,
        progress: Progress,
        *,
        final: FilePath | None = None,
        writing: Writing = PLAIN,
    ) -> Written:
        """Writes ``tree`` below the directory ``destination``, in as many files as ``writing.max_shard`` demands.

        Raises:
          UnsupportedCheckpoint: leaves that msgpack cannot hold, such as typed PRNG keys.
          DestinationError: the destination exists, or the file system refused.
          UsageError: the shards would be too many.
        """
        from converter.formats.msgpack.writer import write
        from converter.formats.several_files import write_directory

        refuse_objections("a model directory of Hugging Face's", self.objections(tree))
        return write_directory(
            tree,
            destination,
            KIND,
            writing.max_shard or MAX_SHARD,
            # A container without leaves has no name in the index.
            named={path: SEPARATOR.join(path) for path in tree.full()},
            size=lambda leaf: leaf.spec.nbytes,
            write=lambda part, file: write(part, file, progress),
        )
