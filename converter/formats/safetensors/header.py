"""The header of a safetensors file: what it holds and where, read without touching the arrays.

The layout is that of https://github.com/huggingface/safetensors#format: eight bytes with the length of the header
(little-endian), the header as JSON, and the arrays one after the other without a gap.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from converter.dtypes import item_size
from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats.foreign import recognised
from converter.formats.strict_json import parse_json
from converter.tree import array_spec

MAX_HEADER = 100_000_000
"""Bytes; the library refuses longer ones (``MAX_HEADER_SIZE``)."""

METADATA = "__metadata__"
"""The entry of the header that is no array but texts by name."""

DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
"""The names of dtypes in the header, in the order of the library's ``Dtype``, which orders the arrays of a file."""

_PACKED = ("F4", "F6_E2M3", "F6_E3M2")
"""Dtypes that share bytes."""

_MAX_AXES = 64  # NumPy's
_MAX_BYTES = 2**63 - 1


class Stored(NamedTuple):
    """One array in the file.

    Attributes:
      dtype: NumPy's name.
      begin, end: its bytes, counted from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file holds: its arrays by name, in the order of the header, and the texts in its metadata."""

    arrays: Mapping[str, Stored]
    metadata: Mapping[str, str]


def looks_like_safetensors(file: FilePath) -> bool:
    """Whether a file begins with the length of a header of less than 4 GiB, and with a header."""
    try:
        with file.open("rb") as stream:
            first = stream.read(9)
    except OSError:
        return False
    return first[4:] == b"\0\0\0\0{"


def read_header(file: FilePath) -> Header:
    """Reads and checks the header of a file.

    Raises:
      UnreadableCheckpoint: cut short, damaged, with gaps or overlaps between arrays.
      UnsupportedCheckpoint: dtypes that are unknown or packed.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8:
                raise _damaged(file, "the length of the header in 8 bytes", f"a file of {size} bytes")
            if length > MAX_HEADER and (kind := recognised(file)) is not None:
                raise UnreadableCheckpoint(f"{file} is no safetensors file but {kind.title}", kind.advice)
            if length > MAX_HEADER:
                raise _damaged(file, f"a header of at most {MAX_HEADER} bytes", f"a length of {length}")
            if length > size - 8:
                raise _damaged(file, f"a header of {length} bytes", f"{size - 8} bytes up to the end of the file")
            text = stream.read(length)
    except OSError as error:
        raise UnreadableCheckpoint(f"{file} cannot be read: {error.strerror}", "Check its permissions.") from None
    return _Parser(file, 8 + length, size).header(text)


def _damaged(file: FilePath, expected: str, found: str) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(
        f"{file} is damaged, as a safetensors file: expected {expected}, found {found}",
        "It was probably cut short or changed: copy or download it again.",
    )


class _Parser:
    """Reads the entries of a header; ``begin`` is where the arrays begin, ``size`` is that of the file."""

    def __init__(self, file: FilePath, begin: int, size: int) -> None:
        self._file = file
        self._begin = begin
        self._size = size

    def header(self, text: bytes) -> Header:
        try:
            entries = parse_json(text)
        except ValueError as error:
            raise self._damaged("a header in JSON", str(error)) from None
        if not isinstance(entries, dict):
            raise self._damaged("a JSON object as the header", f"{text[:40]!r}")
        metadata = self._metadata(entries.pop(METADATA, None))
        arrays = {self._name(name): self._array(name, entry) for name, entry in entries.items()}
        self._check_places(arrays)
        return Header(arrays, metadata)

    def _metadata(self, entry: Any) -> dict[str, str]:
        if entry is None:
            return {}
        if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
            raise self._damaged(f"texts by name as {METADATA}", repr(entry)[:80])
        return entry

    def _name(self, name: str) -> str:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise self._damaged("names in Unicode", repr(name)[:80]) from None
        return name

    def _array(self, name: str, entry: Any) -> Stored:
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
            raise self._damaged(f"dtype, shape and data_offsets of {name!r}", repr(entry)[:80])
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not _are_sizes(shape) or len(shape) > _MAX_AXES:
            raise self._damaged(f"the lengths of at most {_MAX_AXES} axes as the shape of {name!r}", repr(shape)[:80])
        if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._damaged(f"the first byte of {name!r} and the one behind its last", repr(offsets)[:80])
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise self._unknown(name, dtype)
        spec = array_spec(DTYPES[dtype], shape)
        possible = math.prod(axis or 1 for axis in shape) * item_size(spec.dtype) <= _MAX_BYTES
        if not possible or spec.nbytes != offsets[1] - offsets[0]:
            found = f"{offsets[1] - offsets[0]} bytes"
            raise self._damaged(f"as many bytes for {name!r} as {spec} has", found)
        return Stored(spec.dtype, spec.shape, self._begin + offsets[0], self._begin + offsets[1])

    def _check_places(self, arrays: Mapping[str, Stored]) -> None:
        """Every byte behind the header belongs to one array: else something is lost, or stands for two."""
        end, before = self._begin, "the header"
        for name, array in sorted(arrays.items(), key=lambda item: item[1][2:]):
            if array.begin != end:
                how = f"{array.begin - end} bytes that belong to nothing" if array.begin > end else "an overlap"
                raise self._damaged(f"{name!r} to begin where {before} ends", how)
            end, before = array.end, repr(name)
        if end != self._size:
            what = f"arrays up to byte {end}, the end of the file"
            raise self._damaged(what, f"a file of {self._size} bytes")

    def _unknown(self, name: str, dtype: Any) -> UnsupportedCheckpoint:
        if dtype in _PACKED:
            problem = f"has the dtype {dtype}, whose elements share bytes: neither NumPy nor JAX has such arrays"
        else:
            problem = f"has the dtype {dtype!r}, which safetensors 0.8 does not have"
        return UnsupportedCheckpoint(
            f"{self._file}: {name!r} {problem}", "Cast it with the program that wrote the file, or leave it out there."
        )

    def _damaged(self, expected: str, found: str) -> UnreadableCheckpoint:
        return _damaged(self._file, expected, found)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


# Writing -------------------------------------------------------------------------------------------------------------

_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def can_hold(dtype: str) -> bool:
    return dtype in _NAMES


def order(name: str, dtype: str) -> tuple[int, bytes]:
    """Sorting key of the arrays in a file: large elements first, so that all are aligned; then by name."""
    return -_RANK[dtype], name.encode()


def spell_header(arrays: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The header of a file, and its length in front, as the library writes them.

    Args:
      arrays: (name, dtype, shape), in the order of the file.

    Raises:
      UnsupportedCheckpoint: the header would be longer than the library reads.
    """
    entries: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))}
    end = 0
    for name, dtype, shape in arrays:
        begin, end = end, end + array_spec(dtype, shape).nbytes
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise UnsupportedCheckpoint(
            f"the header would have {len(text)} bytes, and safetensors reads {MAX_HEADER} at the most",
            "Choose another format with --to-format.",
        )
    return len(text).to_bytes(8, "little") + text
