"""What the converter is meant to reach, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.cases import CASES
from benchmarks.measure import Runs, ratio
from benchmarks.tree import Scale

Kind = Literal["faster", "at most", "peak", "flat"]
FLAT = 1.25
"""The highest peak of all sizes over the lowest that still counts as flat."""


@dataclass(frozen=True, slots=True)
class Target:
    """faster: at least ``bound`` times as fast as today's way; at most: no more than ``bound`` times the limit's time;
    peak: no more than ``bound`` MB at any size, of which one has to be as large as that given here; flat: the highest
    peak is at most ``bound`` times the lowest, and the sizes given here are among those measured.
    """

    case: str
    kind: Kind
    bound: float
    sizes: tuple[str, ...]
    contender: str = "flax-convert"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``met`` is None where the run did not measure what the target is about; ``measured`` may still say something."""

    target: Target
    text: str
    measured: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Measured:
    """A case at a scale, with the runs of all its contenders."""

    case: str
    scale: Scale
    contenders: Sequence[Runs]

    def named(self, name: str) -> Runs | None:
        return next((runs for runs in self.contenders if runs.name == name and runs.runs), None)

    def first(self, role: str) -> Runs | None:
        """The contender that others are compared with, the first of its role."""
        runs = next((runs for runs in self.contenders if runs.role == role), None)
        return runs if runs and runs.runs else None


REWRAPS = ("rename", "stack", "unstack")
VERIFIES = ("verify-linked", "verify-copied")
SLOPE = ("512MB", "8GB")
SMALL = tuple(case for case in CASES if case.small)

TARGETS: tuple[Target, ...] = (
    *(Target(case, "faster", 40, ("2GB",)) for case in REWRAPS),
    *(Target(case, "faster", 150, ("8GB",)) for case in REWRAPS),
    *(Target(case, "peak", 120, ("2GB",)) for case in REWRAPS),
    *(Target(case, "flat", FLAT, SLOPE) for case in REWRAPS),
    Target("msgpack-to-orbax", "faster", 15, ("2GB",)),
    Target("msgpack-to-orbax", "at most", 3, ("2GB",)),
    Target("msgpack-to-orbax", "peak", 300, ("2GB",)),
    Target("msgpack-to-orbax", "flat", FLAT, SLOPE),
    Target("orbax-to-msgpack", "faster", 4, ("2GB",)),
    Target("orbax-to-msgpack", "peak", 400, ("2GB",)),
    Target("orbax-to-msgpack", "flat", FLAT, SLOPE),
    *(Target(case, "at most", 2, ("2GB",), "flax-convert verify") for case in VERIFIES),
    *(Target(case, "peak", 400, ("2GB",), "flax-convert verify") for case in VERIFIES),
    *(
        Target(case.name, "faster", 10, ("50,000 leaves",), contender.name)
        for case in SMALL
        for contender in case.contenders
        if contender.role == "ours"
    ),
)


def judge(results: Sequence[Measured], targets: Sequence[Target] = TARGETS) -> list[Outcome]:
    """Every target of a measured contender, with what was measured.

    A ratio is judged at the target's own size only; at another size, the largest measured, it is shown but not judged.
    """
    outcomes = []
    for target in targets:
        found = [result for result in results if result.case == target.case and result.named(target.contender)]
        if found:
            outcomes.append(
                _judge_peak(target, found) if target.kind in ("peak", "flat") else _judge_time(target, found)
            )
    return outcomes


def _judge_time(target: Target, found: Sequence[Measured]) -> Outcome:
    size = Scale.parse(target.sizes[0])
    result = next((result for result in found if result.scale == size), max(found, key=lambda result: result.scale))
    ours = result.named(target.contender)
    if target.kind == "faster":
        value, text = ratio(result.first("today"), ours), f"≥ {target.bound:g}× as fast as today at {size}"
    else:
        value, text = ratio(ours, result.first("limit")), f"≤ {target.bound:g}× the time of copying at {size}"
        text = text.replace("copying", "reading") if target.case in VERIFIES else text
    if value is None:
        return Outcome(target, text, "nothing to compare with", None)
    met = value >= target.bound if target.kind == "faster" else value <= target.bound
    if result.scale != size:
        return Outcome(target, text, f"{value:.1f}× at {result.scale}", None)
    return Outcome(target, text, f"{value:.1f}×", met)


def _judge_peak(target: Target, found: Sequence[Measured]) -> Outcome:
    peaks = {result.scale: runs.peak_mb for result in found if (runs := result.named(target.contender))}
    if target.kind == "peak":
        text, highest = f"peak ≤ {target.bound:g} MB", max(peaks.values())
        if highest <= target.bound and max(peaks) < Scale.parse(target.sizes[0]):
            return Outcome(target, text, f"{highest:.0f} MB up to {max(peaks)}", None)
        return Outcome(target, text, f"{highest:.0f} MB", highest <= target.bound)
    text = f"peak flat from {Scale.parse(target.sizes[0])} to {Scale.parse(target.sizes[1])}"
    if len(peaks) < 2:
        return Outcome(target, text, "one size", None)
    value = max(peaks.values()) / min(peaks.values())
    asked = all(Scale.parse(size) in peaks for size in target.sizes)
    shown = f"{value:.2f}×" if asked else f"{value:.2f}× from {min(peaks)} to {max(peaks)}"
    return Outcome(target, text, shown, value <= target.bound if asked else None)
