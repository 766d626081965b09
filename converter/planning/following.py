"""Carrying out links on a whole training state: what happens to a variable happens to everything that mirrors it.

An optimizer state mirrors the parameters several times over (``mu``, ``nu``, accumulated gradients, averages). Each
such mirror gets the same operation as the parameters, as long as it holds one value for each value of the parameter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from converter.dialects.opt_state import EMPTY_NODE
from converter.folding import fold
from converter.paths import Path, format_path
from converter.planning.findings import Findings
from converter.planning.plan import Drop, Transfer
from converter.rules.link import Link, Name, format_name
from converter.rules.operations import REWRAP, Agree, Chain, Copies, Fill, Operation, Unfit, fill_number, without_casts
from converter.rules.operations import Drop as DropOperation
from converter.training_state import Held, Part, Slot, TrainingState
from converter.tree import LeafKind, LeafSpec

FACTORED = frozenset({"v_row", "v_col"})
"""Fields of optax's FactoredState that hold means over the axes of a parameter (Adafactor)."""

WHOLE = "v"
"""Its third field: moments of parameters that are too small to be factored, placeholders for the others."""


@dataclass(slots=True)
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


def factored_groups(state: Iterable[Slot]) -> frozenset[Group]:
    """The mirrors whose shapes are not those of the parameters."""
    groups = {(slot.part, slot.prefix) for slot in state if slot.is_mirror}

    def is_factored(part: Part, prefix: Path) -> bool:
        beside = any((part, (*prefix[:-1], name)) in groups for name in FACTORED)
        return beside and prefix[-1:] in {(name,) for name in (*FACTORED, WHOLE)}

    return frozenset(group for group in groups if is_factored(*group))


class Following:
    """The target's leaves, and the transfers whose values have to be looked at first.

    Args:
      sources: the specs of all variables that links speak of, also of those that are not in the state.

    Attributes:
      is_complete: whether everything could follow; what could not is a problem already.
    """

    def __init__(
        self,
        state: TrainingState,
        sources: Mapping[Name, LeafSpec],
        links: Collection[Link],
        findings: Findings,
        *,
        allow_lossy: bool,
    ) -> None:
        self.made: list[Made] = []
        self.conditions: list[Transfer] = []
        self._findings = findings
        self.is_complete = True
        self._allow_lossy = allow_lossy
        self._sources = sources
        self._factored = factored_groups(state)
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
        done: set[tuple[Group, int]] = set()
        for slot, held in state.items():
            if not slot.path:
                self.made.append(Made(slot, Transfer(REWRAP, (held,))))
                continue
            link = by_source.get((slot.collection, slot.path))
            if link is None:  # it has no counterpart, which is a problem already
                continue
            if len(link.sources) > 1:
                once = ((slot.part, slot.prefix), id(link))
                if once in done:
                    continue
                done.add(once)
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
        if isinstance(operation, DropOperation):
            return _forgotten(operation, slot.part)
        specs = [self._sources[name] for name in link.sources if self._sources[name].kind is not LeafKind.EMPTY]
        where = Transfer(operation, held).names
        if len(held) < len(link.sources) or any(each.leaf.spec.kind is LeafKind.EMPTY for each in held):
            reason = "only some of the parameters that become one have it (the others are masked out)"
        elif (slot.part, slot.prefix) in self._factored:
            reason = "factored moments (Adafactor) can follow a new name, but not a new shape"
        elif slot.part is Part.OPT_STATE and _is_tie(operation):
            reason = "the optimizer state of weights that are tied on one side only cannot be shared out"
        elif specs and [spec.shape for spec in specs] != [each.leaf.spec.shape for each in held]:
            reason = "it has not the shape of its parameter, so that it cannot follow a new shape"
        else:
            same_dtypes = not specs or [s.dtype for s in specs] == [each.leaf.spec.dtype for each in held]
            return operation if same_dtypes else without_casts(operation)
        shown = ", ".join(dict.fromkeys(str(each.leaf.spec) for each in held))
        self._refuse(f"{where}: {shown} cannot become {_targets(link)} ({operation.name}): {reason}")
        return None

    def _refuse(self, problem: str) -> None:
        self.is_complete = False
        self._findings.refuse(problem, _ADVICE)

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
            self._refuse(f"{transfer.names}: {error}")
            return
        if not link.targets:
            forced = link.operation.looks_at_values and not transfer.operation.looks_at_values
            reason = link.operation.name + (" (--allow-lossy)" if forced else "")
            drops = [Drop(held.source, held.leaf.spec, reason) for held in transfer.sources]
            self._findings.drops += [drop for drop in drops if drop.spec.kind is not LeafKind.EMPTY]
        transfer.confidence = link.confidence
        for output in range(count):
            self.made.append(Made(slot.renamed(*link.targets[output]), transfer, output))

    def _invent(self, link: Link) -> None:
        """Fills in variables that no source has, and what an optimizer would keep for them from the start."""
        assert isinstance(link.operation, Fill)
        alike = link.beside or self._alike(link)
        for (part, prefix), members in self._groups.items():
            slot = Slot(part, prefix=prefix)
            beside = members.get(alike) if alike is not None else None
            if part is Part.VARIABLES:
                self._place(link, slot, Transfer(link.operation, ()))
            elif beside is None:
                continue
            elif (part, prefix) in self._factored:
                made = ", ".join(format_path((*prefix, *path)) for _, path in link.targets)
                self._refuse(f"{made}: factored moments (Adafactor) of a variable that is filled in")
            elif beside.leaf.spec.kind is LeafKind.EMPTY:
                self._place(link, slot, Transfer(REWRAP, [Held(beside.source, EMPTY_NODE)] * len(link.targets)))
            elif part is Part.EXTRA:  # an average of the parameters
                self._place(link, slot, Transfer(link.operation, ()))
            else:
                spec = link.operation.filled[0]._replace(dtype=beside.leaf.spec.dtype)
                self._place(link, slot, Transfer(fill_number(spec, 0.0, "what an optimizer starts with"), ()))

    def _alike(self, link: Link) -> Name | None:
        """The variable that an optimizer most likely treats like the invented one: masks go by names and by ranks."""
        ((collection, path), *_), spec = link.targets, link.operation.specs(())[0]
        candidates = [name for name in self._sources if collection in ("", name[0])]

        def unlike(name: Name) -> tuple[bool, bool]:
            return name[1][-1:] != path[-1:], len(self._sources[name].shape) != len(spec.shape)

        return min(candidates, key=unlike, default=None)


_ADVICE = (
    "Leave the optimizer state behind (--params-only, or --drop 'opt_state/**'), or keep these parameters as they are."
)


def _forgotten(operation: DropOperation, part: Part) -> DropOperation:
    """What leaving a variable behind means for a mirror of it.

    Whatever number the variable was filled with: an optimizer that has not changed it yet holds zeros.
    """
    untouched = part is Part.OPT_STATE and operation.expected is not None
    return replace(operation, expected=0.0) if untouched else operation


def _is_tie(operation: Operation) -> bool:
    if isinstance(operation, Chain):
        return any(map(_is_tie, operation.operations))
    return isinstance(operation, Agree | Copies)


def _targets(link: Link) -> str:
    return " + ".join(fold((format_name(name),) for name in link.targets))
