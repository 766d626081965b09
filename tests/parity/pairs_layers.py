"""Every layer that exists in both frameworks, alone or in the smallest model that shows what is special about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.support import sample

BF16 = jnp.bfloat16

FUSED = 1e-6
"""One wide matrix product instead of several narrow ones may differ in the last bits of float32."""

BF16_ROUNDING = 2e-2
"""Where the two frameworks round to bfloat16 at different places of the same formula."""


# The ways paths differ -----------------------------------------------------------------------------------------------


def same(*paths: str) -> dict[str, str]:
    """Leaves that have the same names on both sides; NNX has no level for the collection."""
    return {path: path.partition("/")[2] for path in paths}


KERNEL = same("params/kernel")
KERNEL_BIAS = same("params/kernel", "params/bias")
SCALE = same("params/scale")
SCALE_BIAS = same("params/scale", "params/bias")
STATISTICS = same("batch_stats/mean", "batch_stats/var")


def concatenated(paths: Mapping[str, str]) -> dict[str, Callable[..., Any]]:
    """``to_nnx`` for paths in which several Linen kernels or biases stand side by side in one NNX array."""
    return {path: lambda *arrays: jnp.concatenate(arrays, axis=-1) for path in paths if " + " in path}


def flattened(paths: Mapping[str, str]) -> dict[str, Callable[..., Any]]:
    """``to_nnx`` for norms over several axes: their features are one axis in NNX."""
    return {path: lambda array: array.reshape(-1) for path in paths}


# 1. Linear layers, embeddings, convolutions --------------------------------------------------------------------------


class LinenTiedEmbed(nn.Module):
    """An embedding that is used again, transposed, as the output layer."""

    def setup(self) -> None:
        self.embed = nn.Embed(7, 4)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.embed.attend(nn.tanh(self.embed(tokens)))


class NnxTiedEmbed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(7, 4, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.embed.attend(nnx.tanh(self.embed(tokens)))


TOKENS = np.array([[1, 6, 0], [3, 3, 5]])

DENSE = [
    Pair(
        name="dense",
        linen=lambda: nn.Dense(3),
        nnx=lambda rngs: nnx.Linear(5, 3, rngs=rngs),
        inputs=lambda: (sample(2, 5),),
        paths=KERNEL_BIAS,
        by_convention=True,
    ),
    Pair(
        name="dense_no_bias",
        linen=lambda: nn.Dense(3, use_bias=False),
        nnx=lambda rngs: nnx.Linear(5, 3, use_bias=False, rngs=rngs),
        inputs=lambda: (sample(2, 5),),
        paths=KERNEL,
        by_convention=True,
    ),
    Pair(
        name="dense_bf16_params",
        linen=lambda: nn.Dense(3, param_dtype=BF16),
        nnx=lambda rngs: nnx.Linear(5, 3, param_dtype=BF16, rngs=rngs),
        inputs=lambda: (sample(2, 5, dtype=BF16),),
        paths=KERNEL_BIAS,
        by_convention=True,
    ),
    Pair(
        name="dense_bf16_compute",
        linen=lambda: nn.Dense(3, dtype=BF16),
        nnx=lambda rngs: nnx.Linear(5, 3, dtype=BF16, rngs=rngs),
        inputs=lambda: (sample(2, 5),),
        paths=KERNEL_BIAS,
        by_convention=True,
    ),
    Pair(
        name="dense_as_linear_general",
        linen=lambda: nn.Dense(3),
        nnx=lambda rngs: nnx.LinearGeneral(5, 3, rngs=rngs),
        inputs=lambda: (sample(2, 5),),
        paths=KERNEL_BIAS,
        by_convention=True,
    ),
    Pair(
        name="dense_general_multi_out",
        linen=lambda: nn.DenseGeneral((3, 4)),
        nnx=lambda rngs: nnx.LinearGeneral(5, (3, 4), rngs=rngs),
        inputs=lambda: (sample(2, 5),),
        paths=KERNEL_BIAS,
        by_convention=True,
    ),
    Pair(
        name="dense_general_multi_axis",
        linen=lambda: nn.DenseGeneral((3, 4), axis=(-2, -1)),
        nnx=lambda rngs: nnx.LinearGeneral((6, 5), (3, 4), axis=(-2, -1), rngs=rngs),
        inputs=lambda: (sample(2, 6, 5),),
        paths=KERNEL_BIAS,
        by_convention=True,
    ),
    Pair(
        # A kernel of its own for each item of the batch: looks like a stack of layers, and is none.
        name="dense_general_batch_dims",
        linen=lambda: nn.DenseGeneral(3, batch_dims=(0,)),
        nnx=lambda rngs: nnx.LinearGeneral(5, 3, batch_axis={0: 2}, rngs=rngs),
        inputs=lambda: (sample(2, 4, 5),),
        paths=KERNEL_BIAS,
        by_convention=True,
    ),
    Pair(
        name="einsum",
        linen=lambda: nn.Einsum((5, 3, 4), "bti,ihd->bthd"),
        nnx=lambda rngs: nnx.Einsum("bti,ihd->bthd", (5, 3, 4), (3, 4), rngs=rngs),
        inputs=lambda: (sample(2, 6, 5),),
        paths=KERNEL_BIAS,
        by_convention=True,
    ),
    Pair(
        name="einsum_no_bias",
        linen=lambda: nn.Einsum((5, 3, 4), "bti,ihd->bthd", use_bias=False),
        nnx=lambda rngs: nnx.Einsum("bti,ihd->bthd", (5, 3, 4), rngs=rngs),
        inputs=lambda: (sample(2, 6, 5),),
        paths=KERNEL,
        by_convention=True,
    ),
    Pair(
        name="embed",
        linen=lambda: nn.Embed(7, 4),
        nnx=lambda rngs: nnx.Embed(7, 4, rngs=rngs),
        inputs=lambda: (TOKENS,),
        paths=same("params/embedding"),
        by_convention=True,
    ),
    Pair(
        name="tied_embed_attend",
        linen=LinenTiedEmbed,
        nnx=NnxTiedEmbed,
        inputs=lambda: (TOKENS,),
        paths=same("params/embed/embedding"),
        by_convention=True,
    ),
]


def conv(name: str, size: tuple[int, ...], shape: tuple[int, ...], features: int, **options: Any) -> Pair:
    """A convolution of the same options in both frameworks; ``shape`` is that of one input."""
    return Pair(
        name=name,
        linen=lambda: nn.Conv(features, size, **options),
        nnx=lambda rngs: nnx.Conv(shape[-1], features, size, rngs=rngs, **options),
        inputs=lambda: (sample(2, *shape),),
        paths=KERNEL_BIAS if options.get("use_bias", True) else KERNEL,
        by_convention=True,
    )


def conv_transpose(name: str, size: tuple[int, ...], shape: tuple[int, ...], features: int, **options: Any) -> Pair:
    """As ``conv``. With ``transpose_kernel`` the last two axes of the kernel change places, in both frameworks."""
    return Pair(
        name=name,
        linen=lambda: nn.ConvTranspose(features, size, **options),
        nnx=lambda rngs: nnx.ConvTranspose(shape[-1], features, size, rngs=rngs, **options),
        inputs=lambda: (sample(2, *shape),),
        paths=KERNEL_BIAS,
        by_convention=True,
    )


def checkered(*shape: int) -> jax.Array:
    """A mask that lets every other weight through."""
    return jnp.asarray(np.indices(shape).sum(0) % 2, jnp.float32)


CONV = [
    conv("conv1d", (3,), (7, 5), 4),
    conv("conv2d", (3, 2), (6, 7, 5), 4, strides=(2, 1)),
    conv("conv3d", (3, 2, 1), (4, 6, 7, 5), 2),
    conv("conv_grouped", (3,), (7, 6), 4, feature_group_count=2),
    conv("conv_depthwise", (3,), (7, 4), 8, feature_group_count=4),
    conv("conv_no_bias_strided_circular", (3,), (7, 5), 4, strides=2, padding="CIRCULAR", use_bias=False),
    conv("conv_causal_dilated", (3,), (7, 5), 4, padding="CAUSAL", kernel_dilation=2),
    # The mask is an attribute of both modules. NNX has it in its state, as an array that is no Variable.
    conv("conv_masked", (3,), (7, 5), 4, mask=checkered(3, 5, 4)),
    conv_transpose("conv_transpose_masked", (3,), (7, 5), 4, mask=checkered(3, 5, 4)),
    conv_transpose("conv_transpose1d", (3,), (7, 5), 4, strides=(2,)),
    conv_transpose("conv_transpose2d", (3, 2), (6, 7, 5), 4, strides=(2, 1)),
    conv_transpose("conv_transpose3d", (3, 2, 1), (4, 6, 7, 5), 2),
    conv_transpose("conv_transpose1d_transpose_kernel", (3,), (7, 4), 5, strides=(2,), transpose_kernel=True),
    conv_transpose("conv_transpose2d_transpose_kernel", (3, 2), (6, 7, 4), 5, strides=(2, 1), transpose_kernel=True),
    conv_transpose("conv_transpose3d_transpose_kernel", (3, 2, 1), (4, 6, 7, 2), 5, transpose_kernel=True),
]


# 2. Normalization, activations, dropout ------------------------------------------------------------------------------


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


NORM = [
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


class LinenSpectralNormSetup(nn.Module):
    """The wrapped layer is given to the wrapper, which is an attribute of its own."""

    def setup(self) -> None:
        self.normed = nn.SpectralNorm(nn.Dense(4))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.normed(x, update_stats=True)


class NnxSpectralNormSetup(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.normed = nnx.SpectralNorm(nnx.Linear(5, 4, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.normed(x, update_stats=True)


class LinenSpectralNormCompact(nn.Module):
    """A layer made in a compact method belongs to that method's module; the wrapper names it in its own variables."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.tanh(nn.Dense(3)(x))
        return nn.SpectralNorm(nn.Dense(4))(x, update_stats=True)


