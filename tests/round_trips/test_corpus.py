"""Checkpoints by old and new versions of the libraries, converted in both formats and back: all leaves, bit for bit.

What each holds is written in its ``how.json``, with the first 16 digits of the SHA-256 of every array's bytes.
"""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import converter
from converter.errors import ConverterError, UnsupportedCheckpoint, UsageError

from . import support
from .support import Leaf, Leaves

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
FORMATS = ("orbax", "msgpack")

# What the items are, and what a user has to say ----------------------------------------------------------------------

DIALECTS = {
    "c_f069_flaxckpt_orbax": "linen_params",
    "g_o064_nnx_norng_optimizer": "nnx_model_and_optimizer",
    "*_nnx_*optimizer": "nnx_optimizer",
    "*_nnx_*tuple": "nnx_tuple",
    "*_nnx_*pure": "nnx_pure",
    "*_nnx_*": "nnx_state",
    "*trainstate": "linen_train_state",
    "*_rich": "linen_train_state",
    "*_2proc_*": "linen_train_state",
    "*_flaxckpt_orbax": "linen_train_state",
    "*_legacy_msgpack": "linen_train_state",
    "*_variables": "linen_variables",
    "*_to_bytes": "linen_variables",
    "*_mgr_*": "linen_variables",
    "*_boxed": "linen_variables",
    "*_bigvals": "linen_variables",
    "*_customtree": "linen_variables",
    "*_nocompress": "linen_variables",
    "*_sharded*": "linen_variables",
    "*_pytree_noocdbt": "linen_variables",
    "*_pytree_zarr3*": "linen_variables",
    "*_v1_checkpoint*": "linen_variables",
    "*_v1_save": "linen_variables",
    "*_v1_save_pytree": "linen_variables",
    "*": "linen_params",
}
"""The first pattern that fits says how an item is laid out."""

CHOSEN = {"cur_v12_v1_checkpointables": "model", "*_mgr_composite": "state"}
"""Items of checkpoints with several; test_items.py has all of them as one."""

COLLECTIONS_BACK = {
    "*_sharded*": {"kernel": "stack"},
    "*_2proc_*": {"**/rep": "params"},
    "*": {},
}
"""``--collection`` for what names do not tell."""

BACK: dict[str, dict[str, Any]] = {
    "linen_params": {"linen_style": "params", "collections": {"**": "params"}},
    "nnx_tuple": {"nnx_bundle": "tuple"},
    "nnx_model_and_optimizer": {"nnx_bundle": "model-and-optimizer"},
}
"""What brings a checkpoint back to the layout it had."""

WRAPPERS = {"nnx_tuple": ("0/", "1/"), "nnx_model_and_optimizer": ("model/", ""), "nnx_optimizer": (None, "")}
"""What the paths of the model and of the optimizer begin with."""

NO_KEYS = "key: key<threefry2x32>[] is a typed PRNG key, for which msgpack has no form"

REFUSED: dict[tuple[str, str], tuple[type[ConverterError], str]] = {
    **dict.fromkeys(
        [("cur_v12_single_leaf", format) for format in FORMATS],
        (UnsupportedCheckpoint, "it is a single leaf, int32[5], not a tree of variables"),
    ),
    ("cur_v12_prng", "msgpack"): (UnsupportedCheckpoint, NO_KEYS),
    ("i_o01125_prng", "msgpack"): (UnsupportedCheckpoint, NO_KEYS),
}
"""Item and format → the error and words of it."""

REFUSED_ITEMS: dict[tuple[str, str], tuple[type[ConverterError], str]] = {
    ("cur_v12_v1_checkpointables", "opt"): (UnsupportedCheckpoint, "an optax state saved alone"),
    ("cur_v12_v1_checkpointables", "no"): (UsageError, "has no item 'no'; its items: cfg, model, opt"),
    ("cur_v12_mgr_composite", "opt"): (UnsupportedCheckpoint, "an optax state saved alone"),
    ("cur_v12_mgr_composite", "extra"): (UsageError, "item 'extra' of"),
    ("g_o064_mgr_composite", "opt"): (UnsupportedCheckpoint, "an optax state saved alone"),
    ("i_o01125_mgr_composite", "opt"): (UnsupportedCheckpoint, "an optax state saved alone"),
}
"""Name and ``--item`` → the error and words of it, where another item than the default is asked for."""

