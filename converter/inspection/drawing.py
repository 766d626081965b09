"""A checkpoint drawn as the nested tree it is, with equal siblings folded and the totals of every node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from converter.folding import columns, fold_names
from converter.inspection.totals import Total, added, total_of
from converter.paths import Key, Path, format_path
from converter.planning.wording import count
from converter.tree import LeafSpec

Described = tuple[LeafSpec, str]
"""A leaf and how it was spread over devices (empty where that is not noted)."""

_BRANCH, _LAST, _PASSING, _NOTHING = "├─ ", "└─ ", "│  ", "   "


@dataclass(slots=True)
class Node:
    """A container with its children, or a leaf."""

    children: dict[Key, Node] = field(default_factory=dict)
    leaf: Described | None = None
    total: Total = field(default_factory=Total)
    shape: tuple[Any, ...] = ()
    """Equal for nodes that hold the same below the same names."""

    def close(self) -> None:
        """Works out what follows from the children."""
        for child in self.children.values():
            child.close()
        inside = [child.total for child in self.children.values()]
        self.total = added(inside) if self.leaf is None else total_of(self.leaf[0])
        self.shape = (self.leaf, tuple((str(key), child.shape) for key, child in self.children.items()))


def grow(leaves: Iterable[tuple[Path, Described]]) -> Node:
    """The nested tree of all leaves."""
    root = Node()
    for path, leaf in leaves:
        node = root
        for key in path:
            node = node.children.setdefault(key, Node())
        node.leaf = leaf
    root.close()
    return root


def draw(root: Node) -> list[str]:
    """One line for each node, or for several that are equal; what they are stands in a column of its own."""
    if root.leaf is not None:
        return columns([_described(root)])
    return columns(_rows(root, None))


def _rows(node: Node, indent: str | None) -> Iterator[tuple[str, ...]]:
    """The rows below a node; the outermost ones have no branches."""
    folded = fold_names([(format_path((key,)), child.shape) for key, child in node.children.items()])
    children = list(node.children.values())
    for number, (name, members) in enumerate(folded):
        first, is_last = children[members[0]], number == len(folded) - 1
        branch = "" if indent is None else indent + (_LAST if is_last else _BRANCH)
        if (wrapped := _only_leaf(first)) is not None:
            key, first = wrapped
            name = f"{name}/{format_path((key,))}"
        if first.leaf is not None:
            yield (branch + name, *_described(first))
            continue
        total = added(children[member].total for member in members)
        yield branch + name, f"{count(total.leaves, 'leaf', 'leaves')}, {total.size}"
        yield from _rows(first, "" if indent is None else indent + (_NOTHING if is_last else _PASSING))


def _only_leaf(node: Node) -> tuple[Key, Node] | None:
    """The one child that is a leaf, as an NNX Variable has it: both share a line."""
    if len(node.children) != 1:
        return None
    [(key, child)] = node.children.items()
    return None if child.leaf is None else (key, child)


def _described(node: Node) -> tuple[str, ...]:
    assert node.leaf is not None
    spec, sharding = node.leaf
    return (str(spec), sharding) if sharding else (str(spec),)


def to_json(root: Node, name: str = "") -> dict[str, Any]:
    """The whole tree, unfolded, as plain JSON values."""
    found: dict[str, Any] = {"name": name, "leaves": root.total.leaves, "bytes": root.total.nbytes}
    if root.leaf is not None:
        return {**found, "leaf": str(root.leaf[0])}
    return {**found, "children": [to_json(child, str(key)) for key, child in root.children.items()]}
