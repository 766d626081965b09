"""One msgpack header at a time: reading it out of a mapped file, and spelling it for a new one.

Every form of https://github.com/msgpack/msgpack/blob/master/spec.md is read; the shortest form is written, as the
``msgpack`` package does, with which flax writes.
"""

from __future__ import annotations

import enum
import functools
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from converter.errors import UnreadableCheckpoint
from converter.paths import Path, format_path
from converter.stored import Extent

MAX_DEPTH = 512
"""Containers around a leaf at the most. flax restores by recursion and fails before Python's limit of 1000 frames."""

FAULT_BYTES = max(1 << 16, mmap.PAGESIZE)
"""Linux maps the pages around a touched one, too: an aligned block of 64 KiB (``fault_around_bytes``)."""


class Family(enum.Enum):
    """What a header announces; the value is how messages name it."""

    __hash__ = object.__hash__  # looked up for every header, and that of Enum is written in Python

    NIL = "nil"
    BOOL = "a bool"
    INT = "an int"
    FLOAT = "a float"
    TEXT = "text"
    BYTES = "bytes"
    ARRAY = "an array"
    MAP = "a map"
    EXT = "an extension"


@dataclass(slots=True)
class Head:
    """A header.

    ``value`` is the value itself of nil, a bool, an int or a float, the number of items of an array or a map, and the
    length in bytes of text, bytes and extension values. ``body`` is the first byte after the header.
    """

    family: Family
    value: Any
    offset: int
    body: int
    code: int = 0

    def __str__(self) -> str:
        plural = "" if self.value == 1 else "s"
        match self.family:
            case Family.NIL:
                return "nil"
            case Family.BOOL | Family.INT | Family.FLOAT:
                return f"{self.family.value} ({self.value})"
            case Family.ARRAY | Family.MAP:
                return f"{self.family.value} of {self.value} {'entries' if plural else 'entry'}"
            case Family.TEXT:
                return f"{self.value} byte{plural} of text"
            case Family.EXT:
                return f"{self.value} byte{plural} of extension type {self.code}"
            case _:
                return f"{self.value} byte{plural}"


_SHORT: list[tuple[Family, Any] | None] = [
    *((Family.INT, number) for number in range(0x80)),
    *((Family.MAP, count) for count in range(0x10)),
    *((Family.ARRAY, count) for count in range(0x10)),
    *((Family.TEXT, length) for length in range(0x20)),
    *((Family.NIL, None), None, (Family.BOOL, False), (Family.BOOL, True)),
    *[None] * 0x1C,
    *((Family.INT, number) for number in range(-0x20, 0)),
]
"""What a header of one byte announces, for each byte; None for those that begin a longer one, or none."""

_NUMBERS: Mapping[int, tuple[Family, str]] = {
    0xCA: (Family.FLOAT, ">f"),
    0xCB: (Family.FLOAT, ">d"),
    **{0xCC + i: (Family.INT, form) for i, form in enumerate((">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"))},
}
_SIZED: Mapping[int, tuple[Family, int]] = {
    **{0xC4 + i: (Family.BYTES, 1 << i) for i in range(3)},
    **{0xC7 + i: (Family.EXT, 1 << i) for i in range(3)},
    **{0xD9 + i: (Family.TEXT, 1 << i) for i in range(3)},
    **{0xDC + i: (Family.ARRAY, 2 << i) for i in range(2)},
    **{0xDE + i: (Family.MAP, 2 << i) for i in range(2)},
}
_LEAST_BYTES: Mapping[Family, int] = {
    **dict.fromkeys(Family, 0),
    **dict.fromkeys((Family.TEXT, Family.BYTES, Family.EXT, Family.ARRAY), 1),
    Family.MAP: 2,
}
"""What one byte or item of a value takes at least, so that an absurd count is recognised without counting."""


