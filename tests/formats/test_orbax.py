"""Orbax directories: what Orbax wrote is read bit for bit, Orbax reads what is written, the rest is a clear error."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import flax
import flax.training.checkpoints
import flax.training.train_state
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx

from converter.errors import (
    ConverterError,
    DestinationError,
    UnreadableCheckpoint,
    UnsupportedCheckpoint,
    UsageError,
)
from converter.formats.checkpoint import Checkpoint, Format
from converter.formats.orbax import OrbaxFormat
from converter.paths import IndexKey, IntKey, Path, format_path
from converter.tree import KEY_WORDS, Leaf, LeafKind, LeafSpec, Tree, array_spec, empty_spec

try:
    from orbax.checkpoint.experimental import v1
except ImportError:
    v1 = None

ROOT = FilePath(__file__).resolve().parents[2]
ORBAX = tuple(map(int, ocp.__version__.split(".")[:3]))
FORMAT: Format = OrbaxFormat()

pytestmark = pytest.mark.filterwarnings("ignore")
needs_v1 = pytest.mark.skipif(v1 is None, reason="this Orbax is without its v1 API")

# Comparing -------------------------------------------------------------------------------------------------------


def bits(value: Any) -> tuple[Any, ...]:
    """A leaf of a JAX tree as something to compare: exact type, shape and bytes."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(value))
        return ("key", str(jax.random.key_impl(value)), value.shape, data.tobytes())
    if isinstance(value, np.generic):  # Orbax saves these as Python numbers
        value = value.item()
    if isinstance(value, (jax.Array, np.ndarray)):
        array = np.asarray(value)
        return ("array", array.dtype.name, array.shape, array.tobytes())
    return (type(value).__name__, value)


def is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (dict, list, tuple)) and not value)


def of_pytree(tree: Any) -> dict[tuple[str, ...], Any]:
    """Path and bits of every leaf of a JAX tree; empty nodes count as leaves, all alike."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_empty)
    return {
        tuple(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", None)))) for key in path): (
            ("empty",) if is_empty(value) else bits(value)
        )
        for path, value in flat
    }


def of_tree(tree: Tree) -> dict[tuple[str, ...], Any]:
    """The same of a Tree, by fetching every leaf; checks each value against its spec."""
    found: dict[tuple[str, ...], Any] = {}
    for path, leaf in tree.items():
        value, spec = leaf.fetch(), leaf.spec
        if spec.kind is LeafKind.EMPTY:
            assert value is None
            found[path] = ("empty",)
        elif spec.kind is LeafKind.KEY:
            assert value.dtype == np.uint32
            assert value.shape == (*spec.shape, KEY_WORDS[spec.dtype])
            found[path] = ("key", spec.dtype, spec.shape, value.tobytes())
        elif spec.kind is LeafKind.ARRAY:
            assert isinstance(value, np.ndarray)
            assert (value.dtype.name, value.shape) == (spec.dtype, spec.shape)
            found[path] = bits(value)
        else:
            assert type(value).__name__ == spec.dtype
            found[path] = bits(value)
    return found


def assert_reads(checkpoint: Checkpoint, expected: Mapping[tuple[str, ...], Any]) -> None:
    assert of_tree(checkpoint.tree) == expected


# Trees -----------------------------------------------------------------------------------------------------------

DTYPES = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "int4", "float16", "float32", "bfloat16"),
    *("complex64", "float8_e3m4", "float8_e4m3fn", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2"),
    "float8_e5m2fnuz",
]
if ORBAX >= (0, 12, 8):  # and the TensorStore of its day
    DTYPES += ["int2", "float8_e8m0fnu", "float4_e2m1fn"]
NUMPY_DTYPES = ("int64", "uint64", "float64", "complex128")
"""JAX holds these with x64 only."""


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Small numbers that no dtype rounds away, zeros among them."""
    numbers = np.arange(int(np.prod(shape))) % 2
    return numbers.reshape(shape).astype(getattr(ml_dtypes, dtype, dtype))


def dtypes() -> dict[str, Any]:
    tree: dict[str, Any] = {name: jnp.asarray(values(name, (3, 2))) for name in DTYPES}
    return tree | {name: values(name, (2, 3)) for name in NUMPY_DTYPES}


def arrays() -> dict[str, Any]:
    """Names that are odd, values that are small, big, zero, scalar, and sequences."""
    big = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    return {
        "params": {"Dense_0": {"kernel": jnp.asarray(big), "bias": jnp.zeros(48)}, "a/b": {"c d": jnp.ones(2)}},
        "layers": [{"w": jnp.arange(3.0)}, {"w": jnp.arange(4.0)}],
        "numbers": {0: jnp.ones(1), 10: jnp.ones(2), 2: jnp.ones(3)},
        "é": jnp.float32(2.5),
        "x.y": jnp.arange(5),
    }


def misc() -> dict[str, Any]:
    return {
        "array": jnp.ones((2, 3), jnp.bfloat16),
        "int": 7,
        "negative": -(2**62),
        "big": 2**63,
        "float": 1.5,
        "bool": True,
        "text": "hello",
        "more": {"text": "ünï", "empty": "", "sl/ash": "nested"},
        "none": None,
        "dict": {},
        "list": [],
        "tuple": (),
        "pair": (np.float64(2.0), np.arange(3)),
    }


def keys() -> dict[str, Any]:
    return {
        "one": jax.random.key(1),
        "several": jax.random.split(jax.random.key(2, impl="rbg"), 3),
        "grid": jax.random.split(jax.random.key(2, impl="unsafe_rbg"), (2, 2)),
        "raw": jax.random.PRNGKey(3),
    }


class Module(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])


def nnx_state() -> Any:
    return nnx.state(Module())


def nnx_optimizer() -> Any:
    model = Module()
    return nnx.state((model, nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)))


def train_state() -> Any:
    model = linen.Dense(4)
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-3, 0, 10)))
    return flax.training.train_state.TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)


def saved_by(handler: ocp.PyTreeCheckpointHandler, directory: FilePath, tree: Any, **arguments: Any) -> None:
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory, ocp.args.PyTreeSave(tree, **arguments))


def standard(directory: FilePath, tree: Any) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory, tree)


def pytree(directory: FilePath, tree: Any) -> None:
    saved_by(ocp.PyTreeCheckpointHandler(), directory, tree)


def plain_files(directory: FilePath, tree: Any) -> None:
    saved_by(ocp.PyTreeCheckpointHandler(use_ocdbt=False), directory, tree)


