"""Operations on arrays as Orbax saved them: where bytes can stay they stay, and Orbax reads the right values always."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from converter.errors import UnsupportedCheckpoint
from converter.formats import FORMATS
from converter.formats.checkpoint import PLAIN, Strategy
from converter.planning.plan import Step, Transfer
from converter.rules.operations import (
    Concat,
    MoveAxis,
    Operation,
    Reshape,
    Split,
    Stack,
    Transpose,
    Unstack,
    chain,
    parse_rearrange,
)
from converter.training_state import Held
from converter.tree import LazyLeaf, Tree

from . import support

ORBAX = FORMATS["orbax"]

SAVING = """
    import sys
    import jax, jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    jax.config.update("jax_num_cpu_devices", 4)
    mesh = Mesh(np.array(jax.devices()), ("x",))
    def array(number, *shape, dtype="float32", spec=()):
        values = jnp.arange(number, number + np.prod(shape)).reshape(shape).astype(dtype)
        return jax.device_put(values, NamedSharding(mesh, P(*spec)) if spec else jax.devices()[0])
    key = jax.random.split(jax.random.key(7), 4)
    tree = {f"{name}_{number}": make(number) for number in range(3) for name, make in {
        "unsplit": lambda n: array(n, 4, 6, 2),
        "small": lambda n: array(n, 4, 6, 2, dtype="bfloat16"),
        "large": lambda n: array(n, 16, 40, 2),  # too much to stand in the index
        "first": lambda n: array(n, 4, 6, 2, spec=("x",)),
        "last": lambda n: array(n, 2, 6, 4, dtype="int4", spec=(None, None, "x")),
        "zeros": lambda n: array(0, 4, 6, 2) * 0,
        "flat": lambda n: array(n, 12),
        "square": lambda n: array(n, 4, 8),
        "cut": lambda n: array(n, 8, 32, 2),
        "scalar": lambda n: array(n, ),
        "key": lambda n: key[n],
        "keys": lambda n: key.reshape(2, 2),
    }.items()}
    for name, options in {
        "zarr2 OCDBT": {}, "zarr2 files": {"use_ocdbt": False}, "zarr3 OCDBT": {"use_zarr3": True},
        "zarr3 files": {"use_zarr3": True, "use_ocdbt": False}, "zarr2 raw": {"use_compression": False},
    }.items():
        arguments = {path: ocp.SaveArgs(chunk_byte_size=512 if "cut" in path else None) for path in tree}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as saver:
            saver.save(f"{sys.argv[1]}/{name}", ocp.args.PyTreeSave(tree, save_args=arguments))
