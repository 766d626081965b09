"""``converter.verify``: a checkpoint and its conversion compute the same, and no change of a leaf goes unseen."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx, serialization

import converter
from converter.errors import ModelError, UsageError, VerificationFailed
from fixtures import make
from fixtures.models import PAIRS, LinenDecoder, decoder_init_inputs

from . import support

# Both models run -----------------------------------------------------------------------------------------------------


class OneStepDecoder(LinenDecoder):
    """Takes one position even when it is initialised; the length of its cache is its own affair."""

    def __call__(self, x):
        return super().__call__(decoder_init_inputs()[0] if self.is_initializing() else x)


PAIRS_OF_CHECKPOINTS = {
    "transformer": ("linen_transformer_standard", "nnx_transformer_standard"),
    "transformer_list": ("linen_transformer_list_standard", "nnx_transformer_list_standard"),
    "encoder": ("linen_encoder_v1", "nnx_encoder_v1"),
    "lstm": ("linen_lstm_standard", "nnx_lstm_standard"),
    "decoder": ("linen_cache_standard", "nnx_cache_standard"),
    "custom": ("linen_custom_standard", "nnx_custom_standard"),
}
"""Blocks as attributes and in a list, with batch statistics, with gates called ``if``, with a cache, with own types."""


@functools.cache
def nnx_module(model: str) -> nnx.Module:
    return PAIRS[model].nnx()


def knowledge(model: str) -> dict[str, Any]:
    """What a user says to have both models run."""
    pair = PAIRS[model]
    known: dict[str, Any] = {"nnx_model": nnx_module(model), "linen_model": pair.linen, "inputs": pair.inputs}
    if model == "encoder":  # a factory for once: it is slower, because it is evaluated each time
        known["nnx_model"] = pair.nnx
    if model == "decoder":
        known |= {"linen_model": OneStepDecoder(), "linen_kwargs": {"mutable": ["cache"]}}
    if model == "custom":
        known["collections"] = {"count": "counter", "mean": "ema_stats"}
    return known


@pytest.mark.parametrize("to", ["linen", "nnx"])
@pytest.mark.parametrize("model", PAIRS_OF_CHECKPOINTS)
def test_both_frameworks_compute_the_same(model: str, to: str, tmp_path: Path) -> None:
    """Bit for bit: each model runs on its own checkpoint, operation by operation."""
    source = make.CHECKPOINTS / PAIRS_OF_CHECKPOINTS[model][to == "linen"] / "checkpoint"
    destination = tmp_path / "converted"
    converter.convert(source, destination, to, verify=False, **knowledge(model))
    report = converter.verify(source, destination, **knowledge(model))
    assert report.ok, report.text()
    assert report.structure is not None
    assert report.values is not None
    assert report.outputs is not None
    assert [output.bitwise for output in report.outputs.outputs] == [True]
    assert "bit for bit equal" in report.text()
    assert report.to_json()["outputs"]["ok"]


def test_outputs_of_a_train_state(tmp_path: Path) -> None:
    """Only the variables run; the optimizer state is compared all the same."""
    source = make.CHECKPOINTS / "linen_train_state_adamw_schedule_pytree" / "checkpoint"
    report = support.convert(source, tmp_path / "converted", "nnx", **knowledge("encoder"))
    assert report.outputs is not None
    assert report.outputs.outputs[0].bitwise
    assert report.values is not None
    assert report.values.leaves == len(report.plan.steps)


# The models differ ---------------------------------------------------------------------------------------------------


class OtherMlp(nn.Module):
    """The variables of the fixture's, but another activation."""

    def setup(self):
        self.up = nn.Dense(10)
        self.down = nn.Dense(6)

    def __call__(self, x):
        return self.down(nn.relu(self.up(x)))


class WiderMlp(OtherMlp):
    def __call__(self, x):
        return jnp.concatenate([super().__call__(x)] * 2)


class FailingMlp(OtherMlp):
    def __call__(self, x):
        if not self.is_initializing():
            raise ArithmeticError("no luck today")
        return super().__call__(x)


MLP = make.CHECKPOINTS / "nnx_mlp_standard" / "checkpoint"


