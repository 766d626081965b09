"""Which items are one training state, and where each of them stands in it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.dialects import readings
from converter.dialects.items import MODELS, OPTIMIZERS, join
from converter.paths import IndexKey, format_path
from converter.tree import LazyLeaf, Leaf, LeafKind, LeafSpec, Tree, array_spec


def leaf(*shape: int) -> Leaf:
    return LazyLeaf(array_spec("float32", shape), lambda: None)


NUMBER = LazyLeaf(LeafSpec(LeafKind.SCALAR, "int"), lambda: 3)
TEXT = LazyLeaf(LeafSpec(LeafKind.TEXT, "str"), lambda: "a")


def tree(nested: Any) -> Tree:
    def walk(node: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(node, LazyLeaf):
            yield path, node
            return
        pairs = node.items() if isinstance(node, dict) else ((IndexKey(at), each) for at, each in enumerate(node))
        for key, child in pairs:
            yield from walk(child, (*path, key))

    return Tree(walk(nested, ()))


PARAMS = {"up": {"kernel": leaf(2, 3), "bias": leaf(3)}, "down": {"kernel": leaf(3, 2)}}
VARIABLES = {"params": PARAMS, "batch_stats": {"norm": {"mean": leaf(3), "var": leaf(3)}}}
ADAM = ({"count": leaf(), "mu": PARAMS, "nu": PARAMS}, {"count": leaf()})
NNX = {layer: {name: {"value": held} for name, held in inside.items()} for layer, inside in PARAMS.items()}
NNX_ADAM = {
    "step": {"value": leaf()},
    "opt_state": {"0": {"count": {"value": leaf()}, "mu": NNX, "nu": NNX}},
}
PURE_ADAM = {"step": leaf(), "opt_state": {"0": {"count": leaf(), "mu": PARAMS, "nu": PARAMS}}}
SETTINGS = {"name": TEXT, "rate": leaf(), "seeds": leaf(4), "epoch": NUMBER}
OTHER = {"q": {"kernel": leaf(9, 9)}}
TRAIN_STATE = {"params": PARAMS, "opt_state": ADAM, "step": leaf()}

TOGETHER = [
    ({"params": PARAMS, "opt_state": ADAM}, "Linen TrainState", {"params": "params", "opt_state": "opt_state"}),
    ({"state": VARIABLES, "opt": ADAM}, "Linen TrainState", {"state": "", "opt": "opt_state"}),
    ({"model": VARIABLES, "optimizer": ADAM}, "Linen TrainState", {"model": "", "optimizer": "opt_state"}),
    ({"params": PARAMS, "opt": {"opt_state": ADAM, "step": leaf()}}, "pure dict of {model, optimizer}", None),
    ({"variables": VARIABLES, "opt": {"opt_state": ADAM, "step": leaf()}}, "Linen TrainState", None),
    ({"params": PARAMS, "batch_stats": VARIABLES["batch_stats"]}, "Linen variables", None),
    (
        {"params": PARAMS, "opt_state": ADAM, "step": leaf()},
        "Linen TrainState",
        {"params": "params", "opt_state": "opt_state", "step": "step"},
    ),
    ({"params": PARAMS, "opt_state": ADAM, "ema": PARAMS}, "Linen TrainState", None),
    ({"model": NNX, "optimizer": NNX_ADAM}, "nnx.State of {model, optimizer}", None),
    ({"state": NNX, "opt_state": NNX_ADAM}, "nnx.State of {model, optimizer}", None),
    ({"model": NNX, "optimizer": NNX_ADAM, "ema": NNX}, "nnx.State of {model, optimizer}", None),
    ({"model": PARAMS, "optimizer": PURE_ADAM}, "pure dict of {model, optimizer}", None),
]


@pytest.mark.parametrize(("items", "title", "places"), TOGETHER)
def test_items_that_belong_together_are_one_tree(items: dict[str, Any], title: str, places: dict[str, str] | None):
    trees = {name: tree(item) for name, item in items.items()}
    joined = join(trees)
    assert joined is not None
    assert title in [dialect.title for dialect in readings(joined.tree)]
    assert readings(joined.tree)[0].title == title
    assert len(joined.tree) == sum(map(len, trees.values()))
    assert joined.beside == ()
    if places is not None:
        assert {name: "/".join(place) for name, place in joined.places.items()} == places
    for name, place in joined.places.items():
        for path, held in trees[name].items():
            stands = (*place, *path)
            assert joined.tree[stands] is held, format_path(stands)


@pytest.mark.parametrize("model", [PARAMS, VARIABLES, NNX, TRAIN_STATE])
def test_settings_stay_beside_the_model_which_stands_as_it_would_alone(model: Any):
    joined = join({"state": tree(model), "config": tree(SETTINGS)})
    assert joined is not None
    assert joined.beside == ("config",)
    assert list(joined.tree) == list(tree(model))


@pytest.mark.parametrize(
    "items",
    [
        {"generator": PARAMS, "discriminator": OTHER},
        {"policy": PARAMS, "value": OTHER},
        {"model": PARAMS, "critic": OTHER},
        {"model": PARAMS, "params": PARAMS},
        {"params": PARAMS, "opt_state": {"0": {"mu": OTHER}}},
        {"params": PARAMS, "opt_state": ADAM, "opt": ADAM},
        {"state": TRAIN_STATE, "opt_state": ADAM},
        {"opt_state": ADAM, "ema": PARAMS},
        {"model": SETTINGS | {"name": TEXT}, "critic": OTHER},
        {"model": {}, "optimizer": NNX_ADAM},
    ],
)
def test_what_does_not_belong_together_is_not_joined(items: dict[str, Any]):
    assert join({name: tree(item) for name, item in items.items()}) is None


@given(
    st.sampled_from(MODELS),
    st.sampled_from([PARAMS, VARIABLES, NNX, TRAIN_STATE]),
    st.dictionaries(
        st.sampled_from([*OPTIMIZERS, "step", "batch_stats", "ema", "config", "critic"]),
        st.sampled_from([ADAM, NNX_ADAM, PURE_ADAM, PARAMS, NNX, SETTINGS, OTHER, leaf(), VARIABLES["batch_stats"]]),
        max_size=3,
    ),
)
def test_no_leaf_is_lost_or_stands_twice(name: str, model: Any, others: dict[str, Any]):
    items = {name: tree(model)} | {each: tree(held) for each, held in others.items()}
    joined = join(items)
    if joined is not None:
        assert set(joined.places) | set(joined.beside) == set(items)
        assert not set(joined.places) & set(joined.beside)
        assert name in joined.places
        assert len(joined.tree) == sum(len(items[each]) for each in joined.places)
