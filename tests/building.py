"""Trees in memory for tests: what a checkpoint would hold, without a file around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.paths import IndexKey, IntKey, Path, PathGlob, format_path, parse_path
from converter.tree import LazyLeaf, Leaf, LeafKind, LeafSpec, Tree, array_spec, empty_spec

ZERO = np.zeros((), np.float32)
"""Stands for any leaf where only its path matters."""


@dataclass(frozen=True)
class PrngKey:
    """A typed PRNG key as a checkpoint holds it: its implementation, and its words of shape [..., words per key]."""

    words: np.ndarray
    implementation: str = "threefry2x32"


def prng_key(seed: int = 0) -> PrngKey:
    return PrngKey(np.array([0, seed], np.uint32))


def leaf_of(value: Any) -> Leaf:
    """The leaf of an array, a Python value, a ``PrngKey`` or an empty container."""
    if isinstance(value, PrngKey):
        return LazyLeaf(LeafSpec(LeafKind.KEY, value.implementation, value.words.shape[:-1]), lambda: value.words)
    if isinstance(value, bool | int | float | complex):
        return LazyLeaf(LeafSpec(LeafKind.SCALAR, type(value).__name__), lambda: value)
    if isinstance(value, str | bytes):
        return LazyLeaf(LeafSpec(LeafKind.TEXT, type(value).__name__), lambda: value)
    if hasattr(value, "dtype"):
        return LazyLeaf(array_spec(value.dtype.name, value.shape), lambda: value)
    container = "none" if value is None else {dict: "dict", list: "list", tuple: "tuple"}.get(type(value), "node")
    return LazyLeaf(empty_spec(container), lambda: None)


def tree_of(nested: Any) -> Tree:
    """A tree from nested dicts and lists; their keys and positions become keys of the same kind."""
    return Tree((path, leaf_of(value)) for path, value in _flat(nested, ()))


def _flat(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(node, dict) and node:
        for key, child in node.items():
            yield from _flat(child, (*path, IntKey(str(key)) if isinstance(key, int) else key))
    elif isinstance(node, list | tuple) and node:
        for position, child in enumerate(node):
            yield from _flat(child, (*path, IndexKey(str(position))))
    else:
        yield path, node


def tree_at(values: Mapping[str, Any]) -> Tree:
    """A tree from texts of paths; all keys are plain names."""
    return Tree((parse_path(path), leaf_of(value)) for path, value in values.items())


def tree_with(*paths: str) -> Tree:
    """A tree with some array at each of these paths."""
    return tree_at(dict.fromkeys(paths, ZERO))


def saved(pytree: Any) -> Tree:
    """A live pytree as Linen's savers record it: fields by name, tuples by position, members without arrays too."""
    import jax

    def holds_nothing(node: Any) -> bool:
        return not jax.tree.leaves(node, is_leaf=lambda child: child is not node)

    leaves = jax.tree_util.tree_flatten_with_path(pytree, is_leaf=holds_nothing)[0]
    return Tree((tuple(map(_key, keys)), leaf_of(_plain(value))) for keys, value in leaves)


def _key(entry: Any) -> str:
    """A key of ``jax.tree_util``: a position, the name of an attribute, or a key of a dict."""
    if hasattr(entry, "idx"):
        return IndexKey(str(entry.idx))
    return entry.name if hasattr(entry, "name") else str(entry.key)


def saved_nnx(state: Any, suffix: str | None = "value") -> Tree:
    """A live ``nnx.State``, or a dict of such, as Orbax records it; without ``suffix`` as a pure dict.

    All keys are plain names, also those of list items; a masked-out moment is an entry that holds nothing.
    """
    from flax import nnx

    def leaves(node: Any, path: Path) -> Iterator[tuple[Path, Leaf]]:
        if isinstance(node, nnx.Variable):
            yield from leaves(node.get_value(), (*path, suffix) if suffix else path)
        elif isinstance(node, nnx.State | dict):
            for key, child in node.items():
                yield from leaves(child, (*path, str(key)))
        else:
            yield path, leaf_of(_plain(node))

    return Tree(leaves(state, ()))


def _plain(value: Any) -> Any:
    """Arrays as NumPy arrays, typed keys as ``PrngKey``, everything else as it is."""
    import jax

    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return PrngKey(np.asarray(jax.random.key_data(value)), str(jax.random.key_impl(value)))
    return np.asarray(value) if isinstance(value, jax.Array) else value


def texts(paths: Any) -> list[str]:
    """Paths as texts, in order."""
    return [format_path(path) for path in paths]


def contents(tree: Tree) -> dict[str, Any]:
    """Every value of a tree by the text of its path, those of empty leaves left out."""
    return {format_path(p): leaf.fetch() for p, leaf in tree.items() if leaf.spec.kind is not LeafKind.EMPTY}


def globs(*patterns: str) -> tuple[PathGlob, ...]:
    """Patterns as ``Request.drop`` and ``Request.keep`` take them."""
    return tuple(map(PathGlob, patterns))


def collections(patterns: Mapping[str, str]) -> tuple[tuple[PathGlob, str], ...]:
    """What ``--collection`` says, as ``Request.collections`` takes it."""
    return tuple((PathGlob(pattern), name) for pattern, name in patterns.items())
