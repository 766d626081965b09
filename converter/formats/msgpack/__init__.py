"""flax msgpack files: ``flax.serialization.to_bytes``, and what ``flax.training.checkpoints`` wrote before Orbax.

A checkpoint is a file, or a directory of files ``checkpoint_<step>`` (any prefix will do). Its containers are maps
with text keys: lists and tuples have become maps of ``"0"``, ``"1"`` …, optax states maps of their field names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath

from converter.errors import UnreadableCheckpoint, UsageError
from converter.formats.checkpoint import PLAIN, Checkpoint, Progress, Strategy, Writing, Written
from converter.paths import Path
from converter.tree import Tree


class MsgpackFormat:
    """See ``converter.formats.checkpoint.Format``."""

    name = "msgpack"

    def sniff(self, path: FilePath) -> bool:
        """Whether ``path`` is such a file, an index of several, or a directory with a step or a model of that kind."""
        from converter.formats.msgpack.files import is_index, is_model_directory
        from converter.formats.msgpack.steps import find_steps, looks_like_flax

        if not path.is_dir():
            return looks_like_flax(path) or is_index(path)
        try:
            return bool(find_steps(path)) or is_model_directory(path)
        except (OSError, UnreadableCheckpoint):
            return False

    def open(self, path: FilePath, *, step: int | None = None, item: str | None = None) -> Checkpoint:
        """Indexes a file, the shards of a model, or the file of a step in a directory (by default of the latest).

        Raises:
          UnreadableCheckpoint: missing, empty, damaged, or a directory without step files.
          UnsupportedCheckpoint: not self-contained, or with keys, dtypes or values that flax never writes.
          UsageError: no such step, files of several prefixes, one shard of many, or an item, of which there are none.
        """
        from converter.formats.msgpack.files import choose_file, is_model_directory
        from converter.formats.msgpack.reader import read_files
        from converter.formats.msgpack.steps import Steps, choose_step

        if item is not None:
            raise UsageError(f"{path} has no item {item!r}: a msgpack file holds a single tree", "Leave out --item.")
        if path.is_dir() and is_model_directory(path):
            steps, location = Steps(), choose_file(path)
        elif path.is_dir():
            steps, step = choose_step(path, step)
            location = steps.files[step]
        else:
            steps, location = Steps(), path
        if step is not None and not steps.files:
            kind = "a directory of one model" if path.is_dir() else "a single file"
            raise UsageError(f"{path} is {kind}, it has no step {step}", "Leave out --step.")
        found = read_files(location)
        facts = dict(found.facts)
        if steps.fractional:
            facts["left aside (the step is no whole number)"] = ", ".join(steps.fractional)
        return Checkpoint(
            path=path,
            location=location,
            format=self.name,
            tree=found.tree,
            steps=tuple(sorted(steps.files)),
            step=step,
            facts=facts,
            files=found.files,
        )

    def step_names(self, path: FilePath) -> list[tuple[int, str]]:
        """The step files of a directory."""
        from converter.formats.msgpack.steps import find_steps

        return [(step, file.name) for steps in find_steps(path).values() for step, file in steps.files.items()]

    def objections(self, tree: Tree) -> Mapping[Path, str]:
        """Why a msgpack file cannot hold some leaves: typed PRNG keys, unknown dtypes."""
        from converter.formats.msgpack.writer import objections

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
        """Writes ``tree`` as ``flax.serialization.to_bytes`` would; see ``converter.formats.msgpack.writer.write``.

        The file shares nothing with the source and has no compression, whatever ``writing`` wishes.

        Raises:
          UnsupportedCheckpoint: leaves that msgpack cannot hold, such as typed PRNG keys.
          DestinationError: the destination exists, or the file system refused.
        """
        from converter.formats.msgpack.writer import write

        return write(tree, destination, progress)
