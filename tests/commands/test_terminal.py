"""What is shown where: help and its exit codes, progress, colour."""

from __future__ import annotations

import io
import json
import os
import re
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from converter import console
from converter.errors import EXIT_CODES, EXIT_DIFFERENCE

COMMANDS = ("inspect", "nnx-to-linen", "linen-to-nnx", "verify", "diff", "demo")

# Help ----------------------------------------------------------------------------------------------------------------


def flat(text: str) -> str:
    """A text without line breaks and indentation."""
    return " ".join(text.split())


def test_help_lists_the_commands_and_the_exit_codes(cli: Any) -> None:
    shown = flat(cli("--help").out)
    assert all(re.search(rf"\b{command} [A-Z]", shown) for command in COMMANDS)
    listed = shown.partition("Exit codes: ")[2]
    assert listed == " ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option_with_all_of_its_text(command: str, cli: Any) -> None:
    from converter.cli import app

    result = cli(command, "--help")
    assert (result.code, result.err) == (0, "")
    shown = flat(result.out)
    assert len(app.commands[command].params) > 1
    for parameter in app.commands[command].params:
        names = parameter.opts if isinstance(parameter, click.Option) else [parameter.human_readable_name]
        for name in names:
            assert re.search(rf"(?<![\w-]){name}(?![\w-])", shown), name
        text = parameter.help if isinstance(parameter, click.Option) else parameter.text
        assert flat(text) in shown, f"{parameter.name}: {text}"


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_help_fits_the_terminal(command: str | None, columns: int, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = cli(*[command] * (command is not None), "--help").out.splitlines()
    assert max(map(len, lines)) <= min(columns, 100)
    assert not [line for line in lines if line.endswith("-")], "an option is broken at a hyphen"


def test_inspect_speaks_of_its_own_argument(cli: Any) -> None:
    """The argument of ``inspect`` is called CKPT; there is no SRC."""
    assert "SRC" not in cli("inspect", "--help").out


def test_h_is_short_for_help(cli: Any) -> None:
    assert cli("-h") == cli("--help")
    assert cli("verify", "-h") == cli("verify", "--help")
    assert cli("diff", "-h") == cli("diff", "--help")


def test_the_readme_lists_the_exit_codes(fixtures_dir: Path) -> None:
    readme = fixtures_dir.parent / "README.md"
    if not readme.is_file():
        pytest.skip("there is no README.md")
    section = re.search(r"^#+ *Exit codes *\n(.*?)(?=^#|\Z)", readme.read_text(), re.DOTALL | re.MULTILINE | re.I)
    assert section, "README.md has no section about exit codes"
    listed = re.findall(r"^\W*(\d+)\W+(.*?)[\s|]*$", section[1], re.MULTILINE)
    assert {int(code): meaning.replace("`", "") for code, meaning in listed} == EXIT_CODES


def of_any_run(printed: str) -> str:
    """Without times, and without differences of outputs, which depend on the machine and its compiler."""
    without_times = re.sub(r"\d{4}-\d\d-\d\dT\S+", "TIME", printed)
    numbers = r"(?<=max abs difference )\S+|(?<=limit )[^)]+|(?<=max relative )\S+|\d+(?= ULP)|(?<=differ by )\S+"
    return re.sub(numbers, "NUMBER", without_times)


def test_the_commands_of_the_readme_print_what_it_shows(cli: Any, fixtures_dir: Path, tmp_path: Path) -> None:
    readme = fixtures_dir.parent / "README.md"
    if not readme.is_file():
        pytest.skip("there is no README.md")
    (tmp_path / "fixtures").symlink_to(fixtures_dir)
    blocks = re.findall(
        r"^```\n\$ flax-convert ((?:[^\n]*\\\n)*[^\n]*)\n(.*?)^```", readme.read_text(), re.DOTALL | re.MULTILINE
    )
    assert blocks, "README.md shows no command"
    for line, shown in blocks:
        result = cli(*shlex.split(line.replace("\\\n", " ")))
        assert (result.code, result.err) == (EXIT_DIFFERENCE if "DIFFERENT" in shown else 0, ""), line
        printed = of_any_run(result.out.replace(f"{tmp_path}/", ""))
        expected, cut, _ = of_any_run(shown).partition("…\n")
        assert printed.startswith(expected) if cut else printed == expected, f"{line}\n{printed}"


# JSON ----------------------------------------------------------------------------------------------------------------


def test_json_is_one_value(cli: Any, checkpoints: Path) -> None:
    """Whatever happens, standard output is a single JSON value that a program can read."""
    decided = checkpoints / "nnx_dense_standard/checkpoint"
    undecided = checkpoints / "nnx_custom_standard/checkpoint"
    for code, *arguments in (
        (0, "inspect", decided),
        (0, "nnx-to-linen", decided, "plan", "--dry-run"),
        (0, "nnx-to-linen", decided, "out"),
        (0, "verify", decided, "out"),
        (0, "diff", decided, "out", "--values"),
        (1, "diff", decided, undecided),
        (2, "diff", decided, "missing"),
        (4, "nnx-to-linen", decided, "out"),
        (3, "nnx-to-linen", undecided, "refused"),
        (3, "nnx-to-linen", undecided, "refused", "--dry-run"),
        (3, "verify", undecided, checkpoints / "linen_custom_standard/checkpoint"),
        (2, "inspect", "missing"),
    ):
        result = cli(*arguments, "--json")
        assert result.code == code, f"{arguments}: {result}"
        value = json.loads(result.out)
        assert bool(value.get("error")) == (code > 1), f"{arguments}: {result.out}"


def test_json_says_why_a_dry_run_is_refused(cli: Any, checkpoints: Path) -> None:
    source = checkpoints / "nnx_custom_standard/checkpoint"
    result = cli("nnx-to-linen", source, "out", "--dry-run", "--json")
    assert '"problems": [\n' in result.out
    assert "mean: float32[3]" in result.out


def test_a_refused_dry_run_tells_its_problems_once(cli: Any, checkpoints: Path) -> None:
    """On a terminal both streams stand below each other."""
    result = cli("nnx-to-linen", checkpoints / "nnx_custom_standard/checkpoint", "out", "--dry-run")
    assert result.code == 3
    assert (result.out + result.err).count("mean: float32[3]: nothing tells") == 1


# Progress ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of progress at every leaf instead of every few seconds."""
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)


