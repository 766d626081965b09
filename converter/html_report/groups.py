"""The correspondence of a plan in few rows: 32 equal layers are one, with its 32 members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from converter.folding import folded
from converter.paths import parse_path
from converter.planning.wording import several_parts
from converter.tree import EMPTY_TEXT

Kind = Literal["moved", "filled", "dropped", "empty", "open"]

_APART = "\n"
"""Stands between several paths in one text; paths print it in quotes, escaped."""

_OPERATION = 3
"""The column whose numbers count no items."""


UNSURE = frozenset({"numeric", "guessed"})
"""What the computation alone does not tell."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What becomes what: paths of the source, paths of the target."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Leaves to which the same happens, at paths that differ in numbers only.

    Attributes:
      number: its place among all groups, from 0.
      kind: whether sources become targets, targets are made from nothing, sources are left behind or hold nothing, or
        it is not known what a source or a target is.
      paths: all sources and targets, folded; those without a counterpart have none on the other side.
      members: the pairs behind them, one for each transfer.
      leaf: dtype and shape of what is made (of what is dropped, for those).
      operation: what is done, or why a leaf is filled in or dropped.
      strategy: how bytes get to the destination; empty where it is not planned.
      confidence: how sure the correspondence is; empty where it is not told.
      remark: what else is to be said of it; may be empty.
      leaves: how many leaves are made, or left behind.
      sources: how many leaves of the source they are made of.
      nbytes: how many bytes are made.
    """

    number: int
    kind: Kind
    paths: Pair
    members: tuple[Pair, ...]
    leaf: str
    operation: str
    strategy: str = ""
    confidence: str = ""
    remark: str = ""
    leaves: int = 0
    sources: int = 0
    nbytes: int = 0


def groups_of(plan: Mapping[str, Any]) -> list[Group]:
    """All groups of a plan's JSON value: first the steps, in their order, then what is dropped, holds nothing or is
    not known.
    """
    found = [*_steps(plan.get("steps", ())), *_left(plan.get("dropped", ()), "dropped")]
    found += _left(plan.get("empty", ()), "empty")
    found += _left(plan.get("open", ()), "open")
    return [replace(group, number=number) for number, group in enumerate(found)]


def _steps(steps: Iterable[Mapping[str, Any]]) -> list[Group]:
    transfers = _transfers(steps)
    rows = []
    for made in transfers:
        first = made[0]
        leaves = ", ".join(dict.fromkeys(step["leaf"] for step in made))
        texts = (_text([step["target"] for step in made]), _text(first["sources"]), leaves, first["operation"])
        rows.append((*texts, *(_word(first.get(key)) for key in ("strategy", "confidence", "remark"))))
    found = []
    for (targets, sources, leaf, operation, strategy, confidence, remark), members in folded(rows, plain=(_OPERATION,)):
        together = [step for member in members for step in transfers[member]]
        kind: Kind = "moved" if sources else "empty" if leaf in EMPTY_TEXT.values() else "filled"
        pairs = tuple(Pair(_parts(rows[member][1]), _parts(rows[member][0])) for member in members)
        read = sum(len(transfers[member][0]["sources"]) for member in members)
        nbytes = sum(step.get("bytes", 0) for step in together)
        both = Pair(_parts(sources), _parts(targets))
        words = leaf, operation, strategy, confidence, remark
        found.append(Group(0, kind, both, pairs, *words, len(together), read, nbytes))
    return found


def _transfers(steps: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Steps with the same sources and operation together: they are made at once."""
    made: dict[object, list[Mapping[str, Any]]] = {}
    for number, step in enumerate(steps):
        way = step["operation"], step.get("strategy"), _word(step.get("confidence"))
        made.setdefault((*step["sources"], None, *way) if step["sources"] else number, []).append(step)
    return list(made.values())


def _left(entries: Sequence[Mapping[str, Any]], kind: Kind) -> Iterable[Group]:
    """Entries of one side that have no counterpart."""
    for side in ("source", "target"):
        own = (entry for entry in entries if side in entry)
        rows = [(entry[side], entry.get("leaf", ""), entry.get("reason", "")) for entry in own]
        for (path, leaf, reason), members in folded(rows):
            pairs = tuple(_alone(side, rows[member][0]) for member in members)
            yield Group(0, kind, _alone(side, path), pairs, leaf, reason, leaves=len(members), sources=len(members))


def _alone(side: str, path: str) -> Pair:
    return Pair((path,), ()) if side == "source" else Pair((), (path,))


def _text(paths: Sequence[str]) -> str:
    if len(paths) < 2:
        return "".join(paths)
    return _APART.join(several_parts([parse_path(path) for path in paths]))


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split(_APART)) if text else ()


def _word(value: object) -> str:
    return "" if value is None else str(value)
