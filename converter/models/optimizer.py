"""What an optimizer definition tells about its state."""

from __future__ import annotations

from typing import Any

from converter import user_code
from converter.errors import ModelError
from converter.paths import Path
from converter.pytrees import live_spec, pytree_path
from converter.tree import LeafSpec


def optimizer_state_leaves(optimizer: Any, params: Any) -> list[tuple[Path, LeafSpec]]:
    """What ``optimizer.init(params)`` holds, members without arrays included (their spec is empty).

    Args:
      optimizer: an ``optax.GradientTransformation``.
      params: a pytree of ShapeDtypeStructs.

    Raises:
      ModelError: its init fails on these parameters.
    """
    import jax

    if not hasattr(optimizer, "init"):
        raise ModelError(
            f"expected an optax.GradientTransformation, found {type(optimizer).__name__}", "Return it from the factory."
        )
    state = user_code.call("initialising the optimizer", lambda: jax.eval_shape(optimizer.init, params))
    leaves = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_empty)[0]
    return [(pytree_path(keys), live_spec(leaf)) for keys, leaf in leaves]


def _is_empty(node: Any) -> bool:
    """Whether a node has no members at all, as EmptyState() and MaskedNode() have none."""
    import jax

    structure = jax.tree.structure(node)
    return bool(structure.num_leaves == 0 and structure.num_nodes == 1)
