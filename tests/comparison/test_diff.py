"""``converter.diff``: equal is what is equal, every single change is found, and the order of the two does not count."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import converter
from converter.errors import ConverterError, UsageError
from converter.formats import FORMATS
from converter.paths import parse_path
from tests.building import tree_at

some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Values = dict[str, Any]
"""Arrays by path."""

DTYPES = [np.float32, np.float16, np.int8, np.uint32, np.int64, np.bool_, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


@st.composite
def states(draw: st.DrawFn) -> Values:
    """Variables of a Linen model, perhaps with a train state around them."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    layers = draw(st.integers(1, 3))
    paths = [f"layers_{number}/{name}" for number in range(layers) for name in ("kernel", "bias")] + ["head/kernel"]
    shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
    params = {path: _random(random, draw(shapes), draw(st.sampled_from(DTYPES))) for path in paths}
    values = {f"params/{path}": value for path, value in params.items()}
    if draw(st.booleans()):
        values["step"] = np.array(draw(st.integers(0, 1000)), np.int32)
        values["opt_state/0/count"] = np.array(3, np.int32)
        for field in ("mu", "nu"):
            values |= {f"opt_state/0/{field}/{path}": value.copy() for path, value in params.items()}
    return values


def _random(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = random.bytes(size)
    if dtype is np.bool_:
        data = bytes(each & 1 for each in data)
    return np.frombuffer(data, dtype).reshape(shape).copy()


def save(values: Values, path: Path, format: str = "msgpack") -> Path:
    """A checkpoint in a new place."""
    place = path / f"{len(list(path.iterdir()))}.ckpt"
    FORMATS[format].write(tree_at(values), place, lambda *_: None)
    return place


def found(comparison: converter.Comparison) -> dict[str, list[str]]:
    """What differs, by paths in A (in B where it is in B alone)."""
    shown = comparison.to_json()
    values = shown["values"] or {"different": []}
    return {
        "only_in_a": sorted(leaf["path"] for leaf in shown["only_in_a"]),
        "only_in_b": sorted(leaf["path"] for leaf in shown["only_in_b"]),
        "changed": sorted(pair["a"]["path"] for pair in shown["changed"]),
        "different": sorted(leaf["path_a"] for leaf in values["different"]),
    }


NOTHING: dict[str, list[str]] = {"only_in_a": [], "only_in_b": [], "changed": [], "different": []}


@some
@given(states(), st.sampled_from(["msgpack", "orbax"]))
def test_a_checkpoint_equals_its_copy(tmp_path: Path, values: Values, format: str) -> None:
    """NaNs of all kinds are among the values, and formats do not matter."""
    one, other = save(values, tmp_path), save(values, tmp_path, format)
    for a, b in ((one, one), (one, other), (other, one), (other, other)):
        comparison = converter.diff(a, b, values=True)
        assert comparison.ok, comparison.text()
        assert found(comparison) == NOTHING
        assert len(comparison.pairing.pairs) == len(values)


def flipped(values: Values, path: str) -> dict[str, list[str]]:
    array = values[path]
    data = bytearray(array.tobytes())
    data[-1] ^= 1
    values[path] = np.frombuffer(bytes(data), array.dtype).reshape(array.shape)
    return {"different": [path]}


def removed(values: Values, path: str) -> dict[str, list[str]]:
    del values[path]
    return {"only_in_a": [path]}


def added(values: Values, path: str) -> dict[str, list[str]]:
    values[f"{path}_2"] = values[path]
    return {"only_in_b": [f"{path}_2"]}


def renamed(values: Values, path: str) -> dict[str, list[str]]:
    values[f"{path}_2"] = values.pop(path)
    return {"only_in_a": [path], "only_in_b": [f"{path}_2"]}


def retyped(values: Values, path: str) -> dict[str, list[str]]:
    dtype = np.dtype(np.float64 if values[path].dtype != np.float64 else np.float32)
    values[path] = np.zeros(values[path].shape, dtype)
    return {"changed": [path]}


def reshaped(values: Values, path: str) -> dict[str, list[str]]:
    values[path] = values[path][None]
    return {"changed": [path]}


CHANGES = (flipped, removed, added, renamed, retyped, reshaped)

MIRRORED = {"only_in_a": "only_in_b", "only_in_b": "only_in_a", "changed": "changed", "different": "different"}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@settings(some, max_examples=15)
@given(values=states(), data=st.data())
def test_each_single_change_is_found(
    tmp_path: Path, change: Callable[..., dict[str, list[str]]], values: Values, data: st.DataObject
) -> None:
    # A parameter takes its mirrors along where its name changes, so a leaf that has none is changed.
    path = data.draw(st.sampled_from([path for path in values if path != "step" and "count" not in path]))
    one = save(values, tmp_path)
    expected = NOTHING | change(values, path)
    other = save(values, tmp_path)
    there, back = converter.diff(one, other, values=True), converter.diff(other, one, values=True)
    assert found(there) == expected
    assert found(back) == {MIRRORED[kind]: paths for kind, paths in expected.items()}
    assert not there.ok
    assert not back.ok


@some
@given(states(), states())
def test_the_order_of_the_two_makes_no_difference(tmp_path: Path, one: Values, other: Values) -> None:
    a, b = save(one, tmp_path), save(other, tmp_path)
    there, back = converter.diff(a, b, values=True), converter.diff(b, a, values=True)
    assert there.ok == back.ok
    assert found(back) == {MIRRORED[kind]: paths for kind, paths in found(there).items()}
    for (_, _, left), (_, _, right) in zip(there.different, back.different, strict=True):
        assert (left.different, left.max_abs, left.max_rel) == (right.different, right.max_abs, right.max_rel)


# Frameworks and layouts ----------------------------------------------------------------------------------------------

CHECKPOINTS = Path(__file__).resolve().parents[2] / "fixtures" / "checkpoints"
CARDS = {path.parent.name: json.loads(path.read_text()) for path in sorted(CHECKPOINTS.glob("*/card.json"))}
PAIRS = [(name, card["twin"]) for name, card in CARDS.items() if card["twin"] and card["framework"] == "linen"]


def root(name: str) -> Path:
    return CHECKPOINTS / name / str(CARDS[name]["root"])


@pytest.mark.parametrize(("linen", "nnx"), PAIRS)
def test_twins_of_both_frameworks_are_equal(linen: str, nnx: str) -> None:
    """Each was saved by its own framework. NNX random state is no difference: Linen has none."""
    for a, b in ((linen, nnx), (nnx, linen)):
        comparison = converter.diff(root(a), root(b), values=True)
        shown = found(comparison)
        assert comparison.ok, comparison.text()
        assert shown == NOTHING


@pytest.mark.parametrize("to_format", ["orbax", "msgpack"])
@pytest.mark.parametrize(
    "name", ["linen_train_state_adamw_schedule_mlp_standard", "nnx_mlp_model_optimizer_standard", "nnx_lstm_standard"]
)
def test_a_conversion_is_equal_and_what_is_linked_is_not_read(name: str, to_format: Any, tmp_path: Path) -> None:
    to: Any = "nnx" if name.startswith("linen") else "linen"
    converter.convert(root(name), tmp_path / "converted", to, to_format=to_format)
    comparison = converter.diff(root(name), tmp_path / "converted", values=True)
    assert comparison.ok, comparison.text()


def test_the_same_bytes_on_disk_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"params/dense/kernel": np.arange(5000, dtype=np.float32)}
    source = save(values, tmp_path, "orbax")
    converter.convert(source, tmp_path / "linked", "nnx")
    converter.convert(source, tmp_path / "copied", "nnx", copy=True)
    copied = converter.diff(source, tmp_path / "copied", values=True)
    assert copied.values is not None
    assert (copied.ok, copied.values.same_place) == (True, 0)

    def forbidden(*_: object) -> None:
        raise AssertionError("an array was read")

    monkeypatch.setattr("converter.comparison.values.leaf_pieces", forbidden)
    monkeypatch.setattr("converter.verification.values.same_bytes", forbidden)
    linked = converter.diff(source, tmp_path / "linked", values=True)
    assert linked.values is not None
    assert (linked.ok, linked.values.same_place) == (True, 1)
    with pytest.raises(AssertionError, match="was read"):
        converter.diff(source, tmp_path / "copied", values=True)


