"""What an optimizer's state cannot follow, and what it is then refused for; what is filled in, and what stands alone.

Models are trained in both frameworks at once, see training.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from converter.errors import EXIT_REFUSED, ConversionRefused
from converter.models import nnx_model_from_factory
from converter.paths import format_path
from converter.planning.planner import make_plan
from converter.planning.request import Request
from converter.rules.language.rule_file import read_rules
from tests.building import globs

from . import support
from .in_memory import alone, both_models, converted, planned, recorded, values_alone
from .on_disk import known_to_convert, save, saved_linen, states_of
from .optimizers import ADAFACTOR, OPTIMIZERS
from .reshaped_pairs import GRU, GRU_BIAS, PAIRS, PIECES, RULES, TIED, initial
from .training import (
    Nnx,
    assert_same,
    gradients,
    new_nnx,
    new_train_state,
    step_linen,
    step_nnx,
    to_nnx,
    trained_both,
    tree_of_linen,
    tree_of_nnx,
    values_of,
)

SAME_SHAPES = ("names", "loop and list")
"""The pairs that differ in names alone."""

# Factored moments ---------------------------------------------------------------------------------------------------


def combined(some: Collection[str], others: Collection[str], quickly: Collection[tuple[str, str]]) -> list[Any]:
    """Every combination; those that are not listed show nothing that the listed ones do not, and are slow tests."""
    every = list(itertools.product(some, others))
    assert set(quickly) <= set(every)
    return [pytest.param(*both, marks=() if both in quickly else pytest.mark.slow) for both in every]


@pytest.mark.parametrize(("name", "optimizer"), combined(SAME_SHAPES, ADAFACTOR, [("names", "factored")]))
def test_factored_moments_follow_new_names(name: str, optimizer: str) -> None:
    pair, tx = PAIRS[name], ADAFACTOR[optimizer]()
    linen, of_nnx = trained_both(pair, tx, initial(pair), steps=1)
    tree, other = tree_of_linen(linen), tree_of_nnx(of_nnx)
    assert_same(values_of(converted(tree, "nnx", pair)), values_of(other))
    assert_same(values_of(converted(recorded(other), "linen", pair, optimizer=tx)), values_of(tree))


NO_NEW_SHAPE = "factored moments (Adafactor) can follow a new name, but not a new shape"


OTHER_SHAPES = [
    pytest.param(name, marks=() if name in ("scan and list", "lstm") else pytest.mark.slow)
    for name in PAIRS
    if name not in SAME_SHAPES
]


@pytest.mark.parametrize("name", OTHER_SHAPES)
def test_factored_moments_do_not_follow_new_shapes(name: str) -> None:
    """All of them are named, each once, and nothing else is a problem."""
    pair, tx = PAIRS[name], ADAFACTOR["factored"]()
    arrays = initial(pair)
    params = [move for move in pair.moves if move.linen[0].startswith("params/")]
    for tree, to in (
        (tree_of_linen(new_train_state(arrays, tx)), "nnx"),
        (tree_of_nnx(new_nnx(pair, tx, pair.to_nnx(arrays))), "linen"),
    ):
        options = {} if to == "nnx" else {"optimizer": tx}
        plan = planned(tree, to, pair, **options)
        assert all(NO_NEW_SHAPE in problem for problem in plan.problems)
        moved = [move for move in params if not _is_renaming(move)]
        assert len(plan.problems) == 3 * len(moved)  # v_row, v_col and v
        for move in moved:
            names = move.linen if to == "nnx" else move.nnx
            fields = [problem for problem in plan.problems if _ends_in(problem, names[0].removeprefix("params/"))]
            assert len(fields) == 3, names
        assert "--params-only" in plan.advice
        assert converted(tree, to, pair, drop=globs("opt_state/**"))


def _is_renaming(move: Any) -> bool:
    return len(move.linen) == len(move.nnx) == 1 and "head" in move.linen[0]


def _ends_in(problem: str, name: str) -> bool:
    """Whether the names before the colon are of this variable's last keys; numbers and gates may be folded."""
    first = problem.partition(": ")[0].split("/")
    return first[-1] == name.rsplit("/", maxsplit=1)[-1] and _folded(first[-2], name.split("/")[-2])


