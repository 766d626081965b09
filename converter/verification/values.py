"""Has every leaf of the destination the very bits that the plan makes from the source?

The cheapest proof that suffices is taken. Where source and destination name the same bytes on disk there is nothing to
compare. Where their chunks have one form, the bytes on disk are compared as they are. Where a leaf was made anew, what
was written is read again and compared with the digest taken on its way, or with the leaf made once more.
"""

from __future__ import annotations

import enum
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converter import scratch
from converter.dtypes import described, element_bits
from converter.formats.checkpoint import Progress
from converter.formats.chunks import SMALL, length_of, same_bytes, small_chunks
from converter.formats.streaming import ARRAYS, digest, leaf_by_leaf, leaf_pieces
from converter.grid import Chunk, Form
from converter.paths import Path, format_path
from converter.planning.plan import Step
from converter.stored import Extent
from converter.tree import Leaf, LeafKind, Tree
from converter.verification.structure import Difference, same_spec


class Proof(enum.Enum):
    """How two leaves were found to be equal; the value is how people read it."""

    __hash__ = object.__hash__  # there is one for every leaf, and that of Enum is written in Python

    REFERENCE = "the source's own bytes on disk"
    BYTES = "bytes on disk compared"
    DIGEST = "read again and compared with the digest of what was written"
    VALUES = "made again and compared"


Outcome = Proof | tuple[str, str]
"""How a leaf is known to be what it should be, or how it differs, as (expected, found)."""


@dataclass(frozen=True, slots=True)
class ValuesResult:
    """The outcome of comparing leaves bit for bit.

    Attributes:
      leaves: how many leaves were compared.
      nbytes: how many bytes of arrays.
      differences: the leaves that differ.
      proofs: leaves and bytes by the way in which they were found to be equal.
      reader: the library that read the destination, where it was not this program's own code.
    """

    leaves: int
    nbytes: int
    differences: tuple[Difference, ...]
    proofs: Mapping[Proof, tuple[int, int]] = field(default_factory=dict)
    reader: str = ""

    @property
    def ok(self) -> bool:
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "leaves": self.leaves,
            "bytes": self.nbytes,
            "proofs": {
                proof.name.lower(): {"leaves": leaves, "bytes": nbytes}
                for proof, (leaves, nbytes) in self.proofs.items()
            },
            "reader": self.reader or None,
            "differences": [difference.to_json() for difference in self.differences],
        }


def compare_values(
    steps: Iterable[Step], destination: Tree, progress: Progress, digests: Mapping[Path, int] | None = None
) -> ValuesResult:
    """Compares every leaf of the destination with what the plan makes of the source.

    Leaves that the destination does not have are left to ``compare_structure``.

    Args:
      digests: crc32c of the bytes of arrays as they were written, where that is known.
    """
    leaves = dict(destination.items())
    compared = [
        (step, found)
        for step in steps
        if (found := leaves.get(step.target)) is not None and step.spec.kind is not LeafKind.EMPTY
    ]
    chunks = [chunk_pairs(step, found) for step, found in compared]
    same = _same_places(chunks)
    written = [digests.get(step.target) if digests else None for step, _ in compared]
    found_small = {
        **dict.fromkeys(equal_small_chunks(chunks, same), Proof.BYTES),
        **dict.fromkeys(_small_as_written(compared, chunks, written), Proof.DIGEST),
    }

    def at_once(number: int) -> Outcome | None:
        return Proof.REFERENCE if same[number] else found_small.get(number)

    def thoroughly(number: int) -> Outcome:
        return _proof(*compared[number], chunks[number], written[number])

    sizes = [step.spec.nbytes for step, _ in compared]
    outcomes = leaf_by_leaf(sizes, at_once, thoroughly, progress)
    differences: list[Difference] = []
    proofs: dict[Proof, tuple[int, int]] = {}
    for (step, _), size, outcome in zip(compared, sizes, outcomes, strict=True):
        if isinstance(outcome, Proof):
            count, together = proofs.get(outcome, (0, 0))
            proofs[outcome] = count + 1, together + size
        else:
            differences.append(Difference(format_path(step.target), *outcome))
    return ValuesResult(len(compared), sum(sizes), tuple(differences), proofs)


