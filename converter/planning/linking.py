"""Who decides which variable is which: the user's rules first, then models, templates and conventions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from converter.dialects.dialect import Framework
from converter.planning.following import factored_groups
from converter.planning.request import Request
from converter.rules.layers import slashed_key
from converter.rules.link import Correspondence, Name
from converter.rules.matching.match import correspond
from converter.rules.operations import Fill
from converter.training_state import PARAMS, Part, TrainingState
from converter.tree import LeafKind, LeafSpec, empty_spec

if TYPE_CHECKING:
    from converter.models import Model


def find_links(
    state: TrainingState, sources: Mapping[Name, LeafSpec], dropped: Mapping[Name, LeafSpec], request: Request
) -> Correspondence:
    """Links all variables of a state, and of an optimizer saved alone those that it follows."""
    if not sources and not dropped and state:  # an optimizer that keeps nothing for its parameters, saved alone
        return Correspondence()
    has_variables = state.has(Part.VARIABLES)
    linen, nnx = (_restricted(target_model(request, side), request, has_variables) for side in ("linen", "nnx"))
    if request.rules is None:
        found = correspond(request.to, sources, dropped, linen, nnx, request.evidence)
        whole = _between_whole_models(sources, request) if found.problems and not has_variables else None
        return whole or found
    target = linen if request.to == "linen" else nnx
    specs = {(v.collection, v.path): v.spec for v in target.variables} if target else None
    from converter.rules.ruled.apply import apply_rules

    ruled, others = apply_rules(request.rules, request.to, sources, specs, _initial_values(target))
    if not others and target is None:
        return ruled
    left = _without(target, set(ruled.linked_targets()))
    own = _without_paths(nnx if request.to == "linen" else linen, sources.keys() - others.keys())
    linen, nnx = (left, own) if request.to == "linen" else (own, left)
    # Running the models says nothing where the user's rules have the first word.
    return ruled.joined(correspond(request.to, others, dropped, linen, nnx))


def _between_whole_models(sources: Mapping[Name, LeafSpec], request: Request) -> Correspondence | None:
    """The links of an optimizer saved alone, found with all variables of both models: it takes all to run them.

    None where both models are not at hand, or do not fit together.
    """
    linen, nnx = request.linen_model, request.nnx_model
    if linen is None or nnx is None or request.evidence is None:
        return None
    own = linen if request.to == "nnx" else nnx
    every = {(v.collection, v.path): v.spec for v in own.variables if not v.is_random_state and not v.is_plain}
    found = correspond(request.to, {**every, **sources}, {}, linen, nnx, request.evidence)
    links = [link for link in found.links if all(name in sources for name in link.sources)]
    return None if found.problems else Correspondence(links)


def target_model(request: Request, framework: Framework) -> Model | None:
    """What is known of one framework's side: its model, or a template where that side is the target."""
    model = request.linen_model if framework == "linen" else request.nnx_model
    return model or (request.template if request.to == framework else None)


def _initial_values(model: Model | None) -> Callable[[Name], Fill] | None:
    """Gives variables the value that they have in a new model; None where there is no model to make."""
    if model is None or model.module is None:
        return None
    from converter.models import InitialValues

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


def _without_paths(model: Model | None, names: Collection[Name]) -> Model | None:
    """The source's own model without variables that rules speak of; NNX collections may be of the user's choosing."""
    if model is None or not names:
        return model
    taken = {name[1] for name in names} if model.framework == "nnx" else names
    variables = (((v.path if model.framework == "nnx" else (v.collection, v.path)), v) for v in model.variables)
    return replace(model, variables=tuple(v for name, v in variables if name not in taken))


def source_specs(state: TrainingState, request: Request) -> dict[Name, LeafSpec]:
    """The variables that are to be linked: those of a state, and those that are not in it and yet mirrored.

    The shape of the latter is told by their own model, or by a moment that has it; where neither does, their spec is
    that of an empty leaf. Where an optimizer stands alone, its model tells the parameters too that it keeps nothing of.
    """
    sources: dict[Name, LeafSpec] = {}
    mirrored: dict[Name, LeafSpec] = {}
    factored = factored_groups(state)
    for slot, held in state.items():
        name, spec = (slot.collection, slot.path), held.leaf.spec
        if slot.part is Part.VARIABLES:
            sources[name] = spec
        elif slot.is_mirror:
            told = spec if (slot.part, slot.prefix) not in factored else _UNKNOWN
            other = mirrored.setdefault(name, told)
            # Some optimizers keep less than a value for each value beside their moments, none keeps more.
            if other.kind is LeafKind.EMPTY or (told.kind is not LeafKind.EMPTY and told.size > other.size):
                mirrored[name] = told
    if len(mirrored.keys() - sources.keys()):
        own = request.nnx_model if request.to == "linen" else request.linen_model
        model = _restricted(own, request, bool(sources))
        known = {(v.collection, v.path): v.spec for v in model.variables} if model else {}
        in_state, sources = sources, sources or dict(known)
        for name, spec in mirrored.items():
            if name not in in_state:
                sources[name] = spec if name not in known or _is_of_another(spec, known[name]) else known[name]
    return {name: spec for name, spec in sources.items() if name[0] or slashed_key(name[1]) is not None}


_UNKNOWN = empty_spec("node")


def _is_of_another(moment: LeafSpec, declared: LeafSpec) -> bool:
    """Whether a moment cannot be that of the model's parameter; one number for a whole parameter can."""
    known = LeafKind.EMPTY not in (moment.kind, declared.kind)
    return known and len(moment.shape) == len(declared.shape) and moment.shape != declared.shape


def _restricted(model: Model | None, request: Request, has_variables: bool) -> Model | None:
    """The part of a model that the checkpoint can be expected to name: an optimizer saved alone names parameters."""
    if model is None or (has_variables and not (model.typed and request.params_only)):
        return model
    parameters = tuple(v for v in model.variables if v.collection == PARAMS)
    # A template may be an optimizer saved alone too: it tells no names.
    return replace(model, variables=parameters) if parameters or model.module is not None else None
