"""Carrying out links on a whole training state: what happens to a variable happens to everything that mirrors it.

An optimizer state mirrors the parameters several times over (``mu``, ``nu``, accumulated gradients, averages). Each
such mirror gets the same operation as the parameters, as long as it holds one value for each value of the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from converter.dialects.opt_state import EMPTY_NODE
from converter.planning.findings import Findings
from converter.planning.plan import Drop, Transfer
from converter.rules.link import Link, Name
from converter.rules.operations import REWRAP, Agree, Chain, Copies, Fill, Operation, Unfit, fill_number, without_casts
from converter.training_state import Held, Part, Slot, TrainingState
from converter.tree import LeafKind, LeafSpec, Path, format_path

FACTORED = frozenset({"v_row", "v_col"})
"""Fields of optax's FactoredState that hold means over the axes of a parameter (Adafactor)."""


@dataclass(frozen=True, slots=True)
class Made:
    """A leaf of the target: where it belongs, and which result of which transfer it is."""

    slot: Slot
    transfer: Transfer
    output: int = 0

    @property
    def spec(self) -> LeafSpec:
        return self.transfer.specs[self.output]

    @property
    def source(self) -> Path:
        """Where it comes from; where it goes to, if it comes from nowhere."""
        return self.transfer.sources[0].source if self.transfer.sources else (self.slot.collection, *self.slot.path)


Group = tuple[Part, Path]
"""The variables themselves, or one mirror of them: its part and its prefix."""


