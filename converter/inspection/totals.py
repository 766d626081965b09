"""How much a checkpoint holds: leaves, elements and bytes by collection and dtype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from converter.dialects.dialect import Dialect
from converter.paths import Path
from converter.planning.wording import count, size_text
from converter.rules.variable_types import assign_collections
from converter.training_state import Part
from converter.tree import LeafKind, LeafSpec, Tree

Collection = str
"""A collection of variables, or another part of the training state: ``params``, ``opt_state``, ``step`` …"""


@dataclass(frozen=True, slots=True)
class Total:
    """Leaves, their elements, and the bytes of their arrays in memory."""

    leaves: int = 0
    elements: int = 0
    nbytes: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(self.leaves + other.leaves, self.elements + other.elements, self.nbytes + other.nbytes)

    def __str__(self) -> str:
        return f"{count(self.leaves, 'leaf', 'leaves')}, {count(self.elements, 'element', 'elements')}, {self.size}"

    @property
    def size(self) -> str:
        return size_text(self.nbytes)

    def to_json(self) -> dict[str, int]:
        return {"leaves": self.leaves, "elements": self.elements, "bytes": self.nbytes}


def added(totals: Iterable[Total]) -> Total:
    return sum(totals, Total())


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals by collection and dtype, in the order in which they appear."""

    parts: Mapping[Collection, Mapping[str, Total]]

    def by_collection(self) -> dict[Collection, Total]:
        return {name: added(dtypes.values()) for name, dtypes in self.parts.items()}

    def rows(self) -> Iterator[tuple[str, str]]:
        """Names and totals for people; dtypes have rows of their own where a collection holds several."""
        for name, dtypes in self.parts.items():
            whole = str(added(dtypes.values()))
            yield f"  {name}", f"{whole}, {next(iter(dtypes))}" if len(dtypes) == 1 else whole
            if len(dtypes) > 1:
                yield from ((f"    {dtype}", str(total)) for dtype, total in dtypes.items())

    def to_json(self) -> dict[str, Any]:
        return {
            name: {
                **added(dtypes.values()).to_json(),
                "dtypes": {dtype: total.to_json() for dtype, total in dtypes.items()},
            }
            for name, dtypes in self.parts.items()
        }


def total_of(spec: LeafSpec, number: int = 1) -> Total:
    """What several leaves of one kind come to."""
    return Total() if spec.kind is LeafKind.EMPTY else Total(number, number * spec.size, number * spec.nbytes)


def by_collection(tree: Tree, dialect: Dialect, chosen: Mapping[Path, object] | None = None) -> Totals:
    """The totals of a tree by the collections that the dialect finds, of the leaves at the ``chosen`` paths alone."""
    state = dialect.lift(tree).state
    if dialect.framework == "nnx":
        state = assign_collections(state, ())
    # A slot knows its leaf, but not the wrappers around it.
    wanted = None if chosen is None else {id(tree[path]) for path in chosen}
    numbers: dict[Collection, Counter[LeafSpec]] = {}
    for slot, held in state.items():
        if wanted is None or id(held.leaf) in wanted:
            name = (slot.collection or "undecided") if slot.part is Part.VARIABLES else slot.part.value
            if name not in numbers:
                numbers[name] = Counter()
            numbers[name][held.leaf.spec] += 1
    parts = {name: by_dtype(counted) for name, counted in numbers.items()}
    return Totals({name: dtypes for name, dtypes in parts.items() if dtypes})


def by_dtype(counted: Mapping[LeafSpec, int]) -> dict[str, Total]:
    """The totals of each dtype, the most frequent one first."""
    found: dict[str, Total] = {}
    for spec, number in counted.items():
        if spec.kind is not LeafKind.EMPTY:
            found[spec.dtype] = found.get(spec.dtype, Total()) + total_of(spec, number)
    return dict(sorted(found.items(), key=lambda item: -item[1].leaves))
