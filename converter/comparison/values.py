"""How much two arrays differ: read piece by piece, element by element, and not at all where both are the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.comparison.pairing import Side
from converter.dtypes import element_bits, numpy_dtype
from converter.formats.checkpoint import Progress
from converter.formats.streaming import ARRAYS, leaf_by_leaf, leaf_pieces
from converter.tree import Leaf, LeafKind, LeafSpec
from converter.verification.structure import same_spec
from converter.verification.values import (
    ChunkPairs,
    FileNames,
    aligned,
    chunk_pairs,
    equal_small_chunks,
    same_chunks,
    value_difference,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Distance:
    """How two leaves of one shape differ; those of unlike dtypes in a form that has room for both.

    Attributes:
      elements: how many there are.
      different: how many of them have other bits.
      max_abs: the largest absolute difference; infinite where only one of two elements is a number.
      max_rel: the largest difference in relation to the larger of both elements, 0 to 2 (1 beside no number).
      texts: the two values where they are no arrays.
    """

    elements: int = 0
    different: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    texts: tuple[str, str] | None = None

    def __add__(self, other: Distance) -> Distance:
        return Distance(
            self.elements + other.elements,
            self.different + other.different,
            max(self.max_abs, other.max_abs),
            max(self.max_rel, other.max_rel),
            self.texts or other.texts,
        )

    def __str__(self) -> str:
        if self.texts is not None:
            return " → ".join(self.texts)
        if not self.different:
            return "equal values"
        number = f"{self.different:,} of {self.elements:,}"
        return f"{number} elements, max abs {self.max_abs:.3g}, max rel {self.max_rel:.3g}"

    def to_json(self) -> dict[str, Any]:
        return {
            "elements": self.elements,
            "different": self.different,
            # JSON has no infinity.
            "max_abs": self.max_abs if math.isfinite(self.max_abs) else str(self.max_abs),
            "max_rel": self.max_rel,
            **({"a": self.texts[0], "b": self.texts[1]} if self.texts else {}),
        }


EQUAL = Distance()

_AT_ONCE = 1 << 18
"""Elements that are measured at a time."""


@dataclass(frozen=True, slots=True)
class ValuesCompared:
    """What comparing values came to.

    Attributes:
      distances: by the position of the pair; ``EQUAL`` where no bit differs.
      same_place: how many pairs are the same bytes on disk, which nobody had to read.
      nbytes: bytes of all arrays compared.
    """

    distances: tuple[Distance, ...]
    same_place: int
    nbytes: int


def compare_pairs(pairs: Sequence[tuple[Side, Side]], progress: Progress) -> ValuesCompared:
    """Compares the values of leaves that are alike, or ``measurable``, within the memory budget of the room."""
    files = FileNames()
    leaves = [(left.leaf, right.leaf) for left, right in pairs]
    chunks = [chunk_pairs(*both) for both in leaves]
    same = [None if both is None else _are_same_place(both, files) for both in chunks]
    small = equal_small_chunks(chunks, [known is not None for known in same])

    def at_once(number: int) -> tuple[Distance, bool] | None:
        known = False if number in small else same[number]
        return None if known is None else (EQUAL, known)

    def thoroughly(number: int) -> tuple[Distance, bool]:
        both = chunks[number]
        return EQUAL if both is not None and same_chunks(both) else distance(*leaves[number]), False

    sizes = [left.spec.nbytes for left, _ in leaves]
    found = leaf_by_leaf(sizes, at_once, thoroughly, progress)
    return ValuesCompared(tuple(distance for distance, _ in found), sum(same for _, same in found), sum(sizes))


def _are_same_place(chunks: ChunkPairs, files: FileNames) -> bool | None:
    """Whether both are the same bytes of a file; false where equal bytes stand in an index that was read anyway.

    Returns: None where they have to be compared.
    """
    in_files = False
    for a, b in chunks:
        inside = isinstance(a, bytes) and isinstance(b, bytes)
        if not (a == b if inside else files.same(a, b)):
            return None
        in_files = in_files or not inside
    return in_files


def measurable(left: LeafSpec, right: LeafSpec) -> bool:
    """Whether it means something how far two leaves of unlike dtypes are apart: both are numbers of one shape."""
    return left.shape == right.shape and _are_numbers(left) and _are_numbers(right)


def _are_numbers(spec: LeafSpec) -> bool:
    import numpy as np

    if spec.kind in (LeafKind.ARRAY, LeafKind.NUMPY_SCALAR):
        dtype = numpy_dtype(spec.dtype)
        return dtype.kind in "biufc" or (dtype.kind == "V" and dtype.type is not np.void)  # V are those of ml_dtypes
    return spec.kind is LeafKind.SCALAR


def distance(left: Leaf, right: Leaf) -> Distance:
    """How two leaves that are alike, or measurable, differ; ``EQUAL`` where leaves of one dtype agree in all bits.

    Raises:
      UnreadableCheckpoint: one of them is damaged.
    """
    alike = same_spec(left.spec, right.spec)
    if alike and left.spec.kind not in ARRAYS:
        texts = value_difference(left.fetch(), right.fetch())
        return EQUAL if texts is None else Distance(1, 1, texts=texts)
    form = _dtype(left) if alike else _wide(_dtype(left), _dtype(right))
    found = EQUAL
    for a, b in aligned(_pieces(left, form), _pieces(right, form)):
        found += _measured(_elements(a, form), _elements(b, form))
    return EQUAL if alike and not found.different else found


def _dtype(leaf: Leaf) -> np.dtype[Any]:
    import numpy as np

    if leaf.spec.kind is LeafKind.SCALAR:
        return np.asarray(leaf.fetch()).dtype
    return numpy_dtype("uint32" if leaf.spec.kind is LeafKind.KEY else leaf.spec.dtype)


def _wide(left: np.dtype[Any], right: np.dtype[Any]) -> np.dtype[Any]:
    """The form in which unlike numbers are compared: exact, but for large integers beside other numbers."""
    import numpy as np

    kinds = left.kind + right.kind
    if "c" in kinds:
        return np.dtype(np.complex128)
    if kinds == "uu":
        return np.dtype(np.uint64)
    if set(kinds) <= {"i", "u"} and np.uint64 not in (left, right):
        return np.dtype(np.int64)
    return np.dtype(np.float64)


def _pieces(leaf: Leaf, form: np.dtype[Any]) -> Iterator[Any]:
    """The bytes of all elements as numbers of another form; few at a time, as measuring takes several times as much."""
    import numpy as np

    own = _dtype(leaf)
    size = _AT_ONCE * own.itemsize
    for piece in [np.asarray(leaf.fetch()).tobytes()] if leaf.spec.kind is LeafKind.SCALAR else leaf_pieces((), leaf):
        view = memoryview(piece)
        for start in range(0, len(view), size):
            part = view[start : start + size]
            yield part if own == form else _converted(_elements(part, own), form).view(np.uint8)


def _converted(array: Array, form: np.dtype[Any]) -> Array:
    import numpy as np

    with np.errstate(invalid="ignore"):  # a signalling NaN
        return array.astype(form)


def _elements(data: memoryview, dtype: np.dtype[Any]) -> Array:
    import numpy as np

    return np.frombuffer(data, np.uint8).view(dtype.newbyteorder("<"))


def _measured(a: Array, b: Array) -> Distance:
    import numpy as np

    wrong = np.flatnonzero((element_bits(a) != element_bits(b)).any(axis=-1))
    if not wrong.size:
        return Distance(a.size)
    absolute, largest = _differences(a[wrong], b[wrong])
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(largest > 0, absolute / largest, 0.0)
    relative = np.where(np.isnan(relative), 1.0, relative)  # infinite beside something else: as far as can be
    return Distance(a.size, int(wrong.size), float(absolute.max()), float(relative.max()))


def _differences(a: Array, b: Array) -> tuple[Array, Array]:
    """Absolute differences, and the larger absolute value of each two elements, as float64."""
    import numpy as np

    if a.dtype.kind in "iu":
        # In the type's own width, unsigned: two large integers may differ by one.
        apart = np.maximum(a, b) - np.minimum(a, b)
        magnitude = np.maximum(np.abs(a.astype(np.float64)), np.abs(b.astype(np.float64)))
        return apart.view(f"u{a.dtype.itemsize}").astype(np.float64), magnitude
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    x, y = a.astype(wide), b.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        apart, magnitude = np.abs(x - y), np.maximum(np.abs(x), np.abs(y))
    neither = np.isnan(x) & np.isnan(y)
    apart = np.where(neither, 0.0, np.where(np.isnan(apart), np.inf, apart))
    return apart, np.where(np.isnan(magnitude), np.inf, magnitude)
