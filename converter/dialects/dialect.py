"""What every dialect offers: one framework's way to lay out a training state as a tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from converter.paths import Path
from converter.training_state import Slot, TrainingState
from converter.tree import Tree

Framework = Literal["linen", "nnx"]

FRAMEWORK_NAMES: dict[Framework, str] = {"linen": "Linen", "nnx": "NNX"}


EMPTY_REASON = "empty: it holds no array"


@dataclass(frozen=True, slots=True)
class Ignored:
    """A source leaf that carries nothing to convert, and why."""

    source: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Lifted:
    """A tree read as a training state.

    Attributes:
      state: every leaf that has a meaning in both frameworks.
      ignored: bookkeeping and empty containers; none of them holds an array.
    """

    state: TrainingState
    ignored: tuple[Ignored, ...] = ()


class Dialect(Protocol):
    """A layout, already adjusted to one checkpoint (prefixes, wrappers, boxes)."""

    @property
    def framework(self) -> Framework:
        """Whose layout it is."""

    @property
    def title(self) -> str:
        """For people: ``Linen TrainState``, ``nnx.State`` …"""

    def lift(self, tree: Tree) -> Lifted:
        """Reads a tree of this layout as a training state. Leaves keep their ``fetch``."""

    def lower(self, slot: Slot) -> Path | None:
        """The path of a slot in this layout; None where the layout has no place for it."""
