"""Where an Orbax checkpoint keeps its tree: from the path a user names to the directory of one item.

Four levels occur, and a user may name any of them:

* a root with one directory per step: ``100``, ``000100`` or ``<prefix>_100`` (``CheckpointManager``, the v1
  ``Checkpointer``, ``flax.training.checkpoints``);
* a step directory with one directory per item: ``default``, ``state``, ``params`` … (the root of a v1 save is one);
* an item directory, which holds the tree: ``_METADATA`` beside ``manifest.ocdbt`` or one directory per array;
* an item directory of Orbax 0.1-0.2 and T5X: a msgpack file ``checkpoint`` instead of ``_METADATA``.

Measured on checkpoints written by orbax-checkpoint 0.1 to 0.12.8. Nothing here reads more than names and small files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from converter.errors import SeveralItems, UnreadableCheckpoint, UsageError
from converter.formats.checkpoint import Attached
from converter.formats.orbax.metadata import LEGACY_FILE, METADATA_FILE, handler_of, read_step_metadata

MANIFEST = "manifest.ocdbt"
INDICATOR = "orbax.checkpoint"
COMMITTED = "commit_success.txt"
STEP_MARKERS = ("_CHECKPOINT_METADATA", INDICATOR, COMMITTED)
UNFINISHED = ".orbax-checkpoint-tmp"
DEFAULT_ITEMS = ("default", "state", "pytree")
"""Items that Orbax itself names where the user gave no name: CheckpointManager, v1 ``save``, earlier v1 releases."""

JSON_FILES = ("metadata", "data.json", "metrics")
"""The file of a JSON item: as Orbax, its v1 and the metrics of a CheckpointManager call it."""

_T5X_UNFINISHED = re.compile(r"checkpoint_\d+\.tmp-\d+")

_STEP_NAME = re.compile(r"(?:.*_)?(?P<step>\d+)")


@dataclass(frozen=True, slots=True)
class Location:
    """One item, and what surrounds it.

    Attributes:
      directory: the item directory.
      root: what the user named, links followed; the checkpoint may not lead out of it.
      steps: the finished steps below ``root``, ascending.
      step: the chosen step.
      items: names of the items of that step that are pytrees.
      item: the chosen item.
      others: items that are no pytrees, with what they are.
      unfinished: names of unfinished saves that were passed over.
      saved: the content of ``_CHECKPOINT_METADATA``, empty where there is none.
    """

    directory: FilePath
    root: FilePath
    steps: tuple[int, ...] = ()
    step: int | None = None
    items: tuple[str, ...] = ()
    item: str | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()
    saved: Mapping[str, Any] = field(default_factory=dict)


def looks_like_orbax(path: FilePath) -> bool:
    """Whether ``path`` is an item, a step or a root of steps; reads names, and one byte of a file ``checkpoint``."""
    try:
        if not path.is_dir():
            return False
        if is_item(path) or _is_marked(path) or _is_unfinished(path.name) or _unfinished_saves(path):
            return True
        return bool(_steps(path)) or any(is_item(child) for child in _directories(path))
    except OSError:
        return False


def is_one_checkpoint(directory: FilePath) -> bool:
    """Whether the directory is an item or a step, so that all that stands in it belongs to one checkpoint."""
    if is_item(directory) or _is_marked(directory):
        return True
    inside = list(directory.iterdir())  # steps of older releases have no mark
    return bool(inside) and not _steps(directory) and all(is_item(each) or _is_json_item(each) for each in inside)


def _is_json_item(directory: FilePath) -> bool:
    return any((directory / name).is_file() for name in JSON_FILES)


def is_item(directory: FilePath) -> bool:
    """Whether the directory itself holds a tree, of any age of Orbax."""
    return (
        (directory / METADATA_FILE).is_file()
        or (directory / MANIFEST).is_file()
        or _is_msgpack(directory / LEGACY_FILE)
    )


def _is_msgpack(file: FilePath) -> bool:
    """Tells the tree of Orbax 0.1-0.2 from TensorFlow's text file and PyTorch's zip or pickle of the same name."""
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return opened.read(1) > b"\x80"


def locate(path: FilePath, step: int | None = None, item: str | None = None) -> Location:
    """Finds the item directory that ``path``, ``step`` and ``item`` name together.

    Raises:
      UnreadableCheckpoint: no Orbax checkpoint there, or only unfinished saves.
      UsageError: no such step or item; several items and none chosen.
    """
    if not path.is_dir():
        what = "is a file; an Orbax checkpoint is a directory" if path.exists() else "does not exist"
        raise UnreadableCheckpoint(f"{path} {what}")
    root = FilePath(os.path.abspath(path))
    if _is_unfinished(root.name) or UNFINISHED in root.parent.name:
        raise _unfinished(f"{path} is an unfinished save")
    steps = {} if is_item(root) or _is_marked(root) else _steps(root)
    chosen = _choose_step(root, steps, step)
    directory = root if chosen is None else steps[chosen][0]
    where: dict[str, Any] = {"root": root.resolve(), "steps": tuple(steps), "step": chosen}
    if chosen is not None:
        where["unfinished"] = _unfinished_saves(root)
    if is_item(directory):
        if item is not None:
            raise UsageError(f"{directory} is one item itself, so item {item!r} cannot be chosen", "Leave out --item.")
        # What is saved in one go shares one such file: it may lie in the step directory that holds this item.
        saved = read_step_metadata(directory) or read_step_metadata(directory.parent)
        return Location(directory, saved=saved, **where)
    saved = read_step_metadata(directory)
    trees, others = _items(directory, saved)
    name = _choose_item(directory, trees, others, item)
    return Location(directory / name, items=tuple(trees), item=name, others=others, saved=saved, **where)


def choices(path: FilePath, step: int | None = None) -> tuple[str, ...]:
    """Names of the items of a step that are trees; none where ``path`` or its step is an item itself.

    Raises:
      UnreadableCheckpoint, UsageError: as ``locate``.
    """
    root = FilePath(os.path.abspath(path))
    if is_item(root) or _is_unfinished(root.name):
        return ()
    steps = {} if _is_marked(root) else _steps(root)
    chosen = _choose_step(root, steps, step)
    directory = root if chosen is None else steps[chosen][0]
    return () if is_item(directory) else tuple(_items(directory, read_step_metadata(directory))[0])


def step_names(path: FilePath) -> list[tuple[int, str]]:
    """The steps below ``path`` and the names of their directories; none where it is an item or a step itself."""
    steps = {} if is_item(path) or _is_marked(path) else _steps(path)
    return [(step, child.name) for step, children in steps.items() for child in children]


def attached(location: Location) -> dict[str, Attached]:
    """What stands beside the chosen item and is no tree: JSON, and what ``_CHECKPOINT_METADATA`` knows a reader of."""
    handlers = location.saved.get("item_handlers")
    known = {name: str(text) for name, text in handlers.items()} if isinstance(handlers, dict) else {}
    return {
        name: Attached(location.directory.parent / name, kind, known.get(name, ""))
        for name, kind in location.others.items()
        if kind == "JSON" or name in known
    }


# Steps -----------------------------------------------------------------------------------------------------------


def _steps(root: FilePath) -> dict[int, list[FilePath]]:
    """Directories of steps by number, ascending. Items called ``model_0`` beside an item ``opt`` are no steps."""
    steps: dict[int, list[FilePath]] = {}
    for child in _directories(root):
        match = _STEP_NAME.fullmatch(child.name)
        if match is None:
            if is_item(child):
                return {}
        elif is_item(child) or _is_marked(child) or any(is_item(item) for item in _directories(child)):
            steps.setdefault(int(match["step"]), []).append(child)
    return dict(sorted(steps.items()))


def _choose_step(root: FilePath, steps: Mapping[int, list[FilePath]], step: int | None) -> int | None:
    if step is None:
        if not steps:
            return None
        series = {child.name.rstrip("0123456789") for children in steps.values() for child in children}
        if len(series) > 1:
            names = ", ".join(f"{prefix}<step>" for prefix in sorted(series))
            raise UsageError(f"{root} holds several series of steps: {names}", "Name the directory of one step.")
        step = max(steps)
    if step not in steps:
        for name in _unfinished_saves(root):
            match = _STEP_NAME.fullmatch(name.partition(UNFINISHED)[0].partition(".tmp-")[0])
            if match is not None and int(match["step"]) == step:
                raise _unfinished(f"step {step} of {root} is an unfinished save")
        if not steps:
            raise UsageError(f"{root} has no step directories, so step {step} cannot be chosen", "Leave out --step.")
        listed = ", ".join(map(str, steps))
        raise UsageError(f"{root} has no step {step}; its steps: {listed}", "Choose one of them with --step.")
    if len(steps[step]) > 1:
        names = ", ".join(child.name for child in steps[step])
        raise UsageError(f"{root} holds step {step} several times: {names}", "Name the directory of one of them.")
    return step


# Items -----------------------------------------------------------------------------------------------------------


def _items(directory: FilePath, saved: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Names of the pytrees, and of the other items with what they are."""
    trees: list[str] = []
    others: dict[str, str] = {}
    for child in _directories(directory):
        handler = handler_of(saved, child.name)
        # Orbax saves an item that is one array as a tree with one leaf of its own making, ``checkpoint``.
        if is_item(child) and handler != "ArrayCheckpointHandler":
            trees.append(child.name)
        elif _is_json_item(child):
            others[child.name] = "JSON"
        else:
            others[child.name] = handler.removesuffix("CheckpointHandler").lower() or "of an unknown kind"
    return trees, others


