"""Variables that neither call uses: nothing but their names tells which is which."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from converter.paths import Path
from converter.rules.align.correspondence import Group
from converter.rules.link import Name
from converter.tree import LeafSpec


def paired_by_name(
    linen: Mapping[Name, LeafSpec],
    nnx: Mapping[Name, LeafSpec],
    groups: Sequence[Group],
    names: tuple[Sequence[Name], Sequence[Name]],
) -> list[tuple[Name, Name]]:
    """Pairs of unused variables of one collection and shape, each the other's best guess, and by far.

    Args:
      linen, nnx: the variables that are not used.
      groups: what is known of those that are; layers that correspond take their other variables along.
      names: the names of the variables of both calls by their numbers.
    """
    layers = _layers(groups, names)
    scores: dict[Name, dict[Name, float]] = defaultdict(dict)
    for left, spec in linen.items():
        for right, other in nnx.items():
            if (left[0], spec.shape) == (right[0], other.shape):
                scores[left][right] = _likeness(left[1], right[1], layers)
    found = []
    for left, candidates in scores.items():
        right = max(candidates, key=lambda name: candidates[name])
        rivals = [score for name, score in candidates.items() if name != right]
        rivals += [own[right] for name, own in scores.items() if name != left and right in own]
        if all(candidates[right] > score for score in rivals):
            found.append((left, right))
    return found


def _layers(groups: Sequence[Group], names: tuple[Sequence[Name], Sequence[Name]]) -> dict[Path, Path]:
    """For each layer of Linen the layer of NNX in which most of its variables are."""
    votes: dict[Path, Counter[Path]] = defaultdict(Counter)
    for group in groups:
        for left in group.linen:
            for right in group.nnx:
                votes[names[0][left][1][:-1]][names[1][right][1][:-1]] += 1
    return {layer: votes[layer].most_common(1)[0][0] for layer in votes}


def _likeness(linen: Path, nnx: Path, layers: Mapping[Path, Path]) -> float:
    """How much two names have in common; a layer that is known counts more than all of that."""
    left, right = ("/".join(map(str, path)).lower() for path in (linen, nnx))
    known = any(
        layers.get(linen[:depth]) == nnx[: len(layers.get(linen[:depth], ()))] for depth in range(1, len(linen))
    )
    return 2.0 * known + float(linen[-1] == nnx[-1]) + difflib.SequenceMatcher(None, left, right).ratio()
