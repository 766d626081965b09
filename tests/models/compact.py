"""What the tests of this folder call, and call it with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

X = jax.ShapeDtypeStruct((2, 3), jnp.float32)
SEQUENCE = jax.ShapeDtypeStruct((2, 4, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 4), jnp.int32)


class Compact(nn.Module):
    """A Linen module whose compact call is the given function; it is called in the module's name."""

    body: Callable[..., Any]

    @nn.compact
    def __call__(self, *inputs: Any) -> Any:
        return self.body(*inputs)
