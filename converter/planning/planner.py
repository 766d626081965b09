"""Making the plan: from a tree, or from a training state, to the list of steps."""

from __future__ import annotations

from dataclasses import replace

from converter.dialects import readings, unreadable
from converter.dialects.dialect import FRAMEWORK_NAMES, Dialect, Framework, Lifted
from converter.dialects.nnx import VALUE, NnxLayout
from converter.dialects.train_state import LinenTrainState
from converter.errors import UnsupportedCheckpoint, UsageError
from converter.models import Model, RandomState
from converter.planning.findings import Findings
from converter.planning.layout import lay_out, target_layout
from converter.planning.optimizer import empty_members
from converter.planning.plan import Plan, Step
from converter.planning.policy import apply_policy
from converter.planning.request import Request
from converter.rules.match import Matching, Name, match_to_linen, match_to_nnx
from converter.rules.operations import Fill
from converter.rules.variable_types import assign_collections
from converter.training_state import PARAMS, Part, Slot, TrainingState
from converter.tree import LeafKind, LeafSpec, Path, Tree, array_spec, empty_spec, format_path


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
        state = assign_collections(state, request.collections, request.nnx_model, request.linen_model)
    state, dropped = apply_policy(state, request, findings)
    _require_collections(state, request.nnx_model, findings)
    matching = _match(state, dropped, request)
    for problem in matching.problems:
        findings.refuse(problem, _SHAPES_ADVICE if problem in matching.shapes else _NAMES_ADVICE)
    for problem in matching.dtypes if request.exact_dtypes else ():
        findings.refuse(problem, "Cast the array, or give the model the dtype of the checkpoint (param_dtype).")
    findings.notes += matching.notes + ([] if request.exact_dtypes else matching.dtypes)
    state = _renamed(state, matching)
    for slot, first, second in state.collisions:
        findings.refuse(f"{format_path(first)} and {format_path(second)} both become {slot}", "Drop one with --drop.")
    target = request.target or target_layout(state, request)
    steps = lay_out(state, target, findings)
    steps += _random_state(matching, target, request, findings)
    if isinstance(target, LinenTrainState) and source.framework == "nnx":
        known = state.has(Part.VARIABLES)
        steps += empty_members(steps, _parameters(state, target), request.optimizer, findings, checked=known)
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
    )


def _last_words(state: TrainingState, steps: list[Step], target: Dialect, request: Request, findings: Findings) -> None:
    """What is wrong with, or to be said of, the plan as a whole."""
    if request.target is None and not findings.problems and all(step.spec.kind is LeafKind.EMPTY for step in steps):
        rules = ", ".join([f"--drop {glob.text!r}" for glob in request.drop] + ["--params-only"] * request.params_only)
        findings.refuse(f"nothing is left to convert ({rules or 'all leaves are dropped by default'})", "Drop less.")
    if request.optimizer is not None and not state.has(Part.OPT_STATE):
        findings.notes.append("the optimizer given is of no use: there is no optimizer state")
    if isinstance(target, LinenTrainState) and not (state.has(Part.STEP) and state.has(Part.VARIABLES)):
        missing = "no step" if state.has(Part.VARIABLES) else "no variables"
        findings.notes.append(f"the train state is incomplete: there is {missing} in the checkpoint")


_SHAPES_ADVICE = "Give the models of this checkpoint; the shapes of a Linen model follow from its inputs (--input)."

_NAMES_ADVICE = (
    "This version gives each leaf the same name on both sides, apart from layers_0 and layers/0 and LSTM's if and if_; "
    "layers whose names or shapes differ otherwise (fused LSTM and GRU gates, renamed modules) it cannot convert yet."
)


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


