"""From Orbax to shards of safetensors files and back to Orbax: every leaf, its path and its bits, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.flax
from flax.traverse_util import unflatten_dict

import converter
from fixtures.make import CHECKPOINTS

from . import support

CASES = {
    "linen_transformer_standard": "nnx",
    "linen_train_state_adamw_schedule_standard": "nnx",
    "linen_train_state_chain_masked_pytree": "nnx",
    "nnx_mlp_model_optimizer_standard": "linen",
    "nnx_encoder_pytree": "linen",
}
"""Checkpoints and the framework they are brought to: dicts and lists, tuples of optax, empty members, collections."""


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    source, to = CHECKPOINTS / name / "checkpoint", CASES[name]
    back = {"nnx": "linen", "linen": "nnx"}[to]
    shards = tmp_path / "shards"
    options: dict[str, Any] = {"to_format": "safetensors", "max_shard_size": 300}
    support.convert(source, shards, to, **options, verify="full")
    assert len(list(shards.glob("*.safetensors"))) > 2
    support.convert(shards, tmp_path / "back", back, verify="full")
    support.assert_equal(support.read(tmp_path / "back"), _expected(source))
    assert converter.verify(source, shards, full=True).ok
    assert converter.verify(shards, source).ok
    assert converter.diff(source, shards, values=True).ok


def _expected(source: Path) -> support.Leaves:
    """The leaves of the source; NNX random state stays behind, and a step comes back as jit makes it."""
    leaves = {path: leaf for path, leaf in support.read(source).items() if "/rngs/" not in path}
    return leaves | {path: support.counter(leaf, "int32") for path, leaf in leaves.items() if path == "step"}


def test_the_library_alone_puts_them_together(tmp_path: Path) -> None:
    source = CHECKPOINTS / "nnx_mlp_standard" / "checkpoint"
    options: dict[str, Any] = {"to_format": "safetensors", "max_shard_size": 300}
    converter.convert(source, tmp_path / "out", "linen", **options)
    found: dict[str, Any] = {}
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        found |= safetensors.flax.load_file(file)
    support.assert_equal(
        support.flat(support.describe(unflatten_dict(found, sep="."))),
        {f"params/{path.removesuffix('/value')}": leaf for path, leaf in support.read(source).items()},
    )
