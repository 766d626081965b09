"""Source and target as two folded trees side by side; the page's script draws the lines between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from converter.html_report.groups import Group
from converter.html_report.markup import Markup, tag
from converter.planning.wording import count

OPEN_ROWS = 60
"""How many lines a tree has at first, at the most, if folding its innermost levels can bring it down to that."""

_KEY = re.compile(r'"(?:[^"\\]|\\.)*"(?=/|$)|[^/]+')


@dataclass(slots=True)
class _Node:
    children: dict[str, _Node] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    def height(self) -> int:
        """How many levels of branches are below, itself included."""
        inner = (_joined("", child)[1] for child in self.children.values())
        return max((node.height() + 1 for node in inner), default=0)

    def leaves(self, side: str) -> int:
        return sum(_number(group, side) for group in self.groups) + sum(
            child.leaves(side) for child in self.children.values()
        )


def side_by_side(groups: Sequence[Group], sides: tuple[str, str], titles: tuple[str, str]) -> Markup:
    """Both trees, folded to the same height: what corresponds is often alike in its last keys.

    Args:
      sides: what the two sides are called.
      titles: what the source and the target are.
    """
    trees = [_grown((path, group) for group in groups for path in paths(group)) for paths in (_sources, _targets)]
    height = 0
    while any(_lines(tree, height) > OPEN_ROWS and tree.height() > height + 1 for tree in trees):
        height += 1
    columns = [
        tag(
            "section",
            tag("h3", side, tag("span", title, class_="title"), class_="side"),
            tag("ul", *_items(tree, height, name)) if tree.children else tag("p", "No leaves.", class_="quiet"),
            class_=f"tree {name}",
            aria_label=f"{side} tree",
        )
        for name, side, title, tree in zip(("source", "target"), sides, titles, trees, strict=True)
    ]
    return tag("div", columns[0], tag("div", class_="gutter"), columns[1], class_="trees")


def _sources(group: Group) -> Iterable[str]:
    return group.paths.sources


def _targets(group: Group) -> Iterable[str]:
    return group.paths.targets


def _grown(leaves: Iterable[tuple[str, Group]]) -> _Node:
    root = _Node()
    for path, group in leaves:
        node = root
        for key in _KEY.findall(path) or ["(the whole tree)"]:
            node = node.children.setdefault(key, _Node())
        node.groups.append(group)
    return root


def _lines(node: _Node, height: int) -> int:
    """How many lines are seen where branches up to that height are folded."""
    seen = 0
    for key, child in node.children.items():
        inner = _joined(key, child)[1]
        unfolded = inner.children and inner.height() > height
        seen += len(inner.groups) + bool(inner.children) + (_lines(inner, height) if unfolded else 0)
    return seen


def _joined(key: str, node: _Node) -> tuple[str, _Node]:
    """Keys that lead to one other key only are shown as one."""
    while len(node.children) == 1 and not node.groups:
        following, node = next(iter(node.children.items()))
        key = f"{key}/{following}"
    return key, node


def _items(node: _Node, height: int, side: str) -> Iterable[Markup]:
    for first, child in node.children.items():
        key, inner = _joined(first, child)
        yield from (_leaf(key, group, side) for group in inner.groups)
        if inner.children:
            yield _branch(key, inner, height, side)


def _branch(key: str, node: _Node, height: int, side: str) -> Markup:
    told = count(node.leaves(side), "leaf", "leaves")
    summary = tag("summary", tag("span", key, class_="key"), " ", tag("span", told, class_="quiet"))
    inside = tag("ul", *_items(node, height, side))
    return tag("li", tag("details", summary, inside, open=node.height() > height))


def _leaf(key: str, group: Group, side: str) -> Markup:
    plain = group.kind == "moved" and group.operation == "rewrap"
    times = _number(group, side)
    notes: list[Markup | None] = [tag("span", f"×{times:,}", class_="times") if times > 1 else None]
    if side == "target" or plain or group.kind != "moved":
        notes.append(tag("span", group.leaf, class_="spec") if group.leaf else None)
    if group.kind != "moved":
        notes.append(tag("span", BADGES[group.kind], class_=f"badge {group.kind}"))
    elif side == "target" and not plain:
        notes.append(tag("span", group.operation, class_="badge made"))
    link = tag("a", key, href=f"#g{group.number}", data_group=group.number, class_="key")
    return tag("li", link, *(part for note in notes if note is not None for part in (" ", note)), class_="leaf")


def _number(group: Group, side: str) -> int:
    """How many leaves it stands for on one side."""
    return group.leaves if side == "target" else group.sources


BADGES = {"dropped": "dropped", "filled": "filled in", "empty": "holds nothing", "open": "not known"}


def legend(guesses: bool) -> Markup:
    """What the lines between the trees mean."""
    kinds = [("same", "renamed or re-wrapped, bits untouched"), ("made", "made by an operation")]
    if guesses:
        kinds.append(("unsure", "numeric or guessed: the computation alone does not tell"))
    rows = [tag("li", _line(kind), " ", told) for kind, told in kinds]
    return tag("ul", *rows, class_="legend scripted", aria_label="Lines between the trees", hidden=True)


def _line(kind: str) -> Markup:
    line = tag("line", x1=0, y1=6, x2=36, y2=6, class_=f"link {kind}")
    return tag("svg", line, width=36, height=12, aria_hidden="true")
