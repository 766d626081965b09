"""What stands below the trees: the correspondence as a table, and everything lost, invented, demanded or different."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from converter.folding import Row, folded
from converter.html_report.groups import UNSURE, Group, Pair
from converter.html_report.markup import Content, Markup, join, path, paths, tag
from converter.planning.wording import count, size_text

SHOWN_GROUPS = 1000
"""How many rows of the correspondence a page has."""

SHOWN_MEMBERS, SHOWN_MEMBERS_IN_ALL = 64, 2000
"""How many leaves behind a row can be unfolded, and how many on the whole page."""

SHOWN_DIFFERENCES = 300
SHOWN_LINES = 300


def correspondence(groups: Sequence[Group], all_groups: int, sides: tuple[str, str]) -> Markup:
    """The table: one body for each group, with the leaves that it stands for below it.

    Args:
      sides: what the two sides are called.
    """
    names = [*sides, "Array", "Operation"]
    names += ["Confidence"] if any(group.confidence for group in groups) else []
    names += ["Bytes"] if any(group.nbytes or group.strategy for group in groups) else []
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    left = SHOWN_MEMBERS_IN_ALL
    bodies = []
    for group in groups:
        shown = min(len(group.members), SHOWN_MEMBERS, left) if len(group.members) > 1 else 0
        left -= shown
        bodies.append(_body(group, names, shown))
    more = f"{all_groups - len(groups):,} more rows are in the JSON." if all_groups > len(groups) else ""
    caption = tag("caption", "Which leaf becomes which. ", tag("b", more) if more else None)
    return tag("table", caption, head, *bodies, class_="stacking", id="pairs")


def _body(group: Group, names: Sequence[str], shown: int) -> Markup:
    kinds = {
        "filled": tag("span", "nothing: filled in", class_="badge filled"),
        "empty": tag("span", "holds nothing", class_="badge empty"),
        "dropped": tag("span", "nothing: dropped", class_="badge dropped"),
        "open": tag("span", "not known", class_="badge open"),
        "moved": Markup(""),
    }
    plain = group.operation == "rewrap" or group.kind != "moved"
    both = group.paths.sources, group.paths.targets
    ends = [
        tag("td", paths(own) if own else kinds[group.kind], class_="end", data_label=name)
        for name, own in zip(names, both, strict=False)
    ]
    cells: dict[str, Content] = {
        "Array": _array(group),
        "Operation": tag("span", group.operation, class_="quiet" if plain else "operation"),
        "Confidence": _confidence(group),
        "Bytes": _bytes(group),
    }
    row = tag("tr", *ends, *(tag("td", cells[name], data_label=name) for name in names[2:]))
    kind = "unmatched" if group.kind != "moved" else None
    return tag("tbody", row, _members(group, shown, len(names)), id=f"g{group.number}", class_=kind, tabindex=-1)


def _array(group: Group) -> Markup:
    times = tag("span", f"{group.leaves:,} × ", class_="times") if group.leaves > 1 else None
    return tag("span", times, group.leaf, class_="spec")


def _confidence(group: Group) -> Markup | None:
    if not group.confidence:
        return None
    word = tag("span", group.confidence, class_="unsure" if group.confidence in UNSURE else "sure")
    return join(word, tag("span", f" ({group.remark})", class_="quiet") if group.remark else None)


def _bytes(group: Group) -> Markup | None:
    if group.kind == "dropped" or not (group.nbytes or group.strategy):
        return None
    moves = f" {group.strategy}" if group.strategy else None
    return join(size_text(group.nbytes), moves)


def _members(group: Group, shown: int, columns: int) -> Markup | None:
    if not shown:
        return None
    rows = [tag("li", _pair(pair)) for pair in group.members[:shown]]
    if len(group.members) > shown:
        rows.append(tag("li", f"… and {len(group.members) - shown:,} more in the JSON", class_="quiet"))
    words = ("correspondence", "correspondences") if group.kind == "moved" else ("leaf", "leaves")
    summary = tag("summary", count(len(group.members), *words), ", one by one")
    return tag("tr", tag("td", tag("details", summary, tag("ol", *rows)), colspan=columns), class_="members")


def _pair(pair: Pair) -> Markup:
    if not pair.sources or not pair.targets:
        return paths(pair.sources or pair.targets)
    return join(paths(pair.sources), tag("span", " → ", class_="quiet"), paths(pair.targets))


def differences(value: Mapping[str, Any]) -> Markup | None:
    """Every leaf that is not as it should be; None where there is none."""
    found = [
        (name, difference)
        for name in ("structure", "values")
        for difference in (value.get(name) or {}).get("differences", ())
    ]
    if not found:
        return None
    rows = folded((each["path"], name, each["expected"], each["found"]) for name, each in found)
    names = ("Leaf", "Check", "Expected", "Found")
    body = [
        tag("tr", *(tag("td", cell, data_label=name) for name, cell in zip(names, (path(first), *rest), strict=True)))
        for (first, *rest), _ in rows[:SHOWN_DIFFERENCES]
    ]
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    table = tag("table", head, tag("tbody", *body), class_="stacking")
    return tag("section", tag("h2", "Differences"), table, _more(len(rows), SHOWN_DIFFERENCES), id="differences")


def lists(value: Mapping[str, Any], plan: Mapping[str, Any] | None) -> Iterable[Markup]:
    """Sections of what is demanded and what should be known."""
    plan = plan or {}
    conditions = [(" + ".join(each["sources"]), each["demand"]) for each in plan.get("conditions", ())]
    yield from _section("Conditions", "Checked before anything is written.", _folded(conditions))
    notes = [*plan.get("notes", ()), *(value.get("structure") or {}).get("notes", ())]
    yield from _section("Notes", "", _folded((note,) for note in notes))


def losses(groups: Sequence[Group]) -> Iterable[Markup]:
    """Sections of what is left behind and of what is made from nothing."""
    titles = {
        "dropped": ("Dropped", "Leaves of the source that do not reach the destination, and why."),
        "filled": ("Filled in", "Leaves of the destination that stand in no leaf of the source, and what they hold."),
        "empty": ("Holds nothing", "Empty containers and bookkeeping."),
    }
    for kind, (title, sentence) in titles.items():
        rows = [_loss(group) for group in groups if group.kind == kind]
        yield from _section(title, sentence, rows)


def _loss(group: Group) -> Row:
    leaf = f"{group.leaves:,} × {group.leaf}" if group.leaf and group.leaves > 1 else group.leaf
    return "\n".join(group.paths.sources or group.paths.targets), leaf, group.operation


def problems(value: Mapping[str, Any], plan: Mapping[str, Any] | None) -> Markup | None:
    """Why a conversion was refused or failed, and what to do; None where it was not."""
    found = [(problem,) for problem in (plan or {}).get("problems", ())]
    error = value.get("error") or {}
    checked = bool(value.get("structure"))
    if not found and not error:
        return None
    parts: list[Markup | None] = []
    if found:
        parts += [tag("h2", "Problems"), _rows(_folded(found))]
    elif not checked:
        parts += [tag("h2", "What happened"), tag("pre", error["message"])]
    if error.get("advice"):
        parts += [tag("h2", "What to do"), tag("p", error["advice"], class_="advice")]
    return tag("section", *parts, id="problems", class_="problems") if parts else None


def _section(title: str, sentence: str, rows: Sequence[Row]) -> Iterable[Markup]:
    if rows:
        head = tag("h2", title, " ", tag("span", f"{len(rows):,}", class_="quiet"))
        name = title.lower().replace(" ", "-")
        yield tag("section", head, tag("p", sentence) if sentence else None, _rows(rows), id=name, class_="listing")


def _folded(rows: Iterable[Row]) -> list[Row]:
    return [each.row for each in folded(rows)]


def _rows(rows: Sequence[Row]) -> Markup:
    items = []
    for first, *rest in rows[:SHOWN_LINES]:
        head = paths(tuple(first.split("\n"))) if rest else first
        items.append(tag("li", head, *map(_cell, rest)))
    return join(tag("ul", *items, class_="rows"), _more(len(rows), SHOWN_LINES))


def _cell(text: str) -> Markup | None:
    return tag("span", text) if text else None


def _more(number: int, shown: int) -> Markup | None:
    return tag("p", f"… and {number - shown:,} more in the JSON", class_="quiet") if number > shown else None
