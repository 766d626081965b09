"""NNX's layouts: ``nnx.State`` and pure dicts, of a model, of an optimizer, or of both together."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from converter.dialects.dialect import EMPTY_REASON, Framework, Ignored, Lifted
from converter.dialects.opt_state import EMPTY_NODE, OPT_STATE, STEP, mixed_prefixes, split_mirror
from converter.paths import Path
from converter.training_state import Held, Part, Slot, TrainingState
from converter.tree import LeafKind, Tree

VALUE = "value"
"""Orbax writes a Variable as a node with this one child (``raw_value`` in flax 0.8.3 to 0.8.5)."""

WRAPPERS = (VALUE, "raw_value")

MODULE_MARK = "_pytree__state"
"""Where an ``nnx.Module`` itself was saved, each of its nodes has this entry, which holds nothing."""


@dataclass(frozen=True, slots=True)
class NnxLayout:
    """One NNX checkpoint: which Variables stand where, and in which wrapper.

    Attributes:
      suffix: the last key of every leaf of an ``nnx.State``; None for a pure dict (``nnx.to_pure_dict``).
      model: where the model's own Variables start; None where there are none (an ``nnx.Optimizer`` saved alone).
      optimizer: where the optimizer's ``step`` and ``opt_state`` stand; None where there is no optimizer.
      bare: paths in the model of arrays that are no Variables (the mask of a Conv): they have no wrapper.
    """

    suffix: str | None = VALUE
    model: Path | None = ()
    optimizer: Path | None = None
    bare: frozenset[Path] = frozenset()
    framework: ClassVar[Framework] = "nnx"

    @property
    def title(self) -> str:
        """``nnx.State of a model``, ``pure dict of {model, optimizer}`` …"""
        wrapper = "nnx.State" if self.suffix else "pure dict"
        if self.optimizer is None:
            return f"{wrapper} of a model"
        if self.model is None:
            return f"{wrapper} of an nnx.Optimizer"
        if self.optimizer == ():
            return f"{wrapper} of an nnx.ModelAndOptimizer"
        names = ", ".join(key for path in sorted((self.model, self.optimizer)) for key in path)
        return f"{wrapper} of {{{names}}}"

    def lift(self, tree: Tree) -> Lifted:
        plain = [self._unwrapped(path) for path in tree]
        inner = [self._in_model(path) for path in plain]
        outside = {path: leaf for path, inside, leaf in zip(plain, inner, tree.values(), strict=True) if inside is None}
        variables = {inside for inside in inner if inside is not None} if outside else frozenset[Path]()
        full = (path for path, leaf in outside.items() if leaf.spec.kind is not LeafKind.EMPTY)
        mixed = mixed_prefixes(full, variables)
        leaves: list[tuple[Slot, Held]] = []
        ignored: list[Ignored] = []
        for source, inside, leaf in zip(plain, inner, tree.values(), strict=True):
            if inside is not None:
                slot = Slot(Part.VARIABLES, "", inside)
            else:
                slot = self._outer_slot(source, variables, mixed)
            if leaf.spec.kind is not LeafKind.EMPTY:
                leaves.append((slot, Held(source, leaf)))
            elif slot.part is Part.OPT_STATE and slot.is_mirror:
                leaves.append((slot, Held(source, EMPTY_NODE)))
            else:
                mark = "bookkeeping of a saved nnx.Module" if source[-1:] == (MODULE_MARK,) else EMPTY_REASON
                ignored.append(Ignored(source, mark))
        return Lifted(TrainingState(leaves), tuple(ignored))

    def lower(self, slot: Slot) -> Path | None:
        wrapper = (self.suffix,) if self.suffix else ()
        inner = tuple(map(str, (*slot.prefix, *slot.path)))
        match slot.part:
            case Part.VARIABLES if inner in self.bare and self.model is not None:
                return (*self.model, *inner)
            case Part.VARIABLES:
                return None if self.model is None else (*self.model, *inner, *wrapper)
            case Part.OPT_STATE:
                return None if self.optimizer is None else (*self.optimizer, OPT_STATE, *inner, *wrapper)
            case Part.STEP:
                return None if self.optimizer is None else (*self.optimizer, STEP, *wrapper)
            case Part.EXTRA:
                # Beside an unprefixed model a foreign field could not be told from one of its attributes.
                return None if self.model == () else (*inner, *wrapper)

    def of(self, leaves: Iterable[Path]) -> NnxLayout:
        """The same layout with the bare arrays among these leaves."""
        unwrapped = (path for path in leaves if self.suffix and path[-1] != self.suffix)
        inner = (self._in_model(path) for path in unwrapped)
        return replace(self, bare=frozenset(inside for inside in inner if inside is not None))

    def _unwrapped(self, path: Path) -> Path:
        return path[:-1] if self.suffix is not None and path[-1:] == (self.suffix,) else path

    def _in_optimizer(self, path: Path) -> bool:
        if self.optimizer is None or path[: len(self.optimizer)] != self.optimizer:
            return False
        return path[len(self.optimizer) :][:1] in ((STEP,), (OPT_STATE,))

    def _in_model(self, path: Path) -> Path | None:
        """The path inside of the model; None for what stands beside it."""
        if self.model is None or path[: len(self.model)] != self.model or self._in_optimizer(path):
            return None
        return path[len(self.model) :]

    def _outer_slot(self, path: Path, variables: Collection[Path], mixed: Collection[Path]) -> Slot:
        """Where a leaf beside the model belongs."""
        if not self._in_optimizer(path):
            prefix, tail = split_mirror(path, variables, mixed) if variables else (path, ())
            return Slot(Part.EXTRA, path=tail, prefix=prefix)
        field = len(self.optimizer or ())
        if path[field] == STEP:
            return Slot(Part.STEP)
        prefix, tail = split_mirror(path, variables, mixed)
        return Slot(Part.OPT_STATE, path=tail, prefix=prefix[field + 1 :])
