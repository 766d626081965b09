"""A checkpoint of the target's framework in the place of its model: its names, shapes, dtypes and layout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path as FilePath

from converter.dialects import readings, unreadable
from converter.dialects.dialect import FRAMEWORK_NAMES, Dialect, Framework
from converter.errors import ConverterError, UsageError
from converter.models import Model, ModelVariable
from converter.opening import open_named
from converter.rules.variable_types import assign_collections
from converter.training_state import Part
from converter.tree import Tree


@dataclass(frozen=True, slots=True)
class Template:
    """What a checkpoint tells of the one that is to be made.

    Attributes:
      layout: the dialect it is written in.
      model: its variables, as a model would declare them; the layers they belong to are not known.
    """

    layout: Dialect
    model: Model


def read_template(path: str | os.PathLike[str] | None, framework: Framework) -> Template | None:
    """Reads the metadata of a checkpoint of the given framework.

    Raises:
      UnreadableCheckpoint, UnsupportedCheckpoint: it cannot be read.
      UsageError: it does not belong to the framework.
    """
    if path is None:
        return None
    tree = _opened(path)
    layout = next((dialect for dialect in readings(tree) if dialect.framework == framework), None)
    if layout is None:
        found = next((dialect.title for dialect in readings(tree)), unreadable(tree))
        raise UsageError(
            f"--like {path}: expected {FRAMEWORK_NAMES[framework]}, as the result will be, found {found}",
            "Name a checkpoint of the framework that is converted to.",
        )
    state = layout.lift(tree).state
    if framework == "nnx":
        state = assign_collections(state, ())
    variables = tuple(
        ModelVariable(slot.collection, slot.path, held.leaf.spec, slot.path, trainable=slot.collection == "params")
        for slot, held in state.items()
        if slot.part is Part.VARIABLES
    )
    return Template(layout, Model(framework, None, variables, typed=framework == "linen"))


def _opened(path: str | os.PathLike[str]) -> Tree:
    """The metadata of the checkpoint; errors say which option it was named by."""
    try:
        return open_named(FilePath(path)).tree
    except ConverterError as error:
        raise type(error)(f"--like {error.message}", error.advice) from error
