"""Who decides which variable is which: the user's rules first, then models, templates and conventions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from converter.dialects.dialect import Framework
from converter.models import InitialValues, Model
from converter.planning.request import Request
from converter.rules.layers import slashed_key
from converter.rules.link import Correspondence, Name
from converter.rules.matching.match import correspond
from converter.rules.operations import Fill
from converter.rules.ruled.apply import apply_rules
from converter.training_state import PARAMS, Part, TrainingState
from converter.tree import LeafSpec, empty_spec


def find_links(state: TrainingState, dropped: Mapping[Name, LeafSpec], request: Request) -> Correspondence:
    """Links all variables of a state, and of an optimizer saved alone those that it follows."""
    sources = _sources(state)
    has_variables = state.has(Part.VARIABLES)
    linen, nnx = (_restricted(target_model(request, side), request, has_variables) for side in ("linen", "nnx"))
    if request.rules is None:
        return correspond(request.to, sources, dropped, linen, nnx, request.evidence)
    target = linen if request.to == "linen" else nnx
    specs = {(v.collection, v.path): v.spec for v in target.variables} if target else None
    ruled, others = apply_rules(request.rules, request.to, sources, specs, _initial_values(target))
    if not others and target is None:
        return ruled
    left = _without(target, set(ruled.linked_targets()))
    linen, nnx = (left, nnx) if request.to == "linen" else (linen, left)
    # Running the models says nothing where the user's rules have the first word.
    return ruled.joined(correspond(request.to, others, dropped, linen, nnx))


def target_model(request: Request, framework: Framework) -> Model | None:
    """What is known of one framework's side: its model, or a template where that side is the target."""
    model = request.linen_model if framework == "linen" else request.nnx_model
    return model or (request.template if request.to == framework else None)


def _initial_values(model: Model | None) -> Callable[[Name], Fill] | None:
    """Gives variables the value that they have in a new model; None where there is no model to make."""
    if model is None or model.module is None:
        return None
    values = InitialValues(model)
    variables = {(v.collection, v.path): v for v in model.variables}

    def value(name: Name) -> Fill:
        read = values.reader(variables[name])
        return Fill((variables[name].spec,), "the value of a new model", lambda: (read(),))

    return value


def _without(model: Model | None, names: Collection[Name]) -> Model | None:
    """A model without the variables that are taken care of."""
    if model is None or not names:
        return model
    return replace(model, variables=tuple(v for v in model.variables if (v.collection, v.path) not in names))


def _sources(state: TrainingState) -> dict[Name, LeafSpec]:
    sources: dict[Name, LeafSpec] = {}
    for slot, held in state.items():
        if slot.part is Part.VARIABLES:
            sources[slot.collection, slot.path] = held.leaf.spec
    # What mirrors a variable that is not there knows its name; its shape may be that of a masked or factored moment.
    for slot in state:
        if slot.is_mirror:
            sources.setdefault((slot.collection, slot.path), empty_spec("node"))
    return {name: spec for name, spec in sources.items() if _is_decided(name)}


def _is_decided(name: Name) -> bool:
    return bool(name[0]) or slashed_key(name[1]) is not None


def _restricted(model: Model | None, request: Request, has_variables: bool) -> Model | None:
    """The part of a model that the checkpoint can be expected to name: an optimizer saved alone names parameters."""
    if model is None or not model.typed or (has_variables and not request.params_only):
        return model
    return replace(model, variables=tuple(v for v in model.variables if v.collection == PARAMS))
