"""From a jaxpr to a graph: calls inside of it are inlined, what only carries numbers along disappears."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from converter.rules.align import parallel
from converter.rules.align.constants import computed, literal
from converter.rules.align.graph import CONSTANT, INPUT, VARIABLE, Graph, Node
from converter.rules.align.loops import conditional, scan, while_loop
from converter.rules.align.pushing import ELEMENTWISE, REDUCTIONS, Convolution, Cut, Cutter
from converter.rules.align.views import Region, View

_SAME = frozenset(
    {
        *("convert_element_type", "copy", "copy_p", "device_put", "name", "optimization_barrier", "reduce_precision"),
        *("layout_constraint", "mesh_cast", "pcast", "pvary", "reshard", "sharding_constraint", "stop_gradient"),
    }
)
"""Operations that hand on each operand as it is, as far as exact values are concerned."""

_NO_DETAILS = frozenset({"sharding", "out_sharding", "accuracy", "precision", "preferred_element_type", "dtype"})
"""Parameters that say how, not what is computed."""

_CALLED = ("call_jaxpr", "jaxpr", "fun_jaxpr")


class Lowering:
    """Makes the nodes of a graph from the equations of jaxprs.

    Args:
      kept: parts of variables that are not cut further.

    Attributes:
      graph: the nodes.
      cutter: cuts them.
    """

    def __init__(self, kept: Collection[Region] = ()) -> None:
        self.graph = Graph()
        self.cutter = Cutter(self.graph, kept)
        self._calls = 0

    def program(self, closed: Any, variables: Sequence[bool]) -> list[Node]:
        """The results of a closed jaxpr.

        Args:
          variables: for the first arguments, whether they are variables to be found in the other model (or random
            state, which is not); all arguments after them are inputs.
        """
        arguments = []
        for place, atom in enumerate(closed.jaxpr.invars):
            shape, real = _shape(atom), _is_real(atom)
            if place >= len(variables):
                details = place - len(variables)
                node = self.graph.node("input", details, (), shape, is_real=real, depends=INPUT)
            elif variables[place]:
                node = self.graph.view(View.whole(place, shape), real)
            else:
                node = self.graph.constant(None, shape, is_real=real, key=("state", place))
            arguments.append(node)
        return self.call(closed, arguments)

    def call(self, jaxpr: Any, arguments: Sequence[Node]) -> list[Node]:
        """The results of a jaxpr, closed or not, for these arguments."""
        constants = getattr(jaxpr, "consts", ()) or ()
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        known = {atom: self._constant(value) for atom, value in zip(jaxpr.constvars, constants, strict=True)}
        known |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Node:
            return self._literal(atom) if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            known.update(zip(equation.outvars, self._results(equation, operands), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _constant(self, value: Any) -> Node:
        return self.graph.constant(literal(value), getattr(value, "shape", ()), is_real=_is_real_value(value))

    def _literal(self, atom: Any) -> Node:
        value = atom.val
        key = ("literal", str(atom.aval.dtype), str(value)) if not atom.aval.shape else None
        return self.graph.constant(literal(value), atom.aval.shape, is_real=_is_real(atom), key=key)

    def _results(self, equation: Any, operands: list[Node]) -> list[Node]:
        name, params = equation.primitive.name, equation.params
        match name:
            case "scan":
                return scan(self, equation, operands)
            case "while":
                return while_loop(self, equation, operands)
            case "cond":
                return conditional(self, equation, operands)
        body = next((params[key] for key in _CALLED if key in params and name not in REDUCTIONS), None)
        if body is not None and _takes(body, operands):
            return self.call(body, operands)
        if all(operand.depends == CONSTANT for operand in operands):
            return self.constants(equation, operands)
        if name in _SAME:
            return operands
        rule = _RULES.get(name)
        made = rule(self, operands, params, equation) if rule else None
        return self.other(equation, operands) if made is None else made

    def constants(self, equation: Any, operands: Sequence[Node]) -> list[Node]:
        value = computed(equation, [operand.value for operand in operands])
        results = []
        for place, atom in enumerate(equation.outvars):
            # Two constants are one node if one computation makes them; random numbers are never the same twice.
            self._calls += 1
            numbers = tuple(operand.number for operand in operands)
            random = "random" in equation.primitive.name or equation.primitive.name == "threefry2x32"
            key = (equation.primitive.name, place, numbers, self._calls if random else _details(equation.params))
            results.append(self.graph.constant(value, _shape(atom), is_real=_is_real(atom), key=(key, _shape(atom))))
        return results

    def other(self, equation: Any, operands: Sequence[Node]) -> list[Node]:
        """An operation about which nothing more is known."""
        details = _details(equation.params)
        return [
            self.graph.node(equation.primitive.name, (details, at), operands, _shape(atom), is_real=_is_real(atom))
            for at, atom in enumerate(equation.outvars)
        ]

    def sliced(self, node: Node, axis: int, start: int, count: int, step: int = 1) -> Node:
        return self.cutter.cut(node, Cut(axis, start, count, step if count > 1 else 1))

    def item(self, node: Node, axis: int, place: int) -> Node:
        """One position of an axis, which disappears."""
        shape = node.shape[:axis] + node.shape[axis + 1 :]
        return self.graph.reshaped(self.sliced(node, axis, place, 1), shape)

    def stacked(self, nodes: Sequence[Node], axis: int) -> Node:
        """Equal results along an additional axis."""
        shape = nodes[0].shape
        single = (*shape[:axis], 1, *shape[axis:])
        parts = [self.graph.reshaped(node, single) for node in nodes]
        whole = (*shape[:axis], len(nodes), *shape[axis:])
        return self.graph.node("concatenate", (axis,), parts, whole, is_real=nodes[0].is_real)


def _takes(body: Any, operands: Sequence[Node]) -> bool:
    jaxpr = getattr(body, "jaxpr", body)
    return hasattr(jaxpr, "eqns") and [_shape(atom) for atom in jaxpr.invars] == [node.shape for node in operands]


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(map(int, getattr(atom.aval, "shape", ())))


def _is_real(atom: Any) -> bool:
    return _is_real_dtype(getattr(atom.aval, "dtype", None))


def _is_real_value(value: Any) -> bool:
    return isinstance(value, float) or _is_real_dtype(getattr(value, "dtype", None))


def _is_real_dtype(dtype: Any) -> bool:
    import jax.numpy as jnp

    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact))


def _details(params: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((key, str(value)) for key, value in sorted(params.items()) if key not in _NO_DETAILS)


# Single operations ---------------------------------------------------------------------------------------------------

Rule = Callable[[Lowering, list[Node], Mapping[str, Any], Any], list[Node] | None]


def _reshape(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node] | None:
    return [lowering.graph.reshaped(operands[0], _shape(equation.outvars[0]))]


def _transpose(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    return [parallel.transposed(lowering, operands[0], params["permutation"])]


def _broadcast(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    axes = params["broadcast_dimensions"]
    return [lowering.graph.broadcast(operands[0], _shape(equation.outvars[0]), axes)]


def _tile(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    """Copies end to end; of an axis of length one they are that axis broadcast."""
    (node,) = operands
    wide: list[int] = []
    axes: list[int] = []
    for size, copies in zip(node.shape, params["reps"], strict=True):
        wide += [size * copies] if 1 in (size, copies) else [copies, size]
        axes.append(len(wide) - 1)
    return [lowering.graph.reshaped(lowering.graph.broadcast(node, wide, axes), _shape(equation.outvars[0]))]


def _slice(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    node = operands[0]
    steps = params["strides"] or (1,) * len(node.shape)
    for axis, (start, size, step) in enumerate(
        zip(params["start_indices"], _shape(equation.outvars[0]), steps, strict=True)
    ):
        node = lowering.sliced(node, axis, start, size, step)
    return [node]


def _dynamic_slice(
    lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any
) -> list[Node] | None:
    node, *starts = operands
    if any(start.value is None for start in starts):
        return None
    for axis, (start, size) in enumerate(zip(starts, params["slice_sizes"], strict=True)):
        first = min(max(int(start.value()), 0), node.shape[axis] - size)
        node = lowering.sliced(node, axis, first, size)
    return [node]


def _split(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    start, parts = 0, []
    for size in params["sizes"]:
        parts.append(lowering.sliced(operands[0], params["axis"], start, size))
        start += size
    return parts


def _unstack(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    return [lowering.item(operands[0], params["axis"], place) for place in range(len(equation.outvars))]


def _reverse(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    node = operands[0]
    for axis in params["dimensions"]:
        length = node.shape[axis]
        node = lowering.sliced(node, axis, length - 1, length, -1)
    return [node]


def _gather(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node] | None:
    """Rows that stand at equal distances are a slice."""
    node, indices = operands
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if indices.value is None or len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        return None
    (axis,) = numbers.start_index_map
    whole = all(sizes[at] == node.shape[at] for at in range(len(sizes)) if at != axis)
    if not whole or sizes[axis] != 1 or tuple(numbers.collapsed_slice_dims) != (axis,):
        return None
    rows = indices.value()[..., 0]
    shape = _shape(equation.outvars[0])
    batch = [axis for axis in range(len(shape)) if axis not in numbers.offset_dims]
    while rows.ndim > 1 and (rows == rows[:1]).all():  # the same positions for every example of a batch
        rows, batch = rows[0], batch[1:]
    cut = _even(rows.reshape(-1), node.shape[axis])
    if cut is None or rows.ndim > 1 or (rows.size > 1 and not node.shape[axis]):
        return None
    part = lowering.sliced(node, axis, *cut)
    if axis == 0 and rows.ndim == 1:
        return [lowering.graph.broadcast(part, shape, (*batch, *numbers.offset_dims))]
    if rows.size == 1 and len(shape) - len(numbers.offset_dims) == rows.ndim:
        return [lowering.graph.reshaped(part, shape)]
    return None


def _even(rows: Any, length: int) -> tuple[int, int, int] | None:
    """Start, number and distance of rows; None where they are not at equal distances."""
    rows = [min(max(int(row), 0), length - 1) for row in rows]
    if len(rows) == 1:
        return rows[0], 1, 1
    step = rows[1] - rows[0] if rows else 0
    if not step or any(b - a != step for a, b in itertools.pairwise(rows)):
        return None
    return rows[0], len(rows), step


def _concatenate(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    shape, real = _shape(equation.outvars[0]), _is_real(equation.outvars[0])
    return [lowering.graph.node("concatenate", (params["dimension"],), operands, shape, is_real=real)]


def _stack(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    return [lowering.stacked(operands, int(params["axis"]))]


def _dot(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    (left, right), (left_batch, right_batch) = params["dimension_numbers"]
    contracted, batched = (_integers(left), _integers(right)), (_integers(left_batch), _integers(right_batch))
    return [parallel.product(lowering, operands[0], operands[1], contracted, batched, _shape(equation.outvars[0]))]


def _integers(axes: Sequence[Any]) -> tuple[int, ...]:
    return tuple(map(int, axes))


def _convolution(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    numbers = params["dimension_numbers"]
    window = tuple(str(params[key]) for key in ("window_strides", "padding", "lhs_dilation", "rhs_dilation"))
    details = Convolution(
        tuple(numbers.lhs_spec),
        tuple(numbers.rhs_spec),
        int(numbers.out_spec[1]),
        (int(params["feature_group_count"]), int(params["batch_group_count"])),
        window,
    )
    shape = _shape(equation.outvars[0])
    if details.groups == (1, 1) and operands[1].depends == VARIABLE:
        parts = parallel.by_parts(lowering, operands[0], details.inputs[1], operands[1], details.kernel[1])
        if parts:
            terms = [lowering.graph.node(equation.primitive.name, details, part, shape) for part in parts]
            return [parallel.total(lowering, terms)]
    return [lowering.graph.node(equation.primitive.name, details, operands, shape)]


def _elementwise(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node]:
    details = params.get("y") if equation.primitive.name == "integer_pow" else None
    shape, real = _shape(equation.outvars[0]), _is_real(equation.outvars[0])
    # Axes of length one may stand for longer ones; here each operand is a number or has the shape of the result.
    operands = [lowering.graph.broadcast(each, shape, range(len(shape))) if each.shape else each for each in operands]
    return [parallel.elementwise(lowering, equation.primitive.name, details, operands, shape, is_real=real)]


def _reduction(lowering: Lowering, operands: list[Node], params: Mapping[str, Any], equation: Any) -> list[Node] | None:
    if len(operands) != 1:
        return None
    axes = tuple(int(axis) for axis in params["axes"])
    shape, real = _shape(equation.outvars[0]), _is_real(equation.outvars[0])
    return [parallel.reduced(lowering, equation.primitive.name, axes, operands[0], shape, is_real=real)]


_RULES: Mapping[str, Rule] = {
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "tile": _tile,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "unstack": _unstack,
    "rev": _reverse,
    "gather": _gather,
    "concatenate": _concatenate,
    "stack": _stack,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduction),
}
