"""Pairs of whole models: ResNet, ViT, VAE."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.pairs_encoders import NnxEncoderBlock
from tests.parity.truth import (
    ATTENTION,
    BATCH,
    CLASSES,
    DENSE,
    HEADS,
    HIDDEN,
    LENGTH,
    NORM,
    QKV_FEATURES,
    WIDTH,
    Part,
    batch_norm,
    images,
    merged,
    pair,
    same,
    wave,
)


class LinenResidual(nn.Module):
    channels: int
    strides: int
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not self.train)
        y = nn.Conv(self.channels, (3, 3), self.strides, use_bias=False)(x)
        y = nn.Conv(self.channels, (3, 3), use_bias=False)(nn.relu(norm()(y)))
        y = norm()(y)
        if x.shape != y.shape:
            x = nn.Conv(self.channels, (1, 1), self.strides, use_bias=False, name="projection")(x)
            x = norm(name="projection_norm")(x)
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        for channels, strides in ((4, 1), (5, 2), (5, 1)):
            x = LinenResidual(channels, strides, train)(x)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class NnxResidual(nnx.Module):
    def __init__(self, inputs: int, channels: int, strides: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(inputs, channels, (3, 3), strides, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(channels, rngs=rngs)
        self.conv2 = nnx.Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(channels, rngs=rngs)
        shortcut = None
        if inputs != channels or strides != 1:
            convolution = nnx.Conv(inputs, channels, (1, 1), strides, use_bias=False, rngs=rngs)
            shortcut = nnx.Sequential(convolution, nnx.BatchNorm(channels, rngs=rngs))
        self.shortcut = shortcut

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        return nnx.relu((x if self.shortcut is None else self.shortcut(x)) + y)


class NnxResNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.head = nnx.Linear(5, CLASSES, rngs=rngs)
        self.stem = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
        self.stem_norm = nnx.BatchNorm(4, rngs=rngs)
        sizes = ((4, 4, 1), (4, 5, 2), (5, 5, 1))
        self.blocks = nnx.List(NnxResidual(*size, rngs=rngs) for size in sizes)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def residual(linen: str, nnx_path: str) -> Part:
    return {
        **same(f"params/{linen}/Conv_0", f"{nnx_path}/conv1", ("kernel",)),
        **batch_norm(f"{linen}/BatchNorm_0", f"{nnx_path}/norm1"),
        **same(f"params/{linen}/Conv_1", f"{nnx_path}/conv2", ("kernel",)),
        **batch_norm(f"{linen}/BatchNorm_1", f"{nnx_path}/norm2"),
    }


RESNET = merged(
    same("params/Conv_0", "stem", ("kernel",)),
    batch_norm("BatchNorm_0", "stem_norm"),
    *(residual(f"LinenResidual_{index}", f"blocks/{index}") for index in range(3)),
    same("params/LinenResidual_1/projection", "blocks/1/shortcut/layers/0", ("kernel",)),
    batch_norm("LinenResidual_1/projection_norm", "blocks/1/shortcut/layers/1"),
    same("params/Dense_0", "head", DENSE),
)


class LinenVit(nn.Module):
    """Parameters of the model itself beside those of its layers, which have auto names."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(WIDTH, (4, 4), 4)(x).reshape(BATCH, -1, WIDTH)
        class_token = self.param("cls", nn.initializers.zeros, (1, 1, WIDTH))
        x = jnp.concatenate([jnp.tile(class_token, (BATCH, 1, 1)), x], 1)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, x.shape[1], WIDTH))
        for _ in range(2):
            x = LinenVitBlock()(x)
        return nn.Dense(CLASSES)(nn.LayerNorm()(x)[:, 0])


class LinenVitBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, qkv_features=QKV_FEATURES)(y, y)
        y = nn.Dense(HIDDEN)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(y))


class NnxVit(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.patches = nnx.Conv(3, WIDTH, (4, 4), 4, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((1, LENGTH, WIDTH)))
        self.class_token = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        self.encoder = nnx.Sequential(*(NnxEncoderBlock(rngs) for _ in range(2)))
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patches(x).reshape(BATCH, -1, WIDTH)
        x = jnp.concatenate([jnp.tile(self.class_token[...], (BATCH, 1, 1)), x], 1)
        return self.head(self.norm(self.encoder(x + self.positions[...]))[:, 0])


def vit_block(linen: str, nnx_path: str) -> Part:
    return {
        **same(f"params/{linen}/LayerNorm_0", f"{nnx_path}/attention_norm", NORM),
        **same(f"params/{linen}/MultiHeadDotProductAttention_0", f"{nnx_path}/attention", ATTENTION),
        **same(f"params/{linen}/LayerNorm_1", f"{nnx_path}/mlp_norm", NORM),
        **same(f"params/{linen}/Dense_0", f"{nnx_path}/up", DENSE),
        **same(f"params/{linen}/Dense_1", f"{nnx_path}/down", DENSE),
    }


class LinenVae(nn.Module):
    """Mean and variance have the same shapes and the same input.

    In the last line the outer layer is made, and numbered, before the inner one.
    """

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        hidden = nn.relu(nn.Dense(HIDDEN, name="fc1")(x))
        mean = nn.Dense(2, name="fc2_mean")(hidden)
        log_variance = nn.Dense(2, name="fc2_logvar")(hidden)
        z = mean + noise * jnp.exp(0.5 * log_variance)
        return nn.Dense(WIDTH)(nn.relu(nn.Dense(HIDDEN)(z))), mean, log_variance


class NnxVae(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.decoder = nnx.List([nnx.Linear(2, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, WIDTH, rngs=rngs)])
        self.log_variance = nnx.Linear(HIDDEN, 2, rngs=rngs)
        self.encoder = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.mean = nnx.Linear(HIDDEN, 2, rngs=rngs)

    def __call__(self, x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        hidden = nnx.relu(self.encoder(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean + noise * jnp.exp(0.5 * log_variance)
        return self.decoder[1](nnx.relu(self.decoder[0](z))), mean, log_variance


PAIRS: list[Pair] = [
    pair("model_resnet_eval", LinenResNet, NnxResNet, images, RESNET, prepare=lambda model: model.eval()),
    pair(
        "model_resnet_train",
        LinenResNet,
        NnxResNet,
        images,
        RESNET,
        linen_kwargs={"train": True, "mutable": ["batch_stats"]},
        prepare=lambda model: model.train(),
    ),
    pair(
        "model_vit",
        LinenVit,
        NnxVit,
        # Six patches; with the class token the sequence is as long as those of the other models.
        lambda: (wave(BATCH, 4, 4 * (LENGTH - 1), 3),),
        same("params/Conv_0", "patches", DENSE),
        {"params/cls": ("class_token", None), "params/pos_embedding": ("positions", None)},
        vit_block("LinenVitBlock_0", "encoder/layers/0"),
        vit_block("LinenVitBlock_1", "encoder/layers/1"),
        same("params/LayerNorm_0", "norm", NORM),
        same("params/Dense_0", "head", DENSE),
    ),
    pair(
        "model_vae",
        LinenVae,
        NnxVae,
        lambda: (wave(BATCH, WIDTH), wave(BATCH, 2)),
        same("params/fc1", "encoder", DENSE),
        same("params/fc2_mean", "mean", DENSE),
        same("params/fc2_logvar", "log_variance", DENSE),
        same("params/Dense_0", "decoder/1", DENSE),
        same("params/Dense_1", "decoder/0", DENSE),
    ),
]
