"""What a call of a model does with its variables, read off its trace: nothing is computed or allocated."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter import user_code
from converter.calling.signature import OF_APPLY, Signature, apply_linen, call_nnx
from converter.errors import ModelError
from converter.models.arrays import Name, linen_arrays, nnx_arrays
from converter.models.dataflow import Dataflow, View, Views
from converter.models.model import Model
from converter.training_state import PARAMS


@dataclass(frozen=True, slots=True)
class Trace:
    """When a call of a model uses each variable, and along which axes scans walk through it.

    A use is a computation. Changes of dtype or layout only give a variable another name.

    Attributes:
      uses: for every variable that the call uses, the positions of these uses (0, 1, 2 … over all uses of any variable
        in program order). Variables that are never used are absent. One computation uses a variable once, and the body
        of a loop counts once however often it runs.
      scanned: for variables that ``jax.lax.scan`` walks through, the axes of the stored array along which it does, the
        outermost scan first. An axis made by merging or splitting stored axes is left out.
    """

    uses: Mapping[Name, tuple[int, ...]]
    scanned: Mapping[Name, tuple[int, ...]]


def trace_linen(model: Model, signature: Signature) -> Trace:
    """Traces ``model.module.apply(variables, *arguments)``.

    Where that fails and ``mutable`` or ``rngs`` is not among the keyword arguments, once more with everything mutable
    and random streams for dropout and parameters, as for a model that is trained or decodes.

    Args:
      model: a Linen model.
      signature: the arguments are arrays and ShapeDtypeStructs, in pytrees or alone; what is no ShapeDtypeStruct is a
        constant.

    Raises:
      ModelError: the call fails.
    """
    import jax

    module, kwargs = model.module, signature.linen_kwargs
    arrays = linen_arrays(model)

    def apply(values: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return apply_linen(module, arrays.filled(values), args, kwargs, signature.linen)

    attempts = [(apply, kwargs)]
    if not kwargs.keys() >= set(OF_APPLY):
        rngs = {name: jax.random.key(0) for name in (PARAMS, "dropout")}
        attempts.append((apply, {"mutable": True, "rngs": rngs, **kwargs}))
    return _trace("calling the Linen model", attempts, arrays.names, arrays.values, signature.arguments.positional)


def trace_nnx(model: Model, signature: Signature) -> Trace:
    """Traces ``model.module(*arguments)`` on a copy of the module, concrete or abstract.

    The copy is called as it is; where that fails, once more after ``eval()``.

    Args:
      model: an NNX model with a module.
      signature: as for ``trace_linen``.

    Raises:
      ModelError: the call fails, or the model is a mere state.
    """
    from flax import nnx

    arrays = nnx_arrays(model)

    def call(values: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any], evaluate: bool = False) -> Any:
        module = arrays.filled(values)
        if evaluate:
            module.eval()
        # Its new state belongs to the results: what nothing depends on may be missing in a trace.
        return call_nnx(module, args, kwargs, signature.nnx), nnx.state(module)

    def call_evaluating(values: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return call(values, args, kwargs, evaluate=True)

    kwargs = signature.nnx_kwargs
    attempts = [(call, kwargs), (call_evaluating, kwargs)]
    with nnx.use_eager_sharding(False):
        return _trace("calling the NNX model", attempts, arrays.names, arrays.values, signature.arguments.positional)


Call = Callable[[Sequence[Any], Sequence[Any], Mapping[str, Any]], Any]
"""Calls a model: with the values of its variables, inputs and keyword arguments."""


def _trace(
    what: str,
    attempts: Sequence[tuple[Call, Mapping[str, Any]]],
    names: Sequence[Name],
    values: Sequence[Any],
    inputs: Sequence[Any],
) -> Trace:
    """The trace of the first attempt that succeeds; the error of the last one if none does."""
    arrays, fill = _holes(list(values), lambda value: hasattr(value, "shape") and hasattr(value, "dtype"))
    *early, last = [functools.partial(_jaxpr, what, call, arrays, fill, (tuple(inputs), kw)) for call, kw in attempts]
    for attempt in early:
        with contextlib.suppress(ModelError):
            return _read(attempt(), arrays, names)
    return _read(last(), arrays, names)


def _jaxpr(what: str, call: Call, arrays: Mapping[int, Any], fill: Callable[..., Any], given: Any) -> Any:
    """The jaxpr of a call whose first inputs are the arrays among the model's values."""
    import jax

    structs, fill_given = _holes(given, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def run(own: Sequence[Any], abstract: Sequence[Any]) -> list[Any]:
        args, kwargs = fill_given(abstract)
        result = call(fill(own), args, kwargs)
        # Models may return anything; what depends on the variables are the arrays in it.
        return [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]

    own = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in arrays.values()]
    return user_code.call(what, jax.make_jaxpr(run), own, list(structs.values())).jaxpr


def _read(jaxpr: Any, arrays: Mapping[int, Any], names: Sequence[Name]) -> Trace:
    views: Views = [View(place, tuple(range(len(value.shape)))) for place, value in arrays.items()]
    flow = Dataflow()
    flow.walk(jaxpr, views + [None] * (len(jaxpr.invars) - len(views)))
    return Trace(
        {names[place]: tuple(positions) for place, positions in flow.uses.items()},
        {names[place]: axes for place, axes in flow.scanned.items()},
    )


def _holes(tree: Any, leaves: Callable[[Any], bool]) -> tuple[dict[int, Any], Callable[[Sequence[Any]], Any]]:
    """Takes the leaves of that kind out of a pytree: them by position, and what puts others in their places."""
    import jax

    found, structure = jax.tree.flatten(tree)
    taken = {place: leaf for place, leaf in enumerate(found) if leaves(leaf)}

    def fill(values: Sequence[Any]) -> Any:
        filled = dict(enumerate(found)) | dict(zip(taken, values, strict=True))
        return structure.unflatten(filled.values())

    return taken, fill
