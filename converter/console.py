"""What the command line shows: results on standard output; progress and errors on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from converter.errors import (
    EXIT_DESTINATION,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_OK,
    ConverterError,
    UsageError,
)

if TYPE_CHECKING:
    from converter.formats.checkpoint import Progress
    from converter.planning.plan import Plan

SECONDS_BETWEEN_LINES = 5.0
"""How often progress is reported where no bar can be drawn."""


def show(result: Any, *, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
    """Prints a plan, report or inspection: as text for people or as JSON for machines."""
    if as_json:
        print_json(result.to_json())
    elif not quiet:
        write_out(result.text(verbose=True) if verbose else result.text())


def print_json(value: Any) -> None:
    write_out(json.dumps(value, indent=1, ensure_ascii=False))


def write_out(text: str) -> None:
    """Prints to standard output, at once."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _close_output()
        reason = f"standard output cannot be written: {error.strerror}"
        raise _OutputFailed(reason, "Write it to another place.") from error


@contextlib.contextmanager
def reporting_errors(*, debug: bool = False, as_json: bool = False) -> Iterator[None]:
    """Whatever goes wrong inside ends the program with an error message and the documented exit code.

    Args:
      debug: show the traceback too.
      as_json: print the error as JSON on standard output too.

    Raises:
      SystemExit: always, save where nothing goes wrong.
    """
    try:
        yield
    except click.exceptions.Exit as left:
        raise SystemExit(left.exit_code) from None
    except KeyboardInterrupt:
        _say("interrupted; the destination was not touched")
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        _close_output()  # the reader of our output went away (`| head`): not worth a word
        raise SystemExit(EXIT_OK) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        found = _as_error(error)
        if as_json:
            wanted = {"message": found.message, "advice": found.advice, "exit_code": found.exit_code}
            print_json({"ok": False, **found.details, "error": wanted})
        _say(f"{_red('error:')} {found}")
        raise SystemExit(found.exit_code) from None


class _OutputFailed(ConverterError):
    """Standard output cannot be written."""

    exit_code = EXIT_DESTINATION


class _Defect(ConverterError):
    """Something nobody thought of."""

    exit_code = EXIT_INTERNAL


def _as_error(error: Exception) -> ConverterError:
    if isinstance(error, ConverterError):
        return error
    if isinstance(error, click.UsageError):
        return _as_usage_error(error)
    first = next(iter(str(error).splitlines()), "")
    return _Defect(
        f"unexpected {type(error).__name__}: {first}",
        "This is a defect of flax-convert: run again with --debug and report what it prints.",
    )


def _as_usage_error(error: click.UsageError) -> UsageError:
    context = error.ctx
    usage = f"{context.get_usage()}\nTry '{context.command_path} -h' for help." if context else ""
    return UsageError(error.format_message(), usage)


def _close_output() -> None:
    """Nothing more can be written; without this the interpreter would complain when it leaves."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def prepare_streams() -> None:
    """Makes both streams take any text: characters that an encoding lacks become question marks, no stream is none."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _red(text: str) -> str:
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[31m{text}\033[0m"


def install_signal_handlers() -> None:
    """Lets SIGTERM end a command as Ctrl-C does: cleanly, with nothing half-written."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def ignore_signals() -> None:
    """From here on the work is done, and an interruption would only hide the result."""
    if signal.getsignal(signal.SIGTERM) is _interrupt:  # only in a process of our own
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def progress(plan: Plan, *, verify: bool, shown: bool) -> Iterator[Progress]:
    """Shows how far a conversion is: a bar on a terminal, a line now and then elsewhere.

    Every byte is written once and, with ``verify``, compared once.
    """
    total = sum(step.spec.nbytes for step in plan.steps) * (2 if verify else 1)
    if not shown:
        yield lambda nbytes, leaves: None
    elif sys.stderr.isatty():
        with _bar(total) as advance:
            yield advance
    else:
        yield _Lines(total)


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda nbytes, leaves: bar.advance(task, nbytes)


class _Lines:
    """Progress as plain lines, for logs."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._next = time.monotonic() + SECONDS_BETWEEN_LINES

    def __call__(self, nbytes: int, leaves: int) -> None:
        self._done += nbytes
        if time.monotonic() >= self._next and self._total:
            self._next = time.monotonic() + SECONDS_BETWEEN_LINES
            print(f"{self._done / self._total:.0%} of {self._total / 2**20:,.0f} MiB", file=sys.stderr, flush=True)
