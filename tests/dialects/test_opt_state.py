"""Which leaves of an optax state follow a parameter, in the states that optax itself makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state
from hypothesis import given
from hypothesis import strategies as st

from converter.dialects import readings
from converter.dialects.nnx import NnxLayout
from converter.dialects.opt_state import as_positions, missing_positions, split_mirror
from converter.paths import IndexKey, Path, format_path, parse_path
from converter.training_state import Part
from converter.tree import LeafKind
from tests.building import saved, saved_nnx, texts

PARAMS = {
    "up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "attention": {"value": {"kernel": jnp.ones((3, 2))}},
    "mu": {"kernel": jnp.ones((2, 2))},
    "value": jnp.ones(()),
}
VARIABLES = {("up", "kernel"), ("up", "bias"), ("attention", "value", "kernel"), ("mu", "kernel"), ("value",)}


def matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def labels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: "matrices" if leaf.ndim > 1 else "others", params)


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "adamw": lambda: optax.adamw(0.1),
    "adamw with a schedule": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 10)),
    "adagrad": lambda: optax.adagrad(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1, momentum=0.9),
    "lion": lambda: optax.lion(0.1),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "masked": lambda: optax.masked(optax.adam(0.1), matrices),
    "chain of masked": lambda: optax.chain(optax.clip(1.0), optax.masked(optax.adamw(0.1), matrices), optax.trace(0.9)),
    "multi_transform": lambda: optax.multi_transform(
        {"matrices": optax.adam(0.1), "others": optax.sgd(0.1, momentum=0.9)}, labels
    ),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
    "inject_hyperparams of momentum": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "ema": lambda: optax.chain(optax.adam(0.1), optax.ema(0.9)),
    "nested": lambda: optax.chain(
        optax.clip(1.0),
        optax.MultiSteps(
            optax.masked(optax.chain(optax.clip(1.0), optax.adam(0.1)), matrices), 2
        ).gradient_transformation(),
    ),
}


def marked(tx: optax.GradientTransformation) -> dict[Path, bool]:
    """Whether each array of the optimizer's state follows a parameter, as optax itself tells."""
    state = tx.init(PARAMS)
    marks = optax.tree_utils.tree_map_params(tx, lambda _: True, state, transform_non_params=lambda _: False)
    return {path: bool(leaf.fetch()) for path, leaf in saved(marks).items() if leaf.spec.kind is not LeafKind.EMPTY}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_mirrors_are_those_that_optax_tells(name: str):
    found = {}
    for path in marked(OPTIMIZERS[name]()):
        prefix, tail = split_mirror(path, VARIABLES)
        assert prefix + tail == path
        assert tail in VARIABLES or not tail
        found[path] = bool(tail)
    assert found == marked(OPTIMIZERS[name]())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_the_parameters_the_mirrors_are_the_same(name: str):
    """A parameter at the very top, such as ``value``, is told by the field in front of it too."""
    for path in marked(OPTIMIZERS[name]()):
        assert split_mirror(path, ()) == split_mirror(path, VARIABLES)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_mirror_stands_once_for_every_parameter_that_it_is_kept_for(name: str):
    state = saved(OPTIMIZERS[name]().init(PARAMS))
    kept: dict[Path, set[Path]] = {}
    for path in state:
        prefix, tail = split_mirror(path, VARIABLES)
        if tail:
            kept.setdefault(prefix, set()).add(tail)
    assert all(tails == VARIABLES for tails in kept.values())
    assert kept or not any(marked(OPTIMIZERS[name]()).values())


@pytest.mark.parametrize(
    ("path", "prefix", "tail"),
    [
        ("0/count", "0/count", ""),
        ("0/mu/up/kernel", "0/mu", "up/kernel"),
        ("0/mu/mu/kernel", "0/mu", "mu/kernel"),
        ("0/mu/value", "0/mu", "value"),
        ("0/mu/up", "0/mu/up", ""),
        ("0/mu/other/up/kernel", "0/mu/other", "up/kernel"),
        ("0/mu/up/kernel/extra", "0/mu/up/kernel/extra", ""),
    ],
)
def test_the_longest_tail_that_names_a_variable_is_the_mirror(path: str, prefix: str, tail: str):
    assert split_mirror(parse_path(path), VARIABLES) == (parse_path(prefix), parse_path(tail))


def test_longer_tails_win():
    variables = {("kernel",), ("up", "kernel"), ("net", "up", "kernel")}
    assert split_mirror(parse_path("0/mu/net/up/kernel"), variables) == (("0", "mu"), ("net", "up", "kernel"))
    assert split_mirror(parse_path("0/mu/up/kernel"), variables) == (("0", "mu"), ("up", "kernel"))
    assert split_mirror(parse_path("0/mu/kernel"), variables) == (("0", "mu"), ("kernel",))


def test_positions_and_names_make_no_difference():
    position = ("0", "mu", "layers", IndexKey("1"), "kernel")
    assert split_mirror(position, {("layers", "1", "kernel")}) == (("0", "mu"), ("layers", "1", "kernel"))


# In a train state and in an nnx.Optimizer ----------------------------------------------------------------------------


