"""Laying out the target: which dialect it is written in, and which path every slot gets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from converter.dialects.dialect import Dialect
from converter.dialects.linen import LinenParams, LinenVariables
from converter.dialects.nnx import VALUE, NnxLayout
from converter.dialects.train_state import LinenTrainState
from converter.paths import Path, format_path
from converter.planning.findings import Findings
from converter.planning.following import Made
from converter.planning.plan import Step, Transfer
from converter.planning.request import NnxBundle, Request
from converter.rules.operations import CastCounter
from converter.training_state import PARAMS, Part, Slot
from converter.tree import array_spec, containers

STEP_DTYPES = {"linen": "int32", "nnx": "uint32"}
"""How each framework counts steps: a jitted ``TrainState.apply_gradients`` in int32, ``nnx.Optimizer`` in uint32."""

BUNDLES: Mapping[NnxBundle, tuple[Path, Path]] = {
    "dict": (("model",), ("optimizer",)),
    "tuple": (("0",), ("1",)),
    "model-and-optimizer": (("model",), ()),
}
"""Where the model and the optimizer stand in each kind of NNX checkpoint that holds both."""


def target_layout(slots: Collection[Slot], request: Request) -> Dialect:
    """The layout that the request asks for, or the one that suits what there is to write."""
    training = any(slot.part is not Part.VARIABLES for slot in slots)
    if request.to == "nnx":
        suffix = VALUE if request.nnx_style == "state" else None
        plain = (v.path for v in request.nnx_model.variables if not v.collection) if request.nnx_model else ()
        bare = frozenset(tuple(map(str, path)) for path in plain)
        if not training:
            return NnxLayout(suffix, bare=bare)
        if not any(slot.part is Part.VARIABLES for slot in slots):
            return NnxLayout(suffix, None, ())
        return NnxLayout(suffix, *BUNDLES[request.nnx_bundle], bare)
    boxed = request.linen_model.boxed if request.linen_model else frozenset[Path]()
    style = request.linen_style or ("train-state" if training else "variables")
    if request.bare_params and request.linen_style is None:
        style = "params" if {slot.collection for slot in slots} <= {PARAMS, ""} else "variables"
    if style == "params":
        return LinenParams(boxed)
    if style == "variables":
        return LinenVariables(boxed)
    return LinenTrainState(boxed=boxed)


def lay_out(made: Sequence[Made], target: Dialect, findings: Findings) -> list[Step]:
    """One step for every leaf that the target has a place for; the others are problems, as are shared places."""
    steps: dict[Path, Step] = {}
    for leaf in made:
        path = target.lower(leaf.slot)
        if path is None:
            findings.refuse(
                f"{format_path(leaf.source)}: {leaf.spec} has no place in {target.title}",
                "Leave such leaves behind with --drop PATTERN (or --params-only), or choose another style "
                "(--linen-style, --nnx-style).",
            )
        elif path in steps:
            findings.refuse(
                f"{format_path(_source(steps[path]))} and {format_path(leaf.source)} both go to {format_path(path)}",
                "Drop one of them with --drop.",
            )
        else:
            steps[path] = Step(path, _counted(leaf, target), leaf.output)
    if isinstance(target, NnxLayout):
        _refuse_nesting(made, findings)
    for path, above in _nested(steps):
        findings.refuse(
            f"{format_path(_source(steps[path]))} goes below the leaf {format_path(above)}",
            "Drop one of them with --drop.",
        )
    return list(steps.values())


def _source(step: Step) -> Path:
    return step.sources[0].source if step.sources else step.target


def _refuse_nesting(made: Iterable[Made], findings: Findings) -> None:
    """In NNX one attribute cannot be a Variable and a module; two collections of Linen may use a name as both."""
    variables = {leaf.slot.path: leaf.source for leaf in made if leaf.slot.part is Part.VARIABLES and leaf.slot.path}
    for path, above in _nested(variables):
        findings.refuse(
            f"{format_path(variables[above])} and {format_path(variables[path])} need one name for a Variable "
            "and for a module",
            "Drop one of them with --drop.",
        )


def _nested(paths: Collection[Path]) -> Iterator[tuple[Path, Path]]:
    """Every path that leads through another one, with that one."""
    both = containers(paths).intersection(paths)
    for path in paths if both else ():
        yield from ((path, path[:depth]) for depth in range(len(path)) if path[:depth] in both)


def _counted(leaf: Made, target: Dialect) -> Transfer:
    """The transfer of a leaf, with a step counter as the target's framework holds it."""
    if leaf.slot.part is not Part.STEP:
        return leaf.transfer
    dtype = STEP_DTYPES[target.framework]
    if leaf.spec != array_spec(dtype, leaf.spec.shape):
        return Transfer(CastCounter(dtype), leaf.transfer.sources)
    return leaf.transfer
