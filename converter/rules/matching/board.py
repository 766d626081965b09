"""The state of finding out which variable is which: what is paired, and what is still free on either side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from converter.paths import Path
from converter.rules.layers import Part, nnx_parts
from converter.rules.link import Name
from converter.rules.names import lstm_cells, may_have_gates, spellings
from converter.rules.operations import REWRAP, Operation
from converter.tree import LeafSpec

if TYPE_CHECKING:
    from converter.models import Model


@dataclass(slots=True)
class Piece:
    """Variables of Linen that are variables of NNX, and the operation that makes these from those.

    Attributes:
      confidence: how sure that is, where it was read off the computation; empty where names tell.
    """

    linen: tuple[Name, ...]
    nnx: tuple[Name, ...]
    to_nnx: Operation = REWRAP
    confidence: str = ""


class Board:
    """Both sides of a conversion while they are being paired.

    Args:
      linen, nnx: all variables with their specs.
      linen_model, nnx_model: what is known of the models; a template tells names and specs, but no layers.

    Attributes:
      free_linen: the variables of Linen that are not paired yet, in order.
      free_parts: the same for NNX, in the units that its layers store them in, by their names.
      pieces: what is paired.
      linen_collections: the collections of Linen's variables.
      trainable: paths of NNX's parameters, as far as a model tells.
      lstm_cells: where LSTM cells stand, told by their gates.
    """

    def __init__(
        self,
        linen: Mapping[Name, LeafSpec],
        nnx: Mapping[Name, LeafSpec],
        linen_model: Model | None,
        nnx_model: Model | None,
    ) -> None:
        self.linen, self.nnx = linen, nnx
        self.linen_model, self.nnx_model = linen_model, nnx_model
        variables = nnx_model.variables if nnx_model else ()
        self._linen_paths = linen_paths(nnx_model)
        parts = nnx_parts(nnx, nnx_model.layers if nnx_model else (), linen, linen_model.layers if linen_model else ())
        self.free_linen: dict[Name, LeafSpec] = dict(linen)
        self._own_linen = {name: name for name in linen}
        self._parts = {part.nnx: part for part in parts}
        self.free_parts = dict(self._parts)
        self.pieces: list[Piece] = []
        self.linen_collections = list(dict.fromkeys(collection for collection, _ in linen))
        self.trainable = frozenset(variable.path for variable in variables if variable.trainable)
        self.lstm_cells = lstm_cells(
            path for _, nnx_path in nnx if may_have_gates(nnx_path) for path in spellings(nnx_path)
        )

    def pair(self, part: Part, linen: Iterable[Name]) -> None:
        """Pairs a part with the Linen variables of its roles."""
        self.settle(Piece(tuple(linen), part.nnx, part.to_nnx))

    def settle(self, piece: Piece) -> None:
        """Takes note of a piece; its variables are no longer free."""
        # The keys of the model itself: a module behind the bridge of flax.nnx has ints and tuples among them.
        self.pieces.append(replace(piece, linen=tuple(self._own_linen.get(name, name) for name in piece.linen)))
        self.give_up(piece.linen, piece.nnx)

    def give_up(self, linen: Iterable[Name], nnx: Iterable[Name]) -> None:
        """Pairs these variables no more, because they are paired or because a problem names them."""
        for name in linen:
            self.free_linen.pop(name, None)
        for name in nnx:
            self.free_parts.pop((name,), None)

    def free(self, piece: Piece) -> None:
        """Takes a piece apart again."""
        self.free_linen |= {name: self.linen[name] for name in piece.linen}
        self.free_parts |= {piece.nnx: self._parts[piece.nnx]}

    def is_free(self, piece: Piece) -> bool:
        """Whether nothing of it has been paired otherwise."""
        return all(name in self.free_linen for name in piece.linen) and piece.nnx in self.free_parts

    @property
    def knows_types(self) -> bool:
        """Whether the types of NNX's Variables are known, so that an array without one is none."""
        return self.nnx_model is not None and self.nnx_model.typed

    def linen_path(self, path: Path) -> Path:
        """What Linen calls a path of NNX: items of lists and dicts are joined to the attribute that holds them."""
        return self._linen_paths.get(path, path)

    def wrapper_path(self, path: Path) -> Path:
        """What Linen calls the SpectralNorm or WeightNorm that keeps this variable in a dict, under a tuple.

        The dict is joined to its key as any other, unless only names are known.
        """
        return wrapper_path(self.linen_path(path), path)


def linen_paths(nnx_model: Model | None) -> dict[Path, Path]:
    """What Linen calls the variables of a model of NNX."""
    return {variable.path: variable.linen_path for variable in nnx_model.variables} if nnx_model else {}


def wrapper_path(called: Path, path: Path) -> Path:
    """What Linen calls the wrapper of a variable in a dict of NNX: see ``Board.wrapper_path``."""
    return called[:-2] if called[-1] == path[-1] else called[:-1]
