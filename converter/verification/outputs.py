"""Do both frameworks compute the same? Runs the two models on the same inputs in one process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter import user_code
from converter.errors import UsageError
from converter.pytrees import pytree_path
from converter.tree import LeafKind, LeafSpec, format_path, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

if TYPE_CHECKING:
    from flax import linen, nnx

TOLERANCE: Mapping[str, float] = {"float64": 1e-5, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
"""Largest accepted difference, relative to the largest output. Eager layers agree bit for bit; compiled loops and
fused matrix products differ in the last bits."""


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """How far one output of the two models is apart.

    Attributes:
      name: the path of the output in the returned pytree, "output" for a single array.
      spec: shape and dtype of Linen's output.
      max_abs: the largest absolute difference.
      scale: the largest absolute value of Linen's output.
      limit: what ``max_abs`` may be.
      bitwise: whether all bits are equal.
    """

    name: str
    spec: str
    max_abs: float
    scale: float
    limit: float
    bitwise: bool

    @property
    def ok(self) -> bool:
        return self.bitwise or self.max_abs <= self.limit

    def __str__(self) -> str:
        if self.bitwise:
            return f"{self.name} {self.spec}: bit for bit equal"
        return f"{self.name} {self.spec}: max abs difference {self.max_abs:.3g} (limit {self.limit:.3g})"


@dataclass(frozen=True, slots=True)
class OutputsResult:
    """The outcome of running both models; ``problem`` says why outputs could not be compared at all."""

    inputs: tuple[str, ...]
    outputs: tuple[OutputDifference, ...]
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem and all(output.ok for output in self.outputs)

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "inputs": list(self.inputs),
            "problem": self.problem,
            "outputs": [
                {"name": o.name, "spec": o.spec, "max_abs": o.max_abs, "limit": o.limit, "bitwise": o.bitwise}
                for o in self.outputs
            ],
        }


def compare_outputs(
    linen_module: linen.Module,
    variables: Mapping[str, Any],
    nnx_module: nnx.Module,
    inputs: Sequence[Any],
    linen_kwargs: Mapping[str, Any] | None = None,
    nnx_kwargs: Mapping[str, Any] | None = None,
) -> OutputsResult:
    """Calls ``linen_module.apply(variables, *inputs, **linen_kwargs)`` and ``nnx_module(*inputs, **nnx_kwargs)``.

    The NNX module is called as it is, and its state may change as in any call; ``mutable`` among ``linen_kwargs`` works
    as in ``apply``, and the mutated collections are not compared.

    Raises:
      ModelError: one of the two calls fails.
    """
    linen_kwargs, nnx_kwargs = dict(linen_kwargs or {}), dict(nnx_kwargs or {})
    left = user_code.call("calling the Linen model", linen_module.apply, variables, *inputs, **linen_kwargs)
    # flax.linen.Module.apply returns a pair unless mutable is False, even for an empty list.
    if linen_kwargs.get("mutable", False) is not False:
        left = left[0]
    right = user_code.call("calling the NNX model", nnx_module, *inputs, **nnx_kwargs)
    described = tuple(_described(x) for x in inputs)
    left_leaves, right_leaves = _leaves(left), _leaves(right)
    if [(p, a.shape) for p, a in left_leaves] != [(p, a.shape) for p, a in right_leaves]:
        return OutputsResult(
            described,
            (),
            "the models return different structures: " + f"Linen {_shapes(left_leaves)}, NNX {_shapes(right_leaves)}",
        )
    pairs = zip(left_leaves, right_leaves, strict=True)
    return OutputsResult(described, tuple(_difference(name, a, b) for (name, a), (_, b) in pairs))


def _leaves(outputs: Any) -> list[tuple[str, np.ndarray[Any, Any]]]:
    import jax

    leaves = jax.tree_util.tree_flatten_with_path(outputs)[0]
    return [(format_path(pytree_path(keys)) or "output", _array(leaf)) for keys, leaf in leaves]


def _array(leaf: Any) -> np.ndarray[Any, Any]:
    import jax
    import numpy as np

    is_key = hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _difference(name: str, left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> OutputDifference:
    import numpy as np

    if not {left.dtype.kind, right.dtype.kind}.isdisjoint("USO"):  # texts and other objects among the outputs
        equal = bool(np.array_equal(left, right))
        return OutputDifference(name, _described(left), 0.0 if equal else np.inf, 0.0, 0.0, equal)
    bitwise = left.dtype == right.dtype and left.tobytes() == right.tobytes()
    wide = np.complex128 if left.dtype.kind == "c" else np.float64
    a, b = left.astype(wide), right.astype(wide)
    # Where both are NaN, or the same infinity, there is no difference; where only one is, it is infinite.
    with np.errstate(invalid="ignore"):
        gaps = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    gaps = np.where(np.isnan(gaps), np.inf, gaps)
    finite = np.abs(a[np.isfinite(a)])
    scale = float(finite.max()) if finite.size else 0.0
    limit = TOLERANCE.get(left.dtype.name, 0.0) * max(scale, 1e-30)
    return OutputDifference(name, _described(left), float(gaps.max()) if gaps.size else 0.0, scale, limit, bitwise)


def random_inputs(specs: Sequence[LeafSpec], seed: int = 0) -> tuple[Any, ...]:
    """Inputs of the given shapes and dtypes: standard normal floats; zeros and ones for integers and booleans, which
    are in range for any vocabulary.

    Raises:
      UsageError: a dtype that is no number.
    """
    import jax.numpy as jnp
    import numpy as np

    generator = np.random.default_rng(seed)
    made = []
    for spec in specs:
        dtype = numpy_dtype(spec.dtype) if spec.kind is LeafKind.ARRAY else None
        if dtype is not None and (jnp.issubdtype(dtype, jnp.integer) or dtype.kind == "b"):
            make: Callable[..., Any] = functools.partial(generator.integers, 0, 2)
        elif dtype is not None and jnp.issubdtype(dtype, jnp.inexact):
            make = generator.standard_normal
        else:
            raise UsageError(f"cannot make random inputs of {spec}", "Give them with --inputs SPEC.")
        try:
            made.append(jnp.asarray(make(spec.shape)).astype(dtype))
        except (MemoryError, ValueError, OverflowError) as error:
            raise UsageError(f"cannot make an input {spec}: {error}", "Use a smaller batch.") from None
    return tuple(made)


def _described(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return type(value).__name__


def _shapes(leaves: list[tuple[str, np.ndarray[Any, Any]]]) -> str:
    return ", ".join(f"{name} {_described(array)}" for name, array in leaves) or "nothing"
