"""The command line: a thin layer over ``converter.api``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import gc
import sys
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import click

from converter import console
from converter.cli.command import HELP, VERSION, Command, Group
from converter.cli.files import check_file, write_file
from converter.cli.options import ALIGN, COMPARE, DEMO, DIFF, INSPECT, LINEN_TO_NNX, NNX_TO_LINEN
from converter.cli.reporting import reporting
from converter.errors import EXIT_DIFFERENCE, EXIT_INPUT, DestinationError, UsageError

if TYPE_CHECKING:
    from converter.conversion import Verify
    from converter.dialects.dialect import Framework
    from converter.options import Options
    from converter.planning.plan import Plan
    from converter.report import Report

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
def inspect_command(
    ckpt: FilePath, step: int | None, item: str | None, filters: tuple[str, ...], tree: bool, as_json: bool
) -> None:
    """Say what a checkpoint is: format, dialect, steps and items, collections, sizes, and its tree."""
    from converter import api

    found = api.inspect(ckpt, step=step, item=item, filters=filters)
    if as_json:
        console.print_json(found.to_json(tree=tree))
    else:
        console.write_out(found.text(tree=tree))


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
    as_step: int | None,
    max_shard_size: str | None,
    dry_run: bool,
    force: bool,
    copy: bool,
    compress: bool,
    memory_budget: str,
    verify: str,
    no_verify: bool,
    report: FilePath | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    from converter import api
    from converter.conversion import prepare
    from converter.formats import destination_format, step_destination
    from converter.options import read_size
    from converter.run import check_destination

    with reporting(report, src, dst) as page:
        budget = read_size(memory_budget)
        to_format = destination_format(dst, to_format)
        if as_step is not None:
            dst = step_destination(dst, to_format, as_step)
        if not dry_run:
            check_destination(src, dst, force)
        writing = api.make_writing(dst, to_format, copy, compress, as_step, max_shard_size)
        conversion = prepare(src, to, to_format=to_format, writing=writing, **_read(options))
        if dry_run:
            if conversion.plan.problems and not (as_json or quiet):
                console.write_out(conversion.plan.text(problems=False))
            conversion.plan.check()
            result: Plan | Report = conversion.planned()
        else:
            with console.progress(conversion.plan, verify=not no_verify, shown=not (quiet or as_json)) as progress:
                checked: Verify = not no_verify and ("full" if verify == "full" else True)
                result = conversion.run(dst, force=force, verify=checked, memory_budget=budget, progress=progress)
                console.ignore_signals()
        page.result = result
    console.show(result, as_json=as_json, quiet=quiet, verbose=verbose and not dry_run)


@app.command("verify", cls=Command, sections=COMPARE)
def verify_command(
    src: FilePath,
    dst: FilePath,
    full: bool,
    memory_budget: str,
    report: FilePath | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Check that DST holds what SRC holds, bit for bit; with both models, that they compute the same.

    Give the options that the conversion was made with.
    """
    from converter import api

    with reporting(report, src, dst) as page:
        result = page.result = api.verify(src, dst, full=full, memory_budget=memory_budget, **_read(options))
    console.show(result, as_json=as_json, quiet=quiet, verbose=verbose)
    if not result.ok:
        sys.exit(EXIT_DIFFERENCE)