def zarr3(directory: FilePath, tree: Any) -> None:
    saved_by(ocp.PyTreeCheckpointHandler(use_zarr3=True), directory, tree)


def zarr3_files(directory: FilePath, tree: Any) -> None:
    saved_by(ocp.PyTreeCheckpointHandler(use_zarr3=True, use_ocdbt=False), directory, tree)


def small_chunks(directory: FilePath, tree: Any) -> None:
    arguments = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=512), tree)
    saved_by(ocp.PyTreeCheckpointHandler(use_zarr3=True), directory, tree, save_args=arguments)


def version_1(directory: FilePath, tree: Any) -> None:
    v1.save_pytree(directory, tree)


SAVERS: dict[Callable[[FilePath, Any], None], str] = {
    standard: "OCDBT, zarr2",
    pytree: "OCDBT, zarr2",
    plain_files: "files, zarr2",
    zarr3: "OCDBT, zarr3",
    zarr3_files: "files, zarr3",
    small_chunks: "OCDBT, zarr3",
}
if v1 is not None:
    SAVERS[version_1] = "OCDBT, zarr3"


@pytest.fixture
def saved(tmp_path: FilePath) -> FilePath:
    """A checkpoint to damage: two arrays too big for the index, one small, in OCDBT."""
    directory = tmp_path / "saved"
    random = np.random.default_rng(0)
    tree = {name: random.standard_normal((40, 40)) for name in ("a", "b")}
    pytree(directory, tree | {"small": np.ones(2)})
    return directory


# Reading what Orbax wrote ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("saver", SAVERS, ids=lambda saver: saver.__name__)
def test_reads_arrays_of_every_saver(saver: Callable[[FilePath, Any], None], tmp_path: FilePath) -> None:
    tree = arrays()
    if saver in (plain_files, zarr3_files):
        del tree["params"]["a/b"]  # a slash makes a directory there, which Orbax itself cannot read back
    saver(tmp_path / "saved", tree)
    checkpoint = FORMAT.open(tmp_path / "saved")
    assert FORMAT.sniff(tmp_path / "saved")
    assert checkpoint.facts["layout"] == SAVERS[saver]
    assert_reads(checkpoint, of_pytree(tree))


@pytest.mark.parametrize("saver", [pytree, zarr3_files], ids=lambda saver: saver.__name__)
def test_reads_every_dtype_that_orbax_writes(saver: Callable[[FilePath, Any], None], tmp_path: FilePath) -> None:
    saver(tmp_path / "saved", dtypes())
    tree = FORMAT.open(tmp_path / "saved").tree
    assert [leaf.spec.dtype for leaf in tree.values()] == [path[0] for path in tree]
    assert of_tree(tree) == of_pytree(dtypes())


@pytest.mark.parametrize("make", [misc, keys, train_state], ids=lambda make: make.__name__)
@pytest.mark.parametrize("saver", [pytree, zarr3_files], ids=lambda saver: saver.__name__)
def test_reads_values_of_every_kind(
    make: Callable[[], Any], saver: Callable[[FilePath, Any], None], tmp_path: FilePath
) -> None:
    tree = make()
    saver(tmp_path / "saved", tree)
    assert_reads(FORMAT.open(tmp_path / "saved"), of_pytree(tree))


@pytest.mark.parametrize("make", [nnx_state, nnx_optimizer], ids=lambda make: make.__name__)
def test_reads_nnx_states(make: Callable[[], Any], tmp_path: FilePath) -> None:
    state = make()
    standard(tmp_path / "saved", state)
    assert_reads(FORMAT.open(tmp_path / "saved"), of_pytree(state))


def test_keeps_kinds_of_leaves_and_keys(tmp_path: FilePath) -> None:
    pytree(tmp_path / "saved", misc() | keys() | {"layers": [{0: jnp.ones(1)}]})
    tree = FORMAT.open(tmp_path / "saved").tree
    assert {path[0]: str(leaf.spec) for path, leaf in tree.items() if len(path) == 1} == {
        "array": "bfloat16[2,3]",
        "int": "int",
        "negative": "int",
        "big": "int",
        "float": "float",
        "bool": "bool",
        "text": "str",
        "none": "None",
        "dict": "{}",
        "list": "[]",
        "tuple": "()",
        "one": "key<threefry2x32>[]",
        "several": "key<rbg>[3]",
        "grid": "key<unsafe_rbg>[2,2]",
        "raw": "uint32[2]",
    }
    (path,) = (path for path in tree if path[0] == "layers")
    assert [type(key) for key in path] == [str, IndexKey, str]


@needs_v1
@pytest.mark.skipif(ORBAX < (0, 12, 8), reason="Orbax cannot save it")
def test_reads_a_tree_that_is_one_array(tmp_path: FilePath) -> None:
    version_1(tmp_path / "saved", jnp.arange(5))
    assert of_tree(FORMAT.open(tmp_path / "saved").tree) == of_pytree(jnp.arange(5))


def test_tells_what_the_files_tell(tmp_path: FilePath) -> None:
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", {"a": jnp.ones(2)}, custom_metadata={"epoch": 3})
    checkpoint = FORMAT.open(tmp_path / "saved")
    assert checkpoint.format == FORMAT.name == "orbax"
    assert checkpoint.path == checkpoint.location == tmp_path / "saved"
    assert (checkpoint.steps, checkpoint.step, checkpoint.items, checkpoint.item) == ((), None, (), None)
    assert checkpoint.facts["written by"] == "Orbax PyTreeCheckpointHandler"
    assert checkpoint.facts["custom metadata"] == '{"epoch": 3}'
    assert checkpoint.facts["saved"].endswith("+00:00")


def test_reads_arrays_only_when_fetched(saved: FilePath) -> None:
    before = FORMAT.open(saved).tree
    shutil.rmtree(saved)
    assert before[("a",)].spec == array_spec("float64", (40, 40))
    with pytest.raises(UnreadableCheckpoint, match=r"^a: its array cannot be read"):
        before[("a",)].fetch()


SHARDED = """
    import sys
    import jax, jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))
    put = lambda value, *spec: jax.device_put(value, NamedSharding(mesh, P(*spec)))
    tree = {
        "both": put(jnp.arange(16 * 8.0).reshape(16, 8), "x", "y"),
        "last": put(jnp.arange(3 * 8, dtype=jnp.bfloat16).reshape(3, 8), None, "y"),
        "copied": put(jnp.arange(6.0)),
        "keys": put(jax.random.split(jax.random.key(0), 8), ("x", "y")),
    }
    for name, options in {"ocdbt": {}, "files": {"use_ocdbt": False}, "zarr3": {"use_zarr3": True}}.items():
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as saver:
            saver.save(sys.argv[1] + "/" + name, tree)
"""


