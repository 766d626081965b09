"""Arrays of a T5X checkpoint: TensorStore specs in the place of leaves.

T5X saves ``checkpoint_<step>/checkpoint``, ``{"version": 3, "optimizer": {"target": …, "state": …}}`` in the msgpack of
``flax.serialization``, and beside it one zarr 2 directory for each array that is partitioned, called after its path
(``target.encoder.layers_0.kernel``). Where such an array would stand in the tree, there is the spec that TensorStore
needs to open it: driver, place, shape, dtype. Orbax 0.1 grew out of this. Facts of T5X's ``checkpoints.py``, 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint
from converter.formats.zarr import dtype_name
from converter.paths import Path, format_path
from converter.tree import LeafSpec, array_spec

SPEC_KEYS = frozenset({"driver", "kvstore", "metadata"})
"""By these T5X itself tells a spec from a part of the tree."""

_LOCAL_DRIVERS, _REMOTE_DRIVERS = ("file", "gfile"), ("gcs", "gs", "s3", "http")
_ANY_BUCKET = "t5x-dummy-bucket"
"""Stands for the bucket that holds the checkpoint, whichever that is."""


@dataclass(frozen=True, slots=True)
class ArrayReference:
    """An array that lies in a directory of its own.

    Attributes:
      name: the directory, beside the file.
      spec: what the array is said to be.
      written_to: where it was written, if that was elsewhere: on another machine, in a bucket.
    """

    name: str
    spec: LeafSpec
    written_to: str = ""


def is_spec(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= SPEC_KEYS


def read_spec(value: Mapping[str, Any], path: Path) -> ArrayReference:
    """Raises: UnsupportedCheckpoint: T5X itself would not read it so. UnreadableCheckpoint: no spec of an array."""
    try:
        place, metadata = value["kvstore"], value["metadata"]
        driver, where = str(place["driver"]), str(place.get("path", value.get("path", ""))).rstrip("/")
        dtype = dtype_name(str(value.get("dtype") or metadata["dtype"]))
        shape = tuple(int(length) for length in metadata["shape"])
        name = where.rpartition("/")[2]
        if not name:
            raise ValueError("no path")
        _refuse_unlike_t5x(value, driver, dtype, shape, path)
        is_elsewhere = driver in _REMOTE_DRIVERS or "://" in where or where.startswith("/")
        written_to = _written_to(driver, str(place.get("bucket", "")), where) if is_elsewhere else ""
        return ArrayReference(name if is_elsewhere else where, array_spec(dtype, shape), written_to)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"expected the TensorStore spec of a zarr array, found {dict(value)} ({error!r})"
        raise UnreadableCheckpoint(f"{format_path(path)}: {problem}", "Copy it again, or use another step.") from None


def _refuse_unlike_t5x(value: Mapping[str, Any], driver: str, dtype: str, shape: tuple[int, ...], path: Path) -> None:
    problem = advice = ""
    whole = {"input_inclusive_min": [0] * len(shape), "input_exclusive_max": [[length] for length in shape]}
    if value["driver"] != "zarr":
        problem = f"TensorStore's driver {value['driver']!r}"
    elif driver not in (*_LOCAL_DRIVERS, *_REMOTE_DRIVERS):
        problem = f"TensorStore's store {driver!r}"
    elif dtype == "uint16":
        problem = "uint16, which stands for bfloat16 in checkpoints of T5X before version 3"
        advice = "Restore it with the T5X that wrote it, which knows which arrays are meant, and save it again."
    elif value.get("transform", whole) != whole:
        problem = f"a part of an array ({value['transform']})"
    if problem:
        raise UnsupportedCheckpoint(
            f"{format_path(path)}: T5X's reference to its array says {problem}; expected a whole zarr array",
            advice or "Restore it with the program that wrote it and save it again.",
        )


def _written_to(driver: str, bucket: str, where: str) -> str:
    if driver in _LOCAL_DRIVERS or "://" in where:
        return where
    return f"{driver}://{'<bucket>' if bucket in ('', _ANY_BUCKET) else bucket}/{where}"
