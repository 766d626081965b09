"""Linen's ``TrainState`` as it is saved: step, params, opt_state and whatever fields its user added."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from converter.dialects.dialect import EMPTY_REASON, Framework, Ignored, Lifted
from converter.dialects.linen import boxed_paths, inner_path
from converter.dialects.opt_state import EMPTY_NODE, OPT_STATE, STEP, as_positions, mixed_prefixes, split_mirror
from converter.paths import Path
from converter.training_state import COLLECTIONS, PARAMS, Held, Part, Slot, TrainingState
from converter.tree import LeafKind, Tree


@dataclass(frozen=True, slots=True)
class LinenTrainState:
    """``{"step": …, "params": {…}, "opt_state": …, "batch_stats": {…}, …}``.

    Attributes:
      nested: whether ``params`` holds a whole variables dict (``params/params/…``), as where ``TrainState.create`` was
        given the result of ``module.init``.
      boxed: paths of variables that are written with the ``value`` of a box.
      collections: fields that are collections of the model beyond the well-known ones.
      beside: well-known collections that stand beside ``params`` although it is a whole variables dict.
      optimizer: the field of the optimizer's state.
    """

    nested: bool = False
    boxed: frozenset[Path] = frozenset()
    collections: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()
    optimizer: str = OPT_STATE
    framework: ClassVar[Framework] = "linen"
    title: ClassVar[str] = "Linen TrainState"

    def lift(self, tree: Tree) -> Lifted:
        boxes = boxed_paths(tree)
        plain = {path: path[:-1] if path[:-1] in boxes else path for path in tree}
        variables = self._variables(plain.values())
        full = [plain[path] for path in tree.full()]
        mixed = mixed_prefixes((path for path in full if self._variable(path) is None), variables)
        leaves: list[tuple[Slot, Held]] = []
        ignored: list[Ignored] = []
        for path, leaf in tree.items():
            slot = self._slot(plain[path], variables, mixed)
            if leaf.spec.kind is not LeafKind.EMPTY:
                leaves.append((slot, Held(plain[path], leaf)))
            elif slot.part is Part.OPT_STATE and slot.is_mirror:
                # A masked optimizer keeps no moments here; the place itself has to exist on the other side too.
                leaves.append((slot, Held(plain[path], EMPTY_NODE)))
            else:
                ignored.append(Ignored(plain[path], EMPTY_REASON))
        return Lifted(TrainingState(leaves), tuple(ignored))

    def _variables(self, paths: Iterable[Path]) -> dict[Path, Slot]:
        """The variables by the path under which the optimizer state mirrors them."""
        variables: dict[Path, Slot] = {}
        for path in paths:
            slot = self._variable(path)
            if slot is not None:
                name = path[1:] if self.nested and path[0] == PARAMS else slot.path
                # Where two collections use one path it is the parameter that the optimizer follows.
                if slot.collection == PARAMS or name not in variables:
                    variables[name] = slot
        return variables

    def _variable(self, path: Path) -> Slot | None:
        field, inside = str(path[0]), path[1:]
        if field == PARAMS and self.nested:
            return Slot(Part.VARIABLES, str(inside[0]), inside[1:]) if len(inside) > 1 else None
        if inside and (field in COLLECTIONS or field in self.collections):
            return Slot(Part.VARIABLES, field, inside)
        return None

    def _slot(self, path: Path, variables: Mapping[Path, Slot], mixed: Collection[Path]) -> Slot:
        variable = self._variable(path)
        if variable is not None:
            return variable
        if path == (STEP,):
            return Slot(Part.STEP)
        prefix, tail = split_mirror(path, variables, mixed)
        part = Part.OPT_STATE if path[0] == self.optimizer else Part.EXTRA
        if part is Part.OPT_STATE:
            prefix = prefix[1:]
        if not tail:
            return Slot(part, prefix=prefix)
        variable = variables.get(tail, Slot(Part.VARIABLES, PARAMS, tail))
        return Slot(part, variable.collection, variable.path, prefix)

    def lower(self, slot: Slot) -> Path | None:
        inner = inner_path(slot.path, self.boxed)
        nested = self.nested and slot.collection not in self.beside
        if nested and slot.path:
            inner = (slot.collection, *inner)
        match slot.part:
            case Part.VARIABLES if nested or slot.collection == PARAMS:
                return (PARAMS, *inner)
            case Part.VARIABLES:
                return (slot.collection, *inner)
            case Part.OPT_STATE:
                return (self.optimizer, *as_positions(slot.prefix), *inner)
            case Part.STEP:
                return (STEP,)
            case Part.EXTRA:
                return (*slot.prefix, *inner)
