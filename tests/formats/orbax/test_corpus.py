"""Real checkpoints of many releases, where they are at hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest

from converter.errors import (
    UnreadableCheckpoint,
    UnsupportedCheckpoint,
)
from converter.tree import Leaf, LeafKind
from tests.formats.orbax.support import FORMAT, ORBAX, of_tree, write

pytestmark = pytest.mark.filterwarnings("ignore")


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
