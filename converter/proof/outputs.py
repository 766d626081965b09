"""Comparing what both models return, and finding out what it depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converter.dtypes import described
from converter.proof.calls import Outputs
from converter.proof.values import is_inexact
from converter.rules.matching.evidence import Measured

TOLERANCE: Mapping[str, float] = {"float64": 1e-5, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
"""Largest accepted difference, relative to the largest output, where models run in the precision they were written for.
Eager layers agree bit for bit; compiled loops and fused matrix products differ in the last bits."""

LIMITS = 1e-10, 1e-6
"""Largest differences of outputs computed in double precision, relative to the largest number: where both models do
the same arithmetic, and where they were given constants that are rounded differently (a division by the square root of
8 in the one, a multiplication by 0.35355338 in the other)."""

MARGIN = 100
"""How much further than that limit a variable has to move the outputs to be told from another one."""


def as_numpy(outputs: Outputs) -> Outputs:
    """The same with NumPy arrays, which stay what they are whatever becomes of JAX's own."""
    return {name: _array(value) if hasattr(value, "dtype") else value for name, value in outputs.items()}


def _array(value: Any) -> Any:
    import jax
    import numpy as np

    is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)


def limit_of(outputs: Outputs) -> float:
    """The largest difference where outputs are computed in the precision that the models were written for."""
    import numpy as np

    return max(TOLERANCE.get(value.dtype.name, 0.0) for value in outputs.values() if isinstance(value, np.ndarray))


def tells(outputs: Outputs) -> bool:
    """Whether there is any number in them."""
    import numpy as np

    return any(np.isfinite(_wide(value)).any() for value in outputs.values() if isinstance(value, np.ndarray))


def disagreement(left: Outputs, right: Outputs, limit: float) -> str:
    """How the outputs of Linen (left) and NNX differ by more than the limit; empty if they do not."""
    import numpy as np

    if [(name, np.shape(value)) for name, value in left.items()] != [(n, np.shape(v)) for n, v in right.items()]:
        return f"the models return different structures: Linen {_described(left)}, NNX {_described(right)}"
    for name, value in left.items():
        if not isinstance(value, np.ndarray):
            if repr(value) != repr(right[name]):
                return f"{name}: {value!r} of Linen, {right[name]!r} of NNX"
            continue
        gap, scale = gap_and_scale(value, right[name])
        if gap > limit * scale:
            return f"{name} {_shape(value)}: the largest difference is {gap:.3g}, the largest number {scale:.3g}"
    return ""


def gaps(left: Outputs, right: Outputs, limit: float) -> list[Measured]:
    """How far the arrays among the outputs of Linen (left) and NNX are apart, for a limit relative to their size."""
    import numpy as np

    found = []
    for name, value in left.items():
        if isinstance(value, np.ndarray):
            gap, scale = gap_and_scale(value, right[name])
            found.append(Measured(name, described(value), gap, limit * scale))
    return found


def gap_and_scale(left: Any, right: Any) -> tuple[float, float]:
    """The largest difference, and the largest number."""
    import numpy as np

    a, b = _wide(left), _wide(right)
    # Where both are NaN, or the same infinity, there is no difference; where only one is, it is infinite.
    with np.errstate(invalid="ignore"):
        gaps = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    gaps = np.where(np.isnan(gaps), np.inf, gaps)
    return float(gaps.max(initial=0.0)), float(np.abs(a[np.isfinite(a)]).max(initial=0.0))


def _wide(value: Any) -> Any:
    import numpy as np

    return value.astype(np.complex128 if value.dtype.kind == "c" else np.float64)


def _described(outputs: Outputs) -> str:
    return ", ".join(f"{name} {_shape(value)}" for name, value in outputs.items()) or "nothing"


def _shape(value: Any) -> str:
    import numpy as np

    return f"[{','.join(map(str, value.shape))}]" if isinstance(value, np.ndarray) else type(value).__name__


# What outputs depend on ----------------------------------------------------------------------------------------------


def weights(outputs: Sequence[Any]) -> list[Any]:
    """Factors for a sum over all outputs in which each output counts alike, and no two numbers do."""
    import numpy as np

    generator = np.random.default_rng(0)
    found = []
    for output in outputs:
        value = np.asarray(output)
        finite = np.isfinite(value)
        scale = float(np.abs(value[finite]).max(initial=0.0)) or 1.0
        found.append(np.where(finite, generator.standard_normal(value.shape) / scale, 0.0).astype(value.dtype))
    return found


def real_numbers(outputs: Outputs) -> Outputs:
    """The real and complex numbers among the outputs: the few values that integers have may agree by chance."""
    return {n: value for n, value in outputs.items() if hasattr(value, "dtype") and is_inexact(value.dtype)}


def largest(gradient: Any) -> float:
    """The largest derivative; NaN, which says nothing, counts as zero."""
    import numpy as np

    return float(np.abs(np.nan_to_num(np.asarray(gradient), nan=0.0)).max(initial=0.0))
