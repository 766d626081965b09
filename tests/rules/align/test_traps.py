"""Models made to mislead: what may be accepted, what has to be refused, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from converter import align, linen_to_nnx, nnx_to_linen
from converter.errors import ConversionRefused
from converter.rules.link import format_name
from tests.rules.align.layers import Affine, Norm, attend, param, rotated

WIDTH = 6
X = jnp.sin(jnp.arange(24.0)).reshape(4, WIDTH)


class Linen(nn.Module):
    """Calls a function that makes its layers."""

    function: Callable[..., Any]

    @nn.compact
    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.function(*inputs, **kwargs)


class Nnx(nnx.Module):
    """Calls a function with layers under names of its own."""

    def __init__(self, function: Callable[..., Any], **layers: Any) -> None:
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.function(self, *inputs, **kwargs)


def dense(name: str, **options: Any) -> nn.Dense:
    return nn.Dense(WIDTH, name=name, **options)


def affine(*names: str, bias: bool = True) -> dict[str, Affine]:
    return {name: Affine(WIDTH, WIDTH, bias) for name in names}


def found(report: Any) -> dict[str, tuple[str, str]]:
    """By the names of Linen those of NNX, and the confidence."""
    return {
        joined(aligned.piece.linen): (joined(aligned.piece.nnx), aligned.confidence.value)
        for aligned in report.alignment.found
    }


def joined(names: Any) -> str:
    return " + ".join(map(format_name, names))


def refusal(report: Any) -> str:
    with pytest.raises(ConversionRefused) as caught:
        report.check()
    return str(caught.value)


# What is accepted ----------------------------------------------------------------------------------------------------


def test_a_branch_keeps_its_bias():
    """Two branches that are multiplied can be exchanged, but only with everything that belongs to them."""
    linen = Linen(lambda x: dense("a")(x) * dense("b")(x))
    report = align(linen, Nnx(lambda s, x: s.p(x) * s.q(x), **affine("q", "p")), (X,))
    report.check()
    names = {linen: nnx for linen, (nnx, _) in found(report).items()}
    assert names["params/a/kernel"].replace("scale", "mean") == names["params/a/bias"]
    assert names["params/b/kernel"].replace("scale", "mean") == names["params/b/bias"]


def test_a_factor_tells_branches_apart():
    linen = Linen(lambda x: jnp.tanh(dense("a")(x)) * 3 + jnp.tanh(dense("b")(x)))
    report = align(linen, Nnx(lambda s, x: jnp.tanh(s.a(x)) + 3 * jnp.tanh(s.b(x)), **affine("a", "b")), (X,))
    report.check()
    assert found(report)["params/a/kernel"] == ("params/b/scale", "exact")


def test_what_only_running_tells_is_found_by_running():
    """The branches are alike as far as the computation shows: their normalisations are written differently."""

    def branch(name: str, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(name=f"norm_{name}")(dense(name)(x))

    linen = Linen(lambda x: branch("a", x) * 2 + branch("b", x))
    module = Nnx(lambda s, x: s.m(s.a(x)) + s.n(s.b(x)) * 2, **affine("a", "b"), m=Norm(WIDTH), n=Norm(WIDTH))
    report = align(linen, module, (X,))
    report.check()
    assert found(report)["params/a/kernel"] == ("params/b/scale", "numeric")
    assert found(report)["params/norm_a/scale"] == ("params/n/kernel", "numeric")


def attention(x: jax.Array) -> jax.Array:
    q, k, v = (nn.DenseGeneral((2, 3), name=name)(x[None]) for name in ("q", "k", "v"))
    return attend(q, k, v).reshape(-1, WIDTH)


def nnx_attention(self: Any, x: jax.Array) -> jax.Array:
    q, k, v = (layer(x[None]).reshape(1, -1, 2, 3) for layer in (self.k, self.v, self.q))
    return attend(q, k, v).reshape(-1, WIDTH)


def test_the_bias_of_keys_does_not_show_and_is_known_all_the_same():
    report = align(Linen(attention), Nnx(nnx_attention, **affine("q", "k", "v")), (X,))
    report.check()
    names = {linen: nnx for linen, (nnx, _) in found(report).items()}
    assert names["params/q/bias"] == "params/k/mean"
    assert names["params/k/bias"] == "params/v/mean"
    assert names["params/v/kernel"] == "params/q/scale"


@pytest.mark.parametrize(("linen_halves", "nnx_halves"), [(True, False), (False, True), (True, True)])
def test_rotary_positions_written_in_two_ways(linen_halves: bool, nnx_halves: bool):
    def function(x: jax.Array) -> jax.Array:
        q, k, v = (nn.DenseGeneral((3, 4), name=name)(x) for name in ("q", "k", "v"))
        return attend(rotated(q, halves=linen_halves), rotated(k, halves=linen_halves), v)

    def nnx_function(self: Any, x: jax.Array) -> jax.Array:
        q, k, v = (layer(x).reshape(2, 5, 3, 4) for layer in (self.k, self.v, self.q))
        return attend(rotated(q, halves=nnx_halves), rotated(k, halves=nnx_halves), v)

    x = jnp.sin(jnp.arange(120.0)).reshape(2, 5, 12)
    report = align(Linen(function), Nnx(nnx_function, **{name: Affine(12, 12) for name in "qkv"}), (x,))
    report.check()
    names = {linen: nnx for linen, (nnx, _) in found(report).items()}
    assert names["params/q/kernel"] == "params/k/scale"
    assert names["params/k/bias"] == "params/v/mean"


@pytest.mark.parametrize("nnx_halves", [True, False])
def test_rotary_positions_of_queries_and_keys_from_one_kernel(nnx_halves: bool):
    """Keys are cut out of the kernel, and not cut again into the halves that are turned."""

    def function(x: jax.Array) -> jax.Array:
        q, k, v = (nn.DenseGeneral((3, 4), use_bias=False, name=name)(x) for name in ("q", "k", "v"))
        return attend(rotated(q, halves=not nnx_halves), rotated(k, halves=not nnx_halves), v)

    def nnx_function(self: Any, x: jax.Array) -> jax.Array:
        q, k, v = jnp.einsum("btd,sndh->sbtnh", x, self.kernel[...])
        return attend(rotated(q, halves=nnx_halves), rotated(k, halves=nnx_halves), v)

    x = jnp.sin(jnp.arange(120.0)).reshape(2, 5, 12)
    report = align(Linen(function), Nnx(nnx_function, kernel=param(3, 3, 12, 4)), (x,))
    report.check()
    assert list(found(report)) == ["params/q/kernel + params/k/kernel + params/v/kernel"]


def test_queries_in_groups_that_share_their_keys():
    """One side repeats keys and values for each query, the other one takes the queries of a group together."""

    def function(x: jax.Array) -> jax.Array:
        q, k, v = (nn.DenseGeneral((n, 3), use_bias=False, name=name)(x) for name, n in (("q", 4), ("k", 2), ("v", 2)))
        k, v = (jnp.repeat(y, 2, axis=2) for y in (k, v))
        return nn.Dense(12, use_bias=False, name="o")(attend(q, k, v).reshape(2, 5, 12))

    def nnx_function(self: Any, x: jax.Array) -> jax.Array:
        q, k, v = (layer(x).reshape(2, 5, 2, -1, 3) for layer in (self.o, self.v, self.k))
        scores = jnp.einsum("btngh,bsnxh->btngs", q, k) / 3**0.5
        made = jnp.einsum("btngs,bsnxh->btngh", jax.nn.softmax(scores), v)
        return self.q(made.reshape(2, 5, 12))

    x = jnp.sin(jnp.arange(120.0)).reshape(2, 5, 12)
    layers = {name: Affine(12, size, False) for name, size in (("o", 12), ("v", 6), ("k", 6), ("q", 12))}
    report = align(Linen(function), Nnx(nnx_function, **layers), (x,))
    report.check()
    names = {linen[7]: nnx[7] for linen, (nnx, _) in found(report).items()}
    assert names == {"q": "o", "k": "v", "v": "k", "o": "q"}


def test_biases_that_one_side_lacks():
    linen = Linen(lambda x: dense("b")(nn.relu(dense("a", use_bias=False)(x))))
    module = Nnx(lambda s, x: s.p(nn.relu(s.q(x))), q=Affine(WIDTH, WIDTH), p=Affine(WIDTH, WIDTH, False))
    report = align(linen, module, (X,))
    report.check()
    assert found(report) == {
        "params/a/kernel": ("params/q/scale", "traced"),
        "params/b/kernel": ("params/p/scale", "traced"),
        "params/b/bias": ("", "traced"),
        "": ("params/q/mean", "traced"),
    }
    variables = linen.init(jax.random.key(0), X)
    rules = report.rules
    state = linen_to_nnx(variables, module, rules=rules)
    assert not np.any(state["q"]["mean"].get_value())
    variables["params"]["b"]["bias"] += 1
    with pytest.raises(ConversionRefused, match="params/b/bias"):
        linen_to_nnx(variables, module, rules=rules)


def test_weights_that_are_tied_on_one_side():
    tokens = jnp.arange(4)[None]
    linen = Linen(lambda t: nn.Dense(7, use_bias=False, name="head")(nn.Embed(7, WIDTH, name="table")(t)))
    module = Nnx(lambda s, t: s.e[...][t] @ s.e[...].T, e=param(7, WIDTH))
    report = align(linen, module, (tokens,))
    report.check()
    assert found(report)["params/table/embedding + params/head/kernel"][0] == "params/e"
    with pytest.raises(ConversionRefused, match="tied"):
        report.check_rules()


def test_methods_outputs_and_keyword_arguments():
    class Two(nn.Module):
        def setup(self) -> None:
            self.a, self.b = nn.Dense(WIDTH), nn.Dense(WIDTH)

        def encode(self, x: jax.Array, scale: float) -> dict[str, Any]:
            return {"hidden": self.a(x) * scale, "all": [self.b(self.a(x))]}

    class Other(nnx.Module):
        def __init__(self) -> None:
            self.q, self.p = Affine(WIDTH, WIDTH), Affine(WIDTH, WIDTH)

        def run(self, x: jax.Array, twice: bool) -> tuple[Any, Any]:
            return None, self.p(self.q(x)) * (2 if twice else 1)

    report = align(
        Two(),
        Other(),
        (X,),
        linen_method="encode",
        nnx_method="run",
        linen_kwargs={"scale": 3.0},
        nnx_kwargs={"twice": False},
        linen_output="all/0",
        nnx_output="1",
    )
    report.check()
    assert found(report)["params/a/kernel"] == ("params/q/scale", "exact")
    wrong = align(Two(), Other(), (X,), linen_method="encode", nnx_method="run", linen_kwargs={"scale": 1.0})
    assert "twice" in refusal(wrong)


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", [lambda x: jnp.tanh(x) * 1.0001, jax.nn.sigmoid, lambda x: -jnp.tanh(x), lambda x: jnp.tanh(x + 1e-6)]
)
def test_another_function(other: Any):
    linen = Linen(lambda x: dense("b")(jnp.tanh(dense("a")(x))))
    report = align(linen, Nnx(lambda s, x: s.q(other(s.p(x))), **affine("p", "q")), (X,))
    assert "does not give the same outputs" in refusal(report)


def test_what_the_call_does_not_use_is_a_guess():
    def function(x: jax.Array) -> jax.Array:
        dense("unused")(x)
        return dense("used")(x)

    def nnx_function(self: Any, x: jax.Array) -> jax.Array:
        return self.p(x)

    linen, module = Linen(function), Nnx(nnx_function, **affine("q", "p"))
    text = refusal(align(linen, module, (X,)))
    assert "params/unused/kernel: float32[6,6] of Linen is not used by the call" in text
    assert "--allow-guess" in text
    report = align(linen, module, (X,), allow_guess=True)
    report.check()
    assert found(report)["params/unused/kernel"] == ("params/q/scale", "guessed")
    assert found(report)["params/used/kernel"] == ("params/p/scale", "exact")


@pytest.mark.parametrize("nothing", [lambda y: y * 0, jnp.argmax])
def test_outputs_that_show_nothing_prove_nothing(nothing: Any):
    linen = Linen(lambda x: nothing(dense("b")(jnp.tanh(dense("a")(x)))))
    report = align(linen, Nnx(lambda s, x: nothing(s.q(jnp.tanh(s.p(x)))), **affine("p", "q")), (X,))
    assert "the outputs do not depend on these variables" in refusal(report)


def test_a_layer_more():
    linen = Linen(lambda x: dense("b")(jnp.tanh(dense("a")(x))))
    module = Nnx(lambda s, x: s.q(jnp.tanh(s.p(jnp.tanh(s.o(x))))), **affine("o", "p", "q"))
    assert refusal(align(linen, module, (X,)))


def test_a_call_that_fails():
    linen = Linen(lambda x: 2 * dense("a")(x))
    report = align(linen, Nnx(lambda s, x: s.p(x, x), **affine("p")), (X,))
    assert "calling the NNX model failed" in refusal(report)


# Conversions ---------------------------------------------------------------------------------------------------------


def test_conversions_align_by_themselves():
    linen = Linen(attention)
    module = Nnx(nnx_attention, **affine("q", "k", "v"))
    variables = jax.tree.map(lambda x: x + 0.1, linen.init(jax.random.key(0), X))
    state = linen_to_nnx(variables, module, linen_module=linen, inputs=(X,))
    nnx.update(module, state)
    assert np.allclose(module(X), linen.apply(variables, X), atol=1e-5)
    back = nnx_to_linen(module, linen_module=linen, inputs=(X,))
    same = jax.tree.map(lambda a, b: (np.asarray(a) == np.asarray(b)).all(), back, variables)
    assert all(jax.tree.leaves(same))
