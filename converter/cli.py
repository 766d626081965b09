"""The command line: a thin layer over ``converter.api``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import enum
import gc
import inspect
from collections.abc import Collection
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from converter import __version__, console
from converter.errors import EXIT_CODES, EXIT_DIFFERENCE, UsageError

if TYPE_CHECKING:
    from converter.dialects.dialect import Framework

EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."

app = typer.Typer(
    name="flax-convert",
    help="Turn a Flax NNX checkpoint into a Linen one and back, and prove that both compute the same.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class ToFormat(enum.StrEnum):
    orbax = "orbax"
    msgpack = "msgpack"
    safetensors = "safetensors"


class Verification(enum.StrEnum):
    quick = "quick"
    full = "full"


class LinenStyle(enum.StrEnum):
    variables = "variables"
    params = "params"
    train_state = "train-state"


class NnxStyle(enum.StrEnum):
    state = "state"
    pure = "pure"


class NnxBundle(enum.StrEnum):
    dict = "dict"
    tuple = "tuple"
    model_and_optimizer = "model-and-optimizer"


Source = Annotated[FilePath, typer.Argument(metavar="SRC", help="The checkpoint to read; it is never written to.")]
Destination = Annotated[FilePath, typer.Argument(metavar="DST", help="The checkpoint to make.")]
Converted = Annotated[FilePath, typer.Argument(metavar="DST", help="The checkpoint that was made from SRC.")]
Step = Annotated[int | None, typer.Option(help="Which step of SRC, where it holds several (default: the latest).")]
Item = Annotated[str | None, typer.Option(metavar="NAME", help="Which item of SRC, where a step holds several.")]
ParamsOnly = Annotated[bool, typer.Option("--params-only", help="Leave everything but the parameters behind.")]
Drop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Leave matching leaves behind (** is any number of keys). By default only NNX random state is dropped on "
        "the way to Linen, and intermediates and perturbations both ways; caches are kept. Repeatable.",
    ),
]
Keep = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Keep matching leaves all the same. Repeatable.")
]
CollectionOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN=NAME",
        help="The collection of NNX variables that neither a model nor their names decide. Repeatable; the first match "
        "counts.",
    ),
]
NnxModel = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="The NNX model: pkg.module:factory or file.py:factory (may take rngs=)."),
]
LinenModel = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="The Linen model, in the same way; it needs --input or --inputs."),
]
Optimizer = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="A factory of the optax optimizer, for the empty members of a Linen opt_state."),
]
Like = Annotated[
    FilePath | None,
    typer.Option(
        metavar="CKPT", help="A checkpoint of the kind that DST shall be: its names, shapes and layout are taken over."
    ),
]
Rules = Annotated[
    FilePath | None,
    typer.Option(metavar="FILE", help="A TOML file that says which variable becomes which, and how (docs/rules.md)."),
]
AllowLossy = Annotated[
    bool, typer.Option("--allow-lossy", help="Convert even if values are lost that the other side has no place for.")
]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="SPEC", help="One argument of the models' call, as in 'float32[2,8]'. Repeatable."),
]
Inputs = Annotated[
    str | None, typer.Option("--inputs", metavar="SPEC", help="A factory of the tuple of the models' arguments.")
]
LinenKwargs = Annotated[
    str, typer.Option(metavar="KWARGS", help="Keyword arguments of the Linen call, as in 'train=False'.")
]
NnxKwargs = Annotated[str, typer.Option(metavar="KWARGS", help="Keyword arguments of the NNX call.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print the whole plan.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ToFormatOption = Annotated[
    ToFormat | None, typer.Option(help="Format of DST (default: what *.msgpack or *.safetensors says, else orbax).")
]
LinenStyleOption = Annotated[
    LinenStyle | None,
    typer.Option(help="Layout on the Linen side (default: train-state if SRC has training state, else variables)."),
]
NnxStyleOption = Annotated[
    NnxStyle | None,
    typer.Option(help="nnx.State (paths end in 'value') or pure dict (default: state, in msgpack pure)."),
]
NnxBundleOption = Annotated[
    NnxBundle | None, typer.Option(help="How a model and its optimizer stand together in DST (default: dict).")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan; read no array and write nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")]
Copy = Annotated[bool, typer.Option("--copy", help="Share no bytes with SRC on disk, even where links are possible.")]
Compress = Annotated[
    bool,
    typer.Option(
        "--compress",
        help="Compress arrays in an Orbax DST as Orbax does, save those that stay as they are in an Orbax SRC.",
    ),
]
MemoryBudget = Annotated[
    str, typer.Option(metavar="SIZE", help="Memory that arrays may take at a time; larger ones go through files.")
]
VerifyOption = Annotated[
    Verification,
    typer.Option(help="How to read DST again: cheaply, or in full with Orbax's or Flax's own reader (all in memory)."),
]
Full = Annotated[bool, typer.Option("--full", help="Read DST with Orbax's or Flax's own reader (all in memory).")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not read the result again to compare it.")]


@app.command(name="inspect")
@console.reporting_errors
def inspect_command(
    path: Annotated[FilePath, typer.Argument(metavar="CKPT", help="A checkpoint of any kind.")],
    step: Annotated[int | None, typer.Option(help="Which step, where there are several (default: the latest).")] = None,
    item: Annotated[str | None, typer.Option(metavar="NAME", help="Which item, where a step holds several.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a checkpoint is: format, dialect, steps and items, collections, sizes, and its tree."""
    from converter import api

    found = api.inspect(path, step=step, item=item)
    console.show(found, as_json=as_json)


