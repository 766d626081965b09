"""Where outputs differ, the report names the modules at fault, and what is at fault with them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from converter import linen_to_nnx, nnx_to_linen, verify_outputs
from converter.report import Report
from converter.verification.bisection.causes import relation
from converter.verification.bisection.settings import differing, settings_of

from .language_models import LinenLanguageModel, NnxLanguageModel

CALL: dict[str, Any] = {"linen_output": "logits", "nnx_output": "1/hidden"}
IDS = ["int32[2,6]"]


def compared(
    linen: nn.Module | None = None, *, seeds: int = 1, train: bool = False, tamper: Any = None, **faults: Any
) -> Report:
    """A sound translation of the parameters, and a model with faults."""
    module = NnxLanguageModel(nnx.Rngs(0), **faults)
    if not train:
        module.eval()
    linen = linen or LinenLanguageModel()
    variables = nnx_to_linen(module, linen_module=linen, inputs=IDS, **CALL)
    if tamper is not None:
        tamper(variables["params"])
    return verify_outputs(linen, variables, module, IDS, seeds=seeds, **CALL)


def place(report: Report) -> tuple[str, str]:
    assert report.outputs is not None
    assert report.outputs.divergence is not None
    return "/".join(report.outputs.divergence.linen), ".".join(report.outputs.divergence.nnx)


@pytest.mark.slow
def test_without_a_fault_nothing_differs():
    report = compared(seeds=3)
    assert report.ok
    assert report.outputs is not None
    assert report.outputs.outputs[0].bitwise
    assert (report.outputs.replay, report.outputs.divergence) == (None, None)
    assert report.outputs.runs == ("with seed 1", "with seed 2", "on a batch of 1")


def swap_query_and_key(params: Any) -> None:
    attn = params["layers_1"]["attn"]
    attn["query"], attn["key"] = attn["key"], attn["query"]


def lose_a_scale(params: Any) -> None:
    params["layers_0"]["norm2"]["scale"] = params["layers_0"]["norm2"]["scale"] * 3


@pytest.mark.parametrize(
    ("options", "where", "cause"),
    [
        pytest.param(
            {"epsilon": 1e-3},
            ("layers_1/norm1", "layers.1.norm1"),
            "epsilon is 1e-06 (Linen) and 0.001 (NNX)",
            marks=pytest.mark.slow,
        ),
        (
            {"approximate": False},
            ("layers_1", "layers.1"),
            "such an input is gelu(x, approximate=True) in Linen and gelu(x, approximate=False) in NNX, "
            "where x is the output of layers_1/up",
        ),
        pytest.param(
            {"swapped": True},
            ("layers_1/attn", "layers.1.attn"),
            "inside, layers_1/attn/out (Linen) and layers.1.attn.out (NNX) are the first to get other inputs",
            marks=pytest.mark.slow,
        ),
        ({"scaled": False}, ("", ""), "such an input is in NNX 0.353553 times what it is in Linen"),
        ({"num_heads": 2}, ("layers_1/attn", "layers.1.attn"), "num_heads is 4 (Linen) and 2 (NNX)"),
        ({"train": True}, ("layers_0/Dropout_0", "layers.0.drop"), "deterministic is True (Linen) and False (NNX)"),
        (
            {"tamper": swap_query_and_key},
            ("layers_1/attn/query", "layers.1.attn.query"),
            "the values of layers_1/attn/query/kernel (Linen) and layers.1.attn.query.kernel (NNX) differ",
        ),
        (
            {"tamper": lose_a_scale},
            ("layers_0/norm2", "layers.0.norm2"),
            "the values of layers_0/norm2/scale (Linen) and layers.0.norm2.scale (NNX) differ",
        ),
    ],
)
def test_a_fault_is_named(options: dict[str, Any], where: tuple[str, str], cause: str):
    report = compared(**options)
    assert not report.ok
    assert place(report) == where
    text = report.text()
    assert cause in text
    assert "no matter of rounding" in text
    assert "inputs agree, outputs differ by" in text
    found = report.to_json()["outputs"]["divergence"]
    assert (found["linen"], found["nnx"]) == where


def test_a_fault_within_the_limits_is_worth_a_remark():
    report = compared(epsilon=7e-6, seeds=3)
    assert report.ok
    assert place(report) == ("layers_1/norm1", "layers.1.norm1")
    assert "epsilon is 1e-06 (Linen) and 7e-06 (NNX)" in report.text()


@pytest.mark.slow
def test_one_side_scans_rematerialised_blocks():
    """The parameters of the second block are the second slices of Linen's; it is the second call of its layers."""
    linen, module = LinenLanguageModel(scanned=True), NnxLanguageModel(nnx.Rngs(0), approximate=False)
    module.eval()
    variables = linen.init(jax.random.key(0), jnp.zeros((2, 6), jnp.int32))
    exact = NnxLanguageModel(nnx.Rngs(0))
    nnx.update(module, linen_to_nnx(variables, exact, linen_module=linen, inputs=IDS, **CALL))
    report = verify_outputs(linen, variables, module, IDS, seeds=1, **CALL)
    assert not report.ok
    assert place(report) == ("layers", "layers.1")
    assert "call 2" in report.text()
    assert "approximate=False" in report.text()


