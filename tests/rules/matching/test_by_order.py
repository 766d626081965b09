"""Models whose names say nothing: what is taken for the same computes the same, or nothing is converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from converter import linen_to_nnx, nnx_to_linen
from converter.calling import Arguments, Side, Signature
from converter.errors import ConversionRefused
from converter.verification.outputs import compare_outputs

X = jnp.sin(jnp.arange(12.0)).reshape(2, 6)
TOKENS = jnp.arange(6).reshape(2, 3) % 5


class Nnx(nnx.Module):
    """Layers under names of their own, and a function that calls them."""

    def __init__(self, call: Any, **layers: Any) -> None:
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.call(self, *inputs, **kwargs)


def linear(*names: str, **options: Any) -> dict[str, Any]:
    """Square layers, all of one shape."""
    return {name: nnx.Linear(6, 6, rngs=nnx.Rngs(0), **options) for name in names}


def compact(call: Any) -> nn.Module:
    """A Linen module whose layers get their names by themselves."""

    class Compact(nn.Module):
        @nn.compact
        def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
            return call(*inputs, **kwargs)

    return Compact()


@dataclass
class Pair:
    linen: nn.Module
    nnx: nnx.Module
    inputs: tuple[Any, ...] = (X,)
    linen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    nnx_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def variables(self, seed: int) -> Any:
        kwargs = {key: value for key, value in self.linen_kwargs.items() if key not in ("mutable", "rngs")}
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        generator = np.random.default_rng(seed)

        def value(path: Any, leaf: Any) -> Any:
            drawn = generator.normal(0, 0.5, leaf.shape)
            return jnp.asarray(np.abs(drawn) + 0.5 if "var" in str(path) else drawn, leaf.dtype)

        shapes = jax.eval_shape(lambda: self.linen.init(keys, *self.inputs, **kwargs))
        return jax.tree_util.tree_map_with_path(value, shapes)

    def convert(self, variables: Any) -> nnx.State:
        return linen_to_nnx(variables, self.nnx, **self.models)

    @property
    def models(self) -> dict[str, Any]:
        return {
            "linen_module": self.linen,
            "inputs": self.inputs,
            "linen_kwargs": self.linen_kwargs,
            "nnx_kwargs": self.nnx_kwargs,
        }


def signature(pair: Pair, inputs: Sequence[Any]) -> Signature:
    return Signature(Arguments(tuple(inputs)), Side(pair.linen_kwargs), Side(pair.nnx_kwargs))


def other_inputs(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """None of those that the conversion has seen."""
    generator = np.random.default_rng(9)
    return tuple(jnp.asarray(_other(np.asarray(x), generator), x.dtype) for x in inputs)


def _other(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return generator.permuted(x) if x.dtype.kind == "i" else generator.normal(size=x.shape)


def dense(**options: Any) -> nn.Dense:
    return nn.Dense(6, **options)


# Models that are converted -------------------------------------------------------------------------------------------


def loop(x: Any) -> Any:
    shared = dense()
    for _ in range(12):
        x = nn.LayerNorm()(x + jnp.tanh(dense()(shared(x))))
    return shared(x)


def nnx_loop(self: Any, x: Any) -> Any:
    for layer, norm in zip(self.blocks, self.norms, strict=True):
        x = norm(x + jnp.tanh(layer(self.shared(x))))
    return self.shared(x)


def small_branch(dtype: Any) -> Pair:
    """The layer that is used first in NNX, on something that does not count, is the last one that matters."""

    def call(x: Any) -> Any:
        h = dense(dtype=dtype)(x)
        return h + 0.001 * dense(dtype=dtype)(jnp.tanh(dense(dtype=dtype)(h)))

    def nnx_call(self: Any, x: Any) -> Any:
        h = self.p(x)
        self.q(jnp.ones_like(h))
        return h + 0.001 * self.q(jnp.tanh(self.z(h)))

    return Pair(compact(call), Nnx(nnx_call, **linear("p", "q", "z", dtype=dtype)))


def dictionary(x: Any, train: bool) -> Any:
    h = nn.BatchNorm(use_running_average=not train)(dense()(x))
    return {"h": h, "logits": dense()(nn.Dropout(0.5)(h, deterministic=not train)), "name": "text", "n": 3}


def nnx_dictionary(self: Any, x: Any) -> Any:
    h = self.norm(self.first(x))
    return {"h": h, "logits": self.last(self.dropout(h)), "name": "text", "n": 3}


def dictionary_layers() -> dict[str, Any]:
    rngs = nnx.Rngs(0)
    return {**linear("last", "first"), "norm": nnx.BatchNorm(6, rngs=rngs), "dropout": nnx.Dropout(0.5, rngs=rngs)}


def trained(x: Any) -> Any:
    return dense()(nn.BatchNorm(use_running_average=False)(dense()(x)))


def recurrent(x: Any) -> Any:
    return nn.RNN(nn.GRUCell(6))(nn.RNN(nn.GRUCell(6))(x))


def gru() -> Any:
    return nnx.RNN(nnx.GRUCell(6, 6, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))


class Partly(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return dense(name="out")(nn.relu(dense()(nn.relu(dense(name="up")(x)))))


class Tower(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return Tower(self.depth - 1)(x) if self.depth else dense()(x)


class NnxTower(nnx.Module):
    def __init__(self, depth: int) -> None:
        self.inside = NnxTower(depth - 1) if depth else linear("x")["x"]

    def __call__(self, x: Any) -> Any:
        return self.inside(x)


def mlp(x: Any) -> Any:
    return dense()(jnp.tanh(dense()(x)))


def nnx_mlp(self: Any, x: Any) -> Any:
    return self.outer(jnp.tanh(self.inner(x)))


def embeds(names: Sequence[str]) -> dict[str, Any]:
    return {name: nnx.Embed(5, 6, rngs=nnx.Rngs(0)) for name in names}


RIGHT = {
    "two layers": lambda: Pair(compact(mlp), Nnx(nnx_mlp, **linear("outer", "inner"))),
    "inputs of zeros": lambda: Pair(compact(mlp), Nnx(nnx_mlp, **linear("outer", "inner")), (jnp.zeros((2, 6)),)),
    "symmetric branches": lambda: Pair(
        compact(lambda x: dense()(x) + dense()(x)), Nnx(lambda self, x: self.q(x) + self.p(x), **linear("p", "q"))
    ),
    "another order of calls": lambda: Pair(
        compact(lambda x: dense()(x) - dense()(x)),
        Nnx(lambda self, x: -1 * self.q(x) + self.p(x), **linear("p", "q")),
    ),
    "twelve layers, one shared": lambda: Pair(
        compact(loop),
        Nnx(
            nnx_loop,
            **linear("shared"),
            blocks=nnx.List([*linear(*map(str, range(12))).values()]),
            norms=nnx.List([nnx.LayerNorm(6, rngs=nnx.Rngs(0)) for _ in range(12)]),
        ),
    ),
    "a small branch": lambda: small_branch(jnp.float32),
    "a small branch in bfloat16": lambda: small_branch(jnp.bfloat16),
    "a small branch in float16": lambda: small_branch(jnp.float16),
    "dicts and keyword arguments": lambda: Pair(
        compact(dictionary), Nnx(nnx_dictionary, **dictionary_layers()), (X,), {"train": False}
    ),
    "training without a word about it": lambda: Pair(
        compact(trained),
        Nnx(
            lambda self, x: self.b(self.n(self.a(x))),
            **linear("b", "a"),
            n=nnx.BatchNorm(6, use_running_average=False, rngs=nnx.Rngs(0)),
        ),
        linen_kwargs={"mutable": ["batch_stats"]},
    ),
    "fused gates": lambda: Pair(compact(recurrent), Nnx(lambda s, x: s.a(s.b(x)), a=gru(), b=gru()), (X[None],)),
    "some equal names": lambda: Pair(
        Partly(),
        Nnx(lambda s, x: s.head(nn.relu(s.mid(nn.relu(s.up(x))))), **linear("up", "mid", "head")),
    ),
    "thirty levels": lambda: Pair(Tower(30), NnxTower(30)),
    "tokens, twice the same": lambda: Pair(
        compact(lambda a, b: nn.Embed(5, 6)(a) - nn.Embed(5, 6)(b)),
        Nnx(lambda self, a, b: -self.q(b) + self.p(a), **embeds("qp")),
        (TOKENS, TOKENS),
    ),
    "tokens of a vocabulary of which one is used": lambda: Pair(
        compact(lambda a, b: nn.Embed(5, 6)(a) * nn.Embed(5, 6)(b)),
        Nnx(lambda self, a, b: self.q(b) * self.p(a), **embeds("qp")),
        (0 * TOKENS, 0 * TOKENS),
    ),
    "names that mean other layers": lambda: Pair(
        Accident(), Nnx(lambda s, x: s.last(nn.relu(s.out(nn.relu(s.first(x))))), **linear("first", "out", "last"))
    ),
    "tied in NNX alone": lambda: Pair(
        compact(lambda t: nn.Dense(5, use_bias=False)(dense()(nn.Embed(5, 6)(t)))),
        Nnx(lambda self, t: self.e.attend(self.d(self.e(t))), **embeds("e"), **linear("d")),
        (TOKENS,),
    ),
}


def bound(case: str, variables: Any) -> Any:
    """The variables such that nothing of them would be lost."""
    params = variables["params"]
    if case == "fused gates":
        for cell in params.values():
            cell["hn"]["bias"] *= 0
    if case == "tied in NNX alone":
        params["Dense_0"]["kernel"] = params["Embed_0"]["embedding"].T
    return variables


def slow(*arguments: str) -> Any:
    """A case that takes long, of which a quicker one shows almost all."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


