"""Which variable of one framework is which of the other, under equal names and the names that differ by rule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from converter.dialects.dialect import FRAMEWORK_NAMES
from converter.models import Model, ModelVariable
from converter.rules.names import LINEN_GATE, NNX_GATE, joined_numbers, lstm_cells, rename_gate
from converter.training_state import COLLECTIONS, PARAMS, RNG_COLLECTIONS
from converter.tree import LeafKind, LeafSpec, Path, format_path

Name = tuple[str, Path]
"""Collection and path of a variable."""


@dataclass(slots=True)
class Matching:
    """Every source variable's name on the target side, and everything that does not fit.

    Attributes:
      names: target name by source name.
      problems: one line for each leaf without counterpart or with another shape.
      shapes: those of the problems that are about shapes.
      dtypes: leaves that have another dtype than the model declares.
      notes: other differences that lose nothing.
      unfilled: variables of the target model that random state can fill, or that the user dropped on purpose.
    """

    names: dict[Name, Name] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    shapes: set[str] = field(default_factory=set)
    dtypes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unfilled: list[ModelVariable] = field(default_factory=list)


def match_to_nnx(
    sources: Mapping[Name, LeafSpec],
    dropped: Collection[Name],
    nnx_model: Model | None,
    linen_model: Model | None = None,
) -> Matching:
    """Names for Linen variables in an NNX checkpoint; exact where the NNX model is given."""
    matching = _match_to_nnx_model(sources, dropped, nnx_model) if nnx_model else Matching()
    if nnx_model is None:
        cells = lstm_cells(path for _, path in sources)
        for collection, path in sources:
            matching.names[collection, path] = (collection, rename_gate(path, cells, LINEN_GATE, NNX_GATE))
    if linen_model is not None:
        _compare_with_own_model(sources, dropped, linen_model, matching)
    return matching


def _match_to_nnx_model(sources: Mapping[Name, LeafSpec], dropped: Collection[Name], model: Model) -> Matching:
    spellings = {variable.path: _spellings(variable.path, variable.linen_path) for variable in model.variables}
    cells = lstm_cells(path for paths in spellings.values() for path in paths)
    custom = [collection for collection in dict.fromkeys(name for name, _ in sources) if _is_custom(collection)]

    def linen_names(variable: ModelVariable) -> Iterator[Name]:
        for path in spellings[variable.path]:
            for spelled in (path, rename_gate(path, cells, NNX_GATE, LINEN_GATE)):
                yield variable.collection, spelled
                if _is_custom(variable.collection):  # Linen's collection need not be called as the Variable's class
                    yield from ((collection, spelled) for collection in custom)
                if variable.trainable:  # a subclass of Param (LoRAParam) may be a plain parameter in hand-written Linen
                    yield PARAMS, spelled

    return _match_to_model(sources, dropped, model, linen_names)


def match_to_linen(
    sources: Mapping[Name, LeafSpec], dropped: Collection[Name], nnx_model: Model | None, linen_model: Model | None
) -> Matching:
    """Names for NNX variables in a Linen checkpoint; exact where the Linen model is given."""
    joined = {variable.path: variable.linen_path for variable in nnx_model.variables} if nnx_model else {}
    if linen_model is None:
        paths = {name: joined.get(name[1], name[1]) for name in sources}
        cells = lstm_cells(paths.values())
        matching = Matching(names={n: (n[0], rename_gate(p, cells, NNX_GATE, LINEN_GATE)) for n, p in paths.items()})
        if nnx_model is not None:
            _compare_with_own_model(sources, dropped, nnx_model, matching)
        return matching
    spellings = {name: _spellings(name[1], joined.get(name[1], name[1]), joined_numbers(name[1])) for name in sources}
    cells = lstm_cells(path for paths in spellings.values() for path in paths)
    custom = [v.collection for v in linen_model.variables if _is_custom(v.collection)]
    trainable = {v.path for v in nnx_model.variables if v.trainable} if nnx_model else set()
    by_target: dict[Name, list[Name]] = {}
    for name, paths_of_name in spellings.items():
        # A subclass of Param (LoRAParam) may be a plain parameter in hand-written Linen, and a collection need not be
        # called as the class of its Variables.
        collections = dict.fromkeys((name[0], PARAMS if name[1] in trainable else name[0]))
        if _is_custom(name[0]):
            collections |= dict.fromkeys(custom)
        for path in paths_of_name:
            for spelled in dict.fromkeys((path, rename_gate(path, cells, NNX_GATE, LINEN_GATE))):
                for collection in collections:
                    by_target.setdefault((collection, spelled), []).append(name)
    return _match_to_model(sources, dropped, linen_model, lambda v: by_target.get((v.collection, v.path), ()))


def _is_custom(collection: str) -> bool:
    return bool(collection) and collection not in (*COLLECTIONS, *RNG_COLLECTIONS)


def _spellings(*paths: Path) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(tuple(str(key) for key in path) for path in paths))


def _match_to_model(
    sources: Mapping[Name, LeafSpec],
    dropped: Collection[Name],
    model: Model,
    candidates: Callable[[ModelVariable], Iterable[Name]],
) -> Matching:
    """Gives every variable of the target model the first of its candidates that the source has."""
    matching = Matching()
    for variable in model.variables:
        wanted = list(candidates(variable))
        found = next((name for name in wanted if name in sources and name not in matching.names), None)
        if found is not None:
            matching.names[found] = (variable.collection, variable.path)
            _compare_specs(found, sources[found], variable, matching)
        elif variable.is_random_state or any(name in dropped for name in wanted):
            matching.unfilled.append(variable)
        else:
            where = format_path((variable.collection or "(no Variable)", *variable.path))
            matching.problems.append(
                f"{where}: expected {variable.spec} by the {FRAMEWORK_NAMES[model.framework]} model, "
                "found nothing of that name in the checkpoint"
            )
    for name in sources:
        if name[0] in RNG_COLLECTIONS and model.framework == "linen":
            matching.names[name] = name  # kept on request: Linen models have none
        elif name not in matching.names:
            matching.problems.append(
                f"{format_path((name[0], *name[1]))}: {sources[name]} in the checkpoint, "
                f"no such variable in the {FRAMEWORK_NAMES[model.framework]} model"
            )
    return matching


def _compare_with_own_model(
    sources: Mapping[Name, LeafSpec], dropped: Collection[Name], model: Model, matching: Matching
) -> None:
    """Checks a checkpoint against a model of its own framework."""
    title = FRAMEWORK_NAMES[model.framework]
    # The names of NNX collections are the user's to choose (--collection); Linen's are the model's.
    known = {_own_name(model, variable.collection, variable.path): variable for variable in model.variables}
    named = {_own_name(model, *name): name for name in sources}
    for own_name, name in named.items():
        spec = sources[name]
        if own_name in known:
            _compare_specs(name, spec, known[own_name], matching)
        elif name[0] not in RNG_COLLECTIONS:
            where = format_path((name[0], *name[1]))
            matching.problems.append(f"{where}: {spec} in the checkpoint, no such variable in the {title} model")
    left_out = {_own_name(model, *name) for name in dropped} | set(named)
    absent = [v for n, v in known.items() if n not in left_out and not v.is_random_state]
    for variable in absent:
        where = format_path((variable.collection, *variable.path))
        matching.notes.append(f"{where} {variable.spec} is in the {title} model but not in the checkpoint")


def _own_name(model: Model, collection: str, path: Path) -> Name:
    return ("", path) if model.framework == "nnx" else (collection, path)


def _compare_specs(name: Name, found: LeafSpec, variable: ModelVariable, matching: Matching) -> None:
    expected = variable.spec
    where = format_path((name[0], *name[1]))
    if LeafKind.EMPTY in (expected.kind, found.kind) or expected == found:
        return
    if expected.shape != found.shape or (expected.kind is LeafKind.KEY) != (found.kind is LeafKind.KEY):
        problem = f"{where}: expected {expected} by the model, found {found} in the checkpoint"
        matching.problems.append(problem)
        matching.shapes.add(problem)
    elif expected.dtype != found.dtype:
        matching.dtypes.append(f"{where}: {found} in the checkpoint, {expected} in the model")
