"""Making the plan: from a tree, or from a training state, to the list of steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from converter.dialects import readings, unreadable
from converter.dialects.dialect import FRAMEWORK_NAMES, Dialect, Framework, Lifted
from converter.dialects.nnx import VALUE, NnxLayout
from converter.dialects.train_state import LinenTrainState
from converter.errors import UnsupportedCheckpoint, UsageError
from converter.paths import format_path
from converter.planning.findings import Findings
from converter.planning.following import Following, Made
from converter.planning.initial import from_the_model
from converter.planning.layout import lay_out, target_layout
from converter.planning.linking import find_links, source_specs, target_model
from converter.planning.optimizer import empty_members
from converter.planning.plan import Plan, Step
from converter.planning.policy import apply_policy
from converter.planning.request import Request
from converter.rules.layers import slashed_key
from converter.rules.link import Link, Name
from converter.rules.operations import Unfit
from converter.rules.variable_types import assign_collections
from converter.training_state import PARAMS, Part, Slot, TrainingState
from converter.tree import LeafKind, LeafSpec, Tree, array_spec, empty_spec

if TYPE_CHECKING:
    from converter.models import Model


def make_plan(tree: Tree, request: Request) -> Plan:
    """Plans the conversion of a tree; problems are collected in the plan, see ``Plan.check``.

    Raises:
      UsageError: the tree belongs to the framework that is asked for.
      UnsupportedCheckpoint: there is nothing to convert.
    """
    source = choose_reading(tree, request.to, request.nnx_model)
    if isinstance(source, LinenTrainState):
        source = replace(source, collections=_custom_collections(tree, request))
    made = plan_state(source, source.lift(tree), request)
    boxed = getattr(source, "boxed", ())
    if boxed:
        note = f"{len(boxed)} partitioned parameters lose their boxes, whose metadata no checkpoint holds"
        made = replace(made, notes=(*made.notes, note))
    return made


def choose_reading(tree: Tree, to: Framework, nnx_model: Model | None = None) -> Dialect:
    """The most plausible dialect of the framework that is not ``to``; with a model, the one that finds most of it.

    Raises:
      UsageError: the tree can only be read as the framework asked for.
      UnsupportedCheckpoint: the tree holds no array.
    """
    possible = readings(tree)
    if not possible:
        raise UnsupportedCheckpoint(
            f"the checkpoint cannot be converted: {unreadable(tree)}", "inspect shows what it holds."
        )
    found = next((dialect for dialect in possible if dialect.framework != to), None)
    if found is None:
        other: Framework = "nnx" if to == "linen" else "linen"
        raise UsageError(
            f"the checkpoint is already {FRAMEWORK_NAMES[to]}: it reads as {possible[0].title}",
            f"Use {to}-to-{other} for the other direction, or inspect to see what it holds.",
        )
    if isinstance(found, NnxLayout) and nnx_model is not None:
        return _fitting(tree, found, nnx_model)
    return found


def _fitting(tree: Tree, layout: NnxLayout, model: Model) -> NnxLayout:
    """The layout with the wrappers under which most of the model's variables are found."""
    paths = {variable.path for variable in model.variables}

    def hits(candidate: NnxLayout) -> int:
        return sum(slot.path in paths for slot in candidate.lift(tree).state if slot.part is Part.VARIABLES)

    return max((layout, replace(layout, suffix=VALUE), replace(layout, suffix=None)), key=hits)


def plan_state(source: Dialect, lifted: Lifted, request: Request) -> Plan:
    """Plans the conversion of a training state that was read in the dialect ``source``."""
    findings = Findings(ignored=list(lifted.ignored))
    state = lifted.state
    for slot, first, second in state.collisions:
        findings.refuse(f"{format_path(first)} and {format_path(second)} both mean {slot}")
    if source.framework == "nnx":
        _require_use(request, state, findings)
        state = assign_collections(
            state, request.collections, request.nnx_model, target_model(request, "linen"), request.rules
        )
    state, dropped = apply_policy(state, request, findings)
    _require_collections(state, findings)
    sources = source_specs(state, request)
    found = find_links(state, sources, dropped, request)
    findings.advice |= dict.fromkeys(found.advice)
    for problem, advice in found.problems:
        findings.refuse(problem, advice)
    for problem in found.dtypes if request.exact_dtypes else ():
        findings.refuse(problem, "Cast the array, or give the model the dtype of the checkpoint (param_dtype).")
    # Moments may have another dtype than their parameters, which an optimizer saved alone says nothing of.
    noted = found.dtypes if state.has(Part.VARIABLES) and not request.exact_dtypes else []
    findings.notes += found.notes + noted
    following = Following(state, sources, found.links, findings, allow_lossy=request.allow_lossy)
    _refuse_collisions(following.made, findings)
    target = request.target or target_layout([leaf.slot for leaf in following.made], request)
    steps = lay_out(following.made, target, findings)
    steps += from_the_model(found.unfilled, target, request, findings)
    if isinstance(target, LinenTrainState) and source.framework == "nnx" and following.is_complete:
        parameters, known = _parameters(following.made, found.links, sources, request)
        below = {path[1:]: spec for slot, spec in parameters.items() if (path := target.lower(slot))}
        steps += empty_members(steps, below, request.optimizer, findings, checked=known)
    _last_words(state, steps, target, request, findings)
    return Plan(
        source=source,
        target=target,
        steps=tuple(steps),
        drops=tuple(findings.drops),
        ignored=tuple(findings.ignored),
        notes=tuple(findings.notes),
        problems=tuple(findings.problems),
        advice=" ".join(findings.advice),
        conditions=tuple(following.conditions),
    )