NUMBERS_ARE_ARRAYS = {"c_f069_pytree_misc": 3, "c_f069_pytree_trainstate": 1}
"""How many Python numbers a checkpoint of Orbax 0.1 holds, which kept them as arrays of 64 bits."""


def looked_up(name: str, table: dict[str, Any]) -> Any:
    return next(value for pattern, value in table.items() if fnmatch.fnmatchcase(name, pattern))


class Item(NamedTuple):
    """One item of the corpus."""

    name: str
    leaves: Leaves

    @property
    def root(self) -> Path:
        """What a user would name."""
        inside = CORPUS / self.name / "ckpt"
        return inside / "model.msgpack" if self.name.endswith("_to_bytes") else inside

    @property
    def dialect(self) -> str:
        return str(looked_up(self.name, DIALECTS))

    @property
    def chosen(self) -> dict[str, Any]:
        return next(({"item": item} for key, item in CHOSEN.items() if fnmatch.fnmatchcase(self.name, key)), {})

    @property
    def other(self) -> str:
        return "nnx" if self.dialect.startswith("linen") else "linen"


def leaf_of(how: dict[str, Any]) -> Leaf:
    """A leaf of how.json as a card would describe it."""
    if "prng" in how:
        implementation = {"key<fry>": "threefry2x32", "key<rbg>": "rbg"}[how["prng"]]
        return {"key": implementation, "shape": how["shape"][:-1], "sha256": how["sha"]}
    if "py" in how:
        kind = "numpy" if how["py"] == "float64" else "python"
        return {kind: how["py"], "value": how["v"]}
    return {"dtype": how["dtype"], "shape": how["shape"], "sha256": how["sha"]}


def items() -> list[Item]:
    found = []
    for file in sorted(CORPUS.glob("*/how.json")):
        how = json.loads(file.read_text())
        if "FAILED" in how:
            continue
        name = file.parent.name
        leaves = {path: leaf_of(leaf) for path, leaf in how["leaves"].items()}
        for pattern, item in CHOSEN.items():
            if fnmatch.fnmatchcase(name, pattern):
                leaves = {p.removeprefix(f"{item}/"): leaf for p, leaf in leaves.items() if p.startswith(f"{item}/")}
        if name == "cur_v12_arraycheckpoint":  # its handler calls the only leaf so
            leaves = {"checkpoint": leaves[""]}
        found.append(Item(name, leaves))
    return found


ITEMS = items()
every_item = pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
pytestmark = pytest.mark.skipif(not ITEMS, reason="needs the checkpoint corpus in ../shared/corpus")


# What is expected ----------------------------------------------------------------------------------------------------


def converted(item: Item, format: str) -> Leaves:
    if item.other == "nnx":
        return support.linen_to_nnx(item.leaves, item.dialect, suffix="/value" if format == "orbax" else "")
    model, optimizer = WRAPPERS.get(item.dialect, ("", "optimizer/"))
    return support.nnx_to_linen(item.leaves, collection=support.collection_by_name, model=model, optimizer=optimizer)


def converted_back(item: Item) -> Leaves:
    """What comes back: everything, except that random state is no part of Linen and steps get the usual dtype."""
    leaves: Leaves = {}
    for path, leaf in item.leaves.items():
        if item.other == "nnx":
            is_step = item.dialect == "linen_train_state" and path == "step"
            leaves[support.unboxed(path)] = support.counter(leaf, "int32") if is_step else leaf
        elif "rngs/" not in path:
            leaves[path.removesuffix("/value")] = leaf  # msgpack gets a pure dict
    return leaves


