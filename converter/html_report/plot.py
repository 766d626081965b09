"""Differences between the outputs of both models: each against its limit, on one logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.html_report.markup import Markup, join, tag

SHOWN = 60
"""How many outputs are plotted; the worst ones, where there are more."""

TICKS = 5

LEFT, RIGHT = 10.0, 94.0
"""Where the scale begins and ends, in percent of the width; what is left of it stands for zero."""

NUMBERS = {"max_rel": "max rel", "max_ulp": "max ULP"}
"""What may be told of an output beside ``max_abs`` and ``limit``."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Whole decades, as exponents of ten."""

    low: int
    high: int

    def at(self, number: float) -> float:
        """Where a number stands, in percent of the width: zero at the left edge, what is infinite at the right one."""
        if number <= 0:
            return 2.0
        if not math.isfinite(number):
            return 99.0
        share = (math.log10(number) - self.low) / (self.high - self.low)
        return LEFT + min(max(share, 0.0), 1.0) * (RIGHT - LEFT)

    def ticks(self) -> list[int]:
        step = max(1, math.ceil((self.high - self.low) / TICKS))
        return list(range(self.low, self.high + 1, step))


def scale_of(numbers: Sequence[float]) -> Scale:
    """The decades that hold all numbers which a logarithm has."""
    exponents = [math.log10(number) for number in numbers if number > 0 and math.isfinite(number)]
    if not exponents:
        return Scale(-8, 0)
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))
    return Scale(low - 1, max(high, low) + 1)


def plot(outputs: Sequence[Mapping[str, Any]]) -> Markup:
    """A figure with one track for each output."""
    shown = list(outputs)
    if len(shown) > SHOWN:
        shown = sorted(shown, key=_badness, reverse=True)[:SHOWN]
    scale = scale_of([number for output in shown for number in (output["max_abs"], output["limit"])])
    rows = [_row(output, scale) for output in shown]
    left_out = len(outputs) > len(shown)
    more = f" The {SHOWN} worst of {len(outputs):,} outputs; the JSON has all." if left_out else None
    caption = tag(
        "figcaption",
        "Largest absolute difference of each output (",
        tag("span", "●", class_="good"),
        " within its limit, ",
        tag("span", "◆", class_="bad"),
        " beyond); the limit is the upright line, what lies beyond it is tinted. Logarithmic scale.",
        more,
    )
    return tag("figure", caption, *rows, _axis(scale), class_="plot")


def passes(output: Mapping[str, Any]) -> bool:
    return bool(output["bitwise"] or output["max_abs"] <= output["limit"])


def _badness(output: Mapping[str, Any]) -> float:
    if output["bitwise"]:
        return -1.0
    return float(output["max_abs"]) / output["limit"] if output["limit"] else math.inf * bool(output["max_abs"] or 0)


def _row(output: Mapping[str, Any], scale: Scale) -> Markup:
    good = passes(output)
    numbers = _numbers(output)
    words = tag(
        "p",
        tag("span", "✓ within" if good else "✗ beyond", class_="good" if good else "bad"),
        " ",
        tag("code", output["name"]),
        " ",
        tag("span", output["spec"], class_="spec"),
        tag("span", f" — {numbers}", class_="numbers"),
    )
    return tag("div", words, _track(output, scale, f"{output['name']}: {numbers}"), class_="output")


def _numbers(output: Mapping[str, Any]) -> str:
    if output["bitwise"]:
        return "bit for bit equal"
    told = [f"max abs {output['max_abs']:.3g}", f"limit {output['limit']:.3g}"]
    told += [f"{name} {_number(output[key])}" for key, name in NUMBERS.items() if output.get(key) is not None]
    return ", ".join(told)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _track(output: Mapping[str, Any], scale: Scale, label: str) -> Markup:
    found = scale.at(0.0 if output["bitwise"] else output["max_abs"])
    limit = scale.at(output["limit"])
    good = passes(output)
    kind = "good" if good else "bad"
    parts = [
        tag("rect", x=f"{limit:.2f}%", y=2, width=f"{100 - limit:.2f}%", height=18, class_="beyond"),
        *(tag("line", x1=_at(scale, e), y1=2, x2=_at(scale, e), y2=20, class_="grid") for e in scale.ticks()),
        tag("line", x1="0", y1=11, x2=f"{found:.2f}%", y2=11, class_=f"reach {kind}"),
        tag("line", x1=f"{limit:.2f}%", y1=0, x2=f"{limit:.2f}%", y2=22, class_="limit"),
        tag("text", "●" if good else "◆", x=f"{found:.2f}%", y=16, class_=f"mark {kind}"),
    ]
    return tag("svg", *parts, role="img", aria_label=label, width="100%", height=22)


def _axis(scale: Scale) -> Markup:
    labels = [tag("text", f"1e{exponent}", x=_at(scale, exponent), y=12) for exponent in scale.ticks()]
    zero = tag("text", "0", x="2%", y=12)
    return tag("svg", zero, join(*labels), class_="axis", width="100%", height=16, aria_hidden="true")


def _at(scale: Scale, exponent: int) -> str:
    return f"{LEFT + (exponent - scale.low) / (scale.high - scale.low) * (RIGHT - LEFT):.2f}%"
