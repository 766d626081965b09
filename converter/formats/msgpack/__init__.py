"""flax msgpack files: ``flax.serialization.to_bytes``, and what ``flax.training.checkpoints`` wrote before Orbax.

A checkpoint is a file, or a directory of files ``checkpoint_<step>`` (any prefix will do). Its containers are maps
with text keys: lists and tuples have become maps of ``"0"``, ``"1"`` …, optax states maps of their field names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from converter.errors import ConverterError, UnreadableCheckpoint, UsageError
from converter.formats.checkpoint import PLAIN, Checkpoint, Progress, Strategy, Writing, Written
from converter.formats.msgpack.index import MappedLeaves, index, map_file
from converter.formats.msgpack.values import EXT_ARRAY, EXT_NUMPY_SCALAR
from converter.formats.msgpack.wire import Family, Reader
from converter.formats.msgpack.writer import objections, write
from converter.formats.one_file import strategies
from converter.tree import Path, Tree

FOREIGN_MARKERS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "checkpoint", ".zarray", "zarr.json")
"""Files that tell a directory of Orbax or zarr, whatever else it holds."""

TEMPORARY = re.compile(r"tmp|.*\.orbax-checkpoint-tmp")
"""What an interrupted save leaves behind."""

_STEP_NAME = re.compile(r"(?P<prefix>.*?)(?P<step>(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?)", re.ASCII)


class MsgpackFormat:
    """See ``converter.formats.checkpoint.Format``."""

    name = "msgpack"

    def sniff(self, path: FilePath) -> bool:
        """Whether ``path`` is a file that begins like flax's, or a directory with a step file of that kind."""
        if not path.is_dir():
            return _looks_like_flax(path)
        try:
            return bool(_find_steps(path))
        except UnreadableCheckpoint:
            return False

    def open(self, path: FilePath, *, step: int | None = None, item: str | None = None) -> Checkpoint:
        """Indexes a file, or the file of a step in a directory (the latest unless ``step`` is given).

        Raises:
          UnreadableCheckpoint: missing, empty, damaged, or a directory without step files.
          UnsupportedCheckpoint: not self-contained, or with keys, dtypes or values that flax never writes.
          UsageError: no such step, files of several prefixes, or an item, of which there are none.
        """
        if item is not None:
            raise UsageError(f"{path} has no item {item!r}: a msgpack file holds a single tree", "Leave out --item.")
        if path.is_dir():
            steps, step = _choose_step(path, step)
            location = steps.files[step]
        elif step is None:
            steps, location = _Steps(), path
        else:
            raise UsageError(f"{path} is a single file, it has no step {step}", "Leave out --step.")
        data = map_file(location)
        entries = index(location, data)
        facts = {"size of the file": f"{len(data)} bytes"}
        if split := sum(len(entry.extents) > 1 for _, entry in entries):
            facts["arrays split into chunks"] = str(split)
        if steps.fractional:
            facts["left aside (the step is no whole number)"] = ", ".join(steps.fractional)
        return Checkpoint(
            path=path,
            location=location,
            format=self.name,
            tree=MappedLeaves(location, data).tree(entries),
            steps=tuple(sorted(steps.files)),
            step=step,
            facts=facts,
        )

    def objections(self, tree: Tree) -> Mapping[Path, str]:
        """Why a msgpack file cannot hold some leaves: typed PRNG keys, unknown dtypes."""
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
        """Writes ``tree`` as ``flax.serialization.to_bytes`` would; see ``converter.formats.msgpack.writer.write``.

        The file shares nothing with the source and has no compression, whatever ``writing`` wishes.

        Raises:
          UnsupportedCheckpoint: leaves that msgpack cannot hold, such as typed PRNG keys.
          DestinationError: the destination exists, or the file system refused.
        """
        return write(tree, destination, progress)


def _looks_like_flax(file: FilePath) -> bool:
    try:
        return _begins_like_flax(file)
    except (ConverterError, OSError):
        return False


