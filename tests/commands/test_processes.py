"""The program as its users run it: in a process of its own, with pipes, signals and terminals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of POSIX")

ODD = Path(__file__).parent / "odd_models.py"
COMMAND = (sys.executable, "-m", "converter")

INTERRUPTED = (130, -signal.SIGINT)
"""Where the interpreter notices that an interruption came while it executed C code, it ends itself by SIGINT; a shell
says 130 of that too."""


def test_exit_codes(process: Any, checkpoints: Path, tmp_path: Path) -> None:
    source = checkpoints / "nnx_dense_standard/checkpoint"
    (tmp_path / "exists").touch()
    for code, *arguments in (
        (0, "nnx-to-linen", source, "out"),
        (1, "verify", checkpoints / "nnx_mlp_standard/checkpoint", "out"),
        (2, "inspect", "missing"),
        (2, "inspect"),
        (3, "nnx-to-linen", source, "refused", "--drop", "typo"),
        (4, "nnx-to-linen", source, "exists"),
        (5, "nnx-to-linen", source, "model", "--nnx-model", f"{ODD}:raises"),
    ):
        result = process(*arguments)
        assert result.code == code, f"{arguments}: {result}"
        assert "Traceback" not in result.err, f"{arguments}: {result}"
        assert bool(result.err) == (code > 1), f"{arguments}: {result}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exists", "out"]


def test_debug_adds_the_traceback_and_keeps_the_exit_code(process: Any, checkpoints: Path, tmp_path: Path) -> None:
    source = checkpoints / "nnx_dense_standard/checkpoint"
    (tmp_path / "exists").touch()
    for code, *arguments in (
        (2, "inspect", "missing"),
        (4, "nnx-to-linen", source, "exists"),
        (5, "nnx-to-linen", source, "model", "--nnx-model", f"{ODD}:raises"),
    ):
        result = process(*arguments, "--debug")
        assert "Traceback" in result.err
        assert "raise" in result.err
        assert result.code == code


def test_nothing_heavy_is_imported_for_help_and_inspect(process: Any, checkpoints: Path, tmp_path: Path) -> None:
    for arguments in ("--help",), ("inspect", str(checkpoints / "linen_dense_standard/checkpoint")):
        program = (
            "import runpy, sys\n"
            f"sys.argv = ['flax-convert', *{arguments!r}]\n"
            "try:\n    runpy.run_module('converter', run_name='__main__')\n"
            "except SystemExit as left:\n    assert not left.code\n"
            "print([name for name in ('flax', 'jax', 'orbax') if name in sys.modules], file=sys.stderr)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(ODD.parent.parent.parent)}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=60
        )
        assert done.stderr.decode() == "[]\n"


# Standard output -----------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_pipe() -> Iterator[int]:
    """A pipe that nobody reads any more, as after ``| head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def run(arguments: Sequence[Any], environment: dict[str, str], where: Path, stdout: Any) -> tuple[int, str]:
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=where, env=environment, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=120
    )
    return done.returncode, done.stderr.decode()


def test_a_reader_that_goes_away(
    broken_pipe: int, environment: dict[str, str], checkpoints: Path, cli: Any, tmp_path: Path
) -> None:
    source = checkpoints / "nnx_transformer_list_standard/checkpoint"
    for arguments in ("inspect", source), ("nnx-to-linen", source, "out", "--verbose"):
        assert run(arguments, environment, tmp_path, broken_pipe) == (0, ""), arguments
    assert cli("verify", source, "out").code == 0
    for arguments in ("--help",), ("--version",), ("nnx-to-linen", "--help"):
        assert run(arguments, environment, tmp_path, broken_pipe) == (0, ""), arguments