def _require_collections(state: TrainingState, nnx_model: Model | None, findings: Findings) -> None:
    plain_arrays = {v.path for v in nnx_model.variables if not v.collection} if nnx_model else set()
    for slot, held in state.items():
        if slot.part is not Part.VARIABLES or slot.collection:
            continue
        where = f"{format_path(held.source)}: {held.leaf.spec}"
        if slot.path in plain_arrays:
            findings.refuse(
                f"{where} is a plain array in the NNX model, not a Variable: Linen has no collection for it",
                f"Leave it behind with --drop '{format_path(held.source)}'.",
            )
        else:
            findings.refuse(
                f"{where}: nothing tells whether it is a parameter or belongs to another collection",
                "Give the model with --nnx-model, or name the collection: --collection 'PATTERN=params'.",
            )


def _match(state: TrainingState, dropped: frozenset[Name], request: Request) -> Matching:
    variables = {_name(slot): held.leaf.spec for slot, held in state.items() if slot.part is Part.VARIABLES}
    # Mirrors know names too: those of an optimizer saved alone, or kept where their variable is dropped.
    # What their shapes are is no matter: moments may be masked out or factored.
    sources = {_name(slot): empty_spec("node") for slot in state if slot.is_mirror} | variables
    models = (request.nnx_model, request.linen_model)
    nnx_model, linen_model = (_restricted(model, request, bool(variables)) for model in models)
    if request.to == "nnx":
        return match_to_nnx(sources, dropped, nnx_model, linen_model)
    return match_to_linen({n: s for n, s in sources.items() if n[0]}, dropped, nnx_model, linen_model)


def _restricted(model: Model | None, request: Request, has_variables: bool) -> Model | None:
    """The part of a model that the checkpoint can be expected to name: an optimizer saved alone names parameters."""
    if model is None or (has_variables and not request.params_only):
        return model
    return replace(model, variables=tuple(v for v in model.variables if v.collection == PARAMS))


def _name(slot: Slot) -> Name:
    return slot.collection, slot.path


def _renamed(state: TrainingState, matching: Matching) -> TrainingState:
    """The state under the target's names; leaves whose variable has none are left out (they are problems already)."""
    renamed = []
    for slot, held in state.items():
        if not slot.path:
            renamed.append((slot, held))
        elif _name(slot) in matching.names:
            renamed.append((slot.renamed(*matching.names[_name(slot)]), held))
    return TrainingState(renamed)


def _parameters(state: TrainingState, target: Dialect) -> dict[Path, LeafSpec]:
    """The parameters by their path below ``params``; where an optimizer stands alone, as its moments show them."""
    found: dict[Slot, LeafSpec] = {}
    for slot, held in state.items():
        variable = Slot(Part.VARIABLES, slot.collection, slot.path)
        if slot == variable and slot.collection == PARAMS:
            found[variable] = held.leaf.spec
    if not found:
        for slot, held in state.items():
            variable = Slot(Part.VARIABLES, PARAMS, slot.path)
            if slot.is_mirror and (variable not in found or held.leaf.spec.size > found[variable].size):
                # Where all its moments are masked out, nothing tells the shape of a parameter.
                masked = held.leaf.spec.kind is LeafKind.EMPTY
                found[variable] = array_spec("float32") if masked else held.leaf.spec
    paths = {target.lower(slot): spec for slot, spec in found.items()}
    return {path[1:]: spec for path, spec in paths.items() if path}


def _random_state(matching: Matching, target: Dialect, request: Request, findings: Findings) -> list[Step]:
    """Steps that fill random state from the NNX model, where the source has none."""
    absent = [variable for variable in matching.unfilled if variable.is_random_state]
    model = request.nnx_model
    if not absent or model is None or not request.fill_random_state:
        if absent and request.target is None:
            findings.notes.append("random state is not written: the NNX model keeps its own")
        return []
    values = RandomState(model)
    steps = []
    for variable in absent:
        path = target.lower(Slot(Part.VARIABLES, variable.collection, variable.path))
        if path is not None:
            fill = Fill(variable.spec, "the model's own initial random state", values.reader(variable))
            steps.append(Step(path, fill, ()))
    return steps
