"""How far two outputs may be apart, and the inputs that models are tried with."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from converter.calling import Arguments, InputSpec, Signature
from converter.errors import UsageError
from converter.tree import LeafKind, LeafSpec, array_spec
from converter.verification.outputs import TOLERANCE, OutputDifference, OutputsResult, compare_outputs


class Linen(nn.Module):
    """Returns what the function makes of the input."""

    function: Any

    def __call__(self, x: jax.Array) -> Any:
        return self.function(x)


class Nnx(nnx.Module):
    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, x: jax.Array) -> Any:
        return self.function(x)


def called(*inputs: Any) -> Signature:
    return Signature(Arguments(inputs))


def random_inputs(specs: Any, seed: int = 0) -> tuple[Any, ...]:
    return Arguments(tuple(map(InputSpec, specs))).drawn(seed).positional


def compared(left: Any, right: Any) -> OutputDifference:
    """The one difference of two modules that return these arrays."""
    result = compare_outputs(Linen(lambda x: left), {}, Nnx(lambda x: right), called(jnp.zeros(1)))
    assert result.problem == ""
    (difference,) = result.outputs
    assert result.ok is difference.ok
    return difference


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_limit_is_relative_to_the_largest_output(dtype: str, scale: float):
    left = np.array([scale, -scale / 4, 0.0]).astype(np.dtype(dtype))
    largest = float(np.abs(left.astype(np.float64)).max())
    for factor, ok in ((0.4, True), (3.0, False)):
        right = left.astype(np.float64) + np.array([0.0, factor * TOLERANCE[dtype] * largest, 0.0])
        difference = compared(left, right.astype(np.float64 if dtype == "float64" else np.float32))
        assert difference.ok is ok, (factor, difference)
        assert difference.scale == largest
        assert difference.limit == TOLERANCE[dtype] * largest
        assert not difference.bitwise


def test_a_difference_of_one_step_is_accepted_but_not_called_equal():
    left = jnp.array([1.0, 2.0])
    difference = compared(left, jnp.nextafter(left, jnp.inf))
    assert difference.ok
    assert not difference.bitwise
    assert str(difference).startswith("output float32[2]: max abs difference ")


def test_equal_bits_need_no_tolerance():
    difference = compared(jnp.array([jnp.nan, 1.0]), jnp.array([jnp.nan, 1.0]))
    assert (difference.bitwise, difference.max_abs) == (True, 0.0)
    assert str(difference) == "output float32[2]: bit for bit equal"


def test_coarse_types_are_not_compared_finely():
    left = jnp.linspace(-1, 1, 64).astype(jnp.bfloat16)
    assert compared(left, left * jnp.bfloat16(1.01)).ok
    assert not compared(left, left * jnp.bfloat16(1.1)).ok


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, bool])
def test_whole_numbers_have_to_be_equal(dtype: Any):
    left = jnp.array([0, 1, 1, 0]).astype(dtype)
    assert compared(left, left).ok
    right = left.at[3].set(True)
    assert not compared(left, right).ok
    assert compared(left, right).limit == 0


def test_one_large_output_does_not_hide_an_infinite_difference():
    left = jnp.array([1e30, 1.0])
    assert not compared(left, jnp.array([1e30, jnp.nan])).ok
    assert not compared(left, jnp.array([1e30, jnp.inf])).ok
    assert compared(left, jnp.array([1e30, jnp.nan])).max_abs == np.inf


def test_infinite_outputs_do_not_widen_the_limit():
    left = jnp.array([jnp.inf, 1.0])
    difference = compared(left, jnp.array([jnp.inf, 1.1]))
    assert not difference.ok
    assert difference.scale == 1.0


def test_outputs_of_zero_have_no_room():
    assert not compared(jnp.zeros(2), jnp.full(2, 1e-10)).ok
    assert compared(jnp.zeros(2), -jnp.zeros(2)).ok


def test_empty_outputs_are_equal():
    assert compared(jnp.zeros((0, 2)), jnp.zeros((0, 2))).ok


def test_inputs_and_outputs_in_json():
    result = compare_outputs(Linen(lambda x: {"y": x}), {}, Nnx(lambda x: {"y": x + 1}), called(jnp.zeros((2, 1))))
    found = result.to_json()
    assert json.loads(json.dumps(found)) == found
    replay, divergence = found.pop("replay"), found.pop("divergence")
    assert (replay["max_abs"], replay["low_precision"]) == (1.0, {"linen": "", "nnx": ""})
    assert (divergence["kinds"], divergence["linen"]) == ({"linen": "Linen", "nnx": "Nnx"}, "")
    assert found == {
        "ok": False,
        "inputs": ["float32[2,1]"],
        "runs": ["with seed 1", "with seed 2", "on a batch of 1"],
        "problem": "",
        "notes": [],
        "outputs": [
            {
                "name": "y",
                "spec": "float32[2,1]",
                "max_abs": 1.0,
                "max_relative": found["outputs"][0]["max_relative"],
                "max_ulp": found["outputs"][0]["max_ulp"],
                "limit": found["outputs"][0]["limit"],
                "bitwise": False,
            }
        ],
    }


def test_no_outputs_at_all_are_equal():
    assert OutputsResult((), ()).ok
    assert not OutputsResult((), (), "a problem").ok


# Random inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e5m2", "complex64"])
def test_random_floats(dtype: str):
    (x,) = random_inputs([array_spec(dtype, (40, 2))])
    assert isinstance(x, jax.Array)
    assert (x.dtype.name, x.shape) == (dtype, (40, 2))
    wide = np.asarray(x).astype(np.complex64 if dtype == "complex64" else np.float32)
    assert len(np.unique(wide)) > 10
    assert np.isfinite(wide).all()


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int4", "bool"])
def test_random_integers_suit_any_vocabulary(dtype: str):
    (x,) = random_inputs([array_spec(dtype, (64,))])
    assert x.dtype.name == dtype
    assert set(np.asarray(x).astype(np.int32).tolist()) == {0, 1}


def test_random_inputs_are_the_same_for_the_same_seed():
    specs = [array_spec("float32", (3,)), array_spec("float32", (3,))]
    first, second = random_inputs(specs), random_inputs(specs)
    np.testing.assert_array_equal(first[0], second[0])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], random_inputs(specs, seed=1)[0])


def test_no_inputs():
    assert random_inputs([]) == ()


def test_inputs_that_are_no_numbers():
    with pytest.raises(UsageError):
        random_inputs([LeafSpec(LeafKind.KEY, "threefry2x32")])


def test_ml_dtypes_have_a_tolerance_or_none():
    """Types too coarse for a relative limit have to agree bit for bit."""
    left = np.array([1.0, 2.0]).astype(ml_dtypes.float8_e4m3fn)
    assert compared(left, left).ok
    assert not compared(left, np.array([1.0, 2.25]).astype(ml_dtypes.float8_e4m3fn)).ok