def test_reads_arrays_of_many_chunks(tmp_path: FilePath) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(SHARDED), str(tmp_path)], check=True, capture_output=True)
    expected = of_pytree(
        {
            "both": np.arange(16 * 8, dtype=np.float32).reshape(16, 8),
            "last": np.arange(3 * 8).astype(ml_dtypes.bfloat16).reshape(3, 8),
            "copied": np.arange(6, dtype=np.float32),
            "keys": jax.random.split(jax.random.key(0), 8),
        }
    )
    for name in ("ocdbt", "files", "zarr3"):
        assert_reads(FORMAT.open(tmp_path / name), expected)


# Steps and items -------------------------------------------------------------------------------------------------


def test_chooses_among_the_steps_of_a_manager(tmp_path: FilePath) -> None:
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (9, 10, 100):
            manager.save(step, args=ocp.args.StandardSave({"step": jnp.asarray(step)}))
            manager.wait_until_finished()
    (tmp_path / "run" / "200.orbax-checkpoint-tmp").mkdir()
    latest, chosen = FORMAT.open(tmp_path / "run"), FORMAT.open(tmp_path / "run", step=9)
    assert FORMAT.sniff(tmp_path / "run")
    assert (latest.steps, latest.step, latest.items, latest.item) == ((9, 10, 100), 100, ("default",), "default")
    assert latest.location == tmp_path / "run" / "100" / "default"
    assert latest.facts["unfinished saves"] == "200.orbax-checkpoint-tmp"
    assert [int(checkpoint.tree[("step",)].fetch()) for checkpoint in (latest, chosen)] == [100, 9]
    with pytest.raises(UsageError, match="no step 7; its steps: 9, 10, 100"):
        FORMAT.open(tmp_path / "run", step=7)
    with pytest.raises(UnreadableCheckpoint, match=r"step 200 of .* is an unfinished save"):
        FORMAT.open(tmp_path / "run", step=200)
    with pytest.raises(UnreadableCheckpoint, match="is an unfinished save"):
        FORMAT.open(tmp_path / "run" / "200.orbax-checkpoint-tmp")
    assert FORMAT.open(tmp_path / "run" / "10").item == "default"
    with pytest.raises(UsageError, match="no step directories"):
        FORMAT.open(tmp_path / "run" / "10", step=10)


def test_chooses_among_the_items_of_a_manager(tmp_path: FilePath) -> None:
    options = ocp.CheckpointManagerOptions(step_prefix="ck", step_format_fixed_length=4)
    items = {"weights": {"a": jnp.ones(1)}, "opt": {"a": jnp.ones(2)}}
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        arguments = {name: ocp.args.PyTreeSave(item) for name, item in items.items()}
        arguments |= {"config": ocp.args.JsonSave({"width": 3}), "array": ocp.args.ArraySave(jnp.ones(3))}
        manager.save(5, args=ocp.args.Composite(**arguments))
        manager.wait_until_finished()
    checkpoint = FORMAT.open(tmp_path / "run", item="opt")
    assert checkpoint.location == tmp_path / "run" / "ck_0005" / "opt"
    assert (checkpoint.step, checkpoint.items, checkpoint.item) == (5, ("opt", "weights"), "opt")
    assert checkpoint.kinds == {"array": "array", "config": "JSON", **dict.fromkeys(checkpoint.items, "pytree")}
    assert checkpoint.facts["written by"] == "Orbax PyTreeCheckpointHandler"
    assert_reads(checkpoint, of_pytree(items["opt"]))
    with pytest.raises(UsageError, match="several items: opt, weights\nChoose one with --item opt or --item weights"):
        FORMAT.open(tmp_path / "run")
    with pytest.raises(UsageError, match="no item 'params'; its items: opt, weights"):
        FORMAT.open(tmp_path / "run", item="params")
    with pytest.raises(UsageError, match=r"item 'config' of .* is no tree of arrays but JSON"):
        FORMAT.open(tmp_path / "run", item="config")
    with pytest.raises(UsageError, match="is one item itself"):
        FORMAT.open(checkpoint.location, item="opt")


@needs_v1
def test_chooses_the_items_that_orbax_names_itself(tmp_path: FilePath) -> None:
    v1.save_checkpointables(tmp_path / "saved", {"state": {"a": jnp.ones(1)}, "other": {"a": jnp.ones(2)}})
    checkpoint = FORMAT.open(tmp_path / "saved")
    assert (checkpoint.items, checkpoint.item, checkpoint.steps) == (("other", "state"), "state", ())
    assert_reads(FORMAT.open(tmp_path / "saved", item="other"), of_pytree({"a": jnp.ones(2)}))


@needs_v1
def test_reads_steps_of_the_v1_checkpointer_and_of_flax(tmp_path: FilePath) -> None:
    checkpointer = v1.training.Checkpointer(tmp_path / "v1")
    checkpointer.save_pytree(3, {"a": jnp.ones(1)})
    checkpointer.close()
    for step in (9, 10):
        flax.training.checkpoints.save_checkpoint(tmp_path / "flax", {"a": jnp.full(1, step)}, step, keep=5)
    first, second = FORMAT.open(tmp_path / "v1"), FORMAT.open(tmp_path / "flax")
    assert FORMAT.sniff(tmp_path / "v1")
    assert FORMAT.sniff(tmp_path / "flax")
    assert (first.steps, first.step, first.location.parent.name) == ((3,), 3, "3")
    assert (second.steps, second.step, second.items) == ((9, 10), 10, ())
    assert second.location == tmp_path / "flax" / "checkpoint_10"


def test_refuses_steps_that_cannot_be_told_apart(saved: FilePath, tmp_path: FilePath) -> None:
    for name in ("a_1", "a_2", "b_3"):
        shutil.copytree(saved, tmp_path / "series" / name)
    with pytest.raises(UsageError, match="several series of steps: a_<step>, b_<step>"):
        FORMAT.open(tmp_path / "series")
    assert FORMAT.open(tmp_path / "series", step=3).location.name == "b_3"
    for name in ("1", "01"):
        shutil.copytree(saved, tmp_path / "twice" / name)
    with pytest.raises(UsageError, match="step 1 several times: 01, 1"):
        FORMAT.open(tmp_path / "twice")


