"""The metadata of zarr arrays, versions 2 and 3: between their JSON and a grid of chunks.

Only what says how an array is cut and encoded is understood here; compressors are taken over as they are. The fields
are those of the specifications zarr 2 (``.zarray``) and zarr 3 (``zarr.json``, with the codec ``sharding_indexed``).
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.dtypes import is_common_dtype, item_size, numpy_dtype
from converter.errors import UnsupportedCheckpoint
from converter.grid import Axis, Encoding, Form, Grid, Index

METADATA_KEYS = {"zarr2": ".zarray", "zarr3": "zarr.json"}
"""What the metadata of an array are called below its name."""

_OBJECTS = re.compile(r"[<>|][OSUVMm]\d*")
_NUMBERS = re.compile(r"[<>|]([biufc])(\d+)")
_SHARDED = "sharding_indexed"


@dataclass(frozen=True)
class ZarrArray:
    """What the metadata of an array say. Arrays with equal metadata share it, so what follows is worked out once.

    Attributes:
      shape, chunks: in elements, one number for each axis.
      inner: the shape of the parts of a sharded chunk; empty where chunks are not sharded.
      order: the axes within a chunk, from slow to fast.
      separator: what stands between the numbers in the key of a chunk.
      encoding: how elements become bytes.
      stores_zeros: TensorStore stores chunks of zeros of such an array too (zarr 2 without a fill value), so that an
        absent chunk is lost data.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    inner: tuple[int, ...]
    order: tuple[int, ...]
    separator: str
    encoding: Encoding
    stores_zeros: bool = False

    @property
    def dtype(self) -> str:
        """The name of the dtype."""
        return dtype_name(self.encoding.dtype)

    @functools.cached_property
    def chunk_nbytes(self) -> int:
        """Bytes of a chunk of bare elements."""
        return math.prod(self.chunks) * item_size(self.dtype)

    @functools.cached_property
    def number(self) -> int:
        """How many chunks there are."""
        return self.form().number

    def places(self) -> Iterable[tuple[Index, str]]:
        """Every place of the grid, in C order, with the key of its chunk."""
        return self._only_place if self.number == 1 else self._places()

    @functools.cached_property
    def _only_place(self) -> tuple[tuple[Index, str], ...]:
        return tuple(self._places())

    def _places(self) -> Iterator[tuple[Index, str]]:
        return ((index, self.chunk_key(index)) for index in self.form().indices())

    def chunk_key(self, index: Index) -> str:
        """What a chunk is called below the array's name."""
        if self.encoding.container == "zarr3":
            return self.separator.join(["c", *map(str, index)])
        return self.separator.join(map(str, index)) if index else "0"

    def form(self, write: tuple[int, ...] = (), mesh: tuple[str | tuple[str, ...] | None, ...] = ()) -> Form:
        """How the array lies, with what Orbax knows of its axes in addition."""
        known = self._forms.get((write, mesh))
        if known is None:
            known = self._forms[write, mesh] = Form(self._axes(write, mesh), self.order, self.encoding)
        return known

    @functools.cached_property
    def _forms(self) -> dict[Any, Form]:
        return {}

    def _axes(self, write: Sequence[int], mesh: Sequence[str | tuple[str, ...] | None]) -> tuple[Axis, ...]:
        rank = range(len(self.shape))
        written = write if len(write) == len(self.shape) else self.chunks
        return tuple(
            Axis(
                self.shape[i],
                self.chunks[i],
                written[i],
                self.inner[i] if self.inner else 0,
                mesh[i] if i < len(mesh) else None,
            )
            for i in rank
        )


_KINDS = {"i": "int", "u": "uint", "f": "float", "c": "complex"}

_TYPE_STRINGS = {"bool": "|b1", "int8": "|i1", "uint8": "|u1"} | {
    f"{kind}{8 * size}": f"<{letter}{size}"
    for letter, kind in _KINDS.items()
    for size in (2, 4, 8, 16)
    if (letter, size) not in (("i", 16), ("u", 16), ("f", 16), ("c", 2), ("c", 4))
}
"""NumPy's type strings by the names of the dtypes that have one."""


