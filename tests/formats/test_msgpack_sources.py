"""The bytes of a msgpack file are those that Flax writes, wherever the leaves come from and however little memory
there is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.serialization
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter import scratch
from converter.errors import UnreadableCheckpoint
from converter.formats import FORMATS, one_file
from converter.formats.checkpoint import PLAIN, Strategy, Writing
from converter.formats.msgpack import writer
from converter.tree import Tree
from tests.building import tree_of

MSGPACK, ORBAX = FORMATS["msgpack"], FORMATS["orbax"]

DTYPES = ("float32", "bfloat16", "int4", "float8_e5m2", "bool", "int64", "complex64", "uint8")

SOURCES = ("memory", "msgpack", "split", "orbax", "orbax compressed", "orbax by Orbax")

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextlib.contextmanager
def limits(split: int, copy: int = 1 << 16) -> Iterator[None]:
    """Arrays of more bytes than ``split`` are split, and those of ``copy`` bytes or more are copied by the system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flax.serialization, "MAX_CHUNK_SIZE", split)
        patch.setattr(writer, "MAX_CHUNK_SIZE", split)
        patch.setattr(one_file, "LEAST_COPY", copy)
        yield


@contextlib.contextmanager
def memory(directory: Path, nbytes: int) -> Iterator[None]:
    with scratch.room(directory, 0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch._room, "limit", nbytes)
        yield


def quiet(nbytes: int, leaves: int) -> None:
    pass


def source(kind: str, nested: dict[str, Any], directory: Path) -> Tree:
    """The tree, lying there in one of many ways."""
    place = directory / "source"
    match kind:
        case "memory":
            return tree_of(nested)
        case "msgpack":
            place.write_bytes(flax.serialization.msgpack_serialize(nested))
            return MSGPACK.open(place).tree
        case "split":
            with limits(80_000 if nested is LARGE else 24):
                place.write_bytes(flax.serialization.msgpack_serialize(nested))
            return MSGPACK.open(place).tree
        case "orbax by Orbax":
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as saver:
                saver.save(place, ocp.args.PyTreeSave(nested))
        case _:
            ORBAX.write(tree_of(nested), place, quiet, writing=Writing(compress=kind.endswith("compressed")))
    return ORBAX.open(place).tree


def written(tree: Tree, directory: Path) -> bytes:
    file = directory / "written"
    file.unlink(missing_ok=True)
    MSGPACK.write(tree, file, quiet)
    return file.read_bytes()


def as_flax(tree: Tree, nested: dict[str, Any]) -> bytes:
    """What Flax makes of the same values; keys in the order of the tree, which Orbax sorts."""

    def ordered(node: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(node, dict) or not node:
            return node
        return {key: ordered(node[key], (*path, key)) for key in tree.children(*path)}

    return flax.serialization.msgpack_serialize(ordered(nested, ()), in_place=True)


ARRAYS = st.builds(
    lambda dtype, shape, seed: np.asarray(np.random.default_rng(seed).integers(-8, 8, shape)).astype(
        getattr(ml_dtypes, dtype, dtype)
    ),
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 6), max_size=3).map(tuple),
    st.integers(0, 100),
)

LEAVES = ARRAYS | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.booleans() | st.text(max_size=5)
KEYS = st.text("abcé01", min_size=1, max_size=3)
NESTED = st.dictionaries(KEYS, LEAVES | st.dictionaries(KEYS, LEAVES, min_size=1, max_size=4), min_size=1, max_size=5)


@pytest.mark.parametrize("kind", SOURCES[:-1])
@given(NESTED, st.sampled_from([7, 16, 40, 1000]), st.sampled_from([1, 50, 1 << 16]), st.sampled_from([1, 60, 1 << 20]))
@many
def test_any_tree(
    kind: str, tmp_path_factory: pytest.TempPathFactory, nested: dict[str, Any], split: int, copy: int, room: int
) -> None:
    directory = tmp_path_factory.mktemp("tree")
    tree = source(kind, nested, directory)
    with limits(split, copy), memory(directory, room):
        assert written(tree, directory) == as_flax(tree, nested)


LARGE = {
    "rows": np.random.default_rng(0).standard_normal((600, 50)),
    "odd": np.arange(301 * 333, dtype=np.float32).reshape(301, 333),
    "flat": np.arange(70_000).astype(ml_dtypes.bfloat16),
    "int4": np.arange(300_000).astype(ml_dtypes.int4).reshape(3, 100_000),
    "deep": {"small": np.ones(3, np.float32), "zeros": np.zeros((2, 3, 20_000), np.float32)},
}
"""Arrays of more than the 64 KiB from which on the system copies."""


@pytest.mark.parametrize("split", [2**30, 100_000, 99_999])
@pytest.mark.parametrize("kind", SOURCES)
def test_large_arrays(kind: str, split: int, tmp_path: Path) -> None:
    tree = source(kind, LARGE, tmp_path)
    found = MSGPACK.strategies(tree, PLAIN)
    copied = [path for path, strategy in found.items() if strategy is Strategy.COPY]
    # Of what was split only those are left that were cut between rows.
    assert len(copied) == {"msgpack": 5, "orbax": 5, "split": 2}.get(kind, 0)
    with limits(split):
        for budget in (1, 1 << 30):
            with scratch.room(tmp_path, budget):
                assert written(tree, tmp_path) == as_flax(tree, LARGE)


@pytest.mark.parametrize("length", [4, 6])
def test_arrays_that_were_split_between_and_inside_of_rows(length: int, tmp_path: Path) -> None:
    array = np.arange(12 * 6, dtype=np.float32).reshape(12, 6)
    with limits(4 * 6 * length):  # 4 rows at a time, which divides 12; and 6
        (tmp_path / "rows").write_bytes(flax.serialization.msgpack_serialize({"a": array}))
    with limits(4 * 7):
        (tmp_path / "inside").write_bytes(flax.serialization.msgpack_serialize({"a": array}))
    rows, inside = (MSGPACK.open(tmp_path / name).tree[("a",)] for name in ("rows", "inside"))
    grid = rows.grid()
    assert grid is not None
    assert grid.form.chunk_shape == (length, 6)
    assert inside.grid() is None
    with limits(50, 1):
        expected = flax.serialization.msgpack_serialize({"a": array})
        for leaf in (rows, inside):
            tree = Tree([(("a",), leaf)])
            assert written(tree, tmp_path) == expected
            with memory(tmp_path, 5):
                assert written(tree, tmp_path) == expected
            place = tmp_path / f"orbax{len(list(tmp_path.iterdir()))}"
            ORBAX.write(tree, place, quiet)
            assert ORBAX.open(place).tree[("a",)].fetch().tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", ["msgpack", "orbax"])
def test_a_source_that_is_cut_meanwhile(kind: str, tmp_path: Path) -> None:
    tree = source(kind, LARGE, tmp_path)
    place = tmp_path / "source"
    files = [place] if place.is_file() else [path for path in place.glob("d/*") if path.stat().st_size > 100_000]
    for file in files:
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size // 2)
    with pytest.raises(UnreadableCheckpoint):
        written(tree, tmp_path)
    assert not (tmp_path / "written").exists()
