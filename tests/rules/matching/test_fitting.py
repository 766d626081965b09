"""What is called alike gets what its shape needs, or does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from converter.models import Model
from converter.rules.matching.board import Board, Piece
from converter.rules.matching.evidence import Evidence
from converter.rules.matching.fitting import fitted, same_shape
from converter.rules.operations import REWRAP, Concat, MoveAxis, Operation, Reshape, Transpose
from converter.tree import LeafKind, LeafSpec, array_spec, empty_spec
from tests.rules.matching.boards import Judge, board, model, name, specs, trace

Shape = Sequence[int]


def operation(around: Board, text: str = "w", evidence: Evidence | None = None) -> Operation | None:
    """What happens to the one variable of that name."""
    piece = fitted(around, Piece((name(text),), (name(text),)), evidence)
    return None if piece is None else piece.to_nnx


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (0, 2)])
def test_equal_shapes_stay(shape: Shape):
    assert operation(board({"w": shape}, {"w": shape})) == REWRAP


@pytest.mark.parametrize(
    ("linen", "nnx"), [((3, 4), (4, 3)), ((3, 4), (12,)), ((3,), (4,)), ((3,), (1, 3)), ((), (1,))]
)
def test_other_shapes_do_not_fit(linen: Shape, nnx: Shape):
    assert operation(board({"w": linen}, {"w": nnx})) is None


def norms(linen: Shape, nnx: Shape, leaf: str = "scale", kind: str = "LayerNorm") -> Board:
    one, other = {f"n/{leaf}": linen}, {f"n/{leaf}": nnx}
    return Board(specs(one), specs(other), model("linen", one, {"n": kind}), model("nnx", other))


@pytest.mark.parametrize("kind", ["LayerNorm", "InstanceNorm", "BatchNorm", "RMSNorm", "GroupNorm"])
@pytest.mark.parametrize("leaf", ["scale", "bias", "mean", "var"])
def test_norms_over_several_axes_are_flat_in_nnx(kind: str, leaf: str):
    assert operation(norms((3, 5), (15,), leaf, kind), f"n/{leaf}") == Reshape((3, 5), (15,))


@pytest.mark.parametrize(
    "around",
    [norms((3, 5), (5, 3)), norms((3, 5), (14,)), norms((3, 5), (15,), "kernel"), norms((3, 5), (15,), kind="Dense")],
)
def test_nothing_else_is_flattened(around: Board):
    assert all(operation(around, f"n/{name_[1][-1]}") is None for name_ in around.linen)


def test_caches_may_be_longer():
    around = board({"cache:k": (2, 8, 4)}, {"cache:k": (2, 16, 4)})
    assert operation(around, "cache:k") == REWRAP
    assert operation(board({"cache:k": (2, 8, 4)}, {"cache:k": (8, 4)}), "cache:k") is None


@pytest.mark.parametrize(
    ("linen", "nnx", "expected"),
    [((3, 7, 5), (7, 3, 5), MoveAxis(0, 1)), ((3, 5, 7), (7, 3, 5), MoveAxis(2, 0)), ((3, 5, 7), (7, 5, 3), None)],
)
def test_one_axis_may_be_elsewhere_inside_of_scan_and_vmap(linen: Shape, nnx: Shape, expected: Operation | None):
    assert operation(board({"w": linen}, {"w": nnx}, lifted=["w"])) == expected
    assert operation(board({"w": linen}, {"w": nnx})) is None


def test_which_of_two_equal_axes_was_moved_is_not_guessed():
    around = board({"w": (3, 3, 5)}, {"w": (5, 3, 3)}, lifted=["w"])
    assert operation(around) == MoveAxis(2, 0)
    assert operation(board({"w": (3, 5, 3, 5)}, {"w": (5, 3, 5, 3)}, lifted=["w"])) is None


@pytest.mark.parametrize(("axes", "expected"), [((1, 0), (1, 0, 2)), ((0, 2), (1, 2, 0)), ((2, 0), (2, 0, 1))])
def test_the_calls_tell_the_axes_of_squares(axes: tuple[int, int], expected: tuple[int, ...]):
    traces = trace(scanned={"w": axes[:1]}), trace(scanned={"w": axes[1:]})
    around = board({"w": (3, 3, 3)}, {"w": (3, 3, 3)}, lifted=["w"])
    assert operation(around, evidence=Judge(traces, {}).evidence) == Transpose(expected)


def test_equal_axes_of_both_calls_change_nothing():
    traces = trace(scanned={"w": (1,)}), trace(scanned={"w": (1,)})
    around = board({"w": (3, 3, 3)}, {"w": (3, 3, 3)}, lifted=["w"])
    assert operation(around, evidence=Judge(traces, {}).evidence) == REWRAP


def test_gates_that_cannot_be_fused():
    linen, nnx = {"c/i": (2, 4), "c/f": (2, 5)}, {"c/dense": (2, 8)}
    around = Board(specs(linen), specs(nnx), model("linen", linen), model("nnx", nnx))
    piece = Piece((name("c/i"), name("c/f")), (name("c/dense"),), Concat(2))
    assert fitted(around, piece, None) is None


def test_unknown_shapes_fit_everything():
    linen = {name("w"): empty_spec("node")}
    around = Board(linen, specs({"w": (3,)}), None, Model("nnx", None, ()))
    piece = Piece((name("w"),), (name("w"),))
    assert fitted(around, piece, None) == piece
    assert same_shape(empty_spec("node"), array_spec("float32", (3,)))


def test_a_random_key_is_no_array_of_its_shape():
    assert not same_shape(LeafSpec(LeafKind.KEY, "threefry2x32", (3,)), array_spec("uint32", (3,)))
