"""Every committed checkpoint, converted in both formats to the other framework and back: each leaf comes unchanged."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flax import nnx

import converter
from converter.errors import ConversionRefused, ConverterError, UnsupportedCheckpoint
from fixtures import make
from fixtures.cards import describe
from fixtures.models import OPTIMIZERS, PAIRS
from fixtures.unlike import UNLIKE
from fixtures.values import COLLECTIONS

from . import support
from .support import Leaves

ALL_CARDS = {path.parent.name: json.loads(path.read_text()) for path in sorted(make.CHECKPOINTS.glob("*/card.json"))}
CARDS = {name: card for name, card in ALL_CARDS.items() if card["model"] not in UNLIKE}
"""Those whose variables are the same on both sides; test_rules.py has the others."""

FORMATS = ("orbax", "msgpack", "safetensors")
SUFFIX = {"orbax": "/value", "msgpack": "", "safetensors": ""}
"""What the paths of NNX end in: an ``nnx.State`` is written to Orbax by default, and a pure dict to all others."""

# What a user has to say, and what is refused -------------------------------------------------------------------------

ITEMS = {
    "linen_train_state_composite": {"params": "linen_params", "opt_state": "optax_state"},
    "nnx_composite": {"model": "nnx_state", "optimizer": "nnx_optimizer"},
}
"""The items of the checkpoints that hold several, with their dialects; test_items.py has all items as one."""

WITHOUT_MODEL = {"linen_keys_standard": "its keys are in no model"}

PARAMS_ONLY = tuple(f"linen_params_{kind}" for kind in ("standard", "msgpack", "hf_shards", "safetensors", "npz"))
"""Parameters alone of a model that has batch statistics: it needs --params-only to be given that model."""

QUANTIZED = ("bool", "float8_e4m3fn", "float8_e5m2", "int4", "int8", "uint32")
ODD_DTYPES = {"dense/**": "params", **dict.fromkeys(QUANTIZED, "quantized"), "**": "extras"}

COLLECTIONS_OF: dict[str, dict[str, str]] = {
    "linen_custom_standard": {"count": "counter", "mean": "ema_stats"},
    "nnx_custom_standard": {"count": "counter", "mean": "ema_stats"},
    "linen_keys_standard": {"kernel": "params", "bias": "params", "*": "rngs"},
    "linen_dtypes_pytree": ODD_DTYPES,
    "linen_dtypes_msgpack": ODD_DTYPES,
}
"""``--collection`` where NNX variables go back to Linen and neither their names nor a registered type tell theirs."""

NO_KEYS = "key: key<threefry2x32>[] is a typed PRNG key, for which msgpack has no form"
NO_KEYS_EITHER = NO_KEYS.replace("msgpack", "safetensors")
NO_TEXT = "extras/text: str is text, and safetensors holds arrays only"

REFUSED: dict[tuple[str, str], tuple[type[ConverterError], str]] = {
    ("linen_train_state_composite:opt_state", "orbax"): (UnsupportedCheckpoint, "an optax state saved alone"),
    ("linen_train_state_composite:opt_state", "msgpack"): (UnsupportedCheckpoint, "an optax state saved alone"),
    ("linen_train_state_composite:opt_state", "safetensors"): (UnsupportedCheckpoint, "an optax state saved alone"),
    ("linen_keys_standard", "msgpack"): (UnsupportedCheckpoint, NO_KEYS),
    ("linen_train_state_extended_standard", "msgpack"): (UnsupportedCheckpoint, NO_KEYS),
    ("linen_keys_standard", "safetensors"): (UnsupportedCheckpoint, NO_KEYS_EITHER),
    ("linen_train_state_extended_standard", "safetensors"): (UnsupportedCheckpoint, NO_KEYS_EITHER),
    ("linen_dtypes_pytree", "safetensors"): (UnsupportedCheckpoint, NO_TEXT),
    ("linen_dtypes_msgpack", "safetensors"): (UnsupportedCheckpoint, NO_TEXT),
}
"""Case and format → the error and words of it."""

REFUSED_WITHOUT_OPTIONS: dict[str, tuple[type[ConverterError], str]] = {
    "nnx_custom_standard": (ConversionRefused, "count: int32[]: nothing tells whether it is a parameter"),
}
"""The same for conversions to Orbax without any option, beyond those of ``REFUSED``."""

REFUSED_BACK_WITHOUT_OPTIONS: dict[str, tuple[type[ConverterError], str]] = {
    "linen_custom_standard": (ConversionRefused, "mean: float32[3]: nothing tells whether it is a parameter"),
    "linen_dtypes_msgpack": (ConversionRefused, "int4: int4[3,4]: nothing tells whether it is a parameter"),
    "linen_dtypes_pytree": (ConversionRefused, "int4: int4[3,4]: nothing tells whether it is a parameter"),
    "linen_keys_standard": (ConversionRefused, "raw: uint32[2]: nothing tells whether it is a parameter"),
}

BUNDLES = {
    "nnx_model_and_optimizer_standard": ("model-and-optimizer", "model/", ""),
    "nnx_split_tuple_standard": ("tuple", "0/", "1/"),
}
"""Where model and optimizer stand in NNX checkpoints of both; ``model/`` and ``optimizer/`` in the others."""


class Case(NamedTuple):
    """A checkpoint, or one item of it."""

    name: str
    item: str | None = None

    def __str__(self) -> str:
        return ":".join(filter(None, self))

    @property
    def card(self) -> dict[str, Any]:
        card: dict[str, Any] = CARDS[self.name]
        return card

    @property
    def root(self) -> Path:
        return Path(make.CHECKPOINTS / self.name / self.card["root"])

    @property
    def dialect(self) -> str:
        return str(self.card["dialect"] if self.item is None else ITEMS[self.name][self.item])

    @property
    def other(self) -> str:
        return {"linen": "nnx", "nnx": "linen"}[self.card["framework"]]

    @property
    def leaves(self) -> Leaves:
        card = self.card
        if self.item is None or card["checkpoint"].endswith(f"/{self.item}"):
            return support.flat(card["leaves"])
        return support.flat(next(leaves for path, leaves in card["others"].items() if path.endswith(f"/{self.item}")))

    @property
    def chosen(self) -> dict[str, Any]:
        return {} if self.item is None else {"item": self.item}

    @property
    def model(self) -> str:
        return "" if self.name in WITHOUT_MODEL else self.card["model"] or ""

    @property
    def bundle(self) -> tuple[str, str, str]:
        return BUNDLES.get(self.name, ("dict", "model/", "optimizer/"))


CASES = [Case(name) for name in CARDS if name not in ITEMS]
CASES += [Case(name, item) for name, items in ITEMS.items() for item in items]


# The models ----------------------------------------------------------------------------------------------------------


@functools.cache
def nnx_module(model: str) -> nnx.Module:
    return PAIRS[model].nnx()


@functools.cache
def collections_of(model: str) -> dict[str, str]:
    """The collection of every variable of the NNX model by path; "" for random state."""
    flat = nnx.to_flat_state(nnx.state(nnx_module(model)))
    names = {"/".join(map(str, path)): COLLECTIONS[variable.type] for path, variable in flat}
    return {path: "" if name == "rngs" else name for path, name in names.items()}


def random_state(model: str) -> Leaves:
    """The random state that a new NNX model starts with, as an ``nnx.State`` on disk holds it."""
    return support.full(support.flat(describe(nnx.state(nnx_module(model), nnx.RngState))))


def options(case: Case, to: str) -> dict[str, Any]:
    """What the card tells a user to say."""
    said: dict[str, Any] = {}
    if case.model and not (to == "nnx" and case.name in COLLECTIONS_OF):
        said["nnx_model"] = nnx_module(case.model)
    if case.model.startswith("mlp_"):  # the boxes of these are part of their Linen model
        said |= {"linen_model": PAIRS[case.model].linen, "inputs": PAIRS[case.model].inputs}
    if case.name in PARAMS_ONLY:
        said["params_only"] = True
    if to == "linen":
        said["collections"] = COLLECTIONS_OF.get(case.name, {})
        if case.card["optimizer"] and case.dialect not in ("nnx_optimizer", "nnx_state", "linen_params"):
            said["optimizer"] = OPTIMIZERS[case.card["optimizer"]]
    return said


# What is expected ----------------------------------------------------------------------------------------------------


def in_nnx(case: Case, format: str, bundle: tuple[str, str, str] = ("dict", "model/", "optimizer/")) -> Leaves:
    """The leaves of a Linen case in NNX, where its model has been given."""
    names = support.names_to_nnx if case.model else support.no_names
    _, model, optimizer = bundle
    moved = support.linen_to_nnx(
        case.leaves, case.dialect, suffix=SUFFIX[format], names=names, model=model, optimizer=optimizer
    )
    if case.model and case.name not in (*COLLECTIONS_OF, *PARAMS_ONLY) and format == "orbax":
        prefix = model if case.dialect == "linen_train_state" else ""
        moved |= {prefix + path: leaf for path, leaf in random_state(case.model).items()}
    return moved


def in_linen(case: Case) -> Leaves:
    """The leaves of an NNX case in Linen, where its model has been given."""
    _, model, optimizer = case.bundle if case.dialect == "nnx_model_optimizer" else ("", "", "")
    return support.nnx_to_linen(
        case.leaves,
        collection=collections_of(case.model).__getitem__,
        names=support.names_to_linen,
        model=None if case.dialect == "nnx_optimizer" else model,
        optimizer=optimizer,
    )


def back_in_linen(case: Case) -> Leaves:
    """The leaves of a Linen case after both ways: what is lost is stated here and nowhere else."""
    leaves = support.full(case.leaves)
    if case.dialect == "linen_t5x":  # its optimizers are gone: what comes back is a train state
        leaves = support.t5x_to_train_state(leaves)
    if case.dialect == "linen_params":
        # The collection level is written by default; --linen-style params leaves it out.
        leaves = {f"params/{path}": leaf for path, leaf in leaves.items()}
    if case.dialect == "linen_train_state":
        # A variables dict inside params comes back in its usual place, and the step in the dtype of a jitted one.
        leaves = {
            path.replace("params/params/", "params/")
            .replace("/mu/params/", "/mu/")
            .replace("/nu/params/", "/nu/"): leaf
            for path, leaf in leaves.items()
        }
        leaves["step"] = support.counter(leaves["step"], "int32")
    return leaves


def back_in_nnx(case: Case, format: str) -> Leaves:
    """The leaves of an NNX case after both ways: random state is the new model's own, or only in Orbax."""
    _, model, optimizer = case.bundle
    leaves: Leaves = {}
    for path, leaf in support.full(case.leaves).items():
        plain = path.removesuffix("/value")
        if case.dialect == "nnx_model_optimizer":
            in_optimizer = plain.startswith((f"{optimizer}opt_state/", f"{optimizer}step"))
            plain = (
                f"optimizer/{plain.removeprefix(optimizer)}" if in_optimizer else f"model/{plain.removeprefix(model)}"
            )
        variable = plain.removeprefix("model/")
        if collections_of(case.model).get(variable) == "":
            continue
        leaves[plain + SUFFIX[format]] = leaf
    if case.dialect != "nnx_optimizer" and format == "orbax":
        prefix = "model/" if case.dialect == "nnx_model_optimizer" else ""
        leaves |= {prefix + path: leaf for path, leaf in random_state(case.model).items()}
    return leaves


