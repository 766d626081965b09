"""Conversions from and to files with flat names: sharded, with training state, tampered with, verified in full."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

import converter
from converter.errors import DestinationError, UnreadableCheckpoint, UsageError, VerificationFailed
from converter.formats import FORMATS
from converter.paths import format_path
from fixtures import make, trees
from tests.building import tree_of

from . import support

PARAMS = {
    "dense": {"kernel": np.arange(20_000, dtype=np.float32).reshape(100, 200), "bias": np.ones(200, np.float32)},
    "wide": {"kernel": np.full((300, 200), 0.1, ml_dtypes.bfloat16), "bias": np.zeros(200, ml_dtypes.bfloat16)},
    "narrow": {"kernel": np.arange(20_000, 40_000, dtype=np.float32).reshape(100, 200)},
}


def written(place: Path, format: str = "safetensors") -> Path:
    FORMATS[format].write(tree_of({"params": PARAMS}), place, lambda *_: None)
    return place


# Verification --------------------------------------------------------------------------------------------------------


def _changed(file: Path, change: Callable[[dict[str, Any], bytearray], None]) -> None:
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    change(header, body)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


def flip(header: dict[str, Any], body: bytearray) -> None:
    body[header["dense.kernel"]["data_offsets"][0] + 40_000] ^= 1


def flip_a_small_one(header: dict[str, Any], body: bytearray) -> None:
    body[header["dense.bias"]["data_offsets"][0]] ^= 1


def exchange(header: dict[str, Any], body: bytearray) -> None:
    one, other = header["dense.kernel"], header["narrow.kernel"]
    one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]


def reshape(header: dict[str, Any], body: bytearray) -> None:
    header["dense.kernel"]["shape"] = [200, 100]


def retype(header: dict[str, Any], body: bytearray) -> None:
    header["wide.kernel"]["dtype"] = "F16"


def rename(header: dict[str, Any], body: bytearray) -> None:
    header["dense.kernels"] = header.pop("dense.kernel")


def other_separator(header: dict[str, Any], body: bytearray) -> None:
    header["__metadata__"]["flax_convert.tree"] = '{"separator":"/"}'


TAMPERINGS = (flip, flip_a_small_one, exchange, reshape, retype, rename, other_separator)


@pytest.mark.parametrize("verify", [True, "full"])
@pytest.mark.parametrize("format", ["orbax", "safetensors"])
@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_no_change_goes_unseen(tamper: Any, format: str, verify: Any, tmp_path: Path) -> None:
    """Copied arrays and streamed ones, large and small, compared in both ways."""
    source = written(tmp_path / "source", format)
    writer = type(FORMATS["safetensors"])
    write = writer.write

    def writing(self: Any, tree: Any, place: Path, *arguments: Any, **named: Any) -> Any:
        done = write(self, tree, place, *arguments, **named)
        _changed(place, tamper)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "write", writing)
        with pytest.raises(VerificationFailed):
            converter.convert(source, tmp_path / "out.safetensors", "nnx", verify=verify)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    report = converter.convert(source, tmp_path / "out.safetensors", "nnx", verify=verify)
    assert report.ok


def test_a_full_verification_names_the_library(tmp_path: Path) -> None:
    source = written(tmp_path / "source", "msgpack")
    report = converter.convert(source, tmp_path / "out.safetensors", "nnx", verify="full")
    assert report.values is not None
    assert report.values.reader == "safetensors"
    np.savez(tmp_path / "a.npz", **flatten_dict({"params": PARAMS}, sep="/"))
    report = converter.verify(tmp_path / "out.safetensors", tmp_path / "a.npz", full=True)
    assert report.ok
    assert report.values is not None
    assert report.values.reader == "NumPy"
    assert converter.verify(tmp_path / "a.npz", tmp_path / "out.safetensors", full=True).ok


@pytest.mark.parametrize("verify", [True, "full"])
def test_float8_and_its_like(verify: Any, tmp_path: Path) -> None:
    params = {name: np.arange(24).astype(getattr(ml_dtypes, name)) for name in ("float8_e4m3fn", "float8_e5m2")}
    nested = {"params": {"layer": params}, "counts": {"a": {"n": 3}, "b": {"n": True}}}
    FORMATS["msgpack"].write(tree_of(nested), tmp_path / "source", lambda *_: None)
    assert converter.convert(tmp_path / "source", tmp_path / "out.safetensors", "nnx", verify=verify).ok
    found = converter.inspect(tmp_path / "out.safetensors").checkpoint.tree
    assert str(found[("a", "n")].spec) == "int"
    assert found[("layer", "float8_e5m2")].fetch().tobytes() == params["float8_e5m2"].tobytes()


def test_a_full_verification_needs_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is missed before anything is written; all else works without it."""
    source, find = written(tmp_path / "source", "msgpack"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "safetensors" else find(name))
    with pytest.raises(UsageError, match=r"pip install 'flax-convert\[safetensors\]'"):
        converter.convert(source, tmp_path / "out.safetensors", "nnx", verify="full")
    assert not (tmp_path / "out.safetensors").exists()
    assert converter.convert(source, tmp_path / "out.safetensors", "nnx").ok
    with pytest.raises(UsageError, match="pip install"):
        converter.verify(source, tmp_path / "out.safetensors", full=True)


# Sources -------------------------------------------------------------------------------------------------------------


