"""Running the command line: in this process for speed, in a process of its own to prove the real thing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

TERMINAL = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
"""A terminal that looks the same everywhere."""

DISTURBING = (
    "CLICOLOR_FORCE",
    "FORCE_COLOR",
    "GITHUB_ACTIONS",
    "PY_COLORS",
    "TERMINAL_WIDTH",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
)
"""Variables by which rich is talked into colours and widths."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-sessions",
        action="store_true",
        help="write what the commands in tests/commands/sessions print now into the session files",
    )


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def checkpoints(fixtures_dir: Path) -> Path:
    return fixtures_dir / "checkpoints"


@pytest.fixture(scope="session")
def models(fixtures_dir: Path) -> str:
    """The file that ``file.py:factory`` names in the tests."""
    return str(fixtures_dir / "models.py")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs ``flax-convert`` in this process, in the test's temporary directory."""
    for name in DISTURBING:
        monkeypatch.delenv(name, raising=False)
    for name, value in TERMINAL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> Result:
        from converter.cli import main

        out, err = _stream(), _stream()
        handler = signal.getsignal(signal.SIGTERM)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["flax-convert", *map(str, arguments)])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            # What the user's own files leave behind must not reach the next run.
            patch.setattr(sys, "path", [*sys.path])
            for name in "models", "unlike":
                patch.delitem(sys.modules, name, raising=False)
            try:
                code = _exit_code(main)
            finally:
                signal.signal(signal.SIGTERM, handler)
        return Result(code, _text(out), _text(err))

    return run


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return bytes(stream.buffer.getvalue()).decode()  # type: ignore[attr-defined]


def _exit_code(main: Callable[[], None]) -> int:
    try:
        main()
    except SystemExit as left:
        code = left.code or 0
    else:
        code = 0
    assert isinstance(code, int), f"left with the text {code!r}"
    return code


# Real processes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of a process that runs the command line from this working tree."""
    kept = {name: value for name, value in os.environ.items() if name not in DISTURBING}
    # Processes that may write no more than a few bytes would leave bytecode behind that is cut off.
    own = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **TERMINAL, **own}


@pytest.fixture
def process(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs ``python -m converter`` in the test's temporary directory."""

    def run(*arguments: Any, timeout: float = 120, **options: Any) -> Result:
        command = [sys.executable, "-m", "converter", *map(str, arguments)]
        options = {"cwd": tmp_path, "env": environment, "stdin": subprocess.DEVNULL, **options}
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, **options)
        return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    return run


# Files ---------------------------------------------------------------------------------------------------------------


Fingerprint = dict[str, tuple[str, int, int]]


def fingerprint(path: Path) -> Fingerprint:
    """Kind and content, mode and time of change of everything at and below a path."""
    return {str(place.relative_to(path)): _state(place) for place in [path, *sorted(path.rglob("*"))]}


def _state(place: Path) -> tuple[str, int, int]:
    status = place.lstat()
    return _content(place), status.st_mode, status.st_mtime_ns


def _content(place: Path) -> str:
    if place.is_symlink():
        return f"link to {os.readlink(place)}"
    if place.is_file():
        return hashlib.sha256(place.read_bytes()).hexdigest()
    return "directory" if place.is_dir() else "special"


@pytest.fixture
def contents(tmp_path: Path) -> Callable[[], dict[str, str]]:
    """Tells what stands in the test's directory. Unlike a fingerprint it leaves out the times of directories, which
    change when something is made in them and removed again.
    """
    return lambda: {str(place.relative_to(tmp_path)): _content(place) for place in tmp_path.rglob("*")}


@pytest.fixture
def untouched(checkpoints: Path, tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[None]]:
    """A context in which whatever exists of the given paths must not change, by a byte or a nanosecond."""

    @contextlib.contextmanager
    def watch(*paths: Any) -> Iterator[None]:
        places = {Path(os.path.abspath(tmp_path / str(path))) for path in paths if str(path)}
        ours = [p for p in places if os.path.lexists(p) and (tmp_path in p.parents or checkpoints in p.parents)]
        before = {place: fingerprint(place) for place in ours}
        yield
        for place, state in before.items():
            assert fingerprint(place) == state, f"{place} has been changed"

    return watch


@pytest.fixture
def refuses(cli: Run, contents: Any, untouched: Any) -> Callable[..., str]:
    """Runs a command that has to fail well, and returns its standard error.

    Well is: the exit code (or one of several), one error that mentions all of ``mentions`` and ends in a line of
    advice, no traceback, no output, nothing left behind, and nothing changed that was named on the command line.
    """

    def run(code: int | tuple[int, ...], *arguments: Any, mentions: Any = ()) -> str:
        before = contents()
        with untouched(*arguments):
            result = cli(*arguments)
        shown = f"exit code {result.code}\n{result.err}\n{result.out}"
        assert result.code in (code if isinstance(code, tuple) else (code,)), shown
        assert contents() == before, "something was left behind or removed"
        assert result.err.startswith("error: "), shown
        assert result.err.count("error: ") == 1, shown
        assert "Traceback" not in result.err, shown
        assert not result.out or {"--json", "--dry-run"} & set(map(str, arguments)), shown
        for words in [mentions] if isinstance(mentions, str) else mentions:
            assert str(words) in result.err, shown
        assert len(result.err.splitlines()) > 1, f"no advice: {shown}"
        return result.err

    return run


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of 48 MiB, which takes a moment to convert."""
    yield from _sized(tmp_path_factory.mktemp("large"), 12)


@pytest.fixture(scope="session")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of 192 MiB, which takes seconds to convert."""
    yield from _sized(tmp_path_factory.mktemp("huge"), 48)


def _sized(place: Path, layers: int) -> Iterator[Path]:
    """A checkpoint of layers of 4 MiB each that cannot be compressed; it is removed at the end."""
    import numpy as np
    from flax import serialization

    generator = np.random.default_rng(0)
    kernels = (generator.standard_normal((1024, 1024), dtype=np.float32) for _ in range(layers))
    params = {f"layer_{number}": {"kernel": kernel} for number, kernel in enumerate(kernels)}
    (place / "source.msgpack").write_bytes(serialization.msgpack_serialize({"params": params}))
    yield place / "source.msgpack"
    shutil.rmtree(place)
