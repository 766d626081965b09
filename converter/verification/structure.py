"""Has the destination every leaf that the plan promises, of the promised dtype and shape, and no other?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from converter.dialects.rng import random_state_paths
from converter.paths import format_path
from converter.planning.plan import Step
from converter.tree import LeafKind, LeafSpec, Tree


@dataclass(frozen=True, slots=True)
class Difference:
    """One leaf that is not as it should be: where, what was expected, what was found."""

    path: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"

    def to_json(self) -> dict[str, str]:
        return {"path": self.path, "expected": self.expected, "found": self.found}


@dataclass(frozen=True, slots=True)
class StructureResult:
    """The outcome of comparing all paths, shapes and dtypes."""

    leaves: int
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "leaves": self.leaves,
            "differences": [difference.to_json() for difference in self.differences],
            "notes": list(self.notes),
        }


def compare_structure(steps: Iterable[Step], destination: Tree) -> StructureResult:
    """Compares the target specs of a plan with a tree that was read anew."""
    expected = {step.target: step.spec for step in steps}
    leaves = dict(destination.items())
    differences: list[Difference] = []
    for path, spec in expected.items():
        found = leaves.get(path)
        # A format may leave out a container that holds nothing (msgpack has no place for a masked parameter's moments).
        if found is None and spec.kind is not LeafKind.EMPTY:
            differences.append(Difference(format_path(path), str(spec), "nothing"))
        elif found is not None and not same_spec(spec, found.spec):
            differences.append(Difference(format_path(path), str(spec), str(found.spec)))
    others = [path for path, leaf in leaves.items() if path not in expected and leaf.spec.kind is not LeafKind.EMPTY]
    random_state = random_state_paths(destination) if others else {}
    notes = []
    for path in others:
        if path in random_state:
            notes.append(f"{format_path(path)} is NNX random state, which the other side does not have")
        else:
            differences.append(Difference(format_path(path), "nothing", str(leaves[path].spec)))
    return StructureResult(len(expected), tuple(differences), tuple(notes))


def same_spec(expected: LeafSpec, found: LeafSpec) -> bool:
    """Whether two leaves are equal apart from how their formats box scalars and empty containers."""
    if expected.kind is found.kind:
        return expected.kind is LeafKind.EMPTY or (expected.dtype == found.dtype and expected.shape == found.shape)
    are_arrays = {expected.kind, found.kind} == {LeafKind.ARRAY, LeafKind.NUMPY_SCALAR}
    return are_arrays and (expected.dtype, expected.shape) == (found.dtype, found.shape)
