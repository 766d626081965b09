"""Makes the files beside it with flax.optim itself, which flax 0.6 has no more.

Needs Python 3.9, flax 0.5.3, jax and jaxlib 0.4.13, optax 0.1.5, chex 0.1.7, numpy 1.24 and scipy 1.10::

    python tests/dialects/legacy_optim/make.py

Each file is ``flax.serialization.to_bytes`` of an optimizer after three steps; ``NAME.next.msgpack`` has the gradients
of the fourth step and the parameters after it.
"""

from pathlib import Path

import jax
import jax.interpreters.xla
import numpy as np

jax.interpreters.xla.DeviceArray = jax.Array  # what flax 0.5 looks for there, and jax 0.4.13 has elsewhere
jax.xla = jax.interpreters.xla

from flax import optim, serialization, struct  # noqa: E402

HERE = Path(__file__).parent

OPTIMIZERS = {
    "sgd": optim.GradientDescent(0.125),
    "momentum": optim.Momentum(0.125, beta=0.75),
    "nesterov": optim.Momentum(0.125, beta=0.75, nesterov=True),
    "adam": optim.Adam(0.01, beta1=0.8, beta2=0.9),
    "adagrad": optim.Adagrad(0.125),
    "rmsprop": optim.RMSProp(0.01, beta2=0.75),
    "rmsprop_centred": optim.RMSProp(0.01, beta2=0.75, centered=True),
}


@struct.dataclass
class TrainState:
    """As in the ImageNet example of flax 0.3."""

    step: int
    optimizer: optim.Optimizer
    model_state: dict


def main() -> None:
    random = np.random.default_rng(0)

    def like(tree):
        return jax.tree_util.tree_map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), tree)

    shapes = {"up": {"kernel": np.zeros((4, 3)), "bias": np.zeros(3)}, "norm": {"scale": np.zeros(3)}}
    for name, definition in OPTIMIZERS.items():
        optimizer = definition.create(like(shapes))
        for _ in range(3):
            optimizer = optimizer.apply_gradient(like(shapes))
        (HERE / f"{name}.msgpack").write_bytes(serialization.to_bytes(optimizer))
        if name == "adam":
            state = TrainState(7, optimizer, {"batch_stats": like({"norm": {"mean": np.zeros(3), "var": np.zeros(3)}})})
            (HERE / "train_state.msgpack").write_bytes(serialization.to_bytes(state))
        gradients = like(shapes)
        after = optimizer.apply_gradient(gradients).target
        content = serialization.to_state_dict({"gradients": gradients, "after": after})
        (HERE / f"{name}.next.msgpack").write_bytes(serialization.to_bytes(content))


if __name__ == "__main__":
    main()
