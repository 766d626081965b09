"""What a conversion or verification found: the wording, the JSON and the verdict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from converter.folding import fold
from converter.planning.plan import Plan, filling
from converter.planning.wording import demand
from converter.rules.operations import CastCounter
from converter.tree import LeafKind
from converter.verification.outputs import OutputsResult
from converter.verification.structure import Difference, StructureResult
from converter.verification.values import ValuesResult

SHOWN_DIFFERENCES = 20


@dataclass(frozen=True, slots=True)
class Report:
    """The result of ``convert``, ``verify`` and ``verify_outputs``.

    Attributes:
      source: what was converted or checked.
      destination: what it was converted to or checked against.
      plan: the plan behind it; None where only outputs were compared.
      structure: paths, shapes and dtypes of the destination against the plan; None if not checked.
      values: bits of the destination against the source; None if not checked.
      outputs: outputs of both models; None where no two models were given.
    """

    source: str
    destination: str
    plan: Plan | None = None
    structure: StructureResult | None = None
    values: ValuesResult | None = None
    outputs: OutputsResult | None = None

    @property
    def ok(self) -> bool:
        """Whether every check that was made passed."""
        return all(check.ok for check in (self.structure, self.values, self.outputs) if check is not None)

    @property
    def verified(self) -> bool:
        """Whether any check was made at all."""
        return any(check is not None for check in (self.structure, self.values, self.outputs))

    def text(self, verbose: bool = False) -> str:
        """The report for people; ``verbose`` puts the whole plan in front."""
        lines = [f"{self.source} → {self.destination}"]
        if self.plan is not None:
            lines += [self.plan.text(), ""] if verbose else self._summary(self.plan)
        lines += self._checks()
        return "\n".join(lines)

    def _summary(self, plan: Plan) -> list[str]:
        arrays = [step for step in plan.steps if step.spec.kind is not LeafKind.EMPTY]
        nbytes = sum(step.spec.nbytes for step in arrays)
        lines = [f"  {plan.headline}: {count(len(arrays), 'leaf', 'leaves')}, {size_text(nbytes)}"]
        dropped = fold((f"  dropped    {'/'.join(d.source)}", str(d.spec), d.reason) for d in plan.drops)
        filled = fold((f"  filled in  {'/'.join(s.target)}", str(s.spec), filling(s)) for s in plan.filled)
        checked = fold(((f"  checked    {t.names}", demand(t.operation)) for t in plan.conditions), plain=(1,))
        notes = fold((f"  note       {note}",) for note in plan.notes)
        return lines + self._operations(plan) + dropped + filled + checked + notes

    def _operations(self, plan: Plan) -> list[str]:
        """What was done to arrays beyond giving them other names, and how many leaves were made by it."""
        done = Counter(s.operation.name for s in plan.steps if s.sources and not isinstance(s.operation, CastCounter))
        rows = ((f"  operation  {name}", count(number, "leaf", "leaves")) for name, number in done.items() if name)
        return fold(rows, plain=(0, 1))

    def _checks(self) -> list[str]:
        lines: list[str] = []
        if self.structure is not None:
            leaves = count(self.structure.leaves, "path, shape and dtype", "paths, shapes and dtypes")
            lines += _verdict("structure", self.structure.ok, leaves, self.structure.differences)
            lines += fold((f"  note       {note}",) for note in self.structure.notes)
            if not self.structure.ok:
                lines.append("             (verify takes the options of the conversion: models, --rules, --drop …)")
        if self.values is not None:
            leaves = f"{count(self.values.leaves, 'leaf', 'leaves')} read again, {size_text(self.values.nbytes)}"
            lines += _verdict("values", self.values.ok, f"{leaves}, bit for bit", self.values.differences)
        if self.outputs is not None:
            lines += self._outputs(self.outputs)
        if not self.verified:
            lines.append("  not verified")
        return lines

    def _outputs(self, outputs: OutputsResult) -> list[str]:
        inputs = ", ".join(outputs.inputs)
        lines = [f"  outputs    {'equal' if outputs.ok else 'DIFFERENT'}: both models run on {inputs}"]
        lines += [f"             {output}" for output in outputs.outputs]
        return lines + ([f"             {outputs.problem}"] if outputs.problem else [])

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain JSON values."""
        checks = {"structure": self.structure, "values": self.values, "outputs": self.outputs}
        return {
            "ok": self.ok,
            "verified": self.verified,
            "source": self.source,
            "destination": self.destination,
            "plan": self.plan.to_json() if self.plan is not None else None,
            **{name: check.to_json() if check is not None else None for name, check in checks.items()},
        }


def _verdict(name: str, ok: bool, done: str, differences: tuple[Difference, ...]) -> list[str]:
    lines = [f"  {name:<10} {'equal' if ok else 'DIFFERENT'}: {done}"]
    rows = fold((f"             {d.path}", f"expected {d.expected}", f"found {d.found}") for d in differences)
    lines += rows[:SHOWN_DIFFERENCES]
    if len(rows) > SHOWN_DIFFERENCES:
        lines.append(f"             … and {len(rows) - SHOWN_DIFFERENCES} more (--json lists all)")
    return lines


def count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def size_text(nbytes: int) -> str:
    """Bytes for people, in powers of 1024: ``1.5 MiB``."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