def test_reads_items_with_names_like_steps(saved: FilePath, tmp_path: FilePath) -> None:
    for name in ("model_0", "opt"):
        shutil.copytree(saved, tmp_path / "step" / name)
    assert FORMAT.open(tmp_path / "step", item="model_0").items == ("model_0", "opt")


# Writing ---------------------------------------------------------------------------------------------------------


def leaf_of(value: Any) -> Leaf:
    """A leaf as dialects make them."""
    if value is None or isinstance(value, (dict, list, tuple)):
        return Leaf(empty_spec("none" if value is None else type(value).__name__), lambda: None)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        spec = LeafSpec(LeafKind.KEY, str(jax.random.key_impl(value)), value.shape)
        return Leaf(spec, lambda: np.asarray(jax.random.key_data(value)))
    if isinstance(value, np.generic):
        return Leaf(LeafSpec(LeafKind.NUMPY_SCALAR, value.dtype.name), lambda: value)
    if isinstance(value, (jax.Array, np.ndarray)):
        return Leaf(array_spec(value.dtype.name, value.shape), lambda: np.asarray(value))
    kind = LeafKind.TEXT if isinstance(value, (str, bytes)) else LeafKind.SCALAR
    return Leaf(LeafSpec(kind, type(value).__name__), lambda: value)


def tree_of(content: Any, path: Path = ()) -> Tree:
    def walk(value: Any, path: Path) -> Iterator[tuple[Path, Leaf]]:
        if is_empty(value) or not isinstance(value, (dict, list, tuple)):
            yield path, leaf_of(value)
        elif isinstance(value, dict):
            for key, child in value.items():
                yield from walk(child, (*path, IntKey(key) if isinstance(key, int) else key))
        else:
            for position, child in enumerate(value):
                yield from walk(child, (*path, IndexKey(position)))

    return Tree(walk(content, path))


def write(tree: Tree, destination: FilePath, **options: Any) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    OrbaxFormat().write(tree, destination, lambda size, leaves: told.append((size, leaves)), **options)
    return told


WRITABLE: dict[str, Callable[[], Any]] = {
    "arrays": arrays,
    "dtypes": dtypes,
    "keys": keys,
    "misc": lambda: misc() | {"pair": [1, np.arange(3)], "zero_d": np.full((), 3, np.float32)},
    "mixed keys": lambda: {"a": {0: jnp.ones(1), "x": jnp.ones(2)}},
    "list": lambda: [jnp.ones(1), None, {"a": jnp.ones(2)}],
    "one array": lambda: jnp.ones(3),
    "only empty": lambda: {"a": {}, "b": None},
}


if ORBAX < (0, 12, 8):
    WRITABLE.pop("one array")


@pytest.mark.parametrize("name", WRITABLE)
def test_what_is_written_is_read_by_all(name: str, tmp_path: FilePath) -> None:
    content = WRITABLE[name]()
    if name == "mixed keys":  # JAX cannot sort these
        expected = of_pytree({"a": {"0": jnp.ones(1), "x": jnp.ones(2)}})
    else:
        expected = of_pytree(content)
    tree = tree_of(content)
    assert sorted(write(tree, tmp_path / "written")) == sorted((leaf.spec.nbytes, 1) for leaf in tree.values())
    assert_reads(FORMAT.open(tmp_path / "written"), expected)
    with ocp.PyTreeCheckpointer() as reader:
        assert of_pytree(reader.restore(tmp_path / "written")) == expected
    with ocp.StandardCheckpointer() as reader:
        assert reader.metadata(tmp_path / "written") is not None
        if name not in ("misc", "one array", "only empty"):
            assert of_pytree(reader.restore(tmp_path / "written")) == expected
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, reader.restore(tmp_path / "written"))
            assert of_pytree(reader.restore(tmp_path / "written", target)) == expected
    if name != "only empty" and ORBAX >= (0, 12, 8):  # before, the v1 API reads none but its own directories
        assert of_pytree(v1.load_pytree(tmp_path / "written")) == expected


def test_writes_the_files_that_orbax_writes(tmp_path: FilePath) -> None:
    pytree(tmp_path / "by_orbax", arrays() | keys())
    write(FORMAT.open(tmp_path / "by_orbax").tree, tmp_path / "by_us")

    def names(directory: FilePath) -> set[str]:
        found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
        return {"d/*" if name.startswith("d/") else name for name in found if not name.startswith("ocdbt.process_0/")}

    assert names(tmp_path / "by_us") == names(tmp_path / "by_orbax")
    for name in ("_METADATA", "_sharding", "array_metadatas/process_0"):
        ours, theirs = (json.loads((tmp_path / writer / name).read_text()) for writer in ("by_us", "by_orbax"))
        # JAX sorts int keys as numbers; they are texts by the time that we save them.
        assert sorted(ours.get("array_metadatas", ()), key=str) == sorted(theirs.get("array_metadatas", ()), key=str)
        assert ours | {"array_metadatas": None} == theirs | {"array_metadatas": None}


def test_writes_numpy_scalars_and_empty_optimizer_states(tmp_path: FilePath) -> None:
    scalar = Leaf(LeafSpec(LeafKind.NUMPY_SCALAR, "float32"), lambda: np.float32(2.5))
    tree = Tree([(("a",), scalar), (("b", IndexKey(0)), Leaf(empty_spec("node"), lambda: None))])
    write(tree, tmp_path / "written")
    assert [str(leaf.spec) for leaf in FORMAT.open(tmp_path / "written").tree.values()] == ["float32[]", "None"]


def test_notes_the_final_path(tmp_path: FilePath) -> None:
    write(tree_of({"a": np.ones(2)}), tmp_path / "temporary", final=tmp_path / "final")
    shutil.move(tmp_path / "temporary", tmp_path / "final")
    for file in (tmp_path / "final").rglob("*"):
        assert file.is_dir() or b"temporary" not in file.read_bytes()
    if ORBAX >= (0, 12, 8):
        assert (tmp_path / "final" / "commit_success.txt").read_text().endswith(str(tmp_path / "final"))
    with ocp.StandardCheckpointer() as reader:
        np.testing.assert_array_equal(reader.restore(tmp_path / "final")["a"], np.ones(2))


