"""Optimizers for a Linen TrainState and for nnx.Optimizer alike; which parameter is which is told by names alone.

Shapes do not tell it: a bias has another rank where the layers are stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax


def _kernels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), params)


def _labels(params: Any) -> Any:
    return jax.tree.map(lambda is_kernel: "kernels" if is_kernel else "others", _kernels(params))


def _everything_is_frozen_but_kernels(params: Any) -> Any:
    return jax.tree.map(lambda is_kernel: "train" if is_kernel else "freeze", _kernels(params))


OPTIMIZERS: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "adam": lambda: optax.adam(1e-2),
    "adam in bfloat16": lambda: optax.adam(1e-2, mu_dtype="bfloat16"),
    "adamw with a schedule": lambda: optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 20)),
    "clipped adam": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    "sgd": lambda: optax.sgd(1e-2),
    "momentum": lambda: optax.sgd(1e-2, momentum=0.9),
    "masked": lambda: optax.chain(optax.clip(0.5), optax.masked(optax.adam(1e-2), _kernels)),
    "multi_transform": lambda: optax.multi_transform(
        {"kernels": optax.adam(1e-2), "others": optax.sgd(1e-2, momentum=0.9)}, _labels
    ),
    "frozen": lambda: optax.multi_transform(
        {"train": optax.adam(1e-2), "freeze": optax.set_to_zero()}, _everything_is_frozen_but_kernels
    ),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), every_k_schedule=3).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "own average": lambda: optax.chain(optax.adam(1e-2), optax.ema(0.9)),
}

ADAFACTOR: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "factored": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "unfactored": lambda: optax.adafactor(1e-2),
    "with momentum": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2, momentum=0.9),
}
"""Factored moments are means over rows and columns, so they follow new names only."""
