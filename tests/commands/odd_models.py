"""Factories that are wrong in one way each, for ``odd_models.py:name`` on the command line."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

NUMBER = 3
"""Not callable."""


def raises() -> Any:
    raise ValueError("the weather is bad")


def raises_at_length() -> Any:
    raise ValueError("\n".join(f"line {number}" for number in range(100)))


def leaves() -> Any:
    """As scripts do that parse their arguments, or that end with ``sys.exit(main())``."""
    sys.exit(0)


def nothing() -> None:
    pass


def needs_an_argument(size: int) -> Any:
    return nnx.Linear(4, size, rngs=nnx.Rngs(0))


def nnx_wider() -> Any:
    """``nnx_dense`` with another number of features."""
    return nnx.Linear(4, 5, rngs=nnx.Rngs(0))


def linen_wider() -> Any:
    return nn.Dense(5)


class NnxDoubled(nnx.Linear):
    """Holds the same as ``nnx_dense``, and computes something else."""

    def __call__(self, x: Any) -> Any:  # type: ignore[override]
        return 2 * super().__call__(x)


def nnx_doubled() -> Any:
    return NnxDoubled(4, 3, rngs=nnx.Rngs(0))


class NnxPaired(nnx.Linear):
    """Returns two arrays where ``linen_dense`` returns one."""

    def __call__(self, x: Any) -> Any:  # type: ignore[override]
        return super().__call__(x), x


def nnx_paired() -> Any:
    return NnxPaired(4, 3, rngs=nnx.Rngs(0))


def talkative() -> Any:
    """Prints, as user code does."""
    print("building the model")
    return nnx.Linear(4, 3, rngs=nnx.Rngs(0))


def one_array() -> Any:
    """Not a tuple: a single argument may stand alone."""
    return jnp.ones((2, 4))


def text() -> str:
    return "float32[2,4]"


def bad_text() -> list[str]:
    return ["float32"]


class NnxJoined(nnx.Module):
    """Linen would call both of these ``layers_0``."""

    def __init__(self) -> None:
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0))])
        self.layers_0 = nnx.Linear(2, 3, rngs=nnx.Rngs(1))


def nnx_joined() -> Any:
    return NnxJoined()


class NnxWithArray(nnx.Module):
    """One of its arrays is no Variable."""

    def __init__(self) -> None:
        self.dense = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.table = nnx.data(jnp.arange(4.0))


def nnx_with_array() -> Any:
    return NnxWithArray()


def sleeps() -> Any:
    """Tells that it has been called, and lets itself be interrupted."""
    Path("begun").touch()
    for _ in range(3000):
        time.sleep(0.1)


class NnxSleeping(nnx.Linear):
    """Sleeps when it is called, which is after the result has been written."""

    def __call__(self, x: Any) -> Any:  # type: ignore[override]
        sleeps()


def nnx_sleeping() -> Any:
    return NnxSleeping(4, 3, rngs=nnx.Rngs(0))


class LinenTied(nn.Module):
    """The embedding is the output layer too."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        embed = nn.Embed(7, 4, name="embed")
        return embed.attend(nn.Dense(4, name="dense")(embed(tokens)))


class NnxUntied(nnx.Module):
    """Has an output layer of its own."""

    def __init__(self) -> None:
        self.embed = nnx.Embed(7, 4, rngs=nnx.Rngs(0))
        self.dense = nnx.Linear(4, 4, rngs=nnx.Rngs(1))
        self.head = nnx.Linear(4, 7, use_bias=False, rngs=nnx.Rngs(2))

    def __call__(self, tokens: Any) -> Any:
        return self.head(self.dense(self.embed(tokens)))


def linen_tied() -> Any:
    return LinenTied()


def nnx_untied() -> Any:
    return NnxUntied()
