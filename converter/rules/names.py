"""How the two frameworks name the same structure, whatever the model.

* Linen joins the items of a list or dict attribute to its name (``layers_0``); NNX keeps a level (``layers/0``).
* The gate ``if`` of Linen's ``LSTMCell`` is ``if_`` in NNX, where attributes cannot be Python keywords.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from converter.paths import Path

_GATES = frozenset({"ii", "ig", "io", "hi", "hf", "hg", "ho"})
"""The other children of an LSTM cell, equal on both sides (flax/linen/recurrent.py, flax/nnx/nn/recurrent.py)."""

LINEN_GATE, NNX_GATE = "if", "if_"
_ALL_GATES = _GATES | {LINEN_GATE, NNX_GATE}


def lstm_cells(paths: Iterable[Path]) -> frozenset[Path]:
    """The paths of all LSTM cells whose gates stand separately, told by the complete set of their gates."""
    children: dict[Path, set[str]] = {}
    for path in paths:
        if may_have_gates(path):
            for depth, key in enumerate(path):
                if key in _ALL_GATES:
                    children.setdefault(path[:depth], set()).add(key)
    return frozenset(node for node, gates in children.items() if gates >= _GATES and ({LINEN_GATE, NNX_GATE} & gates))


def may_have_gates(path: Path) -> bool:
    """Whether a key is called as a gate is; few are, which saves looking at the others."""
    return not _ALL_GATES.isdisjoint(path)


def rename_gate(path: Path, cells: frozenset[Path], old: str, new: str) -> Path:
    """The path with the gate ``old`` of any LSTM cell called ``new``."""
    if not cells:
        return path
    return tuple(new if key == old and path[:depth] in cells else key for depth, key in enumerate(path))


def joined_numbers(path: Path) -> Path:
    """The path with every number joined to the key before it: ``layers/0/kernel`` becomes ``layers_0/kernel``."""
    joined: list[str] = []
    for key in path:
        if _is_number(key) and joined:
            joined[-1] = f"{joined[-1]}_{key}"
        else:
            joined.append(str(key))
    return tuple(joined)


def spellings(*paths: Path) -> tuple[Path, ...]:
    """What the same path may be called: as it is, and with its numbers joined; each spelling once."""
    plain = [tuple(str(key) for key in path) for path in paths]
    return tuple(dict.fromkeys((*plain, *(joined_numbers(path) for path in plain))))


_NUMBERED = re.compile(r"(?P<stem>.*\D)_(?P<number>0|[1-9][0-9]*)")


def without_numbers(path: Path) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """The path without some of its item numbers, and these numbers; every choice of at least one of them.

    ``block_0/layers/2/kernel`` becomes ``block/layers/2/kernel`` (0), ``block_0/layers/kernel`` (2), and
    ``block/layers/kernel`` (0, 2).
    """
    numbered: list[tuple[int, tuple[str, ...], int]] = []
    for position, key in enumerate(path):
        found = _NUMBERED.fullmatch(key)
        if _is_number(key):
            numbered.append((position, (), int(key)))
        elif found is not None:
            numbered.append((position, (found["stem"],), int(found["number"])))
    for count in range(1, min(len(numbered), 3) + 1):
        for chosen in itertools.combinations(numbered, count):
            keys: list[tuple[str, ...]] = [(str(key),) for key in path]
            for position, stem, _ in chosen:
                keys[position] = stem
            yield tuple(itertools.chain.from_iterable(keys)), tuple(number for _, _, number in chosen)


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit()