def _folded(found: str, key: str) -> bool:
    return found == key or (found.startswith("{") and key in found.strip("{}").split(","))


def test_the_refusal_has_its_own_exit_code(tmp_path: Path) -> None:
    pair, tx = PAIRS["lstm"], ADAFACTOR["factored"]()
    source = saved_linen(tmp_path, new_train_state(initial(pair), tx), "orbax")
    with pytest.raises(
        ConversionRefused, match=r"opt_state/0/v_row/rnn/cell/\{hi,hf,hg,ho\}/kernel: float32\[4\]"
    ) as e:
        support.convert(source, tmp_path / "nnx", "nnx", **known_to_convert(pair))
    assert e.value.exit_code == EXIT_REFUSED == 3
    support.convert(source, tmp_path / "nnx", "nnx", drop=["opt_state/**"], **known_to_convert(pair))


# Layers of which some are masked out --------------------------------------------------------------------------------


def half_frozen() -> optax.GradientTransformation:
    """Adam for the layers from the sixth on, nothing for those below."""

    def labels(params: Any) -> Any:
        def label(path: Any, _: Any) -> str:
            text = jax.tree_util.keystr(path)
            return "freeze" if any(f"layers_{i}'" in text or f"[{i}]" in text for i in range(6)) else "train"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.multi_transform({"train": optax.adam(1e-2), "freeze": optax.set_to_zero()}, labels)


PARTLY = "only some of the parameters that become one have it (the others are masked out)"


def test_a_stack_of_which_some_are_masked_out_is_refused() -> None:
    pair, tx = PAIRS["loop and scan"], half_frozen()
    plan = planned(tree_of_linen(new_train_state(initial(pair), tx)), "nnx", pair)
    assert [problem.partition(": ")[0] for problem in plan.problems] == [
        f"opt_state/inner_states/train/inner_state/0/{moment}/layers_{{0…11}}/{leaf}"
        for moment in ("mu", "nu")
        for leaf in ("dense/bias", "dense/kernel", "norm/bias", "norm/scale")
    ]
    assert all(PARTLY in problem for problem in plan.problems)


def test_masked_layers_that_stay_apart_follow() -> None:
    pair, tx = PAIRS["loop and list"], half_frozen()
    linen = tree_of_linen(new_train_state(initial(pair), tx))
    there = converted(linen, "nnx", pair)
    assert_same(values_of(converted(recorded(there), "linen", pair, optimizer=tx)), values_of(linen))
    names = {format_path(path) for path in recorded(there)}
    moments = "optimizer/opt_state/inner_states/train/inner_state/0/mu/layers/{}/dense/kernel/value"
    assert [moments.format(i) in names for i in range(12)] == 6 * [False] + 6 * [True]


# The bias that only Linen's GRU has ---------------------------------------------------------------------------------


def trained_gru(tx: Any) -> tuple[Any, Nnx]:
    """Trained as far as both sides can be: the bias of Linen's own stays zero."""
    arrays = initial(GRU)
    arrays[GRU_BIAS] = np.zeros_like(arrays[GRU_BIAS])
    linen, of_nnx = new_train_state(arrays, tx), new_nnx(GRU, tx, GRU.to_nnx(arrays))
    for step in range(2):
        given = gradients(arrays, step)
        linen = step_linen(linen, {**given, GRU_BIAS: np.zeros_like(given[GRU_BIAS])})
        step_nnx(of_nnx, to_nnx(GRU, given))
    return linen, of_nnx


GIVEN = combined(
    ("momentum", "multi_transform", "frozen"),
    ("both models", "the target's model"),
    [("momentum", "both models"), ("frozen", "the target's model")],
)


