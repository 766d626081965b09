"""Folding repeated rows for people: 32 equal layers print as one, ``layers_{0…31}/kernel``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

Row = tuple[str, ...]

_NUMBER = re.compile(r"(?<![0-9A-Za-z\[,.{…])(?:0|[1-9][0-9]*)(?![0-9A-Za-z.\]…}]|,\d)")
"""Numbers that stand for an item (``layers_3``, ``layers/3``), not those of a dtype, a shape, a version or a row
that is folded already. ``007`` is a name."""


def fold(rows: Iterable[Row], plain: Collection[int] = ()) -> list[str]:
    """Prints rows as aligned columns; rows that differ only in one number become one row.

    The number may stand in several columns (a source and a target path). Rows keep the order of their first
    appearance. A folded number prints as ``{0…31}``, or with its members where they leave gaps.

    Args:
      plain: columns whose numbers count no items, such as the axis of an operation.
    """
    folded = [tuple(row) for row in rows]
    depth = max((len(_NUMBER.findall(row[0])) for row in folded if row), default=0)
    position = 0
    while position < depth:
        groups: dict[Row, list[Row]] = {}
        for row in folded:
            groups.setdefault(_blank(row, position, "\0", plain), []).append(row)
        merged = [row for members in groups.values() for row in _merged(members, position, plain)]
        if len(merged) == len(folded):
            position += 1
        else:  # a merged row has one number less: what stood before it is now at this position
            folded = merged
    return columns(folded)


def _number(row: Row, position: int) -> str | None:
    """The number of the first column at that position, counted from the end."""
    numbers = _NUMBER.findall(row[0]) if row else []
    return str(numbers[-1 - position]) if position < len(numbers) else None


def _blank(row: Row, position: int, by: str, plain: Collection[int]) -> Row:
    """The row with that number replaced in the first column, and where it stands at the same place in the others."""
    number = _number(row, position)
    if number is None:
        return row

    def replaced(cell: str) -> str:
        matches = list(_NUMBER.finditer(cell))
        if position >= len(matches) or matches[-1 - position].group() != number:
            return cell
        start, end = matches[-1 - position].span()
        return cell[:start] + by + cell[end:]

    return tuple(cell if column in plain else replaced(cell) for column, cell in enumerate(row))


def _merged(members: list[Row], position: int, plain: Collection[int]) -> list[Row]:
    """The one row that stands for all members; the members themselves where they do not differ in a number."""
    numbers = sorted({int(number) for row in members if (number := _number(row, position)) is not None})
    if len(members) == 1 or len(numbers) < len(members):
        return members
    run = numbers == list(range(numbers[0], numbers[-1] + 1))
    shown = f"{numbers[0]}…{numbers[-1]}" if run else ",".join(map(str, numbers))
    return [_blank(members[0], position, "{" + shown + "}", plain)]


def columns(rows: Iterable[Row]) -> list[str]:
    """Prints rows as aligned columns."""
    rows = list(rows)
    widths: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row[:-1]):
            widths[column] = max(widths.get(column, 0), min(len(cell), 100))
    padded = [[*(cell.ljust(widths[c]) for c, cell in enumerate(row[:-1])), *row[-1:]] for row in rows]
    return ["  ".join(cells).rstrip() for cells in padded]
