"""``verify`` says of every pair of checkpoints whether they hold the same, and names what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

CARDS = {
    path.parent.name: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent.parent.parent / "fixtures/checkpoints").glob("*/card.json"))
}
PAIRS = [(name, card["twin"]) for name, card in CARDS.items() if card["twin"] and card["framework"] == "linen"]


def options(name: str, twin: str, models: str) -> list[str]:
    """What a conversion between the two would be given."""
    card, other = CARDS[name], CARDS[twin]
    found = ["--nnx-model", f"{models}:{other['factories']['nnx']}"]
    # A model says in which collection a user's own variables are; the two sides call them differently.
    if card["model"] == "custom":
        found = ["--collection", "count=counter", "--collection", "mean=ema_stats"]
    return found + (["--optimizer", f"{models}:{card['optimizer']}"] if card["optimizer"] else [])


@pytest.mark.parametrize(("name", "twin"), PAIRS)
def test_committed_pairs_are_equal(name: str, twin: str, cli: Any, checkpoints: Path, models: str) -> None:
    """Both were saved by their own framework; neither was converted."""
    linen, nnx = (checkpoints / each / CARDS[each]["root"] for each in (name, twin))
    result = cli("verify", nnx, linen, *options(name, twin, models), "--json")
    report = json.loads(result.out)
    # Linen saves boxes where the model asks for them; a conversion without the Linen model makes none.
    boxed = [
        d for d in report["structure"]["differences"] if CARDS[name]["model"] not in ("mlp_partitioned", "mlp_logical")
    ]
    assert boxed == []
    assert report["values"]["ok"]
    assert result.code == (0 if report["structure"]["ok"] else 1)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("linen_lstm_standard", "nnx_lstm_standard"),
        ("linen_transformer_list_standard", "nnx_transformer_list_standard"),
        ("linen_train_state_adamw_schedule_pytree", "nnx_model_and_optimizer_standard"),
    ],
)
def test_random_state_of_an_nnx_checkpoint_is_no_difference(
    name: str, twin: str, cli: Any, checkpoints: Path, models: str
) -> None:
    """A Linen checkpoint says nothing about it: whichever the NNX one holds, it is what the Linen one gives.

    The models tell what is random state, so they must not make the answer worse.
    """
    linen, nnx = (checkpoints / each / CARDS[each]["root"] for each in (name, twin))
    with_model = ["--nnx-model", f"{models}:{CARDS[twin]['factories']['nnx']}"]
    result = cli("verify", linen, nnx, *with_model)
    assert (result.code, result.err) == (0, ""), result.out


def test_bare_dicts_that_may_be_either_are_verified_as_they_were_converted(cli: Any, tmp_path: Path) -> None:
    """Names that no layer of Flax uses do not tell the framework, nor what is a parameter of an NNX model."""
    source = tmp_path / "source.msgpack"
    source.write_bytes(serialization.msgpack_serialize({"tower": {"w": np.ones((2, 3), np.float32), "b": np.ones(3)}}))
    assert cli("linen-to-nnx", source, tmp_path / "nnx.msgpack").code == 0
    result = cli("verify", source, tmp_path / "nnx.msgpack")
    assert (result.code, result.err) == (0, "")
    assert "Linen params (without the collection level) → pure dict of a model" in result.out
    assert cli("nnx-to-linen", source, tmp_path / "linen.msgpack", "--collection", "**=params").code == 0
    result = cli("verify", source, tmp_path / "linen.msgpack", "--collection", "**=params")
    assert (result.code, result.err) == (0, "")
    assert "pure dict of a model → Linen variables" in result.out


# Tampering -----------------------------------------------------------------------------------------------------------


def changed(params: Any) -> None:
    params["up"]["kernel"] = params["up"]["kernel"].copy()
    params["up"]["kernel"][3, 2] += 1


def nearly_equal(params: Any) -> None:
    """By the least significant bit of one element."""
    kernel = params["up"]["kernel"].copy()
    kernel[3, 2] = np.nextafter(kernel[3, 2], np.float32(9))
    params["up"]["kernel"] = kernel


def transposed(params: Any) -> None:
    params["up"]["kernel"] = np.ascontiguousarray(params["up"]["kernel"].T)


def reshaped(params: Any) -> None:
    params["up"]["kernel"] = params["up"]["kernel"].reshape(-1)


def widened(params: Any) -> None:
    params["up"]["kernel"] = params["up"]["kernel"].astype(np.float64)


def absent(params: Any) -> None:
    del params["up"]["kernel"]


def renamed(params: Any) -> None:
    params["up"]["weight"] = params["up"].pop("kernel")


def added(params: Any) -> None:
    params["up"]["kernel_2"] = params["up"]["kernel"]


def swapped(params: Any) -> None:
    params["up"], params["down"] = params["down"], params["up"]


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (changed, ("values     DIFFERENT", "params/up/kernel", "at [3,2]", "1 of 60")),
        (nearly_equal, ("values     DIFFERENT", "params/up/kernel", "at [3,2]", "1 of 60")),
        (transposed, ("structure  DIFFERENT", "params/up/kernel", "float32[6,10]", "float32[10,6]")),
        (reshaped, ("structure  DIFFERENT", "params/up/kernel", "float32[6,10]", "float32[60]")),
        (widened, ("structure  DIFFERENT", "params/up/kernel", "float32[6,10]", "float64[6,10]")),
        (absent, ("structure  DIFFERENT", "params/up/kernel", "expected float32[6,10]", "found nothing")),
        (renamed, ("params/up/kernel", "params/up/weight", "expected nothing")),
        (added, ("params/up/kernel_2", "expected nothing", "found float32[6,10]")),
        (swapped, ("params/up/kernel", "params/down/kernel", "params/up/bias", "params/down/bias")),
    ],
)
def test_a_tampered_destination(
    tamper: Callable[[Any], None], words: tuple[str, ...], cli: Any, checkpoints: Path, tmp_path: Path
) -> None:
    source = checkpoints / "nnx_mlp_standard/checkpoint"
    assert cli("nnx-to-linen", source, "out.msgpack").code == 0
    variables = serialization.msgpack_restore((tmp_path / "out.msgpack").read_bytes())
    tamper(variables["params"])
    (tmp_path / "out.msgpack").write_bytes(serialization.msgpack_serialize(variables))
    result = cli("verify", source, "out.msgpack")
    assert (result.code, result.err) == (1, "")
    assert all(word in result.out for word in words), result.out
    if tamper is not swapped:
        assert "params/down" not in result.out, "only what differs is listed"
    quiet = cli("verify", source, "out.msgpack", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (1, "", "")
    report = json.loads(cli("verify", source, "out.msgpack", "--json").out)
    assert not report["ok"]
    assert any(d["path"] in words for part in ("structure", "values") for d in report[part]["differences"])


def test_every_leaf_is_compared(cli: Any, checkpoints: Path, tmp_path: Path) -> None:
    """A byte is changed in each leaf in turn: verify names that leaf and no other."""
    source = checkpoints / "linen_train_state_adamw_schedule_mlp_standard/checkpoint"
    assert cli("linen-to-nnx", source, "out.msgpack").code == 0
    sound = serialization.msgpack_restore((tmp_path / "out.msgpack").read_bytes())
    places = [(path, leaf) for path, leaf in _leaves(sound) if leaf.size]
    assert len(places) == 15
    for path, leaf in places:
        data = bytearray(np.ascontiguousarray(leaf).tobytes())
        data[-1] ^= 1
        node = sound
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = np.frombuffer(bytes(data), leaf.dtype).reshape(leaf.shape)
        (tmp_path / "out.msgpack").write_bytes(serialization.msgpack_serialize(sound))
        node[path[-1]] = leaf
        report = json.loads(cli("verify", source, "out.msgpack", "--json").out)
        assert [d["path"] for d in report["values"]["differences"]] == ["/".join(path)]


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for key, child in tree.items() for leaf in _leaves(child, (*path, key))]


# Several items of one step -------------------------------------------------------------------------------------------

ITEMS = {"linen_train_state_composite": "linen-to-nnx", "nnx_composite": "nnx-to-linen"}


@pytest.mark.parametrize("full", [[], ["--full"]], ids=["quick", "full"])
@pytest.mark.parametrize("name", ITEMS)
def test_items_that_belong_together_may_stand_on_either_side(
    name: str, full: list[str], cli: Any, checkpoints: Path
) -> None:
    items = checkpoints / name / "checkpoint"
    assert cli(ITEMS[name], items, "out").code == 0
    for pair in (items, "out"), ("out", items):
        result = cli("verify", *pair, *full)
        assert result.code == 0, result.out
        assert "values     equal" in result.out
        assert "optimizer" in cli("verify", *pair, "--json").out, "the optimizer's item is compared too"


@pytest.mark.parametrize("full", [[], ["--full"]], ids=["quick", "full"])
def test_an_item_that_was_changed(full: list[str], cli: Any, checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / "linen_train_state_composite/checkpoint", tmp_path / "items")
    assert cli("linen-to-nnx", "items", "out").code == 0
    item = tmp_path / "items/3/params"
    with ocp.PyTreeCheckpointer() as checkpointer:
        params = checkpointer.restore(item)
        params["up"]["bias"] = params["up"]["bias"] + 1
        checkpointer.save(item, params, force=True)
    result = cli("verify", "out", "items", *full)
    assert result.code == 1
    assert "params/up/bias" in result.out
    assert "opt_state" not in result.out.partition("DIFFERENT")[2], "only what differs is listed"


def test_a_destination_whose_items_do_not_belong_together(cli: Any, checkpoints: Path, tmp_path: Path) -> None:
    for name in ("generator", "discriminator"):
        shutil.copytree(checkpoints / "linen_dense_standard/checkpoint", tmp_path / "items/1" / name)
    result = cli("verify", checkpoints / "nnx_dense_standard/checkpoint", "items")
    assert result.code == 2
    assert "holds several items" in result.err
    assert "Name the directory of one of them" in result.err