def _choose_item(directory: FilePath, trees: list[str], others: Mapping[str, str], item: str | None) -> str:
    if not trees:
        if _unfinished_saves(directory):
            raise _unfinished(f"{directory} holds only unfinished saves")
        listed = ", ".join(f"{name} ({what})" for name, what in others.items())
        raise UnreadableCheckpoint(
            f"{directory} holds no tree of arrays" + (f", only {listed}" if listed and _is_marked(directory) else ""),
            "Name the directory of an Orbax checkpoint: it holds _METADATA, items with _METADATA, or steps with items.",
        )
    advice = "Choose one with " + " or ".join(f"--item {name}" for name in trees) + "."
    if item is None:
        named = trees if len(trees) == 1 else [name for name in DEFAULT_ITEMS if name in trees]
        if not named:
            raise SeveralItems(f"{directory} holds several items: {', '.join(trees)}", advice, trees)
        return named[0]
    if item in others:
        raise UsageError(f"item {item!r} of {directory} is no tree of arrays but {others[item]}", advice)
    if item not in trees:
        raise UsageError(f"{directory} has no item {item!r}; its items: {', '.join(trees)}", advice)
    return item


# Files -----------------------------------------------------------------------------------------------------------


def _directories(directory: FilePath) -> Iterator[FilePath]:
    """Subdirectories by name, without unfinished saves."""
    with os.scandir(directory) as entries:
        names = sorted(entry.name for entry in entries if not _is_unfinished(entry.name) and entry.is_dir())
    return (directory / name for name in names)


def _is_unfinished(name: str) -> bool:
    return UNFINISHED in name or _T5X_UNFINISHED.fullmatch(name) is not None


def _unfinished_saves(directory: FilePath) -> tuple[str, ...]:
    with os.scandir(directory) as entries:
        return tuple(sorted(entry.name for entry in entries if _is_unfinished(entry.name)))


def _unfinished(message: str) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(
        message, "A save gets its name when it is complete. Use another step, or save the checkpoint again."
    )


def _is_marked(directory: FilePath) -> bool:
    return any((directory / marker).is_file() for marker in STEP_MARKERS)
