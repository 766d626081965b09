"""Layers around another layer, which normalize its weights; and layers without weights, or with a single one."""

from __future__ import annotations

import jax
from flax import linen as nn
from flax import nnx

from tests.parity.pair import Pair
from tests.parity.paths import same
from tests.parity.support import sample


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

PAIRS: list[Pair] = [*WRAPPED, *ACTIVATIONS]
