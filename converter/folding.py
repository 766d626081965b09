"""Folding repeated rows for people: 32 equal layers print as one, ``layers_{0…31}/kernel``."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable

Row = tuple[str, ...]

_NUMBER = re.compile(r"(?<![0-9A-Za-z\[,.{…])(0|[1-9][0-9]*)(?![0-9A-Za-z.\]…}]|,\d)")
"""Numbers that stand for an item (``layers_3``, ``layers/3``), not those of a dtype, a shape, a version or a row
that is folded already. ``007`` is a name."""

_Cell = tuple[str, ...]
"""The text of a cell cut at its numbers: text, number, text, number, text."""


def fold(rows: Iterable[Row], plain: Collection[int] = ()) -> list[str]:
    """Prints rows as aligned columns; rows that differ only in one number become one row.

    The number may stand in several columns (a source and a target path). Rows keep the order of their first
    appearance. A folded number prints as ``{0…31}``, or with its members where they leave gaps.

    Args:
      plain: columns whose numbers count no items, such as the axis of an operation.
    """
    cut = functools.cache(lambda text: tuple(_NUMBER.split(text)))
    folded = [tuple((cell,) if column in plain else cut(cell) for column, cell in enumerate(row)) for row in rows]
    depth = max((len(row[0]) // 2 for row in folded if row), default=0)
    position = 0
    while position < depth:
        groups: dict[tuple[_Cell, ...], list[tuple[_Cell, ...]]] = {}
        for row in folded:
            groups.setdefault(_blank(row, position), []).append(row)
        merged = [row for members in groups.values() for row in _merged(members, position)]
        if len(merged) == len(folded):
            position += 1
        else:  # a merged row has one number less: what stood before it is now at this position
            folded = merged
    return _columns([tuple(map("".join, row)) for row in folded])


def _number(row: tuple[_Cell, ...], position: int) -> str | None:
    """The number of the first column at that position, counted from the end."""
    return row[0][-2 - 2 * position] if row and len(row[0]) > 1 + 2 * position else None


def _blank(row: tuple[_Cell, ...], position: int) -> tuple[_Cell, ...]:
    """The row without that number in the first column, and where it stands at the same place in the others."""
    number = _number(row, position)
    if number is None:
        return row
    at = -2 - 2 * position
    return tuple((*cell[:at], "", *cell[at + 1 :]) if len(cell) >= -at and cell[at] == number else cell for cell in row)


def _merged(members: list[tuple[_Cell, ...]], position: int) -> list[tuple[_Cell, ...]]:
    """The one row that stands for all members; the members themselves where they do not differ in a number."""
    if len(members) == 1:
        return members
    numbers = sorted({int(number) for row in members if (number := _number(row, position)) is not None})
    if len(numbers) < len(members):
        return members
    run = numbers == list(range(numbers[0], numbers[-1] + 1))
    shown = f"{numbers[0]}…{numbers[-1]}" if run else ",".join(map(str, numbers))
    number, at = _number(members[0], position), -2 - 2 * position

    def told(cell: _Cell) -> _Cell:
        if len(cell) < -at or cell[at] != number:
            return cell
        start = len(cell) + at
        return (*cell[: start - 1], f"{cell[start - 1]}{{{shown}}}{cell[start + 1]}", *cell[start + 2 :])

    return [tuple(map(told, members[0]))]


def _columns(rows: list[Row]) -> list[str]:
    widths: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row[:-1]):
            widths[column] = max(widths.get(column, 0), min(len(cell), 100))
    padded = [[*(cell.ljust(widths[c]) for c, cell in enumerate(row[:-1])), *row[-1:]] for row in rows]
    return ["  ".join(cells).rstrip() for cells in padded]
