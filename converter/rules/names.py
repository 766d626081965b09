"""Names that differ between the frameworks by rule, whatever the model.

* Linen joins the items of a list or dict attribute to its name (``layers_0``); NNX keeps a level (``layers/0``).
* The gate ``if`` of Linen's ``LSTMCell`` is ``if_`` in NNX, where attributes cannot be Python keywords.
"""

from __future__ import annotations

from collections.abc import Iterable

from converter.tree import Path

_GATES = frozenset({"ii", "ig", "io", "hi", "hf", "hg", "ho"})
"""The other children of an LSTM cell, equal on both sides (flax/linen/recurrent.py, flax/nnx/nn/recurrent.py)."""

LINEN_GATE, NNX_GATE = "if", "if_"


def lstm_cells(paths: Iterable[Path]) -> frozenset[Path]:
    """The paths of all LSTM cells whose gates stand separately, told by the complete set of their gates."""
    children: dict[Path, set[str]] = {}
    for path in paths:
        for depth, key in enumerate(path):
            if key in _GATES or key in (LINEN_GATE, NNX_GATE):
                children.setdefault(path[:depth], set()).add(key)
    return frozenset(node for node, gates in children.items() if gates >= _GATES and ({LINEN_GATE, NNX_GATE} & gates))


def rename_gate(path: Path, cells: frozenset[Path], old: str, new: str) -> Path:
    """The path with the gate ``old`` of any LSTM cell called ``new``."""
    return tuple(new if key == old and path[:depth] in cells else key for depth, key in enumerate(path))


def joined_numbers(path: Path) -> Path:
    """The path with every number joined to the key before it: ``layers/0/kernel`` becomes ``layers_0/kernel``."""
    joined: list[str] = []
    for key in path:
        if key.isascii() and key.isdigit() and joined:
            joined[-1] = f"{joined[-1]}_{key}"
        else:
            joined.append(str(key))
    return tuple(joined)
