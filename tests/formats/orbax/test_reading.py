"""What Orbax wrote is read bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from converter.errors import (
    UnreadableCheckpoint,
)
from converter.grid import Grid
from converter.paths import IndexKey
from converter.tree import Leaf, array_spec
from tests.formats.orbax.support import (
    FORMAT,
    ORBAX,
    SAVERS,
    arrays,
    assert_reads,
    dtypes,
    keys,
    misc,
    needs_v1,
    nnx_optimizer,
    nnx_state,
    of_pytree,
    of_tree,
    plain_files,
    pytree,
    standard,
    train_state,
    version_1,
    zarr3_files,
)

pytestmark = pytest.mark.filterwarnings("ignore")


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


def test_arrays_that_lie_alike_share_their_form(tmp_path: FilePath) -> None:
    for name in "ab":
        arrays = {"0": jnp.ones((2, 3)), "1": jnp.zeros((2, 3)), "2": jnp.ones((3, 2)), "3": jnp.ones((2, 3), "int32")}
        standard(tmp_path / name, arrays)
    forms = [grid_of(leaf).form for name in "ab" for leaf in FORMAT.open(tmp_path / name).tree.values()]
    assert len(set(forms)) == 3
    assert forms[0] is forms[1] is forms[4] is forms[5]


def test_what_one_process_wrote_at_a_time_is_of_the_form(tmp_path: FilePath) -> None:
    standard(tmp_path / "saved", {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))})
    file = tmp_path / "saved" / "array_metadatas" / "process_0"
    noted = json.loads(file.read_text())
    noted["array_metadatas"][0]["array_metadata"]["write_shape"] = [1, 3]
    file.write_text(json.dumps(noted))
    a, b = (grid_of(leaf).form for leaf in FORMAT.open(tmp_path / "saved").tree.values())
    assert a != b
    assert [[axis.write for axis in form.axes] for form in (a, b)] == [[1, 3], [2, 3]]


def grid_of(leaf: Leaf) -> Grid:
    grid = leaf.grid()
    assert grid is not None
    return grid


def test_what_is_noted_of_one_array_is_not_taken_for_that_of_another(tmp_path: FilePath) -> None:
    standard(tmp_path / "saved", {"a": jnp.ones(2), "b": jnp.ones(2)})
    file = tmp_path / "saved" / "array_metadatas" / "process_0"
    noted = json.loads(file.read_text())
    extras: dict[str, object] = {"a": {}, "b": None}
    for each in noted["array_metadatas"]:
        each["array_metadata"]["ext_metadata"] = extras[each["array_metadata"]["param_name"]]
    file.write_text(json.dumps(noted))
    grids = {path[0]: leaf.grid() for path, leaf in FORMAT.open(tmp_path / "saved").tree.items()}
    assert {name: grid.origin.extra for name, grid in grids.items() if grid is not None} == extras
