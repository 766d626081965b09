"""How Flax's own layers store their variables in the two frameworks: the recipes.

Most layers use one name and one shape in both. The others are listed here, by what the sources of Flax say
(flax/linen/recurrent.py, flax/nnx/nn/recurrent.py, flax/linen/normalization.py, flax/nnx/nn/normalization.py):

* Recurrent cells: Linen has one layer for each gate, NNX fuses those of ``OptimizedLSTMCell`` and ``GRUCell`` along the
  last axis, in the order of the gates below. Linen's ``OptimizedLSTMCell`` stores what its ``LSTMCell`` stores.
* ``SpectralNorm`` and ``WeightNorm``: what Linen keeps under one key with slashes (``layer_instance/kernel/u``) NNX
  keeps in a dict under a tuple (``('kernel', 'u')``), which checkpoints write as its text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from converter.paths import Path
from converter.rules.link import Name
from converter.rules.operations import REWRAP, Concat, Operation
from converter.training_state import PARAMS, RNG_COLLECTIONS

if TYPE_CHECKING:
    from converter.models.layers import Layer

Role = Name
"""Collection of a variable and its path inside its layer, as Linen writes them."""


class Part(NamedTuple):
    """Variables of NNX that belong together, and what they are in Linen.

    Attributes:
      root: the path of the layer in NNX.
      kind: which recipe it follows ("lstm", "gru", "simple"); "" for a layer that stores the same in both.
      roles: the Linen variables, relative to the layer.
      nnx: the NNX variables.
      to_nnx: makes these from those.
    """

    root: Path
    kind: str
    roles: tuple[Role, ...]
    nnx: tuple[Name, ...]
    to_nnx: Operation = REWRAP

    @property
    def is_own_state(self) -> bool:
        """Whether it is state that an NNX module makes by itself: random state, or an array that is no Variable."""
        return not self.roles[0][0] or self.roles[0][0] in RNG_COLLECTIONS


# Recurrent cells -----------------------------------------------------------------------------------------------------

LSTM_GATES = ("i", "f", "g", "o")
GRU_GATES = ("r", "z", "n")


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to store a recurrent cell.

    Attributes:
      kind: cells of one kind compute the same.
      children: NNX child by the Linen children that it holds, end to end along the last axis.
    """

    kind: str
    children: Mapping[tuple[str, ...], str]

    def parts(self, root: Path, leaves: Mapping[Path, Name]) -> Iterable[Part]:
        """The parts of a cell, of the variables of NNX below its path (by their path there)."""
        for linen_children, child in self.children.items():
            for inside, name in leaves.items():
                if inside[:1] == (child,):
                    roles = tuple((name[0] or PARAMS, (linen_child, *inside[1:])) for linen_child in linen_children)
                    fused = Concat(len(roles)) if len(roles) > 1 else REWRAP
                    yield Part(root, self.kind, roles, (name,), fused)


def _separate(gates: Iterable[str]) -> dict[tuple[str, ...], str]:
    """NNX attributes cannot be Python keywords: the gate ``if`` is ``if_`` there."""
    return {(gate,): "if_" if gate == "if" else gate for gate in gates}


NNX_CELLS: Mapping[str, Cell] = {
    "LSTMCell": Cell("lstm", _separate(f"{side}{gate}" for side in "ih" for gate in LSTM_GATES)),
    "OptimizedLSTMCell": Cell(
        "lstm", {tuple(f"{side}{gate}" for gate in LSTM_GATES): f"dense_{side}" for side in "ih"}
    ),
    "GRUCell": Cell("gru", {tuple(f"{side}{gate}" for gate in GRU_GATES): f"dense_{side}" for side in "ih"}),
    "SimpleCell": Cell("simple", {("i",): "dense_i", ("h",): "dense_h"}),
}

LINEN_CELLS: Mapping[str, tuple[str, ...]] = {
    "LSTMCell": ("LSTMCell", "OptimizedLSTMCell"),
    "OptimizedLSTMCell": ("OptimizedLSTMCell", "LSTMCell"),
    "GRUCell": ("GRUCell",),
    "SimpleCell": ("SimpleCell",),
}
"""NNX cells that compute what a Linen cell computes; the one of the same name first."""

GRU_HIDDEN_BIAS = ("hn", "bias")
"""The one variable of Linen's GRUCell that NNX's has no place for."""

GRU_REASON = "nnx.GRUCell has no bias in its hidden-to-hidden layers"


# Layers that exist on one side only ----------------------------------------------------------------------------------

NO_COUNTERPART: Mapping[str, Mapping[str, str]] = {
    "linen": dict.fromkeys(
        ("ConvLocal", "MGUCell", "ConvLSTMCell", "Fp8DotGeneralOp", "Fp8DirectDotGeneralOp", "NANOOFp8DotGeneralOp",
         "Fp8DotGeneral", "Fp8Einsum"),
        "flax.nnx has no such layer",
    ),
    "nnx": {
        "GroupedQueryAttention": "attention of flax.linen has as many key and value heads as query heads",
        "RoPE": "flax.linen has no such layer",
    },
}  # fmt: skip
"""Why a layer of one framework cannot be converted by itself."""


