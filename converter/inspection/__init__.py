"""What a checkpoint is: the facts behind ``flax-convert inspect``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

from converter.dialects import readings, unreadable
from converter.dialects.dialect import FRAMEWORK_NAMES, Dialect
from converter.dialects.nnx import WRAPPERS, NnxLayout
from converter.errors import SeveralItems, UsageError
from converter.folding import columns, fold
from converter.formats import open_checkpoint
from converter.formats.checkpoint import Checkpoint, Sharding
from converter.inspection.drawing import draw, grow, to_json
from converter.inspection.totals import Total, Totals, added, by_collection, by_dtype
from converter.paths import Path, PathGlob, format_path
from converter.training_state import PARAMS
from converter.tree import Tree

SHOWN_STEPS = 12


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checkpoint and the dialects it can be read in, the most plausible first.

    Attributes:
      checkpoint: where several items are shown together, one whose tree holds them all, each below its name.
      dialects: none for several items together.
      filters: only leaves that match one of these patterns are shown and counted; all without patterns.
      parts: the items that are shown together, by name.
    """

    checkpoint: Checkpoint
    dialects: tuple[Dialect, ...]
    filters: tuple[PathGlob, ...] = ()
    parts: Mapping[str, Inspection] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of elements of all parameters, as far as names tell which leaves are parameters."""
        return self.by_collection().get(PARAMS, Total()).elements

    @property
    def shown(self) -> Tree:
        """The leaves that match the filters."""
        tree = self.checkpoint.tree
        if not self.filters:
            return tree
        return Tree((path, leaf) for path, leaf in tree.items() if is_chosen(path, self.filters))

    def totals(self) -> dict[str, tuple[int, int, int]]:
        """Leaves, elements and bytes by collection or part (``params``, ``batch_stats``, ``opt_state``, ``step`` …)."""
        return {name: (each.leaves, each.elements, each.nbytes) for name, each in self.by_collection().items()}

    def by_collection(self) -> dict[str, Total]:
        """The same; for several items together, what they have of a collection is added up."""
        found: dict[str, Total] = {}
        for totals in self._totals().values():
            for name, total in totals.by_collection().items():
                found[name] = found.get(name, Total()) + total
        return found

    def _totals(self) -> dict[str, Totals]:
        """By item; under an empty name where there is one alone."""
        if self.parts:
            shown = self.shown
            below = {name: {p[1:]: leaf for p, leaf in shown.items() if p[0] == name} for name in self.parts}
            return {name: part._part_totals(below[name]) for name, part in self.parts.items()}
        return {"": self._part_totals(self.shown if self.filters else None)}

    def _part_totals(self, chosen: Mapping[Path, object] | None) -> Totals:
        return by_collection(self.checkpoint.tree, self.dialects[0], chosen) if self.dialects else Totals({})

    def text(self, tree: bool = False) -> str:
        """For people: what it is, totals, and all leaves.

        Args:
          tree: draw the nested tree, with totals of every node; else one row for each leaf, or for several that differ
            in a number alone.
        """
        shown = self.shown
        shardings = self.checkpoint.shardings()
        header = columns([*self._origin(), *self._content(shown), *self._facts(shardings)])
        noted = {path: str(sharding) for path, sharding in shardings.items()}
        if tree:
            drawn = draw(grow((path, (leaf.spec, noted.get(path, ""))) for path, leaf in shown.items()))
            return "\n".join([*header, "", *drawn])
        rows = (
            (format_path(path), str(leaf.spec), *([noted[path]] if path in noted else []))
            for path, leaf in shown.items()
        )
        return "\n".join([*header, "", *fold(rows, plain=(2,))])

    def _origin(self) -> Iterator[tuple[str, str]]:
        """Where it was found, and what there is beside it."""
        checkpoint = self.checkpoint
        layout = checkpoint.facts.get("layout")
        yield "path", str(checkpoint.location)
        yield "format", f"{checkpoint.format} ({layout})" if layout else checkpoint.format
        if checkpoint.steps:
            yield "steps", f"{_listed(checkpoint.steps)} (latest {checkpoint.steps[-1]})"
            yield "step", str(checkpoint.step)
        if checkpoint.kinds:
            yield "items", ", ".join(f"{name} ({kind})" for name, kind in checkpoint.kinds.items())
        if checkpoint.item is not None:
            yield "item", checkpoint.item

    def _content(self, shown: Tree) -> Iterator[tuple[str, str]]:
        """What it holds."""
        dtypes = by_dtype(Counter(leaf.spec for leaf in shown.values()))
        if not self.parts:
            yield "dialect", self._dialect()
        if self.filters:
            yield "filter", " or ".join(glob.text for glob in self.filters)
        whole = added(dtypes.values())
        yield "leaves", f"{whole.leaves:,}, {whole.size}"
        for name, totals in self._totals().items():
            if name:
                yield f"item {name}", self.parts[name]._dialect()
            yield from totals.rows()
        listed = [f"{dtype} ({total.leaves:,}: {total.size})" for dtype, total in dtypes.items()]
        yield "dtypes", ", ".join(listed) or "none"

    def _facts(self, shardings: Mapping[Path, Sharding]) -> Iterator[tuple[str, str]]:
        meshes = dict.fromkeys(sharding.mesh_text for sharding in shardings.values())
        if meshes:
            yield "mesh", " and ".join(meshes)
        yield from ((name, value) for name, value in self.checkpoint.facts.items() if name != "layout")
        written = _flax(self.dialects)
        if written:
            yield "flax", written

    def _dialect(self) -> str:
        if not self.dialects:
            return f"none: {unreadable(self.checkpoint.tree)}"
        first, *others = (dialect.title for dialect in self.dialects)
        # Whether leaves end in `value` tells the frameworks apart; a bare dict of kernels leaves it open.
        wrapped = any(isinstance(dialect, NnxLayout) and dialect.suffix for dialect in self.dialects)
        return first if wrapped or not others else f"{first}, or {' or '.join(others)}: names alone do not tell"

    def to_json(self, tree: bool = False) -> dict[str, Any]:
        """The same, unfolded, as plain JSON values."""
        checkpoint, shown = self.checkpoint, self.shown
        shardings = checkpoint.shardings()
        leaves = [
            {
                "path": format_path(path),
                "leaf": str(leaf.spec),
                "bytes": leaf.spec.nbytes,
                **_noted(shardings.get(path)),
            }
            for path, leaf in shown.items()
        ]
        drawn = {"tree": to_json(grow((path, (leaf.spec, "")) for path, leaf in shown.items()))} if tree else {}
        dtypes = by_dtype(Counter(leaf.spec for leaf in shown.values()))
        written = _flax(self.dialects)
        return {
            "path": str(checkpoint.path),
            "location": str(checkpoint.location),
            "format": checkpoint.format,
            "facts": {**checkpoint.facts, **({"flax": written} if written else {})},
            "steps": list(checkpoint.steps),
            "step": checkpoint.step,
            "items": list(checkpoint.items),
            "item": checkpoint.item,
            "kinds": dict(checkpoint.kinds),
            "dialects": [{"framework": FRAMEWORK_NAMES[d.framework], "title": d.title} for d in self.dialects],
            "filter": [glob.text for glob in self.filters],
            "bytes": shown.nbytes,
            "parameters": self.parameters,
            **self._totals_json(),
            "dtypes": {dtype: total.to_json() for dtype, total in dtypes.items()},
            "leaves": leaves,
            **drawn,
        }

    def _totals_json(self) -> dict[str, Any]:
        totals = self._totals()
        if not self.parts:
            return {"totals": totals[""].to_json()}
        titles = {name: [dialect.title for dialect in part.dialects] for name, part in self.parts.items()}
        return {
            "totals": {name: total.to_json() for name, total in self.by_collection().items()},
            "parts": {name: {"dialects": titles[name], "totals": totals[name].to_json()} for name in self.parts},
        }


def inspect_checkpoint(checkpoint: Checkpoint, filters: Sequence[PathGlob] = ()) -> Inspection:
    """Recognises the dialect of an opened checkpoint.

    Raises:
      UsageError: a pattern that matches no leaf.
    """
    return _filtered(Inspection(checkpoint, readings(checkpoint.tree)), filters)


def inspect_path(
    path: FilePath, *, step: int | None = None, item: str | None = None, filters: Sequence[PathGlob] = ()
) -> Inspection:
    """Opens a checkpoint; where it holds several items and none is chosen, all of them.

    Raises:
      as ``open_checkpoint``; also ``UsageError`` for a pattern that matches no leaf.
    """
    try:
        return inspect_checkpoint(open_checkpoint(path, step=step, item=item), filters)
    except SeveralItems as several:
        opened = {name: open_checkpoint(path, step=step, item=name) for name in several.items}
    parts = {name: inspect_checkpoint(checkpoint) for name, checkpoint in opened.items()}
    return _filtered(Inspection(_together(opened), (), parts=parts), filters)


def _together(opened: Mapping[str, Checkpoint]) -> Checkpoint:
    """One checkpoint with the leaves of all, each below the name of its item."""
    first = next(iter(opened.values()))

    def shardings() -> dict[Path, Sharding]:
        return {(name, *path): each for name, one in opened.items() for path, each in one.shardings().items()}

    facts = {n: v for n, v in first.facts.items() if all(one.facts.get(n) == v for one in opened.values())}
    return replace(
        first,
        location=first.location.parent,
        tree=Tree(((name, *path), leaf) for name, one in opened.items() for path, leaf in one.tree.items()),
        item=None,
        shardings=shardings,
        facts=facts,
    )


def _filtered(inspection: Inspection, filters: Sequence[PathGlob]) -> Inspection:
    refuse_unused(filters, inspection.checkpoint.tree)
    return replace(inspection, filters=tuple(filters))


def refuse_unused(filters: Sequence[PathGlob], *trees: Tree) -> None:
    """Refuses patterns that match nothing: they are most likely misspelt.

    Raises:
      UsageError
    """
    for glob in filters:
        if not any(is_chosen(path, (glob,)) for tree in trees for path in tree):
            raise UsageError(
                f"--filter '{glob.text}' matches no leaf",
                "Patterns are matched against whole paths as inspect prints them; ** stands for any number of keys.",
            )


def is_chosen(path: Path, filters: Sequence[PathGlob]) -> bool:
    """Whether a pattern matches the path, or the path without the wrapper around an NNX Variable."""
    plain = path[:-1] if path[-1:] and path[-1] in WRAPPERS else path
    return not filters or any(glob.matches(path) or glob.matches(plain) for glob in filters)


def _listed(steps: Sequence[int]) -> str:
    if len(steps) <= SHOWN_STEPS:
        return ", ".join(map(str, steps))
    some = [*map(str, steps[:4]), "…", *map(str, steps[-4:])]
    return f"{', '.join(some)}, {len(steps):,} together"


def _flax(dialects: Sequence[Dialect]) -> str:
    """Which versions of Flax call the wrapper of a Variable so."""
    old = any(isinstance(dialect, NnxLayout) and dialect.suffix == "raw_value" for dialect in dialects)
    return "0.8.3 to 0.8.5, whose Variables are saved as raw_value" if old else ""


def _noted(sharding: Sharding | None) -> dict[str, Any]:
    if sharding is None:
        return {}
    return {"sharding": {"mesh": dict(sharding.mesh), "partition": list(sharding.partition)}}
