"""Names of leaves that are odd, alike, or mean something to OCDBT, zarr, JSON pointers or file systems.

Each tree is either refused by name before anything is written, or read back leaf by leaf, by us and by Orbax.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats import FORMATS
from converter.paths import format_path
from converter.tree import LazyLeaf, Leaf, LeafKind, LeafSpec, Tree, array_spec

from . import support

ORBAX = FORMATS["orbax"]

FOLDERS = itertools.count()

NAMES = [
    *(
        "a",
        "a.b",
        "b",
        "a/0",
        "0",
        "c",
        "0.0",
        ".zarray",
        "zarr.json",
        "a/.zarray",
        "a/c/0",
        "c/0",
        "d",
        "manifest.ocdbt",
    ),
    *(
        "",
        ".",
        "..",
        "../a",
        "/",
        "/a",
        "a/",
        "a//b",
        " ",
        "a b",
        "é",
        "e\u0301",
        "日本",
        "\U0001f600",
        "\x00",
        "\n",
        "'",
        '"',
    ),
    *("\\", "~", "~0", "~1", "%41", "%", "(", "('a', 'b')", "_METADATA", "\x7f", "a" * 300, "-1", "00", "A", "value"),
    *("a.", ".a", "a..b", "PLACEHOLDER://a", "__proto__", "True", "None", "\ufeff", "a\u200b"),
]

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

KEYS = st.sampled_from(NAMES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Trees of arrays and of texts; each leaf has another value, so that none can stand for another."""
    paths = draw(st.lists(st.lists(KEYS, min_size=1, max_size=3).map(tuple), min_size=1, max_size=8, unique=True))
    kept = [path for path in paths if not any(path != other and path == other[: len(path)] for other in paths)]
    return Tree((path, _leaf(number, draw(st.integers(0, 3)) == 0)) for number, path in enumerate(kept))


def _leaf(number: int, is_text: bool) -> Leaf:
    if is_text:
        return LazyLeaf(LeafSpec(LeafKind.TEXT, "str"), lambda: f"text {number}")
    return LazyLeaf(array_spec("int32", (2, 150)), lambda: np.full((2, 150), number, np.int32))


def values(tree: Tree) -> dict[tuple[str, ...], Any]:
    return {path: np.asarray(leaf.fetch()).tolist() for path, leaf in tree.items()}


def flat(node: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(node, dict):
        return {k: v for key, child in node.items() for k, v in flat(child, (*path, key)).items()}
    return {path: np.asarray(node).tolist()}


def written(tree: Tree, destination: Path) -> str:
    """Writes a tree; tells why if that is refused."""
    try:
        ORBAX.write(tree, destination, lambda *_: None)
    except UnsupportedCheckpoint as refusal:
        return str(refusal)
    return ""


@given(trees())
@example(Tree((path, _leaf(number, False)) for number, path in enumerate([("a",), ("a/0",), ("a/.zarray",), ("b",)])))
@example(
    Tree((path, _leaf(number, False)) for number, path in enumerate([("a/0.0",), ("a",), ("a/0", "0"), ("a/c/0",)]))
)
@many
def test_any_names(tmp_path: Path, tree: Tree) -> None:
    place = tmp_path / str(next(FOLDERS))
    place.mkdir()
    refusal = written(tree, place / "first")
    if refusal:
        assert any(format_path(path) in refusal for path in tree)
        assert list(place.iterdir()) == []
        return
    again = ORBAX.open(place / "first").tree
    assert values(again) == values(tree)
    assert flat(support.restored(place / "first")) == values(tree)
    # Once more, by the bytes that are there now; the names of the leaves go round.
    paths = list(again)
    turned = Tree(zip(paths[1:] + paths[:1], again.values(), strict=True))
    if not written(turned, place / "second"):  # texts and arrays do not share all of their limits
        assert values(ORBAX.open(place / "second").tree) == values(turned)
        assert flat(support.restored(place / "second")) == values(turned)


def tree_of(*paths: tuple[str, ...]) -> Tree:
    return Tree((path, _leaf(number, False)) for number, path in enumerate(paths))


@pytest.mark.parametrize(
    "path",
    [("a" * 70_000,), ("b", "\ud800"), *((*("c" * 1000 for _ in range(70)),),)],
    ids=["long", "no Unicode", "deep"],
)
def test_names_that_no_database_has(path: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint) as refused:
        ORBAX.write(tree_of(("fine",), path), tmp_path / "out", lambda *_: None)
    assert format_path(path)[:20] in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["/elsewhere/a", "../a", "a/../../a", "\x00"])
def test_names_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    """Where each array has a directory of its own, its name is part of a path."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as saver:
        saver.save(tmp_path / "saved", ocp.args.PyTreeSave({"NAME": np.ones(3)}))
    elsewhere = name.replace("/elsewhere", str(tmp_path / "elsewhere"))
    if "/" in name:
        shutil.copytree(tmp_path / "saved" / "NAME", tmp_path / "saved" / elsewhere)
    metadata = tmp_path / "saved" / "_METADATA"
    metadata.write_text(metadata.read_text().replace('"NAME"', json.dumps(elsewhere)))
    with pytest.raises(UnreadableCheckpoint, match="leaves"):
        ORBAX.open(tmp_path / "saved")


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    ORBAX.write(tree_of(("NAME",)), tmp_path / "saved", lambda *_: None)
    metadata = tmp_path / "saved" / "_METADATA"
    metadata.write_text(metadata.read_text().replace('"NAME"', '"\\ud800"'))
    with pytest.raises(UnreadableCheckpoint, match="_METADATA is damaged"):
        ORBAX.open(tmp_path / "saved")
