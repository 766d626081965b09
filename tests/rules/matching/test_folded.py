"""Loops seen as one stacked layer, so that a loop can be compared with a scan of another name."""

from __future__ import annotations

from converter.rules.matching.board import Piece
from converter.rules.matching.folded import FoldedBoard, foldings
from converter.rules.operations import REWRAP, Stack, Unstack
from tests.rules.matching.boards import Judge, board, name, path, trace

LOOP = {f"Block_{i}/w": (4, 5) for i in range(12)} | {"head/w": (4, 5)}
SCAN = {"decoder/w": (4, 12, 5), "out/w": (4, 5)}
TRACES = trace([*LOOP]), trace([*SCAN])


def evidence():
    return Judge(TRACES, {}).evidence


def test_a_loop_of_linen_is_folded():
    (view,) = foldings(board(LOOP, SCAN), TRACES)
    assert {text for _, (*_, text) in view.free_linen} == {"w"}
    assert list(view.free_linen) == [name("Block/w"), name("head/w")]
    assert view.linen[name("Block/w")].shape == (12, 4, 5)
    assert view.linen_uses == {name("Block/w"): 0, name("head/w"): 12} | {
        name(text): place for place, text in enumerate(LOOP)
    }


def test_what_was_folded_is_made_of_all_layers_in_numeric_order():
    around = board(LOOP, SCAN)
    (view,) = foldings(around, TRACES)
    part = around.free_parts[name("decoder/w"),]
    piece = view.unfolded(Piece((name("Block/w"),), part.nnx), part, evidence())
    assert piece is not None
    assert piece.linen == tuple(name(f"Block_{i}/w") for i in range(12))
    assert piece.to_nnx == Stack(12, 1)


def test_a_loop_of_nnx_is_folded():
    linen, nnx = SCAN, {text.replace("Block_", "layers/"): shape for text, shape in LOOP.items()}
    around = board(linen, nnx)
    traces = trace([*linen]), trace([*nnx])
    (view,) = foldings(around, traces)
    part = view.free_parts[name("layers/w"),]
    piece = view.unfolded(Piece((name("decoder/w"),), part.nnx), part, evidence())
    assert piece is not None
    assert piece.nnx == tuple(name(f"layers/{i}/w") for i in range(12))
    assert piece.to_nnx == Unstack(12, 1)


def test_what_is_not_folded_stays():
    around = board(LOOP, SCAN)
    (view,) = foldings(around, TRACES)
    part = around.free_parts[name("out/w"),]
    piece = Piece((name("head/w"),), part.nnx, REWRAP)
    assert view.unfolded(piece, part, evidence()) is piece


def test_a_square_whose_axis_no_call_shows_is_not_unfolded():
    linen, nnx = {f"b_{i}/w": (3, 3) for i in range(3)}, {"s/w": (3, 3, 3)}
    around = board(linen, nnx)
    (view,) = foldings(around, TRACES)
    part = around.free_parts[name("s/w"),]
    assert view.unfolded(Piece((name("b/w"),), part.nnx), part, evidence()) is None
    shown = Judge((trace(), trace(scanned={"s/w": (2,)})), {}).evidence
    piece = view.unfolded(Piece((name("b/w"),), part.nnx), part, shown)
    assert piece is not None
    assert piece.to_nnx == Stack(3, 2)


def test_only_layers_that_are_alike_and_complete_are_folded():
    for linen in (
        {"b_0/w": (3,)},  # a single one
        {"b_0/w": (3,), "b_2/w": (3,)},  # a gap
        {"b_1/w": (3,), "b_2/w": (3,)},  # not from 0
        {"b_0/w": (3,), "b_1/w": (4,)},  # other shapes
        {"b_0/w": (3,), "b_1/v": (3,)},  # other names
    ):
        assert list(foldings(board(linen, {}), TRACES)) == []


def test_every_choice_of_loops_is_offered_the_largest_first():
    linen = {f"{stem}_{i}/w": (3,) for stem in "ab" for i in range(2)}
    views = [list(view.free_linen) for view in foldings(board(linen, {}), TRACES)]
    single = [name("a_0/w"), name("a_1/w"), name("b_0/w"), name("b_1/w")]
    assert views == [[name("a/w"), name("b/w")], [name("a/w"), *single[2:]], [*single[:2], name("b/w")]]


def test_of_nested_loops_the_outer_one_is_folded():
    linen = {f"a_{i}/b_{j}/w": (5,) for i in range(2) for j in range(3)}
    (view,) = foldings(board(linen, {}), TRACES)
    assert [(text[1], spec.shape) for text, spec in view.free_linen.items()] == [
        (path(f"a/b_{j}/w"), (2, 5)) for j in range(3)
    ]


def test_nothing_has_to_be_folded():
    around = board(LOOP, SCAN)
    view = FoldedBoard(around, (), TRACES, in_linen=True)
    assert (view.free_linen, view.free_parts) == (around.free_linen, around.free_parts)
