"""Pages read as text: well-formed, self-contained, harmless whatever the names are, and small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import converter
from converter.html_report import details
from converter.html_report.groups import Pair, groups_of
from converter.html_report.page import embedded, to_html
from converter.html_report.plot import scale_of
from converter.paths import format_path
from tests.html_report.reading import Page
from tests.html_report.values import (
    aligned_layers,
    alignment,
    everything,
    layered,
    output,
    pair,
    plan,
    refused_alignment,
    report,
    step,
    unlike,
)

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(to_html(everything()))


# As HTML -------------------------------------------------------------------------------------------------------------


def test_links_lead_to_one_place_each(full: Page):
    assert len(set(full.ids)) == len(full.ids)
    inner = {link[1:] for link in full.links if link.startswith("#")}
    assert len(inner) > 10
    assert inner <= set(full.ids)


def test_nothing_is_fetched(full: Page):
    assert {link for link in full.links if not link.startswith("#")} == {"data:,"}
    assert not [each for each in full.attributes if each[1] in ("src", "srcset", "action", "poster", "style")]
    assert not re.search(r"@import|url\(", full.text("style"))
    addresses = set(re.findall(r"https?://[^\s\"']+", full.text("script")))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of a namespace, which nobody asks for"


def test_the_policy_allows_the_page_s_own_script_and_style_only(full: Page):
    (policy,) = [value for tag, name, value in full.attributes if tag == "meta" and value.startswith("default-src")]
    assert policy.startswith("default-src 'none'")
    for kind, text in (("style", full.texts["style"][0]), ("script", full.texts["script"][-1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_nothing_acts_by_attributes(full: Page):
    assert not [each for each in full.attributes if each[1].startswith("on")]


def test_headings_go_down_step_by_step(full: Page):
    assert len(full.texts["h1"]) == 1
    levels = {int(tag[1]) for tag in full.tags if re.fullmatch(r"h\d", tag)}
    assert levels == {1, 2, 3}


def test_the_same_value_makes_the_same_page():
    assert to_html(everything()) == to_html(everything())


# The value inside ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [everything(), report(layered(1)), plan(layered(2)), report(layered(400))])
def test_the_value_can_be_taken_out_again(value: dict[str, Any]):
    assert embedded(to_html(value)) == value


def test_other_pages_hold_no_report():
    with pytest.raises(ValueError, match="no report"):
        embedded("<!DOCTYPE html><script>1</script>")


def test_a_report_makes_its_page_itself(fixtures_dir: Path, tmp_path: Path):
    source = fixtures_dir / "checkpoints/nnx_mlp_standard/checkpoint"
    found = converter.convert(source, tmp_path / "out", "linen")
    page = found.to_html()
    assert embedded(page) == json.loads(json.dumps(found.to_json()))
    assert "Converted and verified" in Page(page).text("h1")


# Names ---------------------------------------------------------------------------------------------------------------

KEYS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            "</script><script>alert(1)</script>",
            "<!--",
            "]]>",
            '"><img src=x onerror=alert(1)>',
            "' onmouseover='alert(1)",
            "&lt;b&gt;&amp",
            "{0…3}",
            "a/b",
            "$title",
            "\u2028\x00\x1b",
        ]
    ),
)
PATHS = st.lists(KEYS, min_size=1, max_size=3).map(lambda keys: format_path(tuple(keys)))


@given(st.lists(st.tuples(PATHS, PATHS), min_size=1, max_size=4), KEYS)
@example([("<script>/a", "</script>/b")], "<script>")
@settings(max_examples=30, deadline=None)
def test_names_are_text_whatever_they_are(full: Page, names: list[tuple[str, str]], word: str):
    value = report([step(target, source, operation=word) for target, source in names], source=word, destination=word)
    value["plan"]["dropped"] = [{"source": names[0][1], "leaf": word, "reason": word}]
    value["plan"]["notes"] = value["plan"]["problems"] = [word]
    value["values"]["differences"] = [{"path": names[0][0], "expected": word, "found": word}]
    value["error"] = {"message": word, "advice": word, "exit_code": 1}
    text = to_html(value)
    page = Page(text)
    assert page.tags <= full.tags | {"br", "pre"}
    assert len(page.texts["script"]) == 2
    assert {name for _, name, _ in page.attributes} <= {name for _, name, _ in full.attributes}
    assert embedded(text) == value
    text.encode("utf-8")


def test_halves_of_characters_can_be_written():
    to_html(report([step("a", "b")], source="dir\udcff")).encode("utf-8")


def test_names_are_shown_as_they_are():
    page = Page(to_html(report([step("params/<b>/&amp;", "model/<b>/&amp;")])))
    assert "params/<b>/&amp;" in page.texts["code"]


# Size ----------------------------------------------------------------------------------------------------------------


def test_fifty_thousand_leaves_that_fold_are_few_rows():
    value = report(layered(6250))
    page = to_html(value)
    assert len(page) < 1.5 * MEGABYTE
    assert Page(page).text("caption") == "Which leaf becomes which. "
    assert page.count("<tbody") == 8


@pytest.mark.slow
def test_fifty_thousand_leaves_that_do_not_fold_are_cut_short_and_say_so():
    value = report(unlike(50_000))
    page = to_html(value)
    assert len(page) < 3 * MEGABYTE
    assert page.count("<tbody") == details.SHOWN_GROUPS
    assert "49,000 more rows are in the JSON" in page
    assert embedded(page) == value


def test_what_can_be_unfolded_is_bounded():
    page = Page(to_html(report(layered(3000))))
    items = [text for text in page.texts["li"] if " → " in text]
    assert len(items) == details.SHOWN_MEMBERS * 8
    assert f"… and {3000 - details.SHOWN_MEMBERS:,} more in the JSON" in page.text("li")


# Groups --------------------------------------------------------------------------------------------------------------


def test_equal_layers_are_one_group():
    (first, *others) = groups_of(plan(layered(32)))
    assert len(others) == 7
    assert first.paths == Pair(
        ("layers/{0…31}/attention/query/kernel",), ("params/layers_{0…31}/attention/query/kernel",)
    )
    assert (first.leaves, first.sources, first.nbytes) == (32, 32, 32 * 256)
    assert first.members[3] == Pair(("layers/3/attention/query/kernel",), ("params/layers_3/attention/query/kernel",))


def test_what_is_made_together_is_one_group():
    made = groups_of(plan([step(f"parts_{n}/w", "parts/w", operation="unstack 4, axis 0") for n in range(4)]))
    assert [(g.paths, g.leaves, g.sources) for g in made] == [(Pair(("parts/w",), ("parts_{0…3}/w",)), 4, 1)]
    gates = groups_of(plan([step("hidden", "ir/w", "iz/w", "in/w", "bias", operation="concat")]))
    assert [(g.paths.sources, g.leaves, g.sources) for g in gates] == [(("ir/w", "iz/w", "in/w", "bias"), 1, 4)]


def test_every_leaf_is_in_one_group():
    value = everything()["plan"]
    groups = groups_of(value)
    assert [group.number for group in groups] == list(range(len(groups)))
    assert sum(g.leaves for g in groups if g.kind in ("moved", "filled")) == len(value["steps"])
    assert sum(g.leaves for g in groups if g.kind == "dropped") == len(value["dropped"])
    assert {group.confidence for group in groups} == {"", "exact", "traced", "numeric", "guessed"}


def test_steps_of_different_confidence_stay_apart():
    steps = [step(f"a_{n}", f"b_{n}", confidence="exact" if n else "guessed") for n in range(3)]
    found = [(group.paths.targets, group.confidence) for group in groups_of(plan(steps))]
    assert found == [(("a_0",), "guessed"), (("a_{1…2}",), "exact")]


# Verdicts ------------------------------------------------------------------------------------------------------------

ERROR = {"message": "no such file\nanywhere", "advice": "Look again.", "exit_code": 2}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (report(layered(1)), "✓ Converted and verified"),
        (report(layered(1), written=None), "✓ Verified"),
        (report(layered(1), verified=False, structure=None, values=None), "○ Converted, not verified"),
        (everything(), "✗ Different"),
        (plan(layered(1)), "○ Planned"),
        (plan(layered(1), problems=["a/b has no place"]), "✗ Refused"),
        ({"ok": False, "plan": plan([]), "error": {**ERROR, "exit_code": 3}}, "✗ Refused"),
        ({"ok": False, "error": ERROR}, "✗ Failed"),
        (alignment([pair(["params/a"], ["params/b"])]), "✓ Aligned and confirmed"),
        (alignment(aligned_layers()), "○ Aligned, with guesses"),
        (alignment([pair(["params/a"], ["params/b"])], error=ERROR, rules=None), "○ Aligned, but not as rules"),
        (refused_alignment(), "✗ Not aligned"),
    ],
)
def test_the_verdict_is_the_headline(value: dict[str, Any], words: str):
    page = Page(to_html(value))
    assert page.texts["h1"] == [words]
    assert page.text("title").startswith(words[2:])


def test_problems_and_advice_are_told_in_full():
    problems = [f"layers_{n}/bias has no place" for n in range(12)] + ["head/kernel: nothing becomes it"]
    error = {
        "message": "in: NNX → Linen: refused, 13 problems:\n  …",
        "advice": "--drop leaves it behind.",
        "exit_code": 3,
    }
    page = Page(to_html({"ok": False, "plan": plan([], problems=problems), "error": error}))
    assert "layers_{0…11}/bias has no place" in page.texts["li"]
    assert "head/kernel: nothing becomes it" in page.texts["li"]
    assert "--drop leaves it behind." in page.texts["p"]


def test_everything_that_is_told_is_there(full: Page):
    headings = {re.sub(r" [\d,]+$", "", text) for text in full.texts["h2"]}
    assert headings >= {
        *("Structure", "Values", "Outputs", "Bytes", "Confidence", "What to do", "Differences", "Trees"),
        *("Correspondence", "Dropped", "Filled in", "Holds nothing", "Conditions", "Notes"),
    }
    assert "params/layers_{0…2}/mlp/up/kernel" in full.texts["code"]
    assert {"unstack 4, axis 0", "concat, axis 1", "guessed"} <= set(full.texts["span"])
    text = full.text("p")
    for words in ("max rel 1.1e-06", "max ULP 12", "max abs inf", "bit for bit equal", "Seeds: 0, 1, 2"):
        assert words in text


# Alignments ----------------------------------------------------------------------------------------------------------


def test_an_alignment_is_told_as_pairs_of_linen_and_nnx():
    page = Page(to_html(alignment(aligned_layers(), unstated=["params/head: tied"])))
    assert page.texts["th"] == ["Linen", "NNX", "Array", "Operation", "Confidence"]
    assert "params/layer_{0…11}/up/kernel" in page.texts["code"]
    assert "blocks/{0…11}/up/w" in page.texts["code"], "without the collection, which no path in a module begins with"
    assert {"stack of 3", "guessed", " (not used by the call)", "nothing: dropped"} <= set(page.texts["span"])
    assert "only Linen adds it: it has to be zero" in page.text("span")
    assert '[[rule]]\nlinen = "params/<b>"\nnnx = "b"\n' in page.texts["pre"]
    assert "params/head: tied" in page.texts["li"]
    assert {"25 traced", "13 exact", "1 numeric", "1 guessed"} <= set(page.texts["b"])
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert inner <= set(page.ids)


def test_what_an_alignment_leaves_open_stands_with_what_would_settle_it():
    value = refused_alignment()
    page = Page(to_html(value))
    assert embedded(to_html(value)) == value
    for problem in value["problems"]:
        assert problem["problem"] in page.texts["li"]
        assert f"What would settle it: {problem['advice']}" in page.texts["p"]
    assert page.texts["span"].count("not known") == 4, "a badge in each tree, and in each row"
    assert "params/branch_{0…3}/kernel" in page.texts["code"]
    assert "twigs/{0…3}/w" in page.texts["code"]
    assert "Rule file" not in page.texts["h2"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"linen": {"params/a": "f", "params/b": "f"}, "nnx": {"params/a": "f"}}, "a counterpart for every variable"),
        ({"linen": {"params/a": "f"}, "nnx": {"params/a": "f"}}, "their outputs differ"),
    ],
)
def test_a_missing_confirmation_says_why(more: dict[str, Any], words: str):
    problems = [{"problem": "p", "advice": ""}]
    value = alignment([pair(["params/a"], ["params/a"])], variables=more, confirmed=False, outputs=None, ok=False)
    assert words in Page(to_html(value | {"problems": problems, "rules": None})).text("p")


# The plot ------------------------------------------------------------------------------------------------------------

NUMBERS = st.floats(min_value=0, allow_nan=False)


@given(st.lists(NUMBERS, min_size=2, max_size=8))
def test_larger_numbers_stand_further_right(numbers: list[float]):
    scale = scale_of(numbers)
    places = [scale.at(number) for number in sorted(numbers)]
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] <= 100
    assert scale.low < scale.high
    assert len(scale.ticks()) <= 7


def test_zero_and_infinity_stand_outside_of_the_scale():
    scale = scale_of([1e-6, 1e-3])
    assert scale.at(0) < scale.at(1e-300) < scale.at(1e-6) < scale.at(1e-3) < scale.at(float("inf"))


def test_of_many_outputs_the_worst_are_plotted():
    outputs = [output(f"layer_{n}", 1e-6 * (n + 1), 1e-2) for n in range(500)]
    value = report(layered(1), outputs={"ok": True, "inputs": ["f"], "problem": "", "outputs": outputs})
    page = Page(to_html(value))
    assert "The 60 worst of 500 outputs" in page.text("figcaption")
    assert "layer_499" in page.texts["code"]
    assert "layer_1" not in page.texts["code"]
