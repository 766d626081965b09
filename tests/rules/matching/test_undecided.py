"""What a confirmed guess leaves open, by evidence that knows the right answer."""

from __future__ import annotations

import itertools

import pytest

from converter.rules.matching.by_order import GUESSES, pair_by_order
from tests.rules.matching.boards import Judge, board, paired, trace

KERNEL, BIAS = (4, 4), (4,)


def layers(*names: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{leaf}": shape for name in names for leaf, shape in (("kernel", KERNEL), ("bias", BIAS))}


def truth(**layer: str) -> dict[str, str]:
    return {f"{nnx}/{leaf}": f"{linen}/{leaf}" for nnx, linen in layer.items() for leaf in ("kernel", "bias")}


def test_every_order_of_a_few_layers_is_found():
    linen, nnx = layers("D0", "D1", "D2"), layers("x", "y", "z")
    for order in itertools.permutations(("D0", "D1", "D2")):
        right = truth(**dict(zip("xyz", order, strict=True)))
        around = board(linen, nnx)
        judge = Judge((trace([*linen]), trace([*nnx])), right)
        assert pair_by_order(around, judge.evidence) == ""
        assert paired(around.pieces) == right
        assert judge.asked <= GUESSES


def test_layers_in_a_wrong_order_that_are_too_many_to_try_are_refused():
    names = [f"D{i}" for i in range(12)]
    linen, nnx = layers(*names), layers(*(f"n{i}" for i in range(12)))
    right = truth(**{f"n{11 - i}": name for i, name in enumerate(names)})
    around = board(linen, nnx)
    judge = Judge((trace([*linen]), trace([*nnx])), right)
    assert "does not give the same outputs: 24 are wrong" in pair_by_order(around, judge.evidence)
    assert around.pieces == []
    assert judge.asked <= GUESSES


@pytest.mark.parametrize("silent", [["D0/bias"], ["D0/bias", "D1/bias"], ["D0/kernel", "D0/bias"]])
def test_a_layer_of_which_anything_counts_is_known(silent: list[str]):
    """A single layer on which nothing depends is known as well: no other can stand for it."""
    linen, nnx, right = layers("D0", "D1"), layers("x", "y"), truth(x="D0", y="D1")
    around = board(linen, nnx)
    judge = Judge((trace([*linen]), trace([*nnx])), right, silent)
    assert pair_by_order(around, judge.evidence) == ""
    assert paired(around.pieces) == right


def test_two_layers_on_which_nothing_depends_are_refused():
    linen, nnx, right = layers("D0", "D1", "D2"), layers("x", "y", "z"), truth(x="D0", y="D1", z="D2")
    around = board(linen, nnx)
    judge = Judge((trace([*linen]), trace([*nnx])), right, [*layers("D0", "D2")])
    objection = pair_by_order(around, judge.evidence)
    assert objection.startswith("the outputs do not depend on these variables, so that the calls do not tell which")
    assert "params/D0/kernel" in objection
    assert "params/D1/kernel" not in objection
    assert around.pieces == []


def test_layers_of_other_shapes_do_not_compete():
    linen, nnx = {"a/w": (4,), "b/w": (5,)}, {"x/w": (4,), "y/w": (5,)}
    around = board(linen, nnx)
    judge = Judge((trace([*linen]), trace([*nnx])), {"x/w": "a/w", "y/w": "b/w"}, [*linen])
    assert pair_by_order(around, judge.evidence) == ""


FLAT = {"wq": KERNEL, "bq": BIAS, "wk": KERNEL, "bk": BIAS}


def attention(*blocks: str) -> dict[str, tuple[int, ...]]:
    return {f"{block}/{leaf}": shape for block in blocks for leaf, shape in FLAT.items()}


def test_single_variables_belong_where_others_of_their_layer_do():
    """The biases of keys never count; the block that each stands in is known by its other variables."""
    linen = attention("b_first", "b_second")
    nnx = {text.replace("b_", "n_").replace("/", "/my"): shape for text, shape in linen.items()}
    right = dict(zip(nnx, linen, strict=True))
    around = board(linen, nnx)
    judge = Judge((trace([*linen]), trace([*nnx])), right, ["b_first/bk", "b_second/bk"])
    assert pair_by_order(around, judge.evidence) == ""
    assert paired(around.pieces) == right


def test_two_such_variables_in_one_layer_are_refused():
    linen = {f"{leaf}{i}": shape for i in "ab" for leaf, shape in FLAT.items()}
    nnx = {f"my{text}": shape for text, shape in linen.items()}
    around = board(linen, nnx)
    judge = Judge((trace([*linen]), trace([*nnx])), dict(zip(nnx, linen, strict=True)), ["bka", "bkb"])
    assert pair_by_order(around, judge.evidence).endswith("params/bka, params/bkb")


def test_what_no_call_uses_is_not_paired_by_its_order():
    linen, nnx = layers("D0", "D1"), layers("x", "y")
    around = board(linen, nnx)
    judge = Judge((trace([*layers("D0")]), trace([*layers("x")])), truth(x="D0", y="D1"))
    assert pair_by_order(around, judge.evidence).startswith(
        "the order of use tells nothing: the layers that both calls"
    )
    assert around.pieces == []
    assert judge.asked == 0


def test_a_model_that_cannot_be_called_tells_nothing():
    around = board(layers("D0"), layers("x"))
    judge = Judge((trace(), trace()), {})
    failing = type(judge.evidence)(lambda: "calling the NNX model failed", judge.confirm, judge.silent)
    assert pair_by_order(around, failing) == "the order of use tells nothing: calling the NNX model failed"


def test_where_all_is_paired_nothing_is_asked():
    around = board({}, {"RngCount:dropout/count": ()})
    failing = Judge((trace(), trace()), {}).evidence
    assert pair_by_order(around, type(failing)(lambda: "never called", failing.confirm, failing.silent)) == ""
