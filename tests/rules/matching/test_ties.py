"""Weights that are tied on one side only: found where exactly one variable can be the original."""

from __future__ import annotations

from converter.rules.matching.board import Piece
from converter.rules.matching.ties import with_ties
from converter.rules.operations import Agree, Copies, Reshape, Rewrap, Transpose
from tests.rules.matching.boards import board, name, trace

EMBEDDING = {"emb/embedding": (5, 3), "mlp/kernel": (3, 3)}
PIECES = [Piece((name(text),), (name(text),)) for text in EMBEDDING]
TWICE = trace(["emb/embedding", "mlp/kernel", "emb/embedding"])
ONCE = trace(["emb/embedding", "mlp/kernel"])


def test_a_transposed_copy_in_nnx():
    tied = with_ties(board(EMBEDDING, EMBEDDING | {"head/kernel": (3, 5)}), PIECES, TWICE, ONCE)
    assert tied is not None
    copies = Piece(PIECES[0].linen, (*PIECES[0].nnx, name("head/kernel")), Copies((Rewrap(), Transpose())))
    assert tied == [copies, PIECES[1]]


def test_a_transposed_copy_in_linen():
    tied = with_ties(board(EMBEDDING | {"head/kernel": (3, 5)}, EMBEDDING), PIECES, ONCE, TWICE)
    assert tied is not None
    agree = Piece((*PIECES[0].linen, name("head/kernel")), PIECES[0].nnx, Agree((Rewrap(), Transpose())))
    assert tied == [agree, PIECES[1]]


def test_a_copy_of_the_same_shape():
    tied = with_ties(board(EMBEDDING, EMBEDDING | {"out/embedding": (5, 3)}), PIECES, TWICE, ONCE)
    assert tied is not None
    assert tied[0].to_nnx == Copies((Rewrap(), Rewrap()))


def test_what_is_used_once_has_no_copy():
    assert with_ties(board(EMBEDDING, EMBEDDING | {"head/kernel": (3, 5)}), PIECES, ONCE, ONCE) is None


def test_a_shape_that_nothing_has():
    assert with_ties(board(EMBEDDING, EMBEDDING | {"head/kernel": (5, 4)}), PIECES, TWICE, ONCE) is None


def test_two_possible_originals_are_no_tie():
    linen = {"a/embedding": (5, 3), "b/embedding": (5, 3)}
    pieces = [Piece((name(text),), (name(text),)) for text in linen]
    both = trace([*linen, *linen])
    assert with_ties(board(linen, linen | {"head/kernel": (3, 5)}), pieces, both, trace()) is None


def test_copies_stay_in_their_collection():
    found = with_ties(board(EMBEDDING, EMBEDDING | {"cache:head/kernel": (3, 5)}), PIECES, TWICE, ONCE)
    assert found is None


def test_an_array_that_is_changed_is_not_tied_as_well():
    pieces = [Piece(PIECES[0].linen, PIECES[0].nnx, Reshape((5, 3), (5, 3))), PIECES[1]]
    assert with_ties(board(EMBEDDING, EMBEDDING | {"head/kernel": (3, 5)}), pieces, TWICE, ONCE) is None


def test_the_state_that_nnx_makes_itself_needs_no_original():
    nnx = EMBEDDING | {"RngKey:dropout/rngs/key": (), ":conv/mask": (3, 3)}
    assert with_ties(board(EMBEDDING, nnx), PIECES, ONCE, ONCE) == PIECES


def test_the_hidden_bias_of_a_gru_needs_no_counterpart():
    linen = EMBEDDING | {"cell/hn/bias": (3,)}
    assert with_ties(board(linen, EMBEDDING), PIECES, ONCE, ONCE) == PIECES
