"""Writing Linen params as ``FlaxPreTrainedModel.from_pretrained`` of transformers 4 loads them.

The destination is a directory, in which ``config.json`` is still missing: that belongs to the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath

from converter.errors import DestinationError
from converter.formats.checkpoint import PLAIN, Progress, Writing, Written, refuse_objections
from converter.formats.msgpack import MsgpackFormat
from converter.formats.msgpack.files import KIND, STEM
from converter.formats.shards import write_index
from converter.formats.streaming import whole_or_nothing
from converter.paths import Path
from converter.tree import LeafKind, Tree

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
        """
        from converter.formats.msgpack.writer import write

        refuse_objections("a model directory of Hugging Face's", self.objections(tree))
        if os.path.lexists(destination):
            raise DestinationError(f"{destination} exists already")
        parts = list(_parts(tree, writing.max_shard or MAX_SHARD))
        written = Written()
        named: dict[str, str] = {}
        with whole_or_nothing(destination):
            destination.mkdir()
            for number, part in enumerate(parts, 1):
                file = destination / KIND.name(STEM, number, len(parts))
                written.add(write(part, file, progress))
                full = (path for path, leaf in part.items() if leaf.spec.kind is not LeafKind.EMPTY)
                named |= dict.fromkeys(map(SEPARATOR.join, full), file.name)
            if len(parts) > 1:
                write_index(destination / f"{STEM}{KIND.index_suffix}", named, tree.nbytes)
        return written


def _parts(tree: Tree, most: int) -> Iterator[Tree]:
    """The leaves in order, as many in each part as fit; a larger one has a part of its own."""
    part: list[Path] = []
    size = 0
    for path, leaf in tree.items():
        if part and size + leaf.spec.nbytes > most:
            yield Tree((each, tree[each]) for each in part)
            part, size = [], 0
        part.append(path)
        size += leaf.spec.nbytes
    yield Tree((each, tree[each]) for each in part)
