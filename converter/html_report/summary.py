"""The top of the page: the verdict, one card for each check, and how the bytes got where they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from converter.formats.checkpoint import Strategy
from converter.html_report.groups import Group
from converter.html_report.markup import Markup, join, tag
from converter.html_report.plot import passes
from converter.planning.plan import MEANINGS
from converter.planning.wording import count, size_text
from converter.verification.values import Proof

CHECKS = ("structure", "values", "outputs")

SYMBOLS = {"good": "✓", "bad": "✗", "open": "○"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer in a word and a sentence."""

    tone: Literal["good", "bad", "open"]
    title: str
    sentence: str


def verdict(value: Mapping[str, Any], plan: Mapping[str, Any] | None) -> Verdict:
    """What the JSON value of a report, plan or error comes to."""
    made = {name: value[name]["ok"] for name in CHECKS if value.get(name)}
    failed = [name for name, ok in made.items() if not ok]
    error = value.get("error")
    if failed:
        kept = " Nothing was kept." if error else ""
        return Verdict("bad", "Different", f"{_listed(failed).capitalize()} are not as they should be.{kept}")
    problems = len(plan.get("problems", ())) if plan else 0
    if error or problems:
        title = "Refused" if plan else "Failed"
        told = (
            str(error["message"]).partition("\n")[0].removesuffix(":")
            if error
            else count(problems, "problem", "problems")
        )
        return Verdict("bad", title, f"{told} Nothing was written." if plan and not error else told)
    if made:
        checked = f"{_listed(list(made)).capitalize()} {'is' if len(made) == 1 else 'are'} equal."
        return Verdict("good", "Converted and verified" if value.get("written") else "Verified", checked)
    if value.get("written"):
        return Verdict("open", "Converted, not verified", "The result has not been read again.")
    return Verdict("open", "Planned", "No array has been read and nothing was written.")


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def banner(found: Verdict, value: Mapping[str, Any], headline: str) -> Markup:
    """The verdict, and what was converted to what."""
    symbol = tag("span", SYMBOLS[found.tone], class_="symbol", aria_hidden="true")
    way = None
    if value.get("source"):
        places = [tag("code", value["source"]), " → ", tag("code", value["destination"])]
        way = tag("p", *places, class_="way")
    return tag(
        "header",
        tag("h1", symbol, " ", found.title),
        tag("p", found.sentence, class_="sentence"),
        tag("p", headline) if headline else None,
        way,
        class_=f"banner {found.tone}",
    )


def cards(value: Mapping[str, Any], plan: Mapping[str, Any] | None, groups: Sequence[Group]) -> Markup:
    """Structure, values, outputs; bytes and confidence where the plan tells them."""
    tried = value.get("written") or any(value.get(name) for name in CHECKS)
    found = [_check(name, value.get(name)) for name in CHECKS] if tried else []
    found += [_bytes(plan)] if plan and plan.get("bytes") else []
    found += [_confidence(groups)] if any(group.confidence for group in groups) else []
    return tag("div", *found, class_="cards")


def _check(name: str, result: Mapping[str, Any] | None) -> Markup:
    if not result:
        return card(name, "open", "not checked", [tag("p", _MISSING[name], class_="quiet")])
    parts = {"structure": _structure, "values": _values, "outputs": _outputs}[name](result)
    return card(name, "good" if result["ok"] else "bad", "equal" if result["ok"] else "DIFFERENT", parts)


_MISSING = {
    "structure": "No destination was read.",
    "values": "No value was compared.",
    "outputs": "Compared where both models and their inputs are given and all else is equal.",
}


def card(name: str, tone: str, word: str, parts: Iterable[Markup]) -> Markup:
    """A card; without a tone it tells something, and judges nothing."""
    title = tag("h2", name.capitalize())
    symbol = tag("span", SYMBOLS[tone], aria_hidden="true") if tone else None
    verdict = tag("p", symbol, " ", word, class_="word") if word else None
    return tag("section", title, verdict, *parts, class_=f"card {tone}".rstrip(), id=f"card-{name}")


def _structure(result: Mapping[str, Any]) -> list[Markup]:
    told = count(result["leaves"], "path, shape and dtype", "paths, shapes and dtypes")
    return [tag("p", told), *_differing(result["differences"])]


