"""Values of constants that positions are computed from: which rows a gather takes, which step a loop is at.

NumPy computes them, when they are asked for: JAX would compile a program for every operation and shape. Numbers that
are no positions are never asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

LARGEST = 1 << 22
"""Constants of more elements are not computed."""

Value = Callable[[], Any]


def computed(equation: Any, operands: Sequence[Value | None]) -> Value | None:
    """A function that gives the result of an equation on constants; None where that is not known."""
    rule = _RULES.get(equation.primitive.name)
    if rule is None or len(equation.outvars) != 1 or equation.outvars[0].aval.size > LARGEST:
        return None
    known = [operand for operand in operands if operand is not None]
    if len(known) != len(operands):
        return None
    found: list[Any] = []

    def value() -> Any:
        if not found:
            found.append(rule([operand() for operand in known], equation.params))
        return found[0]

    return value


def literal(value: Any) -> Value | None:
    """The value of a constant that stands in the program; random keys have none."""
    import numpy as np

    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return lambda: np.asarray(value)
    return None if str(value.dtype).startswith("key<") else lambda: np.asarray(value)


def _arithmetic(name: str) -> Callable[[Sequence[Any], Mapping[str, Any]], Any]:
    def apply(values: Sequence[Any], params: Mapping[str, Any]) -> Any:
        import numpy as np

        with np.errstate(all="ignore"):
            return getattr(np, name)(*values)

    return apply


def _iota(values: Sequence[Any], params: Mapping[str, Any]) -> Any:
    import numpy as np

    shape, axis = params["shape"], params["dimension"]
    steps = np.arange(shape[axis]).reshape([-1 if at == axis else 1 for at in range(len(shape))])
    return np.broadcast_to(steps, shape).astype(params["dtype"])


def _broadcast(values: Sequence[Any], params: Mapping[str, Any]) -> Any:
    import numpy as np

    shape, axes = params["shape"], params["broadcast_dimensions"]
    expanded = np.reshape(values[0], [values[0].shape[axes.index(at)] if at in axes else 1 for at in range(len(shape))])
    return np.broadcast_to(expanded, shape)


def _divided(values: Sequence[Any], params: Mapping[str, Any]) -> Any:
    import numpy as np

    left, right = values
    with np.errstate(all="ignore"):
        if np.issubdtype(left.dtype, np.integer):  # rounded towards zero
            return np.where(right == 0, 0, np.trunc(left / np.where(right == 0, 1, right))).astype(left.dtype)
        return left / right


def _selected(values: Sequence[Any], params: Mapping[str, Any]) -> Any:
    import numpy as np

    return np.choose(np.asarray(values[0]).astype(np.int64), values[1:])


def _sliced(values: Sequence[Any], params: Mapping[str, Any]) -> Any:
    steps = params["strides"] or (1,) * values[0].ndim
    return values[0][tuple(map(slice, params["start_indices"], params["limit_indices"], steps))]


def _reshaped(values: Sequence[Any], params: Mapping[str, Any]) -> Any:
    return values[0].reshape(params["new_sizes"])


def _squeezed(values: Sequence[Any], params: Mapping[str, Any]) -> Any:
    return values[0].squeeze(tuple(params["dimensions"]))


def _concatenated(values: Sequence[Any], params: Mapping[str, Any]) -> Any:
    import numpy as np

    return np.concatenate(values, params["dimension"])


def _converted(values: Sequence[Any], params: Mapping[str, Any]) -> Any:
    import numpy as np

    return np.asarray(values[0]).astype(params["new_dtype"])


_RULES: Mapping[str, Callable[[Sequence[Any], Mapping[str, Any]], Any]] = {
    "iota": _iota,
    "broadcast_in_dim": _broadcast,
    "div": _divided,
    "select_n": _selected,
    "slice": _sliced,
    "reshape": _reshaped,
    "squeeze": _squeezed,
    "concatenate": _concatenated,
    "convert_element_type": _converted,
    "transpose": lambda values, params: values[0].transpose(params["permutation"]),
    "copy": lambda values, params: values[0],
    "stop_gradient": lambda values, params: values[0],
    "clamp": lambda values, params: values[1].clip(values[0], values[2]),
    "rev": lambda values, params: _flipped(values[0], params["dimensions"]),
    **{
        name: _arithmetic(numpy_name)
        for name, numpy_name in {
            "add": "add",
            "sub": "subtract",
            "mul": "multiply",
            "rem": "fmod",
            "neg": "negative",
            "max": "maximum",
            "min": "minimum",
            "eq": "equal",
            "ne": "not_equal",
            "lt": "less",
            "le": "less_equal",
            "gt": "greater",
            "ge": "greater_equal",
            "and": "bitwise_and",
            "or": "bitwise_or",
            "not": "invert",
        }.items()
    },
}


def _flipped(value: Any, axes: Sequence[int]) -> Any:
    import numpy as np

    return np.flip(value, tuple(axes))