class Reader:
    """Reads headers out of ``data``; ``path`` is where in the tree it stands, for messages only."""

    def __init__(self, file: FilePath, data: mmap.mmap, path: Path = ()) -> None:
        self.file = file
        self.data = data
        self.size = len(data)
        self.path = path

    @functools.cached_property
    def absolute(self) -> str:
        """The path of the file, as extents name it."""
        return os.path.abspath(self.file)

    def head(self, offset: int, end: int) -> Head:
        """The header at ``offset`` of a value that lies before ``end``.

        Raises:
          UnreadableCheckpoint: no header begins so, or what it announces does not fit before ``end``.
        """
        first = self.data[offset] if offset < end else self._take(offset, 1, end)[0]
        short = _SHORT[first]
        if short is not None:
            head = Head(short[0], short[1], offset, offset + 1)
        elif first in _NUMBERS:
            family, form = _NUMBERS[first]
            width = struct.calcsize(form)
            return Head(family, struct.unpack(form, self._take(offset + 1, width, end))[0], offset, offset + 1 + width)
        else:
            head = self._sized(first, offset, end)
        least = _LEAST_BYTES[head.family]
        if least and head.value * least > end - head.body:
            raise self.damaged(offset, f"a value that ends before byte {end}", f"{head}, more than the bytes left")
        return head

    def _sized(self, first: int, offset: int, end: int) -> Head:
        body = offset + 1
        if first in _SIZED:
            family, width = _SIZED[first]
            if family is not Family.EXT:
                return Head(family, int.from_bytes(self._take(body, width, end), "big"), offset, body + width)
            sizes = self._take(body, width + 1, end)
            value = int.from_bytes(sizes[:-1], "big")
        elif 0xD4 <= first <= 0xD8:
            sizes, value = self._take(body, 1, end), 1 << (first - 0xD4)
        else:
            raise self.damaged(offset, "the start of a msgpack value", f"the byte 0x{first:02x}")
        code = sizes[-1]
        return Head(Family.EXT, value, offset, body + len(sizes), code if code < 0x80 else code - 0x100)

    def _take(self, offset: int, length: int, end: int) -> bytes:
        if offset + length > end:
            found = "the end of the file" if end == self.size else "the end of the value around it"
            raise self.damaged(offset, f"{length} more byte{'s' * (length > 1)} of a msgpack value", found)
        return self.data[offset : offset + length]

    def extent(self, head: Head) -> Extent:
        """Where the bytes lie that a header announces."""
        return Extent(self.absolute, head.body, head.value)

    def forget(self, start: int, end: int) -> None:
        """Gives the pages of a range back to the system; whoever touches one again gets it from the page cache."""
        if end > start and hasattr(mmap, "MADV_DONTNEED"):
            start -= start % FAULT_BYTES
            end = min(end + -end % FAULT_BYTES, self.size)
            self.data.madvise(mmap.MADV_DONTNEED, start, end - start)

    def place(self) -> str:
        return f"{self.file}: {format_path(self.path) or 'the value of the file'}"

    def check_size(self) -> None:
        """Raises UnreadableCheckpoint if the file lost bytes since it was opened: touching them would be fatal."""
        if self.data.size() < self.size:
            raise UnreadableCheckpoint(
                f"{self.file} shrank from {self.size} to {self.data.size()} bytes while it was being read.",
                "Some program writes to it: wait until it is done, and start again.",
            )

    def damaged(self, offset: int, expected: str, found: str) -> UnreadableCheckpoint:
        where = f" ({format_path(self.path)})" if self.path else ""
        return UnreadableCheckpoint(
            f"{self.file} is damaged at byte {offset} of {self.size}{where}: expected {expected}, found {found}.",
            "The file was cut short or altered, or is no flax msgpack file: compare its size or checksum with the "
            "original and copy it again, or use another checkpoint.",
        )


# Spelling --------------------------------------------------------------------------------------------------------

NIL = b"\xc0"


def spell_bool(value: bool) -> bytes:
    return b"\xc3" if value else b"\xc2"


def spell_int(value: int) -> bytes:
    """Raises OverflowError outside of -2⁶³ … 2⁶⁴-1."""
    if -0x20 <= value < 0x80:
        return struct.pack(">b", value)
    signed = value < 0
    for power in range(4):
        try:
            return bytes([(0xD0 if signed else 0xCC) + power]) + value.to_bytes(1 << power, "big", signed=signed)
        except OverflowError:
            continue
    raise OverflowError(f"the int {value} has more than 64 bits")


def spell_float(value: float) -> bytes:
    return struct.pack(">Bd", 0xCB, value)


def spell_text(text: str) -> bytes:
    """Raises UnicodeEncodeError for lone surrogates and OverflowError for 4 GiB or more."""
    encoded = text.encode()
    return _spell_sized(len(encoded), 0x20, 0xA0, (0xD9, 0xDA, 0xDB)) + encoded


def spell_bytes_head(length: int) -> bytes:
    return _spell_sized(length, 0, 0, (0xC4, 0xC5, 0xC6))


def spell_array_head(count: int) -> bytes:
    return _spell_sized(count, 0x10, 0x90, (None, 0xDC, 0xDD))


def spell_map_head(count: int) -> bytes:
    return _spell_sized(count, 0x10, 0x80, (None, 0xDE, 0xDF))


def spell_ext_head(code: int, length: int) -> bytes:
    if length in (1, 2, 4, 8, 16):
        return bytes([0xD4 + length.bit_length() - 1, code])
    return _spell_sized(length, 0, 0, (0xC7, 0xC8, 0xC9)) + bytes([code])


def _spell_sized(size: int, short: int, base: int, firsts: tuple[int | None, int, int]) -> bytes:
    """Below ``short`` the size is part of the first byte; else one, two or four bytes of size follow it."""
    if size < short:
        return bytes([base + size])
    for power, first in enumerate(firsts):
        if first is not None and size < 1 << (8 << power):
            return bytes([first]) + size.to_bytes(1 << power, "big")
    raise OverflowError(f"{size} bytes or entries in one value: msgpack ends at 2³² - 1")
