"""The source stays as it is; the destination appears whole or not at all, needs the source no more, and is always the
same. That no conversion touches its source or leaves something behind when it fails is asserted by ``support.convert``,
so by every test of this directory."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import linen as nn
from flax import serialization

import converter
from converter.conversion import prepare
from converter.errors import (
    ConversionRefused,
    ConverterError,
    DestinationError,
    UnreadableCheckpoint,
    UsageError,
    VerificationFailed,
)
from fixtures import make
from fixtures.models import OPTIMIZERS, PAIRS

from . import support

FORMATS = ("orbax", "msgpack", "safetensors")

SOURCES = {
    "linen_dtypes_pytree": ("nnx", {}),
    "linen_train_state_manager": ("nnx", {}),
    "linen_train_state_multi_transform_msgpack": ("nnx", {}),
    "linen_train_state_adamw_schedule_legacy": ("nnx", {}),
    "nnx_lstm_standard": ("linen", {}),
    "nnx_encoder_v1": ("linen", {}),
    "nnx_mlp_model_optimizer_standard": ("linen", {"optimizer": OPTIMIZERS["adamw_schedule"]}),
    "nnx_transformer_list_pure_msgpack": ("linen", {"nnx_model": PAIRS["transformer_list"].nnx()}),
}
"""Sources of every kind, and what a user says about them."""


def root(name: str) -> Path:
    names = ("checkpoint", "checkpoint.msgpack")
    return next(path for path in (make.CHECKPOINTS / name / found for found in names) if path.exists())


def copied(name: str, directory: Path) -> Path:
    source, copy = root(name), directory / "source"
    if source.is_dir():
        shutil.copytree(source, copy)
    else:
        shutil.copy(source, copy)
    return copy


# The source ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", SOURCES)
def test_the_source_is_not_needed_afterwards(name: str, format: str, tmp_path: Path) -> None:
    to, options = SOURCES[name]
    source = copied(name, tmp_path)
    if (name, format) == ("linen_dtypes_pytree", "safetensors"):
        options = {**options, "drop": ["**/text", "**/int4"]}
    support.convert(source, tmp_path / "converted", to, to_format=format, **options)
    before = support.read(tmp_path / "converted")
    shutil.rmtree(source) if source.is_dir() else source.unlink()
    support.assert_equal(support.read(tmp_path / "converted"), before)
    assert len(support.full(before)) > 3
    converter.inspect(tmp_path / "converted")


@pytest.mark.parametrize("name", SOURCES)
def test_looking_planning_and_verifying_write_nothing(name: str, tmp_path: Path) -> None:
    to, options = SOURCES[name]
    source = copied(name, tmp_path)
    converter.convert(source, tmp_path / "converted", to, **options)
    before = support.snapshot(tmp_path)
    converter.inspect(source)
    converter.plan(source, to, **options)
    assert converter.verify(source, tmp_path / "converted", **options).ok
    assert support.snapshot(tmp_path) == before


def test_a_destination_in_the_way_of_the_source_is_refused(tmp_path: Path) -> None:
    source = copied("nnx_lstm_standard", tmp_path)
    for destination in (source, source / "inside", tmp_path):
        before = support.snapshot(tmp_path)
        with pytest.raises(DestinationError):
            converter.convert(source, destination, "linen", force=True)
        assert support.snapshot(tmp_path) == before


# The destination -----------------------------------------------------------------------------------------------------


class OtherMlp(nn.Module):
    """The variables of the model ``mlp``, but another activation: outputs differ, nothing else does."""

    def setup(self):
        self.up = nn.Dense(10)
        self.down = nn.Dense(6)

    def __call__(self, x):
        return self.down(nn.relu(self.up(x)))


UNTRUE: dict[str, Any] = {"nnx_model": PAIRS["mlp"].nnx, "linen_model": OtherMlp, "inputs": PAIRS["mlp"].inputs}


@pytest.mark.parametrize("format", FORMATS)
def test_a_failed_verification_leaves_nothing(format: str, tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed) as failed:
        support.convert(root("nnx_mlp_standard"), tmp_path / "x", "linen", to_format=format, **UNTRUE)
    assert "Nothing was kept" in str(failed.value)
    assert not failed.value.report.ok
    # Directories that were made on the way go as well.
    with pytest.raises(VerificationFailed):
        converter.convert(root("nnx_mlp_standard"), tmp_path / "new" / "er" / "x", "linen", to_format=format, **UNTRUE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_a_failed_replacement_leaves_the_old_one(format: str, tmp_path: Path) -> None:
    source, destination = root("nnx_mlp_standard"), tmp_path / "x"
    support.convert(source, destination, "linen", to_format=format)
    before = support.snapshot(destination)
    with pytest.raises(DestinationError, match="exists already"):
        converter.convert(source, destination, "linen", to_format=format)
    with pytest.raises(VerificationFailed):
        converter.convert(source, destination, "linen", to_format=format, force=True, **UNTRUE)
    assert support.snapshot(destination) == before
    assert list(tmp_path.iterdir()) == [destination]
    converter.convert(root("nnx_dense_standard"), destination, "linen", to_format=format, force=True)
    assert list(tmp_path.iterdir()) == [destination]
    assert set(support.read(destination)) == {"params/kernel", "params/bias"}


@contextlib.contextmanager
def no_large_files() -> Iterator[None]:
    """The operating system refuses to write more than a few bytes to any file, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("format", "attempt"),
    [("safetensors", 1), ("msgpack", 1), ("orbax", 1), ("orbax", 2), ("orbax", 3)],
)
def test_a_failing_writer_leaves_nothing(format: str, attempt: int, tmp_path: Path) -> None:
    """More than once with Orbax, several of whose threads fail: which one is noticed first is a matter of chance."""
    with no_large_files(), pytest.raises(DestinationError, match=re.escape(os.strerror(errno.EFBIG))):
        support.convert(root("nnx_encoder_v1"), tmp_path / "x", "linen", to_format=format)
    assert not list(tmp_path.iterdir())