def dtype_name(dtype: str) -> str:
    """NumPy's name of a type string; names of ml_dtypes' types are themselves."""
    match = _NUMBERS.fullmatch(dtype)
    if match is None:
        return dtype
    return "bool" if match[1] == "b" else f"{_KINDS[match[1]]}{8 * int(match[2])}"


def type_string(name: str) -> str:
    """What ``dtype`` of zarr 2 holds for a dtype: NumPy's type string, or the name for types that have none."""
    return _TYPE_STRINGS.get(name, name)


@functools.lru_cache(maxsize=4096)
def parse(text: bytes) -> ZarrArray:
    """Reads ``.zarray`` or ``zarr.json``.

    Raises:
      KeyError, TypeError, ValueError: they are not what the specification says.
      UnsupportedCheckpoint: the elements are no numbers, or chunks are cut in an unknown way.
    """
    content = json.loads(text)
    array = _parse_3(content) if "data_type" in content else _parse_2(content)
    numbers = (*array.shape, *(each - 1 for each in array.chunks))
    if len(array.chunks) != len(array.shape) or any(number < 0 for number in numbers):
        raise ValueError(f"chunks {list(array.chunks)} of an array {list(array.shape)}")
    pairs = zip(array.chunks, array.inner, strict=False)
    if array.inner and (len(array.inner) != len(array.shape) or any(n < 1 or chunk % n for chunk, n in pairs)):
        raise ValueError(f"parts {list(array.inner)} of chunks {list(array.chunks)}")
    return array


def _parse_2(content: Mapping[str, Any]) -> ZarrArray:
    dtype = _checked_dtype(content["dtype"])
    shape = _ints(content["shape"])
    compressor, filters = content["compressor"], content.get("filters")
    compression = "" if compressor is None else str(compressor["id"])
    if filters or compression not in ("", "zstd", "gzip"):
        compression = "?"
    kept = {"compressor": compressor, "fill_value": content.get("fill_value"), "filters": filters}
    rank = range(len(shape))
    return ZarrArray(
        shape,
        _ints(content["chunks"]),
        (),
        tuple(reversed(rank)) if content["order"] == "F" else tuple(rank),
        str(content.get("dimension_separator", ".")),
        Encoding(dtype, compression, "zarr2", _dump(kept).decode()),
        stores_zeros=kept["fill_value"] is None,
    )


def _parse_3(content: Mapping[str, Any]) -> ZarrArray:

    name = _checked_dtype(content["data_type"])
    grid, keys = content["chunk_grid"], content["chunk_key_encoding"]
    if grid["name"] != "regular" or keys["name"] != "default" or any(content.get("storage_transformers") or ()):
        raise UnsupportedCheckpoint(f"chunks of the kind {grid['name']} with keys of the kind {keys['name']}")
    shape = _ints(content["shape"])
    codecs = list(content["codecs"])
    inner: tuple[int, ...] = ()
    sharded = len(codecs) == 1 and codecs[0]["name"] == _SHARDED
    shards = codecs[0]["configuration"] if sharded else {}
    if sharded:
        inner = _ints(shards["chunk_shape"])
        codecs = list(shards["codecs"])
    compression, little = _codecs_3(codecs)
    dtype = type_string(name) if little else type_string(name).replace("<", ">")
    if (sharded and not _is_usual_index(shards)) or (not little and dtype[0] not in ">|"):
        compression = "?"
    kept = {key: value for key, value in content.items() if key not in ("shape", "chunk_grid")}
    return ZarrArray(
        shape,
        _ints(grid["configuration"]["chunk_shape"]),
        inner,
        tuple(range(len(shape))),
        str(keys.get("configuration", {}).get("separator", "/")),
        Encoding(dtype, compression, "zarr3", _without_inner(kept), sharded),
    )


