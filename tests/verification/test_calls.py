"""How models are called: ranges, names, methods, selected outputs, seeds and batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from converter import linen_to_nnx, nnx_to_linen, verify_outputs
from converter.calling import Arguments, InputSpec, Side, parse_input
from converter.errors import ConversionRefused, ModelError, UsageError
from converter.tree import array_spec
from converter.verification.differences import difference

NAMES = st.one_of(st.just(""), st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).map(lambda name: f"_{name}"))


@given(NAMES, st.lists(st.integers(0, 9), max_size=4), st.none() | st.integers(1, 10**6), st.booleans())
def test_input_texts_are_read_as_they_are_printed(name: str, shape: list[int], below: int | None, spaces: bool):
    spec = InputSpec(array_spec("int32", shape), below)
    text = str(spec) if spaces else str(spec).replace(" ", "")
    assert parse_input(f"{name}={text}" if name else text) == (name, spec)


@pytest.mark.parametrize(
    "text",
    ["int32[2] < 0", "int32[2] <", "int32[2] < 3 < 4", "bool[2] < 2", "=int32[2]", "a=b=int32[2]", "if=int32[2]"],
)
def test_inputs_that_cannot_be_read(text: str):
    with pytest.raises(UsageError):
        parse_input(text)


@given(st.integers(1, 300), st.sampled_from(["int8", "uint8", "int32", "int4"]), st.integers(0, 3))
def test_integers_stay_in_their_range(below: int, dtype: str, seed: int):
    (found,) = Arguments((InputSpec(array_spec(dtype, (50,)), below),)).drawn(seed).positional
    numbers = np.asarray(found).astype(np.int64)
    assert numbers.min() >= 0
    assert numbers.max() < min(below, int(jnp.iinfo(found.dtype).max) + 1)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 5))
def test_masks_let_something_through_everywhere(rows: int, columns: int, seed: int):
    (mask,) = Arguments((InputSpec(array_spec("bool", (2, rows, columns))),)).drawn(seed).positional
    assert np.asarray(mask).any(-1).all()


def test_a_batch_of_another_size():
    specs = Arguments((InputSpec(array_spec("float32", (3, 2))),), {"mask": InputSpec(array_spec("bool", (3,)))})
    assert specs.with_batch(1) == Arguments(
        (InputSpec(array_spec("float32", (1, 2))),), {"mask": InputSpec(array_spec("bool", (1,)))}
    )
    arrays = Arguments((jnp.arange(2), {"x": jnp.ones((2, 2)), "flag": True})).with_batch(3)
    assert arrays is not None
    assert arrays.positional[0].tolist() == [0, 1, 0]
    assert arrays.positional[1]["flag"] is True
    assert Arguments((jnp.ones((2, 2)), jnp.ones((3, 2)))).with_batch(1) is None
    assert Arguments((jnp.ones(()),)).with_batch(1) is None


class Result(NamedTuple):
    logits: Any
    states: Any


@pytest.mark.parametrize(
    ("path", "expected"),
    [((), "all"), (("logits",), 1), (("0",), 1), (("states", "b"), 2), (("1", "a", "1"), 4)],
)
def test_parts_of_what_is_returned(path: tuple[str, ...], expected: Any):
    returned = Result(1, {"a": [3, 4], "b": 2})
    assert Side(output=path).selected(returned, "Linen") == (returned if expected == "all" else expected)


@pytest.mark.parametrize("path", [("2",), ("states", "c"), ("logits", "shape"), ("states", "a", "-1"), ("_fields",)])
def test_parts_that_are_not_there(path: tuple[str, ...]):
    with pytest.raises(ModelError, match="--linen-output"):
        Side(output=path).selected(Result(jnp.ones(2), {"a": [3, 4], "b": 2}), "Linen")


# Both models ---------------------------------------------------------------------------------------------------------


class LinenTower(nn.Module):
    def setup(self) -> None:
        self.embed, self.first, self.second = nn.Embed(7, 4), nn.Dense(4), nn.Dense(4)

    def encode(self, ids: Any, scale: Any = 1.0) -> Any:
        return {"deep": (self.second(nn.relu(self.first(self.embed(ids)))) * scale,)}

    def __call__(self, ids: Any) -> Any:
        return self.encode(ids)


class NnxTower(nnx.Module):
    """Its modules have other names, so that only the calls tell which is which."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.tokens, self.top, self.bottom = (
            nnx.Embed(7, 4, rngs=rngs),
            nnx.Linear(4, 4, rngs=rngs),
            nnx.Linear(4, 4, rngs=rngs),
        )
        self.parts = nnx.List([self.bottom])

    def represent(self, ids: Any, scale: Any = 1.0) -> Any:
        return self.top(nnx.relu(self.bottom(self.tokens(ids)))) * scale


METHODS: dict[str, Any] = {"linen_method": "encode", "nnx_method": "represent", "linen_output": "deep/0"}


