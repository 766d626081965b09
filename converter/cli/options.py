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

STEP_A = click.Option(["--step-a"], type=int, help="Which step of A, where there are several (default: the latest).")
ITEM_A = _value("--item-a", "NAME", "Which item of A, where a step holds several.")
STEP_B = click.Option(["--step-b"], type=int, help="Which step of B.")
ITEM_B = _value("--item-b", "NAME", "Which item of B.")
VALUES = _flag("--values", text="Compare values too, bit for bit.")

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
    "nnx.State (paths end in 'value') or pure dict (default: state in Orbax, else pure).",
)
NNX_BUNDLE = _choice(
    "--nnx-bundle",
    ("dict", "tuple", "model-and-optimizer"),
    "How a model and its optimizer stand together in DST (default: dict).",
)
TO_FORMAT = _choice(
    "--to-format",
    ("orbax", "orbax-v1", "msgpack", "hf-msgpack", "safetensors"),
    "Format of DST: orbax, orbax-v1 (as Orbax's v1 API saves), msgpack, hf-msgpack (the flax_model.msgpack that "
    "transformers loads) or safetensors; by default what *.msgpack or *.safetensors says, else orbax.",
    metavar="FORMAT",
)
AS_STEP = click.Option(
    ["--as-step"],
    type=int,
    metavar="N",
    help="Make it step N of DST, which may hold others, as Orbax's CheckpointManager does.",
)
MAX_SHARD_SIZE = _value(
    "--max-shard-size",
    "SIZE",
    "Bytes of arrays in one file of hf-msgpack (default: 10GB). Makes a safetensors DST a directory of shards.",
    default=None,
)

TREE = _flag("--tree", text="Draw the nested tree, with totals of every node.")
FILTER = click.Option(
    ["filters", "--filter"],
    metavar="PATTERN",
    multiple=True,
    help="Look only at matching leaves (** is any number of keys). Repeatable; one match is enough.",
)

DRY_RUN = _flag("--dry-run", text="Print the plan; read no array and write nothing.")
FORCE = _flag("--force", text="Replace DST if it is a file or one checkpoint.")
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
    "How to read DST again: cheaply, or in full with the format's own library (all in memory).",
    default="quick",
    show_default=True,
)
NO_VERIFY = _flag("--no-verify", text="Do not read the result again to compare it.")
FULL = _flag("--full", text="Read DST with the format's own library (all in memory).")

JSON = _flag("as_json", "--json", text="Print the result as JSON on standard output.")
REPORT = _value(
    "--report",
    "FILE",
    "Write the result as an HTML page too, also where it is a refusal or a difference (docs/report.md).",
    type=FilePath,
)
QUIET = _flag("-q", "--quiet", text="Print nothing but errors.")
VERBOSE = _flag("-v", "--verbose", text="Print the whole plan.")
ALL_ROWS = _flag("-v", "--verbose", text="Print every difference.")
DEBUG = _flag("--debug", text="Show the traceback of an error.")

ALLOW_GUESS = _flag("--allow-guess", text="Accept what only names tell, of variables that the calls do not use.")
OVERWRITE = _flag("--force", text="Replace FILE if it exists.")
TO_FILE = click.Option(["-o", "--output"], metavar="FILE", type=FilePath, help="Write a rule file for --rules.")

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
)
WRITING = (DRY_RUN, FORCE, COPY, COMPRESS, MEMORY_BUDGET, VERIFY, NO_VERIFY)
OUTPUT = (JSON, REPORT, QUIET, VERBOSE, DEBUG, HELP)


def _conversion(layout: tuple[click.Option, ...], models: tuple[click.Option, ...]) -> Sections:
    return {
        "Arguments": (SRC, Argument("dst", "The checkpoint to make.")),
        "Reading SRC": (STEP, ITEM),
        "Leaves": LEAVES,
        "Models": (*models, *CALLS, SEEDS),
        "Layout of DST": (LIKE, *layout, TO_FORMAT, AS_STEP, MAX_SHARD_SIZE),
        "Writing DST": WRITING,
        "Output": OUTPUT,
    }


INSPECT: Sections = {
    "Arguments": (Argument("ckpt", "A checkpoint of any kind."),),
    "Reading CKPT": (STEP, ITEM),
    "Output": (TREE, FILTER, JSON, DEBUG, HELP),
}
NNX_TO_LINEN = _conversion((LINEN_STYLE,), (NNX_MODEL, LINEN_MODEL, OPTIMIZER))
LINEN_TO_NNX = _conversion((NNX_STYLE, NNX_BUNDLE), (NNX_MODEL, LINEN_MODEL))
COMPARE: Sections = {
    "Arguments": (SRC, Argument("dst", "The checkpoint that was made from SRC.")),
    "Reading SRC and DST": (STEP, ITEM, FULL, MEMORY_BUDGET),
    "Leaves": LEAVES,
    "Models": (NNX_MODEL, LINEN_MODEL, OPTIMIZER, *CALLS, SEEDS),
    "Layout of DST": (LIKE,),
    "Output": OUTPUT,
}
DIFF: Sections = {
    "Arguments": (Argument("a", "A checkpoint of any kind."), Argument("b", "Another of any kind.")),
    "Reading A and B": (STEP_A, ITEM_A, STEP_B, ITEM_B, FILTER),
    "Comparing": (VALUES, MEMORY_BUDGET),
    "Output": (JSON, QUIET, ALL_ROWS, DEBUG, HELP),
}
ALIGN: Sections = {
    "Models": (NNX_MODEL, LINEN_MODEL),
    "Calls": CALLS,
    "Result": (TO_FILE, OVERWRITE, ALLOW_GUESS),
    "Output": (JSON, REPORT, QUIET, DEBUG, HELP),
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
