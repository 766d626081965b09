"""The page as a whole: a template, its style and its script, and the JSON that it was made from inside it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html.parser
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Any

from converter import __version__
from converter.html_report import alignment, details, plot, summary, trees
from converter.html_report.groups import UNSURE, Group, groups_of
from converter.html_report.markup import Markup, join, tag
from converter.planning.wording import count, size_text

PLAIN_JSON = 1 << 18
"""Characters of JSON up to which it stands in the page as it is; more is compressed."""

JSON_TYPE, COMPRESSED_TYPE = "application/json", "application/gzip;base64"


def to_html(value: Mapping[str, Any]) -> str:
    """A page for what ``--json`` prints: the value of a report, of a plan, or of an error with the plan behind it.

    The page needs nothing but itself. The same value always makes the same page.
    """
    aligned = alignment.is_alignment(value)
    plan = alignment.plan_of(value) if aligned else value if "steps" in value else value.get("plan")
    groups = groups_of(plan) if plan else []
    told = _of_alignment(value) if aligned else _of_conversion(value, plan, groups)
    style, script = _part("page.css"), _part("page.js")
    return Template(_part("page.html")).substitute(
        title=tag("title", f"{told.verdict.title}: flax-convert"),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        banner=summary.banner(told.verdict, value, told.headline),
        cards=told.cards,
        problems=_given(told.problems),
        differences=_given(details.differences(value)),
        outputs=_outputs(value.get("outputs")),
        trees=_trees(plan, groups, ("Linen", "NNX") if aligned else ("Source", "Target")) if groups and plan else "",
        losses=join(*details.losses(groups), *details.lists(value, plan), told.rules),
        version=tag("span", f"flax-convert {__version__}"),
        data=_embed(value),
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """What is told in other words of a conversion than of an alignment."""

    verdict: summary.Verdict
    headline: str
    cards: Markup
    problems: Markup | None
    rules: Markup | None = None


def _of_conversion(value: Mapping[str, Any], plan: Mapping[str, Any] | None, groups: list[Group]) -> _Told:
    return _Told(
        summary.verdict(value, plan),
        _headline(plan, groups),
        summary.cards(value, plan, groups),
        details.problems(value, plan),
    )


def _of_alignment(value: Mapping[str, Any]) -> _Told:
    return _Told(
        alignment.verdict(value), "", alignment.cards(value), alignment.problems(value), alignment.rules(value)
    )


def _given(section: Markup | None) -> Markup:
    return section if section is not None else Markup("")


def _headline(plan: Mapping[str, Any] | None, groups: list[Group]) -> str:
    if not plan:
        return ""
    made = [group for group in groups if group.kind in ("moved", "filled")]
    leaves, nbytes = sum(group.leaves for group in made), sum(group.nbytes for group in made)
    names = " → ".join(_title(plan[side]) for side in ("from", "to"))
    return f"{names}: {count(leaves, 'leaf', 'leaves')}, {size_text(nbytes)}"


def _title(side: Mapping[str, str]) -> str:
    return side["dialect"]


def _outputs(result: Mapping[str, Any] | None) -> Markup:
    if not result or not result["outputs"]:
        return Markup("")
    return tag("section", tag("h2", "Outputs"), plot.plot(result["outputs"]), id="outputs")


def _trees(plan: Mapping[str, Any], groups: list[Group], sides: tuple[str, str]) -> Markup:
    shown = groups[: details.SHOWN_GROUPS]
    more = f"The first {len(shown):,} of {len(groups):,} rows; the JSON has all." if len(shown) < len(groups) else ""
    unsure = any(group.confidence in UNSURE for group in shown)
    return join(
        tag(
            "section",
            tag("h2", "Trees"),
            tag("p", more, class_="quiet") if more else None,
            Markup(_part("tools.html")),
            trees.legend(unsure),
            trees.side_by_side(shown, sides, (_title(plan["from"]), _title(plan["to"]))),
            tag("p", class_="told scripted", id="told", aria_live="polite", hidden=True),
            id="trees",
        ),
        tag(
            "section",
            tag("h2", "Correspondence"),
            details.correspondence(shown, len(groups), sides),
            id="correspondence",
        ),
    )


# The value inside the page ---------------------------------------------------------------------------------------


def _embed(value: Mapping[str, Any]) -> Markup:
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    if len(text) <= PLAIN_JSON:
        return Markup(f'<script type="{JSON_TYPE}" id="report">{text}</script>')
    packed = base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
    return Markup(f'<script type="{COMPRESSED_TYPE}" id="report">{packed}</script>')


class _Data(html.parser.HTMLParser):
    """Finds the value in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.type = ""
        self.text = ""
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "script" and given.get("id") == "report":
            self.type, self._inside = given.get("type") or "", True

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.text += data


def embedded(page: str) -> Any:
    """The JSON value that a page was made from.

    Raises:
      ValueError: the text is no page of this program.
    """
    parser = _Data()
    parser.feed(page)
    if parser.type == COMPRESSED_TYPE:
        return json.loads(gzip.decompress(base64.b64decode(parser.text)))
    if parser.type != JSON_TYPE:
        raise ValueError("there is no report in this page")
    return json.loads(parser.text)


def _part(name: str) -> str:
    return resources.files("converter.html_report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