@pytest.mark.parametrize(("optimizer", "given"), GIVEN)
def test_an_invented_bias_has_moments_of_zero_where_a_bias_has_any(optimizer: str, given: str) -> None:
    """Also where kernels are in one group of the optimizer and biases in another, or in none."""
    tx = OPTIMIZERS[optimizer]()
    linen, of_nnx = trained_gru(tx)
    tree, other = tree_of_linen(linen), tree_of_nnx(of_nnx)
    known = both_models(GRU)
    of_linen, of_nnx_alone = ({side: known[side]} for side in ("linen_model", "nnx_model"))
    if given == "both models":
        of_linen = of_nnx_alone = {}
    assert_same(values_of(converted(recorded(other), "linen", GRU, optimizer=tx, **of_linen)), values_of(tree))
    assert_same(values_of(converted(tree, "nnx", GRU, **of_nnx_alone)), values_of(other))


def test_a_bias_that_was_trained_is_refused_with_its_moments() -> None:
    arrays = initial(GRU)
    arrays[GRU_BIAS] = np.zeros_like(arrays[GRU_BIAS])
    tree = tree_of_linen(step_linen(new_train_state(arrays, optax.adam(1e-2)), gradients(arrays, 0)))
    plan = planned(tree, "nnx", GRU)
    plan.check()
    with pytest.raises(ConversionRefused) as error:
        plan.check_values()
    refused = [line.partition(": ")[0] for line in error.value.problems]
    moments = [f"opt_state/0/{moment}/rnn/cell/hn/bias" for moment in ("mu", "nu")]
    assert refused == [GRU_BIAS, *moments]
    assert "--allow-lossy" in error.value.advice

    lossy = planned(tree, "nnx", GRU, allow_lossy=True)
    lossy.check()
    lossy.check_values()
    assert [format_path(drop.source) for drop in lossy.drops] == [GRU_BIAS, *moments]


def test_moments_alone_forbid_it_too() -> None:
    """With a learning rate of zero the bias itself has not moved."""
    arrays = initial(GRU)
    arrays[GRU_BIAS] = np.zeros_like(arrays[GRU_BIAS])
    state = step_linen(new_train_state(arrays, optax.adam(0.0)), gradients(arrays, 0))
    with pytest.raises(ConversionRefused, match="opt_state/0/mu/rnn/cell/hn/bias") as error:
        planned(tree_of_linen(state), "nnx", GRU).check_values()
    assert GRU_BIAS not in [line.partition(": ")[0] for line in error.value.problems]


# Weights that are tied on one side only -----------------------------------------------------------------------------

TIE = "the optimizer state of weights that are tied on one side only cannot be shared out"


def test_moments_of_weights_tied_on_one_side_are_refused() -> None:
    arrays, tx = initial(TIED), optax.adam(1e-2)
    linen, of_nnx = tree_of_linen(new_train_state(arrays, tx)), tree_of_nnx(new_nnx(TIED, tx, TIED.to_nnx(arrays)))
    there = planned(linen, "nnx", TIED)
    assert [problem.partition(": ")[0] for problem in there.problems] == [
        "opt_state/0/mu/embed/embedding",
        "opt_state/0/nu/embed/embedding",
    ]
    back = planned(of_nnx, "linen", TIED, optimizer=tx)
    assert len(back.problems) == 2
    assert all(TIE in problem for problem in (*there.problems, *back.problems))
    parameters = converted(linen, "nnx", TIED, params_only=True)
    assert_same(values_of(parameters), {f"{path}/value": leaf for path, leaf in TIED.to_nnx(arrays).items()})
    assert_same(values_of(converted(of_nnx, "linen", TIED, params_only=True)), arrays)


def test_what_keeps_no_moments_of_tied_weights_is_converted() -> None:
    arrays, tx = initial(TIED), optax.sgd(1e-2)
    linen, of_nnx = tree_of_linen(new_train_state(arrays, tx)), tree_of_nnx(new_nnx(TIED, tx, TIED.to_nnx(arrays)))
    assert_same(values_of(converted(linen, "nnx", TIED)), values_of(of_nnx))
    assert_same(values_of(converted(of_nnx, "linen", TIED, optimizer=tx)), values_of(linen))


# Rules --------------------------------------------------------------------------------------------------------------


