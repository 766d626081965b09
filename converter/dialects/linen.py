"""Linen's layouts of a model: a variables dict, bare params, and the boxes of partitioned parameters."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from converter.dialects.dialect import EMPTY_REASON, Framework, Ignored, Lifted
from converter.paths import Path
from converter.training_state import PARAMS, Held, Part, Slot, TrainingState
from converter.tree import Leaf, LeafKind, Tree

BOX_KEY = "value"
"""``nn.Partitioned`` and ``nn.LogicallyPartitioned`` keep their array in this field; savers add it to the path and
write none of the metadata."""

BOXED_NAMES = frozenset({"kernel", "bias", "scale", "embedding"})
"""Names of Linen's own parameters. A single child ``value`` below one of them shows that a checkpoint is boxed: these
are never modules."""


def boxed_paths(tree: Tree) -> frozenset[Path]:
    """The paths of all boxed parameters, without their ``value``; none unless the boxes are beyond doubt.

    A box is a node whose only child is the leaf ``value``. A parameter that is itself called ``value`` looks the same,
    so the checkpoint counts as boxed only if one of Linen's own parameters is.
    """
    boxes = frozenset([path[:-1] for path in tree if path and path[-1] == BOX_KEY and tree.is_alone(path)])
    return boxes if any(box[-1] in BOXED_NAMES for box in boxes if box) else frozenset()


def unboxed(tree: Tree) -> tuple[list[tuple[Path, Leaf]], tuple[Ignored, ...]]:
    """The leaves of a Linen tree that hold something, by their path without boxes; and the ones that hold nothing."""
    boxes = boxed_paths(tree)
    full: list[tuple[Path, Leaf]] = []
    empty: list[Ignored] = []
    for path, leaf in tree.items():
        plain = path[:-1] if path[-1:] == (BOX_KEY,) and path[:-1] in boxes else path
        if leaf.spec.kind is LeafKind.EMPTY:
            empty.append(Ignored(plain, EMPTY_REASON))
        else:
            full.append((plain, leaf))
    return full, tuple(empty)


def inner_path(path: Path, boxed: Collection[Path]) -> Path:
    """A variable's path with the key of its box if it has one."""
    return (*path, BOX_KEY) if path in boxed else path


@dataclass(frozen=True, slots=True)
class LinenVariables:
    """``{"params": {…}, "batch_stats": {…}, …}``, as ``module.init`` returns it and ``module.apply`` wants it.

    Attributes:
      boxed: paths of variables, inside their collection, that are written with the ``value`` of a box.
    """

    boxed: frozenset[Path] = frozenset()
    framework: ClassVar[Framework] = "linen"
    title: ClassVar[str] = "Linen variables"

    def lift(self, tree: Tree) -> Lifted:
        full, empty = unboxed(tree)
        leaves = [(Slot(Part.VARIABLES, str(path[0]), path[1:]), Held(path, leaf)) for path, leaf in full]
        return Lifted(TrainingState(leaves), empty)

    def lower(self, slot: Slot) -> Path | None:
        if slot.part is not Part.VARIABLES:
            return None
        return (slot.collection, *inner_path(slot.path, self.boxed))


@dataclass(frozen=True, slots=True)
class LinenParams:
    """The inside of ``variables["params"]`` alone, as many savers and Hugging Face's Flax models write it."""

    boxed: frozenset[Path] = frozenset()
    framework: ClassVar[Framework] = "linen"
    title: ClassVar[str] = "Linen params (without the collection level)"

    def lift(self, tree: Tree) -> Lifted:
        full, empty = unboxed(tree)
        leaves = [(Slot(Part.VARIABLES, PARAMS, path), Held(path, leaf)) for path, leaf in full]
        return Lifted(TrainingState(leaves), empty)

    def lower(self, slot: Slot) -> Path | None:
        if slot.part is not Part.VARIABLES or slot.collection != PARAMS:
            return None
        return inner_path(slot.path, self.boxed)
