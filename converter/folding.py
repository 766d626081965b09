"""Folding repeated rows for people: 32 equal layers print as one, ``layers_{0…31}/kernel``."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Hashable, Iterable, Sequence

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
    cut = functools.cache(_cut)
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
    return align([tuple(map("".join, row)) for row in folded])


def fold_names(named: Sequence[tuple[str, Hashable]]) -> list[tuple[str, list[int]]]:
    """Names that differ only in one number, and stand for equal things, become one name.

    Args:
      named: names, all of them different, with what they stand for.

    Returns: names in the order of their first appearance, each with the positions of those that it stands for.
    """
    held = [(_cut(name), thing, [position]) for position, (name, thing) in enumerate(named)]
    at = -2
    while any(len(cell) >= -at for cell, _, _ in held):
        groups: dict[tuple[_Cell, Hashable], list[tuple[_Cell, Hashable, list[int]]]] = {}
        for cell, thing, positions in held:
            blank = (*cell[:at], "", *cell[at + 1 :]) if len(cell) >= -at else cell
            groups.setdefault((blank, thing), []).append((cell, thing, positions))
        merged = [_merged_names(members, at) for members in groups.values()]
        if len(merged) == len(held):
            at -= 2
        held = merged
    return [("".join(cell), positions) for cell, _, positions in held]


def _merged_names(members: list[tuple[_Cell, Hashable, list[int]]], at: int) -> tuple[_Cell, Hashable, list[int]]:
    cell, thing, _ = members[0]
    if len(members) == 1:
        return members[0]
    numbers = _shown(sorted(int(other[at]) for other, _, _ in members))
    start = len(cell) + at
    cell = (*cell[: start - 1], f"{cell[start - 1]}{{{numbers}}}{cell[start + 1]}", *cell[start + 2 :])
    return cell, thing, [position for _, _, positions in members for position in positions]


def _cut(text: str) -> _Cell:
    return tuple(_NUMBER.split(text))


def _shown(numbers: Sequence[int]) -> str:
    """``0…31``, or all of them where they leave gaps."""
    run = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}…{numbers[-1]}" if run else ",".join(map(str, numbers))


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
    shown = _shown(numbers)
    number, at = _number(members[0], position), -2 - 2 * position

    def told(cell: _Cell) -> _Cell:
        if len(cell) < -at or cell[at] != number:
            return cell
        start = len(cell) + at
        return (*cell[: start - 1], f"{cell[start - 1]}{{{shown}}}{cell[start + 1]}", *cell[start + 2 :])

    return [tuple(map(told, members[0]))]


def align(rows: Iterable[Row]) -> list[str]:
    """Prints rows as aligned columns; a cell of more than 100 characters does not widen its column."""
    rows = list(rows)
    widths: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row[:-1]):
            widths[column] = max(widths.get(column, 0), min(len(cell), 100))
    padded = [[*(cell.ljust(widths[c]) for c, cell in enumerate(row[:-1])), *row[-1:]] for row in rows]
    return ["  ".join(cells).rstrip() for cells in padded]
