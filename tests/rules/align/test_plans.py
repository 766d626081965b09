"""What plans say of correspondences that were read off the computation."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx, serialization

import converter


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3, name="last")(nn.tanh(nn.Dense(4, name="first")(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.down, self.up = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.up(x)))


def test_they_say_how_sure_a_correspondence_is(tmp_path: Path) -> None:
    file = tmp_path / "linen.msgpack"
    file.write_bytes(serialization.to_bytes(Linen().init(jax.random.key(0), jnp.zeros((1, 5)))))
    models = {"linen_model": Linen(), "nnx_model": Nnx, "inputs": "float32[2,5]"}
    steps = converter.plan(file, "nnx", **models).to_json()["steps"]
    found = {step["target"]: (*step["sources"], step["confidence"]) for step in steps}
    assert found == {
        "down/bias/value": ("params/last/bias", "exact"),
        "down/kernel/value": ("params/last/kernel", "exact"),
        "up/bias/value": ("params/first/bias", "exact"),
        "up/kernel/value": ("params/first/kernel", "exact"),
    }
    report = converter.convert(file, tmp_path / "nnx", "nnx", **models)
    assert report.ok
    assert ">exact<" in report.to_html()


def test_names_alone_say_nothing_of_it(tmp_path: Path) -> None:
    file = tmp_path / "linen.msgpack"
    file.write_bytes(serialization.to_bytes(Linen().init(jax.random.key(0), jnp.zeros((1, 5)))))
    assert not any("confidence" in step for step in converter.plan(file, "nnx").to_json()["steps"])
