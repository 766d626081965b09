"""What running the two models tells: asked for only where names and shapes leave a question open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from converter.errors import ModelError
from converter.models.trace import Trace
from converter.rules.matching.board import Piece


@dataclass(frozen=True, slots=True)
class Evidence:
    """Questions to both models; each is worked out when it is asked, once.

    Attributes:
      linen, nnx: how a call of the model uses its variables.
      confirm: runs both models on random values translated by these pieces (all of them); empty if the outputs agree,
        else how they differ.
    """

    linen: Callable[[], Trace]
    nnx: Callable[[], Trace]
    confirm: Callable[[Sequence[Piece]], str]

    def traces(self) -> tuple[Trace, Trace] | str:
        """How both calls use their variables; why there are no such calls, if one of them fails."""
        try:
            return self.linen(), self.nnx()
        except ModelError as error:
            return error.message
