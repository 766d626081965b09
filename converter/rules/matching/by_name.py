"""Pairing variables that have the same name, as far as the two frameworks can."""

from __future__ import annotations

from collections.abc import Iterator

from converter.paths import Path
from converter.rules.layers import Part
from converter.rules.link import Name
from converter.rules.matching.board import Board
from converter.rules.names import LINEN_GATE, NNX_GATE, rename_gate, spellings
from converter.training_state import COLLECTIONS, PARAMS, RNG_COLLECTIONS


def pair_by_name(board: Board) -> None:
    """Pairs every part of NNX with the first set of free Linen variables that is called like it."""
    for part in list(board.free_parts.values()):
        for candidate in part_names(board, part):
            if all(name in board.free_linen for name in candidate):
                board.pair(part, candidate)
                break


def is_custom(collection: str) -> bool:
    """Whether a collection is of the user's making."""
    return bool(collection) and collection not in (*COLLECTIONS, *RNG_COLLECTIONS)


def part_spellings(board: Board, part: Part) -> tuple[Path, ...]:
    """What Linen may call the variable of a part that is one variable; for all others, where their layer may stand."""
    path = part.nnx[0][1]
    if part.kind:
        inside = len(path) - len(part.root)
        return spellings(part.root, board.linen_path(path)[:-inside])
    renamed = part.roles[0][1]
    if renamed != path[-1:]:  # a key with slashes, in the place of two of NNX's
        # The bridge of flax.nnx to Linen keeps NNX's own keys.
        return spellings((*part.root, *renamed), (*board.wrapper_path(path), *renamed), path)
    return spellings(path, board.linen_path(path))


def part_names(board: Board, part: Part) -> Iterator[tuple[Name, ...]]:
    """Sets of Linen names that a part may have, the most likely first."""
    for spelled in part_spellings(board, part):
        if part.kind:
            yield tuple((collection, (*spelled, *inside)) for collection, inside in part.roles)
            continue
        for path in dict.fromkeys((spelled, rename_gate(spelled, board.lstm_cells, NNX_GATE, LINEN_GATE))):
            yield from (((collection, path),) for collection in _collections(board, part))


def _collections(board: Board, part: Part) -> list[str]:
    """The collections of Linen that a variable of NNX may belong to."""
    own = part.roles[0][0]
    if not own:  # an array that is no Variable has none; that of a template may have any
        return [] if board.knows_types else board.linen_collections
    # Linen's collection need not be called as the Variable's class, and a subclass of Param (LoRAParam) may be a plain
    # parameter in hand-written Linen.
    custom = [name for name in board.linen_collections if is_custom(name)] if is_custom(own) else []
    trainable = [PARAMS] if part.nnx[0][1] in board.trainable else []
    return list(dict.fromkeys((own, *custom, *trainable)))