def _values(result: Mapping[str, Any]) -> list[Markup]:
    reader = f", read by {result['reader']}" if result.get("reader") else ""
    told = f"{count(result['leaves'], 'leaf', 'leaves')}, {size_text(result['bytes'])}, bit for bit{reader}"
    meanings = {proof.name.lower(): proof.value for proof in Proof}
    shares = [
        Share(name, meanings.get(name, name), proof["leaves"], proof["bytes"])
        for name, proof in result.get("proofs", {}).items()
    ]
    return [tag("p", told), *_differing(result["differences"]), stacked(shares)]


def _outputs(result: Mapping[str, Any]) -> list[Markup]:
    outputs = result["outputs"]
    equal = sum(bool(output["bitwise"]) for output in outputs)
    beyond = sum(not passes(output) for output in outputs)
    parts = [tag("p", "Both models ran on ", tag("code", ", ".join(result["inputs"])))]
    seeds = result.get("seeds", result.get("seed"))
    if seeds is not None:
        parts.append(tag("p", f"Seeds: {', '.join(map(str, seeds)) if isinstance(seeds, list) else seeds}"))
    told = count(len(outputs), "output", "outputs")
    if equal == len(outputs):
        told += ", bit for bit equal"
    else:
        told += f": {equal:,} bit for bit equal, {beyond:,} beyond the limit"
    parts.append(tag("p", told) if outputs else tag("p", result["problem"]))
    return parts


def _differing(differences: Sequence[object]) -> list[Markup]:
    if not differences:
        return []
    told = count(len(differences), "leaf differs", "leaves differ")
    return [tag("p", tag("a", told, href="#differences"))]


@dataclass(frozen=True, slots=True)
class Share:
    """One piece of a stacked bar."""

    name: str
    meaning: str
    leaves: int
    nbytes: int


def _bytes(plan: Mapping[str, Any]) -> Markup:
    moved = plan["bytes"]
    shares = [
        Share(each.value, MEANINGS[each], moved[each.value]["leaves"], moved[each.value]["bytes"])
        for each in Strategy
        if each.value in moved
    ]
    title = tag("p", size_text(sum(share.nbytes for share in shares)), class_="word")
    return tag("section", tag("h2", "Bytes"), title, stacked(shares), class_="card", id="card-bytes")


def stacked(shares: Sequence[Share]) -> Markup:
    """A bar in pieces as long as their bytes (their leaves, where there are none), with a list that says the same."""
    if not shares:
        return Markup("")
    weights = [share.nbytes for share in shares]
    weights = weights if sum(weights) else [share.leaves for share in shares]
    total, start, pieces = sum(weights) or 1, 0.0, []
    for share, weight in zip(shares, weights, strict=True):
        width = 100 * weight / total
        pieces.append(tag("rect", x=f"{start:.2f}%", width=f"{width:.2f}%", height=14, class_=f"share {share.name}"))
        start += width
    label = ", ".join(
        f"{share.name} {100 * weight / total:.1f}%" for share, weight in zip(shares, weights, strict=True)
    )
    bar = tag("svg", *pieces, role="img", aria_label=label, width="100%", height=14, class_="bar")
    return join(bar, tag("ul", *map(_told, shares), class_="shares"))


def _told(share: Share) -> Markup:
    square = tag("rect", width=10, height=10, class_=f"share {share.name}")
    swatch = tag("svg", square, width=10, height=10, aria_hidden="true")
    told = f" {count(share.leaves, 'leaf', 'leaves')}, {size_text(share.nbytes)}: {share.meaning}"
    return tag("li", swatch, " ", tag("b", share.name), told)


def _confidence(groups: Sequence[Group]) -> Markup:
    leaves: dict[str, int] = {}
    for group in groups:
        if group.confidence:
            leaves[group.confidence] = leaves.get(group.confidence, 0) + group.leaves
    rows = [tag("li", tag("b", name), f" {count(number, 'leaf', 'leaves')}") for name, number in leaves.items()]
    return card("confidence", "", "", [tag("ul", *rows, class_="shares")])
