"""A call of a model as a program with the model's variables as its arguments: what alignment looks at.

Like ``trace``, nothing is computed and no variable is allocated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter import user_code
from converter.calling.arrays import array_inputs
from converter.calling.signature import Signature, apply_linen, call_nnx
from converter.errors import ModelError
from converter.models.model import Model
from converter.models.nnx import array_leaves, collection_of, raw_value
from converter.models.trace import Name, struct_of
from converter.paths import format_path
from converter.pytrees import pytree_path, state_path
from converter.training_state import PARAMS, RNG_COLLECTIONS
from converter.tree import LeafKind, nest


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


def linen_program(model: Model, signature: Signature) -> Program:
    """Traces ``module.apply``; once more with everything mutable and with random streams where that fails.

    Raises:
      ModelError: the call fails, or has no such output.
    """
    import jax

    variables = [v for v in model.variables if v.spec.kind in (LeafKind.ARRAY, LeafKind.KEY)]
    paths = [(variable.collection, *variable.path) for variable in variables]
    arrays, fill = array_inputs(signature)

    def run(more: Mapping[str, Any], values: Sequence[Any], given: Sequence[Any]) -> Any:
        nested, filled = nest(zip(paths, values, strict=True)), fill(given)
        kwargs = {**more, **filled.linen_kwargs}
        return apply_linen(model.module, nested, filled.arguments.positional, kwargs, filled.linen)[0]

    rngs = {name: jax.random.key(0) for name in (PARAMS, "dropout")}
    attempts = [functools.partial(run, more) for more in ({}, {"mutable": True, "rngs": rngs})]
    names = [(variable.collection, variable.path) for variable in variables]
    structs = [struct_of(variable.spec) for variable in variables]
    searched = [variable.collection not in RNG_COLLECTIONS for variable in variables]
    return _program("calling the Linen model", attempts, names, structs, searched, arrays)


def nnx_programs(model: Model, signature: Signature) -> list[Program]:
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
    arrays, fill = array_inputs(signature)

    def run(evaluate: bool, values: Sequence[Any], given: Sequence[Any]) -> Any:
        remaining = iter(values)
        rebuilt = [(keys, structure.unflatten([next(remaining) for _ in own])) for keys, _, (own, structure) in flat]
        module = nnx.merge(graph, nnx.from_flat_state(rebuilt))
        if evaluate:
            module.eval()
        filled = fill(given)
        return call_nnx(module, filled.arguments.positional, filled.nnx_kwargs, filled.nnx)

    structs = [jax.ShapeDtypeStruct(value.shape, value.dtype) for _, _, (own, _) in flat for value in own]
    searched = [name[0] not in RNG_COLLECTIONS and name not in plain for name in names]
    with nnx.use_eager_sharding(False):
        programs, failures = [], []
        for evaluate in (True, False):
            attempt = functools.partial(run, evaluate)
            try:
                programs.append(_program("calling the NNX model", [attempt], names, structs, searched, arrays))
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
) -> Program:
    *early, last = attempts
    for run in early:
        try:
            closed, outputs = _traced(what, run, structs, arrays)
            break
        except ModelError:
            continue
    else:
        closed, outputs = _traced(what, last, structs, arrays)
    return Program(closed, tuple(names), tuple(tuple(s.shape) for s in structs), tuple(searched), tuple(outputs))


def _traced(what: str, run: Run, structs: Sequence[Any], arrays: Sequence[Any]) -> tuple[Any, list[str]]:
    import jax

    outputs: list[str] = []

    def flat(values: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        found = _named(run(values, given))
        outputs[:] = [name for name, value in found if isinstance(value, jax.Array)]
        return [value for _, value in found if isinstance(value, jax.Array)]

    given = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in arrays]
    return user_code.call(what, jax.make_jaxpr(flat), list(structs), given), outputs


def _named(returned: Any) -> list[tuple[str, Any]]:
    """What a call returns, by path."""
    import jax

    found = jax.tree_util.tree_flatten_with_path(returned)[0]
    return [(format_path(pytree_path(keys)) or "output", leaf) for keys, leaf in found]