@app.command("diff", cls=Command, sections=DIFF)
def diff_command(
    a: FilePath,
    b: FilePath,
    step_a: int | None,
    item_a: str | None,
    step_b: int | None,
    item_b: str | None,
    filters: tuple[str, ...],
    values: bool,
    memory_budget: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compare any two checkpoints, of any format and framework: structure, and values on request."""
    from converter.comparison import compare
    from converter.options import read_size
    from converter.paths import PathGlob

    budget = read_size(memory_budget)
    patterns = tuple(map(PathGlob, filters))
    found = compare(a, b, steps=(step_a, step_b), items=(item_a, item_b), filters=patterns)
    if values:
        with console.counting(found.nbytes, shown=not (quiet or as_json)) as progress:
            found = found.with_values(budget, progress)
    console.show(found, as_json=as_json, quiet=quiet, verbose=verbose)
    if not found.ok:
        sys.exit(EXIT_DIFFERENCE)


@app.command("align", cls=Command, sections=ALIGN)
def align_command(
    linen_model: str | None,
    nnx_model: str | None,
    output: FilePath | None,
    force: bool,
    report: FilePath | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Find out which variable of a Linen model is which of an NNX model, from their calls, and prove it.

    Names do not matter, nor do fused, stacked, transposed or reshaped variables.
    """
    from converter.aligning import align

    if linen_model is None or nnx_model is None:
        raise UsageError("two models are needed", "Give both --linen-model and --nnx-model.")
    if report is not None and output is not None and report.resolve() == output.resolve():
        raise UsageError("--report and --output name the same file", "Give the page and the rule file different names.")
    _look_for_circles()
    with reporting(report) as page:
        if output is not None:
            check_file(output, "rule file")
            if output.exists() and not force:
                raise DestinationError(f"{output} exists already", "Give another name, or --force to replace it.")
        found = page.result = align(linen_model, nnx_model, **_read_calls(options))
        if not found.ok and not as_json and not quiet:
            console.write_out(found.text())
        found.check()
        if output is not None:
            found.check_rules()
            write_file(output, "rule file", found.rules)
    console.show(found, as_json=as_json, quiet=quiet)


@app.command("demo", cls=Command, sections=DEMO)
def demo(directory: FilePath | None) -> None:
    """Run the main job on real checkpoints: NNX to Linen and back, through Orbax and msgpack, outputs compared."""
    from converter.demo import run_demo

    run_demo(directory)


def _read(given: dict[str, Any]) -> Options:
    """The options as ``converter.api`` takes them: most bear the same name and value on the command line."""
    collections = _read_collections(given.pop("collection"))
    return {**_read_calls(given), "collections": collections}  # type: ignore[return-value,typeddict-item]


def _read_calls(given: dict[str, Any]) -> dict[str, Any]:
    """The same for what the models are called with."""
    from converter.user_code import parse_kwargs

    if given.get("linen_model") or given.get("nnx_model"):
        _look_for_circles()
    specs, inputs = given.pop("input"), given.pop("inputs")
    if specs and inputs:
        raise UsageError("--input and --inputs exclude each other", "Use --inputs alone for inputs of your own making.")
    if inputs is not None and ":" not in inputs:
        raise UsageError(f"cannot read --inputs {inputs!r}", "Write pkg.module:factory or path/to/file.py:factory.")
    kwargs = {name: parse_kwargs(given[name]) for name in ("linen_kwargs", "nnx_kwargs")}
    init = list(given["linen_init"]) or None
    return {**given, **kwargs, "inputs": inputs or list(specs) or None, "linen_init": init}


def _read_collections(texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        pattern, separator, name = text.rpartition("=")
        if not separator or not pattern or not name:
            raise UsageError(f"cannot read --collection {text!r}", "Write PATTERN=NAME, as in '**/pos_embed=params'.")
        found.setdefault(pattern, name)
    return found


def _look_for_circles() -> None:
    """Models and their traces are full of circles, which may hold arrays."""
    gc.set_threshold(1_000_000, 20, 20)


def main() -> None:
    """The console script."""
    # A plan of 50,000 leaves is millions of objects without a circle among them: not to be looked at time and again.
    gc.set_threshold(10_000_000, 20, 20)
    console.prepare_streams()
    console.install_signal_handlers()
    try:
        # Click's own main would say 1 where nobody reads the output any more, which is the exit code of a difference.
        with console.reporting_errors(), app.make_context(NAME, sys.argv[1:]) as context:
            app.invoke(context)
    finally:
        gc.freeze()  # the end of the process tidies up sooner than a last search for circles
