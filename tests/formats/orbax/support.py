"""Checkpoints for the tests of this folder: trees of all kinds, and what saves them."""

from __future__ import annotations

import os
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
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from converter.formats.checkpoint import Checkpoint, Format
from converter.formats.orbax import OrbaxFormat
from converter.paths import IndexKey, IntKey, Path
from converter.tree import KEY_WORDS, LazyLeaf, Leaf, LeafKind, LeafSpec, Tree, array_spec, empty_spec

try:
    from orbax.checkpoint.experimental import v1
except ImportError:
    v1 = None


ROOT = FilePath(__file__).resolve().parents[3]
ORBAX = tuple(map(int, ocp.__version__.split(".")[:3]))
FORMAT: Format = OrbaxFormat()

needs_v1 = pytest.mark.skipif(v1 is None, reason="this Orbax is without its v1 API")


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


def on_a_mesh(shape: tuple[int, ...], *spec: Any) -> jax.Array:
    """Ones on the mesh ``data=1, model=1``: for what is noted of shardings one device is enough."""
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    return jax.device_put(jnp.ones(shape), NamedSharding(mesh, PartitionSpec(*spec)))


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


def leaf_of(value: Any) -> Leaf:
    """A leaf as dialects make them."""
    if value is None or isinstance(value, (dict, list, tuple)):
        return LazyLeaf(empty_spec("none" if value is None else type(value).__name__), lambda: None)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        spec = LeafSpec(LeafKind.KEY, str(jax.random.key_impl(value)), value.shape)
        return LazyLeaf(spec, lambda: np.asarray(jax.random.key_data(value)))
    if isinstance(value, np.generic):
        return LazyLeaf(LeafSpec(LeafKind.NUMPY_SCALAR, value.dtype.name), lambda: value)
    if isinstance(value, (jax.Array, np.ndarray)):
        return LazyLeaf(array_spec(value.dtype.name, value.shape), lambda: np.asarray(value))
    kind = LeafKind.TEXT if isinstance(value, (str, bytes)) else LeafKind.SCALAR
    return LazyLeaf(LeafSpec(kind, type(value).__name__), lambda: value)


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


def legacy(directory: FilePath, content: Any) -> None:
    directory.mkdir(parents=True)
    (directory / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(content))


def cut(file: FilePath) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
