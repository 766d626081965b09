"""Folding repeated rows for people: 32 equal layers print as one, ``layers_{0…31}/kernel``."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

Row = tuple[str, ...]


class Folded(NamedTuple):
    """A row that stands for others, and their positions among the rows that were given."""

    row: Row
    members: tuple[int, ...]


_NUMBER = re.compile(r"(?<![0-9A-Za-z\[,.{…])(0|[1-9][0-9]*)(?![0-9A-Za-z.\]…}]|,\d)")
"""Numbers that stand for an item (``layers_3``, ``layers/3``), not those of a dtype, a shape, a version or a row
that is folded already. ``007`` is a name."""

_Cell = tuple[str, ...]
"""The text of a cell cut at its numbers: text, number, text, number, text."""


@dataclass(slots=True)
class _Cut:
    """A row with its cells cut, and the rows that it stands for."""

    cells: tuple[_Cell, ...]
    members: tuple[int, ...]


def fold(rows: Iterable[Row], plain: Collection[int] = ()) -> list[str]:
    """Prints rows as aligned columns; rows that differ only in one number become one row, as in ``folded``."""
    return columns([each.row for each in folded(rows, plain)])


def folded(rows: Iterable[Row], plain: Collection[int] = ()) -> list[Folded]:
    """Makes one row of rows that differ only in one number.

    The number may stand in several columns (a source and a target path). Rows keep the order of their first
    appearance. A folded number prints as ``{0…31}``, or with its members where they leave gaps.

    Args:
      plain: columns whose numbers count no items, such as the axis of an operation.
    """
    cut = _NUMBER.split
    found = [
        _Cut(tuple([(cell,) if column in plain else tuple(cut(cell)) for column, cell in enumerate(row)]), (number,))
        for number, row in enumerate(rows)
    ]
    depth = max((len(row.cells[0]) // 2 for row in found if row.cells), default=0)
    position = 0
    while position < depth:
        groups: dict[Hashable, list[_Cut]] = {}
        for row in found:
            groups.setdefault(_rest(row.cells, position), []).append(row)
        merged = [row for members in groups.values() for row in _merged(members, position)]
        if len(merged) == len(found):
            position += 1
        else:  # a merged row has one number less: what stood before it is now at this position
            found = merged
    return [Folded(tuple(map("".join, row.cells)), row.members) for row in found]


def fold_names(named: Iterable[tuple[str, Hashable]]) -> list[tuple[str, tuple[int, ...]]]:
    """Names that differ only in one number, and stand for equal things, become one name.

    Args:
      named: names, all of them different, with what they stand for.

    Returns: names in the order of their first appearance, each with the positions of those that it stands for.
    """
    kinds: dict[Hashable, int] = {}
    rows = [(name, str(kinds.setdefault(thing, len(kinds)))) for name, thing in named]
    return [(row[0], members) for row, members in folded(rows, plain=(1,))]


def _number(row: tuple[_Cell, ...], position: int) -> str | None:
    """The number of the first column at that position, counted from the end."""
    return row[0][-2 - 2 * position] if row and len(row[0]) > 1 + 2 * position else None


def _rest(row: tuple[_Cell, ...], position: int) -> Hashable:
    """What there is beside that number of the first column, wherever it stands at the same place in the others."""
    number = _number(row, position)
    if number is None:
        return row
    at = -2 - 2 * position
    return tuple([(cell[:at], cell[at + 1 :]) if len(cell) >= -at and cell[at] == number else cell for cell in row])


def _merged(members: list[_Cut], position: int) -> list[_Cut]:
    """The one row that stands for all members; the members themselves where they do not differ in a number."""
    if len(members) == 1:
        return members
    numbers = sorted({int(number) for row in members if (number := _number(row.cells, position)) is not None})
    if len(numbers) < len(members):
        return members
    run = numbers == list(range(numbers[0], numbers[-1] + 1))
    shown = f"{numbers[0]}…{numbers[-1]}" if run else ",".join(map(str, numbers))
    first = members[0].cells
    number, at = _number(first, position), -2 - 2 * position

    def told(cell: _Cell) -> _Cell:
        if len(cell) < -at or cell[at] != number:
            return cell
        start = len(cell) + at
        return (*cell[: start - 1], f"{cell[start - 1]}{{{shown}}}{cell[start + 1]}", *cell[start + 2 :])

    return [_Cut(tuple(map(told, first)), tuple(sorted(each for row in members for each in row.members)))]


def columns(rows: Iterable[Row]) -> list[str]:
    """Prints rows as aligned columns; a cell of more than 100 characters does not widen its column."""
    rows = list(rows)
    widths: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row[:-1]):
            widths[column] = max(widths.get(column, 0), min(len(cell), 100))
    padded = [[*(cell.ljust(widths[c]) for c, cell in enumerate(row[:-1])), *row[-1:]] for row in rows]
    return ["  ".join(cells).rstrip() for cells in padded]
