"""What comes to light while a plan is made: collected as it goes, so that everything can be shown at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from converter.dialects.dialect import Ignored
from converter.planning.plan import Drop


@dataclass(slots=True)
class Findings:
    """Losses, remarks and problems in the order they were found; ``advice`` holds each sentence once."""

    drops: list[Drop] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    advice: dict[str, None] = field(default_factory=dict)

    def refuse(self, problem: str, advice: str = "") -> None:
        self.problems.append(problem)
        if advice:
            self.advice[advice] = None