ChunkPairs = list[tuple[Chunk | None, Chunk | None]]


def chunk_pairs(expected: Leaf, found: Leaf) -> ChunkPairs | None:
    """The chunks of both, one beside the other, where equal chunks mean equal arrays."""
    spec = expected.spec
    if spec.kind not in ARRAYS or not same_spec(spec, found.spec):
        return None
    source, target = expected.grid(), found.grid()
    if source is None or target is None or not _same_form(source.form, target.form):
        return None
    stored = {**source.chunks, **target.chunks}  # what neither has is the same in both
    return [(source.chunks.get(index), target.chunks.get(index)) for index in stored]


def _same_places(chunks: Sequence[ChunkPairs | None]) -> list[bool]:
    """Which leaves are the same bytes on disk."""
    files = FileNames()
    return [pairs is not None and all(itertools.starmap(files.same, pairs)) for pairs in chunks]


def equal_small_chunks(chunks: Sequence[ChunkPairs | None], known: Sequence[bool]) -> set[int]:
    """The leaves (by number) of one small chunk that is equal in both files; those on disk are read together.

    Args:
      known: which leaves nobody asks about.
    """
    small = {
        number: pair
        for number, pairs in enumerate(chunks)
        if not known[number] and (pair := _small_pair(pairs)) is not None
    }
    left, right = (_contents([pair[side] for pair in small.values()]) for side in (0, 1))
    return {number for number, a, b in zip(small, left, right, strict=True) if a == b}


def _small_pair(pairs: ChunkPairs | None) -> tuple[Chunk, Chunk] | None:
    """The only chunks of both arrays, where they are small."""
    if pairs is None or len(pairs) != 1:
        return None
    left, right = pairs[0]
    if left is None or right is None or max(length_of(left), length_of(right)) > SMALL:
        return None
    return left, right


def _small_as_written(
    compared: Sequence[tuple[Step, Leaf]], chunks: Sequence[ChunkPairs | None], written: Sequence[int | None]
) -> set[int]:
    """The leaves (by number) of one small chunk that has the digest of what was written; they are read together."""
    small = {
        number: chunk
        for number, ((step, found), pairs, known) in enumerate(zip(compared, chunks, written, strict=True))
        if pairs is None and known is not None and (chunk := _small_array(step, found)) is not None
    }
    contents = _contents(list(small.values()))
    return {number for number, data in zip(small, contents, strict=True) if digest([data]) == written[number]}


def _small_array(step: Step, found: Leaf) -> Chunk | None:
    """The bytes of a small array, or where they are; None where that is not one chunk of them."""
    spec = found.spec
    if spec.nbytes > SMALL or spec.kind not in ARRAYS or not same_spec(step.spec, spec):
        return None
    grid = found.grid()
    chunks = grid.bare_chunks() if grid is not None else None
    return chunks[0] if chunks and len(chunks) == 1 and length_of(chunks[0]) == spec.nbytes else None


def _contents(chunks: Sequence[Chunk]) -> Iterator[bytes]:
    """The bytes of small chunks, a few of them in memory at a time."""
    read = small_chunks([chunk for chunk in chunks if isinstance(chunk, Extent)])
    return (next(read) if isinstance(chunk, Extent) else chunk for chunk in chunks)


def same_chunks(pairs: ChunkPairs) -> bool:
    """Whether all of them are equal as they are on disk."""
    return all(left is right is None or (left and right and same_bytes(left, right)) for left, right in pairs)


