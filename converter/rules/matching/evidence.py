"""What running the two models tells: asked for only where names and shapes leave a question open."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from converter.models.program import Program
from converter.models.trace import Trace
from converter.rules.link import Name
from converter.rules.matching.board import Piece


@dataclass(frozen=True, slots=True)
class Measured:
    """How near one output of both models was in the runs that confirmed a correspondence.

    Attributes:
      name, spec: which output, and its dtype and shape as it was computed.
      gap: the largest difference.
      limit: the largest difference that would have passed.
    """

    name: str
    spec: str
    gap: float
    limit: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """Questions to both models; each is worked out when it is asked, once.

    Attributes:
      traces: how the calls of the Linen and of the NNX model use their variables; why there are no such calls, if one
        of them fails.
      confirm: runs both models on random values translated by these pieces (all of them); empty if the outputs agree,
        else how they differ.
      silent: for groups of Linen's variables the positions of those on which the outputs do not depend, so that it
        makes no difference what they are paired with. To be asked after a confirmation.
      programs: the traced call of the Linen model, and those of the NNX model in the ways in which it may be called
        (evaluating, and as it is); why there are none, if a call fails.
      shows: whether the outputs depend on the variables at all. To be asked after a confirmation.
      measured: how near the outputs were. To be asked after a confirmation.
    """

    traces: Callable[[], tuple[Trace, Trace] | str]
    confirm: Callable[[Sequence[Piece]], str]
    silent: Callable[[Sequence[Sequence[Name]]], Collection[int]]
    programs: Callable[[], tuple[Program, Sequence[Program]] | str] = lambda: "the models cannot be called"
    shows: Callable[[], bool] = lambda: True
    measured: Callable[[], Sequence[Measured]] = tuple
