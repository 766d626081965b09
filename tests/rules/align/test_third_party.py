"""The Linen models of Hugging Face against NNX models that were written from the papers.

They need transformers 4.57, the last release with Flax models, and are skipped without it: ``make test-third-party``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.rules.align.papers import HEADS, HIDDEN, LAYERS, VOCABULARY, WIDTH, Bert, Gpt, Llama, Vit
from tests.rules.align.third_party import (
    IDS,
    IMAGES,
    MASK,
    POSITIONS,
    ThirdParty,
    check_alignment,
    hugging_face,
    sizes,
)

transformers = hugging_face()
pytestmark = pytest.mark.filterwarnings("ignore")  # what old models say to new libraries


def vit() -> Any:
    from transformers.models.vit.modeling_flax_vit import FlaxViTModule

    config = transformers.ViTConfig(**sizes(image_size=8, patch_size=4))
    return FlaxViTModule(config, add_pooling_layer=False)


def bert() -> Any:
    from transformers.models.bert.modeling_flax_bert import FlaxBertModule

    return FlaxBertModule(transformers.BertConfig(**sizes(vocab_size=VOCABULARY, max_position_embeddings=16)))


def gpt() -> Any:
    from transformers.models.gpt2.modeling_flax_gpt2 import FlaxGPT2Module

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=HIDDEN
    )
    return FlaxGPT2Module(config)


def llama(kv_heads: int) -> Callable[[], Any]:
    def make() -> Any:
        from transformers.models.llama.modeling_flax_llama import FlaxLlamaModule

        own = sizes(vocab_size=VOCABULARY, max_position_embeddings=16, num_key_value_heads=kv_heads)
        return FlaxLlamaModule(transformers.LlamaConfig(**own))

    return make


ENCODER = {
    r"layer/(\d+)/attention/(?:attention|self)/query/": r"blocks/\1/attention/q/",
    r"layer/(\d+)/attention/(?:attention|self)/key/": r"blocks/\1/attention/k/",
    r"layer/(\d+)/attention/(?:attention|self)/value/": r"blocks/\1/attention/v/",
    r"layer/(\d+)/attention/output/dense/": r"blocks/\1/attention/o/",
    r"layer/(\d+)/intermediate/dense/": r"blocks/\1/mlp/up/",
    r"layer/(\d+)/output/dense/": r"blocks/\1/mlp/down/",
}
KNOWN = {"attention_mask": MASK, "position_ids": POSITIONS}
LLAMA = {
    "embed_tokens/": "words",
    r"layers/(\d+)/self_attn/([qkvo])_proj/": r"blocks/\1/attention/\2/",
    r"layers/(\d+)/mlp/(?:gate|up)_proj/": r"blocks/\1/gated/",
    r"layers/(\d+)/mlp/down_proj/": r"blocks/\1/down/",
    r"layers/(\d+)/input_layernorm/": r"blocks/\1/norm1/",
    r"layers/(\d+)/post_attention_layernorm/": r"blocks/\1/norm2/",
    "params/norm/": "norm/",
}

CASES = {
    "vit": ThirdParty(
        vit,
        Vit,
        (IMAGES,),
        {
            **ENCODER,
            r"layer/(\d+)/layernorm_before/": r"blocks/\1/norm1/",
            r"layer/(\d+)/layernorm_after/": r"blocks/\1/norm2/",
            "patch_embeddings/projection/": "patches/",
            "cls_token": "token",
            "position_embeddings": "positions",
            "params/layernorm/": "norm/",
        },
        linen_output="last_hidden_state",
    ),
    "bert": ThirdParty(
        bert,
        Bert,
        (IDS, MASK, IDS % 2, POSITIONS),
        {
            **ENCODER,
            r"layer/(\d+)/attention/output/LayerNorm/": r"blocks/\1/norm1/",
            r"layer/(\d+)/output/LayerNorm/": r"blocks/\1/norm2/",
            "embeddings/LayerNorm/": "norm/",
            "word_embeddings/": "words",
            "position_embeddings/": "positions",
            "token_type_embeddings/": "types",
            "pooler/": "pooler/",
        },
        linen_kwargs={"head_mask": None, "return_dict": False},
    ),
    "gpt2": ThirdParty(
        gpt,
        Gpt,
        (IDS, MASK, POSITIONS),
        {
            r"h/\d+/attn/c_attn/": "blocks/attention/qkv/",
            r"h/\d+/attn/c_proj/": "blocks/attention/o/",
            r"h/\d+/mlp/c_fc/": "blocks/mlp/up/",
            r"h/\d+/mlp/c_proj/": "blocks/mlp/down/",
            r"h/\d+/ln_([12])/": r"blocks/norm\1/",
            "ln_f/": "norm/",
            "wte/": "words",
            "wpe/": "positions",
        },
        linen_output="last_hidden_state",
    ),
    # Without a mask and with the usual positions, which the model of the paper does not even take.
    "llama": ThirdParty(llama(HEADS), Llama, (IDS,), LLAMA, "last_hidden_state", linen_kwargs=KNOWN),
    "llama_with_one_key_head": ThirdParty(
        llama(1), lambda: Llama(1), (IDS,), LLAMA, "last_hidden_state", linen_kwargs=KNOWN
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_models_of_hugging_face(case: str):
    check_alignment(CASES[case])