def _refuse_collisions(made: Iterable[Made], findings: Findings) -> None:
    """Two leaves under one name: the second is refused by the names of both."""
    seen: dict[Slot, Made] = {}
    for leaf in made:
        first = seen.setdefault(leaf.slot, leaf)
        if first is not leaf:
            findings.refuse(
                f"{format_path(first.source)} and {format_path(leaf.source)} both become {leaf.slot}",
                "Drop one with --drop.",
            )


def _last_words(state: TrainingState, steps: list[Step], target: Dialect, request: Request, findings: Findings) -> None:
    """What is wrong with, or to be said of, the plan as a whole."""
    if request.target is None and not findings.problems and all(step.spec.kind is LeafKind.EMPTY for step in steps):
        rules = ", ".join([f"--drop {glob.text!r}" for glob in request.drop] + ["--params-only"] * request.params_only)
        findings.refuse(f"nothing is left to convert ({rules or 'all leaves are dropped by default'})", "Drop less.")
    if request.template is not None and target_model(request, request.to) is request.template and findings.problems:
        findings.advice = {"The model spoken of is the --like checkpoint.": None, **findings.advice}
    if request.optimizer is not None and not state.has(Part.OPT_STATE):
        findings.notes.append("the optimizer given is of no use: there is no optimizer state")
    if (
        request.template is not None
        and getattr(target, "optimizer", None) is not None
        and not state.has(Part.OPT_STATE)
    ):
        findings.notes.append("the --like checkpoint has an optimizer, the source has none")
    if isinstance(target, LinenTrainState) and not (state.has(Part.STEP) and state.has(Part.VARIABLES)):
        missing = "no step" if state.has(Part.VARIABLES) else "no variables"
        findings.notes.append(f"the train state is incomplete: there is {missing} in the checkpoint")


def _custom_collections(tree: Tree, request: Request) -> frozenset[str]:
    """Fields of a train state that the user or a model says are collections of the model."""
    names = {name for _, name in request.collections}
    for model in (request.nnx_model, request.linen_model):
        names |= {variable.collection for variable in model.variables} if model else set()
    return frozenset(names & set(tree.children()))


def _require_use(request: Request, state: TrainingState, findings: Findings) -> None:
    """A rule that applies to nothing is most likely misspelt."""
    for glob, name in request.collections:
        if not any(glob.matches(held.source) or glob.matches(slot.path) for slot, held in state.items()):
            findings.refuse(f"--collection '{glob.text}={name}' matches no leaf", "inspect prints the paths.")


def _require_collections(state: TrainingState, findings: Findings) -> None:
    for slot, held in state.items():
        if slot.part is Part.VARIABLES and not slot.collection and slashed_key(slot.path) is None:
            findings.refuse(
                f"{format_path(held.source)}: {held.leaf.spec}: nothing tells whether it is a parameter or belongs to "
                "another collection",
                "Give the model with --nnx-model, or name the collection: --collection 'PATTERN=params'.",
            )


def _parameters(
    made: Iterable[Made], links: Iterable[Link], sources: Mapping[Name, LeafSpec], request: Request
) -> tuple[dict[Slot, LeafSpec], bool]:
    """The parameters of a Linen train state, and whether their shapes are sure.

    Where an optimizer stands alone a model of either side tells them; else its moments show them, which may be factored
    or masked out.
    """
    found = {leaf.slot: leaf.spec for leaf in made if leaf.slot.part is Part.VARIABLES}
    if found:
        return {slot: spec for slot, spec in found.items() if slot.collection == PARAMS}, True
    model = target_model(request, "linen")
    declared = {(v.collection, v.path): v.spec for v in model.variables} if model else {}
    parameters: dict[Slot, LeafSpec] = {}
    for link in links:
        for name, spec in zip(link.targets, _made_of(link, sources), strict=True):
            if name[0] == PARAMS:
                known = declared.get(name, spec) if spec.kind is LeafKind.EMPTY else spec
                parameters[Slot(Part.VARIABLES, *name)] = known
    unsure = {slot for slot, spec in parameters.items() if spec.kind is LeafKind.EMPTY}
    for leaf in made:
        slot = Slot(Part.VARIABLES, PARAMS, leaf.slot.path)
        if slot in unsure and leaf.slot.is_mirror and leaf.spec.size > parameters[slot].size:
            parameters[slot] = leaf.spec
    for slot in unsure:
        if parameters[slot].kind is LeafKind.EMPTY:  # all its moments are masked out, so nothing tells its shape
            parameters[slot] = array_spec("float32")
    return parameters, not unsure


def _made_of(link: Link, sources: Mapping[Name, LeafSpec]) -> Sequence[LeafSpec]:
    """What a link makes of variables of which some may not be known."""
    try:
        return link.operation.specs([sources[name] for name in link.sources])
    except Unfit:
        return [empty_spec("node")] * len(link.targets)
