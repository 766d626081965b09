"""What TensorStore tells of a database, and databases made by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import tensorstore as ts

from converter.formats.ocdbt.frames import MANIFEST_MAGIC, NODE_MAGIC, wrap
from converter.formats.ocdbt.wire import spell_files, spell_names, spell_numbers
from converter.stored import Extent

Values = Mapping[bytes, bytes | Extent]

# With TensorStore ----------------------------------------------------------------------------------------------------


def base(directory: Path) -> dict[str, Any]:
    return {"driver": "file", "path": f"{directory}/", "file_io_sync": False}


def opened(directory: Path, **config: Any) -> Any:
    """The database as a key-value store of TensorStore, which makes it if need be."""
    return ts.KvStore.open({"driver": "ocdbt", "base": base(directory), "config": config}).result()


def listed(directory: Path) -> dict[bytes, bytes]:
    """All keys with their values."""
    store = opened(directory)
    pending = {key: store.read(key) for key in store.list().result()}
    return {key: future.result().value for key, future in sorted(pending.items())}


def dumped(directory: Path) -> dict[bytes, bytes | Extent]:
    """All keys with where their values lie, from TensorStore's own dumps of manifest and nodes."""
    store = ts.KvStore.open(base(directory)).result()
    latest = ts.ocdbt.dump(store).result()["versions"][-1]
    found: dict[bytes, bytes | Extent] = {}

    def add(location: str, prefix: bytes) -> None:
        for entry in ts.ocdbt.dump(store, location).result()["entries"]:
            key = prefix + entry["key"]
            if "inline_value" in entry:
                found[key] = entry["inline_value"]
            elif "indirect_value" in entry:
                _, start, path, offset, length = entry["indirect_value"].split(":")
                file = unquote_to_bytes(start + path).decode()
                found[key] = Extent(f"{directory}/{file}", int(offset), int(length))
            else:
                add(entry["location"], prefix + entry["subtree_common_prefix"])

    if "location" in latest["root"]:
        add(latest["root"]["location"], b"")
    return found


def height(directory: Path) -> int:
    return int(ts.ocdbt.dump(ts.KvStore.open(base(directory)).result()).result()["versions"][-1]["root_height"])


def contents(values: Values) -> dict[bytes, bytes]:
    """The values themselves."""
    return {key: value if isinstance(value, bytes) else bytes_of(value) for key, value in values.items()}


def bytes_of(extent: Extent) -> bytes:
    with open(extent.file, "rb") as stream:
        stream.seek(extent.offset)
        return stream.read(extent.length)


# By hand -------------------------------------------------------------------------------------------------------------


def leaf(
    keys: Sequence[bytes] = (b"a", b"b"),
    values: Sequence[bytes] = (b"1", b"2"),
    *,
    files: Sequence[bytes] = (),
    kinds: bytes | None = None,
    extents: Iterable[tuple[int, int, int]] = (),
) -> bytes:
    """The body of a leaf with inline ``values`` first, then extents (number of the file, offset, length)."""
    extents = list(extents)
    parts = [
        b"\0",
        spell_files(files),
        spell_numbers([len(keys)]),
        spell_names(keys),
        spell_numbers([*map(len, values), *(length for _, _, length in extents)]),
        bytes(len(values)) + b"\1" * len(extents) if kinds is None else kinds,
        spell_numbers([number for number, _, _ in extents]),
        spell_numbers([offset for _, offset, _ in extents]),
        *values,
    ]
    return b"".join(parts)


def inner(
    keys: Sequence[bytes],
    places: Sequence[tuple[int, int]],
    *,
    level: int = 1,
    files: Sequence[bytes] = (b"d/nodes",),
    prefixes: Sequence[int] | None = None,
) -> bytes:
    """The body of an inner node whose children lie at these (offset, length)."""
    count = len(keys)
    parts = [
        bytes([level]),
        spell_files(files),
        spell_numbers([count]),
        spell_names(keys, spell_numbers(prefixes or [0] * count)),
        bytes(count),
        spell_numbers([offset for offset, _ in places]),
        spell_numbers([length for _, length in places]),
        bytes(3 * count),
    ]
    return b"".join(parts)


def manifest(
    offset: int,
    length: int,
    *,
    path: bytes = b"d/nodes",
    level: int = 0,
    kind: int = 0,
    versions: int = 1,
    number: int = 0,
) -> bytes:
    """The body of a manifest that names one root."""
    config = bytes(16) + spell_numbers([kind, 1024, 10**8]) + b"\4\0"
    places = spell_numbers([number, offset, length])
    return config + spell_files([path]) + spell_numbers([versions, 1]) + bytes([level]) + places + bytes(3 + 8 + 1)


def install(directory: Path, bodies: Sequence[bytes], *, compress: bool = False, **options: Any) -> None:
    """Makes a database of nodes with these bodies, the last of which is the root."""
    frames = [wrap(body, NODE_MAGIC, compress=compress) for body in bodies]
    (directory / "d").mkdir(exist_ok=True)
    (directory / "d" / "nodes").write_bytes(b"".join(frames))
    root = manifest(sum(map(len, frames[:-1])), len(frames[-1]), **options)
    (directory / "manifest.ocdbt").write_bytes(wrap(root, MANIFEST_MAGIC, compress=compress))
