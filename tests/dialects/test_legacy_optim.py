"""Checkpoints of flax.optim, made by flax 0.5.3: training goes on in NNX as flax.optim itself went on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

import converter
from converter.dialects import readings

HERE = Path(__file__).parent / "legacy_optim"

OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.125),
    "momentum": lambda: optax.sgd(0.125, momentum=0.75),
    "nesterov": lambda: optax.sgd(0.125, momentum=0.75, nesterov=True),
    "adam": lambda: optax.adam(0.01, b1=0.8, b2=0.9),
    "adagrad": lambda: optax.adagrad(0.125),
    "rmsprop": lambda: optax.rmsprop(0.01, decay=0.75),
    "rmsprop_centred": lambda: optax.rmsprop(0.01, decay=0.75, centered=True),
}
"""What flax.optim's optimizers of ``legacy_optim/make.py`` are called in optax."""


class Up(nnx.Module):
    def __init__(self, shape: tuple[int, int]):
        self.kernel = nnx.Param(np.zeros(shape, np.float32))
        self.bias = nnx.Param(np.zeros(shape[1], np.float32))


class Norm(nnx.Module):
    def __init__(self) -> None:
        self.scale = nnx.Param(np.zeros(3, np.float32))


class Model(nnx.Module):
    def __init__(self) -> None:
        self.up = Up((4, 3))
        self.norm = Norm()


def read(path: Path) -> Any:
    return serialization.msgpack_restore(path.read_bytes())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_with_flax_optim(tmp_path: Path, name: str):
    converter.convert(HERE / f"{name}.msgpack", tmp_path / "out", "nnx", nnx_model=Model)
    model = Model()
    optimizer = nnx.Optimizer(model, OPTIMIZERS[name](), wrt=nnx.Param)
    with ocp.StandardCheckpointer() as reader:
        target = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
        restored = reader.restore(tmp_path / "out", target)
    nnx.update(model, restored["model"])
    nnx.update(optimizer, restored["optimizer"])
    assert int(optimizer.step.get_value()) == 3
    before = read(HERE / f"{name}.msgpack")["target"]
    np.testing.assert_array_equal(model.up.kernel.get_value(), before["up"]["kernel"])
    follows = read(HERE / f"{name}.next.msgpack")
    gradients = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(gradients, follows["gradients"])
    optimizer.update(model, gradients)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), after, follows["after"])
    assert not np.allclose(after["up"]["kernel"], before["up"]["kernel"])


def test_a_train_state_around_it_keeps_its_own_step_and_the_model_s_collections(tmp_path: Path):
    report = converter.convert(HERE / "train_state.msgpack", tmp_path / "out", "nnx")
    assert report.plan.source.title == "train state around a flax.optim optimizer"
    with ocp.PyTreeCheckpointer() as reader:
        found = reader.restore(tmp_path / "out")
    source = read(HERE / "train_state.msgpack")
    assert int(found["optimizer"]["step"]["value"]) == 7
    assert int(found["optimizer"]["opt_state"]["0"]["count"]["value"]) == 3
    mean = source["model_state"]["batch_stats"]["norm"]["mean"]
    np.testing.assert_array_equal(found["model"]["norm"]["mean"]["value"], mean)
    moment = source["optimizer"]["state"]["param_states"]["up"]["kernel"]["grad_sq_ema"]
    np.testing.assert_array_equal(found["optimizer"]["opt_state"]["0"]["nu"]["up"]["kernel"]["value"], moment)


def save(path: Path, tree: Any) -> Path:
    path.write_bytes(serialization.msgpack_serialize(tree))
    return path


def kernel(number: float) -> Any:
    return {"encoder": {"kernel": np.full((2, 3), number, np.float32)}}


def test_t5x_around_its_own_optimizer(tmp_path: Path):
    """``FlaxOptimTrainState`` of T5X, as its checkpoints have it: a version beside the optimizer."""
    factored = {"m": np.zeros(1, np.float32), "v": np.zeros(1, np.float32), "v_col": np.ones(3, np.float32)}
    states = {"encoder": {"kernel": {**factored, "v_row": np.ones(2, np.float32)}}}
    optimizer = {"target": kernel(1), "state": {"step": np.int32(9), "param_states": states}}
    source = save(tmp_path / "t5x.msgpack", {"version": 3, "optimizer": optimizer})
    converter.convert(source, tmp_path / "out", "nnx")
    with ocp.PyTreeCheckpointer() as reader:
        found = reader.restore(tmp_path / "out")
    np.testing.assert_array_equal(found["model"]["encoder"]["kernel"]["value"], kernel(1)["encoder"]["kernel"])
    assert int(found["optimizer"]["step"]["value"]) == 9
    np.testing.assert_array_equal(found["optimizer"]["opt_state"]["v_row"]["encoder"]["kernel"]["value"], np.ones(2))


def test_t5x_around_an_optimizer_of_optax(tmp_path: Path):
    states = {"0": {"count": np.int32(4), "mu": kernel(2), "nu": kernel(3)}, "1": {}}
    mutables = {"batch_stats": {"encoder": {"mean": np.arange(3, dtype=np.float32)}}}
    state = {"step": np.int32(4), "param_states": states}
    source = save(tmp_path / "t5x.msgpack", {"target": kernel(1), "state": state, "flax_mutables": mutables})
    converter.convert(source, tmp_path / "out", "nnx")
    with ocp.PyTreeCheckpointer() as reader:
        found = reader.restore(tmp_path / "out")
    moments = found["optimizer"]["opt_state"]["0"]
    assert (int(moments["count"]["value"]), moments["nu"]["encoder"]["kernel"]["value"][0, 0]) == (4, 3)
    np.testing.assert_array_equal(found["model"]["encoder"]["mean"]["value"], np.arange(3))


@pytest.mark.parametrize(
    "tree",
    [
        {"target": kernel(1), "state": kernel(2)},
        {"target": kernel(1), "param_states": kernel(2)},
        {"state": {"param_states": kernel(2)}},
    ],
)
def test_modules_of_these_names_are_no_optimizer(tmp_path: Path, tree: Any):
    found = converter.inspect(save(tmp_path / "a.msgpack", tree)).checkpoint.tree
    assert all("optim" not in dialect.title for dialect in readings(found))


def test_going_to_linen_is_not_needed(tmp_path: Path):
    with pytest.raises(converter.UsageError, match="already"):
        converter.convert(HERE / "adam.msgpack", tmp_path / "out", "linen")
