"""Trees whose paths have every kind of key, and texts that a flat name does not tell apart."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from converter.paths import IndexKey, IntKey, Key, Path, TupleKey
from converter.tree import Tree
from tests.building import leaf_of

ODD_TEXTS = st.sampled_from(
    ["", ".", "/", "a.b", "a", "b", "0", "1", "-1", "007", "a#2", "__metadata__", "é\n", '"', "[0]"]
)
KEYS: st.SearchStrategy[Key] = st.one_of(
    ODD_TEXTS,
    st.integers(-2, 11).map(lambda number: IntKey(str(number))),
    st.integers(0, 3).map(lambda number: IndexKey(str(number))),
    st.sampled_from(["('a',)", "('a', 'b.c')"]).map(TupleKey),
)
PATHS = st.dictionaries(st.lists(KEYS, max_size=4).map(tuple), st.sampled_from(["array", "dict", "none", "number"]))


def tree_at(paths: dict[Path, str]) -> Tree:
    """A tree with leaves at those of the paths that go together."""
    kept: list[Path] = []
    for path in paths:
        if all(path[: len(other)] != other and other[: len(path)] != path for other in kept):
            kept.append(path)
    made = {"array": np.ones(1, np.int8), "dict": {}, "none": None, "number": 3}
    return Tree((path, leaf_of(made[paths[path]])) for path in kept)
