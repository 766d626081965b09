"""Writing the JSON files of an Orbax item: what ``metadata`` reads.

The fields are those that orbax-checkpoint 0.12.8 writes; see ``metadata`` for what they mean.
"""

from __future__ import annotations

import functools
import json
import operator
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from converter.formats.orbax.layout import COMMITTED
from converter.formats.orbax.metadata import METADATA_FILE, NUMPY_ARRAY, SHARDING_FILE, SavedArray, sharding_key
from converter.grid import Grid
from converter.paths import IndexKey, Path
from converter.tree import LeafKind, LeafSpec

EMPTY_NAMES: Mapping[str, str] = {"none": "None", "dict": "Dict", "list": "List", "tuple": "Tuple", "node": "None"}
"""Orbax's names of empty nodes. ``node`` stands for an empty named tuple, whose class no file knows."""

_TOGETHER = 1000
"""Leaves whose description is in memory at a time."""

_json = json.JSONEncoder().encode
"""As ``json.dumps``, which looks at its options each time."""


@dataclass(slots=True)
class Described:
    """A leaf as it is described in the files.

    Attributes:
      path: where it stands.
      spec: what it is.
      grid: how its array lies, if it is one.
      saved: what is to be noted of the array.
    """

    path: Path
    spec: LeafSpec
    grid: Grid | None = None
    saved: SavedArray = NUMPY_ARRAY

    @property
    def name(self) -> str:
        """What its data are called on disk."""
        return ".".join(self.path)


def write_metadata(directory: FilePath, leaves: Iterable[Described], *, zarr3: bool, all_stored: bool) -> None:
    """``_METADATA``, ``_sharding`` and ``array_metadatas/process_0``.

    Args:
      all_stored: every chunk is stored; else those that are absent hold zeros.
    """
    leaves = list(leaves)
    has_positions = IndexKey in {type(key) for leaf in leaves for key in leaf.path}
    ordered = sorted(leaves, key=_order if has_positions else operator.attrgetter("path"))  # names sort as they are
    flags: dict[str, Any] = {"use_ocdbt": True, "use_zarr3": zarr3, "custom_metadata": None}
    if all_stored:
        flags["store_array_data_equal_to_fill_value"] = True
    with open(directory / METADATA_FILE, "w", encoding="ascii") as file:
        file.write('{"tree_metadata": {')
        for start in range(0, len(ordered), _TOGETHER):
            entries = ", ".join(map(_tree_entry, ordered[start : start + _TOGETHER]))
            file.write(f", {entries}" if start else entries)
        file.write(f"}}, {json.dumps(flags)[1:]}")
    arrays = [leaf for leaf in ordered if leaf.grid is not None]
    shardings = {
        sharding_key(leaf.name): json.dumps(_sharding(leaf, leaf.saved.sharding))
        for leaf in arrays
        if leaf.saved.sharding is not None
    }
    if shardings:
        _dump(directory / SHARDING_FILE, shardings)
    listed = [{"array_metadata": _array_entry(leaf)} for leaf in arrays if leaf.saved.is_listed]
    if listed:
        (directory / "array_metadatas").mkdir()
        _dump(directory / "array_metadatas" / "process_0", {"array_metadatas": listed})


def _order(leaf: Described) -> list[tuple[int, int, str]]:
    return [(0, int(key), "") if isinstance(key, IndexKey) else (1, 0, str(key)) for key in leaf.path]


def _tree_entry(leaf: Described) -> str:
    """A leaf in ``_METADATA``, as JSON. It is put together from a few texts that all leaves share."""
    keys = ", ".join(map(_key_text, leaf.path, map(type, leaf.path)))
    if leaf.spec.kind is LeafKind.EMPTY:
        value = _value_text(EMPTY_NAMES[leaf.spec.dtype], True)
    elif leaf.grid is None:
        value = _value_text("string", False)
    else:
        write = tuple([axis.write for axis in leaf.grid.axes]) if leaf.saved.is_listed else None
        value = _value_text(leaf.saved.value_type, False, write)
    return f'{_json(str(leaf.path))}: {{"key_metadata": [{keys}], "value_metadata": {value}}}'


@functools.lru_cache(maxsize=1 << 16)
def _key_text(key: str, kind: type) -> str:
    return json.dumps({"key": key, "key_type": 1 if kind is IndexKey else 2})


@functools.lru_cache(maxsize=1 << 12)
def _value_text(value_type: str, skip_deserialize: bool, write_shape: tuple[int, ...] | None = None) -> str:
    noted = {} if write_shape is None else {"write_shape": write_shape}
    return json.dumps({"value_type": value_type, "skip_deserialize": skip_deserialize, **noted})


def _array_entry(leaf: Described) -> dict[str, Any]:
    assert leaf.grid is not None
    return {
        "param_name": leaf.name,
        "write_shape": [axis.write for axis in leaf.grid.axes],
        "chunk_shape": [axis.inner or axis.chunk for axis in leaf.grid.axes],
        "ext_metadata": leaf.saved.extra,
    }


def _sharding(leaf: Described, sharding: Mapping[str, Any] | None) -> dict[str, Any]:
    """The sharding of the source's array, as it applies to the axes of this one."""
    assert leaf.grid is not None
    noted = dict(sharding or {})
    if "partition_spec" in noted:
        mesh = [axis.mesh for axis in leaf.grid.axes]
        while mesh and mesh[-1] is None:
            mesh.pop()
        noted["partition_spec"] = mesh
    return noted


def write_strings(directory: FilePath, texts: Mapping[str, str]) -> None:
    """``_strings.json``; see ``metadata.Strings`` for what a slash in a name means."""
    content: dict[str, Any] = {}
    for name, text in texts.items():
        node = content
        *above, last = (step.replace("~1", "/").replace("~0", "~") for step in name.split("/"))
        for step in above:
            node = node.setdefault(step, {})
        node[last] = text
    if texts:
        _dump(directory / "_strings.json", content)


def write_commit(
    directory: FilePath,
    final: FilePath,
    started: int,
    handlers: str | Mapping[str, str],
    custom: Mapping[str, Any],
) -> None:
    """``_CHECKPOINT_METADATA`` and ``commit_success.txt``: who saved what, when and where to.

    Args:
      started: ``time.time_ns()`` when the save began.
      handlers: the class that reads the item, or those of all items by their names.
      custom: what the user, or we, have to say of the checkpoint.
    """
    _dump(
        directory / "_CHECKPOINT_METADATA",
        {
            "item_handlers": handlers,
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": started,
            "commit_timestamp_nsecs": time.time_ns(),
            "custom_metadata": dict(custom),
        },
    )
    write_committed(directory, final)


def write_committed(directory: FilePath, final: FilePath) -> None:
    """``commit_success.txt``."""
    (directory / COMMITTED).write_bytes(b"Checkpoint commit was successful to " + os.fsencode(final))


def _dump(file: FilePath, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content))
