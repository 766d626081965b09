"""What is left behind: by the user's patterns, by --params-only, and by default. Never without being listed."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from converter.paths import Path, PathGlob, format_path, parse_path
from converter.planning.findings import Findings
from converter.planning.plan import Drop
from converter.planning.request import Request
from converter.rules.link import Name
from converter.training_state import PARAMS, RNG_COLLECTIONS, Held, Part, Slot, TrainingState
from converter.tree import LeafKind, LeafSpec

if TYPE_CHECKING:
    from converter.models import Model

TRANSIENT = ("intermediates", "perturbations")
"""Collections that a call makes anew: neither framework needs them in a checkpoint."""


def apply_policy(
    state: TrainingState, request: Request, findings: Findings
) -> tuple[TrainingState, dict[Name, LeafSpec]]:
    """Separates what is converted from what is dropped; a dropped variable takes its optimizer mirrors along.

    Returns:
      the leaves to convert, and the variables that are not.
    """
    used: set[PathGlob] = set()
    plain = _plain_arrays(request.nnx_model)
    reasons = {
        slot: reason
        for slot, held in state.items()
        if (reason := _reason(slot, held, request, plain, used)) is not None
    }
    dropped = {_name(slot): state[slot].leaf.spec for slot in reasons if slot.part is Part.VARIABLES}
    if dropped:
        for slot, held in state.items():
            follows = slot not in reasons and slot.is_mirror and _name(slot) in dropped
            if follows and not _matches(request.keep, slot, held, used):
                reasons[slot] = f"mirrors {format_path((slot.collection, *slot.path))}, which is dropped"
    if reasons:
        findings.drops += [
            Drop(held.source, held.leaf.spec, reasons[slot])
            for slot, held in state.items()
            if slot in reasons and held.leaf.spec.kind is not LeafKind.EMPTY
        ]
        state = TrainingState([(slot, held) for slot, held in state.items() if slot not in reasons])
    for option, globs in (("--drop", request.drop), ("--keep", request.keep)):
        for glob in globs:
            if glob not in used:
                findings.refuse(
                    f"{option} {glob.text!r} matches no leaf",
                    "Patterns are matched against paths as inspect prints them; ** stands for any number of keys.",
                )
    return state, dropped


def _name(slot: Slot) -> Name:
    return slot.collection, slot.path


def _reason(slot: Slot, held: Held, request: Request, plain: frozenset[Path], used: set[PathGlob]) -> str | None:
    """Why a leaf is dropped; None if it is not."""
    # All patterns are tried, so that one that is covered by another does not count as unused.
    dropping = _matches(request.drop, slot, held, used)
    if _matches(request.keep, slot, held, used):
        return None
    if dropping:
        return f"--drop {dropping[0].text!r}"
    is_plain = slot.part is Part.VARIABLES and not slot.collection and slot.path in plain
    if request.params_only and not _may_be_parameter(slot, is_plain):
        return "--params-only"
    if is_plain and request.to == "linen":
        return "an array of the NNX module that is no Variable: Linen has no place for it"
    if slot.part is Part.VARIABLES and slot.collection in RNG_COLLECTIONS and request.to == "linen":
        return "NNX random state: Linen takes it as an argument of apply (--keep carries it along)"
    if slot.part is Part.VARIABLES and slot.collection in TRANSIENT:
        return "made anew by every call (--keep carries it along)"
    return None


def _plain_arrays(model: Model | None) -> frozenset[Path]:
    """Arrays of an NNX model that are no Variables."""
    return frozenset(v.path for v in model.variables if v.is_plain) if model and model.typed else frozenset()


def _may_be_parameter(slot: Slot, is_plain: bool) -> bool:
    """Whether a leaf is a parameter, or a variable that nothing decides: what that is, is for the user to say."""
    return slot.part is Part.VARIABLES and (slot.collection == PARAMS or (not slot.collection and not is_plain))


def _matches(globs: Collection[PathGlob], slot: Slot, held: Held, used: set[PathGlob]) -> list[PathGlob]:
    if not globs:  # the usual case, and there may be very many leaves
        return []
    neutral = parse_path(str(slot))
    found = [glob for glob in globs if glob.matches(held.source) or glob.matches(neutral)]
    used.update(found)
    return found
