"""The results as text and as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import CASES
from benchmarks.measure import Rounds, Runs, ratio
from benchmarks.targets import Measured, Outcome

PACKAGES = ("flax-convert", "flax", "jax", "orbax-checkpoint", "tensorstore", "msgpack", "numpy")
MARKS = {True: "met", False: "missed", None: "open"}
COLUMNS = f"{'':<36}{'× today':>9}{'× limit':>9}{'wall s':>9}{'from':>9}{'to':>9}{'cpu s':>8}{'peak MB':>9}{'runs':>6}"


def as_text(results: Sequence[Measured], outcomes: Sequence[Outcome]) -> str:
    """All tables, and the targets below them."""
    parts = [table(result) for result in results if result.contenders]
    return "\n\n".join([*parts, targets_table(outcomes)]) + "\n"


def table(result: Measured) -> str:
    """The contenders of one case at one scale."""
    title = next(case.title for case in CASES if case.name == result.case)
    today, limit = result.first("today"), result.first("limit")
    lines = [f"{title}: {result.scale} [{result.case}]", COLUMNS]
    lines += [_line(runs, today, limit) for runs in result.contenders]
    if limit is not None:
        lines.append(f"× today: how many times as fast as today's way; × limit: times as long as {limit.name}")
    return "\n".join(lines)


def _line(runs: Runs, today: Runs | None, limit: Runs | None) -> str:
    if not runs.runs:
        return f"{runs.name:<36}  {runs.note}"
    seconds = [run.seconds for run in runs.runs]
    return (
        f"{runs.name:<36}{_times(ratio(today, runs)):>9}{_times(ratio(runs, limit)):>9}"
        f"{runs.seconds:>9.3f}{min(seconds):>9.3f}{max(seconds):>9.3f}{runs.cpu:>8.2f}{runs.peak_mb:>9.0f}"
        f"{len(seconds):>6}"
    )


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}×"


def targets_table(outcomes: Sequence[Outcome]) -> str:
    """One line for each target: met, missed, or open where this run did not measure it."""
    lines = ["Targets"]
    lines += [f"{MARKS[o.met]:<8}{o.target.case:<25}{o.target.contender:<26}{o.text:<44}{o.measured}" for o in outcomes]
    return "\n".join(lines) if outcomes else "Targets: none was measured"


def as_json(results: Sequence[Measured], outcomes: Sequence[Outcome], rounds: Rounds) -> dict[str, Any]:
    """Everything: every run, the medians and ratios, the targets and where it was measured."""
    return {
        "environment": _environment(),
        "rounds": dataclasses.asdict(rounds),
        "cases": [_case_as_json(result) for result in results if result.contenders],
        "targets": [
            {
                "case": outcome.target.case,
                "contender": outcome.target.contender,
                "target": outcome.text,
                "measured": outcome.measured,
                "outcome": MARKS[outcome.met],
            }
            for outcome in outcomes
        ],
    }


def _case_as_json(result: Measured) -> dict[str, Any]:
    today, limit = result.first("today"), result.first("limit")
    return {
        "case": result.case,
        "scale": str(result.scale),
        "megabytes": result.scale.nbytes / 1e6,
        "leaves": result.scale.count,
        "contenders": [
            {
                "name": runs.name,
                "role": runs.role,
                "note": runs.note,
                "median_seconds": runs.seconds if runs.runs else None,
                "median_cpu_seconds": runs.cpu if runs.runs else None,
                "peak_mb": runs.peak_mb if runs.runs else None,
                "times_as_fast_as_today": ratio(today, runs),
                "times_the_limit": ratio(runs, limit),
                "runs": [{"seconds": run.seconds, "cpu": run.cpu, "peak_mb": run.peak_mb} for run in runs.runs],
            }
            for runs in result.contenders
        ],
    }


def _environment() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
