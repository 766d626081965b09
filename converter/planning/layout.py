"""Laying out the target: which dialect it is written in, and which path every slot gets."""

from __future__ import annotations

from collections.abc import Mapping

from converter.dialects.dialect import Dialect
from converter.dialects.linen import LinenParams, LinenVariables
from converter.dialects.nnx import VALUE, NnxLayout
from converter.dialects.train_state import LinenTrainState
from converter.planning.findings import Findings
from converter.planning.plan import Step
from converter.planning.request import NnxBundle, Request
from converter.rules.operations import REWRAP, CastCounter, Operation
from converter.training_state import Held, Part, Slot, TrainingState
from converter.tree import Path, array_spec, format_path

STEP_DTYPES = {"linen": "int32", "nnx": "uint32"}
"""How each framework counts steps: a jitted ``TrainState.apply_gradients`` in int32, ``nnx.Optimizer`` in uint32."""

BUNDLES: Mapping[NnxBundle, tuple[Path, Path]] = {
    "dict": (("model",), ("optimizer",)),
    "tuple": (("0",), ("1",)),
    "model-and-optimizer": (("model",), ()),
}
"""Where the model and the optimizer stand in each kind of NNX checkpoint that holds both."""


def target_layout(state: TrainingState, request: Request) -> Dialect:
    """The layout that the request asks for, or the one that suits what there is to write."""
    training = any(slot.part is not Part.VARIABLES for slot in state)
    if request.to == "nnx":
        suffix = VALUE if request.nnx_style == "state" else None
        if not training:
            return NnxLayout(suffix)
        if not state.has(Part.VARIABLES):
            return NnxLayout(suffix, None, ())
        return NnxLayout(suffix, *BUNDLES[request.nnx_bundle])
    boxed = request.linen_model.boxed if request.linen_model else frozenset[Path]()
    style = request.linen_style or ("train-state" if training else "variables")
    if style == "params":
        return LinenParams(boxed)
    if style == "variables":
        return LinenVariables(boxed)
    return LinenTrainState(boxed=boxed)


def lay_out(state: TrainingState, target: Dialect, findings: Findings) -> list[Step]:
    """One step for every leaf that the target has a place for; the others are problems, as are shared places."""
    steps: dict[Path, Step] = {}
    for slot, held in state.items():
        path = target.lower(slot)
        if path is None:
            findings.refuse(
                f"{format_path(held.source)}: {held.leaf.spec} has no place in {target.title}",
                "Leave such leaves behind with --drop PATTERN (or --params-only), or choose another style "
                "(--linen-style, --nnx-style).",
            )
        elif path in steps:
            first = steps[path].sources[0].source
            findings.refuse(
                f"{format_path(first)} and {format_path(held.source)} both go to {format_path(path)}",
                "Drop one of them with --drop.",
            )
        else:
            steps[path] = Step(path, _operation(slot, held, target), (held,))
    if isinstance(target, NnxLayout):
        _refuse_nesting(state, findings)
    for path, step in steps.items():
        above = next((path[:depth] for depth in range(len(path)) if path[:depth] in steps), None)
        if above is not None:
            findings.refuse(
                f"{format_path(step.sources[0].source)} goes below the leaf {format_path(above)}",
                "Drop one of them with --drop.",
            )
    return list(steps.values())


def _refuse_nesting(state: TrainingState, findings: Findings) -> None:
    """In NNX one attribute cannot be a Variable and a module; two collections of Linen may use a name as both."""
    variables = {slot.path: held.source for slot, held in state.items() if slot.part is Part.VARIABLES}
    for path, source in variables.items():
        for depth in range(1, len(path)):
            if path[:depth] in variables:
                findings.refuse(
                    f"{format_path(variables[path[:depth]])} and {format_path(source)} need one name for a Variable "
                    "and for a module",
                    "Drop one of them with --drop.",
                )


def _operation(slot: Slot, held: Held, target: Dialect) -> Operation:
    dtype = STEP_DTYPES[target.framework]
    if slot.part is Part.STEP and held.leaf.spec != array_spec(dtype, held.leaf.spec.shape):
        return CastCounter(dtype)
    return REWRAP
