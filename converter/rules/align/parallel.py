"""Layers side by side: experts under one vmap are the list of experts.

A product with a batch axis in its kernel is as many products side by side. Taken apart, with everything that follows up
to the sum over all of them, it is what a list of layers computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from converter.rules.align.graph import VARIABLE, Node
from converter.rules.align.pushing import Cut

if TYPE_CHECKING:
    from converter.rules.align.lowering import Lowering

MOST = 64
"""More layers side by side are left together."""

Axes = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes of the two operands of a product that belong together."""


def product(lowering: Lowering, left: Node, right: Node, contracted: Axes, batched: Axes, shape: Sequence[int]) -> Node:
    """``jax.lax.dot_general``; one product for each layer where a kernel has a batch axis of layers."""
    kernel = next((side for side, node in enumerate((left, right)) if node.depends == VARIABLE), None)
    layers = left.shape[batched[0][0]] if len(batched[0]) == 1 else 0
    if kernel is not None and 1 < layers <= MOST and (left, right)[1 - kernel].depends != VARIABLE:
        parts = []
        for layer in range(layers):
            sides = [lowering.item(node, batched[side][0], layer) for side, node in enumerate((left, right))]
            inner = tuple(_without(contracted[side], batched[side][0]) for side in (0, 1))
            parts.append(_product(lowering, sides[0], sides[1], (inner[0], inner[1]), ((), ()), shape[1:]))
        return lowering.stacked(parts, 0)
    for place, axes in enumerate(zip(*contracted, strict=True)):
        if any(is_stack(node, axis) for node, axis in zip((left, right), axes, strict=True)):
            return _summed(lowering, (left, right), place, contracted, batched, shape)
    if kernel is not None:
        operands = (left, right)
        for axis, along in zip(contracted[1 - kernel], contracted[kernel], strict=True):
            terms = []
            for part, rows in by_parts(lowering, operands[1 - kernel], axis, operands[kernel], along):
                first, second = (part, rows) if kernel else (rows, part)
                terms.append(_product(lowering, first, second, contracted, batched, shape))
            if terms:
                return total(lowering, terms)
    return _product(lowering, left, right, contracted, batched, shape)


def _summed(
    lowering: Lowering,
    sides: tuple[Node, Node],
    place: int,
    contracted: Axes,
    batched: Axes,
    shape: Sequence[int],
) -> Node:
    """A product that sums over layers side by side, as the sum of the products of the layers."""
    axes = contracted[0][place], contracted[1][place]
    rest = tuple(own[:place] + own[place + 1 :] for own in contracted)
    inner = tuple(_without(own, axis) for own, axis in zip(rest, axes, strict=True))
    batch = tuple(_without(own, axis) for own, axis in zip(batched, axes, strict=True))
    terms = []
    for layer in range(sides[0].shape[axes[0]]):
        left, right = (lowering.item(node, axis, layer) for node, axis in zip(sides, axes, strict=True))
        terms.append(_product(lowering, left, right, (inner[0], inner[1]), (batch[0], batch[1]), shape))
    return total(lowering, terms)


def by_parts(lowering: Lowering, joined: Node, axis: int, kernel: Node, along: int) -> list[tuple[Node, Node]]:
    """What was joined along an axis that is summed over, with the rows of the kernel that belong to each part.

    ``concatenate([x, y]) @ kernel`` is ``x @ kernel[:n] + y @ kernel[n:]``.

    Args:
      along: the axis of the kernel that is summed over.

    Returns: nothing where ``joined`` is something else, or the kernel cannot be cut.
    """
    if joined.operation != "concatenate" or joined.details != (axis,) or joined.depends == VARIABLE:
        return []
    start = 0
    found: list[tuple[Node, Node]] = []
    for part in joined.operands:
        rows = lowering.cutter.pushed(kernel, Cut(along, start, part.shape[axis])) if len(found) < MOST else None
        if rows is None:
            return []
        found.append((part, rows))
        start += part.shape[axis]
    return found


def _product(
    lowering: Lowering, left: Node, right: Node, contracted: Axes, batched: Axes, shape: Sequence[int]
) -> Node:
    if contracted == ((), ()):
        return lowering.graph.node("outer_product", None, (left, right), shape)
    return lowering.graph.node("dot_general", (contracted, batched), (left, right), shape)


def _without(axes: Sequence[int], removed: int) -> tuple[int, ...]:
    """The same axes after one of the array's has disappeared."""
    return tuple(axis - (axis > removed) for axis in axes if axis != removed)


def is_stack(node: Node, axis: int) -> bool:
    """Whether single positions of this axis were put together."""
    return (
        node.operation == "concatenate"
        and node.details == (axis,)
        and 1 < len(node.operands) <= MOST
        and all(part.shape[axis] == 1 for part in node.operands)
        and node.depends != VARIABLE
    )


def total(lowering: Lowering, terms: Sequence[Node]) -> Node:
    """The sum of all terms."""
    result = terms[0]
    for term in terms[1:]:
        result = lowering.graph.node("add", None, (result, term), term.shape)
    return result


def _has_layers(node: Node) -> bool:
    """Whether it is made of layers side by side, rather than of unlike parts."""
    if node.operation != "concatenate" or not is_stack(node, node.details[0]):
        return False
    return len({_kind(part) for part in node.operands}) == 1


def _kind(part: Node) -> Any:
    while part.operation in ("reshape", "transpose"):
        (part,) = part.operands
    return part.operation


def elementwise(
    lowering: Lowering, name: str, details: Any, operands: Sequence[Node], shape: Sequence[int], *, is_real: bool
) -> Node:
    """An operation on equal positions; on layers side by side it is one on each of them."""
    stack = next((node for node in operands if _has_layers(node) and node.shape == tuple(shape)), None)
    if stack is None or not is_real:
        return lowering.graph.node(name, details, operands, shape, is_real=is_real)
    (axis,) = stack.details
    single = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = []
    for layer in range(len(stack.operands)):
        own = [lowering.sliced(node, axis, layer, 1) if node.shape else node for node in operands]
        parts.append(lowering.graph.node(name, details, own, single, is_real=is_real))
    return lowering.graph.node("concatenate", (axis,), parts, shape, is_real=is_real)


def transposed(lowering: Lowering, node: Node, order: Sequence[int]) -> Node:
    """Layers side by side stay so along another axis."""
    if not _has_layers(node):
        return lowering.graph.transposed(node, order)
    (axis,) = node.details
    parts = [lowering.graph.transposed(part, order) for part in node.operands]
    shape = [node.shape[at] for at in order]
    return lowering.graph.node("concatenate", (tuple(order).index(axis),), parts, shape, is_real=node.is_real)


def reduced(
    lowering: Lowering, name: str, axes: tuple[int, ...], node: Node, shape: Sequence[int], *, is_real: bool
) -> Node:
    """A reduction; the sum over layers side by side is the sum of the layers."""
    if node.operation == "concatenate" and is_stack(node, node.details[0]):
        (axis,) = node.details
        if axes == (axis,) and name == "reduce_sum":
            return total(lowering, [lowering.graph.reshaped(part, shape) for part in node.operands])
        if axis not in axes and _has_layers(node):
            kept = axis - sum(other < axis for other in axes)
            single = (*shape[:kept], 1, *shape[kept + 1 :])
            parts = [lowering.graph.node(name, axes, (part,), single, is_real=is_real) for part in node.operands]
            return lowering.graph.node("concatenate", (kept,), parts, shape, is_real=is_real)
    return lowering.graph.node(name, axes, (node,), shape, is_real=is_real)
