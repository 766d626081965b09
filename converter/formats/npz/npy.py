"""The header of an array in NumPy's own format, read without NumPy.

The layout is that of ``numpy.lib.format``, versions 1 to 3.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import IO, Any

from converter.dtypes import is_common_dtype
from converter.errors import UnsupportedCheckpoint
from converter.formats import zarr
from converter.tree import LeafSpec, array_spec

MAX_HEADER = 10_000
"""Bytes; NumPy reads no longer ones either (``_MAX_HEADER_SIZE``)."""

_MAGIC = b"\x93NUMPY"
_NUMBER = re.compile(r"[<>|=][biufc]\d+")
_MAX_AXES = 64


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What stands in front of an array.

    Attributes:
      spec: the array.
      dtype: NumPy's type string, byte order included.
      fortran: the first axis runs fastest.
      length: of the header, in bytes.
    """

    spec: LeafSpec
    dtype: str
    fortran: bool
    length: int


def read_array_header(stream: IO[bytes]) -> ArrayHeader:
    """Reads the header at the beginning of a stream.

    Raises:
      ValueError: says what is wrong with it.
      UnsupportedCheckpoint: an array that holds no numbers; the message says what.
    """
    magic = stream.read(8)
    if magic[:6] != _MAGIC or len(magic) < 8:
        raise ValueError(f"{magic!r} instead of {_MAGIC!r}")
    if magic[6] not in (1, 2, 3):
        raise UnsupportedCheckpoint(f"is in version {magic[6]}.{magic[7]} of NumPy's format; 1 to 3 are known")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > MAX_HEADER:
        raise ValueError(f"a header of {length} bytes, where NumPy reads {MAX_HEADER}")
    text = stream.read(length)
    if len(text) < length:
        raise ValueError("a header that is cut short")
    descr, fortran, shape = _fields(text.decode("utf-8" if magic[6] == 3 else "latin-1"))
    dtype = _number_type(descr)
    return ArrayHeader(array_spec(zarr.dtype_name(dtype), shape), dtype, fortran, 8 + width + length)


def _fields(text: str) -> tuple[Any, bool, tuple[int, ...]]:
    try:
        content = ast.literal_eval(text.strip())
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"a header that is no dict: {text[:60]!r}") from None
    if not isinstance(content, dict) or content.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"a header without descr, fortran_order and shape: {text[:60]!r}")
    descr, fortran, shape = content["descr"], content["fortran_order"], content["shape"]
    if not isinstance(shape, tuple) or len(shape) > _MAX_AXES or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"the shape {str(shape)[:60]}")
    if not isinstance(fortran, bool):
        raise ValueError(f"the order {str(fortran)[:60]}")
    return descr, fortran, shape


def _number_type(descr: Any) -> str:
    """The type string of numbers.

    Raises:
      UnsupportedCheckpoint: anything else.
    """
    if not isinstance(descr, str):
        raise UnsupportedCheckpoint("is a structured array, with fields instead of numbers")
    text = descr.replace("=", "<")
    if _NUMBER.fullmatch(descr) and is_common_dtype(zarr.dtype_name(text)):
        return text
    kind, size = ("V", "1") if text[1:] == "f1" else (text[1:2], text[2:])  # so NumPy notes a float8_e5m2
    if text in ("|V2", "<V2"):
        return "bfloat16"  # NumPy forgets the name; no other type of JAX has two bytes and is unknown to NumPy
    raise UnsupportedCheckpoint(_NO_NUMBERS.get(kind, f"has the dtype {descr!r}").format(size=size))


_NO_NUMBERS = {
    "O": "holds Python objects as a pickle, which is not read, because reading one runs code",
    "U": "holds text",
    "S": "holds text",
    "M": "holds dates",
    "m": "holds periods of time",
    "V": "has lost its dtype: NumPy has noted only the size of an element ({size}), as of float8 or int4 arrays",
}
