"""What a rule file says, as values."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

from converter.paths import Path
from converter.rules.language.patterns import PathPattern, PatternIndex
from converter.rules.language.steps import Stage
from converter.tree import LeafSpec

Default = Literal["refuse", "auto", "drop"]
"""What happens to leaves that no rule covers."""

FILL_MODEL: Literal["model"] = "model"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
      where: how messages call it (``map.toml, line 12``).
      linen: the pattern of its Linen variables, below the collection; None for a rule of the NNX side only.
      nnx: the pattern of its NNX variables; None for a rule of the Linen side only.
      collection: the collection of its variables; None where each keeps its own.
      stages: what is done to the arrays on the way to NNX.
      drop: why its variables are left behind, for a rule of one side.
      fill: the number that its variables hold, or ``model``, for a rule of one side.
      leaf: what its filled variables are.
    """

    where: str
    linen: PathPattern | None = None
    nnx: PathPattern | None = None
    collection: str | None = None
    stages: tuple[Stage, ...] = ()
    drop: str | None = None
    fill: float | Literal["model"] | None = None
    leaf: LeafSpec | None = None

    def pattern(self, side: Literal["linen", "nnx"]) -> PathPattern | None:
        return self.linen if side == "linen" else self.nnx


@dataclass(frozen=True)
class RuleSet:
    """All rules of a file, in its order.

    Attributes:
      rules: the rules.
      default: what happens to leaves that none of them covers.
      source: the name of the file, or ``the rules``.
      digest: sha256 of what was read.
    """

    rules: tuple[Rule, ...]
    default: Default = "refuse"
    source: str = "the rules"
    digest: str = field(default="", compare=False)

    def collection_of(self, nnx_path: Path) -> str | None:
        """The collection that the rules give an NNX variable; None where they give none or several."""
        collected, index = self._collected
        found = {collected[at][0] for at in index.matching(nnx_path) if collected[at][1].match(nnx_path) is not None}
        return found.pop() if len(found) == 1 else None

    @functools.cached_property
    def _collected(self) -> tuple[list[tuple[str, PathPattern]], PatternIndex]:
        """Collection and NNX pattern of all rules that have both, and an index of these patterns."""
        found = [(rule.collection, rule.nnx) for rule in self.rules if rule.collection is not None and rule.nnx]
        return found, PatternIndex([pattern for _, pattern in found])
