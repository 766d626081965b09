"""What comes of rules: links that agree with the target's model, and the problems of all others."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from converter.paths import Path
from converter.rules.link import Correspondence, Link, Name, format_name
from converter.rules.operations import Fill
from converter.rules.ruled.directed import DirectedRule, Group
from converter.rules.ruled.targets import Targets
from converter.tree import LeafKind, LeafSpec

Framework = Literal["linen", "nnx"]

TITLES: Mapping[Framework, str] = {"linen": "Linen", "nnx": "NNX"}


@dataclass
class Outcome:
    """Collects links, problems and remarks.

    Attributes:
      to: the framework of the target.
      targets: the variables of its model.
      found: everything so far.
    """

    to: Framework
    targets: Targets
    found: Correspondence = field(default_factory=Correspondence)
    _made: dict[Name, list[str]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name of the target's framework."""
        return TITLES[self.to]

    def add(self, directed: DirectedRule, group: Group, link: Link, specs: tuple[LeafSpec, ...] | None) -> None:
        """Takes a link over if all its targets are sound; ``specs`` are theirs, if they are known."""
        where = directed.rule.where
        names: list[Name] = []
        sound = True
        for at, name in enumerate(link.targets):
            settled = self.targets.settled(name)
            names.append(settled or name)
            self.register(names[-1], where)
            if directed.misread(name[1], group):
                text = f"{format_name(link.sources[0])}: {where} would read its new name in another way"
                self.found.refuse(text, "Write patterns that can be read in one way only: put text between captures.")
                sound = False
            elif settled is None:
                text = f"{format_name(name)}: made by {where}, no such variable in the {self.title} model"
                self.found.refuse(text, "Mend the pattern, or give the model that the names are of.")
                sound = False
            elif specs is not None and not self.agrees(settled, specs[at], where):
                sound = False
        if sound:
            self.found.links.append(Link(link.sources, tuple(names), link.operation))

    def agrees(self, name: Name, spec: LeafSpec, where: str) -> bool:
        """Compares with the target's model; a difference of dtypes is a remark only."""
        expected = self.targets.spec(name)
        if expected is None or LeafKind.EMPTY in (expected.kind, spec.kind) or expected == spec:
            return True
        if expected.shape != spec.shape or (expected.kind is LeafKind.KEY) != (spec.kind is LeafKind.KEY):
            text = f"{format_name(name)}: expected {expected} by the model, found {spec} (made by {where})"
            if name[0] == "cache":  # as long as the inputs that it was made for
                self.found.notes.append(text)
                return True
            self.found.refuse(text, "Mend the operations of the rule.")
            return False
        if expected.dtype != spec.dtype:
            self.found.dtypes.append(f"{format_name(name)}: {spec} in the checkpoint, {expected} in the model")
        return True

    def invent(self, name: Name, fill: Fill) -> None:
        """Adds a variable that no source has."""
        self.found.links.append(Link((), (name,), fill, self._beside(name)))

    def _beside(self, name: Name) -> Name | None:
        """A source variable of the same layer as a target, or else of the nearest one."""
        collection, path = name
        above = (self._sources_below.get((collection, path[:depth])) for depth in reversed(range(len(path))))
        return next((source for source in above if source is not None), None)

    @functools.cached_property
    def _sources_below(self) -> dict[tuple[str, Path], Name]:
        """A source variable for every layer of the target."""
        found: dict[tuple[str, Path], Name] = {}
        for link in self.found.links:
            for collection, path in link.targets if link.sources else ():
                for depth in range(len(path)):
                    found.setdefault((collection, path[:depth]), link.sources[0])
                    found.setdefault(("", path[:depth]), link.sources[0])
        return found

    def register(self, name: Name, where: str) -> None:
        """Notes that a rule makes a variable, whether it is sound or not."""
        self._made.setdefault(name if self.to == "linen" else ("", name[1]), []).append(where)

    def refuse_collisions(self) -> None:
        for name, makers in self._made.items():
            if len(makers) > 1:
                text = f"{format_name(name)}: made {len(makers)} times, by {' and '.join(dict.fromkeys(makers))}"
                self.found.refuse(text, "Every variable is made once: narrow the rules, or drop variables.")