def test_the_same_call_is_traced_tried_and_compared():
    """Pairing by the order of use needs the methods and the output as comparing outputs does; NNX has no __call__."""
    linen, module = LinenTower(), NnxTower()
    inputs = ["int32[2,3]", "scale=float32[2,3,4]"]
    variables = nnx_to_linen(module, linen_module=linen, inputs=inputs, **METHODS)
    np.testing.assert_array_equal(variables["params"]["second"]["kernel"], module.top.kernel.get_value())
    report = verify_outputs(linen, variables, module, inputs, **METHODS)
    assert report.ok
    assert report.outputs is not None
    assert report.outputs.conditions() == "int32[2,3], scale=float32[2,3,4], with 3 seeds and on a batch of 1"
    state = linen_to_nnx(variables, module, linen_module=linen, inputs=inputs, **METHODS)
    np.testing.assert_array_equal(state["top"]["kernel"].get_value(), variables["params"]["second"]["kernel"])


class NnxNamed(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.first, self.second = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)


def test_linen_is_initialised_through_its_own_call():
    linen, module = LinenTower(), NnxNamed()
    call: dict[str, Any] = {"linen_method": "embed", "nnx_method": "embed"}
    with pytest.raises(ConversionRefused, match="first"):
        nnx_to_linen(module, linen_module=linen, inputs=["int32[5]"], **call)
    call["linen_init"] = ["int32[2,3]"]
    variables = nnx_to_linen(module, linen_module=linen, inputs=["int32[5]"], **call)
    assert sorted(variables["params"]) == ["embed", "first", "second"]
    assert verify_outputs(linen, variables, module, ["int32[5]"], **call).ok


def test_token_ids_are_drawn_from_the_smallest_table():
    seen: list[int] = []

    class Watching(NnxTower):
        def represent(self, ids: Any, scale: Any = 1.0) -> Any:
            seen.extend(np.asarray(ids).reshape(-1).tolist())
            return super().represent(ids, scale)

    linen, module = LinenTower(), Watching()
    variables = linen.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert not verify_outputs(linen, variables, module, ["int32[4,50]"], **METHODS, seeds=2).ok
    assert set(seen) == set(range(7))
    seen.clear()
    verify_outputs(linen, variables, module, ["int32[4,50] < 3"], **METHODS, seeds=1)
    assert set(seen) == {0, 1, 2}


def test_given_arrays_change_places_and_the_state_stays():
    seen: list[Any] = []

    class Counting(nnx.Module):
        def __init__(self) -> None:
            self.count = nnx.Variable(jnp.zeros(()))

        def __call__(self, x: Any) -> Any:
            seen.append(np.asarray(x).tolist())
            self.count.set_value(self.count.get_value() + 1)
            return x + self.count.get_value()

    class Linen(nn.Module):
        def __call__(self, x: Any) -> Any:
            return x + 1

    module = Counting()
    report = verify_outputs(Linen(), {}, module, (jnp.arange(8.0),))
    assert report.ok, report.text()
    assert float(module.count.get_value()) == 0
    assert seen[0] == list(range(8))
    assert [sorted(each) for each in seen[1:3]] == [list(range(8))] * 2
    assert seen[1] != seen[2]
    assert seen[3] == [0]


def test_a_call_that_only_the_given_batch_suits_is_noted():
    class Linen(nn.Module):
        def __call__(self, x: Any) -> Any:
            return x.reshape(2, -1, 1) if x.shape[0] == 2 else undefined  # type: ignore[name-defined]  # noqa: F821

    class Nnx(nnx.Module):
        def __call__(self, x: Any) -> Any:
            return x[..., None]

    report = verify_outputs(Linen(), {}, Nnx(), ["float32[2,3]"])
    assert report.ok
    assert "not run on a batch of 1: calling the Linen model failed: NameError" in report.text()


# Distances -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "float8_e5m2"])
@given(start=st.floats(-4, 4), steps=st.integers(1, 5))
def test_units_in_the_last_place_are_counted(dtype: str, start: float, steps: int):
    left = np.array([start, 1.0]).astype(jnp.dtype(dtype))
    bits = left.view(f"i{left.dtype.itemsize}").copy()
    bits[1] += steps
    found = difference("x", left, bits.view(left.dtype))
    assert found.max_ulp == steps
    assert found.max_relative <= 2
    assert difference("x", left, -left).max_ulp == abs(2 * _steps_from_zero(left))


def _steps_from_zero(values: Any) -> int:
    return max(difference("x", each, np.zeros_like(each)).max_ulp or 0 for each in (values[:1], values[1:]))


def test_numbers_of_other_types_have_no_units():
    assert difference("x", np.float32([1]), np.float64([1])).max_ulp is None
    assert difference("x", np.int32([1]), np.int32([2])).max_ulp is None
    assert difference("x", np.float32([np.nan, 1]), np.float32([np.nan, 1])).max_ulp == 0
    assert difference("x", np.float32([1, np.inf]), np.float32([1, 0])).max_relative == 2


def test_the_worst_of_several_runs_counts():
    one = difference("x", np.float32([1]), np.float32([1]))
    other = difference("x", np.float32([4]), np.float32([5]))
    for joined in (one.joined(other), other.joined(one)):
        assert (joined.bitwise, joined.max_abs, joined.limit, joined.max_ulp) == (False, 1, other.limit, other.max_ulp)
