"""``python -m benchmarks``: converting an Orbax checkpoint, against today's way and against copying the files."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Measured, run_in_turn

LAYERS = 20
SIZES_MIB = (64, 256, 1024)
QUICK_SIZES_MIB = (16, 64)

MAKE_SOURCE = """
import sys
import numpy as np, orbax.checkpoint as ocp
path, mib, layers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rows = mib * 2**20 // (layers * 4 * 1024)
rng = np.random.default_rng(0)
params = {f"layer_{i}": {"kernel": rng.standard_normal((rows, 1024), dtype="float32")} for i in range(layers)}
ocp.PyTreeCheckpointer().save(path, {"params": params})
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small sizes and two rounds, in under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    sizes, rounds = (QUICK_SIZES_MIB, 2) if arguments.quick else (SIZES_MIB, 5)
    figures = []
    for mib in sizes:
        with tempfile.TemporaryDirectory(prefix="flax-convert-bench-") as name:
            results = _measure(Path(name), mib, rounds)
        runs = {result.name: {"seconds": result.seconds, "mib": result.peak_mib} for result in results.values()}
        figures.append({"mib": mib, "runs": runs})
        _print(mib, results)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def _measure(place: Path, mib: int, rounds: int) -> dict[str, Measured]:
    source, destination = place / "source", place / "destination"
    make = [sys.executable, "-c", MAKE_SOURCE, str(source), str(mib), str(LAYERS)]
    subprocess.run(make, check=True, capture_output=True)
    convert = [sys.executable, "-m", "converter", "linen-to-nnx", "-q", str(source), str(destination)]
    commands = {
        "flax-convert, verified": convert,
        "flax-convert --no-verify": [*convert, "--no-verify"],
        "Orbax restore + rename + save": [sys.executable, "-m", "benchmarks.todays_way", str(source), str(destination)],
        "cp -r": ["cp", "-r", str(source), str(destination)],
    }
    return run_in_turn(commands, rounds, lambda: shutil.rmtree(destination, ignore_errors=True))


def _print(mib: int, results: dict[str, Measured]) -> None:
    today = results["Orbax restore + rename + save"].median
    print(f"\nLinen → NNX, Orbax → Orbax, {mib} MiB in {LAYERS} float32 leaves")
    print(f"{'':<32}{'time / today':>14}{'peak memory':>14}")
    for result in results.values():
        print(f"{result.name:<32}{result.median / today:>14.2f}{result.peak:>10.0f} MiB")


if __name__ == "__main__":
    main()
