"""Folding repeated rows for people: 32 equal layers print as one, ``layers_{0…31}/kernel``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
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

END = "/"
"""Stands between the keys of one cell and those of the next; no key is just a slash."""


class _Texts(dict[str, int]):
    """What stands between slashes, by the number of the text in it: ``layers_3`` and ``layers_4`` have the same.

    Everything is cut once, for there may be very many paths of few keys.

    Attributes:
      around: the texts around the numbers, by their number; one more than there are numbers.
      numbers: the numbers in what was cut.
    """

    def __init__(self) -> None:
        self.around: dict[tuple[str, ...], int] = {}
        self.numbers: dict[str, tuple[str, ...]] = {}

    def __missing__(self, key: str) -> int:
        pieces = _NUMBER.split(key)
        self.numbers[key] = tuple(pieces[1::2])
        self[key] = text = self.around.setdefault(tuple(pieces[::2]), len(self.around))
        return text


@dataclass(slots=True)
class _Alike:
    """Rows that differ in numbers only; each of them may stand for others already.

    Attributes:
      columns: the numbers at each place, folded ones as they print.
      members: for each row, those that it stands for.
      places: for each cell, where the numbers stand that are not folded, from left to right.
    """

    columns: list[list[str]]
    members: list[tuple[int, ...]]
    places: list[list[int]]

    def only(self, rows: Sequence[int]) -> _Alike:
        """Some of the rows."""
        if len(rows) == len(self.members):
            return self
        columns = [[column[row] for row in rows] for column in self.columns]
        return _Alike(columns, [self.members[row] for row in rows], self.places)

    def without(self, closed: Collection[int]) -> _Alike:
        """No rows yet, with fewer places that are not folded."""
        places = [[place for place in cell if place not in closed] for cell in self.places]
        return _Alike([[] for _ in self.columns], [], places)


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

    def cut(row: Row) -> KeyRow:
        keys: list[str] = []
        for column, cell in enumerate(row):
            keys += [END] if column else []
            keys += [""] if column in plain else cell.split("/")
        return keys, tuple([row[column] for column in plain if column < len(row)])

    def put_back(cells: Row, aside: Row) -> Row:
        found = dict(zip([column for column in plain if column < len(cells)], aside, strict=True))
        return tuple([found.get(column, cell) for column, cell in enumerate(cells)])

    return [Folded(put_back(cells, aside), members) for cells, aside, members in fold_keys(map(cut, rows))]


KeyRow = tuple[Sequence[str], Row]
"""The keys of cells, with ``END`` between the cells, and what else has to be equal in rows that become one."""


def fold_keys(rows: Iterable[KeyRow]) -> list[tuple[Row, Row, tuple[int, ...]]]:
    """The same as ``folded`` for rows of paths, where there may be very many.

    Returns: for each row the text of its cells, what else there is, and the rows that it stands for.
    """
    texts = _Texts()
    groups: dict[tuple[tuple[int, ...], Row], list[tuple[int, list[tuple[str, ...]]]]] = {}
    for number, (keys, aside) in enumerate(rows):
        alike = tuple(map(texts.__getitem__, keys))
        groups.setdefault((alike, aside), []).append((number, list(map(texts.numbers.__getitem__, keys))))
    around = list(texts.around)
    found: list[tuple[Row, Row, tuple[int, ...]]] = []
    for (alike, aside), members in groups.items():
        cells = _cells([around[number] for number in alike])
        cut = zip(*[numbers for _, numbers in members], strict=True)
        columns = [list(column) for numbers in cut for column in zip(*numbers, strict=True)]
        for rest in _fold(_Alike(columns, [(number,) for number, _ in members], _places(cells))):
            found += [(row, aside, numbers) for row, numbers in _spelled(rest, cells)]
    return sorted(found, key=lambda each: each[-1])


def fold_names(named: Iterable[tuple[str, Hashable]]) -> list[tuple[str, tuple[int, ...]]]:
    """Names that differ only in one number, and stand for equal things, become one name.

    Args:
      named: names, all of them different, with what they stand for.

    Returns: names in the order of their first appearance, each with the positions of those that it stands for.
    """
    kinds: dict[Hashable, int] = {}
    rows = [(name, str(kinds.setdefault(thing, len(kinds)))) for name, thing in named]
    return [(row[0], members) for row, members in folded(rows, plain=(1,))]


def _cells(keys: Iterable[tuple[str, ...]]) -> list[list[str]]:
    """The texts of each cell around its numbers."""
    cells: list[list[str]] = [[]]
    for first, *others in keys:
        if first == END:
            cells.append([])
        elif cells[-1]:
            cells[-1][-1] += f"/{first}"
            cells[-1] += others
        else:
            cells[-1] = [first, *others]
    return [cell or [""] for cell in cells]  # the empty path has no keys


def _places(cells: Iterable[Sequence[str]]) -> list[list[int]]:
    """Which numbers stand in each cell."""
    numbers = itertools.count()
    return [[next(numbers) for _ in cell[1:]] for cell in cells]


def _spelled(alike: _Alike, cells: Sequence[Sequence[str]]) -> Iterator[tuple[Row, tuple[int, ...]]]:
    for row, members in enumerate(alike.members):
        numbers = (column[row] for column in alike.columns)
        yield tuple([cell[0] + "".join([next(numbers) + text for text in cell[1:]]) for cell in cells]), members


def _fold(alike: _Alike) -> Iterator[_Alike]:
    """Folds the numbers of the first cell from the last to the first, until nothing more can be folded."""
    pending = [(alike, 0)]
    while pending:
        rows, position = pending.pop()
        if position == len(rows.places[0]):
            yield rows
            continue
        alone, merged = _merge(rows, position)
        # A merged row has one number less: what stood before it is now at this position.
        pending += [(each, position) for each in merged]
        if alone.members:
            pending.append((alone, position + 1))


def _merge(rows: _Alike, position: int) -> tuple[_Alike, list[_Alike]]:
    """Merges rows that differ only in one number of the first cell, wherever it stands at the same place in others.

    Args:
      position: which number of the cell, counted from the end.

    Returns: the rows that are left alone, and the merged ones.
    """
    place = rows.places[0][-1 - position]
    beside = [places[-1 - position] for places in rows.places[1:] if len(places) > position]
    number = rows.columns[place]
    # A number that goes along is no difference.
    columns = [
        [None if mine == same else mine for mine, same in zip(column, number, strict=True)] if at in beside else column
        for at, column in enumerate(rows.columns)
        if at != place
    ]
    groups: dict[Hashable, list[int]] = {}
    for row, rest in enumerate(zip(*columns, strict=True) if columns else itertools.repeat((), len(number))):
        groups.setdefault(rest, []).append(row)
    alone: list[int] = []
    merged: dict[tuple[int, ...], _Alike] = {}
    for together in groups.values():
        numbers = sorted({int(number[row]) for row in together})
        if len(numbers) == 1 or len(numbers) < len(together):
            alone += together
            continue
        first = together[0]
        closed = (place, *[at for at in beside if rows.columns[at][first] == number[first]])
        one = merged.setdefault(closed, rows.without(closed))
        shown = f"{{{_shown(numbers)}}}"
        for at, column in enumerate(rows.columns):
            one.columns[at].append(shown if at in closed else column[first])
        one.members.append(tuple(sorted(itertools.chain.from_iterable([rows.members[row] for row in together]))))
    return rows.only(alone), list(merged.values())


def _shown(numbers: Sequence[int]) -> str:
    """``0…31``, or ``0,2,5`` where they leave gaps."""
    run = len(numbers) == numbers[-1] - numbers[0] + 1
    return f"{numbers[0]}…{numbers[-1]}" if run else ",".join(map(str, numbers))


def columns(rows: Iterable[Row]) -> list[str]:
    """Prints rows as aligned columns; a cell of more than 100 characters does not widen its column."""
    rows = list(rows)
    widths: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row[:-1]):
            widths[column] = max(widths.get(column, 0), min(len(cell), 100))
    padded = [[*(cell.ljust(widths[c]) for c, cell in enumerate(row[:-1])), *row[-1:]] for row in rows]
    return ["  ".join(cells).rstrip() for cells in padded]