def _codecs_3(codecs: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """The compression, and whether elements are little-endian."""
    names = [codec["name"] for codec in codecs]
    if names[:1] != ["bytes"]:  # such as another order of the axes
        raise UnsupportedCheckpoint(f"chunks that are written by way of {' and '.join(map(str, names)) or 'nothing'}")
    if names[1:] not in ([], ["zstd"], ["gzip"]):
        return "?", True
    endian = codecs[0].get("configuration", {}).get("endian", "little")
    return (names[1] if len(names) > 1 else ""), endian == "little"


def _is_usual_index(shards: Mapping[str, Any]) -> bool:
    """Whether the index of a shard stands behind its parts, as little-endian numbers with a checksum."""
    codecs = list(shards.get("index_codecs") or ())
    little = codecs[0].get("configuration", {}).get("endian", "little") if codecs else ""
    names = [codec["name"] for codec in codecs]
    return (names, little, shards.get("index_location", "end")) == (["bytes", "crc32c"], "little", "end")


def _without_inner(content: Mapping[str, Any]) -> str:
    """The metadata without the shape of the parts of a chunk, which the axes say."""
    kept = json.loads(json.dumps(content))
    for codec in kept["codecs"]:
        if codec["name"] == _SHARDED:
            del codec["configuration"]["chunk_shape"]
    return _dump(kept).decode()


def _ints(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _checked_dtype(dtype: Any) -> str:
    if not isinstance(dtype, str) or _OBJECTS.fullmatch(dtype):
        raise UnsupportedCheckpoint(f"an array of dtype {dtype!r} cannot be a leaf")
    name = dtype_name(dtype)
    if not is_common_dtype(name):
        numpy_dtype(name)
    return dtype


# Writing -------------------------------------------------------------------------------------------------------------


def can_hold(grid: Grid, version: str) -> bool:
    """Whether zarr of that version (``zarr2``, ``zarr3``) has a way to say how the grid lies."""
    return _can_say(grid.form, version) and (bool(grid.encoding.container) or grid.is_complete)


@functools.lru_cache(maxsize=4096)
def _can_say(form: Form, version: str) -> bool:
    """Whatever chunks there are."""
    encoding = form.encoding
    if encoding.container not in ("", version) or not (encoding.container or encoding.is_raw):
        return False
    return form.is_c_ordered or (version == "zarr2" and form.is_f_ordered)


@functools.lru_cache(maxsize=4096)
def metadata(form: Form, version: str) -> bytes:
    """``.zarray`` or ``zarr.json`` of arrays that ``can_hold`` accepts."""
    encoding, shape, chunks = form.encoding, form.shape, form.chunk_shape
    if version == "zarr2":
        return _metadata_2(shape, chunks, "C" if form.is_c_ordered else "F", encoding)
    cut = {"configuration": {"chunk_shape": list(chunks)}, "name": "regular"}
    details = json.loads(encoding.details) if encoding.container else _plain_3(encoding.dtype)
    for codec in details["codecs"]:
        if codec["name"] == _SHARDED:
            codec["configuration"]["chunk_shape"] = [axis.inner for axis in form.axes]
    names = details.get("dimension_names")
    if names is not None and len(names) != len(shape):
        del details["dimension_names"]
    return _dump({**details, "shape": list(shape), "chunk_grid": cut})


def _metadata_2(shape: tuple[int, ...], chunks: tuple[int, ...], order: str, encoding: Encoding) -> bytes:
    kept = (
        json.loads(encoding.details)
        if encoding.container
        else {"compressor": None, "fill_value": None, "filters": None}
    )
    return _dump(
        {
            **kept,
            "chunks": list(chunks),
            "dimension_separator": ".",
            "dtype": encoding.dtype,
            "order": order,
            "shape": list(shape),
            "zarr_format": 2,
        }
    )


def _plain_3(dtype: str) -> dict[str, Any]:
    name = dtype_name(dtype)
    zero: Any = False if name == "bool" else [0.0, 0.0] if "complex" in name else 0.0 if "float" in name else 0
    return {
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"configuration": {"endian": "little"}, "name": "bytes"}],
        "data_type": name,
        "fill_value": zero,
        "node_type": "array",
        "zarr_format": 3,
    }


def _dump(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
