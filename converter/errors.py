"""Every way a conversion can fail, each with advice for the user and an exit code.

An error names what was expected, what was found and where, and says what to do about it. The command line prints
exactly ``str(error)`` and leaves with ``error.exit_code``; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converter.folding import fold

EXIT_OK = 0
EXIT_DIFFERENCE = 1
EXIT_INPUT = 2
EXIT_REFUSED = 3
EXIT_DESTINATION = 4
EXIT_MODEL = 5
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130

EXIT_CODES: dict[int, str] = {
    EXIT_OK: "done, and verified unless --no-verify was given",
    EXIT_DIFFERENCE: "the verification or diff found a difference; nothing was written",
    EXIT_INPUT: "wrong usage, or the input is missing, unreadable or of an unsupported kind",
    EXIT_REFUSED: "the conversion was refused: a leaf would be lost, invented or misplaced",
    EXIT_DESTINATION: "the destination exists already or cannot be written",
    EXIT_MODEL: "a model given with --nnx-model, --linen-model, --optimizer or --inputs cannot be imported or run",
    EXIT_INTERNAL: "a defect of flax-convert itself (run again with --debug and report it)",
    EXIT_INTERRUPTED: "interrupted; the destination was not touched",
}


class ConverterError(Exception):
    """Base of all errors raised on purpose by this package.

    Args:
      message: what is wrong, where, what was expected and what was found; one or more full lines.
      advice: what the user can do about it; printed on a line of its own.
      details: what a machine may want to know beside it (the plan, the report), as plain JSON values.
    """

    exit_code = EXIT_INPUT

    def __init__(self, message: str, advice: str = "", details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.details = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message}\n{self.advice}" if self.advice else self.message


class UsageError(ConverterError):
    """The arguments do not make sense together (exit code 2)."""


class SeveralItems(UsageError):
    """A checkpoint holds several items, and none is chosen (exit code 2); ``items`` names them."""

    def __init__(self, message: str, advice: str = "", items: Sequence[str] = ()) -> None:
        super().__init__(message, advice)
        self.items = tuple(items)


class UnreadableCheckpoint(ConverterError):
    """The path is missing, truncated, unfinished, damaged or no checkpoint at all (exit code 2)."""


class UnsupportedCheckpoint(ConverterError):
    """The checkpoint is recognised, but this variety or one of its leaves cannot be handled (exit code 2)."""


class DestinationError(ConverterError):
    """The destination exists already, or cannot be written (exit code 4)."""

    exit_code = EXIT_DESTINATION


class ModelError(ConverterError):
    """User code named by a model, optimizer or inputs argument cannot be imported, built or run (exit code 5)."""

    exit_code = EXIT_MODEL


class ConversionRefused(ConverterError):
    """The plan would lose, invent or misplace leaves (exit code 3).

    All problems of a plan are collected and shown at once.

    Args:
      headline: one line that says what was attempted.
      problems: one entry for every leaf or rule at fault; shown folded, where they differ in one number only.
      advice: what settles most of the problems.
      details: the plan as plain JSON values.
    """

    exit_code = EXIT_REFUSED
    SHOWN = 40

    def __init__(
        self, headline: str, problems: Sequence[str], advice: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        self.problems = tuple(problems)
        folded = fold((problem,) for problem in self.problems)
        lines = [headline, *(f"  {line}" for line in folded[: self.SHOWN])]
        if len(folded) > self.SHOWN:
            lines.append(f"  … and {len(folded) - self.SHOWN} more")
        super().__init__("\n".join(lines), advice, details)


class VerificationFailed(ConverterError):
    """The converted checkpoint differs from its source (exit code 1); ``report`` is the ``Report`` with every
    difference found.
    """

    exit_code = EXIT_DIFFERENCE

    def __init__(self, message: str, report: Any, advice: str = "") -> None:
        super().__init__(message, advice, report.to_json())
        self.report = report