def test_head(environment: dict[str, str], checkpoints: Path, tmp_path: Path) -> None:
    source = checkpoints / "nnx_split_tuple_standard/checkpoint"
    line = f"'{sys.executable}' -m converter inspect '{source}' | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"path           {source}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_cannot_be_written(environment: dict[str, str], checkpoints: Path, tmp_path: Path) -> None:
    inspecting = ("inspect", checkpoints / "linen_dense_standard/checkpoint")
    for arguments in inspecting, ("--help",), ("--version",), ("verify", "-h"):
        with open("/dev/full", "wb") as full:
            code, error = run(arguments, environment, tmp_path, full)
        assert code == 4
        assert "No space left" in error
        assert "defect" not in error, "a full disk is no defect of the program"


def test_no_standard_output(environment: dict[str, str], checkpoints: Path, cli: Any, tmp_path: Path) -> None:
    """As where a service manager closes it."""
    source = checkpoints / "nnx_dense_standard/checkpoint"
    line = f"'{sys.executable}' -m converter nnx-to-linen '{source}' out >&-"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert cli("verify", source, "out").code == 0


def test_an_output_without_arrows(environment: dict[str, str], checkpoints: Path, process: Any) -> None:
    """Logs and older consoles know fewer characters than the texts use (cp1252 has … but no →)."""
    source = checkpoints / "nnx_transformer_list_standard/checkpoint"
    for encoding in "ascii", "cp1252":
        for arguments in ("inspect", source), ("nnx-to-linen", source, f"out-{encoding}"), ("inspect", "missing→"):
            result = process(*arguments, env={**environment, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
            assert result.code == (2 if "missing→" in arguments else 0), result
            assert "Unicode" not in result.err


# Signals -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the program in the directory ``work``; whatever still runs at the end is killed."""
    running: list[subprocess.Popen[bytes]] = []
    (tmp_path / "work").mkdir()

    def begin(*arguments: Any) -> subprocess.Popen[bytes]:
        command = [*COMMAND, *map(str, arguments)]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # A shell without a terminal starts its background jobs, this test run perhaps among them, with SIGINT ignored.
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        running.append(subprocess.Popen(command, cwd=tmp_path / "work", env=environment, **options))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[bytes], number: int, moment: Callable[[], bool]) -> bool:
    """Sends a signal as soon as the moment has come; the process cannot run on in between. False if it was over."""
    deadline = time.monotonic() + 60
    while not moment():
        assert time.monotonic() < deadline, "the moment never came"
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    process.send_signal(signal.SIGSTOP)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    return True


def names(place: Path) -> list[str]:
    """Everything below a directory that another process works in."""
    try:
        return [str(path.relative_to(place)) for path in place.rglob("*")]
    except OSError:  # something has gone since its directory was read
        return []


def written(place: Path) -> int:
    """The size of the largest file below a directory that another process works in."""
    sizes = [0]
    for name in names(place):
        try:
            sizes.append((place / name).stat().st_size)
        except OSError:
            continue
    return max(sizes)


def assert_interrupted(process: subprocess.Popen[bytes], place: Path) -> None:
    """Nothing is there; or, where the signal came after the point of no return, everything."""
    output, error = process.communicate(timeout=60)
    if process.returncode == 0:
        assert "equal" in output.decode()
        assert names(place)
        assert not [name for name in names(place) if "unfinished" in name]
        return
    assert names(place) == [], f"left behind; {error.decode()}"
    assert process.returncode in INTERRUPTED, error.decode()
    assert error.decode() in ("", "interrupted; the destination was not touched\n")
    assert not output


def ended_in_time(process: subprocess.Popen[bytes], place: Path) -> None:
    """The signal came when everything was done: then the result is there as a whole."""
    output, error = process.communicate(timeout=60)
    assert process.returncode == 0, error.decode()
    assert "equal" in output.decode()
    assert not [name for name in names(place) if "unfinished" in name]


def slowly(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


MSGPACK_MOMENTS: dict[str, Callable[[Path], bool]] = {
    "at the first file": lambda place: any("unfinished" in name for name in names(place)),
    "in the middle": lambda place: written(place) > 20 << 20,
    "at the end": lambda place: written(place) > 47 << 20,
}

ORBAX_MOMENTS: dict[str, Callable[[Path], bool]] = {
    "at the first directory": lambda place: bool(names(place)),
    "at the first arrays": lambda place: any("/d/" in name for name in names(place)),
    "in the middle": lambda place: written(place) > 1 << 20,
    "at the end": lambda place: any("_METADATA" in name and "CHECK" not in name for name in names(place)),
}


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("at the first file", signal.SIGTERM),
        slowly("at the first file", signal.SIGINT),
        slowly("in the middle", signal.SIGTERM),
        ("in the middle", signal.SIGINT),
        slowly("at the end", signal.SIGTERM),
        slowly("at the end", signal.SIGINT),
    ],
)
def test_interrupted_while_msgpack_is_written(
    moment: str, number: int, start: Any, large: Path, untouched: Any, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with untouched(large):
        process = start("linen-to-nnx", large, place / "new/out.msgpack")
        if interrupt(process, number, lambda: MSGPACK_MOMENTS[moment](place)):
            assert_interrupted(process, place)
        else:
            ended_in_time(process, place)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        slowly("at the first directory", signal.SIGTERM),
        slowly("at the first directory", signal.SIGINT),
        slowly("at the first arrays", signal.SIGTERM),
        slowly("at the first arrays", signal.SIGINT),
        slowly("in the middle", signal.SIGTERM),
        slowly("in the middle", signal.SIGINT),
        slowly("at the end", signal.SIGTERM),
        slowly("at the end", signal.SIGINT),
    ],
)
def test_interrupted_while_orbax_writes(
    moment: str, number: int, start: Any, large: Path, untouched: Any, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with untouched(large):
        process = start("linen-to-nnx", large, place / "out")
        if interrupt(process, number, lambda: ORBAX_MOMENTS[moment](place)):
            assert_interrupted(process, place)
        else:
            ended_in_time(process, place)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ORBAX_MOMENTS)
