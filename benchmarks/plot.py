"""The results as a picture: wall time and peak memory over the size, one row for each case.

Usage: python -m benchmarks.plot RESULT.json PICTURE.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROLE_COLOURS = {
    "ours": ("#0b5fa5", "#4a9bd9", "#0a8f7a", "#7b52ab", "#5ec2b5"),
    "today": ("#c8501e",),
    "limit": ("#555555", "#aaaaaa"),
}
MARKERS = {"ours": "o", "today": "s", "limit": "^"}
MEASURES = (("median_seconds", "wall time, s"), ("peak_mb", "peak memory, MB"))


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws the picture of a JSON result.

    Raises:
      ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(case["case"] for case in results["cases"]))
    if not names:
        return
    figure, axes = plt.subplots(len(names), 2, figsize=(12, 3.2 * len(names)), squeeze=False, layout="constrained")
    for row, name in zip(axes, names, strict=True):
        cases = [case for case in results["cases"] if case["case"] == name]
        for axis, (key, label) in zip(row, MEASURES, strict=True):
            _bars(axis, cases[0], key) if len(cases) == 1 else _lines(axis, cases, key)
            title = f"{name}, {cases[0]['scale']}" if len(cases) == 1 else name
            axis.set_title(f"{title}: {label}", fontsize=10, loc="left")
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25, which="major")
        if len(cases) > 1:
            row[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def styles(cases: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Contender → colour and marker: every role has a hue of its own, whichever contenders were measured."""
    found: dict[str, tuple[str, str]] = {}
    counts = dict.fromkeys(ROLE_COLOURS, 0)
    for case in cases:
        for contender in case["contenders"]:
            role = contender["role"]
            if contender["name"] not in found:
                colours = ROLE_COLOURS[role]
                found[contender["name"]] = (colours[counts[role] % len(colours)], MARKERS[role])
                counts[role] += 1
    return found


def _lines(axis: Any, cases: list[dict[str, Any]], key: str) -> None:
    for name, (colour, marker) in styles(cases).items():
        points = [
            (case["megabytes"], contender[key])
            for case in cases
            for contender in case["contenders"]
            if contender["name"] == name and contender[key] is not None
        ]
        if points:
            axis.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.5, label=name)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks([case["megabytes"] for case in cases], [case["scale"] for case in cases])
    axis.minorticks_off()


def _bars(axis: Any, case: dict[str, Any], key: str) -> None:
    colours = styles([case])
    contenders = [contender for contender in reversed(case["contenders"]) if contender[key] is not None]
    names = [contender["name"] for contender in contenders]
    bars = axis.barh(names, [contender[key] for contender in contenders], color=[colours[name][0] for name in names])
    axis.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=7)
    axis.tick_params(axis="y", labelsize=8)
    axis.margins(x=0.12)


def main(result: str, picture: str) -> None:
    draw(json.loads(Path(result).read_text(encoding="utf-8")), Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])
