"""What the command line shows: results on standard output; progress and errors on standard error."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from converter.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, ConverterError, VerificationFailed

if TYPE_CHECKING:
    from converter.formats.checkpoint import Progress
    from converter.planning.plan import Plan

Command = TypeVar("Command", bound=Callable[..., Any])

SECONDS_BETWEEN_LINES = 5.0
"""How often progress is reported where no bar can be drawn."""


def show(result: Any, *, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
    """Prints a plan, report or inspection: as text for people or as JSON for machines."""
    if as_json:
        print_json(result.to_json())
    elif not quiet:
        print(result.text(verbose=True) if verbose else result.text())


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def reporting_errors(command: Command) -> Command:
    """Makes a command print its errors without a traceback and leave with the documented exit code.

    The command's own ``debug`` and ``as_json`` arguments ask for the traceback, and for the error as JSON too.
    """

    @functools.wraps(command)
    def guarded(**arguments: Any) -> None:
        debug, as_json = bool(arguments.get("debug")), bool(arguments.get("as_json"))
        try:
            command(**arguments)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except ConverterError as error:
            if debug:
                raise
            _print_error(error, as_json)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("interrupted; the destination was not touched", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output went away (`| head`): not worth a word, and nothing more can be written.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Exception as error:
            if debug:
                raise
            kind, *lines = type(error).__name__, *str(error).splitlines()[:1]
            message = f"unexpected {': '.join([kind, *lines])}"
            advice = "This is a defect of flax-convert: run again with --debug and report what it prints."
            _print_error(ConverterError(message, advice), as_json, EXIT_INTERNAL)
            raise typer.Exit(EXIT_INTERNAL) from None

    return guarded  # type: ignore[return-value]


def _print_error(error: ConverterError, as_json: bool, exit_code: int | None = None) -> None:
    if as_json:
        report = error.report.to_json() if isinstance(error, VerificationFailed) else {"ok": False}  # type: ignore[attr-defined]
        found = {"message": error.message, "advice": error.advice, "exit_code": exit_code or error.exit_code}
        print_json({**report, "error": found})
    print(f"{_red('error:')} {error}", file=sys.stderr)


def _red(text: str) -> str:
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[31m{text}\033[0m"


def install_signal_handlers() -> None:
    """Lets SIGTERM end a command as Ctrl-C does: cleanly, with nothing half-written."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


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