SLOW = ("twelve layers, one shared", "a small branch in float16")


@pytest.mark.parametrize("case", [slow(case) if case in SLOW else case for case in RIGHT])
def test_what_is_converted_computes_the_same_and_comes_back(case: str):
    pair = RIGHT[case]()
    variables = bound(case, pair.variables(1))
    module = nnx.clone(pair.nnx)
    nnx.update(module, pair.convert(variables))
    back = nnx_to_linen(module, **pair.models)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    for left, right in zip(jax.tree.leaves(back), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(left, right)
    if not pair.linen_kwargs.get("mutable"):
        module.eval()
    inputs = other_inputs(pair.inputs)
    result = compare_outputs(pair.linen, variables, module, signature(pair, inputs))
    assert result.ok, result


# Models that are refused ---------------------------------------------------------------------------------------------


def heads(x: Any) -> Any:
    """Two of three layers are computed and thrown away."""
    dense()(x)
    dense()(x)
    return dense()(x)


def nnx_heads(self: Any, x: Any) -> Any:
    self.q(x)
    self.p(x)
    return self.z(x)


class Unused(nn.Module):
    def setup(self) -> None:
        self.a, self.b, self.c = dense(), dense(), dense()

    def __call__(self, x: Any) -> Any:
        if self.is_initializing():
            self.b(x)
        return self.a(nn.relu(self.c(x)))


class Accident(nn.Module):
    """``out`` is the last layer here, and the middle one in NNX."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return dense(name="out")(nn.relu(dense(name="mid")(nn.relu(dense()(x)))))


def returning(function: Any) -> Pair:
    return Pair(
        compact(lambda x: function(mlp(x))),
        Nnx(lambda self, x: function(nnx_mlp(self, x)), **linear("outer", "inner")),
    )


def fails(self: Any, x: Any) -> Any:
    raise RuntimeError("no such luck")


WRONG = {
    "nothing but zeros": (lambda: returning(lambda y: y * 0), "the outputs do not depend on these variables"),
    "nothing but NaN": (lambda: returning(lambda y: y * jnp.nan), "they return no numbers for random values"),
    "nothing but whole numbers": (lambda: returning(jnp.argmax), "the outputs do not depend on these variables"),
    "heads that are thrown away": (
        lambda: Pair(compact(heads), Nnx(nnx_heads, **linear("p", "q", "z"))),
        "the outputs do not depend on these variables",
    ),
    "a layer that is never called": (
        lambda: Pair(Unused(), Nnx(lambda s, x: s.p(nn.relu(s.q(x))), **linear("p", "q", "z"))),
        "found nothing of that name",
    ),
    "another function": (
        lambda: Pair(compact(mlp), Nnx(lambda s, x: 2 * nnx_mlp(s, x), **linear("outer", "inner"))),
        "does not give the same outputs",
    ),
    "another function of many layers": (
        lambda: Pair(
            compact(lambda x: [loop(x), dense(name="a")(x), nn.Dense(5, name="b")(x)]),
            Nnx(lambda s, x: s.only(x), **linear(*(f"layer{chr(97 + i)}" for i in range(24)), "only")),
        ),
        "the order of use",
    ),
    "a call that fails": (
        lambda: Pair(compact(mlp), Nnx(fails, **linear("outer", "inner"))),
        "the order of use tells nothing: calling the NNX model failed: RuntimeError: no such luck",
    ),
    "dropout in training": (
        lambda: Pair(
            compact(dictionary),
            Nnx(nnx_dictionary, **dictionary_layers()),
            linen_kwargs={"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(0)}},
        ),
        "does not give the same outputs",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_nothing_tells_is_refused(case: str):
    make, reason = WRONG[case]
    pair = make()
    with pytest.raises(ConversionRefused) as refused:
        pair.convert(pair.variables(1))
    assert reason in str(refused.value)
    assert "--rules" in str(refused.value)


# Around the models ---------------------------------------------------------------------------------------------------


def test_an_abstract_module_is_enough():
    pair = RIGHT["two layers"]()
    abstract = nnx.eval_shape(lambda: Nnx(nnx_mlp, **linear("outer", "inner")))
    state = linen_to_nnx(pair.variables(1), abstract, **pair.models)
    assert state["inner"]["kernel"].get_value() is not None
    wanted = pair.convert(pair.variables(1))
    np.testing.assert_array_equal(state["inner"]["kernel"].get_value(), wanted["inner"]["kernel"].get_value())


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_conversions_inside_of_transformations(transform: Any):
    """Models are run on numbers while the variables are not known yet."""
    pair = RIGHT["two layers"]()
    variables = pair.variables(1)
    given = jax.tree.map(lambda leaf: leaf[None], variables) if transform is jax.vmap else variables
    state = transform(pair.convert)(given)
    wanted = jax.tree.leaves(pair.convert(variables))
    for found, array in zip(jax.tree.leaves(state), wanted, strict=True):
        np.testing.assert_array_equal(found.reshape(array.shape), array)


@pytest.mark.parametrize("case", ["tied in NNX alone", slow("fused gates")])
def test_conditions_cannot_be_checked_inside_of_jit(case: str):
    pair = RIGHT[case]()
    variables = bound(case, pair.variables(1))
    with pytest.raises(ConversionRefused, match="not known inside"):
        jax.jit(pair.convert)(variables)
    state = jax.jit(lambda given: linen_to_nnx(given, pair.nnx, **pair.models, allow_lossy=True))(variables)
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(pair.convert(variables)), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_copies_that_differ_are_refused():
    pair = RIGHT["tied in NNX alone"]()
    with pytest.raises(ConversionRefused, match="do not hold the same values"):
        pair.convert(pair.variables(1))


def test_models_without_variables():
    pair = Pair(compact(lambda x: x), Nnx(lambda self, x: x))
    assert not jax.tree.leaves(pair.convert({}))


def test_no_variables_at_all_are_not_enough_for_a_model_that_has_some():
    with pytest.raises(ConversionRefused, match="found nothing of that name"):
        linen_to_nnx({}, RIGHT["two layers"]().nnx)


@pytest.mark.parametrize("linen", [0, 1, -1])
@pytest.mark.parametrize("other", [0, 1, -1])
def test_square_layers_that_are_vmapped_along_different_axes(linen: int, other: int):
    """Equal names and equal shapes, and yet the arrays are turned: no scan shows the axes of ``vmap``."""
    axes = {"variable_axes": {"params": linen}, "split_rngs": {"params": True}, "in_axes": None, "out_axes": 0}
    layers = nn.vmap(nn.Dense, axis_size=6, **axes)
    ensemble = compact(lambda x: 1 * layers(6, name="ensemble")(x))
    own = nnx.StateAxes({nnx.Param: other, ...: 0})
    make = nnx.split_rngs(splits=6)(nnx.vmap(lambda rngs: nnx.Linear(6, 6, rngs=rngs), out_axes=own))

    def call(self: Any, x: Any) -> Any:
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(own, None))(self.ensemble, x)

    pair = Pair(ensemble, Nnx(call, ensemble=make(nnx.Rngs(0))))
    variables = pair.variables(1)
    module = nnx.clone(pair.nnx)
    nnx.update(module, pair.convert(variables))
    assert compare_outputs(pair.linen, variables, module, signature(pair, pair.inputs)).ok
    back = nnx_to_linen(module, **pair.models)
    for left, right in zip(jax.tree.leaves(back), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(left, right)
