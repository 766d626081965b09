"""Opening a checkpoint as a whole: where a step holds several items that belong together, they are one tree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as FilePath

from converter.dialects.items import join, may_join
from converter.errors import SeveralItems
from converter.formats import list_items, open_checkpoint
from converter.formats.checkpoint import Attached, Checkpoint

BESIDE = "tree"
"""What an attached item is called that could be converted, but is no part of the training state."""


def open_source(path: FilePath, *, step: int | None = None, item: str | None = None) -> Checkpoint:
    """Opens a checkpoint; without ``item`` all items of a step that belong together.

    Raises:
      as ``open_checkpoint``; also ``UsageError`` where items do not belong together and none of them is the default.
    """
    names = list_items(path, step) if item is None else ()
    if len(names) > 1 and may_join(names):
        joined = _open_together(path, step, names)
        if joined is not None:
            return joined
    return open_checkpoint(path, step=step, item=item)


def open_named(path: FilePath) -> Checkpoint:
    """As ``open_source``, where no option chooses an item of this checkpoint."""
    try:
        return open_source(path)
    except SeveralItems as error:
        error.advice = "Name the directory of one of them, below that of its step."
        raise


def _open_together(path: FilePath, step: int | None, names: tuple[str, ...]) -> Checkpoint | None:
    opened = {name: open_checkpoint(path, step=step, item=name) for name in names}
    joined = join({name: each.tree for name, each in opened.items()})
    if joined is None:
        return None
    first = opened[next(iter(joined.places))]
    beside = {name: Attached(opened[name].location, BESIDE) for name in joined.beside}
    attached = {**first.attached, **beside}
    others = ", ".join(f"{name} ({each.kind})" for name, each in attached.items())
    facts = {**first.facts, "other items": others} if others else dict(first.facts)
    if len(joined.places) == 1:
        return replace(first, facts=facts, attached=attached)
    shown = ((name, "/".join(place)) for name, place in joined.places.items())
    together = ", ".join(f"{name} as {place}" if place else name for name, place in shown)
    return replace(
        first,
        location=first.location.parent,
        tree=joined.tree,
        item=None,
        facts={"read together": together, **facts},
        attached=attached,
        parts={opened[name].location: place for name, place in joined.places.items()},
    )
