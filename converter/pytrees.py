"""What live pytrees are made of: the paths and the specs of their leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from converter.paths import IndexKey, IntKey, Key, Path, TupleKey, format_path
from converter.tree import LeafKind, LeafSpec, array_spec, empty_spec


def pytree_path(keys: Sequence[Any]) -> Path:
    """The path of a leaf as ``jax.tree_util`` names it."""
    import jax.tree_util as tu

    path: list[str] = []
    for key in keys:
        if isinstance(key, tu.SequenceKey):
            path.append(IndexKey(key.idx))
        elif isinstance(key, tu.GetAttrKey):
            path.append(key.name)
        elif isinstance(key, tu.DictKey):
            path.append(_dict_key(key.key))
        else:
            path.append(str(key.key))
    return tuple(path)


def state_path(keys: Sequence[Any]) -> Path:
    """The path of a flat ``nnx.State`` entry; a tuple key becomes its text, as Orbax writes it."""
    return tuple(map(_dict_key, keys))


def _dict_key(key: Any) -> Key:
    if isinstance(key, int):
        return IntKey(key)
    return TupleKey(key) if isinstance(key, tuple) else str(key)


def live_spec(value: Any) -> LeafSpec:
    """The spec of a live leaf: an array, a ShapeDtypeStruct, a tracer, a typed PRNG key or a Python value."""
    if isinstance(value, bool | int | float | complex):
        return LeafSpec(LeafKind.SCALAR, type(value).__name__)
    if isinstance(value, str | bytes):
        return LeafSpec(LeafKind.TEXT, type(value).__name__)
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return empty_spec("node")
    import jax

    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        implementation = value.dtype._impl.name
        return LeafSpec(LeafKind.KEY, str(implementation), tuple(value.shape))
    return array_spec(value.dtype.name, value.shape)


def named_leaves(returned: Any) -> list[tuple[str, Any]]:
    """What a model returns, by path in the returned pytree; "output" for a single value."""
    import jax

    found = jax.tree_util.tree_flatten_with_path(returned)[0]
    return [(format_path(pytree_path(keys)) or "output", leaf) for keys, leaf in found]