def test_interrupted_while_orbax_writes_for_long(
    moment: str, number: int, start: Any, huge: Path, untouched: Any, tmp_path: Path
) -> None:
    """However much there is to be written."""
    place = tmp_path / "place"
    place.mkdir()
    with untouched(huge):
        process = start("linen-to-nnx", huge, place / "out")
        if interrupt(process, number, lambda: ORBAX_MOMENTS[moment](place)):
            assert_interrupted(process, place)
        else:
            ended_in_time(process, place)


def test_interrupted_again_while_tidying_up(
    cli: Any, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    def remove(path: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        rmtree(path)
        removed.append(path)

    rmtree = shutil.rmtree
    removed: list[Path] = []
    monkeypatch.setattr("converter.formats.orbax.writer.write_commit", interrupted)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    monkeypatch.setattr("converter.run.remove", remove)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = cli("linen-to-nnx", checkpoints / "linen_dense_standard/checkpoint", "new/out")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (result.code, result.out) == (130, ""), result.err
    assert len(removed) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("moment", "delay"),
    [
        ("in the middle", 0.3),
        *(slowly(moment, delay) for moment in ORBAX_MOMENTS for delay in (0.0, 0.05, 0.3, 0.6, 1.2)),
    ],
)
def test_interrupted_twice(moment: str, delay: float, start: Any, large: Path, tmp_path: Path) -> None:
    """Who sees nothing happen presses Ctrl-C again: tidying up must go on."""
    place = tmp_path / "place"
    place.mkdir()
    process = start("linen-to-nnx", large, place / "out")
    if not interrupt(process, signal.SIGINT, lambda: ORBAX_MOMENTS[moment](place)):
        ended_in_time(process, place)
        return
    time.sleep(delay)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    assert_interrupted(process, place)


@pytest.mark.parametrize("option", ["--nnx-model", slowly("--inputs")])
def test_interrupted_in_user_code(option: str, start: Any, checkpoints: Path, tmp_path: Path) -> None:
    place, source = tmp_path / "place", checkpoints / "nnx_dense_standard/checkpoint"
    place.mkdir()
    process = start("nnx-to-linen", source, place / "out", option, f"{ODD}:sleeps")
    assert interrupt(process, signal.SIGTERM, (tmp_path / "work/begun").exists)
    assert_interrupted(process, place)


@pytest.mark.parametrize("name", [slowly("out"), "new/out.msgpack"])
def test_interrupted_while_the_result_is_verified(
    name: str, start: Any, checkpoints: Path, models: str, tmp_path: Path
) -> None:
    """Everything has been written, but not under its name."""
    place, source = tmp_path / "place", checkpoints / "nnx_dense_standard/checkpoint"
    place.mkdir()
    options = ("--nnx-model", f"{ODD}:nnx_sleeping", "--linen-model", f"{models}:linen_dense")
    process = start("nnx-to-linen", source, place / name, *options, "--input", "float32[2,4]")
    assert interrupt(process, signal.SIGTERM, (tmp_path / "work/begun").exists)
    assert_interrupted(process, place)


def test_interrupted_while_an_old_result_stands_there(
    start: Any, checkpoints: Path, models: str, untouched: Any, tmp_path: Path
) -> None:
    place, source = tmp_path / "place", checkpoints / "nnx_dense_standard/checkpoint"
    (place / "out").mkdir(parents=True)
    (place / "out/old.msgpack").write_text("mine")
    options = ("--nnx-model", f"{ODD}:nnx_sleeping", "--linen-model", f"{models}:linen_dense", "--force")
    with untouched(place / "out"):
        process = start("nnx-to-linen", source, place / "out", *options, "--input", "float32[2,4]")
        assert interrupt(process, signal.SIGINT, (tmp_path / "work/begun").exists)
        _, error = process.communicate(timeout=60)
    assert process.returncode in INTERRUPTED, error.decode()
    assert names(place) == ["out", "out/old.msgpack"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.2, 0.4, 0.7, 1.0, 1.4])