class Net(nnx.Module):
    """The parameters of ``PARAMS`` as NNX holds them."""

    def __init__(self) -> None:
        self.up = nnx.Dict(kernel=nnx.Param(jnp.ones((2, 3))), bias=nnx.Param(jnp.ones(3)))
        self.attention = nnx.Dict(value=nnx.Dict(kernel=nnx.Param(jnp.ones((3, 2)))))
        self.mu = nnx.Dict(kernel=nnx.Param(jnp.ones((2, 2))))
        self.value = nnx.Param(jnp.ones(()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_train_state_and_an_optimizer_mean_the_same(name: str):
    tx = OPTIMIZERS[name]()
    linen = saved(train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=tx))
    net = Net()
    nnx_tree = saved_nnx({"model": nnx.state(net), "optimizer": nnx.state(nnx.Optimizer(net, tx, wrt=nnx.Param))})
    sides = [readings(linen)[0].lift(linen).state, NnxLayout("value", ("model",), ("optimizer",)).lift(nnx_tree).state]
    meanings = []
    for state in sides:
        found = {}
        for slot, held in state.items():
            if held.leaf.spec.kind is not LeafKind.EMPTY:
                found[slot.part, slot.prefix, slot.path] = held.leaf.spec.shape
        meanings.append(found)
    assert meanings[0] == meanings[1]
    mirrors = [path for part, _, path in meanings[0] if part is Part.OPT_STATE and path]
    assert len(mirrors) == sum(marked(tx).values())


def test_masked_moments_keep_their_place_on_both_sides():
    tx = OPTIMIZERS["masked"]()
    linen = saved(train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=tx))
    net = Net()
    nnx_tree = saved_nnx({"model": nnx.state(net), "optimizer": nnx.state(nnx.Optimizer(net, tx, wrt=nnx.Param))})
    for tree in (linen, nnx_tree):
        lifted = readings(tree)[0].lift(tree)
        empty = [slot for slot, held in lifted.state.items() if held.leaf.spec.kind is LeafKind.EMPTY]
        assert sorted(format_path(slot.path) for slot in empty if slot.prefix[-1] == "mu") == ["up/bias", "value"]
        assert all(held.leaf.fetch() is None for slot, held in lifted.state.items() if slot in empty)


def test_a_counter_is_no_mirror_of_a_variable_that_is_called_so():
    """``self.count`` of a module is not what adam's ``count`` follows."""

    class Count(nnx.Variable):
        pass

    class Counting(nnx.Module):
        def __init__(self) -> None:
            self.dense = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
            self.count = Count(jnp.zeros((), jnp.int32))

    model = Counting()
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    tree = saved_nnx({"model": nnx.state(model), "optimizer": nnx.state(optimizer)})
    (dialect,) = readings(tree)
    mirrored = {slot.path for slot in dialect.lift(tree).state if slot.part is Part.OPT_STATE and slot.is_mirror}
    assert mirrored == {("dense", "kernel"), ("dense", "bias")}


# Positions -----------------------------------------------------------------------------------------------------------


def test_numbers_become_positions():
    found = as_positions(("0", "inner_states", "10", "01", "²", "mu", ""))
    assert found == ("0", "inner_states", "10", "01", "²", "mu", "")
    assert [type(key) is IndexKey for key in found] == [True, False, True, False, False, False, False]


def missing(*paths: str) -> list[str]:
    return sorted(texts(missing_positions([as_positions(parse_path(path)) for path in paths])))


def test_positions_in_front_of_known_ones_must_exist():
    assert missing() == []
    assert missing("0/count") == []
    assert missing("1/count", "1/mu/kernel", "4/count") == ["0", "2", "3"]
    assert missing("1/inner_state/2/count") == ["0", "1/inner_state/0", "1/inner_state/1"]


def test_numbers_that_are_names_leave_no_positions_out():
    assert list(missing_positions([("inner_states", "2", "count")])) == []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_missing_are_the_members_without_arrays(name: str):
    """Those in front of the last one that has some; masked-out moments are not positions and not meant here."""
    state = saved(OPTIMIZERS[name]().init(PARAMS))
    full = [path for path, leaf in state.items() if leaf.spec.kind is not LeafKind.EMPTY]

    def in_front_of_others(path: Path) -> bool:
        *node, last = path
        return isinstance(last, IndexKey) and any(
            list(p[: len(node)]) == node and int(p[len(node)]) > int(last) for p in full if len(p) > len(node)
        )

    empty = [path for path in state if path not in full]
    assert sorted(missing_positions(full)) == sorted(path for path in empty if in_front_of_others(path))


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), max_size=6))
def test_with_the_missing_positions_every_tuple_is_whole(numbers: list[list[int]]):
    paths = [as_positions(tuple(map(str, path))) for path in numbers]
    found = [*paths, *missing_positions(paths)]
    tuples: dict[Path, set[int]] = {}
    for path in found:
        for depth, key in enumerate(path):
            tuples.setdefault(path[:depth], set()).add(int(key))
    assert all(positions == set(range(len(positions))) for positions in tuples.values())
    assert len(set(found) - set(paths)) == len(found) - len(paths)


def test_moments_have_the_shapes_of_their_parameters():
    """What makes a tail a mirror is its name; with real states the shapes agree too."""
    state = saved(optax.adam(0.1).init(PARAMS))
    shapes = {path: leaf.spec.shape for path, leaf in saved(PARAMS).items()}
    for path, leaf in state.items():
        _, tail = split_mirror(path, VARIABLES)
        if tail:
            assert leaf.spec.shape == shapes[tail] == np.shape(leaf.fetch())