def test_refuses_everything_that_orbax_cannot_hold_at_once(tmp_path: FilePath) -> None:
    tree = tree_of(
        {
            "uint4": np.ones(3, ml_dtypes.uint4),
            "bytes": b"xx",
            "complex": 1j,
            "huge": 2**70,
            "nothing": np.zeros((0, 3)),
            "tilde~": "text",
            "text": {"a": "a"},
            "text.a/b": "b",
            "fine": np.ones(2),
        }
    )
    with pytest.raises(UnsupportedCheckpoint) as caught:
        write(tree, tmp_path / "written")
    assert caught.value.message.splitlines() == [
        "Orbax cannot hold these leaves:",
        "  uint4: uint4[3] has a dtype that TensorStore cannot store",
        "  bytes: bytes is no text",
        "  complex: complex is a Python number; Orbax holds complex numbers in arrays only",
        "  huge: int needs more than 64 bits",
        "  nothing: float64[0,3] has no elements; Orbax refuses arrays of size zero",
        "  tilde~: str has a tilde in its path, where Orbax keeps texts under JSON pointers",
        '  "text.a/b": str cannot stand beside the text text/a',
    ]
    assert caught.value.advice
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (Tree(), "no leaves"),
        (tree_of({}), "no leaves"),
        (tree_of({"a": {"b": np.ones(1)}, "a.b": np.ones(2)}), "a/b is stored as a.b\n  a.b is stored as a.b"),
        (
            Tree([(("k",), Leaf(LeafSpec(LeafKind.KEY, "odd"), lambda: np.zeros(2, np.uint32)))]),
            "key<odd>.. is of an implementation that JAX",
        ),
    ],
)
def test_refuses_to_write(tree: Tree, message: str, tmp_path: FilePath) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=message):
        write(tree, tmp_path / "written")
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_destination_that_exists(tmp_path: FilePath) -> None:
    (tmp_path / "written").mkdir()
    with pytest.raises(DestinationError, match="exists already"):
        write(tree_of({"a": np.ones(2)}), tmp_path / "written")


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    import numpy as np
    import orbax.checkpoint  # compiles to files, which the limit would hit
    from converter.errors import DestinationError
    from converter.formats.orbax import OrbaxFormat
    from converter.tree import (Leaf, Tree, array_spec)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    leaf = Leaf(array_spec("float64", (300, 300)), lambda: np.random.default_rng(0).standard_normal((300, 300)))
    tree = Tree([((f"a{number}",), leaf) for number in range(10)])
    try:
        OrbaxFormat().write(tree, Path(sys.argv[1]), lambda *_: None)
    except DestinationError as error:
        print(error.message.rpartition(": ")[2])