"""

LAYOUTS = ("zarr2 OCDBT", "zarr2 files", "zarr3 OCDBT", "zarr3 files", "zarr2 raw")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same arrays, saved in several layouts by a process with four devices."""
    place = tmp_path_factory.mktemp("saved")
    command = [sys.executable, "-c", textwrap.dedent(SAVING), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return place


class Case(NamedTuple):
    """Operations on leaves, and the layouts in which all bytes stay where they are; in the others none do."""

    operation: Operation
    sources: tuple[str, ...]
    stays: Sequence[str] = LAYOUTS

    def __str__(self) -> str:
        return f"{self.operation.name or 'rename'}: {self.sources[0]}"


def three(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_{number}" for number in range(3))


NOWHERE: tuple[str, ...] = ()
RAW = ("zarr2 raw",)
ZARR2 = ("zarr2 OCDBT", "zarr2 files", "zarr2 raw")
UNSHARDED = ZARR2
"""zarr 3 as Orbax saves it has chunks in shards, whose parts have to keep their shape."""

CASES = [
    *(
        Case(Stack(3, axis), three(name))
        for name in ("unsplit", "small", "large", "first", "last", "zeros", "cut")
        for axis in (0, 1, -1)
    ),
    *(Case(Stack(3, axis), three("flat")) for axis in (0, -1)),
    Case(Stack(3), three("scalar")),
    Case(Stack(3), three("key")),
    Case(Stack(3, -1), three("keys")),
    # Chunks of length one come apart, others only where a chunk is its bare elements and the axis is the slowest.
    Case(Unstack(4, 0), ("first_0",)),
    Case(Unstack(4, -1), ("last_0",)),
    Case(Unstack(4, 0), ("unsplit_1",), RAW),
    Case(Unstack(4, 0), ("small_1",), RAW),
    Case(Unstack(16, 0), ("large_1",), RAW),
    Case(Unstack(6, 1), ("unsplit_1",), NOWHERE),
    Case(Unstack(2, -1), ("unsplit_1",), NOWHERE),
    Case(Unstack(6, 1), ("first_1",), RAW),
    Case(Unstack(2, 0), ("keys_0",), RAW),
    Case(chain(Stack(3), Unstack(3)), three("cut")),
    Case(chain(Stack(3), Unstack(4, 1)), three("first")),
    # Whole chunks end to end; what was cut into equal ones is apart again.
    *(Case(Concat(3, axis), three("unsplit")) for axis in (0, 1, -1)),
    Case(Concat(3, 0), three("first")),
    Case(Concat(3, 0), three("cut")),
    Case(Concat(3, 0), three("keys")),
    Case(chain(Concat(3, 1), Split(3, 1)), three("cut")),
    Case(Split(2, 0), ("first_0",)),
    Case(Split(2, 0, (1, 3)), ("first_0",)),
    Case(Split(2, 0), ("large_0",), RAW),
    Case(Split(2, -1), ("large_0",), NOWHERE),
    Case(Reshape((4, 6, 2), (8, 6)), ("unsplit_0",), UNSHARDED),
    Case(Reshape((4, 6, 2), (48,)), ("unsplit_0",), UNSHARDED),
    Case(Reshape((4, 6, 2), (4, 12)), ("first_0",), UNSHARDED),
    Case(Reshape((4, 6, 2), (24, 2)), ("first_0",), NOWHERE),
    Case(Reshape((12,), (3, 4)), ("flat_0",), UNSHARDED),
    Case(Reshape((), (1,)), ("scalar_0",), UNSHARDED),
    Case(Transpose(), ("square_0",), ZARR2),
    Case(Transpose(), ("unsplit_0",), ZARR2),
    Case(Transpose((1, 0, 2)), ("unsplit_0",), NOWHERE),
    Case(Transpose((1, 0, 2)), ("first_0",)),  # of axes with one element in a chunk the order is no matter
    Case(MoveAxis(0, -1), ("flat_0",)),
    Case(chain(Stack(3), Transpose()), three("square"), ZARR2),
    Case(parse_rearrange("d (h k) -> d h k, h=2"), ("square_0",), UNSHARDED),
    Case(parse_rearrange("d (h k) -> h k d, h=2"), ("square_0",), NOWHERE),
    Case(parse_rearrange("a b -> b a"), ("square_0",), ZARR2),
]


def steps_of(tree: Tree, cases: Sequence[Case]) -> list[Step]:
    """The results of each case, by its number and theirs."""
    steps = []
    for number, case in enumerate(cases):
        transfer = Transfer(case.operation, [Held((name,), tree[(name,)]) for name in case.sources])
        steps += [Step((str(number), f"r{output}"), transfer, output) for output in range(len(transfer.specs))]
    return steps


def applied(tree: Tree, case: Case) -> list[Any]:
    leaves = [tree[(name,)] for name in case.sources]
    return case.operation.apply([leaf.fetch() for leaf in leaves], [leaf.spec for leaf in leaves])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_stay_where_they_can(layout: str, saved: Path) -> None:
    steps = steps_of(ORBAX.open(saved / layout).tree, CASES)
    found = ORBAX.strategies(Tree((step.target, step) for step in steps), PLAIN)
    wrong = []
    for number, case in enumerate(CASES):
        expected = Strategy.RELINK if layout in case.stays else Strategy.STREAM
        reached = {strategy for path, strategy in found.items() if path[0] == str(number)}
        wrong += [f"{case}: expected {expected}, found {reached}"] if reached != {expected} else []
    assert wrong == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_orbax_reads_the_values(layout: str, saved: Path, tmp_path: Path) -> None:
    tree = ORBAX.open(saved / layout).tree
    steps = steps_of(tree, CASES)
    before = support.snapshot(saved)
    written = ORBAX.write(Tree((s.target, s) for s in steps), tmp_path / "out", lambda *_: None)
    assert support.snapshot(saved) == before
    assert written.linked
    again, restored = ORBAX.open(tmp_path / "out").tree, support.read(tmp_path / "out")
    expected: support.Leaves = {}
    for number, case in enumerate(CASES):
        for output, value in enumerate(applied(tree, case)):
            path = (str(number), f"r{output}")
            leaf = again[path]
            assert np.asarray(leaf.fetch()).tobytes() == np.ascontiguousarray(value).tobytes(), case
            expected["/".join(path)] = support.read_ourselves({path: LazyLeaf(leaf.spec, lambda value=value: value)})[
                "/".join(path)
            ]
    support.assert_equal(restored, expected)


def test_arrays_of_two_layouts_do_not_stack(saved: Path) -> None:
    """Their chunks could not stand in one grid."""
    one, other = (ORBAX.open(saved / layout).tree for layout in ("zarr2 OCDBT", "zarr2 raw"))
    for names in (("unsplit_0", "unsplit_1"), ("unsplit_0", "first_0")):
        trees = (one, other) if names[1] != "first_0" else (one, one)
        held = [Held((name,), tree[(name,)]) for name, tree in zip(names, trees, strict=True)]
        assert Transfer(Stack(2), held).grid(0) is None


def test_swapped_names(saved: Path, tmp_path: Path) -> None:
    tree = ORBAX.open(saved / "zarr2 OCDBT").tree
    swapped = Tree([(("large_0",), tree[("large_1",)]), (("large_1",), tree[("large_0",)])])
    assert set(ORBAX.strategies(swapped, PLAIN).values()) == {Strategy.RELINK}
    ORBAX.write(swapped, tmp_path / "out", lambda *_: None)
    found = ORBAX.open(tmp_path / "out").tree
    for name, other in (("large_0", "large_1"), ("large_1", "large_0")):
        assert found[(name,)].fetch().tobytes() == tree[(other,)].fetch().tobytes()


def test_both_versions_of_zarr_go_into_one(saved: Path, tmp_path: Path) -> None:
    """The first array decides; the others are made anew."""
    two, three = (ORBAX.open(saved / layout).tree for layout in ("zarr2 OCDBT", "zarr3 OCDBT"))
    mixed = Tree([(("a",), three[("large_0",)]), (("b",), two[("large_1",)]), (("c",), two[("key_0",)])])
    assert [*ORBAX.strategies(mixed, PLAIN).values()] == [Strategy.RELINK, Strategy.STREAM, Strategy.STREAM]
    ORBAX.write(mixed, tmp_path / "out", lambda *_: None)
    support.assert_equal(support.read(tmp_path / "out"), support.read_ourselves(mixed))
    with pytest.raises(UnsupportedCheckpoint, match="stored as"):
        ORBAX.write(Tree([(("a.b",), two[("large_0",)]), (("a", "b"), two[("large_1",)])]), tmp_path / "no", print)
    assert not (tmp_path / "no").exists()


def test_axes_stay_sharded_where_the_devices_divide_them(saved: Path) -> None:
    """Or Orbax could not restore them on the devices that they were saved from."""
    tree = ORBAX.open(saved / "zarr2 OCDBT").tree
    held = [Held((f"first_{number}",), tree[(f"first_{number}",)]) for number in range(3)]
    for operation, expected in (
        (Stack(3, 0), [None, "x", None, None]),
        (Concat(3, 0), ["x", None, None]),
        (Concat(3, 1), ["x", None, None]),
        (chain(Concat(3, 0), Split(3, 0)), [None, None, None]),
    ):
        grid = Transfer(operation, held).grid(0)
        assert grid is not None
        assert [axis.mesh for axis in grid.axes] == expected, operation
    for operation in (Split(2, 0), Split(2, 0, (1, 3))):
        grid = Transfer(operation, held[:1]).grid(0)
        assert grid is not None
        assert [axis.mesh for axis in grid.axes] == [None, None, None]