# Low precision -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_low_precision_is_replayed():
    """The limit for bfloat16 would let the other activation pass."""
    low = {"linen": LinenLanguageModel(jnp.bfloat16), "dtype": jnp.bfloat16}
    assert compared(**low).ok
    report = compared(**low, approximate=False)
    assert not report.ok
    assert "replayed in double precision instead of bfloat16: no matter of rounding" in report.text()
    assert place(report) == ("layers_1", "layers.1")


@pytest.mark.slow
def test_rounding_alone_is_no_difference_of_models_of_low_precision():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(400, dtype=jnp.bfloat16, name="a")(x)
            return x.sum(-1).astype(jnp.float32)

    class Nnx(nnx.Module):
        def __init__(self) -> None:
            self.a = nnx.Linear(3, 400, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            x, total = self.a(x), jnp.bfloat16(0)
            for part in jnp.split(x, 20, axis=-1):  # rounds after each of the parts
                total = total + part.sum(-1)
            return total.astype(jnp.float32)

    module = Nnx()
    report = verify_outputs(Linen(), nnx_to_linen(module), module, ["float32[4,3]"])
    assert report.outputs is not None
    assert not all(output.ok for output in report.outputs.outputs)
    assert report.ok
    assert "a matter of rounding" in report.text()


@pytest.mark.slow
def test_a_type_that_only_one_side_states():
    report = compared(dtype=jnp.bfloat16)
    assert not report.ok
    assert place(report) == ("layers_0/up", "layers.0.up")
    assert "dtype is None (Linen) and bfloat16 (NNX)" in report.text()
    assert "a matter of rounding" in report.text()


# What can be told of two modules -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_models_are_as_they_were_after_a_bisection():
    before = NnxLanguageModel.__call__, nnx.Linear.__call__, jax.checkpoint
    module = NnxLanguageModel(nnx.Rngs(0), epsilon=1e-3)
    state = jax.tree.map(jnp.array, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    linen = LinenLanguageModel()
    verify_outputs(linen, nnx_to_linen(module, linen_module=linen, inputs=IDS, **CALL), module, IDS, **CALL)
    assert (NnxLanguageModel.__call__, nnx.Linear.__call__, jax.checkpoint) == before
    assert not hasattr(module.norm, "path_in_the_model")
    after = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState)))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, after))


def test_a_model_that_cannot_be_traced_is_looked_at_as_it_is():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            if float(x.sum()) > 1e9:
                return x
            return nn.LayerNorm(epsilon=1e-2, name="norm")(nn.Dense(4, name="a")(x))

    class Nnx(nnx.Module):
        def __init__(self) -> None:
            self.a, self.norm = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.LayerNorm(4, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.norm(self.a(x)) if float(x.sum()) < 1e9 else x

    module = Nnx()
    report = verify_outputs(Linen(), nnx_to_linen(module), module, [jnp.ones((2, 3))])
    assert "no replay in double precision" in report.text()
    assert place(report) == ("norm", "norm")
    assert "epsilon is 0.01 (Linen) and 1e-06 (NNX)" in report.text()


def test_settings_are_compared_by_what_they_say():
    linen = settings_of(
        {"dtype": jnp.bfloat16, "size": 3, "act": jax.nn.relu, "rate": None, "kernel_init": max, "x": 1}
    )
    other = {"dtype": jnp.dtype("bfloat16"), "size": (3,), "act": jax.nn.gelu, "rate": 0.5, "kernel_init": min}
    assert differing(linen, settings_of(other)) == [("act", "relu", "gelu")]


@pytest.mark.parametrize("name", ["relu", "silu", "tanh"])
def test_functions_are_recognised_by_what_they_make(name: str):
    with jax.enable_x64(True):
        x = jnp.linspace(-3, 3, 50)
        function = {"relu": jax.nn.relu, "silu": jax.nn.silu, "tanh": jnp.tanh}[name]
        arrays = [jax.device_get(each) for each in (function(x), jax.nn.elu(x), x)]
    assert relation(arrays[0], arrays[1], [("x", arrays[2])]) == f"{name}(x) in Linen and elu(x) in NNX, where x is x"
    assert relation(arrays[0], arrays[0] * -2, [("y", arrays[2] + 1)]) == "in NNX -2 times what it is in Linen"
    assert relation(arrays[0], arrays[1] ** 3, []) == ""


def test_statistics_of_the_batch_instead_of_stored_ones():
    """Linen is told in the call, NNX by an attribute."""

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.BatchNorm(name="norm")(nn.Dense(4, name="a")(x), use_running_average=True)

    class Nnx(nnx.Module):
        def __init__(self) -> None:
            self.a, self.norm = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.norm(self.a(x))

    module = Nnx()
    report = verify_outputs(Linen(), nnx_to_linen(module), module, ["float32[4,3]"], seeds=1)
    assert place(report) == ("norm", "norm")
    assert "norm: use_running_average is True (Linen) and False (NNX)" in report.text()
    module.eval()
    assert verify_outputs(Linen(), nnx_to_linen(module), module, ["float32[4,3]"], seeds=1).ok
