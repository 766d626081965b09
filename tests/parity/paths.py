"""What is shared by the pairs of single layers: tolerances, and the ways paths differ."""

from __future__ import annotations

import jax.numpy as jnp

BF16 = jnp.bfloat16

BF16_ROUNDING = 2e-2
"""Where the two frameworks round to bfloat16 at different places of the same formula."""


# The ways paths differ -----------------------------------------------------------------------------------------------


def same(*paths: str) -> dict[str, str]:
    """Leaves that have the same names on both sides; NNX has no level for the collection."""
    return {path: path.partition("/")[2] for path in paths}


KERNEL = same("params/kernel")
KERNEL_BIAS = same("params/kernel", "params/bias")
SCALE = same("params/scale")
SCALE_BIAS = same("params/scale", "params/bias")
STATISTICS = same("batch_stats/mean", "batch_stats/var")
