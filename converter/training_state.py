"""The neutral training state: the one place where Linen's collections and NNX's Variable types meet.

Whatever the framework, a checkpoint holds variables grouped by collection, and perhaps an optimizer state, a step and
extra fields. A *slot* says which of these a leaf is. Dialects translate between paths of a file and slots; rules change
the names inside slots; neither needs to know the other.
"""

from __future__ import annotations

import enum
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from converter.paths import Path, format_path
from converter.tree import Leaf

PARAMS, CACHE = "params", "cache"

COLLECTIONS = ("params", "batch_stats", "cache", "intermediates", "perturbations")
"""The collections of Linen's and NNX's own layers (flax/nnx/variablelib.py registers a Variable type for each)."""

RNG_COLLECTIONS = ("RngKey", "RngCount")
"""Where kept NNX random state stands on the Linen side: collections named after the Variable types, as
``flax.nnx.bridge.ToLinen`` names the collections of types that have none."""


class Part(enum.Enum):
    """The four parts of a training state."""

    __hash__ = object.__hash__  # slots are hashed by the ten thousand, and that of Enum is written in Python

    VARIABLES = "variables"
    OPT_STATE = "opt_state"
    STEP = "step"
    EXTRA = "extra"


class Slot(NamedTuple):
    """Where a leaf belongs, whatever the framework.

    Attributes:
      part: which part of the training state.
      collection: for variables their collection, "" while it is undecided; for a leaf of an optimizer state or extra
        field that mirrors a variable, the collection of that variable; else "".
      path: the path of the variable inside its collection; empty for leaves that mirror none.
      prefix: what stands before ``path``: the way through the optax state, or the name of the extra field and what
        follows it.
    """

    part: Part
    collection: str = ""
    path: Path = ()
    prefix: Path = ()

    def __str__(self) -> str:
        match self.part:
            case Part.VARIABLES:
                return format_path((self.collection or "?", *self.path))
            case Part.OPT_STATE:
                return format_path(("opt_state", *self.prefix, *self.path))
            case Part.STEP:
                return "step"
            case Part.EXTRA:
                return format_path((*self.prefix, *self.path))

    @property
    def is_mirror(self) -> bool:
        """Whether this leaf follows a variable: whatever happens to the variable happens to it."""
        return self.part is not Part.VARIABLES and bool(self.path)

    def renamed(self, collection: str, path: Path) -> Slot:
        return Slot(self.part, collection, path, self.prefix)


@dataclass(slots=True)
class Held:
    """A leaf of a training state and the path it has in the source checkpoint, as ``inspect`` prints it."""

    source: Path
    leaf: Leaf


class TrainingState(Mapping[Slot, Held]):
    """All leaves of a checkpoint by slot.

    Two leaves that claim one slot are kept apart in ``collisions`` (slot, first source, second source): the plan
    reports them together with all its other problems.
    """

    def __init__(self, leaves: Iterable[tuple[Slot, Held]]) -> None:
        given = list(leaves)
        self._leaves: dict[Slot, Held] = dict(given)
        self.collisions: list[tuple[Slot, Path, Path]] = []
        if len(self._leaves) < len(given):
            self._leaves = {}
            for slot, held in given:
                first = self._leaves.setdefault(slot, held)
                if first is not held:
                    self.collisions.append((slot, first.source, held.source))

    def __getitem__(self, slot: Slot) -> Held:
        return self._leaves[slot]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def items(self) -> ItemsView[Slot, Held]:
        return self._leaves.items()

    def has(self, part: Part) -> bool:
        return any(slot.part is part for slot in self)
