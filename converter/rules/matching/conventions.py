"""Names on the other side where no model of it is given: those that Flax itself would choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from converter.paths import Path
from converter.rules.layers import (
    GRU_HIDDEN_BIAS,
    LINEN_CELLS,
    NNX_CELLS,
    Part,
    Role,
    nnx_parts,
    tuple_key,
)
from converter.rules.link import Name
from converter.rules.matching.board import Piece, linen_paths, wrapper_path
from converter.rules.names import LINEN_GATE, NNX_GATE, lstm_cells, rename_gate
from converter.rules.operations import REWRAP, Concat
from converter.tree import LeafSpec

if TYPE_CHECKING:
    from converter.models import Model


def linen_pieces(nnx: Mapping[Name, LeafSpec], nnx_model: Model | None) -> list[Piece]:
    """Pieces for all variables of NNX, with the names that Linen would give them."""
    called = linen_paths(nnx_model)
    cells = lstm_cells(called.get(path, path) for _, path in nnx)
    return [
        Piece(tuple([_linen_name(called, part, role, cells) for role in part.roles]), part.nnx, part.to_nnx)
        for part in nnx_parts(nnx, nnx_model.layers if nnx_model else (), (), ())
    ]


def _linen_name(names: Mapping[Path, Path], part: Part, role: Role, cells: frozenset[Path]) -> Name:
    collection, inside = role
    path = part.nnx[0][1]
    called = tuple(map(str, names.get(path, path)))
    if part.kind:
        return collection, (*called[: len(part.root) - len(path)], *inside)
    if inside != path[-1:]:  # a key with slashes
        return collection, (*wrapper_path(called, path), *inside)
    return collection, rename_gate(called, cells, NNX_GATE, LINEN_GATE)


def nnx_pieces(linen: Mapping[Name, LeafSpec], linen_model: Model | None) -> list[Piece]:
    """Pieces for all variables of Linen, with the names that NNX would give them."""
    layers = linen_model.layers if linen_model else ()
    roots = {layer.path: layer.kind for layer in layers if layer.kind in LINEN_CELLS}
    wrappers = {layer.path: layer.wraps for layer in layers if layer.wraps is not None}
    cells = lstm_cells(path for _, path in linen)
    items = linen_model.items if linen_model else {}
    pieces: dict[Name, Piece] = {}
    for name in linen:
        path = name[1]
        root = next((path[:depth] for depth in range(len(path)) if path[:depth] in roots), None) if roots else None
        if root is not None:
            piece = _cell_piece(linen, name, root, roots[root])
        else:
            piece = Piece((name,), ((name[0], _nnx_path(name, wrappers, cells)),))
        if piece is not None and items:
            piece = replace(piece, nnx=tuple((collection, _with_items(path, items)) for collection, path in piece.nnx))
        if piece is not None:
            pieces[name] = piece
    return list(pieces.values())


def _cell_piece(linen: Mapping[Name, LeafSpec], name: Name, root: Path, kind: str) -> Piece | None:
    """The piece of the child of a cell that this variable is the first member of; None for all other members."""
    collection, path = name
    child, *inside = path[len(root) :]
    if (child, *inside) == GRU_HIDDEN_BIAS:
        return None
    for linen_children, nnx_child in NNX_CELLS[kind].children.items():
        if child == linen_children[0]:
            names = tuple((collection, (*root, other, *inside)) for other in linen_children)
            if all(other in linen for other in names):
                operation = Concat(len(names)) if len(names) > 1 else REWRAP
                return Piece(names, ((collection, (*root, nnx_child, *inside)),), operation)
        elif child in linen_children:
            return None
    return Piece((name,), (name,))


def _nnx_path(name: Name, wrappers: Mapping[Path, Path], cells: frozenset[Path]) -> Path:
    path = name[1]
    for wrapper, wrapped in wrappers.items():
        inner = (*wrapper, "layer_instance")
        if path[: len(wrapped)] == wrapped and wrapped != inner:
            path = (*inner, *path[len(wrapped) :])
    return tuple_key((name[0], path)) or rename_gate(path, cells, LINEN_GATE, NNX_GATE)


def _with_items(path: Path, items: Mapping[Path, Path]) -> Path:
    """The path with the items of lists and dicts below the attribute that holds them, where the model tells of any."""
    depth = next((depth for depth in range(len(path), 0, -1) if path[:depth] in items), 0)
    return (*items[path[:depth]], *path[depth:]) if depth else path
