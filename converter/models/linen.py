"""Linen model definitions: their variables, found by initialising them abstractly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from converter import user_code
from converter.errors import ModelError
from converter.models.layers import recording
from converter.models.model import Model, ModelVariable
from converter.paths import Path
from converter.pytrees import live_spec, pytree_path
from converter.training_state import PARAMS

if TYPE_CHECKING:
    from flax import linen


def linen_model(
    module: linen.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None, method: Any = None
) -> Model:
    """Evaluates ``module.init`` abstractly on ``inputs`` (arrays or ShapeDtypeStructs).

    Args:
      method: a function of the module that is called in the place of its ``__call__``.

    Raises:
      ModelError: not a Linen module, or its init fails on these inputs.
    """
    import jax
    from flax import linen as nn

    if not isinstance(module, nn.Module):
        raise ModelError(
            f"expected a Linen module, found {type(module).__name__}",
            "An NNX module belongs to --nnx-model (module=).",
        )
    rngs = {name: jax.random.key(0) for name in ("params", "dropout")}

    def make() -> Any:
        return module.init(rngs, *_dummies(inputs), **(kwargs or {}), method=method)

    with recording() as record:
        what = f"initialising the Linen model {type(module).__name__}"
        variables = user_code.call(what, jax.eval_shape, make)
    found = _variables(variables)
    lifted = record.lifted({(variable.collection, variable.path): variable.spec.shape for variable in found})
    return Model("linen", module, found, make, record.layers, lifted, items=record.items)


def linen_variables_model(variables: Mapping[str, Any]) -> Model:
    """Describes the variables of a live model; the layers they belong to are not known."""
    return Model("linen", None, _variables(variables))


def _variables(variables: Any) -> tuple[ModelVariable, ...]:
    return tuple(
        ModelVariable(
            collection=str(path[0]),
            path=path[1:],
            spec=live_spec(value),
            linen_path=path[1:],
            boxed=boxed,
            trainable=path[0] == PARAMS,
        )
        for path, value, boxed in linen_leaves(variables)
    )


def _dummies(inputs: Sequence[Any]) -> list[Any]:
    import jax
    import jax.numpy as jnp

    return [jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x for x in inputs]


def linen_leaves(variables: Any) -> list[tuple[Path, Any, bool]]:
    """The leaves of a live Linen variables dict: path, value without its box, and whether it had one."""
    import jax
    from flax.core import meta

    def is_box(node: Any) -> bool:
        return isinstance(node, meta.AxisMetadata)

    leaves = jax.tree_util.tree_flatten_with_path(variables, is_leaf=is_box)[0]
    return [(pytree_path(keys), meta.unbox(leaf), is_box(leaf)) for keys, leaf in leaves]