@pytest.mark.parametrize(
    ("module", "error", "words"),
    [
        (OtherMlp, VerificationFailed, "max abs difference"),
        (WiderMlp, VerificationFailed, "the models return different structures"),
        (FailingMlp, ModelError, "no luck today"),
    ],
)
def test_models_that_differ_keep_a_conversion_from_appearing(
    module: type[nn.Module], error: type[converter.ConverterError], words: str, tmp_path: Path
) -> None:
    """The checkpoint itself is the same in each case: what differs is seen in the outputs alone."""
    known = {**knowledge("mlp"), "linen_model": module()}
    with pytest.raises(error, match=words):
        support.convert(MLP, tmp_path / "converted", "linen", **known)
    converter.convert(MLP, tmp_path / "converted", "linen", verify=False, **known)
    if error is VerificationFailed:
        report = converter.verify(MLP, tmp_path / "converted", **known)
        assert not report.ok
        assert report.structure is not None
        assert report.structure.ok
        assert words in report.text()


def test_two_checkpoints_of_one_framework_are_refused(tmp_path: Path) -> None:
    other = make.CHECKPOINTS / "nnx_dense_standard" / "checkpoint"
    with pytest.raises(UsageError, match=r"are both nnx\.State of a model"):
        converter.verify(MLP, other)


# The checkpoints differ ----------------------------------------------------------------------------------------------

Keys = tuple[str, ...]
Change = Callable[[dict[str, Any], Keys, Keys], tuple[Keys, ...]]


def node(tree: dict[str, Any], keys: Keys) -> dict[str, Any]:
    for key in keys[:-1]:
        tree = tree[key]
    return tree


def swap(tree: dict[str, Any], one: Keys, other: Keys) -> tuple[Keys, ...]:
    first, second = node(tree, one)[one[-1]], node(tree, other)[other[-1]]
    assert first.shape == second.shape
    node(tree, one)[one[-1]], node(tree, other)[other[-1]] = second, first
    return one, other


def flip_a_bit(tree: dict[str, Any], one: Keys, other: Keys) -> tuple[Keys, ...]:
    array = np.array(node(tree, one)[one[-1]])
    array.view(np.uint8).reshape(-1)[-4] ^= 1
    node(tree, one)[one[-1]] = array
    return (one,)


def change_the_sign_of_a_zero(tree: dict[str, Any], one: Keys, other: Keys) -> tuple[Keys, ...]:
    """Equal as a number, not as bits."""
    array = np.array(node(tree, other)[other[-1]])
    array.reshape(-1)[0] = -0.0
    node(tree, other)[other[-1]] = array
    return (other,)


def leave_out(tree: dict[str, Any], one: Keys, other: Keys) -> tuple[Keys, ...]:
    del node(tree, one)[one[-1]]
    return (one,)


def add(tree: dict[str, Any], one: Keys, other: Keys) -> tuple[Keys, ...]:
    extra = (*one[:-1], "more") if one[-1] != "value" else (*one[:-2], "more", "value")
    node(tree, extra[:-1])[extra[-2]] = node(tree, extra[:-1]).get(extra[-2], {})
    node(tree, extra)[extra[-1]] = np.zeros(3, np.float32)
    return (extra,)


def narrow(tree: dict[str, Any], one: Keys, other: Keys) -> tuple[Keys, ...]:
    node(tree, one)[one[-1]] = np.asarray(node(tree, one)[one[-1]]).astype(jnp.bfloat16)
    return (one,)


def reshape(tree: dict[str, Any], one: Keys, other: Keys) -> tuple[Keys, ...]:
    array = np.asarray(node(tree, one)[one[-1]])
    node(tree, one)[one[-1]] = array.reshape(array.shape[0], -1)
    return (one,)


CHANGES: Mapping[str, tuple[Change, str, str]] = {
    "swapped": (swap, "values", "elements differ"),
    "a flipped bit": (flip_a_bit, "values", "and 1 of"),
    "the sign of a zero": (change_the_sign_of_a_zero, "values", "-0.0 there, and 1 of"),
    "missing": (leave_out, "structure", "found nothing"),
    "extra": (add, "structure", "expected nothing"),
    "another dtype": (narrow, "structure", "found bfloat16"),
    "another shape": (reshape, "structure", "found float32[6,12]"),
}
"""What is done to a destination, which check sees it, and words of its report."""

KEY, QUERY = ("block", "attention", "key"), ("block", "attention", "query")

