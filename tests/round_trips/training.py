"""Training one model in both frameworks at once, from the same values and with the same gradients.

What one framework makes of them is then what a conversion of the other's train state has to give, bit for bit: the
optimizers work value by value, so it does not matter how the values are spread over arrays. Gradients are made up:
small multiples of 1/8, whose squares add up exactly in any order (``clip_by_global_norm`` adds them up).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.training import train_state

from converter.tree import LeafKind, Tree
from fixtures.values import key_texts
from tests.building import saved, saved_nnx

from .reshaped_pairs import Arrays, Pair

STEPS = 2
"""MultiSteps of three is then in the middle of an accumulation."""


class TrainState(train_state.TrainState):
    batch_stats: Any


class AveragedTrainState(TrainState):
    """With a moving average of the parameters, as many scripts have it."""

    ema_params: Any


class Nnx(NamedTuple):
    model: nnx.Module
    trainer: nnx.Optimizer


# Making them --------------------------------------------------------------------------------------------------------


def gradients(arrays: Mapping[str, np.ndarray], step: int) -> Arrays:
    """Made-up gradients of all parameters of the Linen side."""
    generator = np.random.default_rng(step)
    signs = {name: generator.choice([-1, 1], leaf.shape) for name, leaf in arrays.items() if name.startswith("params/")}
    return {name: (sign * generator.integers(1, 8, sign.shape) / 8).astype("float32") for name, sign in signs.items()}


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, leaf in arrays.items():
        *above, last = name.split("/")
        node = made
        for key in above:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(leaf)
    return made


def new_train_state(arrays: Mapping[str, Any], tx: Any, **others: Any) -> train_state.TrainState:
    """With a field for batch statistics if there are any, and for an average if it is among the others."""
    fields = {**nested(arrays), **others}
    kind: type[train_state.TrainState] = train_state.TrainState
    if "batch_stats" in fields:
        kind = AveragedTrainState if "ema_params" in fields else TrainState
    return kind.create(apply_fn=None, tx=tx, **fields)


def new_nnx(pair: Pair, tx: Any, arrays: Mapping[str, Any] | None = None) -> Nnx:
    """The arrays are those of the NNX side; without any, the model has its own initial values."""
    model = _new_model(pair)
    if arrays is not None:
        nnx.update(model, _filled(model, arrays))
    return Nnx(model, nnx.Optimizer(model, tx, wrt=nnx.Param))


_MODELS: dict[int, tuple[nnx.GraphDef, nnx.State]] = {}


def _new_model(pair: Pair) -> nnx.Module:
    """A copy of a model that is initialised once."""
    if id(pair) not in _MODELS:
        _MODELS[id(pair)] = nnx.split(pair.nnx())
    graph, state = _MODELS[id(pair)]
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))


def _filled(node: Any, arrays: Mapping[str, Any], kind: Any = ...) -> nnx.State:
    """The state of a module with these values; what is masked out has none, and random state is left as it is."""
    flat = nnx.to_flat_state(nnx.state(node, kind))
    wanted = [(path, v) for path, v in flat if jax.tree.leaves(v) and not isinstance(v, nnx.RngState)]
    return nnx.from_flat_state([(path, v.replace(jnp.asarray(arrays[_text(path)]))) for path, v in wanted])


def _text(path: Any) -> str:
    return "/".join(map(str, path))


# Training them ------------------------------------------------------------------------------------------------------


def step_linen(state: train_state.TrainState, given: Mapping[str, np.ndarray]) -> train_state.TrainState:
    return state.apply_gradients(grads=nested(given)["params"])


def step_nnx(trained: Nnx, given: Mapping[str, np.ndarray]) -> None:
    trained.trainer.update(trained.model, _filled(trained.model, given, nnx.Param))


def trained_both(pair: Pair, tx: Any, arrays: Arrays, steps: int = STEPS) -> tuple[train_state.TrainState, Nnx]:
    """The same training in both frameworks."""
    linen, of_nnx = new_train_state(arrays, tx), new_nnx(pair, tx, pair.to_nnx(arrays))
    for step in range(steps):
        given = gradients(arrays, step)
        linen = step_linen(linen, given)
        step_nnx(of_nnx, to_nnx(pair, given))
    return linen, of_nnx


def to_nnx(pair: Pair, params: Mapping[str, np.ndarray]) -> Arrays:
    """What only parameters become."""
    moves = tuple(move for move in pair.moves if move.linen[0] in params)
    return pair._replace(moves=moves).to_nnx(params)


# As trees -----------------------------------------------------------------------------------------------------------


def tree_of_linen(state: train_state.TrainState) -> Tree:
    return saved(state)


def tree_of_nnx(trained: Nnx, **others: Any) -> Tree:
    return saved_nnx({"model": nnx.state(trained.model), "optimizer": nnx.state(trained.trainer), **others})


def values_of(tree: Tree) -> dict[str, Any]:
    """Every array of a tree by its path; for what holds nothing, nothing. The step is a number in both frameworks."""
    found: dict[str, Any] = {}
    for path, leaf in tree.items():
        text = "/".join(path)
        found[text] = None if leaf.spec.kind is LeafKind.EMPTY else np.asarray(leaf.fetch())
        if text in ("step", "optimizer/step/value"):
            found[text] = np.asarray(found[text], "uint32" if "/" in text else "int32")
    return found


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """The same paths, and at each of them the same dtype, shape and bits."""
    assert sorted(found) == sorted(expected)
    wrong = [path for path, leaf in expected.items() if not _is_same(found[path], leaf)]
    assert not wrong, "\n".join(f"{path}: {found[path]} and {expected[path]}" for path in wrong[:5])


def _is_same(found: Any, expected: Any) -> bool:
    if found is None or expected is None:
        return found is expected
    same_kind = (found.dtype, found.shape) == (expected.dtype, expected.shape)
    return same_kind and found.tobytes() == expected.tobytes()


# From trees ---------------------------------------------------------------------------------------------------------


def restored_train_state(values: Mapping[str, Any], target: train_state.TrainState) -> train_state.TrainState:
    """A train state of exactly the target's structure."""
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(values["/".join(key_texts(path))]), target)


def restored_nnx(values: Mapping[str, Any], target: Nnx) -> Nnx:
    """Puts the values into a model and its optimizer, each of whose Variables gets one."""
    plain = {path.removesuffix("/value"): value for path, value in values.items()}
    for node, name in ((target.model, "model/"), (target.trainer, "optimizer/")):
        own = {path.removeprefix(name): value for path, value in plain.items() if path.startswith(name)}
        nnx.update(node, _filled(node, own))
    return target
