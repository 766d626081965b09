"""Every Orbax item there is, written anew from its own bytes: all readers read what they read of the source."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from converter.errors import ConverterError, UnreadableCheckpoint
from converter.formats import FORMATS, open_checkpoint
from converter.formats.checkpoint import PLAIN, Strategy, Writing, Written
from converter.formats.ocdbt import read_database, write_database
from converter.stored import Extent
from converter.tree import LazyLeaf, Leaf, LeafKind, Tree, array_spec
from fixtures import make

from . import support

try:
    from orbax.checkpoint import v1
except ImportError:  # where it has not been released yet
    from orbax.checkpoint.experimental import v1

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
ORBAX = FORMATS["orbax"]
NEWEST = tuple(map(int, ocp.__version__.split(".")[:3])) >= (0, 12, 8)

pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = {
    *("linen_dtypes_pytree", "linen_keys_standard", "linen_encoder_v1", "nnx_split_tuple_standard"),
    *("c_f069_pytree_trainstate", "cur_v12_2proc_zarr3", "cur_v12_chunked_zarr3", "cur_v12_prng", "cur_v12_bigvals"),
    *("cur_v12_sharded_noocdbt", "cur_v12_keys", "cur_v12_pytree_misc", "e_o044_sharded", "e_o044_pytree_noocdbt"),
    *("cur_v12_v1_replica_folder", "cur_v12_single_leaf"),
}
"""Items of every kind; the others are tested with the slow ones."""


class Item(NamedTuple):
    name: str
    directory: Path


def items() -> Iterator[Any]:
    for root in sorted([*make.CHECKPOINTS.glob("*/checkpoint*"), *CORPUS.glob("*/ckpt*")]):
        if root.parent.name == "linen_t5x":  # of which Orbax reads the specs of arrays, not the arrays
            continue
        for metadata in sorted([*root.rglob("_METADATA"), *root.rglob("checkpoint")]):
            directory = metadata.parent
            name = f"{root.parent.name}/{directory.relative_to(root)}".removesuffix("/.")
            marks = [] if name in QUICK else [pytest.mark.slow]
            if _is_orbax(directory) and (metadata.name == "_METADATA" or not (directory / "_METADATA").exists()):
                yield pytest.param(Item(name, directory), marks=marks, id=name)


def _is_orbax(directory: Path) -> bool:
    try:
        return open_checkpoint(directory).format == "orbax"
    except ConverterError:
        return False


def write(tree: Tree, destination: Path, **writing: bool) -> Written:
    return ORBAX.write(tree, destination, lambda *_: None, writing=Writing(**writing))


# The readers ---------------------------------------------------------------------------------------------------------


def bits(value: Any) -> Any:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(value)), np.asarray(jax.random.key_data(value)).tobytes()
    if hasattr(value, "dtype"):
        array = np.asarray(value)
        return array.dtype.name, array.shape, array.tobytes()
    return type(value).__name__, value


def flat(tree: Any) -> dict[str, Any]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = ["/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in paths]
    return dict(zip(names, (value for _, value in paths), strict=True))


def ours(directory: Path) -> dict[str, Any]:
    """All values by our own reader, which other tests compare with what was saved."""

    def seen(leaf: Leaf) -> Any:
        value = leaf.fetch()
        return (leaf.spec.dtype, value.tobytes()) if leaf.spec.kind is LeafKind.KEY else bits(value)

    leaves = ORBAX.open(directory).tree.items()
    return {"/".join(path): seen(leaf) for path, leaf in leaves if leaf.spec.kind is not LeafKind.EMPTY}


def arrays_to_numpy(directory: Path) -> dict[str, Any]:
    return {path: bits(value) for path, value in flat(support.restored(directory)).items()}


def standard_with_target(directory: Path) -> dict[str, Any]:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def target(leaf: Any) -> Any:
        if type(leaf).__name__ == "ScalarMetadata":
            return np.zeros((), leaf.dtype).item()
        if not hasattr(leaf, "shape"):
            return ""
        is_wide = not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) and leaf.dtype.itemsize >= 8
        is_wide = is_wide and leaf.dtype.name != "complex64"  # JAX would make it one of 32 bits
        return (
            np.zeros(leaf.shape, leaf.dtype)
            if is_wide
            else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
        )

    with ocp.StandardCheckpointer() as reader:
        wanted = jax.tree.map(target, reader.metadata(directory).item_metadata.tree)
        return {path: bits(value) for path, value in flat(reader.restore(directory, wanted)).items()}


def pytree(directory: Path) -> dict[str, Any]:
    with ocp.PyTreeCheckpointer() as reader:
        return {path: bits(value) for path, value in flat(reader.restore(directory)).items()}


def version_1(directory: Path) -> dict[str, Any]:
    return {path: bits(value) for path, value in flat(v1.load(directory)).items()}


def metadata(directory: Path) -> dict[str, Any]:
    """What Orbax tells of every leaf; that an axis is not sharded may be said or left unsaid."""

    def told(leaf: Any) -> tuple[str, ...]:
        names = ("shape", "dtype", "sharding", "storage")
        text = [str(getattr(leaf, name, None)) for name in names]
        return type(leaf).__name__, *(part.replace(", None", "").replace(",)", ")") for part in text)

    with ocp.PyTreeCheckpointer() as reader:
        return {path: told(leaf) for path, leaf in flat(reader.metadata(directory).item_metadata.tree).items()}


Reader = Callable[[Path], dict[str, Any]]

ANYWHERE: tuple[Reader, ...] = (ours, arrays_to_numpy, standard_with_target)
AS_THE_SOURCE: tuple[Reader, ...] = (pytree, version_1, metadata)
"""These may need the devices that a checkpoint was saved on."""


def outcome(reader: Reader, directory: Path) -> Any:
    try:
        return reader(directory)
    except Exception as error:
        return error


def assert_reads_like(destination: Path, source: Path, expected: dict[str, Any]) -> None:
    for reader in ANYWHERE:
        found, before = outcome(reader, destination), outcome(reader, source)
        if isinstance(found, Exception):  # texts have no targets, and one of the corpus has no tree for Orbax
            assert repr(before) == repr(found), reader.__name__
        else:
            assert found == expected, reader.__name__
    for reader in AS_THE_SOURCE if NEWEST else ():
        found, before = outcome(reader, destination), outcome(reader, source)
        if isinstance(found, Exception):
            assert isinstance(before, Exception), f"{reader.__name__}: {found}"
        elif not isinstance(before, Exception):
            # Of values beside the arrays old checkpoints tell nothing.
            known = {path: told for path, told in before.items() if told[0] != "Metadata"}
            assert {path: found.get(path) for path in known} == known, reader.__name__
            assert found.keys() == before.keys(), reader.__name__


# The tests -----------------------------------------------------------------------------------------------------------


def inodes(directory: Path) -> set[int]:
    return {path.stat().st_ino for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("item", list(items()))
def test_all_readers_read_what_they_read_of_the_source(item: Item, copy: bool, tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    shutil.copytree(item.directory, source)
    before, expected = support.snapshot(source), ours(source)
    written = write(ORBAX.open(source).tree, destination, copy=copy)
    assert support.snapshot(source) == before
    assert bool(inodes(source) & inodes(destination)) is bool(written.linked)
    assert not (copy and written.linked)
    shutil.rmtree(source)
    assert_reads_like(destination, item.directory, expected)
    assert list(ORBAX.open(destination).tree) == sorted(ORBAX.open(destination).tree, key=_saved_order)


def _saved_order(path: tuple[str, ...]) -> list[Any]:
    return [(0, int(key), "") if type(key).__name__ == "IndexKey" else (1, 0, key) for key in path]


@pytest.mark.parametrize("name", ["linen_dtypes_pytree", "nnx_model_optimizer_standard", "linen_encoder_v1"])
def test_equal_input_gives_equal_files(name: str, tmp_path: Path) -> None:
    """But for the time of the save and its place."""
    directory = next((make.CHECKPOINTS / name).rglob("_METADATA")).parent
    for copy in (False, True):
        contents = []
        for number in range(2):
            destination = tmp_path / f"{copy}{number}"
            write(ORBAX.open(directory).tree, destination, copy=copy)
            files = {path.relative_to(destination): path for path in destination.rglob("*") if path.is_file()}
            times = {"_CHECKPOINT_METADATA", "commit_success.txt"}
            contents.append({str(name): file.read_bytes() for name, file in files.items() if str(name) not in times})
        assert contents[0] == contents[1]


def test_what_is_not_asked_for_stays_behind_with_copy(tmp_path: Path) -> None:
    """With links the whole file stays, of which the report tells."""
    generator = np.random.default_rng(0)
    values = {name: generator.standard_normal(20_000) for name in ("kept", "left")}
    held = [((name,), LazyLeaf(array_spec("float64", (20_000,)), partial(values.get, name))) for name in values]
    write(Tree(held), tmp_path / "source")
    assert len(list((tmp_path / "source" / "d").iterdir())) == 2  # one of them with the index
    tree = ORBAX.open(tmp_path / "source").tree
    kept = Tree([(("kept",), tree[("kept",)])])
    linked = write(kept, tmp_path / "linked")
    copied = write(kept, tmp_path / "copied", copy=True)
    assert linked.unused > 100_000
    assert copied.unused == 0
    size = sum(path.stat().st_size for path in (tmp_path / "copied" / "d").iterdir())
    assert size < copied.copied + 10_000
    assert ours(tmp_path / "linked") == ours(tmp_path / "copied") == {"kept": bits(values["kept"])}


def test_strategies_are_what_is_done(tmp_path: Path) -> None:
    tree = ORBAX.open(make.CHECKPOINTS / "linen_dtypes_pytree" / "checkpoint").tree
    for writing, expected in ((PLAIN, {Strategy.RELINK}), (Writing(copy=True), {Strategy.COPY})):
        assert set(ORBAX.strategies(tree, writing).values()) == expected


def test_bare_elements_that_are_too_few_are_not_linked_to(tmp_path: Path) -> None:
    """Nobody would read them on the way."""
    write(Tree([(("a",), LazyLeaf(array_spec("int8", (4000,)), lambda: np.ones(4000, np.int8)))]), tmp_path / "source")
    values = dict(read_database(tmp_path / "source"))
    chunk = values[b"a/0"]
    assert isinstance(chunk, Extent)
    write_database(tmp_path / "source", values | {b"a/0": chunk._replace(length=3999)})
    tree = ORBAX.open(tmp_path / "source").tree
    with pytest.raises(UnreadableCheckpoint, match=r"a: its chunk 0 .* is damaged: expected 4000 bytes, found 3999"):
        write(tree, tmp_path / "out")
    with pytest.raises(UnreadableCheckpoint):
        tree[("a",)].fetch()
    assert not (tmp_path / "out").exists()