# Weight normalisation ------------------------------------------------------------------------------------------------

WRAPPED = "layer_instance"
"""The attribute of SpectralNorm and WeightNorm that holds the layer they wrap; it opens Linen's keys with slashes."""

_NNX_STATISTICS = "batch_stats", "scales"


def slashed_key(path: Path) -> Path | None:
    """What Linen calls a variable that NNX keeps under a tuple; None for all others.

    ``sn/batch_stats/('kernel', 'u')`` becomes ``sn/"layer_instance/kernel/u"``, ``wn/scales/('kernel',)`` becomes
    ``wn/"layer_instance/kernel/scale"``.
    """
    if len(path) < 2 or path[-2] not in _NNX_STATISTICS or not path[-1].startswith("("):
        return None
    try:
        keys = ast.literal_eval(path[-1])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(keys, tuple) or not all(isinstance(key, str) for key in keys):
        return None
    ending = () if path[-2] == "batch_stats" else ("scale",)
    return (*path[:-2], "/".join((WRAPPED, *keys, *ending)))


def tuple_key(name: Name) -> Path | None:
    """The reverse of ``slashed_key``: the path in NNX of a Linen variable under a key with slashes; None for others."""
    collection, path = name
    segments = path[-1].split("/") if path else []
    if len(segments) < 3:
        return None
    if collection == "batch_stats" and segments[-1] in ("u", "sigma"):
        return (*path[:-1], "batch_stats", str(tuple(segments[1:])))
    if collection == PARAMS and segments[-1] == "scale":
        return (*path[:-1], "scales", str(tuple(segments[1:-1])))
    return None


# Parts ---------------------------------------------------------------------------------------------------------------


def nnx_parts(
    nnx: Iterable[Name], nnx_layers: Sequence[Layer], linen: Iterable[Name], linen_layers: Sequence[Layer]
) -> list[Part]:
    """All variables of NNX in parts, in order.

    Where the layers of NNX are not known (a checkpoint without its model), those of Linen tell what stands at the same
    path; where neither is, complete sets of Linen's gates do.
    """
    nnx = list(nnx)
    cells = {layer.path: NNX_CELLS[layer.kind] for layer in nnx_layers if layer.kind in NNX_CELLS}
    if not nnx_layers:
        cells = _cells_like_linen(nnx, linen, linen_layers)
    if not cells:
        return [_plain(name) for name in nnx]
    below = _below(cells, nnx)
    in_cells = {part.nnx[0]: part for root, leaves in below.items() for part in cells[root].parts(root, leaves)}
    return [in_cells.get(name) or _plain(name) for name in nnx]


def _plain(name: Name) -> Part:
    collection, path = name
    slashed = slashed_key(path)
    if slashed is None:
        return Part(path[:-1], "", ((collection, path[-1:]),), (name,))
    # Without a model the place tells the collection; WeightNorm's scales are plain arrays before flax 0.12.9 even with.
    own = "batch_stats" if path[-2] == "batch_stats" else PARAMS
    return Part(path[:-2], "", ((collection or own, slashed[-1:]),), (name,))


def _below(roots: Iterable[Path], names: Iterable[Name]) -> dict[Path, dict[Path, Name]]:
    """The variables below each of these paths, by their path there."""
    found: dict[Path, dict[Path, Name]] = {root: {} for root in roots}
    depths = {len(root) for root in found}
    for name in names:
        for depth in depths:
            if name[1][:depth] in found:
                found[name[1][:depth]][name[1][depth:]] = name
    return found


_GATES = {
    "LSTMCell": frozenset(f"{side}{gate}" for side in "ih" for gate in LSTM_GATES),
    "GRUCell": frozenset(f"{side}{gate}" for side in "ih" for gate in GRU_GATES),
}


def gated_cells(paths: Iterable[Path]) -> dict[Path, str]:
    """The Linen cells that complete sets of gates give away, by path."""
    gates = frozenset().union(*_GATES.values())
    children: dict[Path, set[str]] = {}
    for path in paths:
        for depth, key in enumerate(path):
            if key in gates:
                children.setdefault(path[:depth], set()).add(key)
    return {node: kind for node, found in children.items() for kind, wanted in _GATES.items() if found >= wanted}


def _cells_like_linen(nnx: Sequence[Name], linen: Iterable[Name], linen_layers: Sequence[Layer]) -> dict[Path, Cell]:
    from converter.rules.names import spellings

    kinds = {layer.path: layer.kind for layer in linen_layers if layer.kind in LINEN_CELLS}
    if not linen_layers:
        kinds = gated_cells(path for _, path in linen)
    if not kinds:
        return {}
    children: dict[Path, set[str]] = {}
    for _, path in nnx:
        for depth, key in enumerate(path):
            children.setdefault(path[:depth], set()).add(key)
    cells: dict[Path, Cell] = {}
    for node, found in children.items():
        kind = next((kinds[spelled] for spelled in spellings(node) if spelled in kinds), "")
        for candidate in LINEN_CELLS.get(kind, ()):
            if found >= set(NNX_CELLS[candidate].children.values()):
                cells[node] = NNX_CELLS[candidate]
    return cells