def _proof(step: Step, found: Leaf, pairs: ChunkPairs | None, written: int | None) -> Outcome:
    """How a leaf is known to be what it should be, or how it differs, as (expected, found)."""
    if step.spec.kind not in ARRAYS or not same_spec(step.spec, found.spec):
        return value_difference(step.fetch(), found.fetch()) or Proof.VALUES
    if pairs is not None:
        if same_chunks(pairs):
            return Proof.BYTES
    elif written is not None and digest(leaf_pieces(step.target, found)) == written:
        return Proof.DIGEST
    elif _same_pieces(step, found):
        return Proof.VALUES
    return value_difference(step.fetch(), found.fetch()) or Proof.VALUES


@functools.lru_cache(maxsize=4096)
def _same_form(left: Form, right: Form) -> bool:
    """Whether equal chunks mean equal arrays, and unequal ones most likely another value."""
    return (
        ((left.axes, left.order) == (right.axes, right.order) or _same_cut(left, right))
        and left.encoding.dtype == right.encoding.dtype
        and (left.encoding == right.encoding or (left.encoding.is_raw and right.encoding.is_raw))
    )


def _same_cut(left: Form, right: Form) -> bool:
    """Whether chunks, and the elements in them, follow one another in the same way."""

    def cuts(form: Form) -> list[tuple[int, int, int]]:
        return [(axis.size, axis.chunk, axis.inner) for axis in form.axes]

    return cuts(left) == cuts(right) and right.runs(*(axis for axis in left.order if left.axes[axis].chunk > 1))


class FileNames:
    """Which names mean the same file."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}

    def same(self, left: Chunk | None, right: Chunk | None) -> bool:
        """Whether two chunks are the same bytes on disk (or none)."""
        if not isinstance(left, Extent) or not isinstance(right, Extent):
            return left is right is None
        return left[1:] == right[1:] and self._identity(left.file) == self._identity(right.file)

    def _identity(self, file: str) -> tuple[int, int]:
        if file not in self._known:
            found = os.stat(file)
            self._known[file] = found.st_dev, found.st_ino
        return self._known[file]


def _same_pieces(step: Step, found: Leaf) -> bool:
    """Whether two arrays have the same bytes, piece by piece."""
    left = leaf_pieces(step.target, step)
    right = leaf_pieces(step.target, found)
    return all(bytes(a) == bytes(b) for a, b in aligned(left, right))


def aligned(left: Iterator[Any], right: Iterator[Any]) -> Iterator[tuple[memoryview, memoryview]]:
    """Pieces of the same lengths from both; what one has more than the other comes beside nothing."""
    a = b = memoryview(b"")
    while True:
        a, b = (each if len(each) else memoryview(next(rest, b"")) for each, rest in ((a, left), (b, right)))
        size = min(len(a), len(b))
        if not size:
            if len(a) or len(b):
                yield a, b
            return
        yield a[:size], b[:size]
        a, b = a[size:], b[size:]


def value_difference(expected: Any, found: Any) -> tuple[str, str] | None:
    """How two values differ, as (expected, found); None where their bits are equal. NaNs are compared by their bits."""
    import numpy as np

    if not hasattr(expected, "dtype") and not hasattr(found, "dtype"):
        # repr tells 1 from True and from 1.0, and makes NaN equal to itself.
        return None if repr(expected) == repr(found) else (repr(expected), repr(found))
    left, right = np.asarray(expected), np.asarray(found)
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return described(left), described(right)
    passed = number = 0
    first: tuple[int, Any, Any] | None = None
    for a, b in scratch.pairs(left, right):
        wrong = np.flatnonzero((element_bits(a) != element_bits(b)).any(axis=-1))
        if first is None and wrong.size:
            first = passed + int(wrong[0]), a[wrong[0]], b[wrong[0]]
        passed, number = passed + a.size, number + wrong.size
    if first is None:
        return None
    index = ",".join(map(str, np.unravel_index(first[0], left.shape)))
    return f"{first[1]} at [{index}]", f"{first[2]} there, and {number} of {left.size} elements differ"
