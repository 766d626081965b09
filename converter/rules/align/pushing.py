"""Cutting a part out of a result by cutting it out of the variables that the result is made of.

``split(x @ kernel)`` is ``x @ kernel[:, :n]`` and ``x @ kernel[:, n:]``. Where one model fuses what the other one keeps
apart, this makes both the same graph, and the fused variable several views.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from converter.rules.align.graph import CONSTANT, VARIABLE, Graph, Node, reshape_groups
from converter.rules.align.views import Region, View, merged

ELEMENTWISE = frozenset(
    {
        *("abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp", "cos", "cosh", "div", "eq", "erf", "erfc"),
        *("erf_inv", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p"),
        *("logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "rem", "round", "rsqrt"),
        *("select_n", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor"),
    }
)
"""Operations on equal positions of their operands; scalars stand for arrays of any shape."""

REDUCTIONS = frozenset(
    {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"}
)
"""Operations along axes that disappear; ``details`` are these axes."""


@dataclass(frozen=True, slots=True)
class Cut:
    """``count`` positions of an axis, ``step`` apart, from ``start`` on."""

    axis: int
    start: int
    count: int
    step: int = 1

    def along(self, axis: int) -> Cut:
        return Cut(axis, self.start, self.count, self.step)

    def is_all_of(self, shape: Sequence[int]) -> bool:
        return (self.start, self.count) == (0, shape[self.axis]) and self.step == 1

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*shape[: self.axis], self.count, *shape[self.axis + 1 :])


class Cutter:
    """Cuts results of a graph.

    Args:
      graph: where the nodes are made.
      kept: parts of variables that are not cut further because they are used as a whole elsewhere.

    Attributes:
      origins: for each part that was cut out of a variable the larger parts that it was cut out of.
    """

    def __init__(self, graph: Graph, kept: Collection[Region] = ()) -> None:
        self._graph = graph
        self._kept = frozenset(kept)
        self.origins: dict[Region, set[Region]] = defaultdict(set)
        self._known: dict[tuple[int, Cut], Node | None] = {}

    def cut(self, node: Node, cut: Cut) -> Node:
        """The part of a result: made of cut variables if that is possible, else a slice of the result."""
        return self.pushed(node, cut) or self._sliced(node, cut)

    def _sliced(self, node: Node, cut: Cut) -> Node:
        details = (cut.axis, cut.start, cut.count, cut.step, node.shape[cut.axis])
        return self._graph.node("slice", details, (node,), cut.shape(node.shape), is_real=node.is_real)

    def pushed(self, node: Node, cut: Cut) -> Node | None:
        """The part of a result made of cut variables, or None."""
        if cut.is_all_of(node.shape):
            return node
        key = (node.number, cut)
        if key not in self._known:
            self._known[key] = self._push(node, cut)
        return self._known[key]

    def _push(self, node: Node, cut: Cut) -> Node | None:
        if node.depends == CONSTANT:
            return self._constant(node, cut)
        match node.operation:
            case "view":
                return self._view(node, cut)
            case "concatenate":
                return self._concatenation(node, cut)
            case "transpose":
                made = self.pushed(node.operands[0], cut.along(node.details[cut.axis]))
                return made and self._graph.transposed(made, node.details)
            case "broadcast_in_dim":
                return self._broadcast(node, cut)
            case "reshape":
                return self._reshape(node, cut)
            case "dot_general":
                return self._dot(node, cut)
            case "conv_general_dilated":
                return self._convolution(node, cut)
            case name if name in ELEMENTWISE:
                return self._elementwise(node, cut)
            case name if name in REDUCTIONS:
                kept = [axis for axis in range(len(node.operands[0].shape)) if axis not in node.details]
                return self._again(node, cut, [self.pushed(node.operands[0], cut.along(kept[cut.axis]))])
        return None

    def _again(self, node: Node, cut: Cut, operands: Sequence[Node | None]) -> Node | None:
        """The same operation on other operands, if all of them are known."""
        known = [operand for operand in operands if operand is not None]
        if len(known) != len(operands):
            return None
        shape = cut.shape(node.shape)
        return self._graph.node(node.operation, node.details, known, shape, is_real=node.is_real)

    def _constant(self, node: Node, cut: Cut) -> Node:
        value = node.value
        stop = cut.start + cut.count * cut.step
        where = (slice(None),) * cut.axis + (slice(cut.start, stop if stop >= 0 else None, cut.step),)
        part = None if value is None else lambda: value()[where]
        key = ("part", node.number, cut)
        return self._graph.constant(part, cut.shape(node.shape), is_real=node.is_real, key=key)

    def _view(self, node: Node, cut: Cut) -> Node | None:
        view = node.details.taken(cut.axis, cut.start, cut.count, cut.step)
        return None if view is None else self._cut_out(node, view)

    def _cut_out(self, node: Node, view: View) -> Node | None:
        """A part of the part of a variable that a node is, unless that is kept together."""
        whole = node.details.region
        if whole in self._kept:
            return None
        self.origins[view.region].add(whole)
        return self._graph.view(view, node.is_real)

    def _concatenation(self, node: Node, cut: Cut) -> Node | None:
        (axis,) = node.details
        if axis != cut.axis:
            return self._again(node, cut, [self.pushed(operand, cut) for operand in node.operands])
        first, last = sorted((cut.start, cut.start + (cut.count - 1) * cut.step))
        start, parts = 0, []
        for operand in node.operands:
            length = operand.shape[axis]
            if start <= first and last < start + length:
                return self.cut(operand, Cut(axis, cut.start - start, cut.count, cut.step))
            if first <= start and start + length - 1 <= last and cut.step == 1:
                parts.append(operand)
            start += length
        if cut.step == 1 and sum(part.shape[axis] for part in parts) == cut.count:
            return self._graph.node("concatenate", (axis,), parts, cut.shape(node.shape), is_real=node.is_real)
        return None

    def _elementwise(self, node: Node, cut: Cut) -> Node | None:
        made = [self.pushed(operand, cut) if operand.shape else operand for operand in node.operands]
        return self._again(node, cut, made)

    def _broadcast(self, node: Node, cut: Cut) -> Node | None:
        (source,), axes = node.operands, node.details
        if cut.axis in axes:
            own = axes.index(cut.axis)
            if source.shape[own] == node.shape[cut.axis]:
                made = self.pushed(source, cut.along(own))
                return made and self._graph.broadcast(made, cut.shape(node.shape), axes)
        return self._graph.broadcast(source, cut.shape(node.shape), axes)

    def _reshape(self, node: Node, cut: Cut) -> Node | None:
        (source,) = node.operands
        for before, after in reshape_groups(source.shape, node.shape) or ():
            if cut.axis in after:
                below = self._cut_below(source, before, node.shape, after, cut)
                return below and self._graph.reshaped(below, cut.shape(node.shape))
        return None

    def _cut_below(
        self, source: Node, before: Sequence[int], shape: Sequence[int], after: Sequence[int], cut: Cut
    ) -> Node | None:
        """What a cut through a reshaped result is in what it was reshaped from."""
        inner = math.prod(shape[axis] for axis in after if axis > cut.axis)
        outer = math.prod(shape[axis] for axis in after if axis < cut.axis)
        if len(before) == 1:
            return self._cut_of_split(source, before[0], shape[cut.axis], inner, outer, cut)
        if len(after) > 1:
            return None
        # One axis made of several: a cut that takes whole steps of an outer one, or lies within one of them.
        rest = math.prod(source.shape[axis] for axis in before[1:])
        first, last = sorted((cut.start, cut.start + (cut.count - 1) * cut.step))
        if cut.step == 1 and cut.start % rest == 0 and cut.count % rest == 0:
            return self.pushed(source, Cut(before[0], cut.start // rest, cut.count // rest))
        if cut.step % rest == 0 and rest > 1:
            made = self.pushed(source, Cut(before[0], cut.start // rest, cut.count, cut.step // rest))
            for axis in before[1:]:
                rest //= source.shape[axis]
                made = made and self.pushed(made, Cut(axis, cut.start // rest % source.shape[axis], 1))
            return made
        if len(before) == 2 and first // rest == last // rest:
            made = self.pushed(source, Cut(before[0], first // rest, 1))
            return made and self.pushed(made, Cut(before[1], cut.start % rest, cut.count, cut.step))
        return None

    def _cut_of_split(self, source: Node, axis: int, size: int, inner: int, outer: int, cut: Cut) -> Node | None:
        """The same where one axis is split into several."""
        if outer == 1:
            if cut.step == 1:
                return self.pushed(source, Cut(axis, cut.start * inner, cut.count * inner))
            if inner == 1:
                return self.pushed(source, Cut(axis, cut.start, cut.count, cut.step))
        if inner == 1 and cut.count == 1:
            return self.pushed(source, Cut(axis, cut.start, outer, size))
        # Several steps with gaps between them: no single cut of the axis, but one of the axis taken apart.
        if source.operation == "view":
            return self._cut_of_view(source, axis, (outer, size, inner), cut)
        return self._cut_through(source, axis, (outer, size, inner), cut)

    def _cut_of_view(self, source: Node, axis: int, sizes: tuple[int, int, int], cut: Cut) -> Node | None:
        shape = (*source.shape[:axis], *sizes, *source.shape[axis + 1 :])
        apart = source.details.reshaped(shape)
        part = apart and apart.taken(axis + 1, cut.start, cut.count, cut.step)
        if part is None:
            return None
        joined = merged(part.axes[axis] + part.axes[axis + 1] + part.axes[axis + 2])
        kept = View(part.variable, part.offset, (*part.axes[:axis], joined, *part.axes[axis + 3 :]))
        return self._cut_out(source, kept)

    def _cut_through(self, source: Node, axis: int, sizes: tuple[int, int, int], cut: Cut) -> Node | None:
        """The same below operations that leave this axis as it is."""
        length = sizes[0] * cut.count * sizes[2]
        shape = (*source.shape[:axis], length, *source.shape[axis + 1 :])

        def below(node: Node, own: int) -> Node | None:
            return self._cut_of_split(node, own, sizes[1], sizes[2], sizes[0], cut)

        def made(operands: Sequence[Node | None]) -> Node | None:
            known = [operand for operand in operands if operand is not None]
            if len(known) < len(operands):
                return None
            return self._graph.node(source.operation, source.details, known, shape, is_real=source.is_real)

        if source.depends == CONSTANT:
            return self._graph.constant(
                None, shape, is_real=source.is_real, key=("part", source.number, axis, sizes, cut)
            )
        if source.operation in ELEMENTWISE:
            return made([below(operand, axis) if operand.shape else operand for operand in source.operands])
        if source.operation == "dot_general":
            place = _free_operand(source, axis)
            if place is not None and source.operands[place[0]].depends == VARIABLE:
                operands: list[Node | None] = list(source.operands)
                operands[place[0]] = below(source.operands[place[0]], place[1])
                return made(operands)
        if source.operation == "broadcast_in_dim" and axis in source.details:
            own = source.details.index(axis)
            if source.operands[0].shape[own] == source.shape[axis]:
                part = below(source.operands[0], own)
                return part and self._graph.broadcast(part, shape, source.details)
        if source.operation == "reshape":
            for before, after in reshape_groups(source.operands[0].shape, source.shape) or ():
                if axis in after and len(before) == len(after) == 1:
                    part = below(source.operands[0], before[0])
                    return part and self._graph.reshaped(part, shape)
        return None

    def _dot(self, node: Node, cut: Cut) -> Node | None:
        place = _free_operand(node, cut.axis)
        if place is None or node.operands[place[0]].depends != VARIABLE:
            return None
        operands: list[Node | None] = list(node.operands)
        operands[place[0]] = self.pushed(node.operands[place[0]], cut.along(place[1]))
        return self._again(node, cut, operands)

    def _convolution(self, node: Node, cut: Cut) -> Node | None:
        kernel, details = node.operands[1], node.details
        if cut.axis != details.out_features or details.groups != (1, 1) or kernel.depends != VARIABLE:
            return None
        return self._again(node, cut, [node.operands[0], self.pushed(kernel, cut.along(details.kernel[0]))])


def _free_operand(dot: Node, axis: int) -> tuple[int, int] | None:
    """Which operand of a product an axis of the result comes from, and which axis of it; None for batch axes."""
    contracted, batched = dot.details
    place = axis - len(batched[0])
    if place < 0:
        return None
    for side, operand in enumerate(dot.operands):
        free = [a for a in range(len(operand.shape)) if a not in contracted[side] and a not in batched[side]]
        if place < len(free):
            return side, free[place]
        place -= len(free)
    return None


@dataclass(frozen=True, slots=True)
class Convolution:
    """What decides how a convolution works.

    Attributes:
      inputs: the axes of batch, features and space in its input.
      kernel: the axes of output features, input features and space in its kernel.
      out_features: the axis of features in its result.
      groups: the numbers of feature groups and batch groups.
      window: strides, padding and dilations.
    """

    inputs: tuple[int, ...]
    kernel: tuple[int, ...]
    out_features: int
    groups: tuple[int, int]
    window: Any
