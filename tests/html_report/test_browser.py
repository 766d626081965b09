"""Pages looked at in a browser, as a user would: what is to be seen, pointed at, typed and read on a small screen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import converter
from converter.html_report.page import to_html
from tests.html_report.values import (
    aligned_layers,
    alignment,
    everything,
    layered,
    plan,
    refused_alignment,
    report,
    step,
    unlike,
)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

WIDTHS = (1280, 400)

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of the system, or the one that playwright has installed."""
    with playwright.sync_playwright() as started:
        own = started.chromium.executable_path
        found = next(filter(None, map(shutil.which, NAMES)), own if os.path.exists(own) else None)
        if found is None:
            pytest.skip(f"no browser is installed: none of {', '.join(NAMES)}")
        # Chromium refuses to run as root with its sandbox; the pages are our own.
        sandbox = [] if getattr(os, "geteuid", lambda: 1)() else ["--no-sandbox"]
        running = started.chromium.launch(executable_path=found, args=sandbox)
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page from a file; at the end nothing may have been complained about, nor asked from anywhere."""
    contexts, complaints, asked = [], [], []

    def open_page(value: Any, width: int = 1280, **settings: Any) -> Any:
        file = tmp_path / "page.html"
        file.write_text(value if isinstance(value, str) else to_html(value), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {address for address in asked if not address.startswith("data:")} <= {(tmp_path / "page.html").as_uri()}


def wide(page: Any) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth"))


# What is to be seen --------------------------------------------------------------------------------------------------


def test_a_real_conversion(opened: Open, fixtures_dir: Path, tmp_path: Path) -> None:
    source = fixtures_dir / "checkpoints/nnx_model_optimizer_standard/checkpoint"
    page = opened(converter.convert(source, tmp_path / "out", "linen").to_html())
    assert page.inner_text("h1") == "✓ Converted and verified"
    assert "nnx.State of {model, optimizer} → Linen TrainState" in page.inner_text(".banner")
    assert "✓ equal" in page.inner_text("#card-structure")
    assert "✓ equal" in page.inner_text("#card-values")
    assert "not checked" in page.inner_text("#card-outputs")
    assert "relink" in page.inner_text("#card-bytes")
    assert page.locator(".links .link").count() > 20
    assert page.locator("#dropped").get_by_text("model/block_{0…1}/dropout/rngs/key").is_visible()
    page.fill("#filter", "mu/block_1/attention/key")
    assert page.locator(".source .leaf:visible").count() == 2


def test_a_failure_says_what_differs(opened: Open) -> None:
    page = opened(everything())
    assert page.inner_text("h1") == "✗ Different"
    page.get_by_role("link", name="3 leaves differ").click()
    row = page.locator("#differences tbody tr").first
    assert row.inner_text().split("\t") == [
        "params/layers_{0…2}/mlp/up/kernel",
        "values",
        "1.0 at [0,0]",
        "2.0 there",
    ]
    beyond = page.locator(".output", has_text="✗ beyond")
    assert [text.split()[2] for text in beyond.all_inner_texts()] == ["hidden", "broken"]


@pytest.mark.parametrize("width", WIDTHS)
def test_each_difference_is_drawn_on_its_side_of_the_limit(width: int, opened: Open) -> None:
    page = opened(everything(), width)

    def middle(element: Any) -> float:
        box = element.bounding_box()
        return float(box["x"] + box["width"] / 2)

    outputs = page.locator(".output")
    assert outputs.count() == 4
    for number in range(4):
        output = outputs.nth(number)
        beyond = middle(output.locator(".mark")) > middle(output.locator(".limit"))
        assert beyond == ("✗" in output.inner_text())
        assert ("◆" if beyond else "●") == output.locator(".mark").text_content()


@pytest.mark.slow
@pytest.mark.parametrize("width", [*WIDTHS, 320])
@pytest.mark.parametrize(
    "value",
    [
        everything(),
        report([step("params/" + "a_long_name" * 12 + "/kernel", "model/" + "x" * 90 + "/kernel")], source="y" * 300),
        plan(layered(3), problems=["z" * 200 + " has no place"]),
        report(unlike(300)),
        alignment(aligned_layers(), linen="L" * 80, rules="# " + "r" * 300),
        refused_alignment(),
    ],
    ids=["everything", "long names", "problems", "many", "alignment", "refused alignment"],
)
def test_nothing_is_wider_than_the_screen(width: int, value: Any, opened: Open) -> None:
    page = opened(value, width)
    assert wide(page) <= width
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert wide(page) <= width


CONTRAST = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (color) => color.slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = numbers(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll("body *")].filter((element) =>
    element.checkVisibility() && !element.closest("script, svg, select") &&
    [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return texts.map((element) => {
    const [a, b] = [numbers(getComputedStyle(element).color), ground(element)].map(light).sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), element.className || element.tagName, element.textContent.slice(0, 40)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "value", [everything(), refused_alignment(), alignment(aligned_layers())], ids=["everything", "refused", "aligned"]
)
def test_text_stands_out_from_its_ground(value: Any, scheme: str, opened: Open) -> None:
    """At least 4.5 to 1, as WCAG 2.2 asks for (1.4.3)."""
    found = opened(value, color_scheme=scheme).evaluate(CONTRAST)
    assert len(found) > 100
    assert [each for each in found if each[0] < 4.5] == []


def test_both_schemes_are_different(opened: Open) -> None:
    grounds = {
        opened(report(layered(1)), color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert len(grounds) == 2


# The trees -----------------------------------------------------------------------------------------------------------

ENDS = """([group]) => {
  const frame = document.querySelector(".trees").getBoundingClientRect();
  const box = (side) =>
    document.querySelector(`.${side} [data-group="${group}"]`).closest("li").getBoundingClientRect();
  const [left, right] = [box("source"), box("target")];
  return [...document.querySelectorAll(".links .link")].map((line) => {
    const [start, end] = [line.getPointAtLength(0), line.getPointAtLength(line.getTotalLength())];
    return [start.x + frame.x - left.right, start.y + frame.y - left.y - left.height / 2,
            end.x + frame.x - right.left, end.y + frame.y - right.y - right.height / 2];
  });
}"""


@pytest.mark.parametrize("width", WIDTHS)
def test_lines_lead_from_each_leaf_to_its_counterpart(width: int, opened: Open) -> None:
    page = opened(everything(), width)
    groups = page.evaluate(
        "[...document.querySelectorAll('.source [data-group]')].map((each) => each.dataset.group)"
        ".filter((group) => document.querySelector(`.target [data-group='${group}']`))"
    )
    assert len(groups) == 12
    for group in groups:
        gaps = page.evaluate(ENDS, [group])
        assert [gap for gap in gaps if max(map(abs, gap)) <= 6], f"no line for group {group}: {gaps}"
    assert page.locator(".links .link").count() == 12


def test_lines_tell_what_kind_of_correspondence_they_are(opened: Open) -> None:
    page = opened(everything())
    kinds = {kind: page.locator(f".links .link.{kind}").count() for kind in ("same", "made", "unsure")}
    assert kinds == {"same": 8, "made": 2, "unsure": 2}
    assert "numeric or guessed" in page.inner_text(".legend")


def test_pointing_at_a_leaf_shows_its_counterpart(opened: Open) -> None:
    page = opened(everything())
    page.locator(".source .leaf", has_text="lm_head/kernel").hover()
    assert page.locator(".target .leaf.lit").inner_text() == "head/kernel float32[8,8] transpose"
    assert page.locator(".links .link.lit").count() == 1
    assert (
        page.inner_text("#told")
        == "lm_head/kernel → params/head/kernel · float32[8,8] · transpose · guessed · 256 B copy"
    )
    page.mouse.move(5, 5)
    assert page.locator(".lit").count() == 0


def test_the_keyboard_does_the_same(opened: Open) -> None:
    page = opened(everything())
    page.locator(".source summary").first.focus()
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.source') !== null")
    assert page.locator(".target .lit").count() == 1
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    row = page.evaluate("location.hash")
    assert page.locator(f"tbody{row}").is_visible()


def test_lines_follow_what_is_folded(opened: Open) -> None:
    page = opened(everything())
    page.get_by_role("button", name="Fold all", exact=True).click()
    lines = page.locator(".links .link")
    playwright.expect(lines).to_have_count(5)
    assert page.locator(".target .leaf:visible").all_inner_texts() == ["batch_stats/mean float32[8,8] filled in"]
    page.get_by_role("button", name="Unfold all").click()
    playwright.expect(lines).to_have_count(12)


FOUND = {
    "layers_3/mlp": 2,
    "layers/31/MLP/up": 1,
    "layers_32/mlp": 0,
    "tower/7/": 1,
    "gru/": 1,
    "parts_2": 1,
    "parts_4": 0,
    "head": 1,
    "[({": 0,
    "nowhere": 0,
    "": 15,
}
"""How many rows are found by a text."""


def test_filtering_by_path_looks_into_what_is_folded(opened: Open) -> None:
    page = opened(everything())
    for query, rows in FOUND.items():
        page.fill("#filter", query)
        assert page.locator("#pairs > tbody:visible").count() == rows, query
        assert page.inner_text("#matches") == (f"{rows} of 15 rows" if query else "")
    page.fill("#filter", "layers_3/mlp")
    assert page.locator(".target .leaf:visible").all_inner_texts() == [
        "up/kernel ×32 float32[8,8]",
        "down/kernel ×32 float32[8,8]",
    ]


# Alignments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_an_alignment(width: int, opened: Open, tmp_path: Path) -> None:
    value = alignment(aligned_layers())
    page = opened(value, width)
    assert page.inner_text("h1") == "○ Aligned, with guesses"
    assert page.locator(".tree h3").all_inner_texts() == ["Linen\nEncoder", "NNX\nDecoder"]
    assert "✓ confirmed" in page.inner_text("#card-confirmation")
    assert "int32[2,5] < 17" in page.inner_text("#card-confirmation")
    kinds = {kind: page.locator(f".links .link.{kind}").count() for kind in ("same", "made", "unsure")}
    assert kinds == {"same": 3, "made": 1, "unsure": 2}
    page.locator(".source .leaf", has_text="{q,k,v}/kernel").hover()
    assert "qkv/w" in page.inner_text(".target .leaf.lit")
    assert "stack of 3 · exact" in page.inner_text("#told")
    page.fill("#filter", "blocks/7/qkv")
    assert page.locator("#pairs > tbody:visible").count() == 1
    assert wide(page) <= width
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save the rule file").click()
    waiting.value.save_as(tmp_path / "map.toml")
    assert (tmp_path / "map.toml").read_text(encoding="utf-8") == value["rules"]


@pytest.mark.parametrize("width", WIDTHS)
def test_what_an_alignment_leaves_open(width: int, opened: Open) -> None:
    page = opened(refused_alignment(), width)
    assert page.inner_text("h1") == "✗ Not aligned"
    assert page.get_by_text("What would settle it: Give inputs that tell them apart.").is_visible()
    assert "✗ not confirmed" in page.inner_text("#card-confirmation")
    for side in ("source", "target"):
        assert page.locator(f".tree.{side} .badge.open:visible").count() == 1
    assert wide(page) <= width


# Without a script, and out of the page -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_can_be_read_without_scripts(width: int, opened: Open) -> None:
    page = opened(everything(), width, java_script_enabled=False)
    assert page.locator(".scripted:visible").count() == 0
    assert page.inner_text("h1") == "✗ Different"
    row = page.locator("#pairs > tbody", has_text="lm_head/kernel")
    for words in ("lm_head/kernel", "params/head/kernel", "transpose", "guessed", "copy"):
        assert row.get_by_text(words, exact=False).first.is_visible()
    folded = page.locator("#pairs > tbody").first
    folded.locator("summary").click()
    assert folded.get_by_text("layers/31/attention/query/kernel", exact=True).is_visible()


@pytest.mark.parametrize("value", [everything(), report(layered(400))], ids=["plain", "compressed"])
def test_the_json_can_be_saved(value: Any, opened: Open, tmp_path: Path) -> None:
    page = opened(value)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save the JSON").click()
    waiting.value.save_as(tmp_path / "saved.json")
    assert json.loads((tmp_path / "saved.json").read_text(encoding="utf-8")) == value


def test_names_do_nothing(opened: Open) -> None:
    evil = '</script><img src=x onerror="document.title=1"><script>document.title=2</script>'
    value = report([step(json.dumps(evil), json.dumps(evil))], source=evil)
    page = opened(value)
    assert page.title() == "Converted and verified: flax-convert"
    assert page.locator("img").count() == 0
    assert evil in page.inner_text(".banner")


@pytest.mark.slow
def test_a_page_of_fifty_thousand_unlike_leaves_can_be_used(opened: Open) -> None:
    page = opened(report(unlike(50_000)))
    assert page.get_by_text("The first 1,000 of 50,000 rows; the JSON has all.").is_visible()
    page.fill("#filter", "bcd")
    assert page.locator("#pairs > tbody:visible").count() == 1