"""


def test_leaves_nothing_and_says_one_thing_when_the_disk_refuses(tmp_path: FilePath) -> None:
    done = run_script(FULL_DISK, tmp_path / "written")
    assert (done.stdout, done.stderr) == ("File too large\n", "")
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_destination_below_a_file(tmp_path: FilePath) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DestinationError, match="Not a directory"):
        write(tree_of({"a": np.ones(2)}), tmp_path / "file" / "written")


def test_a_failure_to_read_while_writing_leaves_nothing(tmp_path: FilePath) -> None:
    def fail() -> Any:
        raise UnreadableCheckpoint("broken")

    with pytest.raises(UnreadableCheckpoint, match="broken"):
        write(Tree([(("a",), Leaf(array_spec("float32", (2,)), fail))]), tmp_path / "written")
    assert list(tmp_path.iterdir()) == []


# Damage ----------------------------------------------------------------------------------------------------------


def open_and_read_all(path: FilePath) -> None:
    for leaf in FORMAT.open(path).tree.values():
        leaf.fetch()


def cut(file: FilePath) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def delete_values(saved: FilePath) -> None:
    for file in (saved / "ocdbt.process_0" / "d").iterdir():
        file.unlink()


def delete_index(saved: FilePath) -> None:
    for file in (saved / "d").iterdir():
        file.unlink()


def delete_manifests(saved: FilePath) -> None:
    for file in saved.rglob("manifest.ocdbt"):
        file.unlink()


def rename_leaf(saved: FilePath) -> None:
    file = saved / "_METADATA"
    file.write_text(file.read_text().replace('"key": "small"', '"key": "other"'))


DAMAGES: Mapping[str, tuple[Callable[[FilePath], Any], str]] = {
    "manifest cut": (lambda saved: cut(saved / "manifest.ocdbt"), "manifest.ocdbt is damaged: expected"),
    "manifest empty": (lambda saved: (saved / "manifest.ocdbt").write_bytes(b""), "manifest.ocdbt is damaged"),
    "manifests deleted": (delete_manifests, "without array data: a, b, small"),
    "index deleted": (delete_index, "cannot be read: No such file"),
    "index cut": (lambda saved: cut(next((saved / "d").iterdir())), "B-tree node .* is damaged"),
    "values deleted": (delete_values, "cannot be read: No such file"),
    "values cut": (
        lambda saved: cut(max(saved.rglob("d/*"), key=os.path.getsize)),
        "is damaged: expected values within",
    ),
    "_METADATA deleted": (lambda saved: (saved / "_METADATA").unlink(), "_METADATA is missing"),
    "_METADATA cut": (lambda saved: cut(saved / "_METADATA"), "_METADATA is damaged: no JSON"),
    "_METADATA a list": (lambda saved: (saved / "_METADATA").write_text("[]"), "_METADATA is damaged: it is not"),
    "_METADATA of others": (lambda saved: (saved / "_METADATA").write_text('{"a": 1}'), "_METADATA is damaged"),
    "leaf without data": (rename_leaf, "without array data: other\nThe checkpoint is incomplete"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_clear_error(name: str, saved: FilePath) -> None:
    damage, message = DAMAGES[name]
    damage(saved)
    with pytest.raises(UnreadableCheckpoint, match=message) as caught:
        open_and_read_all(saved)
    assert "tensorstore_spec" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("saver", [plain_files, zarr3_files], ids=lambda saver: saver.__name__)
def test_damage_in_plain_files(saver: Callable[[FilePath, Any], None], tmp_path: FilePath) -> None:
    saver(tmp_path / "saved", {"a": {"w": jnp.zeros((3, 4))}, "b": jnp.ones(2)})
    chunk = next(path for path in (tmp_path / "saved" / "a.w").rglob("*") if path.is_file() and "zarr" not in path.name)
    metadata = next((tmp_path / "saved" / "a.w").glob("*zarr*"))
    for damage, message in (
        (lambda: cut(chunk), "^a/w: its array cannot be read"),
        (chunk.unlink, "^a/w: its chunk (c/0/0|0.0) is missing"),  # zeros are stored too: it is not a sparse array
        (lambda: metadata.write_text("{"), "^a/w: its array metadata are damaged"),
        (lambda: metadata.write_text('{"shape": [3], "dtype": "<U3"}'), "^a/w: an array of dtype '<U3'"),
        (lambda: metadata.write_text('{"shape": [3], "dtype": "float7"}'), "^a/w: the dtype 'float7' is unknown"),
        (metadata.unlink, "without array data: a/w"),
    ):
        damage()
        with pytest.raises(ConverterError, match=message):
            open_and_read_all(tmp_path / "saved")


def test_damage_in_texts_and_key_metadata(tmp_path: FilePath) -> None:
    pytree(tmp_path / "saved", {"a": {"t": "text"}, "k": jax.random.key(0)})
    strings = tmp_path / "saved" / "_strings.json"
    strings.write_text('{"a.t": 3}')
    with pytest.raises(UnreadableCheckpoint, match=r"a/t: expected a text in .*_strings.json, found 3"):
        open_and_read_all(tmp_path / "saved")
    strings.write_text("{}")
    with pytest.raises(UnreadableCheckpoint, match="a/t: its text is missing"):
        open_and_read_all(tmp_path / "saved")
    (tmp_path / "saved" / "array_metadatas" / "process_0").write_text("{}")
    with pytest.raises(UnreadableCheckpoint, match="process_0 is damaged: it is not Orbax array metadata"):
        FORMAT.open(tmp_path / "saved")


def test_refuses_what_is_no_checkpoint(tmp_path: FilePath) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "sub").mkdir(parents=True)
    (tmp_path / "other" / "notes.txt").touch()
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"')
    for name in ("empty", "other", "tensorflow"):
        assert not FORMAT.sniff(tmp_path / name)
        with pytest.raises(UnreadableCheckpoint, match="holds no tree of arrays\nName the directory"):
            FORMAT.open(tmp_path / name)
    assert not FORMAT.sniff(tmp_path / "other" / "notes.txt")
    assert not FORMAT.sniff(tmp_path / "absent")
    with pytest.raises(UnreadableCheckpoint, match="is a file"):
        FORMAT.open(tmp_path / "other" / "notes.txt")
    with pytest.raises(UnreadableCheckpoint, match="does not exist"):
        FORMAT.open(tmp_path / "absent")


def test_what_the_file_system_refuses_is_one_clear_error(saved: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(directory))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UnreadableCheckpoint, match=f"^{saved} cannot be read: Permission denied$"):
        FORMAT.open(saved)
    assert not FORMAT.sniff(saved.parent)


def test_refuses_steps_without_trees_and_unfinished_items(saved: FilePath, tmp_path: FilePath) -> None:
    with ocp.CheckpointManager(tmp_path / "json") as manager:
        manager.save(1, args=ocp.args.JsonSave({"a": 1}))
        manager.wait_until_finished()
    with pytest.raises(UnreadableCheckpoint, match=r"holds no tree of arrays, only default \(JSON\)"):
        FORMAT.open(tmp_path / "json")
    shutil.copytree(saved, tmp_path / "step" / "default.orbax-checkpoint-tmp")
    assert FORMAT.sniff(tmp_path / "step")
    with pytest.raises(UnreadableCheckpoint, match="holds only unfinished saves"):
        FORMAT.open(tmp_path / "step")


def test_refuses_names_that_collide(tmp_path: FilePath) -> None:
    pytree(tmp_path / "saved", {"a": {"b": jnp.ones(1)}, "a.b": jnp.zeros(1), "c.d": None, "c": {"d": None}})
    with pytest.raises(
        UnsupportedCheckpoint, match=r"share one name:\n  a/b is stored as a.b\n  a.b is stored as a.b\n"
    ):
        FORMAT.open(tmp_path / "saved")


def test_refuses_to_leave_the_checkpoint(saved: FilePath, tmp_path: FilePath) -> None:
    plain_files(tmp_path / "plain", {"a": jnp.ones(1)})
    (tmp_path / "plain" / "a").rename(tmp_path / "elsewhere")
    (tmp_path / "plain" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnreadableCheckpoint, match="plain/a is a symbolic link that leaves the checkpoint"):
        FORMAT.open(tmp_path / "plain")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "1").symlink_to(saved)
    with pytest.raises(UnreadableCheckpoint, match="run/1 is a symbolic link that leaves"):
        FORMAT.open(tmp_path / "run")
    assert FORMAT.open(tmp_path / "run" / "1").tree.keys() == FORMAT.open(saved).tree.keys()
    plain_files(tmp_path / "dots", {"k": jnp.ones(1)})
    metadata = tmp_path / "dots" / "_METADATA"
    metadata.write_text(metadata.read_text().replace('"key": "k"', '"key": "../dots/k"'))
    with pytest.raises(UnreadableCheckpoint, match="leaves"):
        FORMAT.open(tmp_path / "dots")


def test_follows_links_inside_the_checkpoint(saved: FilePath) -> None:
    (saved / "d").rename(saved / "real")
    (saved / "d").symlink_to("real")
    (saved / "real" / "loop").symlink_to("..")
    open_and_read_all(saved)


# Older varieties, made by hand -----------------------------------------------------------------------------------


def legacy(directory: FilePath, content: Any) -> None:
    directory.mkdir(parents=True)
    (directory / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(content))


def test_reads_values_in_the_msgpack_file(tmp_path: FilePath) -> None:
    content = {
        "a": {"w": values("bfloat16", (2, 3)), "scalar": np.float32(2.5), "zero_d": np.asarray(3.0)},
        "list": [1, {"x": 2.5}, None, [], {}],
        "complex": 1 + 2j,
        "text": "hello",
    }
    legacy(tmp_path / "saved", content)
    checkpoint = FORMAT.open(tmp_path / "saved")
    assert FORMAT.sniff(tmp_path / "saved")
    assert checkpoint.facts["version"] == "as Orbax up to 0.5.10 writes it"
    assert {format_path(path): str(leaf.spec) for path, leaf in checkpoint.tree.items()} == {
        "a/w": "bfloat16[2,3]",
        "a/scalar": "float32()",
        "a/zero_d": "float64[]",
        "list/0": "int",
        "list/1/x": "float",
        "list/2": "None",
        "list/3": "[]",
        "list/4": "{}",
        "complex": "complex",
        "text": "str",
    }
    assert bits(checkpoint.tree[("a", "w")].fetch()) == bits(content["a"]["w"])
    assert checkpoint.tree[("list", "1", "x")].fetch() == 2.5
    assert checkpoint.tree[("complex",)].fetch() == 1 + 2j


def test_reads_arrays_in_pieces(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)
    legacy(tmp_path / "saved", {"a": np.arange(12, dtype=np.float32).reshape(3, 4)})
    (leaf,) = FORMAT.open(tmp_path / "saved").tree.values()
    np.testing.assert_array_equal(leaf.fetch(), np.arange(12, dtype=np.float32).reshape(3, 4))


def test_reads_placeholders_of_arrays(tmp_path: FilePath) -> None:
    plain_files(tmp_path / "saved", {"a": {"w": jnp.arange(3)}, "l": [jnp.ones(2)]})
    (tmp_path / "saved" / "_METADATA").unlink()
    (tmp_path / "saved" / "checkpoint").write_bytes(
        msgpack.packb({"a": {"w": "PLACEHOLDER://a.w"}, "l": ["PLACEHOLDER://l.0"], "n": None})
    )
    expected = of_pytree({"a": {"w": jnp.arange(3)}, "l": [jnp.ones(2)], "n": None})
    assert of_tree(FORMAT.open(tmp_path / "saved").tree) == expected


def test_refuses_msgpack_files_it_cannot_read(tmp_path: FilePath) -> None:
    legacy(tmp_path / "saved", {"a": np.ones(3), "b": "//GDAPlaceholder:b"})
    with pytest.raises(UnsupportedCheckpoint, match="b: the value was saved by several processes"):
        FORMAT.open(tmp_path / "saved")
    cut(tmp_path / "saved" / "checkpoint")
    with pytest.raises(UnreadableCheckpoint, match="checkpoint is damaged: no msgpack tree"):
        FORMAT.open(tmp_path / "saved")
    (tmp_path / "saved" / "checkpoint").write_bytes(msgpack.packb({"a": msgpack.ExtType(9, b"x")}))
    with pytest.raises(UnreadableCheckpoint, match="unknown msgpack extension 9"):
        FORMAT.open(tmp_path / "saved")


def test_reads_the_database_of_one_process_that_was_never_merged(saved: FilePath) -> None:
    expected = of_tree(FORMAT.open(saved).tree)
    (saved / "manifest.ocdbt").unlink()
    assert of_tree(FORMAT.open(saved).tree) == expected


# The corpus ------------------------------------------------------------------------------------------------------

MSGPACK_ONLY = "holds no tree of arrays"
UNFINISHED = "is an unfinished save"
CORPUS_REFUSALS: Mapping[str, str] = {
    # msgpack files of flax in a directory: another format
    "a_f053_legacy_bf16_misc/ckpt": MSGPACK_ONLY,
    "a_f053_legacy_chunked/ckpt": MSGPACK_ONLY,
    "a_f053_legacy_params/ckpt": MSGPACK_ONLY,
    "a_f053_legacy_trainstate/ckpt": MSGPACK_ONLY,
    "a_f053_to_bytes/ckpt": MSGPACK_ONLY,
    "c_f069_legacy_bf16_misc/ckpt": MSGPACK_ONLY,
    "c_f069_legacy_chunked/ckpt": MSGPACK_ONLY,
    "c_f069_legacy_params/ckpt": MSGPACK_ONLY,
    "c_f069_legacy_trainstate/ckpt": MSGPACK_ONLY,
    "c_f069_to_bytes/ckpt": MSGPACK_ONLY,
    "cur_v12_legacy_msgpack/ckpt": MSGPACK_ONLY,
    "e_o044_legacy_msgpack/ckpt": MSGPACK_ONLY,
    "g_o064_legacy_msgpack/ckpt": MSGPACK_ONLY,
    "i_o01125_legacy_msgpack/ckpt": MSGPACK_ONLY,
    # saves that failed, most of them because Orbax cannot hold a leaf
    "cur_v12_casted/ckpt.orbax-checkpoint-tmp": UNFINISHED,
    "cur_v12_dt_uint4/ckpt.orbax-checkpoint-tmp": UNFINISHED,
    "e_o044_dt_uint4/ckpt.orbax-checkpoint-tmp-1795354654435928": UNFINISHED,
    "g_o064_dt_uint4/ckpt.orbax-checkpoint-tmp-65": UNFINISHED,
    "g_o064_nnx_module_direct/ckpt.orbax-checkpoint-tmp-89": UNFINISHED,
    "g_o064_nnx_optimizer/ckpt.orbax-checkpoint-tmp-83": UNFINISHED,
    "g_o064_nnx_state/ckpt.orbax-checkpoint-tmp-74": UNFINISHED,
    "g_o064_nnx_state_pytree/ckpt.orbax-checkpoint-tmp-77": UNFINISHED,
    "g_o064_nnx_tuple/ckpt.orbax-checkpoint-tmp-86": UNFINISHED,
    "g_o064_prng/ckpt.orbax-checkpoint-tmp-44": UNFINISHED,
    "i_o01125_dt_uint4/ckpt.orbax-checkpoint-tmp": UNFINISHED,
}
CORPUS_NEWER_DTYPES = {"cur_v12_dt_float4_e2m1fn/ckpt", "i_o01125_dt_float4_e2m1fn/ckpt"}
"""Refused as long as the installed TensorStore does not know the dtype."""

CORPUS_SEVERAL_ITEMS: Mapping[str, tuple[str, ...]] = {
    "cur_v12_mgr_composite": ("state", "opt"),
    "g_o064_mgr_composite": ("state", "opt"),
    "i_o01125_mgr_composite": ("state", "opt"),
    "cur_v12_v1_checkpointables": ("cfg", "model", "opt"),
}
"""Their how.json puts the item before each path."""

CORPUS_LEFT_OUT = {"cfg/lr", "cfg/name"}
"""Leaves that how.json of cur_v12_v1_checkpointables does not list."""

SCALARS_AS_ARRAYS = {"c_f069_pytree_misc", "c_f069_pytree_trainstate"}
"""Orbax 0.2 notes no types, so Python numbers come back as 0-d arrays."""


def corpus_leaves(directory: FilePath) -> dict[str, Leaf]:
    """All leaves of all items by their path as text."""
    found: dict[str, Leaf] = {}
    items: tuple[str | None, ...] = CORPUS_SEVERAL_ITEMS.get(directory.parent.name, (None,))
    for item in items:
        tree = FORMAT.open(directory, item=item).tree
        found |= {"/".join((*([item] if item else []), *path)): leaf for path, leaf in tree.items()}
    if directory.parent.name == "cur_v12_arraycheckpoint":  # one bare array, for which Orbax makes up this path
        found = {"": found["checkpoint"]}
    return found


def corpus_difference(leaf: Leaf, expected: Mapping[str, Any], arrays_only: bool) -> str | None:
    """The digest of how.json is over ``array.tobytes()``, in C order, one byte at least per element."""
    value = leaf.fetch()
    if "py" in expected:
        found: Any = value.item() if arrays_only else value
        python_type = {"float64": "float"}.get(expected["py"], expected["py"])
        same = (type(found).__name__, found) == (python_type, expected["v"])
        return None if same else f"expected {expected}, found {value!r}"
    digest = hashlib.sha256(np.asarray(value).tobytes()).hexdigest()[:16]
    wanted = (tuple(expected["shape"]), expected["dtype"], expected["sha"], "prng" in expected)
    got = (value.shape, value.dtype.name, digest, leaf.spec.kind is LeafKind.KEY)
    return None if got == wanted else f"expected {wanted}, found {got}"


def test_corpus(corpus_dir: FilePath) -> None:
    checkpoints = sorted(path for path in corpus_dir.glob("*/ckpt*"))
    differences: list[str] = []
    for directory in checkpoints:
        name = f"{directory.parent.name}/{directory.name}"
        if name in CORPUS_REFUSALS:
            assert FORMAT.sniff(directory) == (CORPUS_REFUSALS[name] != MSGPACK_ONLY), name
            with pytest.raises(UnreadableCheckpoint, match=CORPUS_REFUSALS[name]):
                FORMAT.open(directory)
            continue
        assert FORMAT.sniff(directory), name
        expected = json.loads((directory.parent / "how.json").read_text())["leaves"]
        if name in CORPUS_NEWER_DTYPES and ORBAX < (0, 12, 8):
            with pytest.raises(UnsupportedCheckpoint, match="TensorStore does not know the dtype"):
                FORMAT.open(directory)
            continue
        found = corpus_leaves(directory)
        unlisted = {path for path, leaf in found.items() if leaf.spec.kind is not LeafKind.EMPTY} - expected.keys()
        differences += [f"{name}: {path} missing" for path in expected.keys() - found.keys()]
        differences += [f"{name}: {path} unexpected" for path in unlisted - CORPUS_LEFT_OUT]
        for path in expected.keys() & found.keys():
            difference = corpus_difference(found[path], expected[path], directory.parent.name in SCALARS_AS_ARRAYS)
            differences += [f"{name}: {path}: {difference}"] if difference else []
    assert differences == []
    assert len(checkpoints) > len(CORPUS_REFUSALS)


def test_corpus_of_several_processes(corpus_dir: FilePath) -> None:
    for name in ("cur_v12_2proc_std", "cur_v12_2proc_noocdbt", "cur_v12_2proc_zarr3"):
        assert FORMAT.open(corpus_dir / name / "ckpt").facts["processes"] == "2"
    assert "processes" not in FORMAT.open(corpus_dir / "cur_v12_v1_replica_folder" / "ckpt").facts


def test_corpus_round_trip(corpus_dir: FilePath, tmp_path: FilePath) -> None:
    """Through the writer and back: an old variety, nnx with keys, several processes, odd leaves."""
    for name in ("c_f069_pytree_trainstate", "cur_v12_nnx_optimizer", "cur_v12_2proc_zarr3", "e_o044_pytree_misc"):
        tree = FORMAT.open(corpus_dir / name / "ckpt").tree
        write(tree, tmp_path / name)
        assert of_tree(FORMAT.open(tmp_path / name).tree) == of_tree(tree)


# Costs -----------------------------------------------------------------------------------------------------------


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True)


READING = """
    import sys
    from pathlib import Path
    from converter.formats.orbax import OrbaxFormat
    for name in sys.argv[1:]:
        assert OrbaxFormat().sniff(Path(name))
        for leaf in OrbaxFormat().open(Path(name)).tree.values():
            leaf.fetch()
    print(sorted({name.partition(".")[0] for name in sys.modules} & {"jax", "flax", "orbax", "jaxlib", "optax"}))