def trained_pieces(tx: Any) -> tuple[Any, Nnx]:
    """Trained alike; what one side has alone stays as it was filled in."""
    arrays = {**initial(PIECES), "params/shift": np.ones(4, "float32")}
    offset = np.zeros(2, "float32")
    linen = new_train_state(arrays, tx)
    of_nnx = new_nnx(PIECES, tx, {**PIECES.to_nnx(arrays), "offset": offset})
    for step in range(2):
        given = gradients(arrays, step)
        linen = step_linen(linen, {**given, "params/shift": np.zeros(4, "float32")})
        step_nnx(of_nnx, {**to_nnx(PIECES, given), "offset": offset})
    return linen, of_nnx


@pytest.mark.parametrize(("optimizer", "given"), GIVEN)
def test_rules_drive_the_optimizer(optimizer: str, given: str) -> None:
    """Stacked, concatenated, rearranged and filled in; a filled parameter is one, its moments are zero."""
    tx = OPTIMIZERS[optimizer]()
    linen, of_nnx = trained_pieces(tx)
    tree, other = tree_of_linen(linen), tree_of_nnx(of_nnx)
    known = both_models(PIECES)
    sides = {side: {} if given == "both models" else {side: known[side]} for side in ("linen_model", "nnx_model")}
    there = converted(tree, "nnx", PIECES, rules=read_rules(RULES), **sides["nnx_model"])
    assert_same(values_of(there), values_of(other))
    back = converted(recorded(other), "linen", PIECES, rules=read_rules(RULES), optimizer=tx, **sides["linen_model"])
    assert_same(values_of(back), values_of(tree))


def test_a_filled_parameter_that_was_trained_is_refused_with_its_moments() -> None:
    arrays = {**initial(PIECES), "params/shift": np.ones(4, "float32")}
    state = step_linen(new_train_state(arrays, optax.adam(0.0)), gradients(arrays, 0))
    with pytest.raises(ConversionRefused) as error:
        planned(tree_of_linen(state), "nnx", PIECES, rules=read_rules(RULES)).check_values()
    refused = [line.partition(": ")[0] for line in error.value.problems]
    assert refused == ["opt_state/0/mu/shift", "opt_state/0/nu/shift"]


def test_factored_moments_under_rules() -> None:
    """What a rule leaves behind is left behind; what it stacks or fills in is refused."""
    arrays = {**initial(PIECES), "params/shift": np.ones(4, "float32")}
    tree = tree_of_linen(new_train_state(arrays, ADAFACTOR["unfactored"]()))
    plan = planned(tree, "nnx", PIECES, rules=read_rules(RULES))
    reasons = [problem.rpartition(": ")[2] for problem in plan.problems]
    assert reasons.count(NO_NEW_SHAPE) == 3 * 4
    filled = [problem for problem in plan.problems if problem.endswith("of a variable that is filled in")]
    assert [problem.partition(": ")[0] for problem in filled] == [f"0/{f}/offset" for f in ("v_row", "v_col", "v")]
    assert len(plan.problems) == len(filled) + 3 * 4
    assert not any("shift" in problem for problem in plan.problems)


STATISTICS = """
default = "auto"

[[rule]]
nnx = "{layer:expand|contract}_norm/{leaf:mean|var}"
collection = "batch_stats"
fill = "ones"
"""