def _begins_like_flax(file: FilePath) -> bool:
    """Whether the first headers are those of a map with a plausible first key, or of an array.

    One byte would not do: pickles begin with an empty map, and the length at the start of a safetensors file can look
    like a map of text.
    """
    if not file.is_file() or not file.stat().st_size:
        return False
    with map_file(file) as data:
        if data[4:9] == b"\0\0\0\0{":
            return False
        reader = Reader(file, data)
        head = reader.head(0, reader.size)
        if head.family is Family.EXT:
            return head.code in (EXT_ARRAY, EXT_NUMPY_SCALAR) and data[head.body : head.body + 1] == b"\x93"
        if head.family is not Family.MAP:
            return False
        if not head.value:
            return reader.size == head.body
        key = reader.head(head.body, reader.size)
        if key.family is Family.INT:
            return reader.head(key.body, reader.size).family in (Family.MAP, Family.EXT)
        return key.family is Family.TEXT and b"\0" not in data[key.body : key.body + min(key.value, 1000)]


# Directories of steps --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Steps:
    """The checkpoints of one prefix in a directory.

    Attributes:
      files: the file of each step.
      directories: steps that are directories: newer versions of flax write those, with Orbax.
      fractional: names whose step is no whole number.
    """

    files: dict[int, FilePath] = field(default_factory=dict)
    directories: list[int] = field(default_factory=list)
    fractional: list[str] = field(default_factory=list)


def _find_steps(directory: FilePath) -> dict[str, _Steps]:
    """The checkpoints in ``directory`` by prefix; only prefixes with a file that looks like flax's.

    One such file is enough, so that a damaged latest step is opened and refused rather than passed over in silence.
    """
    try:
        children = sorted(directory.iterdir(), key=lambda child: (len(child.name), child.name))
    except OSError as error:
        problem = error.strerror or str(error)
        raise UnreadableCheckpoint(f"{directory} cannot be read: {problem}.", "Check its permissions.") from None
    if any(child.name in FOREIGN_MARKERS for child in children):
        return {}
    found: defaultdict[str, _Steps] = defaultdict(_Steps)
    for child in children:
        match = _STEP_NAME.fullmatch(child.name)
        if match is None or TEMPORARY.match(child.name):
            continue
        steps, number = found[match["prefix"]], match["step"]
        if not number.isdecimal():
            steps.fractional.append(child.name)
        elif child.is_dir():
            steps.directories.append(int(number))
        else:
            # Of checkpoint_5 and checkpoint_05, flax itself would write the shorter, which comes first.
            steps.files.setdefault(int(number), child)
    return {prefix: steps for prefix, steps in found.items() if any(map(_looks_like_flax, steps.files.values()))}


def _choose_step(directory: FilePath, step: int | None) -> tuple[_Steps, int]:
    found = _find_steps(directory)
    if not found:
        raise UnreadableCheckpoint(
            f"{directory} holds no flax msgpack checkpoint: expected files such as checkpoint_100, without Orbax files "
            "beside them.",
            "Name the msgpack file itself, or the directory that holds the checkpoints of all steps.",
        )
    if len(found) > 1:
        names = ", ".join(f"{prefix}{max(steps.files)}" for prefix, steps in sorted(found.items()))
        raise UsageError(f"{directory} holds several series of checkpoints: {names}", "Name one of the files.")
    (steps,) = found.values()
    latest = max(steps.files)
    if step is None and max(steps.directories, default=-1) > latest:
        raise UsageError(
            f"{directory} mixes msgpack files up to step {latest} with directories up to step {max(steps.directories)}",
            f"Name one of the directories, or choose a file with --step (--step {latest} is the latest).",
        )
    if step is not None and step not in steps.files:
        kind = "a directory, no msgpack file" if step in steps.directories else "not there"
        raise UsageError(
            f"{directory}: step {step} is {kind}; msgpack files: {', '.join(map(str, sorted(steps.files)))}",
            "Choose another --step, or name the checkpoint itself.",
        )
    return steps, latest if step is None else step
