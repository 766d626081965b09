"""Has the destination every promised leaf, and no other?"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from converter.paths import parse_path
from converter.planning.plan import Step, Transfer
from converter.rules.operations import REWRAP, CastCounter, Fill
from converter.training_state import Held
from converter.tree import LeafKind, LeafSpec, Tree, array_spec, empty_spec
from converter.verification.structure import compare_structure, same_spec
from tests.building import leaf_of, prng_key, tree_at


def steps_to(leaves: dict[str, Any]) -> list[Step]:
    """Steps that hand on these values."""
    return [
        Step(parse_path(path), Transfer(REWRAP, [Held(("source",), leaf_of(value))])) for path, value in leaves.items()
    ]


LEAVES = {
    "params/kernel": np.ones((2, 3), np.float32),
    "params/bias": np.ones(3, np.float32),
    "step": np.int32(4),
    "note": "n",
}


def test_equal_structures():
    result = compare_structure(steps_to(LEAVES), tree_at(LEAVES))
    assert result.ok
    assert (result.leaves, result.differences, result.notes) == (4, (), ())


def test_a_missing_leaf():
    destination = tree_at({path: value for path, value in LEAVES.items() if path != "params/bias"})
    result = compare_structure(steps_to(LEAVES), destination)
    assert not result.ok
    assert [str(difference) for difference in result.differences] == ["params/bias: expected float32[3], found nothing"]


def test_a_leaf_too_many():
    result = compare_structure(steps_to(LEAVES), tree_at({**LEAVES, "params/scale": np.ones(3)}))
    assert [str(difference) for difference in result.differences] == [
        "params/scale: expected nothing, found float64[3]"
    ]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.ones((3, 2), np.float32), "float32[3,2]"),
        (np.ones((2, 3), np.float16), "float16[2,3]"),
        (np.ones((1, 2, 3), np.float32), "float32[1,2,3]"),
        (1.0, "float"),
        (None, "None"),
        ("text", "str"),
    ],
)
def test_another_leaf_at_the_same_place(value: Any, found: str):
    result = compare_structure(steps_to(LEAVES), tree_at({**LEAVES, "params/kernel": value}))
    assert [str(difference) for difference in result.differences] == [
        f"params/kernel: expected float32[2,3], found {found}"
    ]


def test_all_differences_are_listed():
    result = compare_structure(steps_to(LEAVES), tree_at({"params/bias": np.ones(4, np.float32), "other": 1}))
    assert [difference.path for difference in result.differences] == [
        "params/kernel",
        "params/bias",
        "step",
        "note",
        "other",
    ]


def test_operations_tell_what_to_expect():
    steps = [
        Step(("step",), Transfer(CastCounter("int32"), [Held(("s",), leaf_of(3))])),
        Step(("rngs", "count"), Transfer(Fill((array_spec("uint32"),), "why"), ())),
    ]
    assert compare_structure(steps, tree_at({"step": np.int32(3), "rngs/count": np.uint32(0)})).ok
    assert not compare_structure(steps, tree_at({"step": 3, "rngs/count": np.uint32(0)})).ok


def test_a_container_that_holds_nothing_may_be_left_out():
    steps = [*steps_to(LEAVES), Step(("opt_state", "1"), Transfer(Fill((empty_spec("node"),), "why"), ()))]
    assert compare_structure(steps, tree_at(LEAVES)).ok
    assert compare_structure(steps, tree_at({**LEAVES, "opt_state/1": None})).ok
    assert compare_structure(steps, tree_at({**LEAVES, "opt_state/1": {}})).ok
    assert not compare_structure(steps, tree_at({**LEAVES, "opt_state/1": np.ones(1)})).ok


def test_empty_leaves_of_the_destination_are_no_leaves_too_many():
    assert compare_structure(steps_to(LEAVES), tree_at({**LEAVES, "opt_state": {}, "none": None})).ok


def test_random_state_of_nnx_is_mentioned():
    """The other side does not have it, whatever the checkpoint says about it."""
    random_state = {"dropout/rngs/key/value": prng_key(), "dropout/rngs/count/value": np.uint32(1)}
    result = compare_structure(
        steps_to({"up/kernel/value": np.ones(2)}), tree_at({"up/kernel/value": np.ones(2), **random_state})
    )
    assert result.ok
    assert result.notes == tuple(
        f"{path} is NNX random state, which the other side does not have" for path in random_state
    )


def test_a_lone_key_is_no_random_state():
    result = compare_structure(steps_to({"w": np.ones(2)}), tree_at({"w": np.ones(2), "rngs/key": prng_key()}))
    assert [difference.path for difference in result.differences] == ["rngs/key"]


def test_keys_need_the_same_implementation():
    steps = steps_to({"key": prng_key()})
    assert compare_structure(steps, tree_at({"key": prng_key(9)})).ok
    raw = compare_structure(steps, tree_at({"key": np.zeros(2, np.uint32)}))
    assert [str(d) for d in raw.differences] == ["key: expected key<threefry2x32>[], found uint32[2]"]


def test_nothing_is_read():
    def unread() -> Any:
        raise AssertionError("a leaf was fetched")

    steps = steps_to(LEAVES)
    destination = Tree((path, type(leaf)(leaf.spec, unread)) for path, leaf in tree_at(LEAVES).items())
    assert compare_structure(steps, destination).ok


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (array_spec("float32", (2,)), array_spec("float32", (2,)), True),
        (array_spec("float32"), LeafSpec(LeafKind.NUMPY_SCALAR, "float32"), True),
        (LeafSpec(LeafKind.NUMPY_SCALAR, "float32"), array_spec("float32"), True),
        (array_spec("float32"), LeafSpec(LeafKind.NUMPY_SCALAR, "float64"), False),
        (array_spec("int64"), LeafSpec(LeafKind.SCALAR, "int"), False),
        (LeafSpec(LeafKind.SCALAR, "int"), LeafSpec(LeafKind.SCALAR, "bool"), False),
        (LeafSpec(LeafKind.SCALAR, "int"), LeafSpec(LeafKind.TEXT, "str"), False),
        (empty_spec("none"), empty_spec("dict"), True),
        (empty_spec("none"), array_spec("float32"), False),
        (array_spec("float32", (0,)), empty_spec("none"), False),
        (LeafSpec(LeafKind.KEY, "rbg"), LeafSpec(LeafKind.KEY, "threefry2x32"), False),
        (array_spec("int4", (2,)), array_spec("int8", (2,)), False),
    ],
)
def test_same_specs(expected: LeafSpec, found: LeafSpec, same: bool):
    assert same_spec(expected, found) is same


def test_the_json_of_a_result():
    result = compare_structure(steps_to(LEAVES), tree_at({**LEAVES, "other": 1})).to_json()
    assert json.loads(json.dumps(result)) == result
    assert result == {
        "ok": False,
        "leaves": 4,
        "differences": [{"path": "other", "expected": "nothing", "found": "int"}],
        "notes": [],
    }
