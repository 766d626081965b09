"""The page of ``align``: which variable is which, how sure that is, what is open, and the rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from converter.folding import folded
from converter.html_report import plot
from converter.html_report.markup import Markup, join, tag
from converter.html_report.summary import Verdict, card
from converter.paths import format_path, parse_path
from converter.planning.wording import count
from converter.rules.align.confidence import Confidence

SHOWN_PROBLEMS = 300


def is_alignment(value: Mapping[str, Any]) -> bool:
    """Whether this is what ``align --json`` prints."""
    return "aligned" in value


def plan_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same as steps from Linen to NNX, with what is not known beside them."""
    aligned, variables = value["aligned"], value["variables"]
    known = {side: {name for each in aligned for name in each[side]} for side in ("linen", "nnx")}
    return {
        "from": {"framework": "Linen", "dialect": value["linen"]},
        "to": {"framework": "NNX", "dialect": value["nnx"]},
        "steps": [step for each in aligned for step in _steps(each, variables["nnx"])],
        "dropped": [
            {"source": name, "leaf": variables["linen"].get(name, ""), "reason": each["operation"]}
            for each in aligned
            if not each["nnx"]
            for name in each["linen"]
        ],
        "open": [
            {side: _path(side, name), "leaf": leaf}
            for side, framework in (("source", "linen"), ("target", "nnx"))
            for name, leaf in variables[framework].items()
            if name not in known[framework]
        ],
    }


def _steps(aligned: Mapping[str, Any], leaves: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    for name in aligned["nnx"]:
        yield {
            "target": _path("target", name),
            "leaf": leaves.get(name, ""),
            "sources": aligned["linen"],
            "operation": aligned["operation"] or "rewrap",
            "confidence": aligned["confidence"],
            "remark": aligned["remark"],
        }


def _path(side: str, name: str) -> str:
    """NNX modules hold variables of all collections side by side; no path in them begins with one."""
    return name if side == "source" else format_path(parse_path(name)[1:])


def verdict(value: Mapping[str, Any]) -> Verdict:
    """What an alignment comes to."""
    models = f"{value['linen']} (Linen) and {value['nnx']} (NNX)"
    problems = len(value["problems"])
    if problems:
        return Verdict("bad", "Not aligned", f"{models}: {count(problems, 'question is', 'questions are')} open.")
    if value.get("error"):
        return Verdict("open", "Aligned, but not as rules", f"{models}: rules cannot say all that was found.")
    guesses = sum(each["confidence"] == Confidence.GUESSED.value for each in value["aligned"])
    if guesses:
        told = f"{models}: running both confirmed all but {count(guesses, 'guess', 'guesses')}."
        return Verdict("open", "Aligned, with guesses", told)
    return Verdict("good", "Aligned and confirmed", f"{models}: every variable is known.")


def cards(value: Mapping[str, Any]) -> Markup:
    """The confirmation, the classes of confidence, how many variables there are, and whether rules can say it."""
    found = [_confirmation(value), _variables(value)]
    found += [_confidence(value["aligned"], value["confirmed"])] if value["aligned"] else []
    found += [_rules_card(value)] if value["ok"] else []
    return tag("div", *found, class_="cards")


def _confirmation(value: Mapping[str, Any]) -> Markup:
    if not value["confirmed"]:
        known = sum(len(each[side]) for each in value["aligned"] for side in ("linen", "nnx"))
        told = (
            "Running both models is the last step: it needs a counterpart for every variable."
            if known < sum(map(len, value["variables"].values()))
            else "Both models ran on random values, and their outputs differ."
        )
        return card("confirmation", "bad", "not confirmed", [tag("p", told)])
    outputs = value["outputs"]
    equal = sum(output["bitwise"] or plot.passes(output) for output in outputs["outputs"])
    parts = [
        tag("p", "Both models ran on random values, in all variables and inputs."),
        tag("p", "Inputs: ", tag("code", ", ".join(outputs["inputs"]))) if outputs["inputs"] else None,
        tag("p", count(equal, "output is", "outputs are"), " equal up to rounding"),
    ]
    return card("confirmation", "good", "confirmed", [part for part in parts if part is not None])


def _variables(value: Mapping[str, Any]) -> Markup:
    rows = []
    for side, framework in (("linen", "Linen"), ("nnx", "NNX")):
        names = value["variables"][side]
        known = {name for each in value["aligned"] for name in each[side]}
        told = f" {count(len(names), 'variable', 'variables')}"
        told += f", {len(known):,} known" if len(known) < len(names) else ""
        rows.append(tag("li", tag("b", framework), told))
    return card("variables", "", "", [tag("ul", *rows, class_="shares")])


def _confidence(aligned: Sequence[Mapping[str, Any]], confirmed: bool) -> Markup:
    counts = Counter(each["confidence"] for each in aligned)
    rows = [
        tag("li", tag("b", f"{counts[each.value]:,} {each.value}"), f": {each.meaning(confirmed)}")
        for each in Confidence
        if counts[each.value]
    ]
    return card("confidence", "", "", [tag("ul", *rows, class_="shares")])


def _rules_card(value: Mapping[str, Any]) -> Markup:
    if value["rules"]:
        link = tag("a", "The rule file", href="#rules")
        return card("rules", "good", "complete", [tag("p", link, " says all of it.")])
    told = "Rules cannot say all of it; conversions that are given both models do it without."
    return card("rules", "open", "not complete", [tag("p", told)])


def problems(value: Mapping[str, Any]) -> Markup | None:
    """What is not known, with what would settle it; None where everything is."""
    if not value["problems"]:
        return None
    parts = [tag("h2", "What is open")]
    for advice in dict.fromkeys(each["advice"] for each in value["problems"]):
        told = folded((each["problem"],) for each in value["problems"] if each["advice"] == advice)
        items = [tag("li", row.row[0]) for row in told[:SHOWN_PROBLEMS]]
        if len(told) > SHOWN_PROBLEMS:
            items.append(tag("li", f"… and {len(told) - SHOWN_PROBLEMS:,} more in the JSON", class_="quiet"))
        parts.append(tag("ul", *items, class_="rows"))
        parts += [tag("p", tag("b", "What would settle it: "), advice, class_="advice")] if advice else []
    return tag("section", *parts, id="problems", class_="problems")


def rules(value: Mapping[str, Any]) -> Markup:
    """The rule file, and what rules cannot state."""
    sections = []
    if value["rules"]:
        button = tag("button", "Save the rule file", type="button", id="save-rules", class_="scripted", hidden=True)
        usage = "flax-convert linen-to-nnx CHECKPOINT DESTINATION --rules map.toml"
        told = tag("p", "For ", tag("code", usage), " and the way back. ", button)
        text = tag("pre", value["rules"], tabindex=0, aria_label="Text of the rule file")
        sections.append(tag("section", tag("h2", "Rule file"), told, text, id="rules"))
    if value["unstated"]:
        items = [tag("li", text) for text in value["unstated"]]
        head = tag("h2", "Not to be stated in rules", " ", tag("span", f"{len(items):,}", class_="quiet"))
        sections.append(tag("section", head, tag("ul", *items, class_="rows"), id="unstated"))
    return join(*sections)