"""


@needs_v1
def test_reading_imports_no_framework(tmp_path: FilePath) -> None:
    version_1(tmp_path / "new", misc() | keys())
    legacy(tmp_path / "old", {"a": np.ones(3)})
    done = run_script(READING, tmp_path / "new", tmp_path / "old")
    assert (done.stdout, done.stderr) == ("[]\n", "")


WRITING = """
    import sys
    from pathlib import Path
    import numpy as np
    from converter.formats.orbax import OrbaxFormat
    from converter.tree import (Leaf, LeafKind, LeafSpec, Tree, array_spec)
    tree = Tree([
        (("a",), Leaf(array_spec("float64", (2,)), lambda: np.ones(2))),
        (("k",), Leaf(LeafSpec(LeafKind.KEY, "threefry2x32"), lambda: np.ones(2, np.uint32))),
        (("t",), Leaf(LeafSpec(LeafKind.TEXT, "str"), lambda: "text")),
    ])
    OrbaxFormat().write(tree, Path(sys.argv[1]) / "tree", lambda *_: None)
    OrbaxFormat().write(Tree([(("t",), tree[("t",)])]), Path(sys.argv[1]) / "text", lambda *_: None)
"""


def test_writing_is_silent(tmp_path: FilePath) -> None:
    done = run_script(WRITING, tmp_path)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.slow
def test_opens_many_leaves(tmp_path: FilePath) -> None:
    import tensorstore as ts

    count = 50_000
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/"}).result()
    array = {"zarr_format": 2, "shape": [8], "chunks": [8], "dtype": "<f4", "compressor": None, "order": "C"}
    with ts.Transaction() as transaction:
        for number in range(count):
            store.with_transaction(transaction)[f"layer_{number}.w/.zarray"] = json.dumps(array).encode()
    value = {"value_type": "np.ndarray", "skip_deserialize": False}
    keys = ([{"key": f"layer_{number}", "key_type": 2}, {"key": "w", "key_type": 2}] for number in range(count))
    tree = {str(key): {"key_metadata": key, "value_metadata": value} for key in keys}
    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": tree}))
    assert len(FORMAT.open(tmp_path).tree) == count