class Interruption:
    """A progress display at which the user loses patience."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, nbytes: int, leaves: int) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("calls", [0, 1, 5])
@pytest.mark.parametrize("format", FORMATS)
def test_an_interruption_leaves_nothing(format: str, calls: int, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        converter.convert(
            root("nnx_lstm_standard"), tmp_path / "x", "linen", to_format=format, progress=Interruption(calls)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_source_leaves_nothing(format: str, tmp_path: Path) -> None:
    """All is well until the arrays are read."""
    source = copied("nnx_transformer_standard", tmp_path)
    data = max(source.rglob("d/*"), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(UnreadableCheckpoint):
        support.convert(source, tmp_path / "x", "linen", to_format=format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_is_saved_again_meanwhile_is_no_source(format: str, verify: bool, tmp_path: Path) -> None:
    source, destination = tmp_path / "source.msgpack", tmp_path / "out"
    kernels = {"Dense_0": {"kernel": np.ones((40, 500), np.float32), "bias": np.zeros(500, np.float32)}}
    source.write_bytes(serialization.to_bytes({"params": kernels}))
    conversion = prepare(source, "nnx", to_format=format)

    def save_again(nbytes: int, leaves: int) -> None:
        other = source.with_name("other")
        other.write_bytes(bytes(source.stat().st_size))
        other.replace(source)

    with pytest.raises(UnreadableCheckpoint, match="replaced or written to while it was converted"):
        conversion.run(destination, verify=verify, progress=save_again)
    assert [path.name for path in tmp_path.iterdir()] == ["source.msgpack"]


def test_a_refusal_leaves_nothing(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[ConverterError]]] = [
        ({"drop": ["**/nowhere"]}, ConversionRefused),
        ({"nnx_model": PAIRS["encoder"].nnx}, ConversionRefused),
        ({"item": "params"}, UsageError),
        ({"to_format": "papyrus"}, UsageError),
    ]
    for options, error in wrong:
        with pytest.raises(error):
            support.convert(root("nnx_mlp_standard"), tmp_path / "x", "linen", **options)
    with pytest.raises(UsageError, match="already NNX"):
        support.convert(root("nnx_mlp_standard"), tmp_path / "x", "nnx")


@pytest.mark.parametrize("style", ["state", "pure"])
def test_a_leaf_below_another_is_a_problem_of_the_plan(style: Any, tmp_path: Path) -> None:
    """Two collections may use one name, as a module here and as an array there. NNX has one attribute for both."""
    variables = {
        "params": {"a": {"kernel": np.ones(2, np.float32)}, "b": {"kernel": np.ones(3, np.float32)}},
        "statistics": {"a": np.ones(4, np.float32), "b": {"kernel": np.ones(5, np.float32)}},
    }
    source = tmp_path / "source.msgpack"
    source.write_bytes(serialization.to_bytes(variables))
    problems = " ".join(converter.plan(source, "nnx", nnx_style=style).problems)
    assert "params/b/kernel and statistics/b/kernel both go to b/kernel" in problems
    assert "params/a/kernel" in problems or "statistics/a" in problems
    with pytest.raises(ConversionRefused):
        support.convert(source, tmp_path / "x", "nnx", nnx_style=style)


# The same each time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_msgpack_comes_out_the_same(name: str, tmp_path: Path) -> None:
    to, options = SOURCES[name]
    files = [tmp_path / "one.msgpack", tmp_path / "other.msgpack"]
    for file in files:
        support.convert(root(name), file, to, **options)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_random_state_comes_out_the_same(tmp_path: Path) -> None:
    """It is filled in from the model, whose factory is called each time."""
    filled = []
    for name in ("one", "other"):
        known = {"nnx_model": PAIRS["encoder"].nnx}
        report = support.convert(root("linen_frozen_standard"), tmp_path / name, "nnx", **known)
        filled.append(support.read(tmp_path / name))
        assert len(report.plan.filled) == 2
    assert filled[0] == filled[1]


def test_msgpack_comes_out_the_same_in_another_process(tmp_path: Path) -> None:
    """Where texts hash differently, sets and the like have another order."""
    source = root("linen_train_state_multi_transform_msgpack")
    files = []
    for seed in ("1", "2"):
        files.append(tmp_path / f"{seed}.msgpack")
        call = f"import converter; converter.convert({str(source)!r}, {str(files[-1])!r}, 'nnx')"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", call], check=True, env=environment, cwd=Path(make.__file__).parents[1])
    assert files[0].read_bytes() == files[1].read_bytes()