def test_items_of_lists_are_called_otherwise_in_linen(tmp_path: Path) -> None:
    linen, nnx = (
        {f"{top}blocks{mark}{number}/kernel{end}": np.full(2, number, np.float32) for number in range(3)}
        for top, mark, end in (("params/", "_", ""), ("", "/", "/value"))
    )
    a, b = save(linen, tmp_path, "orbax"), save(nnx, tmp_path, "orbax")
    assert converter.diff(a, b, values=True).ok
    nnx["blocks/1/kernel/value"] = np.full(2, 7, np.float32)
    comparison = converter.diff(a, save(nnx, tmp_path, "orbax"), values=True)
    assert found(comparison) == NOTHING | {"different": ["params/blocks_1/kernel"]}
    assert "params/blocks_1/kernel = blocks/1/kernel  float32[2]  2 of 2 elements, max abs 6, max rel 0.857" in (
        comparison.text()
    )


def test_a_model_is_found_in_a_train_state() -> None:
    comparison = converter.diff(root("linen_mlp_standard"), root("linen_train_state_manager"))
    shown = found(comparison)
    assert (shown["only_in_a"], shown["changed"]) == ([], [])
    assert len(comparison.pairing.pairs) == 4
    assert all(path == "step" or path.startswith("opt_state/") for path in shown["only_in_b"])


