"""What every format offers, and what opening a checkpoint tells without reading an array."""

from __future__ import annotations

import contextlib
import enum
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Protocol

from converter.errors import UnsupportedCheckpoint
from converter.paths import Path, format_path
from converter.tree import Tree

Progress = Callable[[int, int], None]
"""Called with the (bytes, leaves) done since the last call, after each piece of work."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How an array was spread over a mesh of devices when it was saved.

    Attributes:
      mesh: names and sizes of the axes of the mesh.
      partition: what each axis of the array was split over: a mesh axis, several of them, or None; there may be fewer
        than axes.
    """

    mesh: tuple[tuple[str, int], ...]
    partition: tuple[str | tuple[str, ...] | None, ...]

    def __str__(self) -> str:
        """As JAX writes a PartitionSpec: ``P('data', None)``."""
        return f"P({', '.join(map(repr, self.partition))})"

    @property
    def mesh_text(self) -> str:
        """``data=2, model=4``"""
        return ", ".join(f"{name}={size}" for name, size in self.mesh)


def _none_noted() -> Mapping[Path, Sharding]:
    return {}


PYTREE = "pytree"
"""The kind of an item that is a tree of arrays."""


@dataclass(frozen=True, slots=True)
class Attached:
    """Something beside the tree that is not converted and can go along as it is.

    Attributes:
      directory: where it lies.
      kind: what it is, for people (``JSON``).
      handler: the full name of the class that reads it; empty where the checkpoint does not tell.
    """

    directory: FilePath
    kind: str
    handler: str = ""

    @property
    def is_json(self) -> bool:
        return self.kind == "JSON"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One opened checkpoint: a lazy tree and where it was found.

    Attributes:
      path: what the user named.
      location: the file, or the directory of the item, that holds the tree.
      format: name of the format in ``converter.formats.FORMATS``.
      tree: the leaves; reading one is lazy.
      steps: the steps below ``path``, ascending; empty where ``path`` has no step directories.
      step: the chosen step.
      items: names of the items (pytrees) in the chosen step.
      item: the chosen item.
      kinds: what every item of the chosen step is, ``PYTREE`` or something else (``JSON``).
      shardings: reads how arrays were spread over devices, by path, where that is noted.
      facts: what else the file tells, for people (``{"layout": "OCDBT, zarr2", …}``).
      metadata: what its writer noted of it (JSON values), where the format has a place for that.
      attached: the items of the chosen step that are no trees of arrays.
      files: other files that belong to it, which neither ``path`` is nor lie below it.
      parts: the directories of items that are read as one, with where each of them stands in the tree; empty for one.
    """

    path: FilePath
    location: FilePath
    format: str
    tree: Tree
    steps: tuple[int, ...] = ()
    step: int | None = None
    items: tuple[str, ...] = ()
    item: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    shardings: Callable[[], Mapping[Path, Sharding]] = _none_noted
    facts: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    attached: Mapping[str, Attached] = field(default_factory=dict)
    files: tuple[FilePath, ...] = ()
    parts: Mapping[FilePath, Path] = field(default_factory=dict)


class Strategy(enum.Enum):
    """How the bytes of a leaf get to the destination; the value is how people read it."""

    __hash__ = object.__hash__  # there is one for every leaf, and that of Enum is written in Python

    RELINK = "relink"
    """They stay where they are on disk, and the destination names them (as far as the file system has links)."""
    COPY = "copy"
    """The system copies them from file to file as they are."""
    STREAM = "stream"
    """They are read, made anew and written, piece by piece."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How a destination is written.

    Attributes:
      copy: share no bytes with the source, even where the file system could.
      compress: compress arrays, where the format can and they do not stay as they are in a source of the same format.
      as_step: the destination is one step of the directory around it.
      max_shard: bytes of arrays in one file, where the format has several; None leaves it to the format.
      metadata: what to note of the checkpoint itself (JSON values), where the format has a place for that.
      attached: what goes along as it is, where the format has a place for that.
    """

    copy: bool = False
    compress: bool = False
    as_step: bool = False
    max_shard: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    attached: Mapping[str, Attached] = field(default_factory=dict)


PLAIN = Writing()


@dataclass(slots=True)
class Written:
    """What writing a destination came to.

    Attributes:
      digests: crc32c of the bytes of every streamed array in C order, taken on their way to the file.
      linked: bytes of the destination that are the source's own, on disk.
      copied: bytes that were copied from file to file.
      streamed: bytes that were written anew.
      unused: bytes of linked files that the destination does not name; they stay on disk as long as it does.
    """

    digests: dict[Path, int] = field(default_factory=dict)
    linked: int = 0
    copied: int = 0
    streamed: int = 0
    unused: int = 0

    def add(self, other: Written) -> None:
        """Adds what writing another part of the destination came to."""
        self.digests |= other.digests
        for name in ("linked", "copied", "streamed", "unused"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("linked", "copied", "streamed", "unused")}


class Source(Protocol):
    """A container on disk that can be read: knows bytes, knows nothing of Linen or NNX."""

    name: str

    def sniff(self, path: FilePath) -> bool:
        """Whether the existing ``path`` looks like this format; reads a few bytes or names at the most."""

    def open(self, path: FilePath, *, step: int | None = None, item: str | None = None) -> Checkpoint:
        """Reads the metadata of a checkpoint.

        Raises:
          UnreadableCheckpoint: damaged, truncated, unfinished.
          UnsupportedCheckpoint: a recognised variety that cannot be read.
          UsageError: no such step or item, or several items and none chosen.
        """


SHOWN_OBJECTIONS = 40


def refuse_objections(holder: str, objections: Mapping[Path, str]) -> None:
    """Raises everything that a format objects to, if anything.

    Args:
      holder: what cannot hold the leaves, with its article.
      objections: what ``Format.objections`` found, by the paths that the user knows.

    Raises:
      UnsupportedCheckpoint: lists the leaves at fault, the first 40 of them.
    """
    if not objections:
        return
    lines = [f"  {format_path(path)}: {why}" for path, why in objections.items()]
    shown = lines[:SHOWN_OBJECTIONS]
    if len(lines) > len(shown):
        shown.append(f"  … and {len(lines) - len(shown)} more")
    raise UnsupportedCheckpoint(
        "\n".join([f"{holder} cannot hold these leaves:", *shown]),
        f"Leave them behind with --drop '{format_path(next(iter(objections)))}' and so on, "
        "or choose another format with --to-format.",
    )


class Format(Source, Protocol):
    """A container that can be written too."""

    def objections(self, tree: Tree) -> Mapping[Path, str]:
        """Why the format cannot hold some leaves, by their path; found without reading arrays."""

    def strategies(self, tree: Tree, writing: Writing) -> Mapping[Path, Strategy]:
        """How ``write`` will move the bytes of every array of the tree; found without reading arrays."""

    def write(
        self,
        tree: Tree,
        destination: FilePath,
        progress: Progress,
        *,
        final: FilePath | None = None,
        writing: Writing = PLAIN,
    ) -> Written:
        """Writes ``tree`` to ``destination``, which does not exist; complete when it returns.

        Args:
          final: where the caller will move the result to, for formats that note their own path.
          writing: what the user wants of it.

        Raises:
          UnsupportedCheckpoint: a leaf that this format cannot hold.
          DestinationError: the file system refused.
        """


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Holds back Ctrl-C and SIGTERM while something is tidied up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
