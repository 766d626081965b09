"""The pieces that bodies of manifests and nodes are made of: numbers, sorted texts, tables of data files.

Numbers are *varints* (seven bits a byte, the lowest first), and the fields of all entries of a node stand in *columns*:
first the first field of every entry, then the second. Handling columns as a whole is what makes this fast.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint

MAX_NAME_BYTES = 0xFFFF
"""Of a key, and of the path of a data file."""

MAX_NUMBER = 2**64 - 1

ENTRY_BYTES = 256
"""What Python takes in memory for an entry of a node besides the bytes of its key, roughly."""


def damaged(place: str, expected: str, found: str) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(
        f"{place} is damaged: expected {expected}, found {found}.",
        "The file was cut short or altered: compare its size or checksum with the original and copy it again, or use "
        "another checkpoint.",
    )


class Allowance:
    """What an index may still take in memory, so that a small file that describes a huge one is refused in time."""

    def __init__(self, nbytes: int) -> None:
        self.total = self.left = nbytes

    def spend(self, nbytes: int, place: str) -> None:
        self.left -= nbytes
        if self.left < 0:
            raise UnsupportedCheckpoint(
                f"{place}: the index of the database needs more memory than the {self.total / 2**30:.3g} GiB allowed.",
                "No checkpoint has so many arrays: distrust the file if it is not your own.",
            )


# Reading ---------------------------------------------------------------------------------------------------------


class Cursor:
    """Reads a body from front to back; ``place`` is what messages call it.

    Every method raises UnreadableCheckpoint where the body ends too early or holds what no body can.
    """

    def __init__(self, data: bytes, place: str, allowance: Allowance) -> None:
        self.data = data
        self.place = place
        self.allowance = allowance
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        self._pass(count)
        return self.data[self.position - count : self.position]

    def _pass(self, count: int) -> None:
        if count > self.left:
            raise self.damaged(f"{count} more bytes", str(self.left))
        self.position += count

    def pieces(self, lengths: Sequence[int]) -> list[bytes]:
        """The next bytes, in pieces of these lengths."""
        data, first = self.data, self.position
        self._pass(sum(lengths))
        return [data[start:end] for start, end in pairwise(accumulate(lengths, initial=first))]

    def number(self) -> int:
        return self.numbers(1)[0]

    def numbers(self, count: int) -> Sequence[int]:
        """A column of varints, each below 2⁶⁴."""
        column = self.data[self.position : self.position + count]
        if len(column) < count:
            raise self.damaged(f"{count} more numbers", f"{self.left} bytes")
        # In most columns all numbers are below 128, hence one byte each, and bytes are a sequence of numbers already.
        if column.isascii():
            self.position += count
            return column
        values = self._long_numbers(count)
        if max(values) > MAX_NUMBER:
            raise self.damaged("numbers of at most 64 bits", hex(max(values)))
        return values

    def _long_numbers(self, count: int) -> list[int]:
        values: list[int] = []
        # One iterator for both loops: the inner one takes what belongs to the number that the outer one began.
        rest = iter(self.data[self.position :])
        for value in islice(rest, count):
            if value > 127:
                value &= 127
                shift = 7
                for part in rest:
                    value |= (part & 127) << shift
                    if part < 128:
                        break
                    shift += 7
                    if shift > 63:
                        raise self.damaged("numbers of at most ten bytes", "a longer one")
                else:
                    break
            values.append(value)
        if len(values) < count:
            raise self.damaged(f"{count} more numbers", str(len(values)))
        self.position = len(self.data) - operator.length_hint(rest)
        return values

    def names(self, shared: Sequence[int], added: Sequence[int]) -> list[bytes]:
        """Texts of which each repeats the first ``shared`` bytes of the one before and adds ``added`` bytes to them.

        Args:
          shared: one number less than there are texts.
        """
        shared = (0, *shared)
        lengths = list(map(operator.add, shared, added))
        if max(lengths) > MAX_NAME_BYTES:
            raise self.damaged(f"names of at most {MAX_NAME_BYTES} bytes", str(max(lengths)))
        self.allowance.spend(sum(lengths) + ENTRY_BYTES * len(lengths), self.place)
        names, name = [], b""
        for kept, piece in zip(shared, self.pieces(added), strict=True):
            name = name[:kept] + piece
            names.append(name)
        if list(map(len, names)) != lengths:
            raise self.damaged(
                "names that repeat bytes of the names before them", "one that repeats more than there are"
            )
        return names

    def finish(self) -> None:
        """Makes sure that nothing follows."""
        if self.left:
            raise self.damaged("the end", f"{self.left} more bytes")

    def damaged(self, expected: str, found: str) -> UnreadableCheckpoint:
        """An error about what stands at the current position."""
        where = f"at byte {self.position} of {len(self.data)} (decompressed)"
        return damaged(self.place, f"{expected} {where}", found)


class DataFile(NamedTuple):
    """A file that holds nodes or values, by its path from the directory of the database.

    ``base`` is the first part of the path, before which those paths begin that a node in this file names.
    """

    base: bytes
    path: bytes


def stays_inside(path: bytes) -> bool:
    """Whether a path is relative, plain, and cannot lead out of the directory that it starts from."""
    return b"\0" not in path and {b"", b".", b".."}.isdisjoint(path.split(b"/"))


def read_files(cursor: Cursor, base: bytes) -> list[DataFile]:
    """The table of data files at the start of a node that lies in a file with this ``base``; manifests have none.

    Raises:
      UnreadableCheckpoint: damaged, or a path leads out of the directory.
    """
    count = cursor.number()
    if not count:
        return []
    shared, added = cursor.numbers(count - 1), cursor.numbers(count)
    bases = cursor.numbers(count)
    files = []
    for name, length in zip(cursor.names(shared, added), bases, strict=True):
        if length > len(name):
            raise cursor.damaged(f"a base path within the {len(name)} bytes of the path", f"one of {length} bytes")
        path = base + name
        # A version without a root names the empty path.
        if path and not stays_inside(path):
            raise UnreadableCheckpoint(
                f"{cursor.place} names the data file {path!r}: expected a path that stays in the directory.",
                "No program writes such a path: distrust the file.",
            )
        files.append(DataFile(base + name[:length], path))
    return files


# Spelling --------------------------------------------------------------------------------------------------------


def spell_numbers(values: Sequence[int]) -> bytes:
    """A column of varints."""
    if not values or max(values) < 128:
        return bytes(values)
    spelled = bytearray()
    append = spelled.append
    for value in values:
        while value > 127:
            append(value & 127 | 128)
            value >>= 7
        append(value)
    return bytes(spelled)


_little = functools.partial(int.from_bytes, byteorder="little")


def spell_names(names: Sequence[bytes], *columns: bytes) -> bytes:
    """Sorted texts, each without the bytes that it shares with the one before; ``columns`` stand before the bytes."""
    lengths = list(map(len, names))
    # The lowest bit in which two little-endian numbers differ tells the first byte in which the texts do.
    numbers = list(map(_little, names))
    differing = map(operator.xor, numbers, islice(numbers, 1, None))
    # Bytes that are not there count as zeros: no more is shared than the shorter text has.
    equal = [((bits & -bits).bit_length() - 1) // 8 if bits else MAX_NAME_BYTES for bits in differing]
    shared = [0, *map(min, equal, lengths, islice(lengths, 1, None))]
    added = list(map(operator.sub, lengths, shared))
    rest = [name[kept:] for name, kept in zip(names, shared, strict=True)]
    return b"".join((spell_numbers(shared[1:]), spell_numbers(added), *columns, *rest))


def spell_files(paths: Sequence[bytes]) -> bytes:
    """A table of sorted data files without base paths."""
    if not paths:
        return spell_numbers([0])
    return spell_numbers([len(paths)]) + spell_names(paths, bytes(len(paths)))
