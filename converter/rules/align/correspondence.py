"""Which variables belong together, and what is done to them: from pairs of parts to pieces of a correspondence."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from converter.rules.align.assembling import assembly_of
from converter.rules.align.elements import Elements, Shape
from converter.rules.align.layouts import Inexpressible
from converter.rules.align.levels import Level, Pair
from converter.rules.align.merging import merged_parts
from converter.rules.align.recipes import Recipe, recipe_of
from converter.rules.operations import Agree, Copies, Operation
from converter.rules.operations.assemble import positions
from converter.tree import LeafKind, LeafSpec

CHECKED = 1 << 17
"""Groups of more elements are not checked element by element here, only by running the models."""

Shapes = tuple[Mapping[int, Shape], Mapping[int, Shape]]
"""The shapes of the variables of Linen and NNX by their numbers."""


@dataclass(frozen=True, slots=True)
class Group:
    """Variables whose parts are each other's.

    Attributes:
      linen, nnx: their numbers, in the operation's order.
      operation: what makes the ones of NNX from those of Linen.
      level: how the least sure of their parts was paired.
      extended: whether the call reads only a part of them, and the rest follows by being in the same place.
      recipe: how the operation is made up; None where it is no cutting and joining of axes.
    """

    linen: tuple[int, ...]
    nnx: tuple[int, ...]
    operation: Operation
    level: Level
    extended: bool = False
    recipe: Recipe | None = None


@dataclass(frozen=True, slots=True)
class Misfit:
    """Variables that belong together in a way that cannot be stated, and why."""

    linen: tuple[int, ...]
    nnx: tuple[int, ...]
    reason: str


Paired = Sequence[tuple[Pair, Elements]]


def groups_of(paired: Paired, shapes: Shapes) -> tuple[list[Group], list[Misfit]]:
    """Groups of variables whose parts are paired with each other, and those for which there is no operation."""
    groups: list[Group] = []
    misfits: list[Misfit] = []
    for members in _connected(paired):
        linen, nnx = (tuple(dict.fromkeys((e.linen, e.nnx)[side] for _, e in members)) for side in (0, 1))
        try:
            groups.append(_group(members, shapes))
        except Inexpressible as error:
            misfits.append(Misfit(linen, nnx, str(error)))
    return groups, misfits


def _connected(paired: Paired) -> list[list[tuple[Pair, Elements]]]:
    """Pairs that share a variable, directly or through others."""
    parent: dict[tuple[int, int], tuple[int, int]] = {}

    def root(key: tuple[int, int]) -> tuple[int, int]:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for _, elements in paired:
        parent[root((0, elements.linen))] = root((1, elements.nnx))
    found: dict[tuple[int, int], list[tuple[Pair, Elements]]] = defaultdict(list)
    for member in paired:
        found[root((0, member[1].linen))].append(member)
    return list(found.values())


def _group(members: Paired, shapes: Shapes) -> Group:
    order = list(Level)
    level = max((pair.level for pair, _ in members), key=order.index)
    every = list(dict.fromkeys(elements for _, elements in members))
    copies = _copies(every, shapes)
    if copies is not None:
        return replace(copies, level=level)
    whole = merged_parts(every)
    extended = False
    if len(whole) == 1:
        extended = whole[0] != (complete := _extended(whole[0], shapes))
        whole = [complete]
    recipe = _first_recipe((whole, every), shapes)
    if recipe is None:
        group = Group(*assembly_of(whole, shapes), level, extended)
    else:
        group = Group(recipe.linen, recipe.nnx, recipe.operation, level, extended, recipe)
    _check(group, whole, shapes)
    return group


def _first_recipe(ways: Iterable[Sequence[Elements]], shapes: Shapes) -> Recipe | None:
    for elements in ways:
        with contextlib.suppress(Inexpressible):
            return recipe_of(elements, shapes)
    return None


def _extended(elements: Elements, shapes: Shapes) -> Elements:
    """All of two variables of which the call reads the first rows: the others are in the same places.

    A table of positions is read as far as the inputs are long.
    """
    sizes = [math.prod(shapes[side][number]) for side, number in enumerate((elements.linen, elements.nnx))]
    if sizes[0] != sizes[1] or elements.size == sizes[0] or not elements.steps:
        return elements
    for at, (size, *strides) in enumerate(elements.steps):
        full = sizes[0] // (elements.size // size)
        rows = [divmod(start, stride) for start, stride in zip(elements.starts, strides, strict=True)]
        same_row = rows[0] == (rows[1][0], 0) and rows[1][1] == 0 and rows[0][0] + size <= full
        complete = full * (elements.size // size) == sizes[0]
        if same_row and complete and all(_outermost(elements, at, side) for side in (0, 1)):
            steps = (*elements.steps[:at], (full, strides[0], strides[1]), *elements.steps[at + 1 :])
            return replace(elements, starts=(0, 0), steps=steps)
    return elements


def _outermost(elements: Elements, at: int, side: int) -> bool:
    """Whether no step of one side is longer than this one, so that it walks along the rows."""
    return all(step[1 + side] <= elements.steps[at][1 + side] for step in elements.steps)


def _copies(every: Sequence[Elements], shapes: Shapes) -> Group | None:
    """One whole variable that is several on the other side: weights tied on one side only."""
    linen = list(dict.fromkeys(elements.linen for elements in every))
    nnx = list(dict.fromkeys(elements.nnx for elements in every))
    if len(every) < 2 or min(len(linen), len(nnx)) > 1 or max(len(linen), len(nnx)) < len(every):
        return None
    if any(elements.size != math.prod(shapes[0][elements.linen]) for elements in every):
        return None
    if any(elements.size != math.prod(shapes[1][elements.nnx]) for elements in every):
        return None
    views = tuple(recipe_of([elements], shapes).operation for elements in every)
    operation: Operation = Copies(views) if len(linen) == 1 else Agree(views)
    return Group(tuple(linen), tuple(nnx), operation, Level.UNIQUE)


def _check(group: Group, every: Sequence[Elements], shapes: Shapes) -> None:
    """Applies the operation to the positions of elements, and compares where they come out.

    Raises:
      Inexpressible: they come out elsewhere.
    """
    import numpy as np

    sizes = {number: math.prod(shapes[0][number]) for number in group.linen}
    if sum(sizes.values()) > CHECKED:
        return
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    values = [np.arange(sizes[n]).reshape(shapes[0][n]) + starts[n] for n in group.linen]
    made = group.operation.apply(values, [LeafSpec(LeafKind.ARRAY, "int64", value.shape) for value in values])
    results = dict(zip(group.nnx, made, strict=True))
    if any(results[number].shape != shapes[1][number] for number in group.nnx):
        raise Inexpressible("the operation that was found gives another shape")
    for elements in every:
        sources, targets = (positions(elements.starts[side], elements.runs(side)).reshape(-1) for side in (0, 1))
        if (results[elements.nnx].reshape(-1)[targets] != sources + starts[elements.linen]).any():
            raise Inexpressible("the operation that was found takes elements to other places")