def _conversion(to: Framework, without: Collection[str]) -> Any:
    """The command for one direction; options that mean nothing in it are left out of its signature."""

    def run(
        src: Source,
        dst: Destination,
        to_format: ToFormatOption = None,
        linen_style: LinenStyleOption = None,
        nnx_style: NnxStyleOption = None,
        nnx_bundle: NnxBundleOption = None,
        params_only: ParamsOnly = False,
        step: Step = None,
        item: Item = None,
        drop: Drop = None,
        keep: Keep = None,
        collection: CollectionOption = None,
        nnx_model: NnxModel = None,
        linen_model: LinenModel = None,
        optimizer: Optimizer = None,
        input_specs: Input = None,
        inputs: Inputs = None,
        linen_kwargs: LinenKwargs = "",
        nnx_kwargs: NnxKwargs = "",
        like: Like = None,
        rules: Rules = None,
        allow_lossy: AllowLossy = False,
        dry_run: DryRun = False,
        force: Force = False,
        copy: Copy = False,
        compress: Compress = False,
        memory_budget: MemoryBudget = "512MiB",
        verify: VerifyOption = Verification.quick,
        no_verify: NoVerify = False,
        as_json: Json = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
        debug: Debug = False,
    ) -> None:
        from converter import api
        from converter.formats import destination_format
        from converter.formats.checkpoint import Writing
        from converter.options import read_size
        from converter.run import check_destination

        budget = read_size(memory_budget)
        if not dry_run:
            check_destination(src, dst, force)
        conversion = api.prepare(
            src,
            to,
            to_format=destination_format(dst, to_format),
            writing=Writing(copy, compress),
            linen_style=linen_style.value if linen_style else None,
            nnx_style=nnx_style.value if nnx_style else None,
            nnx_bundle=nnx_bundle.value if nnx_bundle else None,
            **_shared(params_only, step, item, drop, keep, collection, rules, allow_lossy),
            **_models(nnx_model, linen_model, optimizer, input_specs, inputs, linen_kwargs, nnx_kwargs),
            like=like,
        )
        if dry_run:
            if conversion.plan.problems and not (as_json or quiet):
                console.write_out(conversion.plan.text(problems=False))
            conversion.plan.check()
            console.show(conversion.plan, as_json=as_json, quiet=quiet)
            return
        with console.progress(conversion.plan, verify=not no_verify, shown=not (quiet or as_json)) as progress:
            checked: api.Verify = not no_verify and ("full" if verify is Verification.full else True)
            report = conversion.run(dst, force=force, verify=checked, memory_budget=budget, progress=progress)
            console.ignore_signals()
        console.show(report, as_json=as_json, quiet=quiet, verbose=verbose)

    signature = inspect.signature(run, eval_str=True)
    kept = [parameter for name, parameter in signature.parameters.items() if name not in without]
    run.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return console.reporting_errors(run)


