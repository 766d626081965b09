"""Axes that neither shapes nor scans tell are settled by running both models, or refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from converter.models.trace import Trace
from converter.rules.link import Name
from converter.rules.matching.axes import settle_axes
from converter.rules.matching.board import Board, Piece
from converter.rules.matching.by_name import pair_by_name
from converter.rules.matching.evidence import Evidence
from converter.rules.operations import REWRAP, MoveAxis, Operation
from tests.rules.matching.boards import board, name, trace

SQUARE = {"w": (3, 3, 3), "b": (3, 3)}


class Asked:
    """Evidence to which one operation is right, for all variables at once."""

    def __init__(self, right: Operation | None, traces: tuple[Trace, Trace], silent: Sequence[int] = ()) -> None:
        self.count = 0
        self._right = right
        self._unseen = silent
        self.evidence = Evidence(lambda: traces, self._confirm, self._silent)

    def _confirm(self, pieces: Sequence[Piece]) -> str:
        self.count += 1
        return "" if all(piece.to_nnx == self._right for piece in pieces) else "they differ"

    def _silent(self, groups: Sequence[Sequence[Name]]) -> Sequence[int]:
        return self._unseen


def paired(lifted: Sequence[str] = ("w", "b")) -> Board:
    around = board(SQUARE, SQUARE, lifted)
    pair_by_name(around)
    return around


@pytest.mark.parametrize("right", [REWRAP, MoveAxis(0, 1), MoveAxis(1, 0), MoveAxis(-1, 0), MoveAxis(1, -1)])
def test_the_order_that_gives_the_same_outputs_is_taken(right: Operation):
    around = paired()
    assert settle_axes(around, Asked(right, (trace(), trace())).evidence) == ""
    assert [piece.to_nnx for piece in around.pieces] == [right, right]


def test_if_no_order_does_nothing_is_changed():
    around = paired()
    objection = settle_axes(around, Asked(None, (trace(), trace())).evidence)
    assert objection.startswith("the shapes of params/w, params/b allow for several orders of their axes")
    assert objection.endswith("they differ")
    assert all(piece.to_nnx == REWRAP for piece in around.pieces)


def test_outputs_that_do_not_depend_on_a_variable_say_nothing_of_its_axes():
    asked = Asked(REWRAP, (trace(), trace()), silent=[1])
    assert "do not depend on the order of the axes" in settle_axes(paired(), asked.evidence)


def test_models_are_not_run_where_there_is_no_doubt():
    asked = Asked(None, (trace(), trace()))
    assert settle_axes(paired(lifted=()), asked.evidence) == ""
    shown = trace(scanned={"w": (1,), "b": (1,)})
    assert settle_axes(paired(), Asked(None, (shown, shown)).evidence) == ""
    different = board({"w": (3, 4, 5)}, {"w": (3, 4, 5)}, ["w"])
    pair_by_name(different)
    assert settle_axes(different, asked.evidence) == ""
    assert asked.count == 0


def test_only_what_is_in_doubt_is_turned():
    shown = trace(scanned={"b": (0,)})
    around = paired()
    asked = Asked(REWRAP, (shown, shown))
    assert settle_axes(around, asked.evidence) == ""
    assert {piece.linen[0] for piece in around.pieces} == {name("w"), name("b")}
    assert asked.count == 1
