"""Follows variables through a jaxpr: where they are used first, and which of their axes scans walk along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]

_SAME_SHAPE = frozenset(
    {
        *("convert_element_type", "reduce_precision", "stop_gradient", "copy", "copy_p", "rev", "name"),
        *("optimization_barrier", "device_put", "pvary", "mesh_cast", "reshard"),
        *("sharding_constraint", "layout_constraint"),
    }
)
"""Operations that hand on each operand as the result at the same position, as far as names are concerned."""


@dataclass(frozen=True, slots=True)
class View:
    """A name under which the program knows a variable, or one slice of it inside a scan.

    Attributes:
      variable: which variable.
      axes: for each axis of the view the axis of the variable that it is; None for one that was added, or made by
        merging or splitting axes.
      scanned: the variable's axes along which the scans around this place walk, outermost first.
    """

    variable: int
    axes: tuple[int | None, ...]
    scanned: tuple[int, ...] = ()


Views = list[View | None]
"""What is known of the operands or results of an operation: None for everything that is no plain name of a variable."""


class Dataflow:
    """Walks through a jaxpr in program order.

    Attributes:
      uses: for each variable that is used, the positions of its uses among all uses.
      scanned: for each variable that a scan walks through, the axes along which it does.
    """

    def __init__(self) -> None:
        self.uses: dict[int, list[int]] = {}
        self.scanned: dict[int, tuple[int, ...]] = {}
        self._position = 0

    def walk(self, jaxpr: Any, operands: Sequence[View | None]) -> Views:
        """Follows views of the jaxpr's inputs; gives those of its outputs."""
        jaxpr = _opened(jaxpr)
        names = dict(zip(jaxpr.invars, operands, strict=True))
        for equation in jaxpr.eqns:
            views = _known(names, equation.invars)
            if any(views):
                names.update(zip(equation.outvars, self._step(equation, views), strict=True))
        return _known(names, jaxpr.outvars)

    def _step(self, equation: Any, views: Views) -> Views:
        match equation.primitive.name:
            case "scan":
                return self._scan(equation.params, views)
            case "while":
                return self._while(equation.params, views)
            case "cond":
                return self._cond(equation.params, views)
            case name if name in _SAME_SHAPE:
                return views
            case name if name in _LAYOUT and views[0]:
                return [_moved(views[0], equation)]
        body = _body(equation)
        if body is not None:
            return self.walk(body, views)
        self._use(views)
        return [None] * len(equation.outvars)

    def _use(self, views: Views) -> None:
        for variable in dict.fromkeys(view.variable for view in views if view):
            self.uses.setdefault(variable, []).append(self._position)
            self._position += 1

    def _scan(self, params: dict[str, Any], views: Views) -> Views:
        constants, carried = scan_groups(params)
        fixed, stacks = views[: constants + carried], views[constants + carried :]
        slices = [view and self._entered(view) for view in stacks]
        results = self.walk(params["jaxpr"], fixed + slices)
        # What a slice of a stack was before the scan, to recognise it where the body hands it on unchanged.
        stack_of = {slice_: stack for slice_, stack in zip(slices, stacks, strict=True) if slice_ and stack}
        carries = _agreed([fixed[constants:], results[:carried]])
        return carries + [view and _stacked(view, stack_of) for view in results[carried:]]

    def _entered(self, view: View) -> View:
        axis = view.axes[0]
        scanned = view.scanned if axis is None else (*view.scanned, axis)
        known = self.scanned.get(view.variable, ())
        # Where several scans walk through the variable, the first says how; inner ones add to it.
        if len(scanned) > len(known) and scanned[: len(known)] == known:
            self.scanned[view.variable] = scanned
        return View(view.variable, view.axes[1:], scanned)

    def _while(self, params: dict[str, Any], views: Views) -> Views:
        test, body = params["cond_nconsts"], params["body_nconsts"]
        start = views[test + body :]
        self.walk(params["cond_jaxpr"], views[:test] + start)
        return _agreed([start, self.walk(params["body_jaxpr"], views[test : test + body] + start)])

    def _cond(self, params: dict[str, Any], views: Views) -> Views:
        self._use(views[:1])
        return _agreed([self.walk(branch, views[1:]) for branch in params["branches"]])


