"""What is written is what Orbax would write, and Orbax reads it; what it cannot hold is refused."""

from __future__ import annotations

import json
import shutil
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
    DestinationError,
    UnreadableCheckpoint,
    UnsupportedCheckpoint,
)
from converter.formats.checkpoint import PLAIN, Strategy
from converter.paths import IndexKey
from converter.tree import LazyLeaf, LeafKind, LeafSpec, Tree, array_spec, empty_spec
from tests.formats.orbax.support import (
    FORMAT,
    ORBAX,
    arrays,
    assert_reads,
    dtypes,
    keys,
    misc,
    of_pytree,
    on_a_mesh,
    pytree,
    run_script,
    tree_of,
    v1,
    write,
)

pytestmark = pytest.mark.filterwarnings("ignore")


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


MESH_SPECS: dict[str, tuple[Any, ...]] = {
    "rows": ("data",),
    "both": (("data", "model"),),
    "none": (),
    "last": (None, "model"),
}


@pytest.fixture(scope="module")
def of_a_mesh(tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    place = tmp_path_factory.mktemp("mesh") / "saved"
    pytree(place, {name: on_a_mesh((2, 4), *spec) for name, spec in MESH_SPECS.items()})
    return place


def test_shardings_go_along(of_a_mesh: FilePath, tmp_path: FilePath) -> None:
    write(FORMAT.open(of_a_mesh).tree, tmp_path / "written")
    ours, theirs = (json.loads((place / "_sharding").read_text()) for place in (tmp_path / "written", of_a_mesh))
    assert ours == theirs


@pytest.mark.parametrize(
    "damage", [[{"x": 1}], [["data", ["model"]]], [1.5, {}, []], "data", {"data": 0}, [None] * 9, ["data"] * 9]
)
def test_shardings_that_make_no_sense_hinder_nothing(damage: Any, of_a_mesh: FilePath, tmp_path: FilePath) -> None:
    shutil.copytree(of_a_mesh, tmp_path / "saved")
    noted = {name: json.loads(text) for name, text in json.loads((of_a_mesh / "_sharding").read_text()).items()}
    damaged = {name: json.dumps({**sharding, "partition_spec": damage}) for name, sharding in noted.items()}
    (tmp_path / "saved" / "_sharding").write_text(json.dumps(damaged))
    assert set(FORMAT.strategies(FORMAT.open(tmp_path / "saved").tree, PLAIN).values()) == {Strategy.RELINK}
    write(FORMAT.open(tmp_path / "saved").tree, tmp_path / "written")
    assert_reads(FORMAT.open(tmp_path / "written"), of_pytree(dict.fromkeys(MESH_SPECS, jnp.ones((2, 4)))))


def test_writes_numpy_scalars_and_empty_optimizer_states(tmp_path: FilePath) -> None:
    scalar = LazyLeaf(LeafSpec(LeafKind.NUMPY_SCALAR, "float32"), lambda: np.float32(2.5))
    tree = Tree([(("a",), scalar), (("b", IndexKey(0)), LazyLeaf(empty_spec("node"), lambda: None))])
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
            Tree([(("k",), LazyLeaf(LeafSpec(LeafKind.KEY, "odd"), lambda: np.zeros(2, np.uint32)))]),
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
    from converter.tree import (LazyLeaf, Tree, array_spec)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    leaf = LazyLeaf(array_spec("float64", (300, 300)), lambda: np.random.default_rng(0).standard_normal((300, 300)))
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
        write(Tree([(("a",), LazyLeaf(array_spec("float32", (2,)), fail))]), tmp_path / "written")
    assert list(tmp_path.iterdir()) == []
