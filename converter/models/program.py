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
from converter.models.arrays import Arrays, Name, linen_arrays, nnx_arrays
from converter.models.model import Model
from converter.pytrees import named_leaves
from converter.training_state import PARAMS, RNG_COLLECTIONS


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

    own = linen_arrays(model)
    inputs, fill = array_inputs(signature)

    def run(more: Mapping[str, Any], values: Sequence[Any], given: Sequence[Any]) -> Any:
        filled = fill(given)
        kwargs = {**more, **filled.linen_kwargs}
        return apply_linen(model.module, own.filled(values), filled.arguments.positional, kwargs, filled.linen)[0]

    rngs = {name: jax.random.key(0) for name in (PARAMS, "dropout")}
    attempts = [functools.partial(run, more) for more in ({}, {"mutable": True, "rngs": rngs})]
    searched = [collection not in RNG_COLLECTIONS for collection, _ in own.names]
    return _program("calling the Linen model", attempts, own, searched, inputs)


def nnx_programs(model: Model, signature: Signature) -> list[Program]:
    """Traces copies of the module, after ``eval()`` and as it is; only the ways that do not fail.

    Raises:
      ModelError: the call fails, has no such output, or the model is a mere state.
    """
    from flax import nnx

    own = nnx_arrays(model)
    plain = {(v.collection, v.path) for v in model.variables if v.is_plain}
    inputs, fill = array_inputs(signature)

    def run(evaluate: bool, values: Sequence[Any], given: Sequence[Any]) -> Any:
        module = own.filled(values)
        if evaluate:
            module.eval()
        filled = fill(given)
        return call_nnx(module, filled.arguments.positional, filled.nnx_kwargs, filled.nnx)

    searched = [name[0] not in RNG_COLLECTIONS and name not in plain for name in own.names]
    with nnx.use_eager_sharding(False):
        programs, failures = [], []
        for evaluate in (True, False):
            attempt = functools.partial(run, evaluate)
            try:
                programs.append(_program("calling the NNX model", [attempt], own, searched, inputs))
            except ModelError as error:
                failures.append(error)
    if not programs:
        raise failures[0]
    return programs


def _program(
    what: str, attempts: Sequence[Run], own: Arrays, searched: Sequence[bool], inputs: Sequence[Any]
) -> Program:
    import jax

    structs, given = ([jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values] for values in (own.values, inputs))
    *early, last = attempts
    for run in early:
        try:
            closed, outputs = _traced(what, run, structs, given)
            break
        except ModelError:
            continue
    else:
        closed, outputs = _traced(what, last, structs, given)
    return Program(closed, tuple(own.names), tuple(tuple(s.shape) for s in structs), tuple(searched), tuple(outputs))


def _traced(what: str, run: Run, structs: list[Any], given: list[Any]) -> tuple[Any, list[str]]:
    import jax

    outputs: list[str] = []

    def flat(values: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        found = named_leaves(run(values, given))
        outputs[:] = [name for name, value in found if isinstance(value, jax.Array)]
        return [value for _, value in found if isinstance(value, jax.Array)]

    return user_code.call(what, jax.make_jaxpr(flat), structs, given), outputs