def test_interrupted_while_it_starts(seconds: float, number: int, start: Any, large: Path, tmp_path: Path) -> None:
    """Before the program can do anything about it the interpreter ends in its own way; there is nothing to tidy up."""
    place = tmp_path / "place"
    place.mkdir()
    process = start("linen-to-nnx", large, place / "out.msgpack")
    began = time.monotonic()
    if interrupt(process, number, lambda: time.monotonic() > began + seconds):
        process.communicate(timeout=60)
        assert process.returncode in (0, *INTERRUPTED, -signal.SIGTERM, 1)
        assert names(place) == [] or process.returncode == 0
    else:
        ended_in_time(process, place)


@pytest.mark.slow
def test_an_interrupted_verify(start: Any, checkpoints: Path, models: str, tmp_path: Path) -> None:
    linen, nnx = checkpoints / "linen_dense_standard/checkpoint", checkpoints / "nnx_dense_standard/checkpoint"
    options = ("--nnx-model", f"{ODD}:nnx_sleeping", "--linen-model", f"{models}:linen_dense", "--json")
    process = start("verify", linen, nnx, *options, "--input", "float32[2,4]")
    assert interrupt(process, signal.SIGTERM, (tmp_path / "work/begun").exists)
    _, error = process.communicate(timeout=60)
    assert process.returncode in INTERRUPTED
    assert "Traceback" not in error.decode()


# The whole program ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo(process: Any, tmp_path: Path) -> None:
    result = process("demo", "--keep", "kept", timeout=300)
    assert (result.code, result.err) == (0, "")
    assert result.out.rstrip().endswith("Everything is equal.")
    assert "DIFFERENT" not in result.out
    assert str(tmp_path) not in result.out
    shown = json.loads(process("inspect", "kept/dense", "--json").out)
    assert shown["dialects"][0]["framework"] == "Linen"
    again = process("demo", "--keep", "kept")
    assert again.code == 4
    assert "kept" in again.err
