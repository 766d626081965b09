"""The JSON files of an Orbax item: which leaves there are, and what is known of them beside their arrays.

``_METADATA`` lists the leaves, ``array_metadatas/process_N`` tells typed PRNG keys from plain uint32 arrays,
``_strings.json`` holds the text leaves, ``_CHECKPOINT_METADATA`` who saved when. Their fields are those of
``orbax/checkpoint/_src/metadata/tree.py`` and ``array_metadata_store.py`` (0.12.8); older versions leave some out.
"""

from __future__ import annotations

import binascii
import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats.checkpoint import Sharding
from converter.paths import IndexKey, Key, Path, format_path
from converter.tree import LeafSpec

METADATA_FILE = "_METADATA"
LEGACY_FILE = "checkpoint"
SHARDING_FILE = "_sharding"

EMPTY_TYPES: Mapping[str, str] = {
    "None": "none",
    "Dict": "dict",
    "List": "list",
    "Tuple": "tuple",
    "NamedTuple": "node",
}
"""Orbax's names of empty nodes, and ours. Before 0.11 an empty named tuple (optax.EmptyState) is saved as None."""

_SEQUENCE_KEY, _DICT_KEY = 1, 2

_COPY_AGAIN = "Copy the checkpoint again, or use another step."


_WITHOUT_ARRAYS = frozenset({*EMPTY_TYPES, "string"})


@dataclass(slots=True)
class Entry:
    """One leaf as Orbax lists it.

    Attributes:
      path: where it stands in the tree.
      name: what its data are called on disk: the keys joined by dots.
      value_type: ``jax.Array``, ``np.ndarray``, ``scalar``, ``string`` or a key of ``EMPTY_TYPES``.
      inline: the value stands in the msgpack file ``checkpoint`` (Orbax up to 0.5 with ``SaveArgs(aggregate=True)``).
      expected: what the array has to be, where T5X notes that beside the array too.
      written_to: where the array was written, if that was elsewhere (T5X).
    """

    path: Path
    name: str
    value_type: str
    inline: bool = False
    expected: LeafSpec | None = None
    written_to: str = ""

    @property
    def is_empty(self) -> bool:
        return self.value_type in EMPTY_TYPES

    @property
    def is_array(self) -> bool:
        return self.value_type not in _WITHOUT_ARRAYS and not self.inline


@dataclass(frozen=True, slots=True)
class ItemMetadata:
    """What the files beside the arrays tell of one item.

    Attributes:
      entries: the leaves in the order of the file.
      zarr3: arrays are zarr 3; zarr 2 if false.
      all_stored: chunks of zeros are stored too, so an absent chunk is lost data (Orbax from 0.11).
      custom: the user's own metadata.
      fields: the names of all fields of the file.
      is_t5x: written by T5X, not by Orbax.
    """

    entries: tuple[Entry, ...]
    zarr3: bool = False
    all_stored: bool = False
    custom: Any = None
    fields: frozenset[str] = frozenset()
    is_t5x: bool = False


