"""Variables of a checkpoint as live objects, ready to be called."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from converter.dialects import readings
from converter.errors import ModelError
from converter.live import lift_linen, lift_nnx, live_variables, restore_nnx
from converter.models import nnx_model, nnx_model_from_factory
from tests.building import saved, saved_nnx, tree_at

X = jnp.sin(jnp.arange(8.0)).reshape(2, 4)


class Net(nnx.Module):
    """A layer, a list, statistics and a stream of random numbers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(4, 3, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(self.norm(self.layers[0](self.up(x))))


def words(module: Net) -> np.ndarray:
    return np.asarray(jax.random.key_data(module.dropout.rngs.key.get_value()))


@pytest.mark.parametrize("suffix", ["value", None])
def test_a_restored_module_computes_the_same(suffix: str | None):
    module = Net(nnx.Rngs(3, dropout=4))
    module(X)
    tree = saved_nnx(nnx.state(module), suffix)
    reading = next(dialect for dialect in readings(tree) if dialect.framework == "nnx")
    restored = restore_nnx(reading.lift(tree).state, nnx_model_from_factory(Net))
    np.testing.assert_array_equal(words(restored), words(module))
    np.testing.assert_array_equal(restored.dropout.rngs.count.get_value(), module.dropout.rngs.count.get_value())
    np.testing.assert_array_equal(restored(X), module(X))


def test_random_state_that_the_checkpoint_lacks_comes_from_the_model():
    module = Net(nnx.Rngs(3))
    tree = saved_nnx(nnx.state(module, nnx.Not(nnx.RngState)))
    lifted = readings(tree)[0].lift(tree).state
    restored = restore_nnx(lifted, nnx_model_from_factory(lambda: Net(nnx.Rngs(0, dropout=9))))
    np.testing.assert_array_equal(words(restored), words(Net(nnx.Rngs(0, dropout=9))))
    assert int(restored.dropout.rngs.count.get_value()) == 0
    np.testing.assert_array_equal(restored.up.kernel[...], module.up.kernel[...])


def test_the_model_itself_is_not_changed():
    module, other = Net(nnx.Rngs(0)), Net(nnx.Rngs(1))
    restored = restore_nnx(lift_nnx(nnx.state(module)).state, nnx_model(other))
    assert not np.array_equal(other.up.kernel[...], module.up.kernel[...])
    np.testing.assert_array_equal(restored.up.kernel[...], module.up.kernel[...])


def test_missing_variables_are_named():
    tree = tree_at({"up/kernel/value": np.ones((4, 3)), "up/bias/value": np.ones(3)})
    with pytest.raises(ModelError) as caught:
        restore_nnx(readings(tree)[0].lift(tree).state, nnx_model_from_factory(Net))
    for path in ("layers/0/kernel", "layers/0/bias", "norm/mean", "norm/scale"):
        assert path in caught.value.message
    assert "up/kernel" not in caught.value.message


def test_a_variable_that_holds_several_arrays_is_restored():
    class Nested(nnx.Module):
        def __init__(self) -> None:
            self.table = nnx.Param({"u": jnp.ones(2), "v": jnp.zeros((2, 3))})

    module = Nested()
    restored = restore_nnx(lift_nnx(nnx.state(module)).state, nnx_model(Nested()))
    assert restored.table.get_value()["u"] is not None
    np.testing.assert_array_equal(restored.table.get_value()["v"], jnp.zeros((2, 3)))


def test_arrays_that_are_no_variables_come_from_the_checkpoint_or_from_the_model():
    def conv(fill: float) -> nnx.Module:
        return nnx.Dict(conv=nnx.Conv(1, 1, (2,), mask=jnp.full((2, 1, 1), fill), rngs=nnx.Rngs(0)))

    held = lift_nnx(nnx.state(conv(1.0))).state
    np.testing.assert_array_equal(restore_nnx(held, nnx_model(conv(0.0))).conv.mask, jnp.ones((2, 1, 1)))
    without: Any = type(held)([(slot, entry) for slot, entry in held.items() if slot.path[-1] != "mask"])
    np.testing.assert_array_equal(restore_nnx(without, nnx_model(conv(0.5))).conv.mask, jnp.full((2, 1, 1), 0.5))


@pytest.mark.parametrize("box", [False, True])
def test_linen_variables_are_ready_for_apply(box: bool):
    kernel_init = nn.initializers.lecun_normal()
    dense = nn.Dense(3, kernel_init=nn.with_partitioning(kernel_init, ("a", "b")) if box else kernel_init)
    variables = dense.init(jax.random.key(0), X)
    tree = saved(variables)
    live = live_variables(readings(tree)[0].lift(tree).state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(live))
    np.testing.assert_array_equal(dense.apply(live, X), dense.apply(variables, X))


def test_keys_are_typed_again():
    variables = {
        "params": {"w": jnp.ones(2)},
        "state": {"key": jax.random.key(7), "keys": jax.random.split(jax.random.key(1))},
    }
    tree = saved(variables)
    live = live_variables(readings(tree)[0].lift(tree).state)
    for name in ("key", "keys"):
        assert jax.dtypes.issubdtype(live["state"][name].dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(
            jax.random.key_data(live["state"][name]), jax.random.key_data(variables["state"][name])
        )


def test_python_values_stay_python_values():
    lifted = lift_linen({"params": {"w": jnp.ones(2)}, "config": {"depth": 3, "rate": 0.5}}).state
    live = live_variables(lifted)
    assert live["config"] == {"depth": 3, "rate": 0.5}
    assert type(live["config"]["depth"]) is int
