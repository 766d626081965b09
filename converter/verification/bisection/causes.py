"""Why two modules make unlike things of the same: their settings, or what their own code does between its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from converter.proof.outputs import gap_and_scale

CLOSE = 1e-6
"""How close a number in double precision has to come to what a known function gives; constants may be rounded."""


def relation(left: Any, right: Any, sources: Iterable[tuple[str, Any]]) -> str:
    """How two arrays that should be equal are related to each other, or to arrays that they may be made of.

    Args:
      left, right: Linen's and NNX's.
      sources: what both were made from, with its name; the two models agree on these.
    """
    if getattr(left, "shape", None) != getattr(right, "shape", ()):
        return ""
    for name, source in sources:
        if getattr(source, "shape", ()) == left.shape:
            ours, theirs = _function(source, left), _function(source, right)
            if ours and theirs and ours != theirs:
                return f"{ours} in Linen and {theirs} in NNX, where x is {name}"
    factor = _factor(left, right)
    return f"in NNX {factor:.6g} times what it is in Linen" if factor is not None else ""


def _factor(left: Any, right: Any) -> float | None:
    """The number that one array has to be multiplied with to become the other."""
    import numpy as np

    a, b = np.asarray(left, np.complex128 if left.dtype.kind == "c" else np.float64), np.asarray(right)
    power = float(np.vdot(a, a).real)
    if not np.isfinite(power) or power == 0:
        return None
    factor = float(np.vdot(a, b).real) / power
    return factor if factor and _is_close(factor * a, b) else None


def _function(source: Any, made: Any) -> str:
    """The known function that makes one array of another; "" if there is none."""
    import jax

    with jax.enable_x64(True):
        for name, function in _functions().items():
            if _is_close(jax.device_get(function(source)), made):
                return name
    return ""


def _is_close(left: Any, right: Any) -> bool:
    if left.shape != right.shape:
        return False
    gap, scale = gap_and_scale(left, right)
    return gap <= CLOSE * scale


def _functions() -> Mapping[str, Callable[[Any], Any]]:
    """Activations that are taken for each other."""
    import jax
    import jax.numpy as jnp

    return {
        "x": jnp.asarray,
        "gelu(x, approximate=True)": lambda x: jax.nn.gelu(x, approximate=True),
        "gelu(x, approximate=False)": lambda x: jax.nn.gelu(x, approximate=False),
        "quick_gelu(x)": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "relu(x)": jax.nn.relu,
        "relu(x) squared": lambda x: jnp.square(jax.nn.relu(x)),
        "silu(x)": jax.nn.silu,
        "tanh(x)": jnp.tanh,
        "sigmoid(x)": jax.nn.sigmoid,
        "softplus(x)": jax.nn.softplus,
        "elu(x)": jax.nn.elu,
        "leaky_relu(x)": jax.nn.leaky_relu,
        "hard_swish(x)": jax.nn.hard_swish,
        "softmax(x)": jax.nn.softmax,
    }
