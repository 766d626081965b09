"""The command line: a thin layer over ``converter.api``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import gc
import sys
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import click

from converter import console
from converter.cli.command import HELP, VERSION, Command, Group
from converter.cli.options import COMPARE, DEMO, INSPECT, LINEN_TO_NNX, NNX_TO_LINEN
from converter.errors import EXIT_DIFFERENCE, EXIT_INPUT, UsageError

if TYPE_CHECKING:
    from converter.api import Verify
    from converter.dialects.dialect import Framework
    from converter.options import Options

NAME = "flax-convert"


@click.group(
    NAME,
    cls=Group,
    params=[VERSION, HELP],
    add_help_option=False,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"max_content_width": 100},
)
@click.pass_context
def app(context: click.Context) -> None:
    """Turn a Flax NNX checkpoint into a Linen one and back, and prove that both compute the same."""
    if context.invoked_subcommand is None:
        console.write_out(context.get_help())
        context.exit(EXIT_INPUT)


@app.command("inspect", cls=Command, sections=INSPECT)
def inspect_command(ckpt: FilePath, step: int | None, item: str | None, as_json: bool) -> None:
    """Say what a checkpoint is: format, dialect, steps and items, collections, sizes, and its tree."""
    from converter import api

    console.show(api.inspect(ckpt, step=step, item=item), as_json=as_json)


@app.command("nnx-to-linen", cls=Command, sections=NNX_TO_LINEN)
def nnx_to_linen(**arguments: Any) -> None:
    """Convert an NNX checkpoint to Linen."""
    _convert("linen", **arguments)


@app.command("linen-to-nnx", cls=Command, sections=LINEN_TO_NNX)
def linen_to_nnx(**arguments: Any) -> None:
    """Convert a Linen checkpoint to NNX."""
    _convert("nnx", **arguments)


def _convert(
    to: Framework,
    *,
    src: FilePath,
    dst: FilePath,
    to_format: str | None,
    dry_run: bool,
    force: bool,
    copy: bool,
    compress: bool,
    memory_budget: str,
    verify: str,
    no_verify: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    from converter import api
    from converter.formats import destination_format
    from converter.formats.checkpoint import Writing
    from converter.options import read_size
    from converter.run import check_destination

    budget = read_size(memory_budget)
    if not dry_run:
        check_destination(src, dst, force)
    to_format, writing = destination_format(dst, to_format), Writing(copy, compress)
    conversion = api.prepare(src, to, to_format=to_format, writing=writing, **_read(options))
    if dry_run:
        if conversion.plan.problems and not (as_json or quiet):
            console.write_out(conversion.plan.text(problems=False))
        conversion.plan.check()
        console.show(conversion.plan, as_json=as_json, quiet=quiet)
        return
    with console.progress(conversion.plan, verify=not no_verify, shown=not (quiet or as_json)) as progress:
        checked: Verify = not no_verify and ("full" if verify == "full" else True)
        report = conversion.run(dst, force=force, verify=checked, memory_budget=budget, progress=progress)
        console.ignore_signals()
    console.show(report, as_json=as_json, quiet=quiet, verbose=verbose)


@app.command("verify", cls=Command, sections=COMPARE)
def verify_command(
    src: FilePath,
    dst: FilePath,
    full: bool,
    memory_budget: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Check that DST holds what SRC holds, bit for bit; with both models, that they compute the same.

    Give the options that the conversion was made with.
    """
    from converter import api

    report = api.verify(src, dst, full=full, memory_budget=memory_budget, **_read(options))
    console.show(report, as_json=as_json, quiet=quiet, verbose=verbose)
    if not report.ok:
        sys.exit(EXIT_DIFFERENCE)


@app.command("demo", cls=Command, sections=DEMO)
def demo(directory: FilePath | None) -> None:
    """Run the main job on real checkpoints: NNX to Linen and back, through Orbax and msgpack, outputs compared."""
    from converter.demo import run_demo

    run_demo(directory)


def _read(given: dict[str, Any]) -> Options:
    """The options as ``converter.api`` takes them: most bear the same name and value on the command line."""
    from converter.user_code import parse_kwargs

    collections = _read_collections(given.pop("collection"))
    specs, inputs = given.pop("input"), given.pop("inputs")
    if specs and inputs:
        raise UsageError("--input and --inputs exclude each other", "Use --inputs alone for inputs of your own making.")
    if inputs is not None and ":" not in inputs:
        raise UsageError(f"cannot read --inputs {inputs!r}", "Write pkg.module:factory or path/to/file.py:factory.")
    given |= {"collections": collections, "inputs": inputs or list(specs) or None}
    given["linen_init"] = list(given["linen_init"]) or None
    given |= {name: parse_kwargs(given[name]) for name in ("linen_kwargs", "nnx_kwargs")}
    return given  # type: ignore[return-value]


def _read_collections(texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        pattern, separator, name = text.rpartition("=")
        if not separator or not pattern or not name:
            raise UsageError(f"cannot read --collection {text!r}", "Write PATTERN=NAME, as in '**/pos_embed=params'.")
        found.setdefault(pattern, name)
    return found


def main() -> None:
    """The console script."""
    # A plan of 50,000 leaves is a million objects without a circle among them, which need not be looked at every time.
    gc.set_threshold(200_000, 20, 20)
    console.prepare_streams()
    console.install_signal_handlers()
    # Click's own main would say 1 where nobody reads the output any more, which is the exit code of a difference.
    with console.reporting_errors(), app.make_context(NAME, sys.argv[1:]) as context:
        app.invoke(context)
