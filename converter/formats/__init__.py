"""The formats, and choosing one for a path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path as FilePath

from converter.errors import DestinationError, UnreadableCheckpoint, UsageError
from converter.formats.checkpoint import Checkpoint, Format, Source
from converter.formats.msgpack import MsgpackFormat
from converter.formats.msgpack.huggingface import HuggingFaceFormat
from converter.formats.npz import NpzFormat
from converter.formats.orbax import OrbaxFormat
from converter.formats.safetensors import SafetensorsFormat

_ORBAX, _MSGPACK = OrbaxFormat(), MsgpackFormat()

FORMATS: dict[str, Format] = {
    "orbax": _ORBAX,
    "orbax-v1": OrbaxFormat(v1=True),
    "msgpack": _MSGPACK,
    "hf-msgpack": HuggingFaceFormat(),
    "safetensors": SafetensorsFormat(),
}
"""What is written."""

ORBAX_LAYOUTS = frozenset({"orbax", "orbax-v1"})

SOURCES: dict[str, Source] = {
    "orbax": _ORBAX,
    "msgpack": _MSGPACK,
    "safetensors": FORMATS["safetensors"],
    "npz": NpzFormat(),
}
"""What is read, in the order in which a path is tried."""

FORMAT_TITLES: dict[str, str] = {
    "orbax": "an Orbax checkpoint",
    "orbax-v1": "an Orbax checkpoint",
    "msgpack": "a msgpack file",
    "hf-msgpack": "a model directory of Hugging Face's",
    "safetensors": "a safetensors file",
}

SUFFIXES: dict[str, str] = {".msgpack": "msgpack", ".safetensors": "safetensors", ".npz": "npz"}
"""Destinations with such a name get that format; all others become Orbax directories."""

SHARDED = ("hf-msgpack", "safetensors")
"""Formats that spread a checkpoint over several files where they are asked to."""

STEP_NAMES: dict[str, str] = {"orbax": "{}", "orbax-v1": "{}", "msgpack": "checkpoint_{}"}
"""How one of several steps is called: by Orbax's CheckpointManager, and by ``flax.training.checkpoints``."""

_STEPS: dict[str, Callable[[FilePath], list[tuple[int, str]]]] = {
    "orbax": _ORBAX.step_names,
    "msgpack": _MSGPACK.step_names,
}
"""What tells the steps of a directory and how they are called there."""


def open_checkpoint(path: FilePath, *, step: int | None = None, item: str | None = None) -> Checkpoint:
    """Opens a checkpoint of any format; reads metadata only.

    Args:
      path: a file or directory.
      step: which step, where the directory holds several; the latest by default.
      item: which item (pytree), where a step holds several.

    Raises:
      UnreadableCheckpoint: missing, empty, damaged, unfinished, or nothing that looks like a checkpoint.
      UnsupportedCheckpoint: a variety that cannot be read.
      UsageError: no such step or item.
    """
    if not os.path.lexists(path):
        raise UnreadableCheckpoint(f"{path}: no such file or directory", _nearby(path))
    if not os.path.exists(path):
        raise UnreadableCheckpoint(f"{path} is a link to {os.readlink(path)}, which does not exist", _nearby(path))
    if not path.is_file() and not path.is_dir():
        raise UnreadableCheckpoint(f"{path} is no file or directory but a pipe, socket or device", "Name a checkpoint.")
    if not os.access(path, os.R_OK):
        raise UnreadableCheckpoint(f"{path}: no permission to read it", "Ask its owner.")
    if path.is_file() and path.stat().st_size == 0:
        raise UnreadableCheckpoint(f"{path} is an empty file", "Its writer was probably interrupted: save it again.")
    for format in SOURCES.values():
        if format.sniff(path):
            return format.open(path, step=step, item=item)
    raise UnreadableCheckpoint(f"{path} is no checkpoint: expected {_EXPECTED}, found {_found(path)}", _advice(path))


def list_items(path: FilePath, step: int | None = None) -> tuple[str, ...]:
    """Names of the items of a step that are trees, where there is a choice; Orbax alone has items.

    Raises:
      UnreadableCheckpoint, UsageError: as ``open_checkpoint``.
    """
    readable = path.is_dir() and os.access(path, os.R_OK)
    return _ORBAX.items(path, step) if readable and _ORBAX.sniff(path) else ()


def takes_along(format: str, *, as_step: bool) -> bool:
    """Whether a destination has a place for what stands beside the tree."""
    return format == "orbax-v1" or (format in ORBAX_LAYOUTS and as_step)


def _advice(path: FilePath) -> str:
    from converter.formats.foreign import recognised

    foreign = recognised(path)
    if foreign is not None:
        return foreign.advice
    inside = [entry for entry in sorted(path.iterdir()) if _is_checkpoint(entry)] if path.is_dir() else []
    return f"Name the checkpoint itself: {inside[0]}" if inside else "Name a checkpoint."


def _is_checkpoint(path: FilePath) -> bool:
    return os.access(path, os.R_OK) and any(format.sniff(path) for format in SOURCES.values())


_EXPECTED = (
    "an Orbax directory (with _METADATA, or with steps or items), a msgpack file of flax.serialization, "
    "a safetensors file or its index, or an npz file"
)


def _nearby(path: FilePath) -> str:
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))[:8]
    return f"{parent} has {', '.join(names)}." if names else f"{parent} is empty."


def _found(path: FilePath) -> str:
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        listed = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
        return f"a directory with {listed}" if names else "an empty directory"
    from converter.formats.foreign import recognised

    foreign = recognised(path)
    if foreign is not None:
        return foreign.title
    with path.open("rb") as file:
        return f"a file that begins with {file.read(8).hex(' ')}"


def destination_format(destination: FilePath, name: str | None = None) -> str:
    """The name of the format asked for, or of the one that the destination's suffix stands for.

    Raises:
      UsageError: no such format, or one that is only read.
    """
    chosen = SUFFIXES.get(destination.suffix, "orbax") if name is None else name
    if chosen in FORMATS:
        return chosen
    problem = f"{chosen} files are read, not written" if chosen in SOURCES else f"no format {chosen!r}"
    where = f"{destination}: " if name is None else ""
    raise UsageError(f"{where}{problem}", f"Choose one of {', '.join(FORMATS)} with --to-format.")


def step_destination(root: FilePath, format: str, step: int) -> FilePath:
    """Where a step is written below ``root``, which may hold other steps already.

    Raises:
      UsageError: the format has no steps, or the number is negative.
      DestinationError: ``root`` is a checkpoint itself, or calls its steps otherwise.
    """
    if format not in STEP_NAMES:
        names = ", ".join(STEP_NAMES)
        raise UsageError(f"{FORMAT_TITLES[format]} is no step of others", f"Leave out --as-step, or choose {names}.")
    if step < 0:
        raise UsageError(f"cannot write step {step}: steps are counted from 0", "Choose another number.")
    if root.is_dir():
        _refuse_as_root(root, format)
    return root / STEP_NAMES[format].format(step)


def _refuse_as_root(root: FilePath, format: str) -> None:
    kind = next((name for name, each in SOURCES.items() if each.sniff(root)), None)
    if kind is None:
        return
    names = _STEPS[kind](root) if kind in _STEPS else []
    own = STEP_NAMES[format]
    if not names:
        raise DestinationError(f"{root} is a checkpoint itself, not a directory of steps", "Choose another directory.")
    others = [name for step, name in names if name != own.format(step)]
    if others:
        raise DestinationError(
            f"{root} has steps of other names ({', '.join(others[:3])}) than {own.format('<step>')}",
            "Readers would take them for two series: choose another directory.",
        )
