"""The plan of a conversion: what every target leaf is made of, and everything that is lost or invented.

A plan is complete before any array is read. Printing it is what ``--dry-run`` does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter import scratch
from converter.dialects.dialect import FRAMEWORK_NAMES, Dialect, Ignored
from converter.errors import ConversionRefused
from converter.folding import END, KeyRow, Row, columns, fold_keys
from converter.formats.checkpoint import Strategy
from converter.grid import Grid
from converter.paths import Path, format_path
from converter.planning.wording import count, demand, section, several, several_keys, size_text
from converter.rules.operations import REWRAP, Fill, Operation
from converter.training_state import Held
from converter.tree import LeafKind, LeafSpec, Tree


class Transfer:
    """An operation with the source leaves that go in, in its order; none where values are filled in.

    ``confidence`` says how sure the correspondence is where it was read off the computation (``exact``, ``traced`` …).
    Its results are made together and handed out one by one: whoever takes them in order reads every source once.
    """

    __slots__ = ("_grids", "_lock", "_made", "_specs", "confidence", "operation", "sources")

    def __init__(self, operation: Operation, sources: Sequence[Held]) -> None:
        self.operation = operation
        self.sources = tuple(sources)
        self.confidence = ""
        self._specs: tuple[LeafSpec, ...] | None = None
        self._made: dict[int, Any] = {}
        # Several threads may take results. What only gets another name is its own result.
        self._lock = None if operation is REWRAP else threading.Lock()
        self._grids: Sequence[Grid | None] | None = None

    @property
    def specs(self) -> tuple[LeafSpec, ...]:
        """What comes out.

        Raises:
          Unfit: the operation cannot work on these sources.
        """
        if self._specs is None:
            self._specs = self.operation.specs(self._source_specs)
        return self._specs

    @property
    def _source_specs(self) -> list[LeafSpec]:
        return [held.leaf.spec for held in self.sources]

    def grid(self, output: int) -> Grid | None:
        """How a result lies on disk while its bytes are still those of the sources; None where they have to be made."""
        if self._grids is None:
            self._grids = self._regridded()
        return self._grids[output]

    def _regridded(self) -> Sequence[Grid | None]:
        grids = [held.leaf.grid() for held in self.sources]
        if self.operation is REWRAP:
            return grids
        known = [grid for grid in grids if grid is not None]
        complete = bool(known) and len(known) == len(grids)
        # A PRNG key and its words are told apart by the spec; no operation but renaming makes one of the other.
        made = self.operation.regrid(known, self._source_specs) if complete else None
        return made if made is not None else [None] * len(self.specs)

    def take(self, output: int) -> Any:
        """One of the results."""
        if self._lock is None:
            with self._in_bounds():
                return self.sources[output].leaf.fetch()
        with self._lock:
            if output not in self._made:
                self._made = dict(enumerate(self._results()))
            return self._made.pop(output)

    def _results(self) -> list[Any]:
        with self._in_bounds():
            return self.operation.apply([held.leaf.fetch() for held in self.sources], self._source_specs)

    def _in_bounds(self) -> contextlib.AbstractContextManager[None]:
        """Sources and results are all there at the same time."""
        specs = [*self._source_specs, *self.specs]
        return scratch.shared(sum(spec.nbytes for spec in specs), max(len(specs), 1))

    def objection(self) -> str:
        """What in the values of the sources forbids the operation; empty if nothing."""
        if not self.operation.looks_at_values:
            return ""
        with self._in_bounds():
            return self.operation.objection([held.leaf.fetch() for held in self.sources], self._source_specs)

    @property
    def names(self) -> str:
        """Its sources."""
        return several([held.source for held in self.sources])


class Step:
    """One target leaf and what makes it; nothing is read before it is fetched.

    Attributes:
      target: its path in the destination, wrappers included.
      transfer: what is done to which sources; for most steps nothing but giving one another name.
      output: which of the results of the transfer it is.
      spec: what it is.
    """

    __slots__ = ("output", "spec", "target", "transfer")

    def __init__(self, target: Path, transfer: Transfer, output: int = 0) -> None:
        self.target = target
        self.transfer = transfer
        self.output = output
        self.spec = transfer.specs[output]

    @property
    def operation(self) -> Operation:
        return self.transfer.operation

    @property
    def sources(self) -> tuple[Held, ...]:
        return self.transfer.sources

    def fetch(self) -> Any:
        """Reads the sources and applies the operation."""
        return self.transfer.take(self.output)

    def grid(self) -> Grid | None:
        """How it lies on disk already, if it does."""
        return self.transfer.grid(self.output)


LOSSY_ADVICE = "--allow-lossy (allow_lossy=True) accepts that loss."


@dataclass(frozen=True, slots=True)
class Drop:
    """A source leaf that does not reach the destination, and the rule that says so."""

    source: Path
    spec: LeafSpec
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """An immutable list of steps with its losses, inventions, remarks and problems.

    Attributes:
      source: the dialect the source was read in.
      target: the dialect the destination is written in.
      steps: one for every target leaf, in the order of the source.
      drops: every leaf that is left behind.
      ignored: source entries that hold nothing (empty containers, bookkeeping).
      notes: what the user should know although nothing is lost.
      problems: why the conversion is refused; empty for a plan that can run.
      advice: what settles the problems.
      conditions: transfers that lose nothing only if the values allow it.
      path: the checkpoint that is converted, for errors; empty for objects in memory.
      moving: tells ``strategies``, for whoever wants to know: nobody has to, to carry the plan out.
    """

    source: Dialect
    target: Dialect
    steps: tuple[Step, ...]
    drops: tuple[Drop, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    advice: str = ""
    conditions: tuple[Transfer, ...] = ()
    path: str = ""
    moving: Callable[[], Mapping[Path, Strategy]] = dict

    @property
    def strategies(self) -> Mapping[Path, Strategy]:
        """How the bytes of each target array get to the destination; empty for objects in memory."""
        return self.moving()

    def check(self) -> None:
        """Raises ``ConversionRefused`` with all problems at once, if there are any."""
        if self.problems:
            raise self._refusal(self.problems, self.advice)

    def check_values(self) -> None:
        """Raises ``ConversionRefused`` with everything that would be lost, now that values may be read."""
        objections = []
        for transfer in self.conditions:
            objection = transfer.objection()
            if objection:
                specs = ", ".join(dict.fromkeys(str(held.leaf.spec) for held in transfer.sources))
                objections.append(f"{transfer.names}: {specs}: {objection}")
        if objections:
            raise self._refusal(objections, LOSSY_ADVICE)

    def _refusal(self, problems: Sequence[str], advice: str) -> ConversionRefused:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        subject = f"{self.path}: {self.headline}" if self.path else self.headline
        return ConversionRefused(f"{subject}: refused, {count}:", problems, advice, {"plan": self.to_json()})

    def tree(self) -> Tree:
        """The target tree; each of its leaves is computed when it is fetched."""
        return Tree((step.target, step) for step in self.steps)

    @property
    def headline(self) -> str:
        return f"{self.source.title} → {self.target.title}"

    @property
    def filled(self) -> tuple[Step, ...]:
        """The steps whose value stands in no source leaf."""
        return tuple(step for step in self.steps if not step.sources and step.spec.kind is not LeafKind.EMPTY)

    def text(self, *, problems: bool = True) -> str:
        """The plan for people: folded steps first, then drops, fills, notes and, if asked for, problems."""
        lines = [self.headline, ""]
        lines += columns(_folded(self.steps))
        lines += self._moves()
        lines += section("dropped", [(format_path(d.source), str(d.spec), d.reason) for d in self.drops])
        lines += section("filled in", [(format_path(s.target), str(s.spec), filling(s)) for s in self.filled])
        conditions = [(t.names, demand(t.operation)) for t in self.conditions]
        lines += section("condition, checked before anything is written", conditions, plain=(1,))
        lines += section("holds nothing", [(format_path(i.source), i.reason) for i in self.ignored])
        lines += section("note", [(note,) for note in self.notes])
        if problems:
            lines += section("problem", [(problem,) for problem in self.problems])
            lines += [self.advice] if self.problems and self.advice else []
        return "\n".join(lines)

    def moved(self) -> dict[Strategy, tuple[int, int]]:
        """Leaves and bytes of arrays by the way in which they get to the destination."""
        found: dict[Strategy, tuple[int, int]] = {}
        strategies = self.strategies
        for step in self.steps:
            strategy = strategies.get(step.target)
            if strategy is not None:
                leaves, nbytes = found.get(strategy, (0, 0))
                found[strategy] = leaves + 1, nbytes + step.spec.nbytes
        return {strategy: found[strategy] for strategy in Strategy if strategy in found}

    def _moves(self) -> list[str]:
        rows = [
            (strategy.value, count(leaves, "leaf", "leaves"), size_text(nbytes), MEANINGS[strategy])
            for strategy, (leaves, nbytes) in self.moved().items()
        ]
        return section("bytes", rows, plain=(1, 2))

    def to_json(self) -> dict[str, Any]:
        """The same as ``text``, unfolded, as plain JSON values."""
        strategies = self.strategies
        return {
            "from": {"framework": FRAMEWORK_NAMES[self.source.framework], "dialect": self.source.title},
            "to": {"framework": FRAMEWORK_NAMES[self.target.framework], "dialect": self.target.title},
            "steps": [
                {
                    "target": format_path(step.target),
                    "leaf": str(step.spec),
                    "sources": [format_path(held.source) for held in step.sources],
                    "operation": step.operation.name or "rewrap",
                    "bytes": step.spec.nbytes,
                    **({"confidence": step.transfer.confidence} if step.transfer.confidence else {}),
                    **_move(step, strategies.get(step.target)),
                }
                for step in self.steps
            ],
            "dropped": [{"source": format_path(d.source), "leaf": str(d.spec), "reason": d.reason} for d in self.drops],
            "conditions": [
                {"sources": [format_path(held.source) for held in t.sources], "demand": demand(t.operation)}
                for t in self.conditions
            ],
            "empty": [{"source": format_path(i.source), "reason": i.reason} for i in self.ignored],
            "bytes": {
                strategy.value: {"leaves": leaves, "bytes": nbytes}
                for strategy, (leaves, nbytes) in self.moved().items()
            },
            "notes": list(self.notes),
            "problems": list(self.problems),
        }


def _move(step: Step, strategy: Strategy | None) -> dict[str, Any]:
    if strategy is None:
        return {}
    return {"strategy": strategy.value, "bytes_moved": 0 if strategy is Strategy.RELINK else step.spec.nbytes}


MEANINGS = {
    Strategy.RELINK: "stay where they are on disk, under new names",
    Strategy.COPY: "are copied by the system as they are",
    Strategy.STREAM: "are read, made anew and written",
}


def filling(step: Step) -> str:
    """What a leaf that has no source is filled with, and why."""
    operation = step.operation
    if isinstance(operation, Fill) and operation.number is not None and "filled with" not in operation.name:
        return f"filled with {operation.number:g}: {operation.name}"
    return operation.name


def _folded(steps: Sequence[Step]) -> list[Row]:
    """One row for each transfer that has sources: what it makes, what of, what that is, and what is done."""
    found = fold_keys(map(_row, _together(steps)))
    return [(target, f"← {source}".rstrip(), *aside) for (target, source), aside, _ in found]


def _together(steps: Iterable[Step]) -> Collection[list[Step]]:
    """The steps of each transfer."""
    made: dict[Transfer, list[Step]] = {}
    for step in steps:
        if step.transfer.sources or step.spec.kind is LeafKind.EMPTY:
            made.setdefault(step.transfer, []).append(step)
    return made.values()


def _row(together: list[Step]) -> KeyRow:
    first, *others = together
    transfer = first.transfer
    leaf = str(first.spec)
    if others:
        specs = dict.fromkeys([str(step.spec) for step in together])
        times = f"{len(together)} × " if len(together) > len(specs) else ""
        leaf = times + ", ".join(specs)
    keys = *several_keys([step.target for step in together]), END, *several_keys([h.source for h in transfer.sources])
    return keys, (leaf, transfer.operation.name)