def test_what_belongs_to_no_framework_is_compared_by_path() -> None:
    alone = root("linen_train_state_composite")
    comparison = converter.diff(alone, alone, item_a="opt_state", item_b="opt_state", values=True)
    assert comparison.ok
    assert comparison.pairing.dialects is None
    assert "compared by path" in comparison.text()


CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs the checkpoint corpus in ../shared/corpus")
def test_checkpoints_of_all_ages_equal_themselves() -> None:
    compared = 0
    for place in sorted(CORPUS.glob("*/ckpt")):
        try:
            comparison = converter.diff(place, place, values=True)
        except ConverterError:  # several items, a directory around a file
            continue
        assert comparison.ok, comparison.text()
        assert found(comparison) == NOTHING
        compared += 1
    assert compared > 100


# What is said --------------------------------------------------------------------------------------------------------


def test_layers_are_folded_and_their_distances_added_up(tmp_path: Path) -> None:
    values = {f"params/layers_{number}/kernel": np.ones((2, 3), np.float32) for number in range(5)}
    one = save(values, tmp_path)
    for number, much in ((1, 0.5), (2, 3.0)):
        values[f"params/layers_{number}/kernel"][0, 0] += np.float32(much)
    comparison = converter.diff(one, save(values, tmp_path), values=True)
    row = "  params/layers_{1…2}/kernel  float32[2,3]  2 of 12 elements, max abs 3, max rel 0.75"
    assert row in comparison.text().splitlines()
    assert comparison.text().endswith(
        "DIFFERENT: 2 different; 5 leaves in both, values of 3 equal bit for bit (120 B compared)"
    )


