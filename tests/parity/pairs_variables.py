"""Pairs about variables of one's own, about classes and metadata of variables, and about adapters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.truth import DENSE, HIDDEN, LAYERS, WIDTH, pair, rows, same, under


class Count(nnx.Variable):
    """A collection of one's own."""


class EmaStat(nnx.Variable):
    """Another one."""


class Adapter(nnx.Param):
    """A Param of another class: trained apart from the others, but still among Linen's ``params``."""


class LinenOwnCollections(nn.Module):
    """Counts its calls and averages what it has seen; both show in the output."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        count = self.variable("counter", "count", lambda: jnp.zeros((), jnp.int32))
        average = self.variable("ema_stats", "avg", jnp.zeros, (WIDTH,))
        out = nn.Dense(HIDDEN, name="dense")(x - average.value) * count.value
        if self.is_mutable_collection("counter") and not self.is_initializing():
            count.value = count.value + 1
            average.value = 0.5 * average.value + 0.5 * x.mean(0)
        return out


class NnxOwnVariables(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.count = Count(jnp.zeros((), jnp.int32))
        self.avg = EmaStat(jnp.zeros(WIDTH))
        self.dense = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.dense(x - self.avg[...]) * self.count[...]
        self.count[...] = self.count[...] + 1
        self.avg[...] = 0.5 * self.avg[...] + 0.5 * x.mean(0)
        return out


class LinenOwnParams(nn.Module):
    """Parameters without a layer, one of them a dict of arrays."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def weights(key: jax.Array) -> dict[str, jax.Array]:
            return {"u": jnp.zeros((WIDTH, HIDDEN)), "v": jnp.zeros((HIDDEN, WIDTH))}

        both = self.param("weights", weights)
        shift = self.param("shift", nn.initializers.zeros, (WIDTH,))
        return jnp.tanh((x + shift) @ both["u"]) @ both["v"]


class NnxOwnParams(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.weights = nnx.Param({"u": jnp.zeros((WIDTH, HIDDEN)), "v": jnp.zeros((HIDDEN, WIDTH))})
        self.shift = nnx.Param(jnp.zeros(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        both = self.weights.get_value()
        return jnp.tanh((x + self.shift[...]) @ both["u"]) @ both["v"]


class LinenSubclassed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(HIDDEN)(x * self.param("gain", nn.initializers.ones, (WIDTH,)))


class NnxSubclassed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.gain = Adapter(jnp.ones(WIDTH))
        self.linear = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x * self.gain[...])


Annotate = Callable[..., Callable[..., Any]]


class LinenAnnotated(nn.Module):
    """Sharding names, which put the kernels in boxes."""

    annotate: Annotate

    def setup(self) -> None:
        kernel_init = nn.initializers.lecun_normal()
        self.up = nn.Dense(HIDDEN, kernel_init=self.annotate(kernel_init, ("embed", "mlp")))
        self.down = nn.Dense(WIDTH, kernel_init=self.annotate(kernel_init, ("mlp", "embed")))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.up(x)))


class NnxAnnotated(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        kernel_init = nnx.initializers.lecun_normal()
        up_init = nnx.with_partitioning(kernel_init, ("embed", "mlp"))
        down_init = nnx.with_partitioning(kernel_init, ("mlp", "embed"))
        self.up = nnx.Linear(WIDTH, HIDDEN, kernel_init=up_init, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, kernel_init=down_init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.up(x)))


def without_mesh(make: Callable[..., nnx.Module]) -> Callable[..., nnx.Module]:
    """Sharding names alone, without devices to put anything on."""

    def made(rngs: nnx.Rngs) -> nnx.Module:
        with nnx.use_eager_sharding(False):
            return make(rngs=rngs)

    return made


class LinenAnnotatedScan(nn.Module):
    """The scan adds a name for its axis to the names in the boxes."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scan = nn.scan(
            lambda layer, x, _: (layer(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(LinenAnnotated(nn.with_partitioning, name="layers"), x, None)[0]


class NnxAnnotatedScan(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        named = {nnx.PARTITION_NAME: "layers"}
        make = nnx.vmap(NnxAnnotated, in_axes=0, out_axes=0, transform_metadata=named)
        self.layers = nnx.split_rngs(splits=LAYERS)(make)(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(layer: nnx.Module, x: jax.Array) -> jax.Array:
            return layer(x)

        named = {nnx.PARTITION_NAME: "layers"}
        return nnx.scan(step, in_axes=(0, nnx.Carry), out_axes=nnx.Carry, transform_metadata=named)(self.layers, x)


class LinenLora(nn.Module):
    """Linen has no LoRA of its own; this is how it is written by hand."""

    rank: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.param("lora_a", nn.initializers.normal(), (WIDTH, self.rank))
        b = self.param("lora_b", nn.initializers.zeros, (self.rank, HIDDEN))
        return x @ a @ b + nn.Dense(HIDDEN, name="base")(x)


def nnx_lora(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.LoRA(WIDTH, 2, HIDDEN, base_module=nnx.Linear(WIDTH, HIDDEN, rngs=rngs), rngs=rngs)


MLP = (*under("up", DENSE), *under("down", DENSE))

PAIRS: list[Pair] = [
    pair(
        "custom_collections",
        LinenOwnCollections,
        NnxOwnVariables,
        rows,
        same("params/dense", "dense", DENSE),
        {"counter/count": ("count", None), "ema_stats/avg": ("avg", None)},
        linen_kwargs={"mutable": ["counter", "ema_stats"]},
    ),
    pair(
        "param_holding_a_dict",
        LinenOwnParams,
        NnxOwnParams,
        rows,
        same("params", "", ("weights/u", "weights/v", "shift")),
        by_convention=True,
    ),
    pair(
        "param_of_another_class",
        LinenSubclassed,
        NnxSubclassed,
        rows,
        same("params/Dense_0", "linear", DENSE),
        {"params/gain": ("gain", None)},
    ),
    *(
        pair(
            name,
            functools.partial(LinenAnnotated, annotate),
            without_mesh(NnxAnnotated),
            rows,
            same("params", "", MLP),
            by_convention=True,
        )
        for name, annotate in (
            ("partitioned", nn.with_partitioning),
            ("logically_partitioned", nn.with_logical_partitioning),
        )
    ),
    pair(
        "partitioned_scan",
        LinenAnnotatedScan,
        without_mesh(NnxAnnotatedScan),
        rows,
        same("params/layers", "layers", MLP),
        by_convention=True,
    ),
    pair(
        "lora_base_module",
        LinenLora,
        nnx_lora,
        rows,
        same("params", "", ("lora_a", "lora_b")),
        same("params/base", "base_module", DENSE),
    ),
]
