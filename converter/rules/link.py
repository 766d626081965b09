"""Which variables of one framework are which of the other: links between names, with what happens to the arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from converter.paths import Path, format_path
from converter.rules.operations import REWRAP, Operation

if TYPE_CHECKING:
    from converter.models import ModelVariable

Name = tuple[str, Path]
"""Collection and path of a variable."""


def format_name(name: Name) -> str:
    """``params/Dense_0/kernel``; variables whose collection is not known print their path alone."""
    collection, path = name
    return format_path((collection, *path) if collection else path)


@dataclass(slots=True)
class Link:
    """Source variables, target variables, and the operation that makes these from those.

    Attributes:
      sources: names in the source, in the operation's order; none where the values are invented.
      targets: names in the target, in the order of the operation's results; none where the sources are left behind.
      operation: what is done; it is done alike to everything that mirrors the sources in an optimizer state.
      beside: where there are no sources, a source variable of the same layer: whatever the optimizer keeps for it, it
        keeps for the invented one too.
      confidence: how sure it is, where it was read off the computation; empty where names or rules tell.
    """

    sources: tuple[Name, ...]
    targets: tuple[Name, ...]
    operation: Operation = REWRAP
    beside: Name | None = None
    confidence: str = ""

    def reversed(self) -> Link:
        """The same link in the other direction.

        Raises:
          NotInvertible: its operation loses something.
        """
        return Link(self.targets, self.sources, self.operation.inverse(), self.beside, self.confidence)

    def __str__(self) -> str:
        names = " ← ".join(" + ".join(map(format_name, side)) or "nothing" for side in (self.targets, self.sources))
        return f"{names} ({self.operation.name})" if self.operation.name else names


@dataclass(slots=True)
class Correspondence:
    """Everything that is known about which variable is which, and everything that does not fit.

    Attributes:
      links: every source variable stands in exactly one of them, unless a problem names it.
      problems: one line for each leaf or rule at fault, with the advice that settles it (may be empty).
      advice: what may settle all problems at once.
      dtypes: leaves that have another dtype than the target's model declares.
      notes: other differences that lose nothing.
      unfilled: variables of the target's model that no source fills, and that the model itself can.
    """

    links: list[Link] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unfilled: list[ModelVariable] = field(default_factory=list)

    def refuse(self, problem: str, advice: str = "") -> None:
        self.problems.append((problem, advice))

    def joined(self, other: Correspondence) -> Correspondence:
        """Both together."""
        return Correspondence(
            self.links + other.links,
            self.problems + other.problems,
            self.advice + other.advice,
            self.dtypes + other.dtypes,
            self.notes + other.notes,
            self.unfilled + other.unfilled,
        )

    def linked_sources(self) -> Iterable[Name]:
        return (name for link in self.links for name in link.sources)

    def linked_targets(self) -> Iterable[Name]:
        return (name for link in self.links for name in link.targets)
