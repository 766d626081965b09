"""Pairing loops with scans: ``layers_0 … layers_11`` on one side, ``layers`` with an axis of 12 on the other.

A scan keeps the variables of all its layers stacked, along an axis that no checkpoint records. It follows from the
call of the stacked model where that can be traced, else from the shapes, as long as they allow for one axis only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from converter.paths import Path
from converter.rules.layers import Part
from converter.rules.link import Name, format_name
from converter.rules.matching.board import Board, Piece
from converter.rules.matching.by_name import part_names
from converter.rules.matching.evidence import Evidence
from converter.rules.matching.fitting import same_shape
from converter.rules.names import spellings, without_numbers
from converter.rules.operations import Operation, Regroup, Stack, Unfit, chain
from converter.tree import LeafKind, LeafSpec

Axes = tuple[int, ...]
"""Axes of the stacked array, that of the outermost loop first."""


@dataclass(frozen=True, slots=True, eq=False)  # known by identity: comparing thousands of names takes its time
class Loop:
    """Variables of a loop that are one stacked variable, or several where a layer fuses them.

    Attributes:
      linen, nnx: the names; on the looped side those of all layers, layer after layer.
      counts: the lengths of the loops, the outermost first.
      part: what a single layer's variables are in NNX.
      single: specs of a single layer, of the stacked side's kind.
      stacked: the stacked variables, to which ``single`` belong.
      to_linen_stack: whether Linen is the stacked side.
    """

    linen: tuple[Name, ...]
    nnx: tuple[Name, ...]
    counts: tuple[int, ...]
    part: Part
    single: tuple[LeafSpec, ...]
    stacked: tuple[Name, ...]
    stacked_in_linen: bool

    def piece(self, axes: Axes) -> Piece:
        if not self.stacked_in_linen:
            return Piece(self.linen, self.nnx, chain(self.part.to_nnx, *_stacks(self.counts, axes)))
        unstacks = tuple(stack.inverse() for stack in reversed(_stacks(self.counts, axes)))
        regroup = Regroup((len(self.linen), math.prod(self.counts)), (1, 0))
        order = () if len(self.linen) == 1 else (regroup,)
        return Piece(self.linen, self.nnx, chain(*unstacks, *order, self.part.to_nnx))


def pair_loops(board: Board, evidence: Evidence | None) -> list[str]:
    """Pairs what is free on both sides and differs by item numbers on one of them.

    Returns:
      what remains unpaired because its axis cannot be told; one line each.
    """
    loops = [*_linen_loops(board), *_nnx_loops(board)]
    possible = {loop: axes_of(board, loop, evidence) for loop in loops}
    # What is known by name alone (masked out in an optimizer saved alone) says nothing about the axis of the others.
    known = {loop: axes for loop, axes in possible.items() if _has_shapes(board, loop)}
    problems = []
    for loop, axes in possible.items():
        chosen = _agreed(loop, axes, known)
        if len(chosen) == 1:
            board.settle(loop.piece(chosen[0]))
        elif chosen:
            board.give_up(loop.linen, loop.nnx)
            names = " + ".join(format_name(name) for name in loop.stacked)
            shown = " or ".join(",".join(map(str, axes)) for axes in chosen)
            problems.append(f"{names}: its shape allows for several axes of the layers ({shown})")
    return problems


def _linen_loops(board: Board) -> Iterator[Loop]:
    """Loops of Linen whose variables NNX keeps stacked."""
    members: dict[Name, dict[tuple[int, ...], Name]] = {}
    for collection, path in board.free_linen:
        for shorter, numbers in without_numbers(path):
            members.setdefault((collection, shorter), {})[numbers] = (collection, path)
    for part in list(board.free_parts.values()):
        for names in part_names(board, part):
            counts = _counts([members.get(name, {}) for name in names])
            if counts is None:
                continue
            grid = list(itertools.product(*map(range, counts)))
            linen = tuple(members[name][numbers] for numbers in grid for name in names)
            single = single_specs(part.to_nnx, [[board.linen[members[n][g]] for n in names] for g in grid])
            if single is not None:
                yield Loop(linen, part.nnx, counts, part, single, part.nnx, stacked_in_linen=False)
                break


def _nnx_loops(board: Board) -> Iterator[Loop]:
    """Loops of NNX whose variables Linen keeps stacked."""
    members: dict[tuple[Path, Part], dict[tuple[int, ...], Part]] = {}
    for part in board.free_parts.values():
        root, name = tuple(map(str, part.root)), part.nnx[0]
        for shorter, numbers in without_numbers(root):
            inside = tuple(map(str, name[1][len(root) :]))
            key = Part(shorter, part.kind, part.roles, ((name[0], (*shorter, *inside)),), part.to_nnx)
            members.setdefault((shorter, key), {})[numbers] = part
    for (root, key), parts in members.items():
        counts = _counts([parts])
        if counts is None:
            continue
        grid = list(itertools.product(*map(range, counts)))
        for spelled in spellings(root):
            linen = tuple((collection, (*spelled, *inside)) for collection, inside in key.roles)
            nnx = tuple(parts[numbers].nnx[0] for numbers in grid)
            if not all(name in board.free_linen for name in linen):
                continue
            single = single_specs(key.to_nnx.inverse(), [[board.nnx[name]] for name in nnx])
            if single is not None:
                yield Loop(linen, nnx, counts, key, single, linen, stacked_in_linen=True)
                break


def _counts(members: list[Mapping[tuple[int, ...], object]]) -> tuple[int, ...] | None:
    """The lengths of the loops if every variable has all its layers, from 0 on without gaps; else None."""
    numbers = set(members[0])
    depths = {len(each) for each in numbers}
    if len(depths) != 1 or any(set(other) != numbers for other in members):
        return None
    counts = tuple(max(column) + 1 for column in zip(*numbers, strict=True))
    return counts if len(numbers) == math.prod(counts) else None


def single_specs(operation: Operation, layers: list[list[LeafSpec]]) -> tuple[LeafSpec, ...] | None:
    """The specs that each layer has on the stacked side; None if they differ."""
    try:
        found = {operation.specs(layer) for layer in layers}
    except Unfit:
        return None
    return found.pop() if len(found) == 1 else None


def axes_of(board: Board, loop: Loop, evidence: Evidence | None) -> tuple[Axes, ...]:
    """The axes that the shapes of all stacked variables of the loop allow for, or the one that the call shows."""
    specs = board.linen if loop.stacked_in_linen else board.nnx
    possible: set[Axes] | None = None
    for name, single in zip(loop.stacked, loop.single, strict=True):
        found = set(_fitting(single, loop.counts, specs[name]))
        traced = _traced(name, loop.stacked_in_linen, evidence) if len(found) > 1 else ()
        if traced in found:
            found = {traced}
        possible = found if possible is None else possible & found
    return tuple(sorted(possible or ()))


def _has_shapes(board: Board, loop: Loop) -> bool:
    specs = board.linen if loop.stacked_in_linen else board.nnx
    return all(spec.kind is not LeafKind.EMPTY for spec in (*loop.single, *(specs[name] for name in loop.stacked)))


def _fitting(single: LeafSpec, counts: tuple[int, ...], stacked: LeafSpec) -> Iterator[Axes]:
    if LeafKind.EMPTY in (single.kind, stacked.kind):
        yield tuple(range(len(counts)))  # only names are asked for
        return
    for axes in itertools.permutations(range(len(stacked.shape)), len(counts)):
        try:
            (made,) = chain(*_stacks(counts, axes)).specs([single] * math.prod(counts))
        except Unfit:
            continue
        if same_shape(made, stacked):
            yield axes


def _traced(name: Name, in_linen: bool, evidence: Evidence | None) -> Axes:
    traces = evidence.traces() if evidence else ""
    return () if isinstance(traces, str) else traces[0 if in_linen else 1].scanned.get(name, ())


def _agreed(loop: Loop, axes: tuple[Axes, ...], possible: Mapping[Loop, tuple[Axes, ...]]) -> tuple[Axes, ...]:
    """The axes that suit all variables of the same collection in the same loop, counted from the front or the back."""
    if len(axes) < 2:
        return axes
    together = [other for other in possible if _group(other) == _group(loop) and possible[other]]
    common = set.intersection(*(set(possible[other]) for other in together))
    if len(common) == 1:
        return tuple(common)
    from_back = set.intersection(*({_backwards(found, other) for found in possible[other]} for other in together))
    chosen = tuple(found for found in axes if _backwards(found, loop) in from_back)
    return chosen if not common and len(chosen) == 1 else axes


def _backwards(axes: Axes, loop: Loop) -> Axes:
    rank = len(loop.single[0].shape) + len(loop.counts)
    return tuple(axis - rank for axis in axes)


def _group(loop: Loop) -> tuple[str, tuple[int, ...], bool, Path]:
    looped = loop.nnx if loop.stacked_in_linen else loop.linen
    common = itertools.takewhile(lambda keys: len(set(keys)) == 1, zip(*(path for _, path in looped), strict=False))
    return looped[0][0], loop.counts, loop.stacked_in_linen, tuple(keys[0] for keys in common)


def _stacks(counts: tuple[int, ...], axes: Axes) -> tuple[Operation, ...]:
    """Stacks the innermost loop first; ``axes`` are those of the result."""
    stacks: list[Operation] = []
    for depth in reversed(range(len(counts))):
        outer = sum(axis < axes[depth] for axis in axes[:depth])
        stacks.append(Stack(counts[depth], axes[depth] - outer))
    return tuple(stacks)
