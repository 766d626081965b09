"""Running a traced call in double precision, whatever precision it was written for.

In float32 two layers in each other's place can hide behind the rounding: exchanged biases of query and key move the
output of attention by a few parts in 100 000, and bfloat16 hides far more. With 16 digits every difference shows, and a
layer that computes the same computes it to 12 digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converter.models.dataflow import scan_groups

_SAME = frozenset(
    {
        *("reduce_precision", "stop_gradient", "copy", "copy_p", "name", "optimization_barrier", "device_put"),
        *("pvary", "pcast", "mesh_cast", "reshard", "sharding_constraint", "layout_constraint"),
    }
)
"""Operations that hand on each operand as it is, as far as exact values are concerned."""

_INLINED = frozenset(
    {
        *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"),
        *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    }
)
"""Operations that run a jaxpr on their operands as they are."""

_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")

_OWN_BODIES = ("scatter", "reduce", "select_and", "arg", "cum")
"""Beginnings of the names of operations whose jaxpr only says how two numbers are combined."""


class NoDouble(Exception):
    """There is no version of an operation in double precision."""


def run_doubled(closed: Any, arguments: Sequence[Any]) -> list[Any]:
    """The results of a closed jaxpr, all of its real and complex numbers held in double precision.

    Differentiable. To be called while JAX's 64-bit types are enabled. Rounding to a narrower type and ``stop_gradient``
    are left out: they hide what the result depends on.

    Raises:
      NoDouble: it contains an operation that cannot be run so. JAX's own errors are possible as well.
    """
    return _run(closed.jaxpr, [_wide(value) for value in closed.consts], [_wide(value) for value in arguments])


def _run(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    known = dict(zip(jaxpr.constvars, constants, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        if not hasattr(atom, "val"):
            return known[atom]
        import numpy as np

        return _wide(np.asarray(atom.val, atom.aval.dtype))

    for equation in jaxpr.eqns:
        results = _step(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _run_closed(closed: Any, arguments: Sequence[Any]) -> list[Any]:
    """The same for what may be closed or not."""
    if not hasattr(closed, "jaxpr"):
        return _run(closed, (), arguments)
    return _run(closed.jaxpr, [_wide(value) for value in closed.consts], arguments)


def _step(equation: Any, values: list[Any]) -> list[Any]:
    params = equation.params
    match equation.primitive.name:
        case "scan":
            return _scan(params, values)
        case "while":
            return _while(params, values)
        case "cond":
            return _cond(params, values)
        case "convert_element_type":
            return [_converted(values[0], params["new_dtype"])]
        case "bitcast_convert_type":
            return [_bitcast(equation, values[0])]
        case name if name in _SAME:
            return values
        case name if name in _INLINED:
            body = next(params[key] for key in _BODIES if key in params)
            return _run_closed(body, values)
    return _bound(equation, values)


def _bound(equation: Any, values: list[Any]) -> list[Any]:
    """Any other operation, with the dtypes among its parameters widened."""
    primitive = equation.primitive
    has_body = any(map(_is_body, equation.params.values()))
    if "callback" in primitive.name or (has_body and not primitive.name.startswith(_OWN_BODIES)):
        raise NoDouble(primitive.name)
    widened = {key: _wide_param(key, value) for key, value in equation.params.items()}
    if "precision" in widened:
        widened["precision"] = None
    results = primitive.bind(*values, **widened)
    return list(results) if primitive.multiple_results else [results]


def _is_body(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def _wide_param(key: str, value: Any) -> Any:
    if not _is_body(value):
        return _wide_dtype(value) if key.endswith(("dtype", "type")) else value
    import jax

    inputs = getattr(value, "jaxpr", value).invars
    structs = [jax.ShapeDtypeStruct(atom.aval.shape, _wide_dtype(atom.aval.dtype)) for atom in inputs]
    closed = jax.make_jaxpr(lambda *numbers: _run_closed(value, numbers))(*structs)
    return closed if hasattr(value, "jaxpr") else closed.jaxpr


def _scan(params: Mapping[str, Any], values: list[Any]) -> list[Any]:
    import jax

    constants, carried = scan_groups(dict(params))
    fixed, start, walked = values[:constants], values[constants : constants + carried], values[constants + carried :]

    def body(carry: tuple[Any, ...], items: tuple[Any, ...]) -> Any:
        results = _run_closed(params["jaxpr"], [*fixed, *carry, *items])
        return tuple(results[:carried]), tuple(results[carried:])

    length, reverse = params["length"], params["reverse"]
    last, collected = jax.lax.scan(body, tuple(start), tuple(walked), length=length, reverse=reverse)
    return [*last, *collected]


def _while(params: Mapping[str, Any], values: list[Any]) -> list[Any]:
    import jax

    test, body = params["cond_nconsts"], params["body_nconsts"]
    for_test, for_body, start = values[:test], values[test : test + body], values[test + body :]
    result = jax.lax.while_loop(
        lambda state: _run_closed(params["cond_jaxpr"], [*for_test, *state])[0],
        lambda state: tuple(_run_closed(params["body_jaxpr"], [*for_body, *state])),
        tuple(start),
    )
    return list(result)


def _cond(params: Mapping[str, Any], values: list[Any]) -> list[Any]:
    import jax

    def branch(closed: Any) -> Any:
        return lambda *operands: tuple(_run_closed(closed, operands))

    return list(jax.lax.switch(values[0], [branch(closed) for closed in params["branches"]], *values[1:]))


# Dtypes --------------------------------------------------------------------------------------------------------------


def _wide_dtype(dtype: Any) -> Any:
    """The widest dtype of the same kind; what is no inexact number stays what it is."""
    import jax.numpy as jnp

    if dtype is None or not hasattr(dtype, "itemsize"):
        return dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.dtype("complex128")
    return jnp.dtype("float64") if jnp.issubdtype(dtype, jnp.floating) else dtype


def _wide(value: Any) -> Any:
    return _converted(value, value.dtype)


def _converted(value: Any, dtype: Any) -> Any:
    import jax.numpy as jnp

    wanted = _wide_dtype(dtype)
    value = jnp.asarray(value)
    return value if value.dtype == wanted else value.astype(wanted)


def _bitcast(equation: Any, value: Any) -> Any:
    """Random bits become a number in [1, 2) this way; the bits of a number are others in double precision."""
    import jax
    import jax.numpy as jnp

    if jnp.issubdtype(value.dtype, jnp.inexact):
        raise NoDouble(equation.primitive.name)
    return _wide(jax.lax.bitcast_convert_type(value, equation.params["new_dtype"]))
