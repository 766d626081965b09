"""The variables of the target's model, as far as rules ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from converter.paths import Path
from converter.rules.language.rule_set import Rule
from converter.rules.link import Name
from converter.rules.ruled.directed import DirectedRule, Group, Shared, counted
from converter.training_state import COLLECTIONS
from converter.tree import LeafSpec


class Targets:
    """Names and specs of the target's variables; nothing is known of them where there is no model.

    Attributes:
      known: whether there is a model.
    """

    def __init__(self, framework: Literal["linen", "nnx"], specs: Mapping[Name, LeafSpec] | None) -> None:
        self.known = specs is not None
        self._nnx = framework == "nnx"
        self._specs = specs or {}
        self._names = {name: name for name in self._specs}
        self._by_path: dict[Path, list[Name]] = {}
        for name in self._specs:
            self._by_path.setdefault(name[1], []).append(name)
        self._counts: dict[DirectedRule, dict[Shared, dict[str, int]]] = {}

    def spec(self, name: Name) -> LeafSpec | None:
        return self._specs.get(name)

    def settled(self, name: Name) -> Name | None:
        """The name as the model spells it; None for a variable that the model does not have.

        Collections of users' own may have other names in the other framework, and so may undecided ones. Without a
        model every name is right; keys of Linen are plain texts.
        """
        if not self.known:
            return name if self._nnx else (name[0], tuple(str(key) for key in name[1]))
        if name in self._names:
            return self._names[name]
        alike = [other for other in self._by_path.get(name[1], ()) if _may_be(name[0], other[0])]
        return alike[0] if len(alike) == 1 else None

    def matching(self, rule: Rule, side: Literal["linen", "nnx"]) -> list[Name]:
        """The variables that the pattern of a rule matches."""
        pattern = rule.pattern(side)
        if pattern is None:
            return []
        # Most rules of one side name one variable.
        candidates = self._specs if pattern.captures else self._by_path.get(pattern.build({}), ())
        return [name for name in candidates if self._is_of(rule, name) and pattern.match(name[1]) is not None]

    @staticmethod
    def _is_of(rule: Rule, name: Name) -> bool:
        return rule.collection is None or _may_be(rule.collection, name[0])

    def counts(self, directed: DirectedRule, group: Group) -> Mapping[str, int]:
        """How many values every capture has that only the target side has, by the names of the model."""
        if not self.known or not directed.given:
            return {}
        if directed not in self._counts:
            self._counts[directed] = counted(directed.target, self._by_path, tuple(name for name, _ in group.shared))
        return self._counts[directed].get(group.shared, {})


def _may_be(collection: str, other: str) -> bool:
    return collection == other or not (collection in COLLECTIONS and other in COLLECTIONS)
