"""Applying rules to the variables of a checkpoint: links for all they cover, problems for all that is not right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from converter.rules.language.patterns import PatternIndex, Value
from converter.rules.language.rule_set import Rule, RuleSet
from converter.rules.link import Correspondence, Link, Name, format_name
from converter.rules.operations import Drop, Fill, NotInvertible, Unfit
from converter.rules.ruled.directed import DirectedRule, Group, Shared, Uncountable
from converter.rules.ruled.fills import drop_filled, fill
from converter.rules.ruled.outcome import Outcome
from converter.rules.ruled.targets import Targets
from converter.tree import LeafKind, LeafSpec

MISSING_SHOWN = 20
"""One wrong number makes millions of members missing; so many of each group are listed."""


def apply_rules(
    rules: RuleSet,
    to: Literal["linen", "nnx"],
    sources: Mapping[Name, LeafSpec],
    target_specs: Mapping[Name, LeafSpec] | None = None,
    model_value: Callable[[Name], Fill] | None = None,
) -> tuple[Correspondence, dict[Name, LeafSpec]]:
    """Links the variables that rules cover.

    Args:
      rules: what the user states.
      to: the framework of the target.
      sources: all variables of the source; the spec of an empty leaf where the shape is not known.
      target_specs: the variables of the target's model, if it is given. Links use its names, and what they make is
        compared with it. Variables of it that no rule makes are left to the caller.
      model_value: gives a variable of the target the value that it has in a new model, for ``fill = "model"``.

    Returns:
      Links and problems; and the variables that no rule covers, if the default is to match them without rules.
    """
    application = _Application(rules, sources, Outcome(to, Targets(to, target_specs)))
    return application.outcome.found, application.run(model_value)


class _Application:
    """Rules on the way from one framework to the other."""

    def __init__(self, rules: RuleSet, sources: Mapping[Name, LeafSpec], outcome: Outcome) -> None:
        self.outcome = outcome
        self._rules = rules.rules
        self._set = rules
        self._sources = sources
        self._from: Literal["linen", "nnx"] = "nnx" if outcome.to == "linen" else "linen"
        self._used: set[int] = set()
        self._one_way: set[str] = set()

    def run(self, model_value: Callable[[Name], Fill] | None) -> dict[Name, LeafSpec]:
        uncovered = self._link_sources()
        for position, rule in enumerate(self._rules):
            if rule.pattern(self._from) is None:
                if rule.drop is not None:
                    self._note_left_empty(rule)
                elif fill(rule, self.outcome, model_value):
                    self._used.add(position)
        self.outcome.refuse_collisions()
        self._refuse_unused()
        return self._default(uncovered)

    # From sources to groups --------------------------------------------------------------------------------------

    def _link_sources(self) -> list[Name]:
        """Links everything that one rule covers; returns what none covers."""
        directed = {
            at: DirectedRule(rule, self.outcome.to) for at, rule in enumerate(self._rules) if rule.linen and rule.nnx
        }
        groups: dict[tuple[int, str, Shared], Group] = {}
        uncovered: list[Name] = []
        for name, matches in self._matches():
            self._used |= {at for at, _ in matches}
            if not matches:
                uncovered.append(name)
                continue
            at, captures = matches[0]
            if len(matches) > 1:
                where = " and ".join(self._rules[at].where for at, _ in matches)
                advice = "Make their patterns differ, so that one of them matches."
                self.outcome.found.refuse(f"{format_name(name)}: matches {len(matches)} rules, {where}", advice)
            elif at in directed:
                shared, place = directed[at].key(captures)
                collection = self._rules[at].collection or name[0]
                group = groups.setdefault((at, collection, shared), Group(collection, shared))
                self._join(group, place, name, self._rules[at])
            else:
                self._leave_behind(name, self._rules[at])
        for (at, _, _), group in groups.items():
            self._link(directed[at], group)
        return uncovered

    def _matches(self) -> Iterator[tuple[Name, list[tuple[int, dict[str, Value]]]]]:
        """Every source with the positions of the rules that match it, and what their captures hold."""
        patterns = [(at, pattern) for at, rule in enumerate(self._rules) if (pattern := rule.pattern(self._from))]
        index = PatternIndex([pattern for _, pattern in patterns])
        for collection, path in self._sources:
            matches = []
            for candidate in index.matching(path):
                at, pattern = patterns[candidate]
                captures = pattern.match(path)
                if captures is not None and collection in ("", self._rules[at].collection or collection):
                    matches.append((at, captures))
            yield (collection, path), matches

    def _join(self, group: Group, place: tuple[int, ...], name: Name, rule: Rule) -> None:
        other = group.members.setdefault(place, name)
        if other is not name:  # the rule gives its collection to a variable that has none
            text = f"{format_name(name)}: {rule.where} takes it and {format_name(other)} for the same"
            self.outcome.found.refuse(text, "Leave one of them behind with --drop.")

    def _leave_behind(self, name: Name, rule: Rule) -> None:
        if rule.drop is None:
            drop_filled(name, self._sources[name], rule, self.outcome)
        else:
            self.outcome.found.links.append(Link((name,), (), Drop(rule.drop)))

    # From groups to links ----------------------------------------------------------------------------------------

    def _link(self, directed: DirectedRule, group: Group) -> None:
        refuse = self.outcome.found.refuse
        where = directed.rule.where
        counts = directed.counts(group)
        missing = list(itertools.islice(directed.missing(group, counts), MISSING_SHOWN + 1))
        if missing:
            self._refuse_missing(directed, group, missing)
            return
        try:
            link, specs = directed.link(group, counts, self._sources, self.outcome.targets.counts(directed, group))
        except Unfit as error:
            refuse(f"{_label(group)}: {where}: {error}", "Mend the operations of the rule, or its patterns.")
        except Uncountable as error:
            refuse(f"{_label(group)}: {where}: {error}", f"Give the {self.outcome.title} model, or sizes.")
        except NotInvertible as error:
            text = f"{where}: the rule has no way to {self.outcome.title}: {error}"
            if text not in self._one_way:
                self._one_way.add(text)
                refuse(text, "State operations that can be undone, or a rule of its own for that direction.")
        else:
            self.outcome.add(directed, group, link, specs)

    def _refuse_missing(self, directed: DirectedRule, group: Group, missing: list[tuple[str, ...]]) -> None:
        where = directed.rule.where
        texts = ", ".join(repr(directed.step_of(capture).text) for capture in directed.taken)
        for path in missing[:MISSING_SHOWN]:
            name = format_name((group.collection, path))
            text = f"{name}: missing in the checkpoint, needed by {where} ({texts})"
            self.outcome.found.refuse(text, "Numbers run from 0 without gaps, and every alternative has to be there.")
        if len(missing) > MISSING_SHOWN:
            self.outcome.found.refuse(f"{where}: even more variables are missing in the checkpoint ({texts})")

    # What is left over -------------------------------------------------------------------------------------------

    def _note_left_empty(self, rule: Rule) -> None:
        for name in self.outcome.targets.matching(rule, self.outcome.to):
            self.outcome.found.notes.append(f"{format_name(name)} is made by no rule: {rule.drop} ({rule.where})")

    def _refuse_unused(self) -> None:
        for position, rule in enumerate(self._rules):
            own = rule.pattern(self._from)
            pattern = own or rule.pattern(self.outcome.to)
            if position not in self._used and pattern and (own or rule.fill is not None):
                what = "the checkpoint" if own else f"the {self.outcome.title} model"
                text = f"{rule.where}: the rule matches nothing in {what} ({pattern.text})"
                self.outcome.found.refuse(text, "Mend its pattern, or take the rule out.")

    def _default(self, uncovered: list[Name]) -> dict[Name, LeafSpec]:
        if self._set.default == "auto":
            return {name: self._sources[name] for name in uncovered}
        for name in uncovered:
            if self._set.default == "drop":
                self.outcome.found.links.append(Link((name,), (), Drop("no rule covers it")))
            else:
                spec = self._sources[name]
                shown = "" if spec.kind is LeafKind.EMPTY else f"{spec}, "
                text = f"{format_name(name)}: {shown}no rule covers it"
                advice = (
                    f"Write rules for them in {self._set.source}, or put "
                    'default = "auto" (match them without rules) or default = "drop" in front of all rules.'
                )
                self.outcome.found.refuse(text, advice)
        return {}


def _label(group: Group) -> str:
    first, more = format_name(next(iter(group.members.values()))), len(group.members) - 1
    return f"{first} and {more} more" if more else first