class NnxSpectralNormAttributes(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(5, 3, rngs=rngs)
        self.sn = nnx.SpectralNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.sn(nnx.tanh(self.first(x)), update_stats=True)


def wrapped(linen: str = "", nnx: str = "") -> dict[str, str]:
    """The layer inside a SpectralNorm or WeightNorm, below these prefixes."""
    return {
        f"params/{linen}layer_instance/kernel": f"{nnx}layer_instance/kernel",
        f"params/{linen}layer_instance/bias": f"{nnx}layer_instance/bias",
    }


# Linen writes the path of the normalized kernel as one key with slashes, NNX as a tuple of keys.
SPECTRAL_NORM = {
    **wrapped(),
    'batch_stats/"layer_instance/kernel/u"': "batch_stats/('kernel', 'u')",
    'batch_stats/"layer_instance/kernel/sigma"': "batch_stats/('kernel', 'sigma')",
}
WEIGHT_NORM = {**wrapped(), 'params/"layer_instance/kernel/scale"': "scales/('kernel',)"}

WRAPPED = [
    Pair(
        name="spectral_norm_update_false",
        linen=lambda: nn.SpectralNorm(nn.Dense(4)),
        nnx=lambda rngs: nnx.SpectralNorm(nnx.Linear(5, 4, rngs=rngs), rngs=rngs),
        inputs=lambda: (sample(2, 5),),
        linen_kwargs={"update_stats": False},
        nnx_kwargs={"update_stats": False},
        paths=SPECTRAL_NORM,
        by_convention=True,
    ),
    Pair(
        name="spectral_norm_update_true",
        linen=lambda: nn.SpectralNorm(nn.Dense(4)),
        nnx=lambda rngs: nnx.SpectralNorm(nnx.Linear(5, 4, rngs=rngs), rngs=rngs),
        inputs=lambda: (sample(2, 5),),
        linen_kwargs={"update_stats": True, "mutable": ["batch_stats"]},
        nnx_kwargs={"update_stats": True},
        paths=SPECTRAL_NORM,
        by_convention=True,
    ),
    Pair(
        name="spectral_norm_setup",
        linen=LinenSpectralNormSetup,
        nnx=NnxSpectralNormSetup,
        inputs=lambda: (sample(2, 5),),
        linen_kwargs={"mutable": ["batch_stats"]},
        paths={
            **wrapped("normed/", "normed/"),
            'batch_stats/normed/"layer_instance/kernel/u"': "normed/batch_stats/('kernel', 'u')",
            'batch_stats/normed/"layer_instance/kernel/sigma"': "normed/batch_stats/('kernel', 'sigma')",
        },
        by_convention=True,
    ),
    Pair(
        name="spectral_norm_conv",
        linen=lambda: nn.SpectralNorm(nn.Conv(4, (3,))),
        nnx=lambda rngs: nnx.SpectralNorm(nnx.Conv(5, 4, (3,), rngs=rngs), rngs=rngs),
        inputs=lambda: (sample(2, 7, 5),),
        linen_kwargs={"update_stats": True, "mutable": ["batch_stats"]},
        nnx_kwargs={"update_stats": True},
        paths=SPECTRAL_NORM,
        by_convention=True,
    ),
    Pair(
        name="spectral_norm_compact",
        linen=LinenSpectralNormCompact,
        nnx=NnxSpectralNormAttributes,
        inputs=lambda: (sample(2, 5),),
        linen_kwargs={"mutable": ["batch_stats"]},
        paths={
            "params/Dense_0/kernel": "first/kernel",
            "params/Dense_0/bias": "first/bias",
            "params/Dense_1/kernel": "sn/layer_instance/kernel",
            "params/Dense_1/bias": "sn/layer_instance/bias",
            'batch_stats/SpectralNorm_0/"Dense_1/kernel/u"': "sn/batch_stats/('kernel', 'u')",
            'batch_stats/SpectralNorm_0/"Dense_1/kernel/sigma"': "sn/batch_stats/('kernel', 'sigma')",
        },
    ),
    Pair(
        # Depending on the version of NNX the scales are Params, or plain arrays without a Variable around them.
        name="weight_norm",
        linen=lambda: nn.WeightNorm(nn.Dense(4)),
        nnx=lambda rngs: nnx.WeightNorm(nnx.Linear(5, 4, rngs=rngs), rngs=rngs),
        inputs=lambda: (sample(2, 5),),
        paths=WEIGHT_NORM,
        by_convention=True,
    ),
    Pair(
        name="weight_norm_no_scale",
        linen=lambda: nn.WeightNorm(nn.Dense(4), use_scale=False),
        nnx=lambda rngs: nnx.WeightNorm(nnx.Linear(5, 4, rngs=rngs), use_scale=False, rngs=rngs),
        inputs=lambda: (sample(2, 5),),
        paths=wrapped(),
        by_convention=True,
    ),
]

ACTIVATIONS = [
    Pair(
        name="prelu",
        linen=nn.PReLU,
        nnx=lambda rngs: nnx.PReLU(),
        inputs=lambda: (sample(2, 5),),
        paths=same("params/negative_slope"),
        by_convention=True,
    ),
    Pair(
        # NNX keeps a random stream for the masks; Linen is given one with each call.
        name="dropout_deterministic",
        linen=lambda: nn.Dropout(0.5, deterministic=True),
        nnx=lambda rngs: nnx.Dropout(0.5, deterministic=True, rngs=rngs),
        inputs=lambda: (sample(2, 5),),
        by_convention=True,
    ),
    Pair(
        name="dropout_no_rngs",
        linen=lambda: nn.Dropout(0.5, deterministic=True),
        nnx=lambda rngs: nnx.Dropout(0.5, deterministic=True),
        inputs=lambda: (sample(2, 5),),
        by_convention=True,
    ),
]


# 3. Attention --------------------------------------------------------------------------------------------------------

# Two heads of four features: the square root of four is exact, so both sides scale the queries to the same bits.
IN, HEADS, QKV, OUT, LENGTH = 3, 2, 8, 5, 6


def attention_paths(linen: str = "", nnx: str = "", *, bias: bool = True, norm: bool = False) -> dict[str, str]:
    """Four projections, and the norms of queries and keys, below these prefixes."""
    leaves = [f"{part}/{leaf}" for part in ("query", "key", "value", "out") for leaf in ("kernel", "bias")[: 1 + bias]]
    leaves += ["query_ln/scale", "key_ln/scale"] if norm else []
    return {f"params/{linen}{leaf}": f"{nnx}{leaf}" for leaf in leaves}


def attention(
    name: str,
    layer: type[nn.Module] = nn.MultiHeadDotProductAttention,
    inputs: Callable[[], tuple[Any, ...]] = lambda: (sample(2, LENGTH, IN),),
    linen_kwargs: Mapping[str, Any] | None = None,
    nnx_kwargs: Mapping[str, Any] | None = None,
    kv_features: int | None = None,
    **options: Any,
) -> Pair:
    """Attention of the same options in both frameworks."""
    options = {"num_heads": HEADS, "qkv_features": QKV, "out_features": OUT, **options}
    return Pair(
        name=name,
        linen=lambda: layer(**options),
        nnx=lambda rngs: nnx.MultiHeadAttention(
            in_features=IN, in_kv_features=kv_features, decode=False, rngs=rngs, **options
        ),
        inputs=inputs,
        linen_kwargs=linen_kwargs or {},
        nnx_kwargs=nnx_kwargs or {},
        paths=attention_paths(bias=options.get("use_bias", True), norm=options.get("normalize_qk", False)),
        by_convention=True,
    )


class LinenDecoder(nn.Module):
    """Two steps of decoding. The cache is made for the whole length, before the first step."""

    normalize_qk: bool = False

    def setup(self) -> None:
        self.attention = nn.MultiHeadDotProductAttention(
            HEADS, qkv_features=QKV, out_features=OUT, decode=True, normalize_qk=self.normalize_qk
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.is_initializing():
            self.attention(jnp.zeros((2, LENGTH, IN)))
            return jnp.zeros((2, 2, OUT))
        return jnp.concatenate([self.attention(x[:, :1]), self.attention(x[:, 1:])], axis=1)


class NnxDecoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, normalize_qk: bool = False) -> None:
        self.attention = nnx.MultiHeadAttention(HEADS, IN, QKV, OUT, decode=True, normalize_qk=normalize_qk, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([self.attention(x[:, :1]), self.attention(x[:, 1:])], axis=1)


CACHE = same("cache/attention/cached_key", "cache/attention/cached_value", "cache/attention/cache_index")


class LinenAttentions(nn.Module):
    """One layer under three names: automatic names follow the class."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + nn.SelfAttention(HEADS, qkv_features=QKV)(x)
        x = x + nn.MultiHeadAttention(HEADS, qkv_features=QKV)(x)
        return nn.MultiHeadDotProductAttention(HEADS, qkv_features=QKV, out_features=OUT)(x)


class NnxAttentions(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.MultiHeadAttention(HEADS, IN, QKV, decode=False, rngs=rngs)
        self.second = nnx.MultiHeadAttention(HEADS, IN, QKV, decode=False, rngs=rngs)
        self.last = nnx.MultiHeadAttention(HEADS, IN, QKV, OUT, decode=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.first(x)
        x = x + self.second(x)
        return self.last(x)


CAUSAL = np.tril(np.ones((LENGTH, LENGTH), bool))[None, None]

ATTENTION = [
    attention("mha_self"),
    attention("multi_head_attention", nn.MultiHeadAttention),
    attention("self_attention", nn.SelfAttention),
    attention("mha_cross", inputs=lambda: (sample(2, LENGTH, IN), sample(2, 4, 7)), kv_features=7),
    attention("mha_masked", linen_kwargs={"mask": CAUSAL}, nnx_kwargs={"mask": CAUSAL}),
    attention("mha_no_bias", use_bias=False),
    attention("mha_normalize_qk", normalize_qk=True),
    # Dropout adds a random stream to the state of the NNX module, whether it is used or not.
    attention("mha_dropout_eval", dropout_rate=0.5, deterministic=True),
    Pair(
        name="mha_decode_cache",
        linen=LinenDecoder,
        nnx=NnxDecoder,
        inputs=lambda: (sample(2, 2, IN),),
        linen_kwargs={"mutable": ["cache"]},
        prepare=lambda module: module.attention.init_cache((2, LENGTH, IN)),
        paths={**attention_paths("attention/", "attention/"), **CACHE},
        by_convention=True,
    ),
    Pair(
        name="mha_decode_cache_normalize_qk",
        linen=lambda: LinenDecoder(normalize_qk=True),
        nnx=lambda rngs: NnxDecoder(rngs, normalize_qk=True),
        inputs=lambda: (sample(2, 2, IN),),
        linen_kwargs={"mutable": ["cache"]},
        prepare=lambda module: module.attention.init_cache((2, LENGTH, IN)),
        paths={**attention_paths("attention/", "attention/", norm=True), **CACHE},
        by_convention=True,
    ),
    Pair(
        # The bare layer: its cache is as long as the inputs it is initialised with, and each call is one step.
        name="mha_decode_one_step",
        linen=lambda: nn.MultiHeadDotProductAttention(HEADS, qkv_features=QKV, out_features=OUT, decode=True),
        nnx=lambda rngs: nnx.MultiHeadAttention(HEADS, IN, QKV, OUT, decode=True, rngs=rngs),
        inputs=lambda: (sample(2, 1, IN),),
        init_inputs=lambda: (sample(2, LENGTH, IN),),
        linen_kwargs={"mutable": ["cache"]},
        prepare=lambda module: module.init_cache((2, LENGTH, IN)),
        paths={**attention_paths(), **same("cache/cached_key", "cache/cached_value", "cache/cache_index")},
        by_convention=True,
    ),
    Pair(
        name="attention_auto_names",
        linen=LinenAttentions,
        nnx=NnxAttentions,
        inputs=lambda: (sample(2, LENGTH, IN),),
        paths={
            **attention_paths("SelfAttention_0/", "first/"),
            **attention_paths("MultiHeadAttention_0/", "second/"),
            **attention_paths("MultiHeadDotProductAttention_0/", "last/"),
        },
    ),
]


# 4. Recurrent layers -------------------------------------------------------------------------------------------------

# x has three features, the state four.
X, H = 3, 4


def lstm_paths(linen: str = "", nnx: str = "") -> dict[str, str]:
    """Four gates, each with a kernel for the input, and a kernel and a bias for the state.

    NNX cannot have an attribute ``if``, which is a word of Python.
    """
    return {
        f"params/{linen}ii/kernel": f"{nnx}ii/kernel",
        f"params/{linen}if/kernel": f"{nnx}if_/kernel",
        f"params/{linen}ig/kernel": f"{nnx}ig/kernel",
        f"params/{linen}io/kernel": f"{nnx}io/kernel",
        **{f"params/{linen}{gate}/{leaf}": f"{nnx}{gate}/{leaf}" for gate in HIDDEN for leaf in ("kernel", "bias")},
    }


HIDDEN = ("hi", "hf", "hg", "ho")


def joined(prefix: str, gates: tuple[str, ...], leaf: str) -> str:
    """The paths of one leaf of several gates, as ``Pair.paths`` wants them."""
    return " + ".join(f"params/{prefix}{gate}/{leaf}" for gate in gates)


def optimized_lstm_paths(linen: str = "", nnx: str = "") -> dict[str, str]:
    """The same leaves in Linen; in NNX the gates stand side by side in two wide layers."""
    return {
        joined(linen, ("ii", "if", "ig", "io"), "kernel"): f"{nnx}dense_i/kernel",
        joined(linen, HIDDEN, "kernel"): f"{nnx}dense_h/kernel",
        joined(linen, HIDDEN, "bias"): f"{nnx}dense_h/bias",
    }


def gru_paths(linen: str = "", nnx: str = "") -> dict[str, str]:
    """Three gates side by side. Linen's ``hn/bias`` is missing: NNX has no bias for the state."""
    return {
        joined(linen, ("ir", "iz", "in"), "kernel"): f"{nnx}dense_i/kernel",
        joined(linen, ("ir", "iz", "in"), "bias"): f"{nnx}dense_i/bias",
        joined(linen, ("hr", "hz", "hn"), "kernel"): f"{nnx}dense_h/kernel",
    }


def simple_paths(linen: str = "", nnx: str = "") -> dict[str, str]:
    return {
        f"params/{linen}i/kernel": f"{nnx}dense_i/kernel",
        f"params/{linen}i/bias": f"{nnx}dense_i/bias",
        f"params/{linen}h/kernel": f"{nnx}dense_h/kernel",
    }


def cell(
    name: str,
    linen: Callable[[], Any],
    nnx: Callable[..., Any],
    paths: Callable[..., dict[str, str]],
    carry: Callable[[], Any] = lambda: sample(2, H, seed=1),
    lossy: tuple[str, ...] = (),
) -> Pair:
    """A cell that is called once, with a state and an input."""
    return Pair(
        name=f"cell_{name}",
        linen=linen,
        nnx=nnx,
        inputs=lambda: (carry(), sample(2, X)),
        paths=paths(),
        to_nnx=concatenated(paths()),
        tolerance=FUSED if concatenated(paths()) else 0.0,
        lossy=lossy,
        by_convention=True,
    )


def rnn(
    name: str,
    linen: Callable[[], Any],
    nnx: Callable[..., Any],
    paths: dict[str, str],
    shape: tuple[int, ...] = (2, 5, X),
    lossy: tuple[str, ...] = (),
    by_convention: bool = True,
) -> Pair:
    """A layer that runs cells over five steps."""
    return Pair(
        name=name,
        linen=linen,
        nnx=nnx,
        inputs=lambda: (sample(*shape),),
        paths=paths,
        to_nnx=concatenated(paths),
        tolerance=FUSED if concatenated(paths) else 0.0,
        lossy=lossy,
        by_convention=by_convention,
    )


def lstm_carry() -> tuple[jax.Array, jax.Array]:
    return sample(2, H, seed=1), sample(2, H, seed=2)


BACKWARDS = {"reverse": True, "keep_order": True, "time_major": True}


class LinenEncoder(nn.Module):
    """A recurrent layer as an attribute: its cell stays below it."""

    def setup(self) -> None:
        self.encoder = nn.RNN(nn.OptimizedLSTMCell(H))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.encoder(x)


class NnxEncoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encoder = nnx.RNN(nnx.OptimizedLSTMCell(X, H, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.encoder(x)


class LinenRecurrentCompact(nn.Module):
    """Made in a compact method, cells belong to that method's module, and RNN and Bidirectional leave no level."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Bidirectional(nn.RNN(nn.LSTMCell(H)), nn.RNN(nn.LSTMCell(H)))(x)
        return nn.RNN(nn.SimpleCell(5))(x)


class NnxRecurrentAttributes(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        forward = nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=rngs)
        backward = nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=rngs)
        self.bi = nnx.Bidirectional(forward, backward, rngs=rngs)
        self.top = nnx.RNN(nnx.SimpleCell(2 * H, 5, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.top(self.bi(x))


CELLS = [
    cell("lstm", lambda: nn.LSTMCell(H), lambda rngs: nnx.LSTMCell(X, H, rngs=rngs), lstm_paths, lstm_carry),
    cell(
        "optimized_lstm",
        lambda: nn.OptimizedLSTMCell(H),
        lambda rngs: nnx.OptimizedLSTMCell(X, H, rngs=rngs),
        optimized_lstm_paths,
        lstm_carry,
    ),
    cell(
        "linen_lstm_to_nnx_optimized",
        lambda: nn.LSTMCell(H),
        lambda rngs: nnx.OptimizedLSTMCell(X, H, rngs=rngs),
        optimized_lstm_paths,
        lstm_carry,
    ),
    Pair(
        # Linen's fused product against the separate ones of NNX: names differ only, but bits may.
        name="cell_linen_optimized_to_nnx_lstm",
        linen=lambda: nn.OptimizedLSTMCell(H),
        nnx=lambda rngs: nnx.LSTMCell(X, H, rngs=rngs),
        inputs=lambda: (lstm_carry(), sample(2, X)),
        paths=lstm_paths(),
        tolerance=FUSED,
        by_convention=True,
    ),
    cell(
        "gru",
        lambda: nn.GRUCell(H),
        lambda rngs: nnx.GRUCell(X, H, rngs=rngs),
        gru_paths,
        lossy=("params/hn/bias",),
    ),
    cell("simple", lambda: nn.SimpleCell(H), lambda rngs: nnx.SimpleCell(X, H, rngs=rngs), simple_paths),
    cell(
        "simple_residual",
        lambda: nn.SimpleCell(H, residual=True),
        lambda rngs: nnx.SimpleCell(X, H, residual=True, rngs=rngs),
        simple_paths,
    ),
]

RNN = [
    rnn(
        "rnn_lstm",
        lambda: nn.RNN(nn.LSTMCell(H)),
        lambda rngs: nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=rngs),
        lstm_paths("cell/", "cell/"),
    ),
    rnn(
        "rnn_reverse_keep_order_time_major",
        lambda: nn.RNN(nn.LSTMCell(H), **BACKWARDS),
        lambda rngs: nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=rngs, **BACKWARDS),
        lstm_paths("cell/", "cell/"),
        shape=(5, 2, X),
    ),
    Pair(
        # Without a random stream of its own, NNX wants to be given the first state.
        name="rnn_initial_carry",
        linen=lambda: nn.RNN(nn.LSTMCell(H)),
        nnx=lambda rngs: nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=False),
        inputs=lambda: (sample(2, 5, X),),
        linen_kwargs={"initial_carry": lstm_carry()},
        nnx_kwargs={"initial_carry": lstm_carry()},
        paths=lstm_paths("cell/", "cell/"),
        by_convention=True,
    ),
    rnn(
        "rnn_optimized_lstm",
        lambda: nn.RNN(nn.OptimizedLSTMCell(H)),
        lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(X, H, rngs=rngs), rngs=rngs),
        optimized_lstm_paths("cell/", "cell/"),
    ),
    rnn(
        "rnn_optimized_lstm_setup",
        LinenEncoder,
        NnxEncoder,
        optimized_lstm_paths("encoder/cell/", "encoder/cell/"),
    ),
    rnn(
        "rnn_linen_lstm_to_nnx_optimized",
        lambda: nn.RNN(nn.LSTMCell(H)),
        lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(X, H, rngs=rngs), rngs=rngs),
        optimized_lstm_paths("cell/", "cell/"),
    ),
    Pair(
        name="rnn_linen_optimized_to_nnx_lstm",
        linen=lambda: nn.RNN(nn.OptimizedLSTMCell(H)),
        nnx=lambda rngs: nnx.RNN(nnx.LSTMCell(X, H, rngs=rngs), rngs=rngs),
        inputs=lambda: (sample(2, 5, X),),
        paths=lstm_paths("cell/", "cell/"),
        tolerance=FUSED,
        by_convention=True,
    ),
    rnn(
        "rnn_gru",
        lambda: nn.RNN(nn.GRUCell(H)),
        lambda rngs: nnx.RNN(nnx.GRUCell(X, H, rngs=rngs), rngs=rngs),
        gru_paths("cell/", "cell/"),
        lossy=("params/cell/hn/bias",),
    ),
    rnn(
        "bidirectional_gru",
        lambda: nn.Bidirectional(nn.RNN(nn.GRUCell(H)), nn.RNN(nn.GRUCell(H))),
        lambda rngs: nnx.Bidirectional(
            nnx.RNN(nnx.GRUCell(X, H, rngs=rngs), rngs=rngs),
            nnx.RNN(nnx.GRUCell(X, H, rngs=rngs), rngs=rngs),
            rngs=rngs,
        ),
        {
            **gru_paths("forward_rnn/cell/", "forward_rnn/cell/"),
            **gru_paths("backward_rnn/cell/", "backward_rnn/cell/"),
        },
        lossy=("params/forward_rnn/cell/hn/bias", "params/backward_rnn/cell/hn/bias"),
    ),
    rnn(
        "rnn_simple",
        lambda: nn.RNN(nn.SimpleCell(H)),
        lambda rngs: nnx.RNN(nnx.SimpleCell(X, H, rngs=rngs), rngs=rngs),
        simple_paths("cell/", "cell/"),
    ),
    rnn(
        "rnn_compact",
        LinenRecurrentCompact,
        NnxRecurrentAttributes,
        {
            **lstm_paths("LSTMCell_0/", "bi/forward_rnn/cell/"),
            **lstm_paths("LSTMCell_1/", "bi/backward_rnn/cell/"),
            **simple_paths("SimpleCell_0/", "top/cell/"),
        },
        by_convention=False,
    ),
]

PAIRS: list[Pair] = [*DENSE, *CONV, *NORM, *WRAPPED, *ACTIVATIONS, *ATTENTION, *CELLS, *RNN]
