"""The metadata of zarr arrays, versions 2 and 3: between their JSON and a grid of chunks.

Only what says how an array is cut and encoded is understood here; compressors are taken over as they are. The fields
are those of the specifications zarr 2 (``.zarray``) and zarr 3 (``zarr.json``, with the codec ``sharding_indexed``).
"""

from __future__ import annotations

import functools
import json
import math
import operator
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
      form: how it lies.
      separator: what stands between the numbers in the key of a chunk.
      stores_zeros: TensorStore stores chunks of zeros of such an array too (zarr 2 without a fill value), so that an
        absent chunk is lost data.
    """

    form: Form
    separator: str
    stores_zeros: bool = False

    @property
    def dtype(self) -> str:
        """The name of the dtype."""
        return dtype_name(self.form.encoding.dtype)

    @functools.cached_property
    def chunk_nbytes(self) -> int:
        """Bytes of a chunk of bare elements."""
        return math.prod(self.form.chunk_shape) * item_size(self.dtype)

    def places(self) -> Iterable[tuple[Index, str]]:
        """Every place of the grid, in C order, with the key of its chunk."""
        return self._only_place if self.form.number == 1 else self._places()

    @functools.cached_property
    def _only_place(self) -> tuple[tuple[Index, str], ...]:
        return tuple(self._places())

    def _places(self) -> Iterator[tuple[Index, str]]:
        return ((index, self.chunk_key(index)) for index in self.form.indices())

    def chunk_key(self, index: Index) -> str:
        """What a chunk is called below the array's name."""
        if self.form.encoding.container == "zarr3":
            return self.separator.join(["c", *map(str, index)])
        return self.separator.join(map(str, index)) if index else "0"

    def noted(self, write: tuple[int, ...], mesh: tuple[str | tuple[str, ...] | None, ...]) -> Form:
        """The form with what Orbax notes of the axes: what one process wrote at a time, and the mesh.

        Args:
          write: in elements; empty where nothing is noted.
          mesh: as ``Axis.mesh``; there may be fewer than axes.
        """
        known = self._noted.get((write, mesh))
        if known is None:
            axes = self.form.axes
            written = write if len(write) == len(axes) else self.form.chunk_shape
            told = zip(axes, written, (*mesh[: len(axes)], *[None] * (len(axes) - len(mesh))), strict=True)
            noted = tuple([axis._replace(write=size, mesh=name) for axis, size, name in told])
            known = self._noted[write, mesh] = Form(noted, self.form.order, self.form.encoding)
        return known

    @functools.cached_property
    def _noted(self) -> dict[Any, Form]:
        return {}


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
    return _parse_3(content) if "data_type" in content else _parse_2(content)


def _axes(shape: Sequence[Any], chunks: Sequence[Any], inner: Sequence[Any] | None = None) -> tuple[Axis, ...]:
    """The axes of an array in chunks, which consist of parts (``inner``) where they are sharded.

    Raises:
      TypeError, ValueError: there is no such array.
    """
    shape, chunks, parts = _ints(shape), _ints(chunks), _ints(inner or (0,) * len(shape))
    if len(chunks) != len(shape) or min((*shape, *(chunk - 1 for chunk in chunks)), default=0) < 0:
        raise ValueError(f"chunks {list(chunks)} of an array {list(shape)}")
    pairs = zip(chunks, parts, strict=False)
    if len(parts) != len(chunks) or (inner is not None and any(part < 1 or chunk % part for chunk, part in pairs)):
        raise ValueError(f"parts {list(parts)} of chunks {list(chunks)}")
    return tuple([Axis(size, chunk, chunk, part) for size, chunk, part in zip(shape, chunks, parts, strict=True)])


def _parse_2(content: Mapping[str, Any]) -> ZarrArray:
    dtype = _checked_dtype(content["dtype"])
    axes = _axes(content["shape"], content["chunks"])
    compressor, filters = content["compressor"], content.get("filters")
    compression = "" if compressor is None else str(compressor["id"])
    if filters or compression not in ("", "zstd", "gzip"):
        compression = "?"
    kept = {"compressor": compressor, "fill_value": content.get("fill_value"), "filters": filters}
    rank = range(len(axes))
    order = tuple(reversed(rank)) if content["order"] == "F" else tuple(rank)
    encoding = Encoding(dtype, compression, "zarr2", _dump(kept).decode())
    separator = str(content.get("dimension_separator", "."))
    return ZarrArray(Form(axes, order, encoding), separator, stores_zeros=kept["fill_value"] is None)


def _parse_3(content: Mapping[str, Any]) -> ZarrArray:
    name = _checked_dtype(content["data_type"])
    grid, keys = content["chunk_grid"], content["chunk_key_encoding"]
    if grid["name"] != "regular" or keys["name"] != "default" or any(content.get("storage_transformers") or ()):
        raise UnsupportedCheckpoint(f"chunks of the kind {grid['name']} with keys of the kind {keys['name']}")
    codecs = list(content["codecs"])
    sharded = len(codecs) == 1 and codecs[0]["name"] == _SHARDED
    shards = codecs[0]["configuration"] if sharded else {}
    if sharded:
        codecs = list(shards["codecs"])
    axes = _axes(content["shape"], grid["configuration"]["chunk_shape"], shards["chunk_shape"] if sharded else None)
    compression, little = _codecs_3(codecs)
    dtype = type_string(name) if little else type_string(name).replace("<", ">")
    if (sharded and not _is_usual_index(shards)) or (not little and dtype[0] not in ">|"):
        compression = "?"
    kept = {key: value for key, value in content.items() if key not in ("shape", "chunk_grid")}
    encoding = Encoding(dtype, compression, "zarr3", _without_inner(kept), sharded)
    separator = str(keys.get("configuration", {}).get("separator", "/"))
    return ZarrArray(Form(axes, tuple(range(len(axes))), encoding), separator)


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


def _ints(values: Any) -> tuple[int, ...]:
    if isinstance(values, str):  # of digits, which would do else
        raise TypeError(f"a list of numbers expected, found {values!r}")
    return tuple([operator.index(value) for value in values])


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
