"""The arrays of a model by name, and the model with others in their places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from converter.dtypes import numpy_dtype
from converter.errors import ModelError
from converter.models.model import Model
from converter.models.nnx import array_leaves, collection_of, raw_value
from converter.paths import Path
from converter.pytrees import state_path
from converter.tree import LeafKind, LeafSpec, nest

Name = tuple[str, Path]
"""Collection and path of a variable, as in ``ModelVariable``."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """The arrays that a model computes with.

    Attributes:
      names: what they are called.
      values: arrays and ShapeDtypeStructs, in the same order.
      filled: gives what the model is called with, where such values stand in their places: Linen's variables, or a copy
        of the NNX module.
    """

    names: list[Name]
    values: list[Any]
    filled: Callable[[Sequence[Any]], Any]


def linen_arrays(model: Model) -> Arrays:
    """Those of a Linen model."""
    variables = [v for v in model.variables if v.spec.kind in (LeafKind.ARRAY, LeafKind.KEY)]
    paths = [(variable.collection, *variable.path) for variable in variables]
    return Arrays(
        [(variable.collection, variable.path) for variable in variables],
        [_struct(variable.spec) for variable in variables],
        lambda values: nest(zip(paths, values, strict=True)),
    )


def nnx_arrays(model: Model) -> Arrays:
    """Those of an NNX model, concrete or abstract.

    Raises:
      ModelError: the model is a mere state.
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

    def filled(values: Sequence[Any]) -> nnx.Module:
        remaining = iter(values)
        rebuilt = [(keys, structure.unflatten([next(remaining) for _ in own])) for keys, _, (own, structure) in flat]
        return nnx.merge(graph, nnx.from_flat_state(rebuilt))

    return Arrays(names, [value for _, _, (own, _) in flat for value in own], filled)


def _struct(spec: LeafSpec) -> Any:
    import jax

    if spec.kind is LeafKind.KEY:
        key = jax.eval_shape(lambda: jax.random.key(0, impl=spec.dtype))
        return jax.ShapeDtypeStruct(spec.shape, key.dtype)
    return jax.ShapeDtypeStruct(spec.shape, numpy_dtype(spec.dtype))
