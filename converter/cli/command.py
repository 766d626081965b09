"""What commands of Click lack here: options under headings, described arguments, errors that know their command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import click

from converter import __version__, console
from converter.errors import EXIT_CODES

Sections = Mapping[str, Sequence[click.Parameter]]
"""The parameters of a command under the headings that its help shows them with."""

WIDEST_TERM = 30
"""Where the name of an option and its metavar are longer, its text starts on the next line."""


class Formatter(click.HelpFormatter):
    """Writes help in which no name such as ``--linen-model`` is broken at a hyphen."""

    HYPHEN = "\N{NON-BREAKING HYPHEN}"

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", self.HYPHEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = WIDEST_TERM, col_spacing: int = 2) -> None:
        super().write_dl(((term, text.replace("-", self.HYPHEN)) for term, text in rows), col_max, col_spacing)

    def write(self, string: str) -> None:
        super().write(string.replace(self.HYPHEN, "-"))


class Context(click.Context):
    formatter_class = Formatter


class Argument(click.Argument):
    """A path on the command line, which help describes as it does an option."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__([name], type=FilePath, metavar=name.upper())
        self.text = text

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.human_readable_name, self.text


class _Parsed(click.Command):
    """A command that every error of usage knows: Click's parser leaves it out of some."""

    context_class = Context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class Command(_Parsed):
    """A command whose help shows its parameters in sections, and whose errors are reported as documented.

    Parameters ``debug`` and ``as_json``, where a command has them, ask for the traceback of an error, and for the error
    as JSON too.
    """

    def __init__(self, name: str | None, *, sections: Sections, **settings: Any) -> None:
        self.sections = sections
        settings["params"] = [parameter for parameters in sections.values() for parameter in parameters]
        super().__init__(name, add_help_option=False, **settings)

    def get_short_help_str(self, limit: int = 45) -> str:
        """The whole first paragraph: the list of commands has room for it."""
        return " ".join((self.help or "").partition("\n\n")[0].split())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes all sections with texts that start in one column."""
        records = {
            heading: [record for parameter in parameters if (record := parameter.get_help_record(ctx))]
            for heading, parameters in self.sections.items()
        }
        lengths = [len(term) for rows in records.values() for term, _ in rows]
        width = max(length for length in lengths if length <= WIDEST_TERM)
        for heading, rows in records.items():
            with formatter.section(heading):
                formatter.write_dl([(term.ljust(width), text) for term, text in rows], col_max=width)

    def invoke(self, ctx: click.Context) -> None:
        debug = ctx.params.pop("debug", False)
        with console.reporting_errors(debug=debug, as_json=ctx.params.get("as_json", False)):
            super().invoke(ctx)


class Group(_Parsed, click.Group):
    """Commands in the order in which they are defined, which Click would sort, with the exit codes below them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code).rjust(3), meaning) for code, meaning in EXIT_CODES.items()])


def _show_help(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        console.write_out(context.get_help())
        context.exit()


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        console.write_out(f"flax-convert {__version__}")
        context.exit()


# Click's own write past the console, which knows what to do where nothing can be written.
HELP = click.Option(
    ["-h", "--help"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_help,
    help="Show this message and exit.",
)
VERSION = click.Option(
    ["--version"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print the version and leave.",
)