class NormedLater(nnx.Module):
    """A model that got statistics after its checkpoint was written."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.expand_norm = nnx.BatchNorm(3, use_scale=False, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.expand_norm(self.dense(x))


def test_filled_statistics_get_no_moments() -> None:
    tx = optax.adam(1e-2)
    arrays = {"params/dense/kernel": np.ones((4, 3), "float32"), "params/dense/bias": np.ones(3, "float32")}
    rules = read_rules(STATISTICS.replace("{layer:expand|contract}", "{layer:*}"))
    made = make_plan(
        tree_of_linen(new_train_state(arrays, tx)),
        Request("nnx", nnx_model=nnx_model_from_factory(lambda: NormedLater(nnx.Rngs(0))), rules=rules),
    )
    made.check()
    model = NormedLater(nnx.Rngs(0))
    expected = tree_of_nnx(Nnx(model, nnx.Optimizer(model, tx, wrt=nnx.Param)))
    assert sorted(values_of(made.tree())) == sorted(values_of(expected))
    assert (values_of(made.tree())["model/expand_norm/mean/value"] == 1).all()


# An optimizer saved alone -------------------------------------------------------------------------------------------

ALONE = ("momentum", "multi_transform", "frozen", "sgd")


@pytest.mark.parametrize(("name", "optimizer"), combined(PAIRS, ALONE, list(zip(PAIRS, 2 * ALONE, strict=False))))
def test_an_optimizer_alone_follows_the_models(name: str, optimizer: str) -> None:
    """Both models tell names, shapes and axes: also of parameters of which it keeps nothing."""
    pair, tx = PAIRS[name], OPTIMIZERS[optimizer]()
    linen, of_nnx = trained_both(pair, tx, initial(pair), steps=1)
    tree, other = alone(tree_of_linen(linen)), alone(tree_of_nnx(of_nnx), "optimizer")
    assert_same(values_alone(converted(tree, "nnx", pair)), values_alone(other))
    assert_same(values_alone(converted(recorded(other), "linen", pair, optimizer=tx)), values_alone(tree))


def test_factored_moments_alone() -> None:
    tx = ADAFACTOR["factored"]()
    for name in ("names", "lstm"):
        pair = PAIRS[name]
        linen, of_nnx = trained_both(pair, tx, initial(pair), steps=1)
        tree, other = alone(tree_of_linen(linen)), alone(tree_of_nnx(of_nnx), "optimizer")
        plan = planned(other, "linen", pair, optimizer=tx)
        if name == "names":
            assert_same(values_alone(converted(tree, "nnx", pair)), values_alone(other))
            assert_same(values_alone(plan.tree()), values_alone(tree))
        else:
            assert len(plan.problems) == 3 * 3
            assert all(NO_NEW_SHAPE in problem for problem in plan.problems)


def test_moments_tell_shapes_where_no_model_does() -> None:
    """The axis of the layers follows from the shapes of moments, or is refused; it is never taken for granted."""
    known = both_models(PAIRS["scan and list"])
    pair, tx = PAIRS["scan and list"], optax.adam(1e-2)
    linen, of_nnx = trained_both(pair, tx, initial(pair), steps=1)
    there = planned(alone(tree_of_linen(linen)), "nnx", pair, nnx_model=known["nnx_model"])
    back = planned(alone(tree_of_nnx(of_nnx), "optimizer"), "linen", pair, linen_model=known["linen_model"])
    for plan in (there, back):
        assert len(plan.problems) == 4
        assert all("its shape allows for several axes" in problem for problem in plan.problems)
    wide = PAIRS["loop and scan"]
    linen, of_nnx = trained_both(wide, tx, initial(wide), steps=1)
    there = converted(alone(tree_of_linen(linen)), "nnx", wide, nnx_model=both_models(wide)["nnx_model"])
    assert_same(values_alone(there), values_alone(alone(tree_of_nnx(of_nnx), "optimizer")))


def test_what_is_masked_out_tells_no_axis_to_the_others() -> None:
    """Masked biases have no shape at all, and kernels that several axes suit."""
    pair, tx = PAIRS["scan and list"], OPTIMIZERS["masked"]()
    tree = alone(tree_of_linen(new_train_state(initial(pair), tx)))
    plan = planned(tree, "nnx", pair, nnx_model=both_models(pair)["nnx_model"])
    (problem,) = plan.problems
    assert "params/layers/dense/kernel: its shape allows for several axes of the layers (0 or 1 or 2)" in problem


def test_an_invented_bias_of_an_optimizer_alone() -> None:
    for optimizer in ("momentum", "frozen"):
        tx = OPTIMIZERS[optimizer]()
        linen, of_nnx = trained_gru(tx)
        tree, other = alone(tree_of_linen(linen)), alone(tree_of_nnx(of_nnx), "optimizer")
        assert_same(values_alone(converted(recorded(other), "linen", GRU, optimizer=tx)), values_alone(tree))
        assert_same(values_alone(converted(tree, "nnx", GRU)), values_alone(other))


def test_wrong_moments_of_an_optimizer_alone_are_refused() -> None:
    """Their shapes are those of another model."""
    pair, tx = PAIRS["names"], optax.adam(1e-2)
    arrays = initial(pair)
    arrays["params/Dense_2/kernel"] = np.ones((4, 5), "float32")
    tree = alone(tree_of_linen(new_train_state(arrays, tx)))
    found = "params/Dense_2/kernel: expected float32[4,3] by the model, found float32[4,5] in the checkpoint"
    assert found in planned(tree, "nnx", pair).problems


@pytest.mark.parametrize("of_template", ["model and optimizer", "optimizer alone"])
def test_an_optimizer_alone_with_a_template(of_template: str, tmp_path: Path) -> None:
    """A whole template tells the names of parameters only; one without a model tells the layout."""
    pair, tx = PAIRS["loop and list"], optax.adam(1e-2)
    state, of_nnx = new_train_state(initial(pair), tx), new_nnx(pair, tx)
    save(tmp_path / "source", {"step": state.step, "opt_state": state.opt_state})
    whole = of_template == "model and optimizer"
    save(tmp_path / "template", states_of(of_nnx) if whole else nnx.state(of_nnx.trainer))
    options = {} if whole else {"nnx_model": pair.nnx}
    support.convert(tmp_path / "source", tmp_path / "nnx", "nnx", like=tmp_path / "template", **options)
    target = {"optimizer": nnx.state(of_nnx.trainer)} if whole else nnx.state(of_nnx.trainer)
    with ocp.StandardCheckpointer() as reader:
        held = reader.restore(tmp_path / "nnx", target)
    moments = (held["optimizer"] if whole else held)["opt_state"][0]["mu"]
    assert sorted("/".join(map(str, path)) for path, _ in nnx.to_flat_state(moments)) == sorted(
        to_nnx(pair, gradients(initial(pair), 0))
    )


def test_a_linen_template_without_a_model(tmp_path: Path) -> None:
    """It tells no names, so those of the checkpoint stay, joined as its own model says."""
    pair, tx = PAIRS["loop and list"], optax.adam(1e-2)
    state, of_nnx = new_train_state(initial(pair), tx), new_nnx(pair, tx)
    save(tmp_path / "source", nnx.state(of_nnx.trainer))
    save(tmp_path / "template", {"step": state.step, "opt_state": state.opt_state})
    options = {"nnx_model": pair.nnx, "optimizer": tx, "like": tmp_path / "template"}
    support.convert(tmp_path / "source", tmp_path / "linen", "linen", **options)
    with ocp.StandardCheckpointer() as reader:
        held = reader.restore(tmp_path / "linen", {"step": state.step, "opt_state": state.opt_state})
    assert jax.tree.structure(held["opt_state"]) == jax.tree.structure(state.opt_state)


@pytest.mark.parametrize("name", ["names", "scan and list"])
def test_an_optimizer_alone_on_disk(name: str, tmp_path: Path) -> None:
    """Verified without outputs: there are no parameters to run the models with."""
    pair, tx = PAIRS[name], OPTIMIZERS["masked"]()
    linen, of_nnx = trained_both(pair, tx, initial(pair), steps=1)
    save(tmp_path / "nnx", nnx.state(of_nnx.trainer))
    report = support.convert(tmp_path / "nnx", tmp_path / "linen", "linen", optimizer=tx, **known_to_convert(pair))
    assert report.outputs is None
    blank = new_train_state(initial(pair, seed=5), tx)
    with ocp.StandardCheckpointer() as reader:
        held = reader.restore(tmp_path / "linen", {"step": blank.step, "opt_state": blank.opt_state})
    found = tree_of_linen(blank.replace(opt_state=held["opt_state"]))
    assert_same(values_alone(alone(found)), values_alone(alone(tree_of_linen(linen))))
