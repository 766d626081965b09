"""When calls use variables, and along which axes scans walk through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from converter.calling import Arguments, Side, Signature
from converter.errors import ModelError
from converter.models import (
    Model,
    Trace,
    linen_model,
    nnx_model,
    nnx_model_from_factory,
    nnx_state_model,
    trace,
)
from converter.paths import format_path
from tests.models.compact import SEQUENCE, TOKENS, Compact, X


class Nnx(nnx.Module):
    """An NNX module that calls the given function with itself."""

    def __init__(self, body: Callable[..., Any], **members: Any) -> None:
        self.body = body
        for name, member in members.items():
            setattr(self, name, member)

    def __call__(self, *inputs: Any) -> Any:
        return self.body(self, *inputs)


def called(inputs: Sequence[Any], **sides: Side) -> Signature:
    return Signature(Arguments(tuple(inputs)), **sides)


def trace_linen(model: Model, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Trace:
    return trace.trace_linen(model, called(inputs, linen=Side(kwargs or {})))


def trace_nnx(model: Model, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Trace:
    return trace.trace_nnx(model, called(inputs, nnx=Side(kwargs or {})))


def linen_trace(module: nn.Module, *inputs: Any, **kwargs: Any) -> Trace:
    model = linen_model(module, inputs, kwargs)
    return checked(model, trace_linen(model, inputs, kwargs))


def nnx_trace(module: nnx.Module, *inputs: Any, **kwargs: Any) -> Trace:
    model = nnx_model(module)
    return checked(model, trace_nnx(model, inputs, kwargs))


def checked(model: Model, trace: Trace) -> Trace:
    """Whatever the model: names are those of its variables, and the positions of all uses are 0, 1, 2 …"""
    names = {(variable.collection, variable.path) for variable in model.variables}
    assert set(trace.uses) <= names
    assert set(trace.scanned) <= names
    assert sorted(sum(trace.uses.values(), ())) == list(range(sum(map(len, trace.uses.values()))))
    assert all(list(positions) == sorted(positions) for positions in trace.uses.values())
    return trace


def text(name: tuple[str, Any]) -> str:
    return f"{name[0]}:{format_path(name[1])}"


def uses(trace: Trace) -> dict[str, tuple[int, ...]]:
    return {text(name): positions for name, positions in trace.uses.items()}


def scanned(trace: Trace) -> dict[str, tuple[int, ...]]:
    return {text(name): axes for name, axes in trace.scanned.items()}


def order(trace: Trace, collection: str = "params") -> list[str]:
    """The variables of a collection in the order of their first uses."""
    found = sorted((positions[0], name[1]) for name, positions in trace.uses.items() if name[0] == collection)
    return [format_path(path) for _, path in found]


# Order of uses -------------------------------------------------------------------------------------------------------


def test_an_mlp_uses_its_variables_in_the_order_of_the_call_not_of_construction():
    def body(x: Any) -> Any:
        last, first = nn.Dense(3, name="last"), nn.Dense(3, name="first")
        return last(nn.relu(nn.Dense(3)(first(x))))

    expected = ["first/kernel", "first/bias", "Dense_0/kernel", "Dense_0/bias", "last/kernel", "last/bias"]
    assert order(linen_trace(Compact(body), X)) == expected

    def call(self: Any, x: Any) -> Any:
        return self.last(nnx.relu(self.middle(self.first(x))))

    rngs = nnx.Rngs(0)
    members = {name: nnx.Linear(3, 3, rngs=rngs) for name in ("last", "middle", "first")}
    assert order(nnx_trace(Nnx(call, **members), X)) == [name.replace("Dense_0", "middle") for name in expected]


def test_twelve_items_of_a_list():
    class Lists(nn.Module):
        def setup(self) -> None:
            self.blocks = [nn.Dense(3, use_bias=False) for _ in range(12)]

        def __call__(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return x

    def call(self: Any, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x

    assert order(linen_trace(Lists(), X)) == [f"blocks_{i}/kernel" for i in range(12)]
    blocks = nnx.List([nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0)) for _ in range(12)])
    assert order(nnx_trace(Nnx(call, blocks=blocks), X)) == [f"blocks/{i}/kernel" for i in range(12)]


def test_variables_that_are_not_used_are_absent():
    def call(self: Any, x: Any) -> Any:
        return self.used(x)

    rngs = nnx.Rngs(0)
    trace = nnx_trace(Nnx(call, used=nnx.Linear(3, 3, rngs=rngs), idle=nnx.Linear(3, 3, rngs=rngs)), X)
    assert uses(trace) == {"params:used/kernel": (0,), "params:used/bias": (1,)}
    assert trace.scanned == {}


def test_a_tied_embedding_is_used_twice():
    class Tied(nn.Module):
        def setup(self) -> None:
            self.emb = nn.Embed(5, 3)
            self.dense = nn.Dense(3, use_bias=False)

        def __call__(self, ids: Any) -> Any:
            return self.emb.attend(self.dense(self.emb(ids)))

    assert uses(linen_trace(Tied(), TOKENS)) == {"params:emb/embedding": (0, 2), "params:dense/kernel": (1,)}

    def call(self: Any, ids: Any) -> Any:
        return self.emb.attend(self.dense(self.emb(ids)))

    rngs = nnx.Rngs(0)
    module = Nnx(call, emb=nnx.Embed(5, 3, rngs=rngs), dense=nnx.Linear(3, 3, use_bias=False, rngs=rngs))
    assert uses(nnx_trace(module, TOKENS)) == {"params:emb/embedding": (0, 2), "params:dense/kernel": (1,)}


def test_one_computation_uses_a_variable_once():
    def body(self: Any, x: Any) -> Any:
        return x + self.w * self.w

    assert uses(nnx_trace(Nnx(body, w=nnx.Param(jnp.ones(3))), X)) == {"params:w": (0,)}


def test_shared_modules_and_variables_have_one_name():
    rngs = nnx.Rngs(0)
    shared = nnx.Linear(3, 3, use_bias=False, rngs=rngs)

    def call(self: Any, x: Any) -> Any:
        return self.a(self.z(x))

    trace = nnx_trace(Nnx(call, z=shared, a=nnx.Sequential(shared, nnx.relu)), X)
    assert uses(trace) == {"params:a/layers/0/kernel": (0, 1)}

    class Shared(nn.Module):
        def setup(self) -> None:
            self.first = nn.Dense(3, use_bias=False)
            self.second = Compact(self.first)

        def __call__(self, x: Any) -> Any:
            return self.second(self.first(x))

    assert uses(linen_trace(Shared(), X)) == {"params:first/kernel": (0, 1)}


# Other names of a variable -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rename",
    [
        lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
        lambda w: w.T.reshape(9)[None].reshape(3, 3),
        jax.lax.stop_gradient,
        jax.jit(lambda w: w.T),
        jax.checkpoint(lambda w: w),
        lambda w: jnp.moveaxis(jnp.broadcast_to(w, (3, 3, 3)), 0, 1).squeeze()[..., None],
        lambda w: jax.lax.optimization_barrier((jnp.zeros(3), w))[1],
        lambda w: jax.lax.cond(True, lambda w: w.T, lambda w: w.T, w),
        lambda w: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1].T.T), (0, w))[1],
        lambda w: jax.lax.scan(lambda c, _: (c.T.T, None), w, None, length=2)[0],
        lambda w: jax.lax.scan(lambda c, x: (c, x[None].squeeze(0)), 0, w)[1],
    ],
)
def test_changes_of_dtype_and_layout_are_no_uses(rename: Callable[[Any], Any]):
    def call(self: Any, x: Any) -> Any:
        w = rename(self.w[...])
        x = self.other[...] * x
        return w * x[0].reshape(3)

    module = Nnx(call, w=nnx.Param(jnp.ones((3, 3))), other=nnx.Param(jnp.ones(3)))
    # Both are used, and the other one first; the same multiplication is the only use of w.
    assert uses(nnx_trace(module, X)) == {"params:other": (0,), "params:w": (1,)}


@pytest.mark.parametrize(
    "compute",
    [
        lambda w: w + 1,
        lambda w: w[:2],
        jax.jit(jnp.exp),
        lambda w: jnp.concatenate([w, w]),
        jax.checkpoint(lambda w: w.sum()),
        lambda w: jax.lax.cond(w[0, 0].astype(bool), lambda: 1, lambda: 2),
        lambda w: jax.lax.while_loop(lambda c: (c < w.T).all(), lambda c: c + 1, jnp.zeros((3, 3))),
        lambda w: jax.lax.while_loop(lambda c: c[0, 0] < 3, lambda c: c + w, jnp.zeros((3, 3))),
        lambda w: jax.lax.scan(lambda c, _: (c @ w, None), jnp.ones((2, 3)), None, length=2)[0],
        lambda w: jax.lax.scan(lambda c, x: (c, x + 1), 0, w)[1],
        lambda w: jax.lax.reduce(w, 0.0, jax.lax.add, (0,)),
    ],
)
def test_computations_are_uses(compute: Callable[[Any], Any]):
    def call(self: Any, x: Any) -> Any:
        return compute(self.w[...]), self.other * x

    module = Nnx(call, w=nnx.Param(jnp.ones((3, 3))), other=nnx.Param(jnp.ones(3)))
    assert uses(nnx_trace(module, X)) == {"params:w": (0,), "params:other": (1,)}


def test_custom_derivatives_are_looked_into():
    @jax.custom_vjp
    def scale(w: Any, x: Any) -> Any:
        return w.T * x[:, None], x

    scale.defvjp(lambda w, x: (scale(w, x), (w, x)), lambda res, g: (g[0], g[1]))

    @jax.custom_jvp
    def shift(w: Any, x: Any) -> Any:
        return jnp.sin(x) + w

    shift.defjvp(lambda primals, tangents: (shift(*primals), tangents[1]))

    def call(self: Any, x: Any) -> Any:
        return scale(self.b[...], x[0])[0] + shift(self.a[...], x[0])

    module = Nnx(call, a=nnx.Param(jnp.ones((3, 3))), b=nnx.Param(jnp.ones((3, 3))))
    assert uses(nnx_trace(module, X)) == {"params:b": (0,), "params:a": (1,)}


def test_each_device_sees_the_same_variable():
    mesh = jax.sharding.AbstractMesh((3,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")

    def call(self: Any, x: Any) -> Any:
        apply = lambda w: jax.lax.scan(lambda c, row: (c + row.sum(), row.T * 2), 0.0, w.swapaxes(0, 1))[1]
        return jax.shard_map(apply, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(self.w[...])

    trace = nnx_trace(Nnx(call, w=nnx.Param(jnp.ones((3, 3, 3)))), X)
    assert (scanned(trace), len(trace.uses)) == ({"params:w": (1,)}, 1)


def test_computing_in_another_dtype_changes_nothing():
    plain, half = (nn.Sequential([nn.Dense(3, dtype=d), nn.LayerNorm(dtype=d)]) for d in (None, jnp.bfloat16))
    expected = ["layers_0/kernel", "layers_0/bias", "layers_1/scale", "layers_1/bias"]
    assert order(linen_trace(plain, X)) == order(linen_trace(half, X)) == expected
    rngs = nnx.Rngs(0)
    for dtype in (None, jnp.bfloat16):
        module = nnx.Sequential(nnx.Linear(3, 3, dtype=dtype, rngs=rngs), nnx.LayerNorm(3, dtype=dtype, rngs=rngs))
        assert order(nnx_trace(module, X)) == [name.replace("_", "/") for name in expected]


def test_remat_and_jit():
    def body(x: Any) -> Any:
        return nn.remat(nn.Dense)(3)(nn.jit(nn.Dense)(3)(nn.Dense(3)(x)))

    layers = ["Dense_0", "JitDense_0", "CheckpointDense_0"]
    assert order(linen_trace(Compact(body), X)) == [f"{at}/{leaf}" for at in layers for leaf in ("kernel", "bias")]

    def call(self: Any, x: Any) -> Any:
        apply = lambda layer, x: layer(x)
        return nnx.remat(apply)(self.a, nnx.jit(apply)(self.b, nnx.jit(apply)(self.c, x)))

    members = {name: nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0)) for name in "abc"}
    assert order(nnx_trace(Nnx(call, **members), X)) == ["c/kernel", "b/kernel", "a/kernel"]


def test_spectral_norm():
    def body(x: Any) -> Any:
        return nn.SpectralNorm(nn.Dense(3))(nn.Dense(3)(x), update_stats=False)

    found = uses(linen_trace(Compact(body), X))
    assert found["params:Dense_1/kernel"] == (0,)
    assert found['batch_stats:SpectralNorm_0/"Dense_0/kernel/u"'] == (2,)
    assert len(found["params:Dense_0/kernel"]) > 1
    assert set(found) == {
        "params:Dense_1/kernel",
        "params:Dense_1/bias",
        'batch_stats:SpectralNorm_0/"Dense_0/kernel/u"',
        "params:Dense_0/kernel",
        "params:Dense_0/bias",
    }

    rngs = nnx.Rngs(0)
    norm = nnx.SpectralNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs)
    found = uses(nnx_trace(norm, X))
    assert {"params:layer_instance/kernel", "batch_stats:batch_stats/('kernel', 'u')"} <= set(found)
    np.testing.assert_array_equal(norm.layer_instance.kernel[...], nnx.Linear(3, 3, rngs=nnx.Rngs(0)).kernel[...])


def test_weight_norm():
    class InSetup(nn.Module):
        def setup(self) -> None:
            self.wn = nn.WeightNorm(nn.Dense(3))

        def __call__(self, x: Any) -> Any:
            return self.wn(x)

    found = uses(linen_trace(InSetup(), X))
    kernel, scale = found["params:wn/layer_instance/kernel"], found['params:wn/"layer_instance/kernel/scale"']
    assert min(kernel) < min(scale) < min(found["params:wn/layer_instance/bias"])

    rngs = nnx.Rngs(0)
    found = uses(nnx_trace(nnx.WeightNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs), X))
    # The scales are Params in some versions of Flax and plain arrays in others.
    (scale,) = {name for name in found if name.endswith("scales/('kernel',)")}
    kernel = found["params:layer_instance/kernel"]
    assert min(kernel) < min(found[scale]) < min(found["params:layer_instance/bias"])


# Scans ---------------------------------------------------------------------------------------------------------------


class Step(nn.Module):
    """All of its variables are vectors of 3 or square matrices."""

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x)), None


class Pure(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        return nn.Dense(3, use_bias=False)(x), None


def lifted(step: Any, length: int = 3, **axes: int) -> Any:
    return nn.scan(step, variable_axes=axes, split_rngs={"params": True}, length=length)


def linen_scan(step: Any, **axes: int) -> nn.Module:
    def body(x: Any) -> Any:
        return lifted(step, **axes)()(nn.Dense(3)(x), None)[0]

    return Compact(body)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_the_axis_of_a_linen_scan_where_shapes_do_not_tell(axis: int):
    trace = linen_trace(linen_scan(Pure, params=axis), X)
    assert scanned(trace) == {"params:ScanPure_0/Dense_0/kernel": (axis % 3,)}
    assert order(trace) == ["Dense_0/kernel", "Dense_0/bias", "ScanPure_0/Dense_0/kernel"]


def test_a_scan_of_length_one():
    trace = linen_trace(Compact(lambda x: lifted(Pure, length=1, params=1)()(x, None)[0]), X)
    assert scanned(trace) == {"params:ScanPure_0/Dense_0/kernel": (1,)}


def test_each_collection_has_its_own_axis():
    trace = linen_trace(linen_scan(Step, params=1, batch_stats=0), X)
    assert scanned(trace) == {
        "params:ScanStep_0/Dense_0/kernel": (1,),
        "params:ScanStep_0/Dense_0/bias": (1,),
        "params:ScanStep_0/BatchNorm_0/scale": (1,),
        "params:ScanStep_0/BatchNorm_0/bias": (1,),
        "batch_stats:ScanStep_0/BatchNorm_0/mean": (0,),
        "batch_stats:ScanStep_0/BatchNorm_0/var": (0,),
    }


@pytest.mark.parametrize(("outer", "inner", "axes"), [(0, 0, (0, 1)), (1, 1, (1, 2)), (2, 0, (2, 0)), (0, 1, (0, 2))])
def test_nested_scans_name_the_outer_axis_first(outer: int, inner: int, axes: tuple[int, int]):
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return lifted(Pure, params=inner)(name="in")(x, None)

    def body(x: Any) -> Any:
        return lifted(nn.remat(Inner), params=outer)(name="out")(x, None)[0]

    trace = linen_trace(Compact(body), X)
    assert scanned(trace) == {"params:out/in/Dense_0/kernel": axes}


def test_remat_scan():
    block = nn.remat_scan(Compact, lengths=(3, 3))(nn.Dense(3, use_bias=False))
    (axes,) = scanned(linen_trace(block, X)).values()
    assert axes == (0, 1)


def test_vmap_is_no_scan():
    def body(x: Any) -> Any:
        return nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=3)(3)(x)

    trace = linen_trace(Compact(body), jax.ShapeDtypeStruct((3, 3, 3), jnp.float32))
    assert trace.scanned == {}
    assert order(trace) == ["VmapDense_0/kernel", "VmapDense_0/bias"]


def nnx_stack(axis: int, layers: int = 3, bias: bool = False) -> nnx.Module:
    axes = nnx.StateAxes({nnx.Param: axis, ...: 0})

    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=(nnx.StateAxes({...: 0}),), out_axes=axes, axis_size=layers)
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return nnx.Linear(3, 3, use_bias=bias, rngs=rngs)

    return make(nnx.Rngs(0))


def nnx_scan(axis: int) -> Callable[..., Any]:
    @nnx.scan(in_axes=(nnx.StateAxes({nnx.Param: axis, ...: 0}), nnx.Carry), out_axes=nnx.Carry)
    def run(layer: Any, x: Any) -> Any:
        return layer(x)

    return run


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_the_axis_of_an_nnx_scan(axis: int):
    def call(self: Any, x: Any) -> Any:
        return self.tail(nnx_scan(axis)(self.stack, x))

    members = {"tail": nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0)), "stack": nnx_stack(axis)}
    trace = nnx_trace(Nnx(call, **members), X)
    assert scanned(trace) == {"params:stack/kernel": (axis % 3,)}
    assert uses(trace) == {"params:stack/kernel": (0,), "params:tail/kernel": (1,)}


def test_a_stack_that_runs_twice_is_used_twice():
    def call(self: Any, x: Any) -> Any:
        for _ in range(2):
            x = nnx_scan(1)(self.stack, x)
        return x

    trace = nnx_trace(Nnx(call, stack=nnx_stack(1)), X)
    assert scanned(trace) == {"params:stack/kernel": (1,)}
    assert uses(trace) == {"params:stack/kernel": (0, 1)}


def test_an_abstract_stack():
    def make() -> nnx.Module:
        return Nnx(lambda self, x: nnx_scan(0)(self.stack, x), stack=nnx_stack(0))

    model = nnx_model_from_factory(make)
    assert scanned(checked(model, trace_nnx(model, [X]))) == {"params:stack/kernel": (0,)}


@pytest.mark.parametrize(
    ("arrange", "axes"),
    [
        (lambda w: w, (0,)),
        (lambda w: jnp.moveaxis(w, -1, 0), (2,)),
        (lambda w: w.astype(jnp.bfloat16).transpose(1, 2, 0), (1,)),
        (lambda w: w[:, None].transpose(2, 1, 0, 3)[:, 0], (1,)),
        (lambda w: w.reshape(3, 1, 3, 1, 3).squeeze((1, 3)).swapaxes(0, 1), (1,)),
        (lambda w: w.reshape(3, 9), (0,)),
        (lambda w: w.reshape(9, 3), None),
        (lambda w: jnp.broadcast_to(w, (4, 3, 3, 3)), None),
        (lambda w: jnp.flip(jax.jit(lambda w: w.swapaxes(0, 2))(w), 0), (2,)),
    ],
)
def test_axes_are_followed_through_changes_of_layout(arrange: Callable[[Any], Any], axes: tuple[int, ...] | None):
    def call(self: Any, x: Any) -> Any:
        return jax.lax.scan(lambda c, w: (c + w.sum(), None), 0.0, arrange(self.w[...]))[0]

    trace = nnx_trace(Nnx(call, w=nnx.Param(jnp.ones((3, 3, 3)))), X)
    assert scanned(trace) == ({} if axes is None else {"params:w": axes})
    assert len(uses(trace)["params:w"]) == 1


def test_an_axis_of_size_one_that_is_repeated_is_not_walked_along():
    def call(self: Any, x: Any) -> Any:
        return jax.lax.scan(lambda c, w: (c + w.sum(), None), 0.0, jnp.broadcast_to(self.w[...], (4, 3)))[0]

    trace = nnx_trace(Nnx(call, w=nnx.Param(jnp.ones((1, 3)))), X)
    assert (scanned(trace), uses(trace)) == ({}, {"params:w": (0,)})


def test_what_a_scan_hands_on_has_its_axis_in_front():
    def total(w: Any) -> Any:
        return jax.lax.scan(lambda c, row: (c + row.sum(), None), 0.0, w)[0]

    def call(self: Any, x: Any) -> Any:
        handed_on = jax.lax.scan(lambda c, slice_: (c, slice_.T.T), 0, self.w[...].swapaxes(0, 1))[1]
        return jax.lax.scan(lambda c, slice_: (c + total(slice_.T), None), 0.0, handed_on)[0]

    trace = nnx_trace(Nnx(call, w=nnx.Param(jnp.ones((3, 3, 3)))), X)
    assert (scanned(trace), uses(trace)) == ({"params:w": (1, 2)}, {"params:w": (0,)})


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell])
def test_a_recurrence_does_not_walk_through_its_cell(cell: Any):
    trace = linen_trace(Compact(lambda x: nn.RNN(cell(3))(nn.Dense(3)(x))), SEQUENCE)
    assert trace.scanned == {}
    assert order(trace)[:2] == ["Dense_0/kernel", "Dense_0/bias"]


def test_an_nnx_recurrence():
    rngs = nnx.Rngs(0)
    model = nnx_model(nnx.RNN(nnx.LSTMCell(3, 3, rngs=rngs), rngs=rngs))
    trace = checked(model, trace_nnx(model, [SEQUENCE]))
    assert {name for name in scanned(trace) if name.startswith("params")} == set()
    assert set(order(trace)) == {format_path(v.path) for v in model.variables if v.collection == "params"}


# Ways to call --------------------------------------------------------------------------------------------------------


def test_batch_statistics_are_made_mutable_where_the_call_needs_it():
    module = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=False)])
    training = {"batch_stats:layers_1/mean", "batch_stats:layers_1/var"}
    assert training <= set(uses(linen_trace(module, X)))
    model = linen_model(module, [X])
    assert training <= set(uses(trace_linen(model, [X], {"mutable": ["batch_stats"]})))
    with pytest.raises(ModelError, match="calling the Linen model failed"):
        trace_linen(model, [X], {"mutable": False, "rngs": {}})


def test_dropout_without_and_with_keys():
    module = nn.Sequential([nn.Dense(3), nn.Dropout(0.5, deterministic=False)])
    model = linen_model(module, [X])
    expected = {"params:layers_0/kernel": (0,), "params:layers_0/bias": (1,)}
    assert uses(trace_linen(model, [X])) == expected
    assert uses(trace_linen(model, [X], {"rngs": {"dropout": jax.random.key(1)}})) == expected

    rngs = nnx.Rngs(0)
    module = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
    found = uses(nnx_trace(module, X))
    assert found.pop("params:layers/0/kernel") == (0,)
    assert found.pop("params:layers/0/bias") == (1,)
    assert {name.split(":")[0] for name in found} == {"RngKey", "RngCount"}
    module.eval()
    assert uses(nnx_trace(module, X)) == expected_in_nnx(expected)


def expected_in_nnx(expected: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name.replace("_", "/"): positions for name, positions in expected.items()}


def test_decoding_with_a_cache():
    token = jax.ShapeDtypeStruct((2, 1, 4), jnp.float32)
    module = nn.MultiHeadDotProductAttention(2, decode=True)
    model = linen_model(module, [jax.ShapeDtypeStruct((2, 5, 4), jnp.float32)])
    linen = checked(model, trace_linen(model, [token]))
    assert order(linen, "cache") == ["cache_index", "cached_key", "cached_value"]

    attention = nnx.MultiHeadAttention(2, 4, decode=True, rngs=nnx.Rngs(0))
    attention.init_cache((2, 5, 4))
    found = nnx_trace(attention, token)
    assert set(order(found, "cache")) == {"cache_index", "cached_key", "cached_value"}
    assert int(attention.cache_index[...]) == 0
    assert order(found) == order(linen)


def test_inputs_may_be_arrays_structs_and_constants_in_pytrees():
    def body(batch: Any, flag: Any) -> Any:
        y = nn.Dense(3)(batch["x"]) if flag == "yes" else batch["x"]
        return y + nn.Embed(5, 3)(batch["ids"])

    inputs = [{"x": jnp.ones((4, 3)), "ids": jax.ShapeDtypeStruct((4,), jnp.int32)}, "yes"]
    concrete = [{"x": jnp.ones((4, 3)), "ids": jnp.zeros(4, jnp.int32)}, "yes"]
    model = linen_model(Compact(body), concrete)
    expected = ["Dense_0/kernel", "Dense_0/bias", "Embed_0/embedding"]
    assert order(trace_linen(model, inputs, {})) == order(trace_linen(model, concrete)) == expected


def test_what_a_model_returns_beside_arrays_does_not_matter():
    class Output:
        pass

    def call(self: Any, x: Any) -> Any:
        return {"y": self.layer(x), "text": "fine", "object": Output(), "none": None}

    module = Nnx(call, layer=nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
    assert order(nnx_trace(module, X)) == ["layer/kernel", "layer/bias"]


def test_the_module_itself_is_left_as_it_was():
    class Counting(nnx.Module):
        def __init__(self) -> None:
            self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
            self.calls = 0

        def __call__(self, x: Any) -> Any:
            self.calls += 1
            return self.norm(x)

    module = Counting()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module)))
    found = uses(nnx_trace(module, X))
    assert {"batch_stats:norm/mean", "batch_stats:norm/var"} <= set(found)
    assert module.calls == 0
    assert not module.norm.use_running_average
    after = nnx.to_pure_dict(nnx.state(module))
    jax.tree.map(np.testing.assert_array_equal, before, after)


class OnlyEvaluates(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(3, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x: Any) -> Any:
        return self.dropout(self.layer(x))


def test_a_module_that_can_only_be_evaluated():
    module = OnlyEvaluates(nnx.Rngs(0))
    assert order(nnx_trace(module, X)) == ["layer/kernel", "layer/bias"]
    assert not module.dropout.deterministic
    model = nnx_model_from_factory(OnlyEvaluates)
    assert order(trace_nnx(model, [X], {})) == ["layer/kernel", "layer/bias"]


def test_variables_with_sharding_need_no_mesh():
    init = nn.with_partitioning(nn.initializers.zeros, ("in", "out"))
    assert order(linen_trace(nn.Dense(3, kernel_init=init), X)) == ["kernel", "bias"]

    def make(rngs: nnx.Rngs) -> nnx.Module:
        init = nnx.with_partitioning(nnx.initializers.zeros, ("in", "out"))
        return nnx.Linear(3, 3, kernel_init=init, rngs=rngs)

    def call(self: Any, x: Any) -> Any:
        self.seen = nnx.Intermediate(x, out_sharding=("batch", None))
        return self.layer(x)

    model = nnx_model_from_factory(lambda: Nnx(call, layer=make(nnx.Rngs(0)), seen=nnx.data(None)))
    assert order(trace_nnx(model, [X])) == ["layer/kernel", "layer/bias"]


def test_variables_that_hold_pytrees_and_arrays_that_are_no_variables():
    def call(self: Any, x: Any) -> Any:
        held = self.pair.get_value()
        return x * held["b"] + self.plain + held["a"][0]

    module = Nnx(call, pair=nnx.Param({"a": [jnp.ones(3)], "b": jnp.ones(3)}), plain=jnp.ones(3))
    assert uses(nnx_trace(module, X)) == {"params:pair/b": (0,), ":plain": (1,), "params:pair/a/0": (2,)}


def test_nothing_is_allocated():
    side = 1 << 20  # a matrix of 4 TB

    class Big(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(3)(nn.Dense(side)(nn.Dense(side)(x)))

    assert len(order(linen_trace(Big(), X))) == 6

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return nnx.Sequential(nnx.Linear(3, side, rngs=rngs), nnx.Linear(side, side, rngs=rngs))

    model = nnx_model_from_factory(make)
    assert len(order(trace_nnx(model, [X]))) == 4


def test_calls_that_fail():
    wrong = jax.ShapeDtypeStruct((2, 7), jnp.float32)
    with pytest.raises(ModelError, match="calling the Linen model failed"):
        trace_linen(linen_model(nn.Dense(3), [X]), [wrong])
    with pytest.raises(ModelError, match="calling the NNX model failed"):
        trace_nnx(nnx_model(nnx.Linear(3, 3, rngs=nnx.Rngs(0))), [wrong])
    state = nnx.state(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(ModelError, match="a state cannot be called"):
        trace_nnx(nnx_state_model(state), [X])
