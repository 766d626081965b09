"""The options of the commands, each stated once, and the sections that each command puts together from them."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

import click

from converter.cli.command import HELP, Argument, Sections


def _flag(*names: str, text: str) -> click.Option:
    return click.Option(names, is_flag=True, help=text)


def _value(name: str, metavar: str, text: str, **settings: Any) -> click.Option:
    return click.Option([name], metavar=metavar, help=text, **settings)


def _values(name: str, metavar: str, text: str) -> click.Option:
    return click.Option([name], metavar=metavar, help=text, multiple=True)


def _choice(name: str, choices: tuple[str, ...], text: str, **settings: Any) -> click.Option:
    return click.Option([name], type=click.Choice(choices), help=text, **settings)


STEP = click.Option(["--step"], type=int, help="Which step, where there are several (default: the latest).")
ITEM = _value("--item", "NAME", "Which item, where a step holds several.")

PARAMS_ONLY = _flag("--params-only", text="Leave everything but the parameters behind.")
DROP = _values(
    "--drop",
    "PATTERN",
    "Leave matching leaves behind (** is any number of keys). By default only NNX random state is dropped on the way "
    "to Linen, and intermediates and perturbations both ways; caches are kept. Repeatable.",
)
KEEP = _values("--keep", "PATTERN", "Keep matching leaves all the same. Repeatable.")
COLLECTION = _values(
    "--collection",
    "PATTERN=NAME",
    "The collection of NNX variables that neither a model nor their names decide. Repeatable; the first match counts.",
)
RULES = _value(
    "--rules",
    "FILE",
    "A TOML file that says which variable becomes which, and how (docs/rules.md).",
    type=FilePath,
)
ALLOW_LOSSY = _flag("--allow-lossy", text="Convert even if values are lost that the other side has no place for.")

NNX_MODEL = _value("--nnx-model", "SPEC", "The NNX model: pkg.module:factory or file.py:factory (may take rngs=).")
LINEN_MODEL = _value("--linen-model", "SPEC", "The Linen model, in the same way; it needs --input or --inputs.")
OPTIMIZER = _value(
    "--optimizer", "SPEC", "A factory of the optax optimizer, for the empty members of a Linen opt_state."
)
INPUT = _values(
    "--input",
    "SPEC",
    "One argument of the models' call: 'float32[2,8]', 'int32[2,16] < 1000', 'mask=bool[2,16]'. Repeatable.",
)
INPUTS = _value("--inputs", "SPEC", "A factory of the tuple of the models' arguments, or of a dict of named ones.")
LINEN_INIT = _values(
    "--linen-init", "SPEC", "One argument of Linen's init, where the call's do not do for that. Repeatable."
)
LINEN_KWARGS = _value(
    "--linen-kwargs", "KWARGS", "Keyword arguments of the Linen call, as in 'train=False'.", default=""
)
NNX_KWARGS = _value("--nnx-kwargs", "KWARGS", "Keyword arguments of the NNX call.", default="")
LINEN_METHOD = _value("--linen-method", "NAME", "The method of the Linen model to call instead of __call__.")
NNX_METHOD = _value("--nnx-method", "NAME", "The method of the NNX model to call.")
LINEN_OUTPUT = _value(
    "--linen-output", "PATH", "Which part of what the Linen model returns counts, as in 'logits' or '0/hidden'."
)
NNX_OUTPUT = _value("--nnx-output", "PATH", "The same for the NNX model.")
SEEDS = click.Option(
    ["--seeds"],
    type=int,
    default=3,
    show_default=True,
    help="How many random inputs to compare outputs on; from 2 on in a batch of another size as well.",
)

LIKE = _value(
    "--like",
    "CKPT",
    "A checkpoint of the kind that DST shall be: its names, shapes and layout are taken over.",
    type=FilePath,
)
LINEN_STYLE = _choice(
    "--linen-style",
    ("variables", "params", "train-state"),
    "Layout on the Linen side (default: train-state if SRC has training state, else variables).",
)
NNX_STYLE = _choice(
    "--nnx-style",
    ("state", "pure"),
    "nnx.State (paths end in 'value') or pure dict (default: state, in msgpack pure).",
)
NNX_BUNDLE = _choice(
    "--nnx-bundle",
    ("dict", "tuple", "model-and-optimizer"),
    "How a model and its optimizer stand together in DST (default: dict).",
)
TO_FORMAT = _choice("--to-format", ("orbax", "msgpack"), "Format of DST (default: msgpack for *.msgpack, else orbax).")

DRY_RUN = _flag("--dry-run", text="Print the plan; read no array and write nothing.")
FORCE = _flag("--force", text="Replace DST if it exists.")
COPY = _flag("--copy", text="Share no bytes with SRC on disk, even where links are possible.")
COMPRESS = _flag(
    "--compress",
    text="Compress arrays in an Orbax DST as Orbax does, save those that stay as they are in an Orbax SRC.",
)
MEMORY_BUDGET = _value(
    "--memory-budget",
    "SIZE",
    "Memory that arrays may take at a time; larger ones go through files.",
    default="512MiB",
    show_default=True,
)
VERIFY = _choice(
    "--verify",
    ("quick", "full"),
    "How to read DST again: cheaply, or in full with Orbax's or Flax's own reader (all in memory).",
    default="quick",
    show_default=True,
)
NO_VERIFY = _flag("--no-verify", text="Do not read the result again to compare it.")
FULL = _flag("--full", text="Read DST with Orbax's or Flax's own reader (all in memory).")

JSON = _flag("as_json", "--json", text="Print the result as JSON on standard output.")
QUIET = _flag("-q", "--quiet", text="Print nothing but errors.")
VERBOSE = _flag("-v", "--verbose", text="Print the whole plan.")
DEBUG = _flag("--debug", text="Show the traceback of an error.")

SRC = Argument("src", "The checkpoint to read; it is never written to.")
LEAVES = (PARAMS_ONLY, DROP, KEEP, COLLECTION, RULES, ALLOW_LOSSY)
CALLS = (
    INPUT,
    INPUTS,
    LINEN_INIT,
    LINEN_KWARGS,
    NNX_KWARGS,
    LINEN_METHOD,
    NNX_METHOD,
    LINEN_OUTPUT,
    NNX_OUTPUT,
    SEEDS,
)
WRITING = (DRY_RUN, FORCE, COPY, COMPRESS, MEMORY_BUDGET, VERIFY, NO_VERIFY)
OUTPUT = (JSON, QUIET, VERBOSE, DEBUG, HELP)


def _conversion(layout: tuple[click.Option, ...], models: tuple[click.Option, ...]) -> Sections:
    return {
        "Arguments": (SRC, Argument("dst", "The checkpoint to make.")),
        "Reading SRC": (STEP, ITEM),
        "Leaves": LEAVES,
        "Models": (*models, *CALLS),
        "Layout of DST": (LIKE, *layout, TO_FORMAT),
        "Writing DST": WRITING,
        "Output": OUTPUT,
    }


INSPECT: Sections = {
    "Arguments": (Argument("ckpt", "A checkpoint of any kind."),),
    "Reading CKPT": (STEP, ITEM),
    "Output": (JSON, DEBUG, HELP),
}
NNX_TO_LINEN = _conversion((LINEN_STYLE,), (NNX_MODEL, LINEN_MODEL, OPTIMIZER))
LINEN_TO_NNX = _conversion((NNX_STYLE, NNX_BUNDLE), (NNX_MODEL, LINEN_MODEL))
COMPARE: Sections = {
    "Arguments": (SRC, Argument("dst", "The checkpoint that was made from SRC.")),
    "Reading SRC and DST": (STEP, ITEM, FULL, MEMORY_BUDGET),
    "Leaves": LEAVES,
    "Models": (NNX_MODEL, LINEN_MODEL, OPTIMIZER, *CALLS),
    "Layout of DST": (LIKE,),
    "Output": OUTPUT,
}
DEMO: Sections = {
    "Options": (
        click.Option(
            ["directory", "--keep"], metavar="DIR", type=FilePath, help="Keep the checkpoints in this new directory."
        ),
        DEBUG,
        HELP,
    ),
}
