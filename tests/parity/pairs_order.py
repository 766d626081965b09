"""Pairs whose names tell nothing and whose layers are defined, or used, in another order."""

from __future__ import annotations

import jax
from flax import linen as nn
from flax import nnx

from tests.parity.blocks import BLOCK, LinenBlock, LinenCompactBlock, NnxBlock, NnxRenamedBlock, compact_block
from tests.parity.pair import Pair
from tests.parity.truth import CLASSES, DENSE, HIDDEN, WIDTH, pair, rows, same


class LinenMixedOrder(nn.Module):
    """Auto names at every level; modules are numbered as they are made, and used in another order."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        class_head, gate, trunk = nn.Dense(CLASSES), nn.Dense(HIDDEN), nn.Dense(HIDDEN)
        block = LinenCompactBlock()
        hidden = trunk(LinenCompactBlock()(block(x)))
        return class_head(nn.sigmoid(gate(x)) * hidden)


class NnxMixedOrder(nnx.Module):
    """What ``LinenMixedOrder`` computes; nothing in names or order is the same."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.zoom = NnxRenamedBlock(rngs)
        self.projection = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.attic = NnxRenamedBlock(rngs)
        self.answer = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)
        self.filter = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.projection(self.attic(self.zoom(x)))
        return self.answer(nnx.sigmoid(self.filter(x)) * hidden)


class LinenBranches(nn.Module):
    """Two branches of the same shapes: the one defined last runs first."""

    def setup(self) -> None:
        self.left = LinenBlock()
        self.right = LinenBlock()

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        right = self.right(x)
        return self.left(x), right


class NnxBranches(nnx.Module):
    """``b`` is Linen's left branch, ``a`` the right one."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.b = NnxBlock(rngs)
        self.a = NnxBlock(rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        left = self.b(x)
        return left, self.a(x)


class LinenGates(nn.Module):
    """Two layers of the same shape in one product, of which only one passes a sigmoid."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        value = nn.Dense(HIDDEN)(x)
        gate = nn.Dense(HIDDEN)(x)
        return nn.Dense(WIDTH)(nn.sigmoid(gate) * value)


class NnxGates(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.gate = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.output = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.value = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = nnx.sigmoid(self.gate(x))
        return self.output(gate * self.value(x))


PAIRS: list[Pair] = [
    pair(
        "renamed_and_reordered",
        LinenMixedOrder,
        NnxMixedOrder,
        rows,
        same("params/Dense_0", "answer", DENSE),
        same("params/Dense_1", "filter", DENSE),
        same("params/Dense_2", "projection", DENSE),
        compact_block("LinenCompactBlock_0", "zoom"),
        compact_block("LinenCompactBlock_1", "attic"),
    ),
    pair(
        "branches_called_in_another_order",
        LinenBranches,
        NnxBranches,
        rows,
        same("params/left", "b", BLOCK),
        same("params/right", "a", BLOCK),
    ),
    pair(
        "gates_defined_in_another_order",
        LinenGates,
        NnxGates,
        rows,
        same("params/Dense_0", "value", DENSE),
        same("params/Dense_1", "gate", DENSE),
        same("params/Dense_2", "output", DENSE),
    ),
]