# Parts of a jaxpr ----------------------------------------------------------------------------------------------------


def _opened(jaxpr: Any) -> Any:
    """The jaxpr itself, where it comes with its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _known(names: dict[Any, View | None], atoms: Sequence[Any]) -> Views:
    # Literals carry their value, and cannot be looked up: they are not hashable.
    return [None if hasattr(atom, "val") else names.get(atom) for atom in atoms]


def _body(equation: Any) -> Any:
    """The jaxpr that an operation such as jit, remat or custom_vjp runs on its operands as they are, if it has one."""
    # Each device sees a part of the array, but its axes are the same.
    measure = len if equation.primitive.name == "shard_map" else tuple
    outside = [measure(_shape(atom)) for atom in equation.invars]
    for value in equation.params.values():
        body = _opened(value)
        if not hasattr(body, "eqns") or len(body.outvars) != len(equation.outvars):
            continue
        if [measure(_shape(atom)) for atom in body.invars] == outside:
            return body
    return None


def scan_groups(params: dict[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried; the others are walked through."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # Newer releases of jax describe the groups by one tree.
    constants, carried, _ = params["ft_in"].unpack()
    return len(constants), len(carried)


def _agreed(candidates: Sequence[Views]) -> Views:
    """What all ways of computing the same results make of them."""
    return [views[0] if all(view == views[0] for view in views) else None for views in zip(*candidates, strict=True)]


def _stacked(view: View, stack_of: dict[View, View]) -> View:
    """What comes out of a scan that collects the view of each iteration along a new leading axis."""
    for slice_, stack in stack_of.items():
        if (slice_.variable, slice_.scanned) == (view.variable, view.scanned) and slice_.scanned != stack.scanned:
            return View(view.variable, (slice_.scanned[-1], *view.axes), stack.scanned)
    return View(view.variable, (None, *view.axes), view.scanned)


# Axes ----------------------------------------------------------------------------------------------------------------


def _shape(atom: Any) -> Shape:
    return tuple(getattr(atom.aval, "shape", ()))


def _moved(view: View, equation: Any) -> View:
    axes = _LAYOUT[equation.primitive.name](view.axes, _shape(equation.invars[0]), equation)
    return View(view.variable, axes, view.scanned)


def _transposed(axes: tuple[int | None, ...], shape: Shape, equation: Any) -> tuple[int | None, ...]:
    return tuple(axes[axis] for axis in equation.params["permutation"])


def _squeezed(axes: tuple[int | None, ...], shape: Shape, equation: Any) -> tuple[int | None, ...]:
    return tuple(axis for place, axis in enumerate(axes) if place not in equation.params["dimensions"])


def _broadcast(axes: tuple[int | None, ...], shape: Shape, equation: Any) -> tuple[int | None, ...]:
    target = _shape(equation.outvars[0])
    found: list[int | None] = [None] * len(target)
    for axis, size, place in zip(axes, shape, equation.params["broadcast_dimensions"], strict=True):
        if target[place] == size:
            found[place] = axis
    return tuple(found)


def _reshaped(axes: tuple[int | None, ...], shape: Shape, equation: Any) -> tuple[int | None, ...]:
    """Axes that are neither merged nor split keep their identity; those of size 1 come and go."""
    target = _shape(equation.outvars[0])
    found: list[int | None] = [None] * len(target)
    if shape == target:
        return axes
    if 0 in shape:
        return tuple(found)
    old = [place for place, size in enumerate(shape) if size != 1]
    new = [place for place, size in enumerate(target) if size != 1]
    i = j = 0
    while i < len(old) and j < len(new):
        before, after = shape[old[i]], target[new[j]]
        if before == after:
            found[new[j]] = axes[old[i]]
        while before != after:
            if before < after:
                i += 1
                before *= shape[old[i]]
            else:
                j += 1
                after *= target[new[j]]
        i, j = i + 1, j + 1
    return tuple(found)


_LAYOUT = {"transpose": _transposed, "squeeze": _squeezed, "broadcast_in_dim": _broadcast, "reshape": _reshaped}
"""Operations that only arrange a variable otherwise, and what they do to its axes."""
