"""Stacks: blocks one after the other, as a loop or as a scan."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import linen as nn
from flax import nnx

from tests.parity.blocks import LinenBlock, NnxBlock
from tests.parity.truth import LAYERS, numbered


class LinenLoop(nn.Module):
    block: Callable[[], nn.Module] = LinenBlock
    length: int = LAYERS

    def setup(self) -> None:
        self.layers = [self.block() for _ in range(self.length)]

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


class NnxLoop(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, block: Callable[..., nnx.Module] = NnxBlock, length: int = LAYERS) -> None:
        self.layers = nnx.List(block(rngs=rngs) for _ in range(length))

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


class LinenScan(nn.Module):
    """Blocks as one scanned module.

    Attributes:
      axis: where the layers are in ``params``; None where all layers share them. In other collections it is axis 0.
      remat: whether activations are computed again in the backward pass.
    """

    block: Callable[[], nn.Module] = LinenBlock
    length: int = LAYERS
    axis: int | None = 0
    remat: bool = False

    def setup(self) -> None:
        self.layers = self.block()

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(layer: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return layer(x), None

        shared = self.axis is None
        scan = nn.scan(
            nn.remat(step) if self.remat else step,
            variable_axes={"batch_stats": 0, "cache": 0} | ({} if shared else {"params": self.axis}),
            variable_broadcast="params" if shared else False,
            split_rngs={"params": not shared},
            length=self.length,
        )
        return scan(self.layers, x, None)[0]


def state_axes(axis: int | None) -> nnx.StateAxes:
    return nnx.StateAxes({nnx.Param: axis, ...: 0})


def nnx_stacked(
    block: Callable[..., nnx.Module], rngs: nnx.Rngs, length: int = LAYERS, axis: int | None = 0
) -> nnx.Module:
    """Many modules in one: each leaf has an axis for them, in Params ``axis`` (None: shared), in others axis 0."""
    shared = axis is None
    make = nnx.vmap(
        lambda rngs: block(rngs=rngs), in_axes=None if shared else 0, out_axes=state_axes(axis), axis_size=length
    )
    return make(rngs) if shared else nnx.split_rngs(splits=length)(make)(rngs)


class NnxScan(nnx.Module):
    """As ``LinenScan``."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        block: Callable[..., nnx.Module] = NnxBlock,
        length: int = LAYERS,
        axis: int | None = 0,
        remat: bool = False,
    ) -> None:
        self.layers = nnx_stacked(block, rngs, length, axis)
        self.length = length
        self.axis = axis
        self.remat = remat

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(layer: nnx.Module, x: jax.Array) -> jax.Array:
            return layer(x)

        scan = nnx.scan(
            nnx.remat(step) if self.remat else step,
            in_axes=(state_axes(self.axis), nnx.Carry),
            out_axes=nnx.Carry,
            length=self.length,
        )
        return scan(self.layers, x)


LINEN_LAYERS = numbered("params/layers_")
NNX_LAYERS = numbered("layers/")
