"""The plan of a conversion: what every target leaf is made of, and everything that is lost or invented.

A plan is complete before any array is read. Printing it is what ``--dry-run`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from converter.dialects.dialect import FRAMEWORK_NAMES, Dialect, Ignored
from converter.errors import ConversionRefused
from converter.folding import fold
from converter.rules.operations import Operation
from converter.training_state import Held
from converter.tree import Leaf, LeafKind, LeafSpec, Path, Tree, format_path


@dataclass(frozen=True, slots=True)
class Step:
    """One target leaf and where it comes from.

    Attributes:
      target: its path in the destination, wrappers included.
      operation: what is done to the sources; for most steps nothing but giving them another name.
      sources: the source leaves, in the operation's order; none where the value is filled in.
    """

    target: Path
    operation: Operation
    sources: tuple[Held, ...]

    @property
    def spec(self) -> LeafSpec:
        return self.operation.spec([held.leaf.spec for held in self.sources])

    def value(self) -> Any:
        """Reads the sources and applies the operation."""
        return self.operation.apply([held.leaf.fetch() for held in self.sources])


@dataclass(frozen=True, slots=True)
class Drop:
    """A source leaf that does not reach the destination, and the rule that says so."""

    source: Path
    spec: LeafSpec
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """An immutable list of steps with its losses, inventions, remarks and problems.

    Attributes:
      source: the dialect the source was read in.
      target: the dialect the destination is written in.
      steps: one for every target leaf, in the order of the source.
      drops: every leaf that is left behind.
      ignored: source entries that hold nothing (empty containers, bookkeeping).
      notes: what the user should know although nothing is lost.
      problems: why the conversion is refused; empty for a plan that can run.
      advice: what settles the problems.
    """

    source: Dialect
    target: Dialect
    steps: tuple[Step, ...]
    drops: tuple[Drop, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    advice: str = ""

    def check(self) -> None:
        """Raises ``ConversionRefused`` with all problems at once, if there are any."""
        if self.problems:
            count = f"{len(self.problems)} problem" + ("s" if len(self.problems) > 1 else "")
            raise ConversionRefused(
                f"{self.headline}: refused, {count}:", self.problems, self.advice, {"plan": self.to_json()}
            )

    def tree(self) -> Tree:
        """The target tree; each of its leaves is computed when it is fetched."""
        return Tree((step.target, Leaf(step.spec, step.value)) for step in self.steps)

    @property
    def headline(self) -> str:
        return f"{self.source.title} → {self.target.title}"

    @property
    def filled(self) -> tuple[Step, ...]:
        """The steps whose value stands in no source leaf."""
        return tuple(step for step in self.steps if not step.sources and step.spec.kind is not LeafKind.EMPTY)

    def text(self, *, problems: bool = True) -> str:
        """The plan for people: folded steps first, then drops, fills, notes and, if asked for, problems."""
        lines = [self.headline, ""]
        lines += fold((format_path(step.target), _origin(step), str(step.spec)) for step in self.steps)
        lines += _section("dropped", [(format_path(d.source), str(d.spec), d.reason) for d in self.drops])
        lines += _section("filled in", [(format_path(s.target), str(s.spec), s.operation.name) for s in self.filled])
        lines += _section("holds nothing", [(format_path(i.source), i.reason) for i in self.ignored])
        lines += _section("note", [(note,) for note in self.notes])
        if problems:
            lines += _section("problem", [(problem,) for problem in self.problems])
            lines += [self.advice] if self.problems and self.advice else []
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same as ``text``, unfolded, as plain JSON values."""
        return {
            "from": {"framework": FRAMEWORK_NAMES[self.source.framework], "dialect": self.source.title},
            "to": {"framework": FRAMEWORK_NAMES[self.target.framework], "dialect": self.target.title},
            "steps": [
                {
                    "target": format_path(step.target),
                    "leaf": str(step.spec),
                    "sources": [format_path(held.source) for held in step.sources],
                    "operation": step.operation.name or "rewrap",
                }
                for step in self.steps
            ],
            "dropped": [{"source": format_path(d.source), "leaf": str(d.spec), "reason": d.reason} for d in self.drops],
            "empty": [{"source": format_path(i.source), "reason": i.reason} for i in self.ignored],
            "notes": list(self.notes),
            "problems": list(self.problems),
        }


def _origin(step: Step) -> str:
    words = ["←", " + ".join(format_path(held.source) for held in step.sources)]
    if step.operation.name:
        words.append(f"({step.operation.name})")
    return " ".join(word for word in words if word)


def _section(title: str, rows: Sequence[tuple[str, ...]]) -> list[str]:
    return ["", f"{title}:", *("  " + line for line in fold(rows))] if rows else []
