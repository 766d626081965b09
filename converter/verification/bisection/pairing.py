"""Which calls of modules belong together: those of modules that hold corresponding variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from converter.paths import Path
from converter.verification.bisection.recording import Visit


@dataclass(frozen=True, slots=True)
class VariableLink:
    """The paths of variables of Linen, below their collections, and those of NNX that hold the same values.

    Attributes:
      linen, nnx: the paths.
      renamed: whether nothing but names differs.
    """

    linen: tuple[Path, ...]
    nnx: tuple[Path, ...]
    renamed: bool = True


VisitPair = tuple[Visit, Visit]


def pair_visits(linen: Sequence[Visit], nnx: Sequence[Visit], links: Sequence[VariableLink]) -> list[VisitPair]:
    """Pairs of visits in the order in which Linen's ended.

    Two modules belong together if the same links meet below both. Where several on a side do (a wrapper and what it
    wraps, items of a list that the other side stacks), nesting and the order of calls tell which is which. Modules
    without variables belong together if they are alike and are called equally often by modules that do.
    """
    left = _grouped(linen, [link.linen for link in links])
    right = _grouped(nnx, [link.nnx for link in links])
    pairs: dict[Visit, Visit] = {}
    roots = (_outermost(linen), _outermost(nnx))
    if all(roots):
        pairs[roots[0][0]] = roots[1][0]
    for key, visits in left.items():
        _zip(visits, right.get(key, []), pairs)
    _pair_the_rest(linen, nnx, pairs)
    return [(visit, pairs[visit]) for visit in linen if visit in pairs]


def _outermost(visits: Sequence[Visit]) -> list[Visit]:
    """The visit of the model itself."""
    return [visit for visit in visits[-1:] if visit.parent is None]


def _zip(left: Sequence[Visit], right: Sequence[Visit], pairs: dict[Visit, Visit]) -> None:
    """Pairs visits in their order where there are equally many; else those of each method by themselves."""
    if len(left) == len(right):
        taken = set(pairs.values())
        for one, other in zip(left, right, strict=True):
            if one not in pairs and other not in taken:
                pairs[one] = other
        return
    methods = {visit.method for visit in left} & {visit.method for visit in right}
    if len({visit.method for visit in (*left, *right)}) > 1:
        for method in sorted(methods):
            ours, theirs = ([visit for visit in side if visit.method == method] for side in (left, right))
            _zip(ours, theirs, pairs)


Key = tuple[frozenset[int], int]
"""The links that meet below a module, and how many modules around it hold no more than these."""


def _grouped(visits: Sequence[Visit], links: Sequence[Iterable[Path]]) -> dict[Key, list[Visit]]:
    below: dict[Path, set[int]] = {visit.path: set() for visit in visits}
    for number, paths in enumerate(links):
        for path in paths:
            for depth in range(len(path)):
                if path[:depth] in below:
                    below[path[:depth]].add(number)
    groups: dict[Key, list[Visit]] = {}
    for visit in visits:
        held = below[visit.path]
        if held:
            around = (visit.path[:depth] for depth in range(len(visit.path)))
            level = sum(path in below and below[path] == held for path in around)
            groups.setdefault((frozenset(held), level), []).append(visit)
    return groups


def _pair_the_rest(linen: Sequence[Visit], nnx: Sequence[Visit], pairs: dict[Visit, Visit]) -> None:
    """Pairs visits of modules without variables inside of paired ones, by kind and order."""
    left, right = _by_place(linen, pairs), _by_place(nnx, {other: other for other in pairs.values()})
    for parent, other in list(pairs.items()):
        for kind, visits in left.get(parent, {}).items():
            theirs = right.get(other, {}).get(kind, [])
            if len(visits) == len(theirs):
                pairs.update(zip(visits, theirs, strict=True))


def _by_place(visits: Sequence[Visit], paired: Mapping[Visit, Visit]) -> dict[Visit, dict[str, list[Visit]]]:
    """The visits that are not paired, by the innermost paired visit around them and by their kind."""
    found: dict[Visit, dict[str, list[Visit]]] = {}
    for visit in visits:
        around = visit.parent
        while around is not None and around not in paired:
            around = around.parent
        if visit not in paired and around is not None:
            found.setdefault(around, {}).setdefault(visit.kind, []).append(visit)
    return found