VICTIMS: Mapping[str, tuple[str, str, tuple[Keys, Keys]]] = {
    "variables": ("nnx_encoder_v1", "linen", (("params", *KEY, "kernel"), ("params", *QUERY, "kernel"))),
    "moments": (
        "nnx_model_and_optimizer_standard",
        "linen",
        (("opt_state", "0", "mu", *KEY, "kernel"), ("opt_state", "0", "nu", *QUERY, "kernel")),
    ),
    "state": ("linen_encoder_v1", "nnx", ((*KEY, "kernel", "value"), (*QUERY, "kernel", "value"))),
    "moments of nnx": (
        "linen_train_state_adamw_schedule_v1",
        "nnx",
        (
            ("optimizer", "opt_state", "0", "mu", *KEY, "kernel", "value"),
            ("optimizer", "opt_state", "0", "nu", *QUERY, "kernel", "value"),
        ),
    ),
}
"""Source, framework, and two leaves of one shape in the destination."""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path]]:
    """Source and destination of each victim; the first element of one leaf is zero, to have a sign to change."""
    directory = tmp_path_factory.mktemp("victims")

    def paths(victim: str, format: str) -> tuple[Path, Path]:
        name, framework, (_, other) = VICTIMS[victim]
        original = make.CHECKPOINTS / name / "checkpoint"
        source = directory / f"{victim}_source"
        if not source.exists():
            tree = support.restored(next(original.glob("*/_METADATA")).parent if "v1" in name else original)
            zeroed = with_zero(tree, other)
            save(zeroed, source, "orbax")
        destination = directory / f"{victim}_{format}"
        if not destination.exists():
            support.convert(source, destination, framework, to_format=format)
        return source, destination

    return paths


def with_zero(tree: Any, keys: Keys) -> Any:
    """The tree with a zero at the start of the leaf that becomes ``keys`` in the other framework."""
    tail = "/".join(key for key in keys if key not in ("params", "value", "optimizer"))
    found = 0

    def visit(node: Any, path: tuple[str, ...]) -> Any:
        nonlocal found
        if isinstance(node, dict):
            return {key: visit(child, (*path, str(key))) for key, child in node.items()}
        if isinstance(node, list | tuple):
            return [visit(child, (*path, str(index))) for index, child in enumerate(node)]
        here = "/".join(key for key in path if key not in ("params", "value", "model"))
        if here != tail:
            return node
        found += 1
        array = np.array(node)
        array.reshape(-1)[0] = 0.0
        return array

    changed = visit(tree, ())
    assert found == 1, tail
    return changed


def save(tree: Any, path: Path, format: str) -> None:
    if format == "msgpack":
        path.write_bytes(serialization.to_bytes(tree))
    else:
        with ocp.PyTreeCheckpointer() as saver:
            saver.save(path, tree)


def as_dicts(tree: Any) -> Any:
    """Sequences as dicts by position: optax states are sequences in Orbax and dicts in msgpack."""
    if isinstance(tree, list | tuple):
        return {str(position): as_dicts(item) for position, item in enumerate(tree)}
    return {key: as_dicts(item) for key, item in tree.items()} if isinstance(tree, dict) else tree


def as_lists(tree: Any) -> Any:
    """The reverse: a dict by positions as a list."""
    if not isinstance(tree, dict):
        return tree
    children = {key: as_lists(item) for key, item in tree.items()}
    return list(children.values()) if children and list(children) == list(map(str, range(len(children)))) else children


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("victim", "format"),
    [
        ("variables", "orbax"),
        ("moments", "msgpack"),
        ("moments", "orbax"),
        ("state", "orbax"),
        ("state", "msgpack"),
        ("moments of nnx", "orbax"),
    ],
)
def test_no_change_of_a_destination_goes_unseen(
    change: str, victim: str, format: str, converted: Callable[[str, str], tuple[Path, Path]], tmp_path: Path
) -> None:
    source, destination = converted(victim, format)
    assert converter.verify(source, destination).ok
    alter, seen_by, words = CHANGES[change]
    _, framework, places = VICTIMS[victim]
    bare = format == "msgpack" and framework == "nnx"
    one, other = (keys[:-1] if bare else keys for keys in places)
    tree = as_dicts(copy.deepcopy(support.restored(destination)))
    touched = alter(tree, one, other)
    in_lists = format == "orbax" and framework == "linen"
    save(as_lists(tree) if in_lists else tree, tmp_path / "altered", format)
    report = converter.verify(source, tmp_path / "altered")
    assert not report.ok
    result = getattr(report, seen_by)
    assert {difference.path for difference in result.differences} == {"/".join(keys) for keys in touched}
    text = report.text()
    assert words in text
    for keys in touched:
        assert "/".join(keys) in text
    assert {entry["path"] for entry in report.to_json()[seen_by]["differences"]} == {"/".join(k) for k in touched}