class Following:
    """The target's leaves, and the transfers whose values have to be looked at first."""

    def __init__(self, state: TrainingState, links: Iterable[Link], findings: Findings, *, allow_lossy: bool) -> None:
        self.made: list[Made] = []
        self.conditions: list[Transfer] = []
        self._findings = findings
        self._allow_lossy = allow_lossy
        self._groups: dict[Group, dict[Name, Held]] = {}
        for slot, held in state.items():
            if slot.path:
                self._groups.setdefault((slot.part, slot.prefix), {})[slot.collection, slot.path] = held
        by_source = {name: link for link in links for name in link.sources}
        self._follow(state, by_source)
        for link in links:
            if not link.sources:
                self._invent(link)

    def _follow(self, state: TrainingState, by_source: Mapping[Name, Link]) -> None:
        done: set[tuple[Group, tuple[Name, ...]]] = set()
        for slot, held in state.items():
            if not slot.path:
                self.made.append(Made(slot, Transfer(REWRAP, (held,))))
                continue
            link = by_source.get((slot.collection, slot.path))
            if link is None:  # it has no counterpart, which is a problem already
                continue
            group = (slot.part, slot.prefix)
            if (group, link.sources) not in done:
                done.add((group, link.sources))
                self._carry_out(link, slot)

    def _carry_out(self, link: Link, slot: Slot) -> None:
        """Makes the targets of a link in the group that a slot belongs to."""
        members = self._groups[slot.part, slot.prefix]
        held = [members[name] for name in link.sources if name in members]
        operation = link.operation
        if slot.part is not Part.VARIABLES:
            if all(each.leaf.spec.kind is LeafKind.EMPTY for each in held):
                self._place(link, slot, Transfer(REWRAP, [Held(held[0].source, EMPTY_NODE)] * len(link.targets)))
                return
            followed = self._for_mirror(link, slot, held)
            if followed is None:
                return
            operation = followed
        elif len(held) < len(link.sources):
            return  # the others are missing from the checkpoint, which is a problem already
        self._place(link, slot, self._transfer(operation, held))

    def _for_mirror(self, link: Link, slot: Slot, held: list[Held]) -> Operation | None:
        """The operation as it applies to a mirror; None, and a problem, where it cannot."""
        operation = link.operation
        if operation == REWRAP:
            return operation
        variables = self._groups.get((Part.VARIABLES, ()), {})
        specs = [variables[name].leaf.spec for name in link.sources if name in variables]
        where = " + ".join(format_path(each.source) for each in held)
        if len(held) < len(link.sources) or any(each.leaf.spec.kind is LeafKind.EMPTY for each in held):
            reason = "only some of the parameters that become one have it (the others are masked out)"
        elif self._is_factored(slot):
            reason = "factored moments (Adafactor) can follow a new name, but not a new shape"
        elif slot.part is Part.OPT_STATE and _is_tie(operation):
            reason = "the optimizer state of weights that are tied on one side only cannot be shared out"
        elif specs and [spec.shape for spec in specs] != [each.leaf.spec.shape for each in held]:
            reason = "it has not the shape of its parameter, so that it cannot follow a new shape"
        else:
            same_dtypes = not specs or [s.dtype for s in specs] == [each.leaf.spec.dtype for each in held]
            return operation if same_dtypes else without_casts(operation)
        shown = ", ".join(str(each.leaf.spec) for each in held)
        self._findings.refuse(f"{where}: {shown} cannot become {_targets(link)} ({operation.name}): {reason}", _ADVICE)
        return None

    def _is_factored(self, slot: Slot) -> bool:
        field, above = slot.prefix[-1:], slot.prefix[:-1]
        beside = any((slot.part, (*above, name)) in self._groups for name in FACTORED)
        return beside and (field == ("v",) or field[0] in FACTORED)

    def _transfer(self, operation: Operation, held: Iterable[Held]) -> Transfer:
        if self._allow_lossy:
            operation = operation.lossy()
        transfer = Transfer(operation, tuple(held))
        if operation.looks_at_values:
            self.conditions.append(transfer)
        return transfer

    def _place(self, link: Link, slot: Slot, transfer: Transfer) -> None:
        try:
            count = len(transfer.specs)
        except Unfit as error:
            where = " + ".join(format_path(held.source) for held in transfer.sources)
            self._findings.refuse(f"{where}: {error}", _ADVICE)
            return
        if not link.targets:
            drops = [Drop(held.source, held.leaf.spec, link.operation.name) for held in transfer.sources]
            self._findings.drops += [drop for drop in drops if drop.spec.kind is not LeafKind.EMPTY]
        for output in range(count):
            self.made.append(Made(slot.renamed(*link.targets[output]), transfer, output))

    def _invent(self, link: Link) -> None:
        """Fills in variables that no source has, and what an optimizer would keep for them from the start."""
        assert isinstance(link.operation, Fill)
        for part, prefix in self._groups:
            slot = Slot(part, prefix=prefix)
            beside = self._beside(link, part, prefix)
            if part is Part.VARIABLES:
                self._place(link, slot, Transfer(link.operation, ()))
            elif beside is None or self._is_factored(slot):
                continue
            elif beside.leaf.spec.kind is LeafKind.EMPTY:
                self._place(link, slot, Transfer(REWRAP, [Held(beside.source, EMPTY_NODE)] * len(link.targets)))
            elif part is Part.EXTRA:  # an average of the parameters
                self._place(link, slot, Transfer(link.operation, ()))
            else:
                spec = replace(link.operation.filled[0], dtype=beside.leaf.spec.dtype)
                self._place(link, slot, Transfer(fill_number(spec, 0.0, link.operation.reason), ()))

    def _beside(self, link: Link, part: Part, prefix: Path) -> Held | None:
        members = self._groups[part, prefix]
        return members.get(link.beside) if link.beside is not None else next(iter(members.values()), None)


_ADVICE = (
    "Leave the optimizer state behind (--params-only, or --drop 'opt_state/**'), or keep these parameters as they are."
)


def _is_tie(operation: Operation) -> bool:
    if isinstance(operation, Chain):
        return any(map(_is_tie, operation.operations))
    return isinstance(operation, Agree | Copies)


def _targets(link: Link) -> str:
    return " + ".join(format_path((collection, *path)) for collection, path in link.targets)
