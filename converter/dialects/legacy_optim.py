"""Optimizers of ``flax.optim`` (up to flax 0.5) and T5X, which keep the parameters inside: ``target`` and ``state``.

``state/param_states`` has the parameters' own paths, below each of which stand the values that the optimizer keeps for
it (``grad_ema``, ``momentum`` …), where optax has one tree of parameters for each such value. What they mean is the
same in both, so that they are read as what optax calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from converter.dialects.dialect import EMPTY_REASON, Framework, Ignored, Lifted
from converter.dialects.opt_state import STEP, split_mirror
from converter.paths import Path
from converter.training_state import COLLECTIONS, PARAMS, Held, Part, Slot, TrainingState
from converter.tree import LeafKind, Tree

TARGET, STATE, PARAM_STATES = "target", "state", "param_states"

MUTABLES = ("model_state", "flax_mutables")
"""What stands beside the optimizer with the other collections of the model: in Flax's examples, and in T5X."""

COUNT: Path = ("0", "count")

OPTAX_FIELDS: Mapping[frozenset[str], Mapping[str, Path]] = {
    frozenset({"grad_ema", "grad_sq_ema"}): {"grad_ema": ("0", "mu"), "grad_sq_ema": ("0", "nu")},
    frozenset({"momentum"}): {"momentum": ("0", "trace")},
    frozenset({"G"}): {"G": ("0", "sum_of_squares")},
    frozenset({"v"}): {"v": ("0", "nu")},
    frozenset({"v", "mg"}): {"v": ("0", "nu"), "mg": ("0", "mu")},
}
"""What an optimizer keeps for each parameter, and where optax keeps it: Adam and LAMB (``scale_by_adam``), Momentum
(``trace``), Adagrad (``scale_by_rss``), RMSProp without and with centring (``scale_by_rms``, ``scale_by_stddev``)."""

COUNTED = frozenset({"grad_ema", "grad_sq_ema"})
"""Whose state of optax counts steps too, for the correction of its bias."""


@dataclass(frozen=True, slots=True)
class LegacyOptimizer:
    """``{"target": {…}, "state": {"step": …, "param_states": {…}}}``, alone or as the field of a train state.

    Attributes:
      at: where it stands.
      nested: whether ``target`` holds a whole variables dict (``target/params/…``).
      fields: what the optimizer keeps for each parameter.
    """

    at: Path = ()
    nested: bool = False
    fields: frozenset[str] = frozenset()
    framework: ClassVar[Framework] = "linen"

    @property
    def title(self) -> str:
        return "train state around a flax.optim optimizer" if self.at else "flax.optim optimizer"

    def lift(self, tree: Tree) -> Lifted:
        full = tree.full()
        variables = {self._inside(path)[1:]: slot for path in full if (slot := self._variable(path)) is not None}
        leaves: list[tuple[Slot, Held]] = []
        ignored: list[Ignored] = []
        for path, leaf in tree.items():
            if leaf.spec.kind is LeafKind.EMPTY:
                ignored.append(Ignored(path, EMPTY_REASON))
            else:
                leaves.append((self._slot(path, variables, (STEP,) in tree), Held(path, leaf)))
        step = (*self.at, STATE, STEP)
        if self.fields == COUNTED and step in tree and Slot(Part.STEP) in {slot for slot, _ in leaves}:
            counted = Slot(Part.OPT_STATE, prefix=COUNT)
            if all(slot != counted for slot, _ in leaves):
                leaves.append((counted, Held(step, tree[step])))
        return Lifted(TrainingState(leaves), tuple(ignored))

    def _inside(self, path: Path) -> Path:
        """The path below the optimizer, empty where it is not."""
        return path[len(self.at) :] if path[: len(self.at)] == self.at else ()

    def _variable(self, path: Path) -> Slot | None:
        inside = self._inside(path)
        if inside[:1] == (TARGET,):
            skip = 2 if self.nested else 1
            return Slot(Part.VARIABLES, str(inside[1]) if self.nested else PARAMS, inside[skip:])
        if path[0] in MUTABLES and len(path) > 2:
            return Slot(Part.VARIABLES, str(path[1]), path[2:])
        return None

    def _slot(self, path: Path, variables: Mapping[Path, Slot], has_own_step: bool) -> Slot:
        variable, inside = self._variable(path), self._inside(path)
        if variable is not None:
            return variable
        if path == (STEP,):
            return Slot(Part.STEP)
        if inside == (STATE, STEP):
            return Slot(Part.OPT_STATE, prefix=COUNT) if has_own_step else Slot(Part.STEP)
        if inside[:2] != (STATE, PARAM_STATES):
            return Slot(Part.EXTRA, prefix=path)
        below = inside[2:]
        kept = variables.get(below[:-1])
        if kept is not None:
            field = str(below[-1])
            way = OPTAX_FIELDS.get(self.fields, {}).get(field, (field,))
            return Slot(Part.OPT_STATE, kept.collection, kept.path, way)
        prefix, tail = split_mirror(below, variables)  # T5X around an optimizer of optax
        kept = variables.get(tail)
        return (
            Slot(Part.OPT_STATE, prefix=prefix) if kept is None else Slot(Part.OPT_STATE, kept.collection, tail, prefix)
        )

    def lower(self, slot: Slot) -> Path | None:
        """There is no way back: today's optimizers are optax's, and their states stand in a ``TrainState``."""
        if slot.part is not Part.VARIABLES or (slot.collection != PARAMS and not self.nested):
            return None
        return (*self.at, TARGET, *((slot.collection,) if self.nested else ()), *slot.path)


def legacy_optimizer(tree: Tree) -> LegacyOptimizer | None:
    """The layout of a tree that holds such an optimizer; None for all others."""
    for at in ((), ("optimizer",)):
        if {TARGET, STATE} <= set(tree.children(*at)) and PARAM_STATES in tree.children(*at, STATE):
            targets = set(tree.children(*at, TARGET))
            return LegacyOptimizer(at, PARAMS in targets and targets <= set(COLLECTIONS), _fields(tree, at))
    return None


def _fields(tree: Tree, at: Path) -> frozenset[str]:
    """What is kept for each parameter: the keys below the parameters' paths that hold arrays."""
    parameters = {path[len(at) + 1 :] for path in tree if path[: len(at) + 1] == (*at, TARGET)}
    start = len(at) + 2
    return frozenset(
        str(path[-1])
        for path, leaf in tree.items()
        if path[:start] == (*at, STATE, PARAM_STATES) and path[start:-1] in parameters
        if leaf.spec.kind is not LeafKind.EMPTY
    )
