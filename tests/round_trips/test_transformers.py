"""Flax models of Hugging Face's transformers 4, saved and loaded by transformers itself.

Transformers 5 has no Flax models any more. Where it is not installed, the tests of the layout alone are in
tests/formats/test_model_directories.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import converter

transformers = pytest.importorskip("transformers", minversion="4.0", reason="needs transformers 4 with its Flax models")
if int(transformers.__version__.partition(".")[0]) != 4:
    pytest.skip("needs transformers 4 with its Flax models", allow_module_level=True)

IDS = np.arange(8).reshape(2, 4)
SHARD = "2KB"


@pytest.fixture(scope="module")
def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    return transformers.FlaxBertModel(config, seed=3)


@pytest.fixture(scope="module")
def resnet() -> Any:
    """It has batch statistics, which transformers saves beside the params."""
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_channels=3
    )
    return transformers.FlaxResNetModel(config, input_shape=(1, 16, 16, 3), seed=1)


def saved(model: Any, path: Path, **options: Any) -> Path:
    model.save_pretrained(path, safe_serialization=False, **options)
    return path


def loaded(model: Any, path: Path) -> Any:
    """What transformers makes of a directory of ours, which lacks the configuration."""
    model.config.save_pretrained(path)
    return type(model).from_pretrained(path, seed=99)  # what is missing would get other values


def assert_same_params(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("options", [{}, {"max_shard_size": SHARD}], ids=["one file", "shards"])
@pytest.mark.parametrize("size", [None, 2000, 1], ids=["one file", "shards", "a file for each"])
def test_there_and_back(tmp_path: Path, bert: Any, options: dict[str, Any], size: int | None):
    source = saved(bert, tmp_path / "source", **options)
    converter.convert(source, tmp_path / "nnx", "nnx")
    converter.convert(tmp_path / "nnx", tmp_path / "back", "linen", to_format="hf-msgpack", max_shard_size=size)
    assert (len(list((tmp_path / "back").iterdir())) > 1) == (size is not None)
    found = loaded(bert, tmp_path / "back")
    assert_same_params(found.params, bert.params)
    np.testing.assert_array_equal(found(IDS)[0], bert(IDS)[0])


def test_a_sharded_model_is_the_whole_model(tmp_path: Path, bert: Any):
    whole, sharded = saved(bert, tmp_path / "whole"), saved(bert, tmp_path / "sharded", max_shard_size=SHARD)
    trees = [converter.inspect(path).checkpoint.tree for path in (whole, sharded)]
    assert set(trees[0]) == set(trees[1])
    assert all(np.array_equal(trees[0][path].fetch(), trees[1][path].fetch()) for path in trees[0])
    assert ("encoder", "layer", "0", "output", "dense", "kernel") in trees[0]


def test_batch_statistics_stand_beside_the_params(tmp_path: Path, resnet: Any):
    source = saved(resnet, tmp_path / "source")
    converter.convert(source, tmp_path / "nnx", "nnx")
    report = converter.convert(tmp_path / "nnx", tmp_path / "back", "linen", to_format="hf-msgpack")
    assert report.plan.target.title == "Linen variables"
    found = loaded(resnet, tmp_path / "back")
    assert_same_params(found.params, resnet.params)


def test_the_directory_of_a_model_for_several_frameworks_is_not_chosen_from(tmp_path: Path, bert: Any):
    source = saved(bert, tmp_path / "source")
    bert.save_pretrained(tmp_path / "safe", safe_serialization=True)
    shutil.copy(tmp_path / "safe/model.safetensors", source)
    with pytest.raises(converter.UsageError, match="holds several checkpoints"):
        converter.inspect(source)
    assert len(converter.inspect(source / "flax_model.msgpack").checkpoint.tree) == len(jax.tree.leaves(bert.params))
