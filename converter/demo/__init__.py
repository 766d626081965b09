"""``flax-convert demo``: the main job on real checkpoints, written and read by Flax's and Orbax's own code."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

from converter.errors import DestinationError, VerificationFailed
from converter.report import Report


def run_demo(directory: FilePath | None = None) -> None:
    """Runs the demo and prints what happens.

    Args:
      directory: where to keep the checkpoints; must not exist. By default they are thrown away.

    Raises:
      DestinationError: the directory exists.
      VerificationFailed: something is not equal that should be.
    """
    with _workplace(directory) as place:
        _dense(place)
        _transformer(place)
    print("\nEverything is equal.")


@contextlib.contextmanager
def _workplace(directory: FilePath | None) -> Iterator[FilePath]:
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="flax-convert-demo-") as name:
            yield FilePath(name)
    else:
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            raise DestinationError(f"{directory}: {error.strerror}", "Name a new directory.") from error
        yield directory.resolve()


def _dense(place: FilePath) -> None:
    """An nnx.Linear through Orbax and msgpack into nn.Dense."""
    import flax.serialization
    import jax.numpy as jnp
    import orbax.checkpoint as ocp
    from flax import linen as nn
    from flax import nnx

    from converter.api import convert
    from converter.seed import state_translation

    print("1. One layer: nnx.Linear → nn.Dense\n")
    seed, features, x = 0, 3, jnp.arange(4.0)
    nnx_sum, linen_sum = state_translation(seed, x, features)
    with ocp.StandardCheckpointer() as saver:
        saver.save(place / "linear", nnx.state(nnx.Linear(4, features, rngs=nnx.Rngs(seed))))
    print(f"state_translation in memory: nnx {nnx_sum}, linen {linen_sum}")
    _require(nnx_sum == linen_sum, "state_translation")
    for name in ("dense", "dense.msgpack"):
        _tell(convert(place / "linear", place / name, "linen"), place)
        if name == "dense":
            variables = ocp.StandardCheckpointer().restore(place / name)
            reader = "orbax.checkpoint.StandardCheckpointer"
        else:
            variables = flax.serialization.msgpack_restore((place / name).read_bytes())
            reader = "flax.serialization.msgpack_restore"
        restored_sum = nn.Dense(features).apply(variables, x).sum()
        print(f"  restored   by {reader} into nn.Dense: sum {restored_sum}")
        _require(restored_sum == nnx_sum, name)


def _transformer(place: FilePath) -> None:
    """A trained Transformer with its optimizer to a Linen TrainState and back; then both train on."""
    import jax
    import orbax.checkpoint as ocp
    from flax import nnx

    from converter.api import convert, verify
    from converter.demo import models
    from converter.memory import nnx_to_linen

    print("\n2. A Transformer with BatchNorm, dropout and AdamW: train, convert, train on\n")
    model = models.NnxTransformer(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, models.optimizer(), wrt=nnx.Param)
    for _ in range(3):
        optimizer.update(model, models.nnx_gradients(model))
    with ocp.StandardCheckpointer() as saver:
        saver.save(place / "nnx", {"model": nnx.state(model), "optimizer": nnx.state(optimizer)})
    known: Any = {
        "nnx_model": models.NnxTransformer,
        "linen_model": models.LinenTransformer,
        "inputs": lambda: models.batch()[:1],
    }
    _tell(convert(place / "nnx", place / "linen", "linen", optimizer=models.optimizer, **known), place)
    _tell(convert(place / "linen", place / "linen.msgpack", "nnx", **known), place)
    _tell(convert(place / "linen", place / "nnx-again", "nnx", **known), place)
    _tell(verify(place / "nnx-again", place / "linen", optimizer=models.optimizer, **known), place)
    state = _restored_train_state(place / "linen")
    model.eval()
    state = state.apply_gradients(grads=models.linen_gradients(state.params, state.batch_stats))
    optimizer.update(model, models.nnx_gradients(model))
    compared = jax.tree.map(lambda a, b: bool((a == b).all()), nnx_to_linen(model)["params"], state.params)
    equal = jax.tree.leaves(compared)
    print(f"one more AdamW step on both sides: {sum(equal)} of {len(equal)} parameters equal bit for bit")
    _require(all(equal), "the parameters after one more step")


def _restored_train_state(path: FilePath) -> Any:
    """The converted checkpoint, restored by Orbax into a TrainState as a training script would."""
    import jax
    import orbax.checkpoint as ocp
    from flax.training import train_state

    from converter.demo import models

    class TrainState(train_state.TrainState):
        batch_stats: Any

    module = models.LinenTransformer()
    variables = module.init(jax.random.key(1), models.batch()[0])
    target = TrainState.create(apply_fn=module.apply, tx=models.optimizer(), **variables)
    return ocp.StandardCheckpointer().restore(path, target)


def _tell(report: Report, place: FilePath) -> None:
    print(report.text().replace(f"{place}/", ""))
    _require(report.ok, report.destination)


def _require(equal: Any, what: str) -> None:
    if not bool(equal):
        raise VerificationFailed(f"{what}: the two frameworks differ", Report("demo", what))
