"""Golden sessions: what the commands print, to the letter.

A session is a text file ``sessions/NAME.session``::

    # A line of comment.
    $ flax-convert inspect $FIXTURES/linen_dense_standard/checkpoint
    | a line of standard output
    ! a line of standard error
    ? 0

``$ flax-convert …`` is run with the words of the line, split as a shell would; below it stand what it prints and its
exit code. Blank lines and comments may stand between commands. Each session runs in an empty directory of its own.

* ``$TMP`` is that directory, ``$FIXTURES`` that of the committed checkpoints, ``$MODELS`` the file with their models,
  ``$UNLIKE`` that with the models whose variables differ, ``$CALLS`` that with models that are called otherwise or have
  a fault, ``$RULES`` the directory of rule files. The same names stand for these paths in the output.
* ``$TIME``, ``$HEX``, ``$NUMBER`` and ``$VERSION`` stand in the output for what differs from run to run.
* ``% cp FROM TO``, ``% mkdir PATH``, ``% rm PATH`` and ``% flip FILE`` (the last byte) prepare files.
* ``@ click 8.5`` compares the outputs of the session only where that version is installed.

Sessions are written anew, outputs only, with ``pytest tests/commands --update-sessions``; read the difference before
committing it.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

SESSIONS = Path(__file__).parent / "sessions"
NAMES = sorted(path.stem for path in SESSIONS.glob("*.session"))

SLOW = {"align", "allow_lossy", "outputs", "rules"}
"""Sessions that run models many times."""

NORMALISED = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\+00:00)?"), "$TIME"),
    (re.compile(r"(?<=by flax-convert )\d[\w.]*"), "$VERSION"),
    (re.compile(r"(?<=unfinished-)[0-9a-f]{8}"), "$HEX"),
    (re.compile(r"(?<=max abs difference )\S+ \(limit \S+\)"), "$NUMBER (limit $NUMBER)"),
    (re.compile(r"(?<=max relative )\S+, \d+(?= ULP)"), "$NUMBER, $NUMBER"),
    (re.compile(r"(?<=outputs differ by )\S+"), "$NUMBER"),
    (re.compile(r'(?<="max_abs": )(?!0\.0,)[^,]+'), "$NUMBER"),
    (re.compile(r'(?<="limit": )[^,]+|(?<="difference": )\d[^,]*'), "$NUMBER"),
    (re.compile(r'(?<="max_relative": )(?!0\.0,)[^,]+|(?<="max_ulp": )(?!0,)[^,]+'), "$NUMBER"),
    (re.compile(r"(?<=NumPy )\d[\w.]*|(?<=ml_dtypes )\d[\w.]*"), "$VERSION"),
)


@dataclass(frozen=True, slots=True)
class Block:
    """One command with its expected outcome, or lines that are kept as they are (``command`` is empty)."""

    command: str
    lines: tuple[str, ...]


def parse(text: str) -> list[Block]:
    blocks: list[Block] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("$ flax-convert"):
            blocks.append(Block(line[2:], ()))
        elif line[:1] in ("|", "!", "?"):
            last = blocks[-1] if blocks else Block("", ())
            assert last.command, f"line {number}: output without a command"
            blocks[-1] = replace(last, lines=(*last.lines, line))
        else:
            assert not line or line[0] in "#%@", f"line {number}: cannot read {line!r}"
            blocks.append(Block("", (line,)))
    return blocks


def unparse(blocks: list[Block]) -> str:
    return "".join(
        f"{line}\n" for block in blocks for line in ([f"$ {block.command}"] if block.command else []) + [*block.lines]
    )


class Place:
    """The directory of a running session, and the names of the paths."""

    def __init__(self, directory: Path, checkpoints: Path, models: str) -> None:
        self.names = {"$TMP": str(directory), "$FIXTURES": str(checkpoints), "$MODELS": models}
        self.names |= {"$UNLIKE": str(checkpoints.parent / "unlike.py"), "$RULES": str(checkpoints.parent / "rules")}
        self.names["$CALLS"] = str(checkpoints.parent / "calls.py")

    def words(self, line: str) -> list[str]:
        return [self._filled(word) for word in shlex.split(line)]

    def _filled(self, word: str) -> str:
        for name, path in self.names.items():
            word = word.replace(name, path)
        return word

    def normalised(self, text: str) -> str:
        for name, path in self.names.items():
            text = text.replace(path, name)
        for pattern, name in NORMALISED:
            text = pattern.sub(name, text)
        return text

    def prepare(self, line: str) -> None:
        """Executes a ``%`` line."""
        verb, *paths = self.words(line)
        first = Path(paths[0])
        match verb:
            case "cp" if first.is_dir():
                shutil.copytree(first, paths[1])
            case "cp":
                shutil.copy(first, paths[1])
            case "mkdir":
                first.mkdir(parents=True)
            case "rm" if first.is_dir():
                shutil.rmtree(first)
            case "rm":
                first.unlink()
            case "flip":
                data = first.read_bytes()
                first.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            case _:
                raise AssertionError(f"no such preparation: {line!r}")

    def outcome(self, result: Any) -> tuple[str, ...]:
        lines = [f"| {line}".rstrip() for line in self.normalised(result.out).splitlines()]
        lines += [f"! {line}".rstrip() for line in self.normalised(result.err).splitlines()]
        return (*lines, f"? {result.code}")


def play(blocks: list[Block], place: Place, run: Callable[..., Any]) -> Iterator[Block]:
    """Runs a session; yields its blocks with the outcomes they have now."""
    for block in blocks:
        if block.command:
            _, *arguments = place.words(block.command)
            yield replace(block, lines=place.outcome(run(*arguments)))
            continue
        if block.lines[0].startswith("%"):
            place.prepare(block.lines[0][1:])
        yield block


def skip_unless_recorded_for(blocks: list[Block]) -> None:
    for line in (line for block in blocks for line in block.lines if line.startswith("@")):
        _, distribution, version = line.split()
        installed = importlib.metadata.version(distribution)
        if not f"{installed}.".startswith(f"{version}."):
            pytest.skip(f"recorded with {distribution} {version}, this is {installed}")


def compare(found: str, expected: str) -> None:
    difference = difflib.unified_diff(expected.splitlines(), found.splitlines(), "recorded", "found", lineterm="", n=8)
    text = "\n".join(difference)
    if text:
        pytest.fail(f"{text}\n\nIf this is as it should be: pytest tests/commands --update-sessions", pytrace=False)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NAMES])
def test_session(
    name: str, cli: Any, tmp_path: Path, checkpoints: Path, models: str, request: pytest.FixtureRequest
) -> None:
    file = SESSIONS / f"{name}.session"
    blocks = parse(file.read_text())
    updating = request.config.getoption("--update-sessions", default=False)
    if not updating:
        skip_unless_recorded_for(blocks)
    played = list(play(blocks, Place(tmp_path, checkpoints, models), cli))
    if updating:
        file.write_text(unparse(played))
    compare(unparse(played), file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_session_in_processes_of_its_own(
    name: str, process: Any, tmp_path: Path, checkpoints: Path, models: str
) -> None:
    """What warnings and logs would add to standard error shows only here."""
    file = SESSIONS / f"{name}.session"
    blocks = parse(file.read_text())
    skip_unless_recorded_for(blocks)
    played = list(play(blocks, Place(tmp_path, checkpoints, models), process))
    compare(unparse(played), file.read_text())