# The tests -----------------------------------------------------------------------------------------------------------


def test_the_tables_name_nothing_that_is_gone() -> None:
    cases = {str(case) for case in CASES} | ITEMS.keys()
    tables = (ITEMS, WITHOUT_MODEL, COLLECTIONS_OF, BUNDLES, REFUSED_WITHOUT_OPTIONS, REFUSED_BACK_WITHOUT_OPTIONS)
    assert {name for table in tables for name in table} <= cases
    assert {name for name, _ in REFUSED} <= cases
    assert {name for name, card in CARDS.items() if card["dialect"].endswith("_items")} == set(ITEMS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inspect_finds_the_leaves_of_the_card(case: Case) -> None:
    before = support.snapshot(case.root)
    inspection = converter.inspect(case.root, **case.chosen)
    found = support.read_ourselves(inspection.checkpoint.tree)
    support.assert_equal(support.full(found), support.full(case.leaves))
    assert {path for path, leaf in found.items() if "empty" in leaf} <= case.leaves.keys() - support.full(case.leaves)
    printed = inspection.to_json()["leaves"]
    assert [entry["path"] for entry in printed] == list(found)
    assert support.snapshot(case.root) == before


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_there_and_back(case: Case, format: str, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    said = options(case, case.other)
    if (str(case), format) in REFUSED:
        error, words = REFUSED[str(case), format]
        with pytest.raises(error) as refused:
            support.convert(case.root, there, case.other, to_format=format, **case.chosen, **said)
        assert words in str(refused.value)
        return
    report = support.convert(case.root, there, case.other, to_format=format, **case.chosen, **said)
    support.assert_nothing_vanishes(case.leaves, report.plan)
    is_linen = case.other == "linen"
    converted = support.read(there)
    support.assert_equal(converted, in_linen(case) if is_linen else in_nnx(case, format))
    assert converter.verify(case.root, there, **case.chosen, **said).ok
    framework = case.card["framework"]
    report = support.convert(there, back, framework, to_format=format, **options(case, framework))
    expected = back_in_nnx(case, format) if is_linen else back_in_linen(case)
    support.assert_equal(support.read(back), expected)
    support.assert_nothing_vanishes(converted, report.plan)


@pytest.mark.parametrize("case", [case for case in CASES if (str(case), "orbax") not in REFUSED], ids=str)
def test_there_and_back_without_a_word(case: Case, tmp_path: Path) -> None:
    """No model, no collection: names stay as they are, and what only a model could tell is refused."""
    there, back = tmp_path / "there", tmp_path / "back"
    # msgpack is the quicker one; the other test goes through both formats.
    format = "orbax" if (str(case), "msgpack") in REFUSED else "msgpack"
    if str(case) in REFUSED_WITHOUT_OPTIONS:
        error, words = REFUSED_WITHOUT_OPTIONS[str(case)]
        with pytest.raises(error) as refused:
            support.convert(case.root, there, case.other, to_format=format, **case.chosen)
        assert words in str(refused.value)
        return
    report = support.convert(case.root, there, case.other, to_format=format, **case.chosen)
    support.assert_nothing_vanishes(case.leaves, report.plan)
    if case.other == "nnx":
        expected = support.linen_to_nnx(case.leaves, case.dialect, suffix=SUFFIX[format], names=support.LSTM_TO_NNX)
    else:
        _, model, optimizer = case.bundle if case.dialect == "nnx_model_optimizer" else ("", "", "")
        expected = support.nnx_to_linen(
            case.leaves,
            collection=support.collection_by_name,
            names=support.LSTM_TO_LINEN,
            model=None if case.dialect == "nnx_optimizer" else model,
            optimizer=optimizer,
        )
    converted = support.read(there)
    support.assert_equal(converted, expected)
    framework = case.card["framework"]
    if str(case) in REFUSED_BACK_WITHOUT_OPTIONS:
        error, words = REFUSED_BACK_WITHOUT_OPTIONS[str(case)]
        with pytest.raises(error) as refused:
            support.convert(there, back, framework, to_format=format)
        assert words in str(refused.value)
        return
    report = support.convert(there, back, framework, to_format=format)
    support.assert_nothing_vanishes(converted, report.plan)
    if framework == "linen":
        # Boxes are gone: only a Linen model could tell that there were any.
        expected = {support.unboxed(path): leaf for path, leaf in back_in_linen(case).items()}
    else:
        expected = back_in_nnx(case, "msgpack")
    support.assert_equal(support.read(back), expected)


TWINS = [Case(name) for name, card in CARDS.items() if card["twin"]]


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_a_conversion_gives_the_leaves_of_the_twin(case: Case, tmp_path: Path) -> None:
    """The twin holds the same values and was saved by the other framework."""
    twin = Case(case.card["twin"])
    format = twin.card["format"]
    style = {"nnx_bundle": twin.bundle[0], "nnx_style": "pure" if "pure" in twin.dialect else "state"}
    support.convert(case.root, tmp_path / "twin", case.other, to_format=format, **style, **options(case, case.other))
    expected, found = support.full(twin.leaves), support.read(tmp_path / "twin")
    if case.other == "nnx":  # each model has random state of its own
        is_random = {path for path, collection in collections_of(twin.model).items() if not collection}
        prefix = twin.bundle[1] if twin.dialect == "nnx_model_optimizer" else ""

        def own(path: str) -> bool:
            return path.removesuffix("/value").removeprefix(prefix) in is_random

        assert {path for path in found if own(path)} == {path for path in expected if own(path)}
        expected, found = ({p: leaf for p, leaf in some.items() if not own(p)} for some in (expected, found))
    else:
        expected = {support.unboxed(path): leaf for path, leaf in expected.items()}
    support.assert_equal(found, expected)
