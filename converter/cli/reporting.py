"""The page that ``--report`` asks for: written however a command ends that had something to say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Protocol

from converter import console
from converter.cli.files import check_file, write_file
from converter.errors import ConverterError, DestinationError


class Result(Protocol):
    """A plan, a report: whatever ``--json`` can print."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(slots=True)
class Page:
    """What the page will show; to be set by the command."""

    result: Result | None = None


@contextlib.contextmanager
def reporting(file: FilePath | None, *checkpoints: FilePath) -> Iterator[Page]:
    """Writes the result of the command inside, or the error that it ends with, as an HTML page.

    Args:
      file: where to; None for no page.
      checkpoints: what the command reads and writes, which the page must not be part of.

    Raises:
      DestinationError: the page cannot be written. Before anything else is done, where that can be known.
    """
    page = Page()
    if file is None:
        yield page
        return
    from converter.html_report.page import to_html

    check_file(file, "report", checkpoints)
    try:
        yield page
    except ConverterError as error:
        try:
            write_file(file, "report", to_html(console.error_value(error)))
        except DestinationError as failed:
            error.advice = "\n".join(filter(None, (error.advice, f"Besides, {failed.message}.")))
        raise
    if page.result is not None:
        write_file(file, "report", to_html(page.result.to_json()))
