"""``python -m benchmarks``: the converter against today's way and against plain copying, whole processes in turn."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.cases import CASES, DEFAULT_LEAVES, DEFAULT_SIZES, QUICK_LEAVES, QUICK_SIZES
from benchmarks.measure import Rounds
from benchmarks.runner import Runner, plan
from benchmarks.targets import Measured, judge
from benchmarks.tree import SMALL_LAYERS, Scale

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
LEAVES_STEP = 2 * SMALL_LAYERS


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    scales = chosen(options.cases, options.sizes, options.leaves, quick=options.quick)
    if not any(scales.values()):
        parser().error(f"no case is named like {' '.join(options.cases)}; there are {', '.join(c.name for c in CASES)}")
    rounds = Rounds(
        options.rounds or (3 if options.quick else 5),
        options.slow_rounds,
        options.slow_after if options.slow_after is not None else (1.0 if options.quick else 60.0),
        warm_up=not options.quick,
    )
    _prepare()
    options.results.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="work-", dir=options.workdir or options.results)).resolve()
    runner = Runner(place, rounds, _say)
    results: list[Measured] = []
    try:
        for measured in runner.run(plan(scales)):
            results.append(measured)
            if measured.contenders:
                print(f"\n{report.table(measured)}\n", flush=True)
            _write(results, rounds, options.results / options.name)
    finally:
        runner.aside.close()
        shutil.rmtree(place, ignore_errors=True)
    print(report.targets_table(judge(results)))
    _draw(options.results / options.name)
    failed = [f"{r.case}, {r.scale}: {c.name}" for r in results for c in r.contenders if c.role == "ours" and c.note]
    if failed:
        sys.exit("failed: " + "; ".join(failed))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = made.add_argument
    add("--quick", action="store_true", help="fewer cases, small sizes, three rounds: about a minute")
    add("--cases", nargs="+", metavar="NAME", default=["*"], help="names of cases, or patterns such as 'leaves-*'")
    add("--sizes", nargs="+", metavar="SIZE", help=f"512MB, 2GB, … (default: {' '.join(DEFAULT_SIZES)})")
    add("--leaves", type=int, metavar="N", help=f"of the cases of small leaves (default: {DEFAULT_LEAVES})")
    add("--rounds", type=int, metavar="N", help="runs of each contender (default: 5, quick: 3)")
    add("--slow-rounds", type=int, default=1, metavar="N", help="runs of a slow contender (default: 1)")
    add("--slow-after", type=float, metavar="S", help="seconds from which on one is slow (default: 60, quick: 1)")
    add("--workdir", type=Path, metavar="DIR", help="where checkpoints are made (default: in the results' folder)")
    add("--results", type=Path, metavar="DIR", default=RESULTS, help="where results go (default: benchmarks/results)")
    add("--name", metavar="NAME", default="bench", help="of the result's files (default: bench)")
    return made


def chosen(
    patterns: Sequence[str], sizes: Sequence[str] | None, leaves: int | None, *, quick: bool
) -> dict[str, list[Scale]]:
    """The scales of every case that is asked for. Cases and sizes that are named go before those of ``quick``.

    Raises:
      SystemExit: a size cannot be read, or the number of leaves is no multiple of ``LEAVES_STEP``.
    """
    number = leaves or (QUICK_LEAVES if quick else DEFAULT_LEAVES)
    if number < LEAVES_STEP or number % LEAVES_STEP:
        sys.exit(f"--leaves {number}: it has to be a multiple of {LEAVES_STEP}")
    cases = [case for case in CASES if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)]
    if quick and list(patterns) == ["*"]:
        cases = [case for case in cases if case.name in QUICK_SIZES]
    scales: dict[str, list[Scale]] = {}
    for case in cases:
        default = QUICK_SIZES.get(case.name, QUICK_SIZES["stack"]) if quick else DEFAULT_SIZES
        try:
            large = [Scale.parse(size) for size in sizes or default]
        except ValueError as error:
            sys.exit(f"--sizes: {error}")
        scales[case.name] = [Scale(leaves=number)] if case.small else large
    return scales


def _prepare() -> None:
    """The same surroundings for all processes. If memory runs out, the kernel shall take one of them and no other."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Libraries are compiled to bytecode when they are installed, this package the first time it runs.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.chdir(ROOT)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _say(text: str, start: float = time.monotonic()) -> None:
    print(f"[{time.monotonic() - start:6.0f} s] {text}", file=sys.stderr, flush=True)


def _write(results: Sequence[Measured], rounds: Rounds, path: Path) -> None:
    """After every case, so that a run that ends early leaves its results."""
    outcomes = judge(results)
    path.with_suffix(".txt").write_text(report.as_text(results, outcomes), encoding="utf-8")
    content = json.dumps(report.as_json(results, outcomes, rounds), indent=1, ensure_ascii=False)
    path.with_suffix(".json").write_text(content + "\n", encoding="utf-8")


def _draw(path: Path) -> None:
    from benchmarks import plot

    try:
        plot.main(str(path.with_suffix(".json")), str(path.with_suffix(".svg")))
    except ImportError:
        print("no picture: matplotlib is missing (pip install '.[bench]')", file=sys.stderr)


if __name__ == "__main__":
    main()