LINE = re.compile(r"(\d+)% of ([\d,]+) MiB")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ["out", "out.msgpack"])
def test_progress_is_told_in_lines_where_no_terminal_is(name: str, cli: Any, large: Path) -> None:
    result = cli("linen-to-nnx", large, name)
    assert result.code == 0
    lines = [LINE.fullmatch(line) for line in result.err.splitlines()]
    assert all(lines), result.err
    # 48 MiB are written and read again.
    assert {line[2] for line in lines if line} == {"96"}
    shares = [int(line[1]) for line in lines if line]
    assert len(shares) > 10
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert not LINE.search(result.out)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("option", ["--quiet", "--json", "--dry-run"])
def test_progress_can_be_silenced(option: str, cli: Any, large: Path) -> None:
    result = cli("linen-to-nnx", large, "out.msgpack", option)
    assert (result.code, result.err) == (0, "")


@pytest.mark.usefixtures("impatient")
def test_progress_without_verification_ends_at_100(cli: Any, large: Path) -> None:
    result = cli("linen-to-nnx", large, "out.msgpack", "--no-verify")
    assert result.err.splitlines()[-1] == "100% of 48 MiB"


# A terminal ----------------------------------------------------------------------------------------------------------


def on_terminal(arguments: list[Any], environment: dict[str, str], where: Path) -> tuple[int, str, str]:
    """Runs the program with a terminal as standard error; returns exit code, output and what the terminal got."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "converter", *map(str, arguments)],
        cwd=where,
        env=environment,
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
    )
    os.close(slave)
    shown = io.BytesIO()
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    data = os.read(master, 65536)
                except OSError:  # on Linux: nobody has the other end open any more
                    break
                if not data:
                    break
                shown.write(data)
            elif process.poll() is not None:
                break
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return process.returncode, output.decode(), shown.getvalue().decode()


@pytest.fixture
def terminal(environment: dict[str, str]) -> dict[str, str]:
    """The environment in an ordinary terminal."""
    plain = {name: value for name, value in environment.items() if name != "NO_COLOR"}
    return {**plain, "TERM": "xterm-256color"}


def test_a_bar_on_a_terminal(large: Path, terminal: dict[str, str], tmp_path: Path) -> None:
    code, output, shown = on_terminal(["linen-to-nnx", large, "out"], terminal, tmp_path)
    assert code == 0
    assert "━" in shown
    assert "MiB" in shown
    assert "\x1b[2K" in shown, "the bar is wiped away at the end"
    assert output.startswith(f"{large} → out\n")
    assert "\x1b" not in output
    assert "━" not in output


def test_no_bar_where_it_is_not_wanted(large: Path, terminal: dict[str, str], tmp_path: Path) -> None:
    assert on_terminal(["linen-to-nnx", large, "out.msgpack", "-q"], terminal, tmp_path) == (0, "", "")


RED = "\x1b[31m"


def test_errors_are_red_on_a_terminal_only(terminal: dict[str, str], cli: Any, tmp_path: Path) -> None:
    code, _, shown = on_terminal(["inspect", "missing"], terminal, tmp_path)
    assert code == 2
    assert shown.startswith(f"{RED}error:\x1b[0m missing: no such file")
    assert "\x1b" not in cli("inspect", "missing").err


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_colour_can_be_turned_off(setting: dict[str, str], terminal: dict[str, str], tmp_path: Path) -> None:
    code, _, shown = on_terminal(["inspect", "missing"], {**terminal, **setting}, tmp_path)
    assert code == 2
    assert shown.startswith("error: missing: no such file")
    assert "\x1b" not in shown


def test_a_bar_without_colour(large: Path, terminal: dict[str, str], tmp_path: Path) -> None:
    code, _, shown = on_terminal(["linen-to-nnx", large, "out.msgpack"], {**terminal, "NO_COLOR": "1"}, tmp_path)
    assert code == 0
    assert not re.search(r"\x1b\[[\d;]*3\d", shown), "a colour was set"
