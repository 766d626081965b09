"""The Linen models of Hugging Face against NNX models that were written from the papers.

They need transformers 4.57, the last release with Flax models, on the import path, and are skipped without it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converter import align, linen_to_nnx
from converter.rules.link import format_name
from tests.rules.align.papers import HEADS, HIDDEN, LAYERS, VOCABULARY, WIDTH, Bert, Gpt, Llama, Vit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    pytest.importorskip("transformers.modeling_flax_utils", exc_type=ImportError)

SHAPE = (2, 7)
IDS = np.random.default_rng(0).integers(0, VOCABULARY, SHAPE)
MASK = np.ones(SHAPE, int)
POSITIONS = np.broadcast_to(np.arange(SHAPE[1]), SHAPE)


@dataclass(frozen=True)
class ThirdParty:
    """A model of Hugging Face and one from the paper.

    Attributes:
      truth: by regular expressions over the names of Linen what NNX calls the same.
    """

    linen: Callable[[], Any]
    nnx: Callable[[], nnx.Module]
    inputs: tuple[Any, ...]
    truth: Mapping[str, str]
    linen_output: str = "last_hidden_state"
    linen_kwargs: Mapping[str, Any] = field(default_factory=dict)


def shared(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": HIDDEN,
        **more,
    }


def vit() -> Any:
    from transformers.models.vit.modeling_flax_vit import FlaxViTModule

    config = transformers.ViTConfig(**shared(image_size=8, patch_size=4))
    return FlaxViTModule(config, add_pooling_layer=False)


def bert() -> Any:
    from transformers.models.bert.modeling_flax_bert import FlaxBertModule

    return FlaxBertModule(transformers.BertConfig(**shared(vocab_size=VOCABULARY, max_position_embeddings=16)))


def gpt() -> Any:
    from transformers.models.gpt2.modeling_flax_gpt2 import FlaxGPT2Module

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=HIDDEN
    )
    return FlaxGPT2Module(config)


def llama(kv_heads: int) -> Callable[[], Any]:
    def make() -> Any:
        from transformers.models.llama.modeling_flax_llama import FlaxLlamaModule

        sizes = shared(vocab_size=VOCABULARY, max_position_embeddings=16, num_key_value_heads=kv_heads)
        return FlaxLlamaModule(transformers.LlamaConfig(**sizes))

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
        (np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32),),
        {
            **ENCODER,
            r"layer/(\d+)/layernorm_before/": r"blocks/\1/norm1/",
            r"layer/(\d+)/layernorm_after/": r"blocks/\1/norm2/",
            "patch_embeddings/projection/": "patches/",
            "cls_token": "token",
            "position_embeddings": "positions",
            "params/layernorm/": "norm/",
        },
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
        linen_output="",
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
    ),
    # Without a mask and with the usual positions, which the model of the paper does not even take.
    "llama": ThirdParty(llama(HEADS), Llama, (IDS,), LLAMA, linen_kwargs=KNOWN),
    "llama_with_one_key_head": ThirdParty(llama(1), lambda: Llama(1), (IDS,), LLAMA, linen_kwargs=KNOWN),
}


@pytest.mark.parametrize("case", CASES)
def test_models_of_hugging_face(case: str):
    third = CASES[case]
    linen = third.linen()
    inputs = tuple(jnp.asarray(array) for array in third.inputs)
    options = {"linen_kwargs": third.linen_kwargs, "linen_output": third.linen_output}
    report = align(linen, third.nnx, inputs, **options)
    report.check()
    for aligned in report.alignment.found:
        for name in aligned.piece.linen:
            matching = [nnx for pattern, nnx in third.truth.items() if re.search(pattern, format_name(name))]
            assert matching, format_name(name)
            expected = re.sub(f".*?{_pattern(third, name)}.*", matching[0], format_name(name))
            assert all(format_name(nnx).startswith(f"params/{expected}") for nnx in aligned.piece.nnx)
    _assert_same_outputs(third, linen, inputs, report.rules)


def _pattern(third: ThirdParty, name: Any) -> str:
    return next(pattern for pattern in third.truth if re.search(pattern, format_name(name)))


def _assert_same_outputs(third: ThirdParty, linen: Any, inputs: Any, rules: str) -> None:
    """The checkpoint converted by the rule file computes the same on the user's side."""
    shapes = jax.eval_shape(lambda: linen.init(jax.random.key(0), *inputs, **third.linen_kwargs))
    generator = np.random.default_rng(2)
    variables = jax.tree.map(lambda s: jnp.asarray(generator.normal(0, 0.3, s.shape), s.dtype), shapes)
    module = third.nnx()
    nnx.update(module, linen_to_nnx(variables, module, rules=rules))
    wanted = linen.apply(variables, *inputs, **third.linen_kwargs)
    wanted = getattr(wanted, third.linen_output) if third.linen_output else wanted
    for found, expected in zip(jax.tree.leaves(module(*inputs)), jax.tree.leaves(wanted), strict=True):
        assert np.allclose(found, expected, atol=2e-5 * float(np.abs(expected).max()))
