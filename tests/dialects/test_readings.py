"""Whose layout a tree has, what each leaf of it means, and back to the very same path."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training import train_state
from hypothesis import given
from hypothesis import strategies as st

from converter.dialects import readings, unreadable
from converter.dialects.dialect import Dialect
from converter.dialects.linen import LinenParams, LinenVariables
from converter.dialects.nnx import NnxLayout
from converter.dialects.train_state import LinenTrainState
from converter.paths import IndexKey, Path, format_path
from converter.training_state import Part, Slot
from converter.tree import LeafKind, Tree
from tests.building import ZERO, PrngKey, prng_key, saved, saved_nnx, texts, tree_at, tree_of, tree_with

DENSE = {"kernel": ZERO, "bias": ZERO}
NORM = {"scale": ZERO, "bias": ZERO}
STATS = {"mean": ZERO, "var": ZERO}
RNGS = {"key": prng_key(), "count": np.uint32(0)}
COUNT = np.int32(3)


def boxed(nested: Any, key: str = "value") -> Any:
    """The same with every leaf in a box, or in the wrapper of a Variable."""
    return {name: boxed(child, key) for name, child in nested.items()} if isinstance(nested, dict) else {key: nested}


def adam(moments: Any) -> list[Any]:
    return [{"count": COUNT, "mu": moments, "nu": moments}, None]


def titles(tree: Tree) -> list[str]:
    return [dialect.title for dialect in readings(tree)]


def slots(dialect: Dialect, tree: Tree) -> dict[str, str]:
    """What every leaf means, by its path as ``inspect`` prints it; mirrors show their variable behind a bar."""
    found = {}
    for slot, held in dialect.lift(tree).state.items():
        mirror = f" | {format_path((slot.collection or '?', *slot.path))}" if slot.is_mirror else ""
        found[format_path(held.source)] = f"{slot.part.value}: {slot}{mirror}"
    return found


def lowered(dialect: Dialect, tree: Tree) -> list[str]:
    return texts(path for slot in dialect.lift(tree).state if (path := dialect.lower(slot)) is not None)


def full_paths(tree: Tree) -> list[str]:
    return texts(path for path, leaf in tree.items() if leaf.spec.kind is not LeafKind.EMPTY)


# Which dialects ------------------------------------------------------------------------------------------------------

VARIABLES = "Linen variables"
PARAMS = "Linen params (without the collection level)"
TRAIN_STATE = "Linen TrainState"
STATE = "nnx.State of a model"
PURE = "pure dict of a model"

TREES: dict[str, tuple[Any, list[str]]] = {
    "variables": ({"params": {"Dense_0": DENSE}, "batch_stats": {"BatchNorm_0": STATS}}, [VARIABLES]),
    "variables of one layer": ({"params": DENSE}, [VARIABLES]),
    "variables with a collection of their own": ({"params": {"d": DENSE}, "counter": {"count": COUNT}}, [VARIABLES]),
    "collections without params": ({"batch_stats": {"norm": STATS}, "cache": {"a": {"cached_key": ZERO}}}, [VARIABLES]),
    "params by class": ({"Dense_0": DENSE, "BatchNorm_0": NORM}, [PARAMS, PURE]),
    "params by name": ({"up": DENSE, "down": DENSE}, [PARAMS, PURE]),
    "params of one layer": (DENSE, [PARAMS, PURE]),
    "boxed variables": ({"params": boxed({"up": DENSE, "down": DENSE})}, [VARIABLES, STATE]),
    "partly boxed variables": ({"params": {"up": {"kernel": {"value": ZERO}, "bias": ZERO}}}, [VARIABLES]),
    "a parameter called value": ({"params": {"scaling": {"value": ZERO}, "d": DENSE}}, [VARIABLES]),
    "nothing but a parameter called value": ({"params": {"scaling": {"value": ZERO}}}, [VARIABLES, STATE]),
    "attention": ({"params": {"attention": {"query": DENSE, "key": DENSE, "value": DENSE}}}, [VARIABLES]),
    "train state": (
        {"step": 3, "params": {"d": DENSE}, "opt_state": adam({"d": DENSE})},
        [TRAIN_STATE],
    ),
    "train state without optimizer state": ({"step": 3, "params": {"d": DENSE}}, [TRAIN_STATE]),
    "train state with batch statistics": (
        {"step": 3, "params": {"d": DENSE}, "opt_state": adam({"d": DENSE}), "batch_stats": {"n": STATS}},
        [TRAIN_STATE],
    ),
    "train state from msgpack": (
        {"step": 3, "params": {"d": DENSE}, "opt_state": {"0": {"count": COUNT, "mu": {"d": DENSE}}, "1": {}}},
        [TRAIN_STATE],
    ),
    "train state in boxes": (
        {"step": COUNT, "params": boxed({"d": DENSE}), "opt_state": adam(boxed({"d": DENSE}))},
        [TRAIN_STATE],
    ),
    "optimizer state and step of a train state": ({"step": 3, "opt_state": adam({"d": DENSE})}, [TRAIN_STATE]),
    "nnx.State": (boxed({"up": DENSE, "norm": NORM | STATS}), [STATE]),
    "nnx.State of one layer": (boxed(DENSE), [STATE]),
    "nnx.State of one Variable": (boxed({"embedding": ZERO}), [STATE]),
    "nnx.State with attention": (boxed({"attention": {"query": DENSE, "key": DENSE, "value": DENSE}}), [STATE]),
    "nnx.State with a Variable called value": (boxed({"scaling": {"value": ZERO}}), [STATE]),
    "nnx.State of flax 0.8.3": (boxed({"up": DENSE}, "raw_value"), [STATE]),
    "nnx.State with random state": (boxed({"d": DENSE, "dropout": {"rngs": RNGS}}), [STATE]),
    "pure dict with random state": ({"d": DENSE, "dropout": {"rngs": RNGS}}, [PURE, PARAMS]),
    "pure dict with batch statistics": ({"d": DENSE, "norm": NORM | STATS}, [PURE, PARAMS]),
    "pure dict with a cache": ({"a": {"query": DENSE, "cache_index": COUNT}}, [PURE, PARAMS]),
    "pure dict of a list": ({"layers": {0: DENSE, 1: DENSE}}, [PARAMS, PURE]),
    "nnx.Optimizer": (
        boxed({"step": COUNT, "opt_state": {"0": {"count": COUNT, "mu": {"d": DENSE}}}}),
        ["nnx.State of an nnx.Optimizer"],
    ),
    "pure dict of an nnx.Optimizer": (
        {"step": COUNT, "opt_state": {"0": {"count": COUNT, "mu": {"d": DENSE}}}},
        ["pure dict of an nnx.Optimizer", TRAIN_STATE],
    ),
    "ModelAndOptimizer": (
        boxed({"step": COUNT, "model": {"d": DENSE}, "opt_state": {"0": {"mu": {"d": DENSE}}}}),
        ["nnx.State of an nnx.ModelAndOptimizer"],
    ),
    "pure dict of a ModelAndOptimizer": (
        {"step": COUNT, "model": {"d": DENSE}, "opt_state": {"0": {"mu": {"d": DENSE}}}},
        ["pure dict of an nnx.ModelAndOptimizer"],
    ),
    "dict bundle": (
        boxed({"model": {"d": DENSE}, "optimizer": {"step": COUNT, "opt_state": {"0": {"mu": {"d": DENSE}}}}}),
        ["nnx.State of {model, optimizer}"],
    ),
    "dict bundle under other names": (
        boxed({"net": {"d": DENSE}, "adam": {"step": COUNT, "opt_state": {"0": {"mu": {"d": DENSE}}}}}),
        ["nnx.State of {adam, net}"],
    ),
    "dict bundle with more beside": (
        boxed({"model": {"d": DENSE}, "ema": {"d": DENSE}, "optimizer": {"step": COUNT, "opt_state": {}}}),
        ["nnx.State of {model, optimizer}"],
    ),
    "pure dict bundle": (
        {"model": {"d": DENSE}, "optimizer": {"step": COUNT, "opt_state": {"0": {"mu": {"d": DENSE}}}}},
        ["pure dict of {model, optimizer}"],
    ),
    "tuple bundle of nnx.split": (
        boxed({"0": {"d": DENSE}, "1": {"step": COUNT, "opt_state": {"0": {"mu": {"d": DENSE}}}}}),
        ["nnx.State of {0, 1}"],
    ),
    "saved nnx.Module": ({"_pytree__state": {}, "d": {"_pytree__state": {}} | boxed(DENSE)}, [STATE]),
}


@pytest.mark.parametrize("name", TREES)
def test_readings(name: str):
    nested, wanted = TREES[name]
    tree = tree_of(nested)
    assert unreadable(tree) == ""
    assert titles(tree) == wanted


@pytest.mark.parametrize("name", TREES)
def test_every_reading_gives_each_leaf_its_own_path_back(name: str):
    tree = tree_of(TREES[name][0])
    for dialect in readings(tree):
        assert lowered(dialect, tree) == full_paths(tree)
        assert dialect.lift(tree).state.collisions == []


def test_params_with_a_few_boxes():
    tree = tree_with("up/kernel/value", "up/bias", "up/scale", "down/kernel/value", "down/bias")
    assert titles(tree)[0] == PARAMS


def test_boxes_of_all_parameters_but_a_custom_one_are_linens():
    """Dense layers without bias, and an embedding of positions that nobody annotated."""
    tree = tree_with("Dense_0/kernel/value", "Dense_1/kernel/value", "pos_embed")
    assert PARAMS in titles(tree)


def test_boxed_params_beside_batch_statistics_are_linens_alone():
    """Only parameters are ever in boxes; no NNX model has wrappers around some of its Variables only."""
    tree = tree_with("params/Dense_0/kernel/value", "batch_stats/norm/mean", "batch_stats/norm/var")
    assert titles(tree) == [VARIABLES]


def test_an_array_that_is_no_variable_does_not_hide_the_wrappers_of_the_others():
    """``nnx.Conv`` keeps its mask as a plain array."""
    mask = jnp.ones((2, 1, 1))
    tree = saved_nnx(nnx.state(nnx.Dict(conv=nnx.Conv(1, 1, (2,), mask=mask, rngs=nnx.Rngs(0)))))
    (nnx_reading,) = [dialect for dialect in readings(tree) if dialect.framework == "nnx"]
    assert sorted(slots(nnx_reading, tree)) == ["conv/bias", "conv/kernel", "conv/mask"]
    assert lowered(nnx_reading, tree)[:2] == full_paths(tree)[:2]


def test_a_pair_of_states_in_a_tuple_is_a_bundle():
    optimizer = {"step": COUNT, "opt_state": {"0": {"count": COUNT, "mu": {"d": DENSE}}}}
    tree = tree_of((boxed({"d": DENSE}), boxed(optimizer)))
    assert unreadable(tree) == ""
    assert titles(tree) == ["nnx.State of {0, 1}"]


@pytest.mark.parametrize("suffix", ["value", None])
def test_a_list_of_blocks_is_no_optimizer_state(suffix: str | None):
    """Such blocks may have parts called ``v`` and ``m``, as optax's states have fields."""
    blocks = nnx.List(
        [nnx.Dict(q=nnx.Linear(2, 2, rngs=nnx.Rngs(i)), v=nnx.Linear(2, 2, rngs=nnx.Rngs(i))) for i in (0, 1)]
    )
    tree = saved_nnx(nnx.state(blocks), suffix)
    assert unreadable(tree) == ""
    assert any(dialect.framework == "nnx" for dialect in readings(tree))


