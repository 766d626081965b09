"""NNX's random state: how its leaves are told from all others.

An ``nnx.RngStream`` holds a typed PRNG key in ``key`` (an ``RngKey``) and a uint32 counter in ``count`` (an
``RngCount``). Linen keeps no random state in a checkpoint, and the same key gives another dropout mask in the other
framework, so there is nothing to translate: the leaves are dropped or, on request, kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from converter.paths import Path
from converter.training_state import RNG_COLLECTIONS
from converter.tree import Leaf, LeafKind, LeafSpec

RNG_KEY, RNG_COUNT = RNG_COLLECTIONS


def random_state_paths(leaves: Mapping[Path, Leaf]) -> dict[Path, str]:
    """The paths that are random state beyond doubt, with their Variable type.

    ``key`` and ``count`` side by side, a PRNG key (typed, or its raw uint32 words) and a uint32; with or without the
    ``value`` of their Variables.
    """
    keys = [path for path, leaf in leaves.items() if _without_wrapper(path)[-1:] == ("key",) and _is_key(leaf.spec)]
    if not keys:
        return {}
    counters = {plain: path for path in leaves if (plain := _without_wrapper(path))[-1:] == ("count",)}
    found: dict[Path, str] = {}
    for path in keys:
        counter = counters.get((*_without_wrapper(path)[:-1], "count"))
        if counter is not None and leaves[counter].spec.dtype == "uint32":
            found[path] = RNG_KEY
            found[counter] = RNG_COUNT
    return found


def _without_wrapper(path: Path) -> Path:
    return path[:-1] if path and path[-1] in ("value", "raw_value") else path


def _is_key(spec: LeafSpec) -> bool:
    raw = spec.dtype == "uint32" and spec.shape[-1:] in ((2,), (4,))
    return spec.kind is LeafKind.KEY or raw
