"""The members of an npz file: what each array is, where it lies, and unpacking those that are compressed."""

from __future__ import annotations

import functools
import math
import os
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import IO, TYPE_CHECKING, Any

from converter import scratch
from converter.dtypes import item_size, numpy_dtype
from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats.flat_names import SEPARATORS, separator_of, split_name, tree_of_names
from converter.formats.npz.npy import ArrayHeader, read_array_header
from converter.formats.raw import raw_leaf
from converter.stored import Extent
from converter.tree import LazyLeaf, Leaf, Tree

if TYPE_CHECKING:
    import numpy as np

SUFFIX = ".npy"

_LOCAL_HEADER = 30
"""Bytes in front of the name of a member; the last four are the lengths of the name and of what stands behind it."""

_ENCRYPTED = 1
_MAX_BYTES = 2**63 - 1
_PIECE = 1 << 20
_SHOWN = 8
_COPY_AGAIN = "It was probably cut short or changed: copy or download it again."


def read_archive(file: FilePath) -> tuple[Tree, dict[str, str]]:
    """The tree of a file, and facts about it; see ``NpzFormat.open`` for the errors."""
    with _reporting(file, "a zip archive"):
        archive = _Archive(file, str(file.absolute()), file.stat().st_size, zipfile.ZipFile(file), threading.Lock())
        members = archive.members()
    separator = separator_of(members)
    leaves = [(split_name(name, separator), archive.leaf(member)) for name, member in members.items()]
    facts = {"names": f"joined by {SEPARATORS[separator]}"}
    facts["size of the file"] = f"{file.stat().st_size} bytes"
    if packed := sum(not member.is_stored for member in members.values()):
        facts["compressed arrays"] = str(packed)
    if recovered := sum(member.header.dtype == "bfloat16" for member in members.values()):
        facts["arrays without a dtype, taken for bfloat16"] = str(recovered)
    return tree_of_names(file, leaves, separator), facts


@contextmanager
def _reporting(file: FilePath, what: str) -> Iterator[None]:
    """What the standard library raises for a damaged archive, in our words."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise UnreadableCheckpoint(f"{file} is damaged: expected {what}, found {error}", _COPY_AGAIN) from None


@dataclass(frozen=True, slots=True)
class _Member:
    """An array in the archive; ``begin`` is where the member's bytes are in the file."""

    info: zipfile.ZipInfo
    header: ArrayHeader
    begin: int

    @property
    def is_stored(self) -> bool:
        """Whether its bytes are in the file as they are."""
        return self.info.compress_type == zipfile.ZIP_STORED


@dataclass(frozen=True, slots=True)
class _Archive:
    """An open archive, whose members several threads may read."""

    file: FilePath
    absolute: str
    size: int
    zip: zipfile.ZipFile
    lock: threading.Lock

    def members(self) -> dict[str, _Member]:
        """The arrays by name."""
        found: dict[str, _Member] = {}
        problems: list[str] = []
        for info in self.zip.infolist():
            name = info.filename.removesuffix(SUFFIX)
            if name in found:
                raise ValueError(f"{name!r} twice")
            try:
                found[name] = self._member(info)
            except UnsupportedCheckpoint as error:
                problems.append(f"  {name} {error.message}")
        if problems:
            more = [f"  … and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            raise UnsupportedCheckpoint(
                "\n".join([f"{self.file} holds what cannot be read:", *problems[:_SHOWN], *more]),
                "Load it with numpy.load, and save arrays of numbers alone under names such as params/dense/kernel.",
            )
        return found

    def _member(self, info: zipfile.ZipInfo) -> _Member:
        if not info.filename.endswith(SUFFIX):
            raise UnsupportedCheckpoint("is no array: its name does not end in .npy")
        if info.flag_bits & _ENCRYPTED:
            raise UnsupportedCheckpoint("is encrypted")
        try:
            with self._open(info) as stream:
                header = read_array_header(stream)
        except ValueError as error:
            raise ValueError(f"{info.filename!r} with {error}") from None
        spec = header.spec
        possible = math.prod(axis or 1 for axis in spec.shape) * item_size(spec.dtype) <= _MAX_BYTES
        if not possible or header.length + spec.nbytes != info.file_size:
            raise ValueError(f"{info.filename!r} with {info.file_size - header.length} bytes for {spec}")
        begin = self._begin(info)
        if begin + info.compress_size > self.size:
            raise ValueError(f"the end of the file inside of {info.filename!r}")
        return _Member(info, header, begin)

    def _open(self, info: zipfile.ZipInfo) -> IO[bytes]:
        with self.lock:
            return self.zip.open(info)

    def _begin(self, info: zipfile.ZipInfo) -> int:
        assert self.zip.fp is not None, "the archive is open"
        lengths = os.pread(self.zip.fp.fileno(), 4, info.header_offset + _LOCAL_HEADER - 4)
        names = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        return info.header_offset + _LOCAL_HEADER + names

    def leaf(self, member: _Member) -> Leaf:
        header = member.header
        if not member.is_stored:
            return LazyLeaf(header.spec, functools.partial(self._unpacked, member))
        extent = Extent(self.absolute, member.begin + header.length, header.spec.nbytes)
        return raw_leaf(header.spec, extent, dtype=header.dtype, fortran=header.fortran)

    def _unpacked(self, member: _Member) -> np.ndarray[Any, Any]:
        """The array of a compressed member; where it is large, it lies in a file."""
        import numpy as np

        header, spec = member.header, member.header.spec
        stored = numpy_dtype(spec.dtype) if header.dtype == spec.dtype else np.dtype(header.dtype)
        array = scratch.empty((spec.size,), numpy_dtype(spec.dtype))
        with _reporting(self.file, f"the array {member.info.filename!r}"), self._open(member.info) as stream:
            stream.read(header.length)
            for start in range(0, spec.size, count := max(1, min(_PIECE, scratch.limit()) // stored.itemsize)):
                part = array[start : start + count]
                scratch.copy(part, np.frombuffer(_exactly(stream, part.size * stored.itemsize), stored))
            stream.read(1)  # where the end is met, the checksum is compared
        return array.reshape(spec.shape[::-1]).T if header.fortran else array.reshape(spec.shape)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        data = stream.read(size)
        if not data:
            raise EOFError(f"{size} bytes too few")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
