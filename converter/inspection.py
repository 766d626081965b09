"""What a checkpoint is: the facts behind ``flax-convert inspect``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from converter.dialects import readings, unreadable
from converter.dialects.dialect import FRAMEWORK_NAMES, Dialect
from converter.dialects.nnx import NnxLayout
from converter.folding import fold
from converter.formats.checkpoint import Checkpoint
from converter.planning.wording import count, size_text
from converter.rules.variable_types import assign_collections
from converter.training_state import PARAMS, Part
from converter.tree import LeafKind, format_path


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checkpoint and the dialects it can be read in, the most plausible first."""

    checkpoint: Checkpoint
    dialects: tuple[Dialect, ...]

    @property
    def parameters(self) -> int:
        """Number of elements of all parameters, as far as names tell which leaves are parameters."""
        return sum(elements for name, (_, elements, _) in self.totals().items() if name == PARAMS)

    def totals(self) -> dict[str, tuple[int, int, int]]:
        """Leaves, elements and bytes by collection or part (``params``, ``batch_stats``, ``opt_state``, ``step`` …)."""
        if not self.dialects:
            return {}
        dialect = self.dialects[0]
        state = dialect.lift(self.checkpoint.tree).state
        if dialect.framework == "nnx":
            state = assign_collections(state, ())
        totals: dict[str, tuple[int, int, int]] = {}
        for slot, held in state.items():
            spec = held.leaf.spec
            if spec.kind is LeafKind.EMPTY:
                continue
            variables = slot.part is Part.VARIABLES
            name = (slot.collection or "undecided") if variables else slot.part.value
            leaves, elements, nbytes = totals.get(name, (0, 0, 0))
            totals[name] = (leaves + 1, elements + spec.size, nbytes + spec.nbytes)
        return totals

    def text(self) -> str:
        """For people: what it is, totals, and the folded tree."""
        checkpoint, tree = self.checkpoint, self.checkpoint.tree
        rows = [("path", str(checkpoint.location)), ("format", self._format())]
        if checkpoint.steps:
            rows.append(("step", f"{checkpoint.step} of {', '.join(map(str, checkpoint.steps))}"))
        if checkpoint.items and checkpoint.item is not None:
            rows.append(("item", f"{checkpoint.item} of {', '.join(checkpoint.items)}"))
        rows.append(("dialect", self._dialect()))
        full = [leaf.spec for leaf in tree.values() if leaf.spec.kind is not LeafKind.EMPTY]
        rows.append(("leaves", f"{len(full):,}, {size_text(tree.nbytes)}"))
        for name, (leaves, elements, nbytes) in self.totals().items():
            counts = f"{count(leaves, 'leaf', 'leaves')}, {count(elements, 'element', 'elements')}"
            rows.append((f"  {name}", f"{counts}, {size_text(nbytes)}"))
        dtypes = Counter(spec.dtype for spec in full)
        rows.append(("dtypes", ", ".join(f"{dtype} ({number})" for dtype, number in dtypes.most_common()) or "none"))
        rows += [(name, value) for name, value in checkpoint.facts.items() if name != "layout"]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
        return "\n".join([*lines, "", *fold((format_path(path), str(leaf.spec)) for path, leaf in tree.items())])

    def _dialect(self) -> str:
        if not self.dialects:
            return f"none: {unreadable(self.checkpoint.tree)}"
        first, *others = (dialect.title for dialect in self.dialects)
        # Whether leaves end in `value` tells the frameworks apart; a bare dict of kernels leaves it open.
        wrapped = any(isinstance(dialect, NnxLayout) and dialect.suffix for dialect in self.dialects)
        return first if wrapped or not others else f"{first}, or {' or '.join(others)}: names alone do not tell"

    def _format(self) -> str:
        layout = self.checkpoint.facts.get("layout")
        return f"{self.checkpoint.format} ({layout})" if layout else self.checkpoint.format

    def to_json(self) -> dict[str, Any]:
        """The same, unfolded, as plain JSON values."""
        checkpoint = self.checkpoint
        return {
            "path": str(checkpoint.path),
            "location": str(checkpoint.location),
            "format": checkpoint.format,
            "facts": dict(checkpoint.facts),
            "steps": list(checkpoint.steps),
            "step": checkpoint.step,
            "items": list(checkpoint.items),
            "item": checkpoint.item,
            "dialects": [{"framework": FRAMEWORK_NAMES[d.framework], "title": d.title} for d in self.dialects],
            "bytes": checkpoint.tree.nbytes,
            "parameters": self.parameters,
            "totals": {
                name: {"leaves": leaves, "elements": elements, "bytes": nbytes}
                for name, (leaves, elements, nbytes) in self.totals().items()
            },
            "leaves": [
                {"path": format_path(path), "leaf": str(leaf.spec), "bytes": leaf.spec.nbytes}
                for path, leaf in checkpoint.tree.items()
            ],
        }


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Recognises the dialect of an opened checkpoint."""
    return Inspection(checkpoint, readings(checkpoint.tree))