def read_item_metadata(directory: FilePath) -> ItemMetadata:
    """Reads ``_METADATA``.

    Raises:
      UnreadableCheckpoint: absent, no JSON, or not of the known form.
      UnsupportedCheckpoint: two leaves share the name of their data.
    """
    file = directory / METADATA_FILE
    content = read_json(file)
    try:
        keys: dict[Key, Key] = {}
        entries = tuple([_entry(value, keys) for value in content["tree_metadata"].values()])
        metadata = ItemMetadata(
            entries,
            zarr3=bool(content.get("use_zarr3")),
            all_stored=bool(content.get("store_array_data_equal_to_fill_value")),
            custom=content.get("custom_metadata"),
            fields=frozenset(map(str, content)),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"{file} is damaged: it is not Orbax tree metadata ({error!r})"
        raise UnreadableCheckpoint(message, _COPY_AGAIN) from None
    refuse_shared_names(names_on_disk(entries))
    return metadata


def _entry(value: Mapping[str, Any], keys: dict[Key, Key]) -> Entry:
    """A leaf; its path is made of the same ``keys`` as those of others, so that they are soon compared."""
    known = keys.setdefault
    listed = value["key_metadata"]
    path = tuple([known(k["key"], k["key"]) if k["key_type"] == _DICT_KEY else _position(k) for k in listed])
    noted = value["value_metadata"]
    value_type = noted["value_type"]
    inline = bool(noted["skip_deserialize"]) and value_type not in EMPTY_TYPES
    name = ".".join(path)
    if not name.isascii():
        name.encode()  # what is no Unicode text cannot be the name of anything
    return Entry(path, name, str(value_type), inline)


def _position(key: Mapping[str, Any]) -> IndexKey:
    if key["key_type"] != _SEQUENCE_KEY:
        raise ValueError(f"key type {key['key_type']!r}")
    return IndexKey(int(key["key"]))


def refuse_shared_names(stored: Sequence[tuple[Path, str]]) -> None:
    """Refuses ``{"a.b": x, "a": {"b": y}}``: both leaves are stored as ``a.b``, so the value of one is lost.

    Args:
      stored: the leaves with data, and what these are called.

    Raises:
      UnsupportedCheckpoint: some of them share a name.
    """
    # As keys of a database begin, ``a`` and ``a/`` are one name; see ``key_prefix``.
    if len({name.removesuffix("/") for _, name in stored}) == len(stored):
        return
    counts = Counter([name.removesuffix("/") for _, name in stored])
    shared = [
        f"  {format_path(path)} is stored as {name}" for path, name in stored if counts[name.removesuffix("/")] > 1
    ]
    raise UnsupportedCheckpoint(
        "\n".join(["Orbax joins keys by dots, and with keys that hold dots some leaves share one name:", *shared]),
        "Rename these keys.",
    )


def names_on_disk(entries: Iterable[Entry]) -> list[tuple[Path, str]]:
    """The leaves with data beside the tree metadata, and what these are called."""
    return [(entry.path, entry.name) for entry in entries if not entry.is_empty and not entry.inline]


def key_prefix(name: str) -> str:
    """What the keys of an array begin with: its name as TensorStore makes that of a directory of it.

    It is empty where the whole tree is one array.
    """
    return "" if name in ("", "/") else name if name[-1] == "/" else f"{name}/"


class SavedArray(NamedTuple):
    """What Orbax noted about an array beside the array itself.

    Attributes:
      value_type: as in ``Entry``.
      write_shape: what one process wrote at a time; empty where nothing is noted (or for scalars).
      is_listed: ``array_metadatas`` has an entry for it.
      extra: what that entry says beyond shapes (``{"random_key_impl": "threefry2x32"}``).
      sharding: its entry in ``_sharding``, parsed; None where there is none.
    """

    value_type: str
    write_shape: tuple[int, ...] = ()
    is_listed: bool = False
    extra: Mapping[str, Any] | None = None
    sharding: Mapping[str, Any] | None = None

    @property
    def partition(self) -> tuple[str | tuple[str, ...] | None, ...]:
        """The mesh axes of each axis of the array (a name, names, or None); there may be fewer than axes."""
        spec = self.sharding.get("partition_spec") if self.sharding else None
        return tuple(map(_mesh_axes, spec)) if isinstance(spec, list) else ()


NUMPY_ARRAY = SavedArray("np.ndarray")
"""What Orbax notes of arrays that were on no device."""


def _mesh_axes(noted: Any) -> str | tuple[str, ...] | None:
    if isinstance(noted, list):
        return tuple(map(str, noted))
    return noted if isinstance(noted, str) else None


class SavedArrays:
    """What Orbax noted about every array of an item. ``_sharding`` is read when the first of them is asked for.

    Raises:
      UnreadableCheckpoint: a damaged file.
    """

    def __init__(self, directory: FilePath) -> None:
        self._directory = directory
        self._listed = _read_array_metadatas(directory)
        self._shardings: Mapping[str, Any] | None = None

    def key_implementation(self, entry: Entry) -> str | None:
        """The implementation of a typed PRNG key (Orbax from 0.11.25), None for other arrays."""
        listed = self._listed.get(entry.name)
        extra = listed.extra if listed is not None else None
        return str(extra["random_key_impl"]) if extra and extra.get("random_key_impl") is not None else None

    def __getitem__(self, entry: Entry) -> SavedArray:
        if self._shardings is None:
            self._shardings = _read_shardings(self._directory)
        sharding = self._shardings.get(sharding_key(entry.name)) if self._shardings else None
        listed = self._listed.get(entry.name)
        if listed is None:
            return _unlisted(entry.value_type) if sharding is None else SavedArray(entry.value_type, sharding=sharding)
        return SavedArray(entry.value_type, listed.write_shape, True, listed.extra, sharding)


@functools.cache
def _unlisted(value_type: str) -> SavedArray:
    return SavedArray(value_type)


def read_shardings(directory: FilePath, entries: Iterable[Entry]) -> dict[Path, Sharding]:
    """How arrays were spread over meshes of devices, by path; nothing for those that lay on one device.

    The file is parsed only where it speaks of meshes at all.
    """
    try:
        if b"NamedSharding" not in (directory / SHARDING_FILE).read_bytes():
            return {}
    except OSError:
        return {}
    noted = _read_shardings(directory)
    found = ((entry.path, noted.get(sharding_key(entry.name))) for entry in entries if entry.is_array)
    return {path: sharding for path, text in found if (sharding := _named_sharding(text)) is not None}


def _named_sharding(noted: Any) -> Sharding | None:
    try:
        if noted["sharding_type"] != "NamedSharding":
            return None
        mesh = zip(map(str, noted["axis_names"]), map(int, noted["shape"]), strict=True)
        axes = (tuple(map(str, axis)) if isinstance(axis, list) else axis for axis in noted["partition_spec"])
        return Sharding(tuple(mesh), tuple(axes))
    except (KeyError, TypeError, ValueError):
        return None


def sharding_key(name: str) -> str:
    """What an array is called in ``_sharding``."""
    return binascii.b2a_base64(name.encode(), newline=False).translate(_URL_SAFE).decode()


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class _Listed(NamedTuple):
    """What ``array_metadatas`` says of an array: see ``SavedArray``."""

    write_shape: tuple[int, ...]
    extra: Mapping[str, Any] | None


def _read_array_metadatas(directory: FilePath) -> dict[str, _Listed]:
    found: dict[str, _Listed] = {}
    plain: dict[_Listed, _Listed] = {}  # most arrays share theirs
    for file in sorted((directory / "array_metadatas").glob("process_*")):
        try:
            for entry in read_json(file)["array_metadatas"]:
                array = entry["array_metadata"]
                extra, shape = array.get("ext_metadata"), tuple(map(int, array.get("write_shape") or ()))
                listed = _Listed(shape, None if extra is None else dict(extra))
                found.setdefault(array["param_name"], plain.setdefault(listed, listed) if extra is None else listed)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            message = f"{file} is damaged: it is not Orbax array metadata ({error!r})"
            raise UnreadableCheckpoint(message, _COPY_AGAIN) from None
    return found


def _read_shardings(directory: FilePath) -> dict[str, Any]:
    """Nobody needs them to read arrays (the devices are those of another machine): damage is no reason to refuse."""
    try:
        content = json.loads((directory / SHARDING_FILE).read_bytes())
        parse = functools.cache(json.loads)  # most arrays lie on the same devices
        return {name: parse(text) for name, text in content.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


class Strings:
    """The text leaves of one item; the file is read when the first of them is."""

    def __init__(self, directory: FilePath) -> None:
        self._file = directory / "_strings.json"
        self._content: Any = None

    def __getitem__(self, entry: Entry) -> str:
        """Orbax reads ``/<name>`` as a JSON pointer, so a slash in a name nests and ``~1`` is a slash (RFC 6901).

        Raises:
          UnreadableCheckpoint: the file or this text is missing.
        """
        if self._content is None:
            self._content = read_json(self._file)
        value = self._content
        for step in entry.name.split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            try:
                value = value[int(step)] if isinstance(value, list) else value[step]
            except (IndexError, KeyError, TypeError, ValueError):
                raise UnreadableCheckpoint(f"{format_path(entry.path)}: its text is missing in {self._file}") from None
        if not isinstance(value, str):
            raise UnreadableCheckpoint(f"{format_path(entry.path)}: expected a text in {self._file}, found {value!r}")
        return value


def read_step_metadata(directory: FilePath) -> dict[str, Any]:
    """``_CHECKPOINT_METADATA``. It gives facts for people only: a damaged one is no reason to refuse a checkpoint."""
    try:
        content = json.loads((directory / "_CHECKPOINT_METADATA").read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def handler_of(saved: Mapping[str, Any], item: str) -> str:
    """The class that saved an item (``PyTreeCheckpointHandler``), ``""`` where ``_CHECKPOINT_METADATA`` is silent."""
    handlers = saved.get("item_handlers")
    name = handlers.get(item) if isinstance(handlers, dict) else handlers
    return name.rpartition(".")[2] if isinstance(name, str) else ""


def read_json(file: FilePath) -> Any:
    """Reads one JSON file.

    Raises:
      UnreadableCheckpoint: absent, or no JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UnreadableCheckpoint(f"{file} is missing: the checkpoint is incomplete", _COPY_AGAIN) from None
    except OSError as error:
        raise UnreadableCheckpoint(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UnreadableCheckpoint(f"{file} is damaged: no JSON ({error})", _COPY_AGAIN) from None
