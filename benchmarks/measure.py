"""Timing whole processes: wall time and peak memory, several commands in turn so that a drifting machine hits all."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Measured:
    """The runs of one command: seconds of wall time, MiB of peak resident memory."""

    name: str
    seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def peak(self) -> float:
        return max(self.peak_mib)


def run_in_turn(
    commands: dict[str, Sequence[str]], rounds: int, before_each: Callable[[], None]
) -> dict[str, Measured]:
    """Runs every command once to warm up and then ``rounds`` times, A B C A B C …

    Raises:
      SystemExit: a command fails; its output is shown.
    """
    results = {name: Measured(name) for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            before_each()
            seconds, peak = _run(command)
            if number:
                results[name].seconds.append(seconds)
                results[name].peak_mib.append(peak)
    return results


def _run(command: Sequence[str]) -> tuple[float, float]:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment())
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{output.decode(errors='replace')}")
    kib = usage.ru_maxrss / 1024 if sys.platform == "darwin" else usage.ru_maxrss
    return seconds, kib / 1024


def _environment() -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
