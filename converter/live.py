"""Live objects: Linen variables and NNX states in memory, in and out of the neutral training state.

The arrays are handed through as they are; under ``jax.jit`` they may be tracers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from converter.dialects.dialect import Lifted
from converter.errors import ModelError, UsageError
from converter.models import (
    InitialValues,
    Model,
    array_leaves,
    collection_of,
    linen_leaves,
    raw_value,
    state_path,
)
from converter.paths import Path, format_path
from converter.planning.plan import Step
from converter.pytrees import live_spec
from converter.training_state import Held, Part, Slot, TrainingState
from converter.tree import LazyLeaf, Leaf, LeafKind, nest

if TYPE_CHECKING:
    from flax import nnx

BARE_PARAMS = "Put bare params into {'params': params}."


def lift_nnx(state: nnx.State) -> Lifted:
    """An ``nnx.State`` of a model as a training state; its Variables' own types give the collections.

    Raises:
      UsageError: the state belongs to an optimizer.
    """
    from flax import nnx

    leaves = []
    for keys, leaf in nnx.to_flat_state(state):
        collection = collection_of(leaf)
        path = state_path(keys)
        if isinstance(leaf, nnx.optimizer.OptState):
            raise UsageError(
                f"{format_path(path)} belongs to an optimizer",
                "Pass the model or its state; training states are converted between files (converter.convert).",
            )
        for inside, value in array_leaves(raw_value(leaf)):
            leaves.append((Slot(Part.VARIABLES, collection, path + inside), _held(path + inside, value)))
    return Lifted(TrainingState(leaves))


def lift_linen(variables: Mapping[str, Any]) -> Lifted:
    """A Linen variables dict (plain or FrozenDict, boxed or not) as a training state.

    Raises:
      UsageError: not a dict of collections.
    """
    # Typed wide: what reaches this place is the caller's, whatever its annotation says.
    collections: Any = variables
    if not isinstance(collections, Mapping) or not all(isinstance(c, Mapping) for c in collections.values()):
        raise UsageError("expected a dict of collections such as {'params': {…}}", BARE_PARAMS)
    leaves = [
        (Slot(Part.VARIABLES, str(path[0]), path[1:]), _held(path, value)) for path, value, _ in linen_leaves(variables)
    ]
    return Lifted(TrainingState(leaves))


def _held(path: Path, value: Any) -> Held:
    return Held(path, LazyLeaf(live_spec(value), lambda: value))


def linen_variables(steps: Iterable[Step]) -> dict[str, Any]:
    """The nested dict of collections that the steps of a plan (to Linen variables) make."""
    nested: dict[str, Any] = nest((step.target, step.fetch()) for step in steps)
    return nested


def nnx_state(steps: Iterable[Step], model: Model) -> nnx.State:
    """The state that the steps of a plan (to an NNX pure dict) make, in the Variables of the model.

    A Variable that was one array of Linen under another shape is a new array; all others are the very same objects.

    The Variables keep the model's metadata (sharding names and the like): this is where it is re-attached.
    """
    import jax
    from flax import nnx

    values = {step.target: step.fetch() for step in steps}
    filled = []
    for keys, leaf in nnx.to_flat_state(nnx.state(model.module)):
        held = raw_value(leaf)
        paths = [state_path(keys) + inside for inside, _ in array_leaves(held)]
        if not paths or not all(path in values for path in paths):
            continue
        value = jax.tree.unflatten(jax.tree.structure(held), [values[path] for path in paths])
        filled.append((keys, leaf.replace(value) if isinstance(leaf, nnx.Variable) else value))
    return nnx.from_flat_state(filled)


def live_variables(held: TrainingState) -> dict[str, Any]:
    """The variables of a lifted Linen checkpoint as a nested dict of jax.Arrays, ready for ``module.apply``."""
    found = ((slot, entry) for slot, entry in held.items() if slot.part is Part.VARIABLES)
    nested: dict[str, Any] = nest(((slot.collection, *map(str, slot.path)), live_value(e.leaf)) for slot, e in found)
    return nested


def restore_nnx(held: TrainingState, model: Model) -> nnx.Module:
    """An NNX module with the variables of a checkpoint, ready to be called.

    Random state and plain arrays that the checkpoint does not hold come from the model itself.

    Raises:
      ModelError: the checkpoint lacks a variable of the model.
    """
    from flax import nnx

    stored = {slot.path: entry for slot, entry in held.items() if slot.part is Part.VARIABLES}
    initial = InitialValues(model)
    missing = [v for v in model.variables if v.path not in stored and not v.is_random_state and not v.is_plain]
    if missing:
        raise ModelError(
            "the checkpoint lacks variables of the NNX model: " + ", ".join(format_path(v.path) for v in missing[:8]),
            "Give the model that the checkpoint belongs to.",
        )
    import jax

    graph, state = nnx.split(model.module)
    own_paths = {variable.path: variable for variable in model.variables}
    random_paths = {variable.path: variable for variable in model.variables if variable.is_random_state}

    def reader(path: Path, own: Any) -> Callable[[], Any]:
        if path in stored:
            return lambda: live_value(stored[path].leaf)
        if path in random_paths:
            read = initial.reader(random_paths[path])
            return lambda: _typed(random_paths[path].spec, read())
        return initial.reader(own_paths[path]) if isinstance(own, jax.ShapeDtypeStruct) else lambda: own

    # All readers before the first value: what the model itself gives is then computed once.
    leaves = nnx.to_flat_state(state)
    readers = [
        [reader(state_path(keys) + inside, own) for inside, own in array_leaves(raw_value(leaf))]
        for keys, leaf in leaves
    ]
    flat = []
    for (keys, leaf), of_leaf in zip(leaves, readers, strict=True):
        value = jax.tree.unflatten(jax.tree.structure(raw_value(leaf)), [read() for read in of_leaf])
        flat.append((keys, leaf.replace(value) if isinstance(leaf, nnx.Variable) else value))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def live_value(leaf: Leaf) -> Any:
    """A leaf as JAX wants it: a jax.Array, or a typed PRNG key."""
    import jax.numpy as jnp

    value = leaf.fetch()
    if leaf.spec.kind is LeafKind.KEY:
        return _typed(leaf.spec, value)
    return jnp.asarray(value) if hasattr(value, "dtype") else value


def _typed(spec: Any, value: Any) -> Any:
    import jax
    import jax.numpy as jnp

    if spec.kind is LeafKind.KEY and value.dtype == jnp.uint32:
        return jax.random.wrap_key_data(jnp.asarray(value), impl=spec.dtype)
    return jnp.asarray(value)
