"""Which collection each NNX variable belongs to.

An NNX checkpoint does not record the types of its Variables. They come, in this order, from the user
(``--collection``, rules that name one), from a model definition, from the optimizer (it mirrors parameters only), or
from names that Flax's own layers use for one thing alone. What none of them tells stays undecided, and the plan refuses
it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from converter.dialects.rng import random_state_paths
from converter.paths import Path, PathGlob
from converter.rules.names import joined_numbers
from converter.training_state import PARAMS, Part, TrainingState
from converter.tree import Leaf

if TYPE_CHECKING:
    from converter.models import Model
    from converter.rules.language.rule_set import RuleSet

PARAM_NAMES = frozenset({"kernel", "bias", "scale", "embedding", "negative_slope"})
"""What the layers of flax.nnx call their parameters (linear.py, normalization.py, attention.py, activations.py)."""

CACHE_NAMES = frozenset({"cached_key", "cached_value", "cache_index"})
"""The decode cache of nnx.MultiHeadAttention."""

STATISTICS = frozenset({"mean", "var"})
"""The running statistics of nnx.BatchNorm; only both together count as such."""

Decide = Callable[[Path], str | None]


def assign_collections(
    state: TrainingState,
    told: Sequence[tuple[PathGlob, str]],
    nnx_model: Model | None = None,
    linen_model: Model | None = None,
    rules: RuleSet | None = None,
) -> TrainingState:
    """The same state with the collection of every variable, and of everything that mirrors one, filled in.

    Variables that cannot be decided keep the collection "".
    """
    variables = {slot.path: held.leaf for slot, held in state.items() if slot.part is Part.VARIABLES}
    mirrored = frozenset(slot.path for slot in state if slot.part is Part.OPT_STATE and slot.is_mirror)
    sources = {slot.path: held.source for slot, held in state.items() if slot.part is Part.VARIABLES} if told else {}
    possible: list[tuple[object, Decide]] = [
        (told, lambda path: next((name for g, name in told if g.matches(path) or g.matches(sources[path])), None)),
        (rules, lambda path: rules.collection_of(path) if rules else None),
        (nnx_model, _from_nnx_model(nnx_model)),  # "" for an array that is no Variable: that is decided too
        (random := random_state_paths(variables), random.get),
        (linen_model, _from_linen_model(linen_model)),
        (mirrored, lambda path: PARAMS if path in mirrored else None),
        (True, _from_names(variables)),
    ]
    authorities = [decide for knows, decide in possible if knows]

    def decide(path: Path) -> str:
        for authority in authorities:
            if (found := authority(path)) is not None:
                return found
        return ""

    decided = {path: decide(path) for path in variables}
    return TrainingState(
        [
            (slot.renamed(decided.get(slot.path, PARAMS) if slot.path else "", slot.path), held)
            for slot, held in state.items()
        ]
    )


def _from_nnx_model(model: Model | None) -> Decide:
    known = {variable.path: variable.collection for variable in model.variables} if model else {}
    return known.get


def _from_linen_model(model: Model | None) -> Decide:
    known: dict[Path, set[str]] = {}
    for variable in model.variables if model else ():
        known.setdefault(variable.path, set()).add(variable.collection)

    def decide(path: Path) -> str | None:
        for candidate in (path, joined_numbers(path)):
            collections = known.get(candidate, set())
            if len(collections) == 1:
                return next(iter(collections))
        return None

    return decide


def _from_names(variables: Mapping[Path, Leaf]) -> Decide:
    def decide(path: Path) -> str | None:
        name = path[-1] if path else ""
        if name in PARAM_NAMES:
            return PARAMS
        if name in CACHE_NAMES:
            return "cache"
        if name in STATISTICS and all((*path[:-1], other) in variables for other in STATISTICS):
            return "batch_stats"
        return None

    return decide
