"""Models of others, aligned: held against what their names say, converted by the rules that were found, and run."""

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
from tests.rules.align.papers import HEADS, HIDDEN, LAYERS, VOCABULARY, WIDTH

SHAPE = (2, 7)
IDS = np.random.default_rng(0).integers(0, VOCABULARY, SHAPE)
MASK = np.ones(SHAPE, int)
POSITIONS = np.broadcast_to(np.arange(SHAPE[1]), SHAPE)
IMAGES = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)


def hugging_face() -> Any:
    """The package transformers in a release with Flax models; without it the tests that ask for it are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("transformers", exc_type=ImportError)
        pytest.importorskip("transformers.modeling_flax_utils", exc_type=ImportError)
    return found


def sizes(**more: Any) -> dict[str, Any]:
    """The sizes of a model under the names that most models of Hugging Face give them."""
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": HIDDEN,
        **more,
    }


@dataclass(frozen=True)
class ThirdParty:
    """Two models that compute the same.

    Attributes:
      truth: by regular expressions over the names of Linen how the names in NNX begin.
    """

    linen: Callable[[], Any]
    nnx: Callable[[], nnx.Module]
    inputs: tuple[Any, ...]
    truth: Mapping[str, str]
    linen_output: str = ""
    nnx_output: str = ""
    linen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    nnx_kwargs: Mapping[str, Any] = field(default_factory=dict)


def check_alignment(third: ThirdParty) -> None:
    """Every variable of both models is paired, none wrongly, and the converted variables give the same outputs."""
    linen, module = third.linen(), third.nnx()
    inputs = tuple(map(jnp.asarray, third.inputs))
    calls = {"linen_kwargs": third.linen_kwargs, "nnx_kwargs": third.nnx_kwargs}
    outputs = {"linen_output": third.linen_output, "nnx_output": third.nnx_output}
    report = align(linen, third.nnx, inputs, **calls, **outputs)
    report.check()
    pieces = report.alignment.pieces
    shapes = jax.eval_shape(lambda: linen.init(jax.random.key(0), *inputs, **third.linen_kwargs))
    assert sum(len(piece.linen) for piece in pieces) == len(jax.tree.leaves(shapes))
    assert sum(len(piece.nnx) for piece in pieces) == len(nnx.to_flat_state(nnx.state(module, nnx.Param)))
    for piece in pieces:
        for name in map(format_name, piece.linen):
            expected = f"params/{_expected(third.truth, name)}"
            assert all(format_name(found).startswith(expected) for found in piece.nnx), (name, piece.nnx)
    _assert_same_outputs(third, linen, module, shapes, report.rules)


def _expected(truth: Mapping[str, str], name: str) -> str:
    pattern = next((pattern for pattern in truth if re.search(pattern, name)), None)
    assert pattern is not None, name
    return re.sub(f".*?{pattern}.*", truth[pattern], name)


def _assert_same_outputs(third: ThirdParty, linen: Any, module: Any, shapes: Any, rules: str) -> None:
    generator = np.random.default_rng(2)
    variables = jax.tree.map(lambda s: jnp.asarray(generator.normal(0, 0.3, s.shape), s.dtype), shapes)
    nnx.update(module, linen_to_nnx(variables, module, rules=rules))
    module.eval()
    inputs = tuple(map(jnp.asarray, third.inputs))
    wanted = _part(linen.apply(variables, *inputs, **third.linen_kwargs), third.linen_output)
    found = _part(module(*inputs, **third.nnx_kwargs), third.nnx_output)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.allclose(one, other, atol=2e-5 * float(np.abs(other).max()))


def _part(result: Any, output: str) -> Any:
    return result[int(output) if output.isdigit() else output] if output else result
