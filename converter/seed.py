"""The seed of it all: an ``nnx.Linear`` and an ``nn.Dense`` are two containers around the same two arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


def state_translation(seed: int, x: jax.Array, features: int) -> jax.Array:
    """Translates an ``nnx.Linear`` into an ``nn.Dense`` and runs both on the same input.

    Args:
      seed: seed of the ``nnx.Rngs`` that initialise the layer; anything ``int()`` takes.
      x: input of shape [in_features].
      features: number of outputs; anything ``int()`` takes.

    Returns:
      the sums of the NNX and of the Linen output, of shape [2]; they are equal.
    """
    import jax.numpy as jnp
    from flax import linen as nn
    from flax import nnx

    from converter.memory import nnx_to_linen

    layer = nnx.Linear(x.shape[-1], int(features), rngs=nnx.Rngs(int(seed)))
    graph, state = nnx.split(layer)
    variables = nnx_to_linen(state)
    nnx_out = nnx.merge(graph, state)(x)
    linen_out = nn.Dense(int(features)).apply(variables, x)
    return jnp.array([nnx_out.sum(), linen_out.sum()])