def way_back(item: Item) -> dict[str, Any]:
    # msgpack is the quicker one, and holds all but typed keys.
    said = {"to_format": "orbax" if (item.name, "msgpack") in REFUSED else "msgpack", **BACK.get(item.dialect, {})}
    if item.other == "nnx":
        said["collections"] = {**looked_up(item.name, COLLECTIONS_BACK), **said.get("collections", {})}
    return said


# The tests -----------------------------------------------------------------------------------------------------------


def test_the_tables_name_nothing_that_is_gone() -> None:
    names = {item.name for item in ITEMS}
    exact = {name for name, _ in (*REFUSED, *REFUSED_ITEMS)} | NUMBERS_ARE_ARRAYS.keys()
    assert exact <= names
    for pattern in (*DIALECTS, *CHOSEN, *COLLECTIONS_BACK):
        assert any(fnmatch.fnmatchcase(name, pattern) for name in names), pattern


@every_item
def test_inspect_finds_every_leaf(item: Item) -> None:
    before = support.snapshot(item.root)
    found = support.full(support.read_ourselves(converter.inspect(item.root, **item.chosen).checkpoint.tree))
    expected = dict(item.leaves)
    widened = 0
    for path, leaf in expected.items():
        stored_as_array = "dtype" in found.get(path, {}) and "value" in leaf
        if item.name in NUMBERS_ARE_ARRAYS and stored_as_array:
            expected[path] = support.as_array(leaf)
            widened += 1
    assert widened == NUMBERS_ARE_ARRAYS.get(item.name, 0)
    support.assert_equal(found, expected)
    assert support.snapshot(item.root) == before


@pytest.mark.parametrize("format", FORMATS)
@every_item
def test_there_and_back(item: Item, format: str, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    if (item.name, format) in REFUSED:
        error, words = REFUSED[item.name, format]
        with pytest.raises(error) as refused:
            support.convert(item.root, there, item.other, to_format=format)
        assert words in str(refused.value)
        return
    report = support.convert(item.root, there, item.other, to_format=format, **item.chosen)
    support.assert_nothing_vanishes(item.leaves, report.plan)
    expected = converted(item, format)
    found = support.read(there)
    support.assert_equal(found, widened(expected, found, item))
    framework = "linen" if item.other == "nnx" else "nnx"
    report = support.convert(there, back, framework, **way_back(item))
    support.assert_nothing_vanishes(found, report.plan)
    expected, found = converted_back(item), support.read(back)
    support.assert_equal(found, widened(expected, found, item))


def widened(expected: Leaves, found: Leaves, item: Item) -> Leaves:
    """Python numbers as 0-d arrays, for the two checkpoints that hold them so."""
    if item.name not in NUMBERS_ARE_ARRAYS:
        return expected
    return {
        path: support.as_array(leaf) if "value" in leaf and "dtype" in found.get(path, {}) else leaf
        for path, leaf in expected.items()
    }


@pytest.mark.parametrize(("name", "chosen"), REFUSED_ITEMS)
def test_other_items_are_refused(name: str, chosen: str, tmp_path: Path) -> None:
    error, words = REFUSED_ITEMS[name, chosen]
    with pytest.raises(error) as refused:
        support.convert(CORPUS / name / "ckpt", tmp_path / "there", "nnx", item=chosen)
    assert words in str(refused.value)


@pytest.mark.parametrize("step", [1, 2])
def test_each_step_of_a_manager(step: int, tmp_path: Path) -> None:
    root = CORPUS / "cur_v12_mgr_metrics" / "ckpt"
    assert converter.inspect(root).checkpoint.steps == (1, 2)
    support.convert(root, tmp_path / "there", "nnx", step=step)
    directory = next(entry for entry in root.iterdir() if entry.name.endswith(f"{step}"))
    expected = support.linen_to_nnx(support.read(directory / "default"), "linen_variables", suffix="/value")
    support.assert_equal(support.read(tmp_path / "there"), expected)
