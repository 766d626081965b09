"""Names and shapes that Flax itself would choose: every layer of the recipes, with one model alone or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

from converter import linen_to_nnx, nnx_to_linen
from converter.errors import ConversionRefused
from converter.models import linen_model
from converter.paths import IntKey, TupleKey, format_path
from converter.rules.link import Name
from converter.rules.matching.match import correspond
from converter.tree import LeafSpec, array_spec

X = jnp.sin(jnp.arange(24.0)).reshape(2, 3, 4)
Y = jnp.sin(jnp.arange(30.0)).reshape(2, 3, 5)


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


class Inside(nn.Module):
    """A layer in an attribute, as models have it."""

    make: Callable[[], nn.Module]
    options: Any = FrozenDict()

    def setup(self) -> None:
        self.inner = self.make()

    def __call__(self, *inputs: Any) -> Any:
        return self.inner(*inputs, **self.options)


class NnxInside(nnx.Module):
    def __init__(self, inner: nnx.Module) -> None:
        self.inner = inner


class Step(nn.Module):
    """One step of a recurrent cell."""

    cell: type[nn.RNNCellBase]

    def setup(self) -> None:
        self.inner = self.cell(5)

    def __call__(self, x: Any) -> Any:
        return self.inner(self.inner.initialize_carry(jax.random.key(0), x.shape), x)


Recipe = tuple[Callable[[], nn.Module], Callable[[], nnx.Module], Any]

RECIPES: dict[str, Recipe] = {
    "dense": (lambda: Inside(lambda: nn.Dense(5)), lambda: nnx.Linear(4, 5, rngs=rngs()), X),
    "embed": (lambda: Inside(lambda: nn.Embed(7, 5)), lambda: nnx.Embed(7, 5, rngs=rngs()), jnp.arange(3)),
    "conv": (lambda: Inside(lambda: nn.Conv(5, (3,))), lambda: nnx.Conv(4, 5, (3,), rngs=rngs()), X),
    "attention": (
        lambda: Inside(lambda: nn.MultiHeadDotProductAttention(2)),
        lambda: nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs()),
        X,
    ),
    "batch norm": (
        lambda: Inside(lambda: nn.BatchNorm(use_running_average=True)),
        lambda: nnx.BatchNorm(4, rngs=rngs()),
        X,
    ),
    "prelu": (lambda: Inside(nn.PReLU), nnx.PReLU, X),
    "lstm": (lambda: Step(nn.LSTMCell), lambda: nnx.LSTMCell(4, 5, rngs=rngs()), X),
    "optimized lstm": (lambda: Step(nn.OptimizedLSTMCell), lambda: nnx.OptimizedLSTMCell(4, 5, rngs=rngs()), X),
    "gru": (lambda: Step(nn.GRUCell), lambda: nnx.GRUCell(4, 5, rngs=rngs()), X),
    "simple cell": (lambda: Step(nn.SimpleCell), lambda: nnx.SimpleCell(4, 5, rngs=rngs()), X),
    "spectral norm": (
        lambda: Inside(lambda: nn.SpectralNorm(nn.Dense(5)), FrozenDict(update_stats=False)),
        lambda: nnx.SpectralNorm(nnx.Linear(4, 5, rngs=rngs()), rngs=rngs()),
        X,
    ),
    "weight norm": (
        lambda: Inside(lambda: nn.WeightNorm(nn.Dense(5))),
        lambda: nnx.WeightNorm(nnx.Linear(4, 5, rngs=rngs()), rngs=rngs()),
        X,
    ),
    "sequential": (
        lambda: Inside(lambda: nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(5)])),
        lambda: nnx.Sequential(nnx.Linear(4, 4, rngs=rngs()), nnx.relu, nnx.Linear(4, 5, rngs=rngs())),
        X,
    ),
}
"""Linen module, NNX layer, and an input."""

LOSSY = "hn/bias"


def variables(case: str) -> Any:
    """Random ones, with zeros where NNX has no place."""
    linen, _, x = RECIPES[case]
    generator = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: linen().init(jax.random.key(0), x))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(generator.normal(size=leaf.shape) * (LOSSY not in text_of(path)), leaf.dtype),
        shapes,
    )


def text_of(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {text_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path], array)


@pytest.mark.parametrize("case", RECIPES)
def test_the_nnx_model_alone_is_enough(case: str):
    """What it makes of the variables is what hand-written NNX code would, by the outputs that tests/parity compares."""
    wanted = variables(case)
    module = NnxInside(RECIPES[case][1]())
    nnx.update(module, linen_to_nnx(wanted, module))
    assert_equal(flat(nnx_to_linen(module)), flat(wanted))


def sources(tree: Any) -> dict[Name, LeafSpec]:
    """The Linen variables as a checkpoint has them."""
    return {name: array_spec(str(leaf.dtype), leaf.shape) for name, leaf in leaves(tree)}


def nnx_leaves(module: nnx.Module) -> dict[str, np.ndarray]:
    found = {}
    for keys, leaf in nnx.to_flat_state(nnx.state(module)):
        if not isinstance(leaf, nnx.RngState):
            value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
            found[format_path(tuple(map(str, keys)))] = np.asarray(value)
    return found


@pytest.mark.parametrize("case", RECIPES)
def test_the_linen_model_alone_gives_the_names_of_nnx(case: str):
    """To NNX, without its model: every variable has the name, the shape and the values that the NNX module wants."""
    linen, make, x = RECIPES[case]
    wanted, module = variables(case), NnxInside(make())
    nnx.update(module, linen_to_nnx(wanted, module))
    found = correspond("nnx", sources(wanted), {}, linen_model(linen(), (x,)), None)
    assert found.problems == []
    arrays = {":".join((path[0], format_path(path[1]))): np.asarray(leaf) for path, leaf in leaves(wanted)}
    made_of = {format_path(name[1]): value for name, value in carried_out(found, arrays).items()}
    assert_equal(made_of, nnx_leaves(module))


def leaves(tree: Any) -> list[tuple[Name, Any]]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    keys = [tuple(key.key for key in path) for path, _ in found]
    return [((path[0], path[1:]), leaf) for path, (_, leaf) in zip(keys, found, strict=True)]


def carried_out(found: Any, arrays: dict[str, np.ndarray]) -> dict[Name, np.ndarray]:
    results: dict[Name, np.ndarray] = {}
    for link in found.links:
        own = [arrays[":".join((name[0], format_path(name[1])))] for name in link.sources]
        specs = [array_spec(array.dtype.name, array.shape) for array in own]
        results |= dict(zip(link.targets, link.operation.apply(own, specs), strict=True))
    return results


@pytest.mark.parametrize("case", RECIPES)
def test_the_linen_model_alone_takes_everything_back(case: str):
    """From NNX to a Linen model, whose shapes tell what the NNX checkpoint does not."""
    linen, make, x = RECIPES[case]
    wanted, module = variables(case), NnxInside(make())
    nnx.update(module, linen_to_nnx(wanted, module))
    # The state, not the module: nothing but names and types is known of NNX.
    back = nnx_to_linen(nnx.state(module), linen_module=linen(), inputs=(x,))
    assert_equal(flat(back), flat(wanted))


def test_a_norm_over_two_axes_gets_its_shape_from_the_linen_model():
    norm = nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1))
    scale, bias = Y[0], Y[1]
    module = nnx.LayerNorm(15, rngs=rngs())
    state = linen_to_nnx({"params": {"scale": scale, "bias": bias}}, module, linen_module=norm, inputs=(Y,))
    np.testing.assert_array_equal(state["scale"].get_value(), scale.reshape(-1))
    nnx.update(module, state)
    back = nnx_to_linen(module, linen_module=norm, inputs=(Y,))
    np.testing.assert_array_equal(back["params"]["bias"], bias)


# Without any model ---------------------------------------------------------------------------------------------------


def names(*texts: str) -> dict[Name, LeafSpec]:
    return {_name(text): array_spec("float32", (2,)) for text in texts}


def _name(text: str) -> Name:
    collection, *path = text.split("|")
    return collection, tuple(TupleKey(k) if k.startswith("(") else IntKey(k) if k.isdigit() else k for k in path)


STATISTICS = [
    ("batch_stats|sn|layer_instance/kernel/u", "batch_stats|sn|batch_stats|('kernel', 'u')"),
    ("batch_stats|sn|layer_instance/kernel/sigma", "batch_stats|sn|batch_stats|('kernel', 'sigma')"),
    ("params|wn|layer_instance/kernel/scale", "params|wn|scales|('kernel',)"),
    ("params|wn|layer_instance/a/b/scale", "params|wn|scales|('a', 'b')"),
]


@pytest.mark.parametrize(("linen", "other"), STATISTICS)
def test_keys_with_slashes(linen: str, other: str):
    there = correspond("nnx", names(linen), {}, None, None).links
    back = correspond("linen", names(other), {}, None, None).links
    assert [link.targets for link in there] == [(_name(other),)]
    assert [link.targets for link in back] == [(_name(linen),)]


@pytest.mark.parametrize("key", ["params|a|b/c", "params|a|b/c/d", "batch_stats|a|x/kernel/mean", "params|x|y/u"])
def test_other_keys_with_slashes_stay(key: str):
    for to in ("nnx", "linen"):
        (link,) = correspond(to, names(key), {}, None, None).links
        assert link.targets == (_name(key),)


def test_gates_alone_do_not_fuse():
    """Which of two NNX cells an LSTM is for, no Linen checkpoint tells; gates are then kept apart as LSTMCell does."""
    gates = [f"params|cell|{side}{gate}|kernel" for side in "ih" for gate in "ifgo"]
    found = correspond("nnx", names(*gates), {}, None, None)
    assert all(len(link.sources) == len(link.targets) == 1 for link in found.links)
    targets = {link.targets[0][1][1] for link in found.links}
    assert targets == {"ii", "if_", "ig", "io", "hi", "hf", "hg", "ho"}


def test_what_the_gru_of_nnx_has_no_place_for():
    module = NnxInside(nnx.GRUCell(4, 5, rngs=rngs()))
    wanted = variables("gru")
    wanted["params"]["inner"]["hn"]["bias"] += 1
    with pytest.raises(ConversionRefused, match="no bias in its hidden-to-hidden layers, and not all its values are 0"):
        linen_to_nnx(wanted, module)
    nnx.update(module, linen_to_nnx(wanted, module, allow_lossy=True))
    assert not np.asarray(nnx_to_linen(module)["params"]["inner"]["hn"]["bias"]).any()