def test_other_dtypes_are_told_with_how_far_the_values_are_apart(tmp_path: Path) -> None:
    values: Values = {
        f"params/layers_{number}/kernel": np.array([[1.0, 1 / 3], [2.0, 3.0]], np.float32) for number in range(3)
    }
    values |= {"params/head/kernel": np.ones((2, 3), np.float32), "params/head/scale": np.ones(4, np.float32)}
    one = save(values | {"step": np.array(3, np.int32)}, tmp_path)
    values = {path: value.astype(ml_dtypes.bfloat16) for path, value in values.items()}
    values["params/head/scale"] = np.ones((2, 2), np.float32)
    other = save(values | {"step": np.array(3, np.int64)}, tmp_path)
    lines = converter.diff(one, other).text().splitlines()
    assert "  params/layers_{0…2}/kernel  float32[2,2] → bfloat16[2,2]" in lines
    comparison = converter.diff(one, other, values=True)
    lines = [" ".join(line.split()) for line in comparison.text().splitlines()]
    layers = "params/layers_{0…2}/kernel float32[2,2] → bfloat16[2,2]"
    assert f"{layers} 3 of 12 elements, max abs 0.000651, max rel 0.00195" in lines
    assert "params/head/kernel float32[2,3] → bfloat16[2,3] equal values" in lines
    assert "params/head/scale float32[4] → float32[2,2]" in lines
    assert "step int32[] → int64[] equal values" in lines
    assert lines[-1].startswith("DIFFERENT: 6 changed;")
    distances = {pair["a"]["path"]: pair["distance"] for pair in comparison.to_json()["changed"]}
    assert distances["params/head/scale"] is None
    assert distances["step"] == {"elements": 1, "different": 0, "max_abs": 0.0, "max_rel": 0.0}
    assert distances["params/layers_1/kernel"]["different"] == 1
    assert {pair["distance"] for pair in converter.diff(one, other).to_json()["changed"]} == {None}


def test_values_are_not_read_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = save({"params/a/kernel": np.ones(3, np.float32)}, tmp_path)
    other = save({"params/a/kernel": np.zeros(3, np.float32)}, tmp_path)
    monkeypatch.setattr("converter.comparison.compare_pairs", lambda *_: pytest.fail("values were read"))
    comparison = converter.diff(one, other)
    assert comparison.ok
    assert "values not compared" in comparison.text()
    assert comparison.to_json()["values"] is None


def test_filters_match_either_side(tmp_path: Path) -> None:
    a = save({"params/x/kernel": np.ones(3, np.float32), "params/x/bias": np.ones(3, np.float32)}, tmp_path)
    b = save({"params/x/kernel": np.zeros(3, np.float32), "params/y/bias": np.ones(3, np.float32)}, tmp_path)

    def shown(*filters: str) -> dict[str, list[str]]:
        return found(converter.diff(a, b, values=True, filters=filters))

    assert shown("**/kernel") == NOTHING | {"different": ["params/x/kernel"]}
    assert shown("params/x/bias") == NOTHING | {"only_in_a": ["params/x/bias"]}
    assert shown("params/y/*") == NOTHING | {"only_in_b": ["params/y/bias"]}
    with pytest.raises(UsageError, match=r"--filter 'params/z/\*' matches no leaf"):
        shown("params/x/*", "params/z/*")
    assert parse_path("params/z") not in converter.inspect(a).checkpoint.tree


def test_which_option_chooses_on_which_side(tmp_path: Path) -> None:
    two, manager = tmp_path / "two", root("linen_train_state_manager")
    for name in ("critic", "policy"):
        shutil.copytree(root("nnx_mlp_standard"), two / name)
    with pytest.raises(UsageError, match="--item-a critic or --item-a policy"):
        converter.diff(two, manager)
    assert converter.diff(two, two, item_a="critic", item_b="policy", values=True).ok
    with pytest.raises(UsageError, match="with --step-b"):
        converter.diff(manager, manager, step_b=9)
    assert converter.diff(manager, manager, step_a=1, step_b=1, values=True).ok
    assert not converter.diff(manager, manager, step_a=1, step_b=2, values=True).ok
