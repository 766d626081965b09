"""What names of dtypes mean, as far as possible without NumPy: loading it takes as long as renaming a checkpoint."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from converter.errors import UnsupportedCheckpoint

if TYPE_CHECKING:
    import numpy as np

_COMMON = re.compile(
    r"(?:bool|u?int4|float8_(?:e4m3(?:fn|fnuz|b11fnuz)|e5m2|e5m2fnuz))|(?:u?int|float|complex|bfloat)(8|16|32|64|128)"
)
_NOT_AMONG_THEM = frozenset({"float8", "float128", "int128", "uint128", "complex8", "complex16", "complex32"})


def is_common_dtype(name: str) -> bool:
    """Whether the name is one of a dtype that NumPy and ml_dtypes have in every version, found without loading them."""
    return (
        _COMMON.fullmatch(name) is not None
        and name not in _NOT_AMONG_THEM
        and (not name.startswith("bfloat") or name == "bfloat16")
    )


@functools.cache
def item_size(name: str) -> int:
    """Bytes of one element in memory.

    Raises:
      UnsupportedCheckpoint: no such dtype.
    """
    match = _COMMON.fullmatch(name) if is_common_dtype(name) else None
    return int(match[1] or 8) // 8 if match is not None else numpy_dtype(name).itemsize


@functools.cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name, including bfloat16, float8_*, int4 and the other types of ml_dtypes.

    Raises:
      UnsupportedCheckpoint: no such dtype.
    """
    import ml_dtypes  # registers its types with NumPy
    import numpy as np

    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    # NumPy understands more than the names of number types ("f4,f4", ">f4", "object", "void").
    if dtype is not None and dtype.name == name and dtype.kind in "biufcmMV" and dtype.itemsize and not dtype.names:
        return dtype
    raise UnsupportedCheckpoint(
        f"the dtype {name!r} is unknown to NumPy {np.__version__} and ml_dtypes {ml_dtypes.__version__}",
        "Install the version of ml_dtypes that the checkpoint was written with.",
    )


_SUB_BYTE = re.compile(r"u?int[1-7]|float[4-7]_.*")


def is_sub_byte(dtype: str) -> bool:
    """Whether elements of that dtype are smaller than a byte: NumPy and JAX store one to a byte."""
    return _SUB_BYTE.fullmatch(dtype) is not None


def element_bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bytes of each element, uint8 of shape [size, bytes]: what is compared where every bit counts."""
    import numpy as np

    flat = np.ascontiguousarray(array).reshape(-1)
    if is_sub_byte(flat.dtype.name):
        # Stored one to a byte, of which the upper bits mean nothing.
        flat = flat.astype(np.float32)
    return flat.view(np.uint8).reshape(flat.size, flat.dtype.itemsize)


def described(value: Any) -> str:
    """``float32[2,8]`` for arrays of any library, or the name of the type of what is no array."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{getattr(value.dtype, 'name', value.dtype)}[{','.join(map(str, value.shape))}]"
    return type(value).__name__
