"""Linen models of Hugging Face against published NNX models: both sides are others' work, in tiny configurations.

What they need is skipped where it is missing, and installed by ``make test-third-party``.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.rules.align.papers import HEADS, HIDDEN, LAYERS, VOCABULARY, WIDTH
from tests.rules.align.third_party import (
    IDS,
    IMAGES,
    MASK,
    POSITIONS,
    SHAPE,
    ThirdParty,
    check_alignment,
    hugging_face,
    sizes,
)

transformers = hugging_face()
pytestmark = pytest.mark.filterwarnings("ignore")  # what old models say to new libraries

HEAD_SIZE = 4
CAUSAL = np.broadcast_to(np.tril(np.ones((SHAPE[1], SHAPE[1]), bool)), (*SHAPE, SHAPE[1]))


def package(name: str) -> None:
    """Makes the modules of a package importable without its ``__init__``, which imports all that training needs."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{name} is not installed")
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = list(spec.submodule_search_locations)


# Gemma ---------------------------------------------------------------------------------------------------------------


def gemma(heads: int, kv_heads: int) -> tuple[Callable[[], Any], Callable[[], nnx.Module]]:
    """Gemma of transformers, and that of Tunix. Queries, keys and values of Tunix are one kernel, or two."""

    def linen() -> Any:
        from transformers.models.gemma.modeling_flax_gemma import FlaxGemmaForCausalLMModule

        own = sizes(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=HEAD_SIZE)
        config = transformers.GemmaConfig(
            **own, vocab_size=VOCABULARY, max_position_embeddings=16, hidden_activation="gelu_pytorch_tanh"
        )
        return FlaxGemmaForCausalLMModule(config)

    def tunix() -> nnx.Module:
        package("tunix")
        from tunix.models.gemma.model import AttentionType, Gemma, ModelConfig

        config = ModelConfig(
            num_layers=LAYERS,
            num_embed=VOCABULARY,
            embed_dim=WIDTH,
            hidden_dim=HIDDEN,
            num_heads=heads,
            head_dim=HEAD_SIZE,
            num_kv_heads=kv_heads,
            final_logit_softcap=None,
            attention_types=(AttentionType.GLOBAL,) * LAYERS,
            use_post_attn_norm=False,
            use_post_ffw_norm=False,
        )
        return Gemma(config, rngs=nnx.Rngs(0))

    return linen, tunix


GEMMA = {
    "embed_tokens/": "embedder/input_embedding",
    r"layers/(\d+)/self_attn/o_proj/": r"layers/\1/attn/attn_vec_einsum/",
    r"layers/(\d+)/mlp/(\w+)/": r"layers/\1/mlp/\2/",
    r"layers/(\d+)/input_layernorm/": r"layers/\1/pre_attention_norm/",
    r"layers/(\d+)/post_attention_layernorm/": r"layers/\1/pre_ffw_norm/",
    "model/norm/": "final_norm/",
}
FUSED = {r"layers/(\d+)/self_attn/[qkv]_proj/": r"layers/\1/attn/qkv_einsum/"}
GROUPED = {
    r"layers/(\d+)/self_attn/q_proj/": r"layers/\1/attn/q_einsum/",
    r"layers/(\d+)/self_attn/[kv]_proj/": r"layers/\1/attn/kv_einsum/",
}


# Llama ---------------------------------------------------------------------------------------------------------------


def llama_linen() -> Any:
    from transformers.models.llama.modeling_flax_llama import FlaxLlamaForCausalLMModule

    own = sizes(vocab_size=VOCABULARY, max_position_embeddings=16, num_key_value_heads=1, rms_norm_eps=1e-5)
    return FlaxLlamaForCausalLMModule(transformers.LlamaConfig(**own, tie_word_embeddings=False))


def llama_tunix() -> nnx.Module:
    package("tunix")
    from tunix.models.llama3.model import Llama3, ModelConfig

    config = ModelConfig(
        num_layers=LAYERS,
        vocab_size=VOCABULARY,
        embed_dim=WIDTH,
        hidden_dim=HIDDEN,
        num_heads=HEADS,
        head_dim=HEAD_SIZE,
        num_kv_heads=1,
        rope_theta=10_000,
        norm_eps=1e-5,
    )
    return Llama3(config, rngs=nnx.Rngs(0))


LLAMA = {
    "embed_tokens/": "embedder/input_embedding",
    r"layers/(\d+)/self_attn/(\w+)/": r"layers/\1/attn/\2/",
    r"layers/(\d+)/(\w+)/": r"layers/\1/\2/",
    "model/norm/": "final_norm/",
    "lm_head/": "lm_head/",
}


# ViT -----------------------------------------------------------------------------------------------------------------


def vit_linen() -> Any:
    from transformers.models.vit.modeling_flax_vit import FlaxViTForImageClassificationModule

    config = transformers.ViTConfig(
        **sizes(image_size=8, patch_size=4, hidden_act="gelu_new", layer_norm_eps=1e-6, num_labels=5)
    )
    return FlaxViTForImageClassificationModule(config)


def vit_vitax() -> nnx.Module:
    package("vitax")
    from vitax.models.vit import VisionTransformer

    return VisionTransformer(
        num_classes=5,
        img_size=8,
        patch_size=4,
        num_layers=LAYERS,
        num_heads=HEADS,
        mlp_dim=HIDDEN,
        hidden_size=WIDTH,
        fsdp=False,
        rngs=nnx.Rngs(0),
    )


VIT = {
    r"layer/(\d+)/attention/attention/(\w+)/": r"encoder/layers/\1/attn/\2/",
    r"layer/(\d+)/attention/output/dense/": r"encoder/layers/\1/attn/out/",
    r"layer/(\d+)/intermediate/dense/": r"encoder/layers/\1/mlp/layers/0/",
    r"layer/(\d+)/output/dense/": r"encoder/layers/\1/mlp/layers/3/",
    r"layer/(\d+)/layernorm_before/": r"encoder/layers/\1/norm1/",
    r"layer/(\d+)/layernorm_after/": r"encoder/layers/\1/norm2/",
    "patch_embeddings/projection/": "patch_embeddings/",
    "cls_token": "cls_token",
    "position_embeddings": "position_embeddings",
    "vit/layernorm/": "final_norm/",
    "classifier/": "classifier/",
}


def decoders(linen: Callable[[], Any], tunix: Callable[[], nnx.Module], truth: Any, positions: Any) -> ThirdParty:
    return ThirdParty(
        linen,
        tunix,
        (IDS,),
        truth,
        "logits",
        "0",
        {"attention_mask": MASK, "position_ids": positions},
        {"positions": positions, "cache": None, "attention_mask": CAUSAL},
    )


CASES = {
    "gemma of transformers and tunix": decoders(*gemma(3, 3), GEMMA | FUSED, POSITIONS),
    "gemma with grouped queries": decoders(*gemma(4, 2), GEMMA | GROUPED, POSITIONS),
    "gemma with one key head": decoders(*gemma(4, 1), GEMMA | GROUPED, POSITIONS),
    # The rotary positions of Tunix have another base than those of transformers, so all tokens stand in one place.
    "llama of transformers and tunix": decoders(llama_linen, llama_tunix, LLAMA, jnp.zeros(SHAPE, int)),
    "vit of transformers and vitax": ThirdParty(vit_linen, vit_vitax, (IMAGES,), VIT, "logits"),
}


@pytest.mark.parametrize("case", CASES)
def test_published_models(case: str):
    check_alignment(CASES[case])
