"""Calls of both models as functions of their variables, traced and run on values from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter import user_code
from converter.calling.arrays import Fill
from converter.calling.signature import OF_APPLY, Signature, apply_linen, call_nnx
from converter.dtypes import numpy_dtype
from converter.live import restore_nnx
from converter.models import Model, ModelVariable, array_leaves, collection_of, raw_value, state_path
from converter.proof.double import run_doubled
from converter.proof.values import is_inexact
from converter.pytrees import named_leaves
from converter.rules.link import Name
from converter.training_state import PARAMS, RNG_COLLECTIONS, Held, Part, Slot, TrainingState
from converter.tree import KEY_WORDS, LazyLeaf, LeafKind, nest

Values = Mapping[Name, Any]

LINEN_CALL, NNX_CALL = "calling the Linen model", "calling the NNX model"

Outputs = dict[str, Any]
"""Everything that a call returns, by its path in the returned pytree."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A call that has been traced on arrays of certain shapes and dtypes.

    Attributes:
      what: what is being done, for messages.
      closed: its jaxpr; the arguments are the values of the variables, then the arrays among the inputs.
      names: the paths of its results.
      others: what it returns that is no array, by path.
    """

    what: str
    closed: Any
    names: Sequence[str]
    others: Mapping[str, Any]

    def __call__(self, arguments: Sequence[Any]) -> Outputs:
        """What the model returns, computed in the precision that it was written for.

        Raises:
          ModelError: the call fails.
        """
        import jax

        run = jax.extend.core.jaxpr_as_fun(self.closed)
        return self._named(user_code.call(self.what, run, *arguments))

    def doubled(self, arguments: Sequence[Any]) -> Outputs:
        """The same in double precision; to be called while 64-bit types are enabled.

        Raises:
          NoDouble: the call cannot be run so. JAX's own errors are possible as well.
        """
        return self._named(run_doubled(self.closed, arguments))

    def _named(self, results: Sequence[Any]) -> Outputs:
        return {**dict(zip(self.names, results, strict=True)), **self.others}


class Call:
    """A call of a model, which can be traced.

    Args:
      what: what is being done, for messages.
      run: calls the model with its variables and with the arrays among its inputs.
    """

    def __init__(self, what: str, run: Callable[[Values, Sequence[Any]], Any]) -> None:
        self._what = what
        self.run = run
        self._traced: dict[object, Traced] = {}

    def traced(self, values: Values, inputs: Sequence[Any]) -> Traced:
        """The call for values and inputs like these.

        Raises:
          ModelError: it fails.
        """
        import jax
        import numpy as np

        structs = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in [*values.values(), *inputs]]
        key = tuple(values), tuple((struct.shape, struct.dtype) for struct in structs)
        if key in self._traced:
            return self._traced[key]
        results: Outputs = {}
        others: Outputs = {}

        def run(*arrays: Any) -> list[Any]:
            given = dict(zip(values, arrays, strict=False))
            for name, leaf in named_leaves(self.run(given, arrays[len(given) :])):
                (results if isinstance(leaf, jax.Array | np.ndarray) else others)[name] = leaf
            return list(results.values())

        closed = user_code.call(self._what, jax.make_jaxpr(run), *structs)
        self._traced[key] = Traced(self._what, closed, tuple(results), others)
        return self._traced[key]


# The two frameworks --------------------------------------------------------------------------------------------------


def linen_calls(model: Model, fill: Fill, signature: Signature) -> list[Call]:
    """``module.apply`` as it is stated; and for models that train or decode, with everything that they may need."""
    import jax

    stated = linen_call(model.module, fill)
    if signature.linen_kwargs.keys() >= set(OF_APPLY):
        return [stated]
    rngs = {name: jax.random.key(0) for name in (PARAMS, "dropout")}
    return [stated, linen_call(model.module, fill, mutable=True, rngs=rngs)]


def linen_call(module: Any, fill: Fill, **more: Any) -> Call:
    """The call of a Linen module, with keyword arguments that hold where nothing else is stated."""

    def run(values: Values, arrays: Sequence[Any]) -> Any:
        nested = nest(((collection, *path), value) for (collection, path), value in values.items())
        filled = fill(arrays)
        kwargs = {**more, **filled.linen_kwargs}
        return apply_linen(module, nested, filled.arguments.positional, kwargs, filled.linen)[0]

    return Call(LINEN_CALL, run)


def nnx_calls(model: Model, fill: Fill, signature: Signature) -> list[Call]:
    """The call of the NNX module after ``eval()``, and as it is.

    Raises:
      ModelError: its random state cannot be made.
    """
    from flax import nnx

    zeros = [(Slot(Part.VARIABLES, v.collection, v.path), _zeros(v)) for v in model.variables if needs_value(v)]
    graph, state = nnx.split(restore_nnx(TrainingState(zeros), model))
    return [nnx_call(graph, state, fill, evaluate=True), nnx_call(graph, state, fill)]


def nnx_call(graph: Any, state: Any, fill: Fill, *, evaluate: bool = False) -> Call:
    """The call of a copy of the module that was split into these two, with other values in its variables."""
    from flax import nnx

    flat = nnx.to_flat_state(state)

    def run(values: Values, arrays: Sequence[Any]) -> Any:
        module = nnx.merge(graph, nnx.from_flat_state(_with(flat, values)))
        if evaluate:
            module.eval()
        filled = fill(arrays)
        return call_nnx(module, filled.arguments.positional, filled.nnx_kwargs, filled.nnx)

    return Call(NNX_CALL, run)


def nnx_values(state: Any) -> dict[Name, Any]:
    """The real and complex numbers of an NNX state, by collection and path."""
    from flax import nnx

    return {
        (collection_of(leaf), state_path(keys) + inside): value
        for keys, leaf in nnx.to_flat_state(state)
        for inside, value in array_leaves(raw_value(leaf))
        if is_inexact(value.dtype)
    }


def needs_value(variable: ModelVariable) -> bool:
    """Whether an NNX variable has to get its value from Linen: not random state, and no array without a Variable."""
    return not variable.is_plain and variable.collection not in RNG_COLLECTIONS


def _with(flat: Any, values: Values) -> Iterator[tuple[Any, Any]]:
    """The flat state with other arrays inside of its Variables."""
    import jax
    from flax import nnx

    for keys, leaf in flat:
        held, name = raw_value(leaf), (collection_of(leaf), state_path(keys))
        inside = [values.get((name[0], name[1] + path), own) for path, own in array_leaves(held)]
        value = jax.tree.unflatten(jax.tree.structure(held), inside)
        yield keys, leaf.replace(value) if isinstance(leaf, nnx.Variable) else value


def _zeros(variable: ModelVariable) -> Held:
    """What stands in the place of a variable until it gets a value."""
    import numpy as np

    spec = variable.spec

    def make() -> Any:
        if spec.kind is LeafKind.KEY:
            return np.zeros((*spec.shape, KEY_WORDS[spec.dtype]), np.uint32)
        return np.zeros(spec.shape, numpy_dtype(spec.dtype))

    return Held(variable.path, LazyLeaf(spec, make))