@pytest.mark.parametrize("suffix", ["value", None])
@pytest.mark.parametrize("tx", [optax.adam(0.1), optax.sgd(0.1, momentum=0.9)])
def test_the_optimizer_state_of_nnx_alone_is_no_model(tx: Any, suffix: str | None):
    """Its moments would pass for parameters."""
    model = nnx.Dict(up=nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    tree = saved_nnx(nnx.state(optimizer)["opt_state"], suffix)
    assert "without the parameters it belongs to" in unreadable(tree)


def test_a_tuple_bundle_of_a_model_with_a_part_called_mu_is_no_optimizer_state():
    """As the encoders of variational autoencoders have."""
    model = nnx.Dict(mu=nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    tree = saved_nnx(nnx.state((model, nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param))))
    assert unreadable(tree) == ""
    assert titles(tree) == ["nnx.State of {0, 1}"]


@pytest.mark.parametrize(
    ("nested", "why"),
    [
        (ZERO, "it is a single leaf, float32[], not a tree of variables"),
        (7, "it is a single leaf, int, not a tree of variables"),
        ({}, "it holds no arrays"),
        ({"params": {}, "opt_state": [None, ()]}, "it holds no arrays"),
        (
            adam({"d": DENSE}),
            "it is a sequence, as an optax state saved alone is, without the parameters it belongs to",
        ),
        ({"0": {"count": COUNT, "mu": {"d": DENSE}}, "1": {}}, "it is a sequence, as an optax state saved alone is"),
        ([ZERO, ZERO], "it is a sequence"),
    ],
)
def test_what_no_dialect_fits(nested: Any, why: str):
    tree = tree_of(nested)
    assert unreadable(tree).startswith(why)
    assert readings(tree) == ()


# What the leaves mean ------------------------------------------------------------------------------------------------


def test_linen_variables():
    tree = tree_with("params/Dense_0/kernel", "batch_stats/BatchNorm_0/mean", "counter/count")
    assert slots(LinenVariables(), tree) == {
        "params/Dense_0/kernel": "variables: params/Dense_0/kernel",
        "batch_stats/BatchNorm_0/mean": "variables: batch_stats/BatchNorm_0/mean",
        "counter/count": "variables: counter/count",
    }


def test_linen_params():
    tree = tree_with("Dense_0/kernel", "scale")
    assert slots(LinenParams(), tree) == {
        "Dense_0/kernel": "variables: params/Dense_0/kernel",
        "scale": "variables: params/scale",
    }


def test_boxes_are_taken_off():
    tree = tree_with("params/up/kernel/value", "params/up/bias", "params/attention/value/kernel/value")
    (dialect,) = readings(tree)
    assert dialect == LinenVariables(frozenset({("up", "kernel"), ("attention", "value", "kernel")}))
    assert slots(dialect, tree) == {
        "params/up/kernel": "variables: params/up/kernel",
        "params/up/bias": "variables: params/up/bias",
        "params/attention/value/kernel": "variables: params/attention/value/kernel",
    }


def test_a_parameter_called_value_is_no_box():
    tree = tree_with("params/scaling/value", "params/up/kernel", "params/up/value")
    (dialect,) = readings(tree)
    assert dialect == LinenVariables()
    assert list(slots(dialect, tree)) == full_paths(tree)


@pytest.mark.parametrize("beside", ["params/scaling/offset", "params/scaling/kernel/value", "params/scaling/up/bias"])
def test_a_parameter_called_value_beside_others_is_no_box_among_boxes(beside: str):
    tree = tree_with("params/up/kernel/value", "params/scaling/value", beside)
    dialect = readings(tree)[0]
    assert list(slots(dialect, tree)) == ["params/up/kernel", "params/scaling/value", beside.removesuffix("/value")]


def test_train_state():
    tree = tree_of(
        {
            "step": 3,
            "params": {"up": {"kernel": ZERO}},
            "opt_state": [{"count": COUNT, "mu": {"up": {"kernel": ZERO}}}, {"trace": {"up": {"kernel": None}}}, ()],
            "batch_stats": {"norm": {"mean": ZERO}},
            "ema_params": {"up": {"kernel": ZERO}},
            "best": {"loss": 0.5, "ema": {"up": {"kernel": ZERO}}},
            "key": prng_key(),
        }
    )
    (dialect,) = readings(tree)
    assert slots(dialect, tree) == {
        "step": "step: step",
        "params/up/kernel": "variables: params/up/kernel",
        "opt_state/0/count": "opt_state: opt_state/0/count",
        "opt_state/0/mu/up/kernel": "opt_state: opt_state/0/mu/up/kernel | params/up/kernel",
        "opt_state/1/trace/up/kernel": "opt_state: opt_state/1/trace/up/kernel | params/up/kernel",
        "batch_stats/norm/mean": "variables: batch_stats/norm/mean",
        "ema_params/up/kernel": "extra: ema_params/up/kernel | params/up/kernel",
        "best/loss": "extra: best/loss",
        "best/ema/up/kernel": "extra: best/ema/up/kernel | params/up/kernel",
        "key": "extra: key",
    }
    assert texts(i.source for i in dialect.lift(tree).ignored) == ["opt_state/2"]


def test_train_state_with_a_whole_variables_dict_as_params():
    moments = {"params": {"up": {"kernel": ZERO}}}
    tree = tree_of(
        {
            "step": 0,
            "params": {"params": {"up": {"kernel": ZERO}}, "batch_stats": {"norm": {"mean": ZERO}}},
            "opt_state": [{"mu": moments}],
            "ema": moments,
        }
    )
    assert readings(tree) == (LinenTrainState(nested=True),)
    assert slots(readings(tree)[0], tree) == {
        "step": "step: step",
        "params/params/up/kernel": "variables: params/up/kernel",
        "params/batch_stats/norm/mean": "variables: batch_stats/norm/mean",
        "opt_state/0/mu/params/up/kernel": "opt_state: opt_state/0/mu/up/kernel | params/up/kernel",
        "ema/params/up/kernel": "extra: ema/up/kernel | params/up/kernel",
    }


def test_batch_statistics_may_stand_beside_a_variables_dict():
    """As where they were popped from the result of ``init`` and the rest was passed as ``params``."""
    tree = tree_of({"step": 0, "params": {"params": {"n": NORM}}, "opt_state": [], "batch_stats": {"n": STATS}})
    (dialect,) = readings(tree)
    assert slots(dialect, tree)["batch_stats/n/mean"] == "variables: batch_stats/n/mean"
    assert lowered(dialect, tree) == full_paths(tree)


def test_a_layer_called_params_does_not_nest():
    tree = tree_of({"step": 0, "params": {"params": DENSE, "up": DENSE}, "opt_state": []})
    assert readings(tree) == (LinenTrainState(nested=False),)


def test_train_state_in_boxes():
    tree = tree_of(
        {
            "step": 0,
            "params": boxed({"up": DENSE}),
            "opt_state": adam(boxed({"up": DENSE})),
            "ema": boxed({"up": DENSE}),
        }
    )
    (dialect,) = readings(tree)
    assert dialect == LinenTrainState(boxed=frozenset({("up", "kernel"), ("up", "bias")}))
    found = slots(dialect, tree)
    assert found["params/up/bias"] == "variables: params/up/bias"
    assert found["opt_state/0/mu/up/bias"] == "opt_state: opt_state/0/mu/up/bias | params/up/bias"
    assert found["ema/up/bias"] == "extra: ema/up/bias | params/up/bias"


def test_fields_of_a_train_state_can_be_collections():
    tree = tree_with("step", "params/up/kernel", "counter/count")
    assert slots(LinenTrainState(), tree)["counter/count"] == "extra: counter/count"
    told = LinenTrainState(collections=frozenset({"counter"}))
    assert slots(told, tree)["counter/count"] == "variables: counter/count"


@pytest.mark.parametrize("order", [("params", "batch_stats"), ("batch_stats", "params")])
def test_the_optimizer_follows_the_parameter_where_two_collections_use_one_path(order: tuple[str, str]):
    variables = {collection: {"n": {"scale": ZERO}} for collection in order}
    tree = tree_of({"step": 0, **variables, "opt_state": [{"mu": {"n": {"scale": ZERO}}}]})
    (dialect,) = readings(tree)
    assert slots(dialect, tree)["opt_state/0/mu/n/scale"] == "opt_state: opt_state/0/mu/n/scale | params/n/scale"


def test_nnx_state():
    tree = tree_with("up/kernel/value", "attention/value/kernel/value", "scaling/value/value", "layers/0/bias/value")
    (dialect,) = readings(tree)
    assert slots(dialect, tree) == {
        "up/kernel": "variables: ?/up/kernel",
        "attention/value/kernel": "variables: ?/attention/value/kernel",
        "scaling/value": "variables: ?/scaling/value",
        "layers/0/bias": "variables: ?/layers/0/bias",
    }


@pytest.mark.parametrize(
    ("layout", "model", "optimizer"),
    [
        (NnxLayout("value", ("model",), ("optimizer",)), "model/", "optimizer/"),
        (NnxLayout("raw_value", ("model",), ("optimizer",)), "model/", "optimizer/"),
        (NnxLayout(None, ("model",), ("optimizer",)), "model/", "optimizer/"),
        (NnxLayout("value", ("0",), ("1",)), "0/", "1/"),
        (NnxLayout("value", ("model",), ()), "model/", ""),
    ],
)
def test_nnx_bundles(layout: NnxLayout, model: str, optimizer: str):
    end = f"/{layout.suffix}" if layout.suffix else ""
    plain = [
        f"{model}up/kernel",
        f"{model}opt_state/step",
        f"{optimizer}step",
        f"{optimizer}opt_state/0/count",
        f"{optimizer}opt_state/0/mu/up/kernel",
    ]
    tree = tree_with(*(path + end for path in plain))
    assert readings(tree) == (layout,)
    assert slots(layout, tree) == {
        plain[0]: "variables: ?/up/kernel",
        plain[1]: "variables: ?/opt_state/step",
        plain[2]: "step: step",
        plain[3]: "opt_state: opt_state/0/count",
        plain[4]: "opt_state: opt_state/0/mu/up/kernel | ?/up/kernel",
    }


def test_what_stands_beside_model_and_optimizer():
    layout = NnxLayout("value", ("model",), ("optimizer",))
    tree = tree_with("model/up/kernel/value", "optimizer/step/value", "ema/up/kernel/value", "epoch/value")
    assert readings(tree) == (layout,)
    assert slots(layout, tree)["ema/up/kernel"] == "extra: ema/up/kernel | ?/up/kernel"
    assert slots(layout, tree)["epoch"] == "extra: epoch"


def test_an_optimizer_saved_alone_names_its_mirrors():
    tree = tree_with("step/value", "opt_state/0/count/value", "opt_state/0/mu/up/kernel/value")
    (dialect,) = readings(tree)
    assert dialect == NnxLayout("value", None, ())
    assert slots(dialect, tree) == {
        "step": "step: step",
        "opt_state/0/count": "opt_state: opt_state/0/count",
        "opt_state/0/mu/up/kernel": "opt_state: opt_state/0/mu/up/kernel | ?/up/kernel",
    }


def test_masked_moments_of_nnx_are_kept_as_empty_mirrors():
    tree = tree_at({"model/b/value": ZERO, "optimizer/step/value": COUNT, "optimizer/opt_state/0/mu/b/value": None})
    (dialect,) = readings(tree)
    lifted = dialect.lift(tree)
    (held,) = [held for slot, held in lifted.state.items() if slot.is_mirror]
    assert held.leaf.spec.kind is LeafKind.EMPTY
    assert lifted.ignored == ()


def test_marks_of_a_saved_module_are_set_aside():
    tree = tree_of({"_pytree__state": {}, "up": {"_pytree__state": {}} | boxed(DENSE), "gone": None})
    (dialect,) = readings(tree)
    lifted = dialect.lift(tree)
    assert [(format_path(i.source), i.reason) for i in lifted.ignored] == [
        ("_pytree__state", "bookkeeping of a saved nnx.Module"),
        ("up/_pytree__state", "bookkeeping of a saved nnx.Module"),
        ("gone", "empty: it holds no array"),
    ]
    assert texts(held.source for held in lifted.state.values()) == ["up/kernel", "up/bias"]


def test_lifting_reads_nothing_and_keeps_the_leaves():
    tree = tree_of({"params": {"up": DENSE}, "batch_stats": {"n": STATS}})
    (dialect,) = readings(tree)
    assert [held.leaf for held in dialect.lift(tree).state.values()] == list(tree.values())


# What has no place ---------------------------------------------------------------------------------------------------

VARIABLE = Slot(Part.VARIABLES, "batch_stats", ("norm", "mean"))
MOMENT = Slot(Part.OPT_STATE, "params", ("up", "kernel"), ("0", "mu"))
STEP = Slot(Part.STEP)
EXTRA = Slot(Part.EXTRA, "params", ("up", "kernel"), ("ema",))


@pytest.mark.parametrize(
    ("dialect", "wanted"),
    [
        (LinenVariables(), ["batch_stats/norm/mean", None, None, None]),
        (LinenParams(), [None, None, None, None]),
        (LinenTrainState(), ["batch_stats/norm/mean", "opt_state/0/mu/up/kernel", "step", "ema/up/kernel"]),
        (
            LinenTrainState(nested=True),
            ["params/batch_stats/norm/mean", "opt_state/0/mu/params/up/kernel", "step", "ema/params/up/kernel"],
        ),
        (NnxLayout(), ["norm/mean/value", None, None, None]),
        (NnxLayout(None, None, ()), [None, "opt_state/0/mu/up/kernel", "step", "ema/up/kernel"]),
        (
            NnxLayout("value", ("model",), ("optimizer",)),
            [
                "model/norm/mean/value",
                "optimizer/opt_state/0/mu/up/kernel/value",
                "optimizer/step/value",
                "ema/up/kernel/value",
            ],
        ),
        (
            NnxLayout("value", ("model",), ()),
            ["model/norm/mean/value", "opt_state/0/mu/up/kernel/value", "step/value", "ema/up/kernel/value"],
        ),
    ],
)
def test_where_slots_go(dialect: Dialect, wanted: list[str | None]):
    found = [dialect.lower(slot) for slot in (VARIABLE, MOMENT, STEP, EXTRA)]
    assert [path if path is None else format_path(path) for path in found] == wanted


def test_positions_of_an_optax_state_are_positions_in_a_train_state_alone():
    path = LinenTrainState().lower(MOMENT)
    assert path is not None
    assert [type(key) for key in path] == [str, IndexKey, str, str, str]
    path = NnxLayout("value", ("model",), ("optimizer",)).lower(MOMENT)
    assert path is not None
    assert {type(key) for key in path} == {str}


# Live objects --------------------------------------------------------------------------------------------------------


class LinenNet(nn.Module):
    """Attention, a parameter called ``value``, batch statistics; kernels in boxes on request."""

    box: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel_init = nn.initializers.lecun_normal()
        if self.box:
            kernel_init = nn.with_partitioning(kernel_init, ("in", "out"))
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x)
        x = nn.Dense(2, kernel_init=kernel_init)(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        return x * self.param("value", nn.initializers.ones, ())


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.value = nnx.Param(jnp.ones(()))


def linen_train_state(box: bool) -> Any:
    variables = LinenNet(box).init(jax.random.key(0), jnp.ones((1, 3, 4)))
    return train_state.TrainState.create(apply_fn=None, params=variables["params"], tx=optax.adamw(1e-3))


@pytest.mark.parametrize("box", [False, True])
def test_live_linen_objects(box: bool):
    variables = LinenNet(box).init(jax.random.key(0), jnp.ones((1, 3, 4)))
    for live, title in ((variables, VARIABLES), (variables["params"], PARAMS), (linen_train_state(box), TRAIN_STATE)):
        tree = saved(live)
        dialect = readings(tree)[0]
        assert dialect.title == title
        assert lowered(dialect, tree) == full_paths(tree)
        lifted = dialect.lift(tree).state
        kernels = [slot.path for slot in lifted if slot.part is Part.VARIABLES and slot.collection == "params"]
        assert ("Dense_0", "kernel") in kernels
        assert ("attention", "value", "kernel") in kernels
        assert ("value",) in kernels
        assert len(kernels) == 13


def nnx_bundles() -> dict[str, Any]:
    model = NnxNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
    return {
        STATE: nnx.state(model),
        "nnx.State of an nnx.Optimizer": nnx.state(optimizer),
        "nnx.State of {model, optimizer}": {"model": nnx.state(model), "optimizer": nnx.state(optimizer)},
        "nnx.State of {0, 1}": nnx.state((model, optimizer)),
        "nnx.State of an nnx.ModelAndOptimizer": nnx.state(nnx.ModelAndOptimizer(model, optax.adamw(1e-3))),
    }


@pytest.mark.parametrize("suffix", ["value", None])
def test_live_nnx_objects(suffix: str | None):
    for title, live in nnx_bundles().items():
        tree = saved_nnx(live, suffix)
        dialect = readings(tree)[0]
        assert dialect.title == (title if suffix else title.replace("nnx.State", "pure dict", 1))
        assert lowered(dialect, tree) == full_paths(tree)
        mirrors = [slot.path for slot in dialect.lift(tree).state if slot.part is Part.OPT_STATE and slot.is_mirror]
        assert len(mirrors) == (0 if title == STATE else 2 * 13)
        assert {("value",), ("layers", "0", "kernel"), ("attention", "value", "bias")} <= set(mirrors) or not mirrors


# Random trees --------------------------------------------------------------------------------------------------------

MODULES = st.sampled_from(
    ["Dense_0", "layers", "layers_1", "0", "1", "12", "value", "query", "mu", "count", "step", "params"]
)
LEAVES = st.sampled_from(["kernel", "bias", "scale", "value", "mean", "count", "0", "7", "step", "key"])
WAYS = st.lists(st.sampled_from(["0", "1", "10", "inner_state", "adam", "mu", "value"]), min_size=1, max_size=3).map(
    tuple
)

variable_paths = st.tuples(st.lists(MODULES, min_size=1, max_size=3), LEAVES).map(lambda p: (*p[0], p[1]))


def apart(paths: list[Path]) -> list[Path]:
    """The paths without those above others: a leaf has nothing below it."""
    above = {path[:depth] for path in paths for depth in range(len(path))}
    return [path for path in dict.fromkeys(paths) if path not in above]


models = st.lists(variable_paths, min_size=1, max_size=6).map(apart)


@st.composite
def mirrors(draw: st.DrawFn, variables: list[Path]) -> list[Path]:
    """Paths below an optimizer state: counters, and subtrees shaped like part of the variables."""
    ways = draw(st.lists(WAYS, max_size=3, unique=True))
    found = [way + path for way in ways for path in variables if draw(st.booleans())]
    return apart([*found, *((*way, "steps") for way in ways)])


def with_leaves(paths: list[Path]) -> Tree:
    return Tree((path, tree_of(ZERO)[()]) for path in paths)


@st.composite
def boxed_models(draw: st.DrawFn) -> tuple[list[Path], frozenset[Path]]:
    """Variables and those of them in boxes: none, or one around a kernel, which puts them beyond doubt, and others."""
    paths = draw(models)
    kernels = [path for path in paths if path[-1] == "kernel"]
    if not kernels or draw(st.booleans()):
        return paths, frozenset()
    # A parameter called value that is alone in its module, or in a mirror of it, could not be told from a box.
    paths = [path for path in paths if path[-1] != "value"]
    return paths, frozenset(path for path in paths if draw(st.booleans())) | {kernels[0]}


def assert_identity(dialect: Dialect, tree: Tree) -> None:
    lifted = dialect.lift(tree)
    assert lifted.state.collisions == []
    assert [dialect.lower(slot) for slot in lifted.state] == list(tree)


@given(st.data())
def test_linen_variables_and_params_of_any_names_come_back(data: st.DataObject):
    paths, box = data.draw(boxed_models())
    inside = [(*path, "value") if path in box else path for path in paths]
    collections = data.draw(st.lists(st.sampled_from(["batch_stats", "counter"]), unique=True))
    both = [("params", *path) for path in inside] + [(c, "statistics", *path) for c in collections for path in paths]
    assert_identity(LinenVariables(box), with_leaves(both))
    assert_identity(LinenParams(box), with_leaves(inside))


@given(st.data())
def test_train_states_of_any_names_come_back(data: st.DataObject):
    paths, box = data.draw(boxed_models())
    nested = data.draw(st.booleans())
    level = ("params",) if nested else ()

    def written(path: Path) -> Path:
        return (*level, *path, "value") if path in box else (*level, *path)

    def below(field: str, mirrored: list[Path]) -> list[Path]:
        def spelled(path: Path) -> Path:
            tail = next((path[start:] for start in range(len(path)) if path[start:] in paths), None)
            return path if tail is None else path[: -len(tail)] + written(tail)

        return [(field, *spelled(path)) for path in mirrored]

    everything = [("step",), *(("params", *written(path)) for path in paths)]
    everything += below("opt_state", data.draw(mirrors(paths)))
    everything += below("ema", data.draw(mirrors(paths)))
    everything += [("epoch",), ("params", "batch_stats", "norm", "mean") if nested else ("batch_stats", "norm", "mean")]
    assert_identity(LinenTrainState(nested, box), with_leaves(everything))


@given(st.data(), st.sampled_from(["value", "raw_value", None]))
def test_nnx_states_of_any_names_come_back(data: st.DataObject, suffix: str | None):
    paths = data.draw(models)
    assert_identity(NnxLayout(suffix), with_leaves([(*path, suffix) if suffix else path for path in paths]))


@given(st.data(), st.sampled_from(["value", "raw_value", None]), st.sampled_from(["dict", "tuple", "both", "alone"]))
def test_nnx_bundles_of_any_names_come_back(data: st.DataObject, suffix: str | None, bundle: str):
    model: Path | None
    model, optimizer = {
        "dict": (("model",), ("optimizer",)),
        "tuple": (("0",), ("1",)),
        "both": (("model",), ()),
        "alone": (None, ()),
    }[bundle]
    paths = data.draw(models)
    everything = [] if model is None else [(*model, *path) for path in paths]
    everything += [(*optimizer, "step"), *((*optimizer, "opt_state", *p) for p in data.draw(mirrors(paths)))]
    if model is not None:
        everything += [("ema", *path) for path in data.draw(mirrors(paths))]
    tree = with_leaves([(*path, suffix) if suffix else path for path in everything])
    assert_identity(NnxLayout(suffix, model, optimizer), tree)


def test_keys_of_all_implementations_keep_their_words():
    words = np.arange(8, dtype=np.uint32).reshape(2, 4)
    tree = tree_of({"step": 0, "params": {"up": DENSE}, "opt_state": [], "key": PrngKey(words, "rbg")})
    (dialect,) = readings(tree)
    (held,) = [held for slot, held in dialect.lift(tree).state.items() if slot.part is Part.EXTRA]
    assert str(held.leaf.spec) == "key<rbg>[2]"
    np.testing.assert_array_equal(held.leaf.fetch(), words)
