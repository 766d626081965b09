"""Peak memory keeps to ``--memory-budget``, however large a leaf is and whatever is done to it."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import pytest

from converter.dtypes import numpy_dtype
from converter.formats import FORMATS
from converter.formats.checkpoint import Writing
from tests.building import tree_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does"),
]

MIB = 1 << 20
BUDGET = 32 * MIB
MARGIN = 8 * MIB
"""What buffers of files, the allocator and the interpreter take that no budget counts."""

MEASURING = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "converter", *sys.argv[1:]], stdin=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(done.returncode)
"""

Source = Callable[[Path, dict[str, Any]], None]


def msgpack(place: Path, params: dict[str, Any]) -> None:
    FORMATS["msgpack"].write(tree_of({"params": params}), place, lambda *_: None)


def split_msgpack(place: Path, params: dict[str, Any]) -> None:
    """In parts that end inside of rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1_000_004)
        place.write_bytes(flax.serialization.msgpack_serialize({"params": params}, in_place=True))


def orbax(place: Path, params: dict[str, Any]) -> None:
    """Compressed, as Orbax itself does it."""
    FORMATS["orbax"].write(tree_of({"params": params}), place, lambda *_: None, writing=Writing(compress=True))


def safetensors(place: Path, params: dict[str, Any]) -> None:
    FORMATS["safetensors"].write(tree_of({"params": params}), place, lambda *_: None)


def compressed_npz(place: Path, params: dict[str, Any]) -> None:
    arrays = {f"params/{name}/{key}": array for name, leaf in params.items() for key, array in leaf.items()}
    np.savez_compressed(place, **arrays)
    place.with_suffix(".npz").rename(place)


TINY, HUGE = 64, 8192
"""How many times 8,192 elements a leaf has."""


@dataclass(frozen=True)
class Case:
    """A conversion of one leaf of 256 MiB, or of parts that become one.

    Attributes:
      source: how it is saved.
      destination: what is made of it.
      rule: the operation between them.
      shape: of the leaf.
      parts: how many leaves it is cut into.
      nnx: what the leaves are called on the other side.
    """

    source: Source
    destination: str
    rule: str = ""
    shape: Callable[[int], tuple[int, ...]] = lambda n: (n, 8192)
    dtype: str = "float32"
    parts: int = 1
    nnx: str = "leaf_{i}/kernel"
    options: tuple[str, ...] = ()

    def params(self, n: int) -> dict[str, Any]:
        shape = self.shape(n)
        array = np.arange(math.prod(shape), dtype=np.uint32).reshape(shape)
        array = array.view(np.float32) if self.dtype == "float32" else array.astype(numpy_dtype(self.dtype))
        return {f"leaf_{i}": {"kernel": part} for i, part in enumerate(np.split(array, self.parts))}

    @property
    def rules(self) -> str:
        linen = "params/leaf_0/kernel" if self.nnx == "leaf/{i}/kernel" else "params/leaf_{i}/kernel"
        return f'default = "auto"\n[[rule]]\nlinen = "{linen}"\nnnx = "{self.nnx}"\nto_nnx = ["{self.rule}"]\n'


HEADS = "rearrange d (h k) -> h k d, h=8"

CASES: Mapping[str, Case] = {
    "msgpack to Orbax": Case(msgpack, "out"),
    "msgpack to Orbax, compressed": Case(msgpack, "out", options=("--compress",)),
    "split msgpack to Orbax": Case(split_msgpack, "out"),
    "Orbax to msgpack": Case(orbax, "out.msgpack"),
    "Orbax to msgpack, not verified": Case(orbax, "out.msgpack", options=("--no-verify",)),
    "safetensors to Orbax": Case(safetensors, "out"),
    "safetensors to safetensors": Case(safetensors, "out.safetensors"),
    "Orbax to safetensors": Case(orbax, "out.safetensors"),
    "heads first, safetensors to safetensors": Case(safetensors, "out.safetensors", HEADS),
    "compressed npz to safetensors": Case(compressed_npz, "out.safetensors"),
    "int4": Case(orbax, "out.msgpack", dtype="int4", shape=lambda n: (4 * n, 8192)),
    "heads first, Orbax to msgpack": Case(orbax, "out.msgpack", HEADS),
    "heads first, msgpack to Orbax": Case(msgpack, "out", HEADS),
    "few rows transposed": Case(msgpack, "out.msgpack", "transpose", shape=lambda n: (64, 128 * n)),
    "cast": Case(orbax, "out", "cast float32 -> bfloat16"),
    "stacked, msgpack": Case(msgpack, "out.msgpack", "stack i, axis=1", parts=8, nnx="leaf/kernel"),
    "stacked, Orbax to msgpack": Case(orbax, "out.msgpack", "stack i, axis=-1", parts=8, nnx="leaf/kernel"),
    "unstacked": Case(orbax, "out", "unstack i, axis=2", shape=lambda n: (n, 1024, 8), nnx="leaf/{i}/kernel"),
}


def peak(case: Case, n: int, directory: Path, environment: dict[str, str]) -> int:
    """Bytes of memory that the program took at most; the checkpoints are removed."""
    directory.mkdir()
    case.source(directory / "source", case.params(n))
    (directory / "rules.toml").write_text(case.rules)
    rules = ["--rules", "rules.toml"] if case.rule else []
    wanted = ["linen-to-nnx", "source", case.destination, "--memory-budget", str(BUDGET), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURING, *wanted, *rules, *case.options],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in directory.iterdir()} == {"source", "rules.toml", case.destination}
    shutil.rmtree(directory)
    return int(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_a_leaf_of_256_mib(name: str, environment: dict[str, str], tmp_path: Path) -> None:
    tiny = peak(CASES[name], TINY, tmp_path / "tiny", environment)
    assert peak(CASES[name], HUGE, tmp_path / "huge", environment) - tiny <= BUDGET + MARGIN
