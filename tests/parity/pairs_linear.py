"""Linear layers, embeddings, convolutions: the same arrays under the same names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.paths import BF16, KERNEL, KERNEL_BIAS, same
from tests.parity.support import sample


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

PAIRS: list[Pair] = [*DENSE, *CONV]
