"""Rules of one side that fill: values for what only the target has, and what becomes of them on the way back."""

from __future__ import annotations

from collections.abc import Callable

from converter.rules.language.rule_set import FILL_MODEL, Rule
from converter.rules.link import Link, Name, format_name
from converter.rules.operations import Drop, Fill, fill_number
from converter.rules.ruled.outcome import TITLES, Outcome
from converter.tree import LeafKind, LeafSpec

_NUMBERS = (LeafKind.ARRAY, LeafKind.NUMPY_SCALAR)


def drop_filled(name: Name, spec: LeafSpec, rule: Rule, outcome: Outcome) -> None:
    """Leaves a variable behind that was filled on the way here; it must hold the number that it was filled with."""
    number = _number(rule)
    if number is not None and spec.kind not in (*_NUMBERS, LeafKind.EMPTY):
        text = f"{format_name(name)}: expected an array of {number:g} by {rule.where}, found {spec}"
        outcome.found.refuse(text, "Mend the pattern of the rule.")
    else:
        outcome.found.links.append(Link((name,), (), Drop(_reason(rule), number)))


def fill(rule: Rule, outcome: Outcome, model_value: Callable[[Name], Fill] | None) -> bool:
    """Fills the variables of the target that a rule names; False where there are none."""
    pattern = rule.pattern(outcome.to)
    assert pattern is not None
    if outcome.targets.known:
        names = outcome.targets.matching(rule, outcome.to)
    elif not pattern.captures:
        path = pattern.build({})
        names = [(rule.collection or "", path if outcome.to == "nnx" else tuple(map(str, path)))]
    else:
        text = f"{rule.where}: which variables it fills is not known"
        advice = f"Give the {outcome.title} model, or write a rule without captures for every variable."
        outcome.found.refuse(text, advice)
        return True
    for name in names:
        outcome.register(name, rule.where)
        _fill_one(name, rule, outcome, model_value)
    return bool(names)


def _fill_one(name: Name, rule: Rule, outcome: Outcome, model_value: Callable[[Name], Fill] | None) -> None:
    refuse = outcome.found.refuse
    where = format_name(name)
    number = _number(rule)
    spec = rule.leaf or outcome.targets.spec(name)
    if outcome.to == "linen" and not name[0]:
        advice = 'Begin the pattern with it (params/…), or add collection = "…".'
        refuse(f"{where}: {rule.where} does not say in which collection it is", advice)
    elif number is None and model_value is None:
        refuse(f"{where}: {rule.where} fills it from a model, and there is none", f"Give the {outcome.title} model.")
    elif number is None and model_value is not None:
        outcome.invent(name, model_value(name))
    elif spec is None:
        advice = 'Add leaf = "float32[8]" to the rule, or give the model of the target.'
        refuse(f"{where}: {rule.where} does not say its dtype and shape", advice)
    elif spec.kind not in _NUMBERS:
        refuse(f"{where}: {rule.where} cannot fill {spec} with a number", 'Write fill = "model".')
    elif number is not None and outcome.agrees(name, spec, rule.where):
        outcome.invent(name, fill_number(spec, number, _reason(rule)))


def _number(rule: Rule) -> float | None:
    return None if rule.fill is None or rule.fill == FILL_MODEL else float(rule.fill)


def _reason(rule: Rule) -> str:
    """Why a variable is filled or left behind; the same on both ways."""
    number = _number(rule)
    value = "the value of a new model" if number is None else f"{number:g}"
    return f"only {TITLES['linen' if rule.linen else 'nnx']} has it, filled with {value} ({rule.where})"
