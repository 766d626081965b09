"""A call of a model as a program with the model's variables as its arguments: what alignment looks at.

Like ``trace``, nothing is computed and no variable is allocated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converter import user_code
from converter.errors import ModelError
from converter.models.model import Model
from converter.models.nnx import array_leaves, collection_of, raw_value
from converter.models.trace import Name, struct_of
from converter.pytrees import pytree_path, state_path
from converter.training_state import PARAMS, RNG_COLLECTIONS
from converter.tree import LeafKind, format_path, nest


@dataclass(frozen=True, slots=True)
class Calling:
    """How a model is called.

    Attributes:
      kwargs: keyword arguments.
      method: the name of the method; "" for ``__call__``.
      output: the path of the part of the result that counts, as ``logits`` or ``0/hidden``; "" for all of it.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """A traced call.

    Attributes:
      closed: the closed jaxpr; its arguments are the variables, then the arrays among the inputs.
      variables: the variables in that order.
      shapes: their shapes.
      searched: for each of them whether it is to be found in the other model; random state is not, and neither are
        arrays of an NNX module that are no Variables.
      outputs: the paths of the results.
    """

    closed: Any
    variables: tuple[Name, ...]
    shapes: tuple[tuple[int, ...], ...]
    searched: tuple[bool, ...]
    outputs: tuple[str, ...]


Run = Callable[[Sequence[Any], Sequence[Any]], Any]
"""Calls a model with the values of its variables and the arrays among its inputs."""


def linen_program(model: Model, inputs: Sequence[Any], calling: Calling) -> Program:
    """Traces ``module.apply``; once more with everything mutable and with random streams where that fails.

    Raises:
      ModelError: the call fails, or has no such output.
    """
    import jax

    variables = [v for v in model.variables if v.spec.kind in (LeafKind.ARRAY, LeafKind.KEY)]
    paths = [(variable.collection, *variable.path) for variable in variables]
    arrays, fill = array_inputs(inputs)

    def run(more: Mapping[str, Any], values: Sequence[Any], given: Sequence[Any]) -> Any:
        kwargs = {**more, **calling.kwargs} | ({"method": calling.method} if calling.method else {})
        result = model.module.apply(nest(zip(paths, values, strict=True)), *fill(given), **kwargs)
        return result if kwargs.get("mutable", False) is False else result[0]

    rngs = {name: jax.random.key(0) for name in (PARAMS, "dropout")}
    attempts = [functools.partial(run, more) for more in ({}, {"mutable": True, "rngs": rngs})]
    names = [(variable.collection, variable.path) for variable in variables]
    structs = [struct_of(variable.spec) for variable in variables]
    searched = [variable.collection not in RNG_COLLECTIONS for variable in variables]
    return _program("calling the Linen model", attempts, names, structs, searched, arrays, calling)


def nnx_programs(model: Model, inputs: Sequence[Any], calling: Calling) -> list[Program]:
    """Traces copies of the module, after ``eval()`` and as it is; only the ways that do not fail.

    Raises:
      ModelError: the call fails, has no such output, or the model is a mere state.
    """
    import jax
    from flax import nnx

    if model.module is None:
        raise ModelError("a state cannot be called", "Give the NNX model that it belongs to.")
    graph, state = nnx.split(model.module)
    flat = [(keys, leaf, jax.tree_util.tree_flatten(leaf)) for keys, leaf in nnx.to_flat_state(state)]
    names = [
        (collection_of(leaf), state_path(keys) + inside)
        for keys, leaf, _ in flat
        for inside, _ in array_leaves(raw_value(leaf))
    ]
    plain = {(v.collection, v.path) for v in model.variables if v.is_plain}
    arrays, fill = array_inputs(inputs)

    def run(evaluate: bool, values: Sequence[Any], given: Sequence[Any]) -> Any:
        remaining = iter(values)
        rebuilt = [(keys, structure.unflatten([next(remaining) for _ in own])) for keys, _, (own, structure) in flat]
        module = nnx.merge(graph, nnx.from_flat_state(rebuilt))
        if evaluate:
            module.eval()
        function = getattr(module, calling.method) if calling.method else module
        return function(*fill(given), **calling.kwargs)

    structs = [jax.ShapeDtypeStruct(value.shape, value.dtype) for _, _, (own, _) in flat for value in own]
    searched = [name[0] not in RNG_COLLECTIONS and name not in plain for name in names]
    with nnx.use_eager_sharding(False):
        programs, failures = [], []
        for evaluate in (True, False):
            attempt = functools.partial(run, evaluate)
            try:
                programs.append(_program("calling the NNX model", [attempt], names, structs, searched, arrays, calling))
            except ModelError as error:
                failures.append(error)
    if not programs:
        raise failures[0]
    return programs


def _program(
    what: str,
    attempts: Sequence[Run],
    names: Sequence[Name],
    structs: Sequence[Any],
    searched: Sequence[bool],
    arrays: Sequence[Any],
    calling: Calling,
) -> Program:
    *early, last = attempts
    for run in early:
        try:
            closed, outputs = _traced(what, run, structs, arrays, calling)
            break
        except ModelError:
            continue
    else:
        closed, outputs = _traced(what, last, structs, arrays, calling)
    return Program(closed, tuple(names), tuple(tuple(s.shape) for s in structs), tuple(searched), tuple(outputs))


def _traced(
    what: str, run: Run, structs: Sequence[Any], arrays: Sequence[Any], calling: Calling
) -> tuple[Any, list[str]]:
    import jax

    outputs: list[str] = []

    def flat(values: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        found = named_outputs(what, run(values, given), calling.output)
        outputs[:] = [name for name, value in found if isinstance(value, jax.Array)]
        return [value for _, value in found if isinstance(value, jax.Array)]

    given = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in arrays]
    return user_code.call(what, jax.make_jaxpr(flat), list(structs), given), outputs


def named_outputs(what: str, returned: Any, output: str) -> list[tuple[str, Any]]:
    """What a call returns by path; only what lies below ``output``, by the rest of its path, where that is given.

    Raises:
      ModelError: there is no such output.
    """
    import jax

    found = [(pytree_path(keys), leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(returned)[0]]
    if not output:
        return [(format_path(path) or "output", leaf) for path, leaf in found]
    wanted = tuple(output.split("/"))
    chosen = [
        (format_path(path[len(wanted) :]) or "output", leaf)
        for path, leaf in found
        if tuple(map(str, path[: len(wanted)])) == wanted
    ]
    if not chosen:
        known = ", ".join(format_path(path) or "output" for path, _ in found[:12])
        raise ModelError(f"{what} gives no output {output!r}; it gives {known}", "Name one of these.")
    return chosen


def array_inputs(inputs: Sequence[Any]) -> tuple[list[Any], Callable[[Sequence[Any]], Sequence[Any]]]:
    """The arrays and ShapeDtypeStructs among the inputs of a call, and what puts others in their places."""
    import jax
    import numpy as np

    leaves, structure = jax.tree.flatten(tuple(inputs))
    kinds = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, kinds)]

    def fill(arrays: Sequence[Any]) -> Any:
        filled = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
        return structure.unflatten(filled.values())

    return [leaves[place] for place in places], fill
