"""The program is killed in the middle: the destination is what it was before, or all of what it should become."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.formats import FORMATS
from tests.building import tree_of

from .conftest import fingerprint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

PROGRAM = """
import importlib, os, signal, sys

module, _, name = sys.argv[1].rpartition(".")
owner, when, count = importlib.import_module(module), sys.argv[2], int(sys.argv[3])
called, original = 0, getattr(owner, name)

def killing(*arguments, **named):
    global called
    called += 1
    if when == "before" and called == count:
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **named)
    if when == "after" and called == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, killing)
sys.argv = ["flax-convert", *sys.argv[4:]]
from converter.cli import main
main()
"""

WRITER = "converter.formats.orbax.writer"

POINTS: Mapping[str, list[tuple[str, str, int]]] = {
    "orbax": [
        (f"{WRITER}.refuse_unsupported", "after", 1),
        ("os.link", "after", 1),
        (f"{WRITER}.write_database", "before", 1),
        (f"{WRITER}.write_database", "after", 1),
        ("os.replace", "before", 2),  # the manifest
        (f"{WRITER}.write_metadata", "after", 1),
        (f"{WRITER}.write_commit", "before", 1),
        (f"{WRITER}.write_commit", "after", 1),
        ("converter.conversion.verified", "before", 1),
        ("converter.conversion.verified", "after", 1),
        ("converter.run._publish", "before", 1),
        ("converter.run._publish", "after", 1),
    ],
    "msgpack": [
        ("converter.formats.msgpack.writer._nested", "before", 1),
        ("converter.formats.one_file.leaf_pieces", "before", 3),
        ("converter.formats.sharing.copy_range", "after", 1),
        ("os.fsync", "before", 1),
        ("os.fsync", "after", 1),
        ("converter.conversion.verified", "after", 1),
        ("converter.run._publish", "before", 1),
        ("converter.run._publish", "after", 1),
    ],
    "safetensors": [
        ("converter.formats.safetensors.writer.name_leaves", "before", 1),
        ("converter.formats.one_file.leaf_pieces", "before", 2),
        ("converter.formats.sharing.copy_range", "after", 1),
        ("converter.run._publish", "after", 1),
    ],
}
"""Where the program is killed: a function, before or after it runs, and the how-manieth time."""

REPLACING: list[tuple[str, str, int]] = [
    ("converter.run._exchange", "before", 1),
    ("converter.run._exchange", "after", 1),
    ("converter.run.remove", "after", 1),
]
"""The same where there is something to be replaced."""

QUICK = {("orbax", f"{WRITER}.write_metadata", False), ("msgpack", "converter.run._exchange", True)}

CASES = [
    pytest.param(
        format,
        point,
        force,
        marks=[] if (format, point[0], force) in QUICK and point[1] == "after" else [pytest.mark.slow],
        id=f"{format}-{point[1]}-{point[0].rpartition('.')[2]}-{point[2]}{'-force' * force}",
    )
    for format, points in POINTS.items()
    for force in (False, True)
    for point in [*points, *(REPLACING if force else [])]
]


@pytest.mark.parametrize(("format", "point", "force"), CASES)
def test_killed(
    format: str,
    point: tuple[str, str, int],
    force: bool,
    environment: dict[str, str],
    cli: Any,
    tmp_path: Path,
) -> None:
    kernels = {f"Dense_{number}": {"kernel": np.full((20 << number, 50), number, np.float32)} for number in range(6)}
    FORMATS["orbax"].write(tree_of({"params": kernels}), tmp_path / "source", lambda *_: None)
    name = "out" if format == "orbax" else f"out.{format}"
    if force:
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.msgpack").write_text("mine")
    old = fingerprint(tmp_path / name) if force else None
    source = fingerprint(tmp_path / "source")
    wanted = ["linen-to-nnx", "source", name, *["--force"] * force]
    command = [sys.executable, "-c", PROGRAM, *map(str, point), *wanted]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert fingerprint(tmp_path / "source") == source
    is_published = point[0] in ("converter.run._publish", "converter.run._exchange", "converter.run.remove")
    is_published = is_published and point[1] == "after"
    if is_published:
        assert cli("verify", "source", name).code == 0
    elif force:
        assert fingerprint(tmp_path / name) == old
    else:
        assert not os.path.lexists(tmp_path / name)
    left = {path.name for path in tmp_path.iterdir()} - {"source", name}
    assert all(each.startswith(".flax-convert-unfinished-") for each in left), left
    assert len(left) <= 1
    # What was left does not disturb the next attempt, and is not mistaken for a checkpoint that is complete.
    assert cli(*wanted, *["--force"] * (is_published and not force)).code == 0
    assert cli("verify", "source", name).code == 0
    assert {path.name for path in tmp_path.iterdir()} - {"source", name} == left
    assert fingerprint(tmp_path / "source") == source
