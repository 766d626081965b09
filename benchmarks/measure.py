"""Timing whole processes, start-up included: wall time, processor time and peak memory.

This module and whatever starts the measured processes stays small: on Linux a process begins its life with the peak
memory of the one that started it, so nothing heavy may be imported here.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Turns = Mapping[str, Callable[[], "Run"]]
"""Contender → one run of it, which may raise ``Failed``."""


class Failed(Exception):
    """A process ended with an error, or with a result that is not right."""


@dataclass(frozen=True, slots=True)
class Run:
    """One process and those it waited for: seconds of wall time, of user + system time, MB (10^6 bytes) at the peak."""

    seconds: float
    cpu: float
    peak_mb: float


@dataclass(slots=True)
class Runs:
    """The counted runs of one contender, and a note if there is something to say about them."""

    name: str
    role: str
    runs: list[Run] = field(default_factory=list)
    note: str = ""

    @property
    def seconds(self) -> float:
        return statistics.median(run.seconds for run in self.runs)

    @property
    def cpu(self) -> float:
        return statistics.median(run.cpu for run in self.runs)

    @property
    def peak_mb(self) -> float:
        """The highest, not the median: memory is what a machine must have."""
        return max(run.peak_mb for run in self.runs)


def ratio(numerator: Runs | None, denominator: Runs | None) -> float | None:
    """The quotient of the median times, or None if one was not measured."""
    if numerator is None or denominator is None or not numerator.runs or not denominator.runs:
        return None
    return numerator.seconds / denominator.seconds


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often: ``usual`` runs; a contender that needs more than ``slow_after`` seconds gets ``slow`` runs.

    ``warm_up``: the first run of those that are not slow comes on top and is not counted.
    """

    usual: int = 5
    slow: int = 1
    slow_after: float = 60.0
    warm_up: bool = True


def alternate(first: Turns, again: Turns, rounds: Rounds) -> list[Runs]:
    """Runs all contenders in turn, round after round, every second round backwards; roles are left empty.

    The first run of a slow contender is counted: its runs are too dear for warming up.
    A contender that fails is not run again, and has no runs: its note says why.

    Args:
      first: the contenders' first runs, which also check the result.
      again: those after it.
    """
    results = {name: Runs(name, "") for name in first}
    left = dict.fromkeys(first, rounds.usual)
    for name, run in first.items():
        taken = _attempt(results[name], run)
        if taken is None:
            left[name] = 0
        elif taken.seconds > rounds.slow_after or not rounds.warm_up:
            results[name].runs.append(taken)
            left[name] = (rounds.slow if taken.seconds > rounds.slow_after else rounds.usual) - 1
    for number in range(rounds.usual):
        for name in again if number % 2 else reversed(list(again)):
            if left[name] > 0:
                taken = _attempt(results[name], again[name])
                left[name] = left[name] - 1 if taken else 0
                results[name].runs += [taken] if taken else []
    return list(results.values())


def _attempt(result: Runs, run: Callable[[], Run]) -> Run | None:
    try:
        return run()
    except Failed as error:
        result.runs.clear()
        result.note = str(error)
        return None


def run_process(command: Sequence[str], log: Path) -> Run:
    """Runs a command, its output into a file.

    Raises:
      Failed: it ended with an error; the message is the end of its output.
    """
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"exit code {process.returncode}: {_complaint(log)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def _complaint(log: Path) -> str:
    """The line that begins with "error:", else the last one."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1][:200]


def available_mb() -> float | None:
    """The memory that can be had without swapping, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 / 1e6 if found else None
