"""Where the computation leaves a choice and both models are not alike enough to choose freely: choices to be tried.

Each is a pair of parts that may be the same; what follows from it is paired as always. Running both models says which
choice is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from converter.rules.align.canonical import Sketch
from converter.rules.align.levels import Level, Pair, paired
from converter.rules.align.views import Region

TRIES = 24
"""So many choices are tried at most; each costs a run of both models."""


def choices(linen: Sketch, nnx: Sketch, known: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Complete sets of pairs, those in the order of first use first.

    Args:
      linen, nnx: both calls.
      known: what is paired already.
    """
    pairing = paired(linen, nnx, known=known)
    pairs = [*known, *(replace(pair, level=Level.TRIED) for pair in pairing.pairs[len(known) :])]
    class_ = _smallest(pairing.open, pairs)
    if class_ is None:
        yield pairs
        return
    members, others = class_
    for other in others:
        yield from choices(linen, nnx, [*pairs, Pair(members[0], other, Level.TRIED)])


def _smallest(
    open_: Sequence[tuple[list[Region], list[Region]]], pairs: Sequence[Pair]
) -> tuple[list[Region], list[Region]] | None:
    """What is least open among the classes that have as many members in both models."""
    done = {region for pair in pairs for region in (pair.linen, pair.nnx)}
    free = [([r for r in left if r not in done], [r for r in right if r not in done]) for left, right in open_]
    return min((both for both in free if len(both[0]) == len(both[1]) > 0), key=lambda both: len(both[0]), default=None)
