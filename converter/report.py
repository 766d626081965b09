"""What a conversion or verification found: the wording, the JSON and the verdict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.folding import fold
from converter.formats.checkpoint import Written
from converter.planning.plan import Plan, filling
from converter.planning.wording import count, demand, size_text
from converter.rules.operations import CastCounter
from converter.tree import LeafKind
from converter.verification.structure import Difference, StructureResult
from converter.verification.values import Proof, ValuesResult

if TYPE_CHECKING:
    from converter.verification.outputs import OutputsResult

SHOWN_DIFFERENCES = 20

_WORTH_SAYING = 1 << 20
"""Bytes from which on people may care where they are."""


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
      written: what writing the destination came to; None where nothing was written.
    """

    source: str
    destination: str
    plan: Plan | None = None
    structure: StructureResult | None = None
    values: ValuesResult | None = None
    outputs: OutputsResult | None = None
    written: Written | None = None

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
        lines += self._shared()
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

    def _shared(self) -> list[str]:
        """What the destination has in common with the source on disk, where it is worth knowing."""
        if self.written is None or self.written.linked < _WORTH_SAYING:
            return []
        line = f"  bytes      {size_text(self.written.linked)} shared with the source on disk (--copy makes a copy)"
        unused = self.written.unused
        return [line + (f"; {size_text(unused)} beside them stay on disk too" if unused >= _WORTH_SAYING else "")]

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
            lines += _verdict("values", self.values.ok, _compared(self.values), self.values.differences)
        if self.outputs is not None:
            lines += self._outputs(self.outputs)
        if not self.verified:
            lines.append("  not verified")
        return lines

    def _outputs(self, outputs: OutputsResult) -> list[str]:
        verdict = "equal" if outputs.ok else "DIFFERENT"
        lines = [f"  outputs    {verdict}: both models run on {outputs.conditions()}"]
        return lines + [f"             {line}" for line in outputs.lines()]

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain JSON values."""
        checks = {"structure": self.structure, "values": self.values, "outputs": self.outputs}
        return {
            "ok": self.ok,
            "verified": self.verified,
            "source": self.source,
            "destination": self.destination,
            "written": None if self.written is None else self.written.to_json(),
            "plan": self.plan.to_json() if self.plan is not None else None,
            **{name: check.to_json() if check is not None else None for name, check in checks.items()},
        }

    def to_html(self) -> str:
        """The same as one page that needs nothing but itself; ``html_report.page.embedded`` gets the JSON out again."""
        from converter.html_report.page import to_html

        return to_html(self.to_json())


def _compared(values: ValuesResult) -> str:
    """How many leaves were compared, and how."""
    leaves, size = count(values.leaves, "leaf", "leaves"), size_text(values.nbytes)
    by = f" by {values.reader}" if values.reader else ""
    same, same_bytes = values.proofs.get(Proof.REFERENCE, (0, 0))
    if not same:
        return f"{leaves} read again{by}, {size}, bit for bit"
    others = "" if same == values.leaves else ", the others were read again"
    return (
        f"{leaves}, {size}, bit for bit: {same:,} ({size_text(same_bytes)}) are the source's own bytes on disk{others}"
    )


def _verdict(name: str, ok: bool, done: str, differences: tuple[Difference, ...]) -> list[str]:
    lines = [f"  {name:<10} {'equal' if ok else 'DIFFERENT'}: {done}"]
    rows = fold((f"             {d.path}", f"expected {d.expected}", f"found {d.found}") for d in differences)
    lines += rows[:SHOWN_DIFFERENCES]
    if len(rows) > SHOWN_DIFFERENCES:
        lines.append(f"             … and {len(rows) - SHOWN_DIFFERENCES} more (--json lists all)")
    return lines
