"""Correspondences put to the test: right ones pass whatever the precision, wrong ones do not however little they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from converter.calling import Arguments, Signature
from converter.models import linen_model, nnx_model
from converter.proof.trial import Trial
from converter.rules.link import Name
from converter.rules.matching.board import Piece
from converter.rules.operations import REWRAP, Agree, Transpose

X = jnp.sin(jnp.arange(12.0)).reshape(2, 6)

Function = Callable[[dict[str, Any], Any], Any]


class Linen(nn.Module):
    """Any function of some square matrices."""

    function: Function
    names: tuple[str, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any) -> Any:
        ones = nn.initializers.ones
        return self.function({name: self.param(name, ones, (6, 6), self.dtype) for name in self.names}, x)


class Nnx(nnx.Module):
    def __init__(self, function: Function, names: Sequence[str], dtype: Any = jnp.float32) -> None:
        self.function = function
        self.names = tuple(names)
        for name in names:
            setattr(self, name, nnx.Param(jnp.ones((6, 6), dtype)))

    def __call__(self, x: Any) -> Any:
        return self.function({name: getattr(self, name).get_value() for name in self.names}, x)


def name(text: str) -> Name:
    return "params", (text,)


def trial(function: Function, names: str = "ab", x: Any = X, other: Function | None = None, **options: Any) -> Trial:
    """Both models compute the same function of matrices of the same names."""
    linen = linen_model(Linen(function, tuple(names), **options), (x,))
    return Trial(linen, nnx_model(Nnx(other or function, names, **options)), Signature(Arguments((x,))))


def pieces(names: str, to: str | None = None) -> list[Piece]:
    """``pieces("ab", "ba")`` takes each for the other."""
    return [Piece((name(a),), (name(b),)) for a, b in zip(names, to or names, strict=True)]


def layers(p: dict[str, Any], x: Any) -> Any:
    return jnp.tanh(x @ p["a"]) @ p["b"]


def test_the_right_one_passes_and_the_wrong_one_does_not():
    assert trial(layers).confirm(pieces("ab")) == ""
    assert "the largest difference is" in trial(layers).confirm(pieces("ab", "ba"))


def test_one_trial_judges_many():
    judge = trial(layers)
    assert [bool(judge.confirm(pieces("ab", to))) for to in ("ba", "ab", "ba", "ab")] == [True, False, True, False]


def branch(p: dict[str, Any], x: Any) -> Any:
    return x + 1e-6 * layers(p, x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_little_is_enough_to_tell_them_apart(dtype: Any):
    """In float32 the difference is that of a rounding, in bfloat16 it is nothing at all."""
    given = X.astype(dtype)
    assert trial(branch, x=given, dtype=dtype).confirm(pieces("ab")) == ""
    assert trial(branch, x=given, dtype=dtype).confirm(pieces("ab", "ba")) != ""


def cast(p: dict[str, Any], x: Any) -> Any:
    return branch({key: value.astype(jnp.bfloat16) for key, value in p.items()}, x.astype(jnp.bfloat16))


def test_a_model_that_computes_in_another_precision_than_its_parameters():
    assert trial(cast).confirm(pieces("ab")) == ""
    assert trial(cast).confirm(pieces("ab", "ba")) != ""
    assert trial(branch, other=cast).confirm(pieces("ab")) == ""


def test_constants_that_are_rounded_differently_do_not_matter():
    root = float(np.float32(np.sqrt(6)))
    judge = trial(lambda p, x: layers(p, x) / root, other=lambda p, x: layers(p, x) * (1 / np.sqrt(6)))
    assert judge.confirm(pieces("ab")) == ""
    assert judge.confirm(pieces("ab", "ba")) != ""


def attention(p: dict[str, Any], x: Any) -> Any:
    q, k = x @ p["a"] + p["b"][0], x @ p["c"] + p["d"][0]
    return x + 0.01 * jax.nn.softmax(q @ k.T) @ x


def test_biases_of_query_and_key_are_told_apart():
    assert trial(attention, "abcd").confirm(pieces("abcd")) == ""
    assert trial(attention, "abcd").confirm(pieces("abcd", "adcb")) != ""
    assert trial(attention, "abcd").confirm(pieces("abcd", "cbad")) != ""


def test_outputs_of_different_structure():
    objection = trial(layers, other=lambda p, x: (layers(p, x), 1)).confirm(pieces("ab"))
    assert objection == "the models return different structures: Linen output [2,6], NNX 0 [2,6], 1 int"
    assert "different structures" in trial(layers, other=lambda p, x: layers(p, x)[:1]).confirm(pieces("ab"))


def test_outputs_that_are_no_arrays_must_be_equal():
    def returning(what: Any) -> Function:
        return lambda p, x: {"y": layers(p, x), "what": what}

    assert trial(returning("text")).confirm(pieces("ab")) == ""
    assert (
        trial(returning("text"), other=returning("other")).confirm(pieces("ab"))
        == "what: 'text' of Linen, 'other' of NNX"
    )


@pytest.mark.parametrize("function", [lambda p, x: layers(p, x) * jnp.nan, lambda p, x: None, lambda p, x: "text"])
def test_outputs_without_any_number_tell_nothing(function: Function):
    assert trial(function).confirm(pieces("ab")) == "they return no numbers for random values"


def test_not_a_number_for_negative_values_is_no_obstacle():
    function: Function = lambda p, x: layers({k: jnp.sqrt(v) for k, v in p.items()}, x)
    assert trial(function).confirm(pieces("ab")) == ""
    assert trial(function).confirm(pieces("ab", "ba")) != ""


def test_infinities_at_the_same_places_are_equal():
    function: Function = lambda p, x: jnp.where(jnp.eye(2, 6) > 0, -jnp.inf, layers(p, x))
    assert trial(function).confirm(pieces("ab")) == ""
    assert trial(function).confirm(pieces("ab", "ba")) != ""
    assert trial(function, other=layers).confirm(pieces("ab")) != ""


@pytest.mark.parametrize("x", [jnp.zeros((2, 6)), jnp.ones((2, 6))])
def test_inputs_that_hide_what_they_meet(x: Any):
    """Zeros are what models are usually initialised with."""
    function: Function = lambda p, x: x @ p["a"] + p["b"][0]
    assert trial(function, x=x).confirm(pieces("ab")) == ""
    assert trial(function, x=x).confirm(pieces("ab", "ba")) != ""


def test_two_equal_inputs_are_told_apart():
    linen = linen_model(Linen(lambda p, xy: p["a"][xy[0]] * p["b"][xy[1]], tuple("ab")), ([jnp.arange(3)] * 2,))
    module = nnx_model(Nnx(lambda p, xy: p["a"][xy[0]] * p["b"][xy[1]], "ab"))
    judge = Trial(linen, module, Signature(Arguments(([jnp.arange(3)] * 2,))))
    assert judge.confirm(pieces("ab")) == ""
    assert judge.confirm(pieces("ab", "ba")) != ""


def test_copies_of_one_array_are_given_equal_values():
    """What is two arrays in Linen and one in NNX has to be equal, or nothing could be compared."""
    linen = linen_model(Linen(lambda p, x: layers({"a": p["a"], "b": p["b"].T}, x), tuple("ab")), (X,))
    module = nnx_model(Nnx(lambda p, x: layers({"a": p["a"], "b": p["a"]}, x), "a"))
    judge = Trial(linen, module, Signature(Arguments((X,))))
    assert judge.confirm([Piece((name("a"), name("b")), (name("a"),), Agree((REWRAP, Transpose())))]) == ""
    assert judge.confirm([Piece((name("a"), name("b")), (name("a"),), Agree((REWRAP, REWRAP)))]) != ""


def test_what_has_no_place_in_nnx_is_zero():
    linen = linen_model(Linen(lambda p, x: x @ p["a"] + p["b"][0], tuple("ab")), (X,))
    judge = Trial(linen, nnx_model(Nnx(lambda p, x: x @ p["a"], "a")), Signature(Arguments((X,))))
    assert judge.confirm(pieces("a")) == ""


def test_what_nnx_lacks_a_value_for_is_named():
    assert trial(layers).confirm(pieces("a")) == "nothing is known of b"


@pytest.mark.parametrize(("linen", "other"), [(True, False), (False, True)])
def test_calls_that_fail(linen: bool, other: bool):
    def failing(p: dict[str, Any], x: Any) -> Any:
        raise ValueError("no such luck")

    judge = trial(layers, other=failing if other else None)
    if linen:
        object.__setattr__(judge._linen.module, "function", failing)
    objection = judge.confirm(pieces("ab"))
    assert "no such luck" in objection
    assert ("Linen" if linen else "NNX") in objection


def test_inside_of_jit_it_is_about_numbers_too():
    judge, found = trial(layers), []

    @jax.jit
    def traced(x: Any) -> Any:
        found.append(judge.confirm(pieces("ab")))
        found.append(judge.confirm(pieces("ab", "ba")))
        found.append(judge.silent([[name("a")], [name("b")]]))
        return x

    traced(X)
    assert found[0] == ""
    assert found[1] != ""
    assert found[2] == frozenset()


# What the outputs depend on ------------------------------------------------------------------------------------------


def silent(function: Function, names: str = "ab", **options: Any) -> set[str]:
    judge = trial(function, names, **options)
    assert judge.confirm(pieces(names)) == ""
    return {names[position] for position in judge.silent([[name(letter)] for letter in names])}


SILENT: dict[str, tuple[Function, str]] = {
    "everything counts": (layers, ""),
    "one is never used": (lambda p, x: x @ p["a"], "b"),
    "all is zero": (lambda p, x: layers(p, x) * 0, "ab"),
    "a bias of keys": (attention, "d"),
    "a rectifier that lets something through": (lambda p, x: nn.relu(x @ p["a"] - 0.5) @ p["b"], ""),
    "a rectifier that lets nothing through": (lambda p, x: nn.relu(-jnp.abs(x @ p["a"]) - 1) @ p["b"], "ab"),
    "no gradient": (lambda p, x: jax.lax.stop_gradient(x @ p["a"]) @ p["b"], ""),
    "steps": (lambda p, x: jnp.round(9 * layers(p, x)), ""),
    "a loop without length": (
        lambda p, x: jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, layers(p, s[1])), (0, x))[1],
        "",
    ),
    "whole numbers": (lambda p, x: jnp.argmax(layers(p, x), 1), "ab"),
    "whole numbers beside others": (lambda p, x: (jnp.argmax(x @ p["a"], 1), x @ p["b"]), "a"),
    "very little": (lambda p, x: x @ p["a"] + 1e-6 * (x @ p["b"]), ""),
    "next to nothing": (lambda p, x: x @ p["a"] + 1e-12 * (x @ p["b"]), "b"),
}


@pytest.mark.parametrize("case", SILENT)
def test_what_the_outputs_do_not_depend_on(case: str):
    function, wanted = SILENT[case]
    assert silent(function, "abcd" if function is attention else "ab") == set(wanted)


def test_a_group_counts_as_soon_as_one_of_it_does():
    judge = trial(attention, "abcd")
    assert judge.confirm(pieces("abcd")) == ""
    assert judge.silent([[name("c"), name("d")], [name("d")]]) == {1}


def callback(p: dict[str, Any], x: Any) -> Any:
    y = layers(p, x)
    return jax.pure_callback(lambda a: np.asarray(a) * 2, jax.ShapeDtypeStruct(y.shape, y.dtype), y)


def test_what_cannot_run_in_double_precision_is_compared_as_it_is_and_believed_less():
    judge = trial(callback)
    assert judge.confirm(pieces("ab")) == ""
    assert judge.silent([[name("a")], [name("b")]]) == {0, 1}
    assert judge.confirm(pieces("ab", "ba")) != ""
