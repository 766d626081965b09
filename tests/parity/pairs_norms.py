"""Layers that normalize activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.paths import BF16, BF16_ROUNDING, SCALE, SCALE_BIAS, STATISTICS, same
from tests.parity.support import sample
from tests.parity.truth import on_host


def flattened(paths: Mapping[str, str]) -> dict[str, Callable[..., Any]]:
    """``to_nnx`` for norms over several axes: their features are one axis in NNX."""
    return {path: on_host(np.ravel) for path in paths}


def layer_norm(name: str, **options: Any) -> Pair:
    """LayerNorm over six features; ``dtype`` and ``param_dtype`` apply to the inputs too."""
    use_bias, use_scale = options.get("use_bias", True), options.get("use_scale", True)
    return Pair(
        name=name,
        linen=lambda: nn.LayerNorm(**options),
        nnx=lambda rngs: nnx.LayerNorm(6, rngs=rngs, **options),
        inputs=lambda: (sample(2, 3, 6, dtype=options.get("dtype", jnp.float32)),),
        paths={**(SCALE if use_scale else {}), **(same("params/bias") if use_bias else {})},
        by_convention=True,
    )


def batch_norm(name: str, *, train: bool = False, affine: bool = True, features: int = 6, **options: Any) -> Pair:
    """BatchNorm of the same options in both frameworks; in training its statistics change with the call."""
    tolerance = BF16_ROUNDING if options.get("dtype") == BF16 else 0.0
    options = {"use_running_average": not train, "use_bias": affine, "use_scale": affine, **options}
    return Pair(
        name=name,
        linen=lambda: nn.BatchNorm(**options),
        nnx=lambda rngs: nnx.BatchNorm(features, rngs=rngs, **options),
        inputs=lambda: (sample(2, 3, 6),),
        linen_kwargs={"mutable": ["batch_stats"]} if train else {},
        paths={**(SCALE_BIAS if affine else {}), **STATISTICS},
        tolerance=tolerance,
        by_convention=True,
    )


class LinenSyncedBatchNorm(nn.Module):
    """BatchNorm whose statistics are averaged over a mapped axis."""

    def setup(self) -> None:
        self.norm = nn.BatchNorm(use_running_average=False, axis_name="replica")

    def __call__(self, x: jax.Array) -> jax.Array:
        shared = {"params": None, "batch_stats": None}
        return nn.vmap(
            lambda module, x: module.norm(x),
            variable_axes=shared,
            split_rngs={"params": False},
            axis_name="replica",
        )(self, x)


class NnxSyncedBatchNorm(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(6, use_running_average=False, axis_name="replica", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.vmap(lambda norm, x: norm(x), in_axes=(None, 0), axis_name="replica")(self.norm, x)


PAIRS: list[Pair] = [
    layer_norm("layer_norm"),
    layer_norm("layer_norm_no_bias", use_bias=False),
    layer_norm("layer_norm_no_scale", use_scale=False),
    layer_norm("layer_norm_bf16", dtype=BF16, param_dtype=BF16),
    Pair(
        # NNX rounds the input to bfloat16 before it takes the statistics, Linen afterwards.
        name="layer_norm_bf16_compute_f32_input",
        linen=lambda: nn.LayerNorm(dtype=BF16),
        nnx=lambda rngs: nnx.LayerNorm(6, dtype=BF16, rngs=rngs),
        inputs=lambda: (sample(2, 3, 6),),
        paths=SCALE_BIAS,
        tolerance=BF16_ROUNDING,
        by_convention=True,
    ),
    Pair(
        name="layer_norm_two_feature_axes",
        linen=lambda: nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1)),
        nnx=lambda rngs: nnx.LayerNorm(18, reduction_axes=(-2, -1), feature_axes=(-2, -1), rngs=rngs),
        inputs=lambda: (sample(2, 3, 6),),
        paths=SCALE_BIAS,
        to_nnx=flattened(SCALE_BIAS),
    ),
    Pair(
        # Features are laid out in the order of the input's axes, not in that of feature_axes.
        name="layer_norm_two_feature_axes_reversed",
        linen=lambda: nn.LayerNorm(reduction_axes=(-1, -2), feature_axes=(-1, -2)),
        nnx=lambda rngs: nnx.LayerNorm(18, reduction_axes=(-1, -2), feature_axes=(-1, -2), rngs=rngs),
        inputs=lambda: (sample(2, 3, 6),),
        paths=SCALE_BIAS,
        to_nnx=flattened(SCALE_BIAS),
    ),
    Pair(
        name="instance_norm_two_feature_axes",
        linen=lambda: nn.InstanceNorm(feature_axes=(-2, -1)),
        nnx=lambda rngs: nnx.InstanceNorm(18, feature_axes=(-2, -1), rngs=rngs),
        inputs=lambda: (sample(2, 7, 3, 6),),
        paths=SCALE_BIAS,
        to_nnx=flattened(SCALE_BIAS),
    ),
    Pair(
        # Eval only: nnx.BatchNorm over two axes cannot be trained, its running mean does not broadcast.
        name="batch_norm_two_axes_eval",
        linen=lambda: nn.BatchNorm(use_running_average=True, axis=(-2, -1)),
        nnx=lambda rngs: nnx.BatchNorm(18, use_running_average=True, axis=(-2, -1), rngs=rngs),
        inputs=lambda: (sample(2, 3, 6),),
        paths={**SCALE_BIAS, **STATISTICS},
        to_nnx=flattened({**SCALE_BIAS, **STATISTICS}),
    ),
    Pair(
        name="rms_norm",
        linen=nn.RMSNorm,
        nnx=lambda rngs: nnx.RMSNorm(6, rngs=rngs),
        inputs=lambda: (sample(2, 3, 6),),
        paths=SCALE,
        by_convention=True,
    ),
    Pair(
        name="group_norm",
        linen=lambda: nn.GroupNorm(num_groups=2),
        nnx=lambda rngs: nnx.GroupNorm(6, num_groups=2, rngs=rngs),
        inputs=lambda: (sample(2, 3, 6),),
        paths=SCALE_BIAS,
        by_convention=True,
    ),
    Pair(
        name="group_norm_group_size",
        linen=lambda: nn.GroupNorm(num_groups=None, group_size=2),
        nnx=lambda rngs: nnx.GroupNorm(6, num_groups=None, group_size=2, rngs=rngs),
        inputs=lambda: (sample(2, 3, 6),),
        paths=SCALE_BIAS,
        by_convention=True,
    ),
    Pair(
        name="instance_norm",
        linen=nn.InstanceNorm,
        nnx=lambda rngs: nnx.InstanceNorm(6, rngs=rngs),
        inputs=lambda: (sample(2, 3, 6),),
        paths=SCALE_BIAS,
        by_convention=True,
    ),
    Pair(
        name="rms_norm_bf16",
        linen=lambda: nn.RMSNorm(dtype=BF16, param_dtype=BF16),
        nnx=lambda rngs: nnx.RMSNorm(6, dtype=BF16, param_dtype=BF16, rngs=rngs),
        inputs=lambda: (sample(2, 3, 6, dtype=BF16),),
        paths=SCALE,
        by_convention=True,
    ),
    Pair(
        name="group_norm_bf16",
        linen=lambda: nn.GroupNorm(num_groups=2, dtype=BF16, param_dtype=BF16),
        nnx=lambda rngs: nnx.GroupNorm(6, num_groups=2, dtype=BF16, param_dtype=BF16, rngs=rngs),
        inputs=lambda: (sample(2, 3, 6, dtype=BF16),),
        paths=SCALE_BIAS,
        by_convention=True,
    ),
    Pair(
        name="instance_norm_bf16",
        linen=lambda: nn.InstanceNorm(dtype=BF16, param_dtype=BF16),
        nnx=lambda rngs: nnx.InstanceNorm(6, dtype=BF16, param_dtype=BF16, rngs=rngs),
        inputs=lambda: (sample(2, 3, 6, dtype=BF16),),
        paths=SCALE_BIAS,
        by_convention=True,
    ),
    batch_norm("batch_norm_eval"),
    batch_norm("batch_norm_train", train=True),
    batch_norm("batch_norm_axis1", train=True, axis=1, features=3),
    Pair(
        name="batch_norm_axis_name",
        linen=LinenSyncedBatchNorm,
        nnx=NnxSyncedBatchNorm,
        inputs=lambda: (sample(2, 3, 6),),
        linen_kwargs={"mutable": ["batch_stats"]},
        paths=same("params/norm/scale", "params/norm/bias", "batch_stats/norm/mean", "batch_stats/norm/var"),
        by_convention=True,
    ),
    batch_norm("batch_norm_no_affine", affine=False),
    # The statistics are float32 all the same. In bfloat16 NNX rounds them before it subtracts them, Linen does not.
    batch_norm("batch_norm_bf16_params", param_dtype=BF16),
    batch_norm("batch_norm_bf16_compute", param_dtype=BF16, dtype=BF16),
]
