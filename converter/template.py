"""A checkpoint of the target's framework in the place of its model: its names, shapes, dtypes and layout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path as FilePath

from converter.dialects import readings
from converter.dialects.dialect import FRAMEWORK_NAMES, Dialect, Framework
from converter.errors import UsageError
from converter.formats import open_checkpoint
from converter.models import Model, ModelVariable
from converter.rules.variable_types import assign_collections
from converter.training_state import Part


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
    tree = open_checkpoint(FilePath(path)).tree
    layout = next((dialect for dialect in readings(tree) if dialect.framework == framework), None)
    if layout is None:
        raise UsageError(
            f"--like {path}: expected a {FRAMEWORK_NAMES[framework]} checkpoint, as the result will be",
            "inspect shows what it holds.",
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
