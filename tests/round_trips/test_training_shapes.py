"""Training states of models whose variables differ in names, number and shape: the optimizer follows everything.

A model is trained in both frameworks at once (training.py). Converting the train state of the one has to give the train
state of the other, bit for bit and leaf for leaf, and then training goes on on both sides alike.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from tests.building import saved_nnx

from . import support
from .in_memory import converted, recorded
from .on_disk import known_to_convert, read_linen, read_nnx, save, saved_linen, saved_nnx_state, states_of
from .optimizers import OPTIMIZERS
from .reshaped_pairs import PAIRS, Arrays, Pair, initial
from .training import (
    assert_same,
    gradients,
    new_nnx,
    new_train_state,
    restored_nnx,
    restored_train_state,
    step_linen,
    step_nnx,
    to_nnx,
    trained_both,
    tree_of_linen,
    tree_of_nnx,
    values_of,
)

COMBINATIONS = [(pair, "multi_transform") for pair in PAIRS]
COMBINATIONS += [("loop and scan", optimizer) for optimizer in ("clipped adam", "masked", "frozen")]
"""Others are combined in the slow tests."""
OTHERS = [(pair, optimizer) for pair in PAIRS for optimizer in OPTIMIZERS if (pair, optimizer) not in COMBINATIONS]
ALL = [*COMBINATIONS, *(pytest.param(*both, marks=pytest.mark.slow) for both in OTHERS)]

# There, back, and on ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "optimizer"), ALL)
def test_the_optimizer_follows(name: str, optimizer: str) -> None:
    pair, tx = PAIRS[name], OPTIMIZERS[optimizer]()
    arrays = initial(pair)
    linen, of_nnx = trained_both(pair, tx, arrays)
    tree, other = tree_of_linen(linen), tree_of_nnx(of_nnx)

    there = converted(tree, "nnx", pair)
    assert_same(values_of(there), values_of(other))
    back = converted(recorded(other), "linen", pair, optimizer=tx)
    assert_same(values_of(back), values_of(tree))
    assert_same(values_of(converted(recorded(there), "linen", pair, optimizer=tx)), values_of(tree))
    assert_same(values_of(converted(back, "nnx", pair)), values_of(other))

    moved = restored_nnx(values_of(there), new_nnx(pair, tx))
    returned = restored_train_state(values_of(back), new_train_state(initial(pair, seed=5), tx))
    given = gradients(arrays, step=7)
    for trained in (moved, of_nnx):
        step_nnx(trained, to_nnx(pair, given))
    assert_same(values_of(tree_of_nnx(moved)), values_of(tree_of_nnx(of_nnx)))
    linen, returned = step_linen(linen, given), step_linen(returned, given)
    assert_same(values_of(tree_of_linen(returned)), values_of(tree_of_linen(linen)))
    assert_same(values_of(converted(tree_of_linen(linen), "nnx", pair)), values_of(tree_of_nnx(of_nnx)))


# On disk ------------------------------------------------------------------------------------------------------------

ON_DISK = [
    ("names", "adamw with a schedule", "orbax"),
    ("loop and scan", "MultiSteps", "msgpack"),
    ("scan and list", "masked", "orbax"),
]
SLOW_ON_DISK = [
    (pair, optimizer, format)
    for pair in PAIRS
    for optimizer in ("masked", "multi_transform", "MultiSteps", "apply_if_finite", "inject_hyperparams")
    for format in ("orbax", "msgpack")
    if (pair, optimizer, format) not in ON_DISK
]
FILES = [*ON_DISK, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW_ON_DISK)]


@pytest.mark.parametrize(("name", "optimizer", "format"), FILES)
def test_checkpoints_restore_into_the_other_framework(name: str, optimizer: str, format: str, tmp_path: Path) -> None:
    pair, tx = PAIRS[name], OPTIMIZERS[optimizer]()
    arrays = initial(pair)
    linen, of_nnx = trained_both(pair, tx, arrays)
    sources = saved_linen(tmp_path, linen, format), saved_nnx_state(tmp_path, states_of(of_nnx), format)
    targets = tmp_path / f"converted.nnx.{format}", tmp_path / f"converted.linen.{format}"
    report = support.convert(sources[0], targets[0], "nnx", **known_to_convert(pair))
    assert not report.plan.drops
    assert report.outputs is not None
    support.convert(sources[1], targets[1], "linen", optimizer=tx, **known_to_convert(pair))

    moved = read_nnx(targets[0], new_nnx(pair, tx))
    returned = read_linen(targets[1], new_train_state(initial(pair, seed=5), tx))
    assert jax.tree.structure(returned) == jax.tree.structure(linen)
    given = gradients(arrays, step=7)
    for trained in (moved, of_nnx):
        step_nnx(trained, to_nnx(pair, given))
    assert_same(values_of(tree_of_nnx(moved)), values_of(tree_of_nnx(of_nnx)))
    linen, returned = step_linen(linen, given), step_linen(returned, given)
    assert_same(values_of(tree_of_linen(returned)), values_of(tree_of_linen(linen)))


# Averages of the parameters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scan and list", "norms"])
def test_an_average_of_the_parameters_follows(name: str) -> None:
    pair, tx = PAIRS[name], optax.sgd(1e-2, momentum=0.9)
    arrays, average = initial(pair), initial(pair, seed=3)
    linen = new_train_state(arrays, tx, ema_params=new_train_state(average, tx).params)
    of_nnx = new_nnx(pair, tx, pair.to_nnx(arrays))
    averages = nnx.state(new_nnx(pair, tx, pair.to_nnx(average)).model, nnx.Param)
    tree, other = tree_of_linen(linen), tree_of_nnx(of_nnx, ema_params=averages)
    assert "ema_params" in tree.children()
    assert_same(values_of(converted(tree, "nnx", pair)), values_of(other))
    assert_same(values_of(converted(other, "linen", pair, optimizer=tx)), values_of(tree))


@pytest.mark.parametrize("name", ["names", "loop and scan"])
def test_nnx_ema_there_and_back(name: str, tmp_path: Path) -> None:
    pair, tx = PAIRS[name], optax.sgd(1e-2)
    of_nnx = new_nnx(pair, tx, pair.to_nnx(initial(pair)))
    ema = nnx.EMA(of_nnx.model, decay=0.5, only=nnx.Param)
    step_nnx(of_nnx, to_nnx(pair, gradients(initial(pair), 0)))
    ema.update(of_nnx.model)
    held = {**states_of(of_nnx), "ema": nnx.state(ema)}
    save(tmp_path / "nnx", held)
    support.convert(tmp_path / "nnx", tmp_path / "linen", "linen", optimizer=tx, **known_to_convert(pair))
    with ocp.StandardCheckpointer() as reader:
        written = reader.restore(tmp_path / "linen")
    averages = {"/".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(ema)["params"])}
    expected = _params_of(pair, {name: np.asarray(leaf) for name, leaf in averages.items()})
    found = {
        "/".join(entry.key for entry in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(written["ema"])
    }
    assert_same(found, expected)
    support.convert(tmp_path / "linen", tmp_path / "back", "nnx", **known_to_convert(pair))
    with ocp.StandardCheckpointer() as reader:
        again = reader.restore(tmp_path / "back", held)
    assert_same(values_of(saved_nnx(again)), values_of(saved_nnx(held)))


def _params_of(pair: Pair, arrays: Arrays) -> Arrays:
    """What parameters of NNX, without the other variables, become."""
    return pair._replace(moves=tuple(move for move in pair.moves if move.nnx[0] in arrays)).to_linen(arrays)
