"""NNX model definitions: their Variables, collections and initial random state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from converter import user_code
from converter.errors import ModelError
from converter.models.layers import nnx_layers
from converter.models.model import Model, ModelVariable
from converter.paths import Path
from converter.pytrees import live_spec, pytree_path, state_path

if TYPE_CHECKING:
    from flax import nnx


def nnx_factory(factory: Callable[..., Any]) -> Callable[[], nnx.Module]:
    """A factory that needs no arguments: ``rngs=nnx.Rngs(0)`` is passed where the given one takes it."""
    from flax import nnx

    if user_code.requires(factory, "rngs"):
        return lambda: factory(rngs=nnx.Rngs(0))
    return factory


def nnx_model_from_factory(factory: Callable[..., Any]) -> Model:
    """Evaluates an NNX factory abstractly.

    Raises:
      ModelError: it cannot be called, or does not return a module.
    """
    from flax import nnx

    make = nnx_factory(factory)
    name = getattr(factory, "__name__", str(factory))

    # Variables with sharding names would ask for a mesh, which describing them does not need.
    def checked() -> tuple[nnx.Module, nnx.State]:
        module = make()
        _require_module(module)
        return module, nnx.state(module)

    with nnx.use_eager_sharding(False):
        module, state = user_code.call(f"building the NNX model {name}", nnx.eval_shape, checked)
        if len(nnx.to_flat_state(state)) > len(nnx.to_flat_state(nnx.state(module))):
            # An abstract module hides arrays in plain dicts (those of WeightNorm before flax 0.12.9).
            module = user_code.call(f"building the NNX model {name}", make)
    return nnx_model(module, make)


def nnx_state_model(state: nnx.State) -> Model:
    """Describes a state: the types of its Variables are known, the containers of its modules are not."""
    from flax import nnx

    return Model("nnx", None, tuple(_variables(nnx.to_flat_state(state), state_path)))


def nnx_model(module: nnx.Module, factory: Callable[[], Any] | None = None) -> Model:
    """Describes a concrete or abstract NNX module.

    Raises:
      ModelError: not a module.
    """
    from flax import nnx

    _require_module(module)
    flat = nnx.to_flat_state(nnx.state(module))
    variables = tuple(_variables(flat, lambda keys: _joined_items(module, keys)))
    return Model("nnx", module, variables, factory, nnx_layers(module))


def _require_module(module: Any) -> None:
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise ModelError(
            f"expected an nnx.Module, found {type(module).__name__}",
            "A Linen module belongs to --linen-model (linen_module=).",
        )


def _variables(flat: Iterable[tuple[Any, Any]], linen_path: Callable[[Sequence[Any]], Path]) -> Iterator[ModelVariable]:
    from flax import nnx

    for keys, leaf in flat:
        for inside, value in array_leaves(raw_value(leaf)):
            yield ModelVariable(
                collection=collection_of(leaf),
                path=state_path(keys) + inside,
                spec=live_spec(value),
                linen_path=tuple(str(key) for key in linen_path(keys) + inside),
                trainable=isinstance(leaf, nnx.Param),
            )


def raw_value(leaf: Any) -> Any:
    """The value inside an NNX Variable, or the leaf itself where an attribute is a plain array."""
    from flax import nnx

    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def array_leaves(value: Any) -> list[tuple[Path, Any]]:
    """What an NNX Variable holds: its array at the empty path, or the leaves of the pytree it was given."""
    import jax

    return [(pytree_path(keys), leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(value)[0]]


def collection_of(leaf: Any) -> str:
    """The Linen collection of an NNX Variable: the registered one, else the name of its class; "" for a plain array.

    This is the rule of ``flax.nnx.bridge`` (``variable_name_from_type``), without registering new names globally.
    """
    from flax import nnx

    if not isinstance(leaf, nnx.Variable):
        return ""
    try:
        return str(nnx.variable_name_from_type(type(leaf)))
    except ValueError:
        return type(leaf).__name__


def _joined_items(module: Any, keys: Sequence[Any]) -> Path:
    from flax import nnx

    names: list[str] = []
    node = module
    for position, key in enumerate(keys):
        if isinstance(node, nnx.bridge.ToNNX):  # what follows is Linen's already
            return (*names, *map(str, keys[position:]))
        inside_container = _is_container(node)
        if inside_container and names:
            names[-1] = f"{names[-1]}_{key}"
        else:
            names.append(str(key))
        node = _child(node, key)
    return tuple(names)


def _is_container(node: Any) -> bool:
    from flax import nnx

    return isinstance(node, (nnx.List, nnx.Dict, list, tuple, dict))


def _child(node: Any, key: Any) -> Any:
    try:
        return node[key] if _is_container(node) else getattr(node, key)
    except (AttributeError, KeyError, IndexError, TypeError):
        return None