app.command(name="nnx-to-linen", help="Convert an NNX checkpoint to Linen.")(
    _conversion("linen", without=("nnx_style", "nnx_bundle"))
)
app.command(name="linen-to-nnx", help="Convert a Linen checkpoint to NNX.")(
    _conversion("nnx", without=("linen_style", "optimizer"))
)


@app.command()
@console.reporting_errors
def verify(
    src: Source,
    dst: Converted,
    params_only: ParamsOnly = False,
    step: Step = None,
    item: Item = None,
    drop: Drop = None,
    keep: Keep = None,
    collection: CollectionOption = None,
    nnx_model: NnxModel = None,
    linen_model: LinenModel = None,
    optimizer: Optimizer = None,
    input_specs: Input = None,
    inputs: Inputs = None,
    linen_kwargs: LinenKwargs = "",
    nnx_kwargs: NnxKwargs = "",
    like: Like = None,
    rules: Rules = None,
    allow_lossy: AllowLossy = False,
    full: Full = False,
    memory_budget: MemoryBudget = "512MiB",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Check that DST holds what SRC holds, bit for bit; with both models, that they compute the same.

    Give the options that the conversion was made with.
    """
    from converter import api

    report = api.verify(
        src,
        dst,
        **_shared(params_only, step, item, drop, keep, collection, rules, allow_lossy),
        **_models(nnx_model, linen_model, optimizer, input_specs, inputs, linen_kwargs, nnx_kwargs),
        like=like,
        full=full,
        memory_budget=memory_budget,
    )
    console.show(report, as_json=as_json, quiet=quiet, verbose=verbose)
    if not report.ok:
        raise typer.Exit(EXIT_DIFFERENCE)


@app.command()
@console.reporting_errors
def demo(
    directory: Annotated[
        FilePath | None, typer.Option("--keep", metavar="DIR", help="Keep the checkpoints in this new directory.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run the main job on real checkpoints: NNX to Linen and back, through Orbax and msgpack, outputs compared."""
    from converter.demo import run_demo

    run_demo(directory)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"flax-convert {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """The options of the program itself."""


def _shared(
    params_only: bool,
    step: int | None,
    item: str | None,
    drop: list[str] | None,
    keep: list[str] | None,
    collection: list[str] | None,
    rules: FilePath | None,
    allow_lossy: bool,
) -> Any:
    return {
        "params_only": params_only,
        "step": step,
        "item": item,
        "drop": drop or [],
        "keep": keep or [],
        "collections": _collections(collection or []),
        "rules": rules,
        "allow_lossy": allow_lossy,
    }


def _collections(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        pattern, separator, name = text.rpartition("=")
        if not separator or not pattern or not name:
            raise UsageError(f"cannot read --collection {text!r}", "Write PATTERN=NAME, as in '**/pos_embed=params'.")
        found.setdefault(pattern, name)
    return found


def _models(
    nnx_model: str | None,
    linen_model: str | None,
    optimizer: str | None,
    input_specs: list[str] | None,
    inputs: str | None,
    linen_kwargs: str,
    nnx_kwargs: str,
) -> Any:
    from converter.user_code import parse_kwargs

    if input_specs and inputs:
        raise UsageError("--input and --inputs exclude each other", "Use --inputs alone for inputs of your own making.")
    if inputs is not None and ":" not in inputs:
        raise UsageError(f"cannot read --inputs {inputs!r}", "Write pkg.module:factory or path/to/file.py:factory.")
    return {
        "nnx_model": nnx_model,
        "linen_model": linen_model,
        "optimizer": optimizer,
        "inputs": inputs or input_specs or None,
        "linen_kwargs": parse_kwargs(linen_kwargs),
        "nnx_kwargs": parse_kwargs(nnx_kwargs),
    }


def main() -> None:
    """The console script."""
    # A plan of 50,000 leaves is a million objects without a circle among them, which need not be looked at every time.
    gc.set_threshold(200_000, 20, 20)
    console.prepare_streams()
    console.install_signal_handlers()
    app()
