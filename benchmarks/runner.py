"""One run of the benchmark: makes the sources, lets the contenders run in turn, checks what they made, cleans up."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from benchmarks.aside import Aside
from benchmarks.cases import CASES, Case, Contender
from benchmarks.check import check_result, spec_text
from benchmarks.measure import Failed, Rounds, Run, Runs, alternate, available_mb, run_process
from benchmarks.sources import make_source
from benchmarks.targets import Measured
from benchmarks.tree import Scale

BIN = Path(sys.executable).parent
RULES = Path(__file__).with_name("stack.toml")
ODD = Scale(megabytes=1)
"""The size of the pair of checkpoints that differ in one bit."""
COPIES_ON_DISK = 3.5
"""Room that must be free, in sizes of the source: for itself, the pair of a verification, a result half written."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A case at a scale, and where its checkpoints are."""

    case: Case
    scale: Scale
    place: Path

    @property
    def source(self) -> Path:
        return self.place / ("source.msgpack" if self.case.source.endswith("msgpack") else "source")

    @property
    def destination(self) -> Path:
        return self.place / ("result.msgpack" if self.case.makes and self.case.makes[0] == "msgpack" else "result")

    @property
    def log(self) -> Path:
        return self.place / "log"

    def run(self, contender: Contender) -> Run:
        """Once, the result is kept. Raises: Failed."""
        return run_process(words(contender.command, self.source, self.destination), self.log)

    def run_and_remove(self, contender: Contender) -> Run:
        """Once, the result is removed after the time was taken. Raises: Failed."""
        try:
            return self.run(contender)
        finally:
            if self.case.makes is not None:
                remove(self.destination)


@dataclass(slots=True)
class Runner:
    """Where it takes place, and what it says on the way."""

    place: Path
    rounds: Rounds
    say: Callable[[str], None]
    aside: Aside = field(default_factory=Aside)
    peaks: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    """Case and contender → bytes of the checkpoint and peak MB, at the last size that was measured."""

    def run(self, plan: Sequence[tuple[Scale, Sequence[Case]]]) -> Iterator[Measured]:
        """Every case at every scale, one source after the other; yields as soon as a case is done."""
        for scale, cases in plan:
            for kind, group in groupby(cases, key=lambda case: case.source):
                trials = [Trial(case, scale, self.place) for case in group]
                source = trials[0].source
                try:
                    self._demand_room(scale)
                    self.say(f"{kind}, {scale}: making the source")
                    self.aside(make_source, kind, scale, source)
                    yield from map(self._measure, trials)
                except Failed as error:
                    self.say(f"{kind}, {scale}: skipped, {error}")
                finally:
                    remove(source)

    def _measure(self, trial: Trial) -> Measured:
        case, name = trial.case, f"{trial.case.name}, {trial.scale}"
        contenders = [contender for contender in case.contenders if known(contender)]
        left_out = [contender.name for contender in case.contenders if contender not in contenders]
        if case.pair is not None and not known(case.pair):
            self.say(f"{name}: skipped, the command line has no {case.pair.needs}")
            return Measured(case.name, trial.scale, [])
        self.say(f"{name}: {len(contenders)} contenders" + (f", without {', '.join(left_out)}" if left_out else ""))
        try:
            if case.pair is not None:
                trial.run(case.pair)
            first = {c.name: functools.partial(self._first, trial, c) for c in contenders}
            again = {c.name: functools.partial(trial.run_and_remove, c) for c in contenders}
            results = alternate(first, again, self.rounds)
        except Failed as error:
            return Measured(case.name, trial.scale, [Runs("the pair that is verified", "ours", note=str(error))])
        finally:
            remove(trial.destination)
        for contender, result in zip(contenders, results, strict=True):
            result.role = contender.role
            if result.runs:
                self.peaks[case.name, contender.name] = (trial.scale.nbytes, result.peak_mb)
        return Measured(case.name, trial.scale, results)

    def _first(self, trial: Trial, contender: Contender) -> Run:
        """A run whose result is checked."""
        self._demand_memory(trial, contender)
        try:
            run = trial.run(contender)
            if contender.looks:
                _demand_shapes(trial.log, trial.scale)
            elif contender.role != "limit":
                self._demand_right_result(trial, contender)
        finally:
            if trial.case.makes is not None:
                remove(trial.destination)
        return run

    def _demand_room(self, scale: Scale) -> None:
        free = shutil.disk_usage(self.place).free
        if free < COPIES_ON_DISK * scale.nbytes:
            raise Failed(f"only {free / 1e9:.0f} GB are free")

    def _demand_memory(self, trial: Trial, contender: Contender) -> None:
        """Whole trees in memory grow with the checkpoint: what it took at a smaller size tells what it will take."""
        available = available_mb()
        before = self.peaks.get((trial.case.name, contender.name))
        if contender.role != "today" or available is None or before is None:
            return
        needed = before[1] * trial.scale.nbytes / before[0]
        if before[0] >= 10**8 and needed > 0.9 * available:
            raise Failed(f"skipped: needs about {needed / 1000:.0f} GB of memory, {available / 1000:.0f} GB are free")

    def _demand_right_result(self, trial: Trial, contender: Contender) -> None:
        if trial.case.makes is None:
            self._demand_refusal(contender)
        elif wrong := self.aside(check_result, trial.destination, *trial.case.makes, trial.scale):
            raise Failed(f"a wrong result: {wrong}")

    def _demand_refusal(self, contender: Contender) -> None:
        """A verifier that accepts two checkpoints with a different bit is no contender."""
        source, destination = self.place / "odd-source", self.place / "odd-result"
        try:
            self.aside(make_source, "nnx", ODD, source)
            self.aside(make_source, "linen-odd", ODD, destination)
            run_process(words(contender.command, source, destination), self.place / "log")
        except Failed as error:
            if str(error).startswith("exit code 1:"):
                return
            raise
        finally:
            remove(source)
            remove(destination)
        raise Failed("it accepted a pair that differs in one bit")


def _demand_shapes(log: Path, scale: Scale) -> None:
    """What a command prints about a checkpoint has to show its leaves, in whatever words."""
    printed = log.read_text(encoding="utf-8", errors="replace")
    for shape in scale.shapes.values():
        if spec_text("float32", shape) not in printed:
            raise Failed(f"its output does not show {spec_text('float32', shape)}")


def words(command: str, source: Path, destination: Path) -> list[str]:
    """The words of a command, its placeholders filled in."""
    places = {"SRC": source, "DST": destination, "RULES": RULES, "flax-convert": BIN / "flax-convert"}
    return [str({**places, "python": sys.executable}.get(word, word)) for word in shlex.split(command)]


def known(contender: Contender) -> bool:
    """Whether the command line has the option that the contender needs."""
    if not contender.needs:
        return True
    return re.search(rf"{contender.needs}(?![\w-])", _help(contender.command.split()[1])) is not None


@functools.cache
def _help(command: str) -> str:
    asked = [str(BIN / "flax-convert"), command, "--help"]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(asked, capture_output=True, encoding="utf-8", check=True, env=environment).stdout


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def plan(scales: Mapping[str, Sequence[Scale]]) -> list[tuple[Scale, list[Case]]]:
    """Which cases run at which scale, the smallest scale first, from the scales of each case by its name."""
    ordered = sorted({scale for wanted in scales.values() for scale in wanted})
    return [(scale, [case for case in CASES if scale in scales.get(case.name, ())]) for scale in ordered]
