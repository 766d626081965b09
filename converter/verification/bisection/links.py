"""Which variables of the two frameworks are which, read off a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from converter.dialects.dialect import Dialect
from converter.paths import Path
from converter.planning.plan import Step
from converter.rules.operations import REWRAP
from converter.training_state import Part, TrainingState
from converter.verification.bisection.pairing import VariableLink


def source_paths(held: TrainingState) -> dict[Path, Path]:
    """For each variable of a lifted checkpoint its path as plans name it, and its path in the model."""
    return {entry.source: slot.path for slot, entry in held.items() if slot.part is Part.VARIABLES}


def target_paths(held: TrainingState, layout: Dialect) -> dict[Path, Path]:
    """The same for what steps make, wrappers included."""
    slots = (slot for slot in held if slot.part is Part.VARIABLES)
    lowered = ((layout.lower(slot), slot.path) for slot in slots)
    return {target: path for target, path in lowered if target is not None}


def links_of(
    steps: Iterable[Step], sources: Mapping[Path, Path], targets: Mapping[Path, Path], *, to_linen: bool
) -> list[VariableLink]:
    """The links that the steps of a plan carry out on variables of a model.

    Args:
      sources, targets: the paths of variables in the two models by those in the two checkpoints.
    """
    made: dict[int, tuple[Step, list[Path]]] = {}
    for step in steps:
        if step.target in targets and step.sources:
            made.setdefault(id(step.transfer), (step, []))[1].append(targets[step.target])
    links = []
    for step, results in made.values():
        origins = tuple(sources[held.source] for held in step.sources if held.source in sources)
        linen, nnx = (tuple(results), origins) if to_linen else (origins, tuple(results))
        links.append(VariableLink(linen, nnx, step.operation == REWRAP))
    return links