def test_a_shard_that_is_a_pointer(tmp_path: Path) -> None:
    """As a repository is cloned without git-lfs."""
    root = make.CHECKPOINTS / "linen_transformer_list_shards/checkpoint"
    source = tmp_path / "source"
    shutil.copytree(root, source)
    (source / "model-00002-of-00003.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 3\n")
    with pytest.raises(UnreadableCheckpoint, match=r"model-00002-of-00003\.safetensors.*Git LFS pointer"):
        converter.convert(source, tmp_path / "out", "nnx")


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("named", ["", "model.safetensors.index.json"], ids=["directory", "index"])
def test_a_shard_is_not_replaced_by_what_is_made_of_it(named: str, name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(make.CHECKPOINTS / "linen_transformer_list_shards/checkpoint", source)
    before = support.snapshot(tmp_path)
    with pytest.raises(DestinationError, match="is the source"):
        converter.convert(source / named, source / name, "nnx", to_format="safetensors", force=True)
    assert support.snapshot(tmp_path) == before


def big_vision(place: Path) -> dict[str, Any]:
    """A training checkpoint as big_vision flattens one: tuples have become numbers, named tuples too."""
    params = trees.linen_variables("mlp")["params"]
    moments = optax.scale_by_adam().init(params)
    flat = {f"params/{name}": array for name, array in flatten_dict(params, sep="/").items()}
    for number, moment in enumerate((moments.mu, moments.nu), 1):
        flat |= {f"opt/0/{number}/{name}": array + 1 for name, array in flatten_dict(moment, sep="/").items()}
    flat |= {"opt/0/0": np.int32(7), "extra": np.float64(0.5)}
    np.savez(place, **{name: np.asarray(array) for name, array in flat.items()})
    return params


def test_the_training_state_of_big_vision(tmp_path: Path) -> None:
    """Its optimizer's state follows the parameters, under other names of the model too; numbers stay numbers."""
    big_vision(tmp_path / "a.npz")
    rules = 'default = "auto"\n[[rule]]\nlinen = "params/up/{name:*}"\nnnx = "rise/{name}"\n'
    support.convert(tmp_path / "a.npz", tmp_path / "out", "nnx", to_format="safetensors", rules=rules)
    found = safetensors.numpy.load_file(tmp_path / "out")
    layers = [f"{layer}.{name}" for layer in ("rise", "down") for name in ("kernel", "bias")]
    mirrors = [f"optimizer.opt_state.0.{number}.{name}" for number in (1, 2) for name in layers]
    model = [f"model.{name}" for name in layers]
    assert found.keys() == {*model, *mirrors, "optimizer.opt_state.0.0", "extra"}
    assert found["optimizer.opt_state.0.0"] == 7
    np.testing.assert_array_equal(found["optimizer.opt_state.0.1.rise.kernel"], np.ones((6, 10), np.float32))
    assert converter.verify(tmp_path / "a.npz", tmp_path / "out", rules=rules).ok


def test_a_collection_that_is_called_opt(tmp_path: Path) -> None:
    """Where nothing in it mirrors a parameter it is a collection like any other."""
    nested = {"params": {"a": {"kernel": np.ones(2)}}, "opt": {"a": {"count": np.zeros(1)}}}
    np.savez(tmp_path / "a.npz", **flatten_dict(nested, sep="/"))
    assert [dialect.title for dialect in converter.inspect(tmp_path / "a.npz").dialects] == ["Linen variables"]


def test_the_parameters_of_big_vision(tmp_path: Path) -> None:
    params = big_vision(tmp_path / "a.npz")
    report = support.convert(tmp_path / "a.npz", tmp_path / "out", "nnx", to_format="safetensors", params_only=True)
    assert {format_path(drop.source).split("/")[0] for drop in report.plan.drops} == {"opt", "extra"}
    found = safetensors.numpy.load_file(tmp_path / "out")
    expected = {name: np.asarray(array) for name, array in flatten_dict(params, sep=".").items()}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


# Keys with dots and slashes ------------------------------------------------------------------------------------------


def test_odd_keys_go_there_and_back(tmp_path: Path) -> None:
    """To NNX and back to Linen, through two safetensors files."""
    kernels = {"a.b": {"c": 1.0}, "a": {"b.c": 2.0, "b": {"d": 3.0}}, "x/y": {"": 4.0, "0": 5.0}}
    nested = {"params": {key: {k: _array(v) for k, v in node.items()} for key, node in kernels.items()}}
    source = tmp_path / "source"
    FORMATS["msgpack"].write(tree_of(nested), source, lambda *_: None)
    converter.convert(source, tmp_path / "nnx.safetensors", "nnx", verify="full")
    known: Any = {"collections": {"**": "params"}}
    converter.convert(tmp_path / "nnx.safetensors", tmp_path / "linen.safetensors", "linen", verify="full", **known)
    found = converter.inspect(tmp_path / "linen.safetensors").checkpoint.tree
    assert {path: float(leaf.fetch()[0]) for path, leaf in found.items()} == {
        path: float(leaf.fetch()[0]) for path, leaf in tree_of(nested).items()
    }


def _array(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _array(inner) for key, inner in value.items()}
    return np.full(2, value, np.float32)


# The same each time --------------------------------------------------------------------------------------------------


def test_the_same_in_another_process(tmp_path: Path) -> None:
    """Where texts hash differently, sets and the like have another order."""
    source = make.CHECKPOINTS / "linen_train_state_multi_transform_standard/checkpoint"
    files = []
    for seed in ("1", "2"):
        files.append(tmp_path / f"{seed}.safetensors")
        call = f"import converter; converter.convert({str(source)!r}, {str(files[-1])!r}, 'nnx')"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", call], check=True, env=environment, cwd=Path(make.__file__).parents[1])
    assert files[0].read_bytes() == files[1].read_bytes()
