"""Whether a contender really made what it should: all places and shapes, and some leaves bit for bit.

Runs in a process of its own: see ``aside.Aside``.
"""

from __future__ import annotations

import gc
import zlib
from pathlib import Path
from typing import Any, Literal

from benchmarks.sources import nested
from benchmarks.tree import Expected, Layout, Place, Scale, expected

Format = Literal["orbax", "msgpack"]
FOUND_AND_WANTED = "{place}: found {found}, expected {wanted}"


def check_result(path: Path, format: Format, layout: Layout, scale: Scale) -> str:
    """What is wrong with a result, or an empty text."""
    wanted = expected(scale, layout)
    wrong = _check_msgpack(path, wanted) if format == "msgpack" else _check_orbax(path, wanted)
    gc.collect()
    return wrong


def _samples(wanted: dict[Place, Expected]) -> dict[Place, Expected]:
    """The first, the middle and the last leaf."""
    places = list(wanted)
    return {place: wanted[place] for place in (places[0], places[len(places) // 2], places[-1])}


def _compare_specs(found: dict[Place, str], wanted: dict[Place, Expected]) -> str:
    specs = {place: spec_text("float32", leaf.shape) for place, leaf in wanted.items()}
    for place in sorted(found.keys() | specs.keys()):
        if found.get(place) != specs.get(place):
            text = {"found": found.get(place, "nothing"), "wanted": specs.get(place, "nothing")}
            return FOUND_AND_WANTED.format(place="/".join(place), **text)
    return ""


def spec_text(dtype: object, shape: tuple[int, ...]) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def _check_orbax(path: Path, wanted: dict[Place, Expected]) -> str:
    """Restored through Orbax, the samples alone: the others stand as placeholders in the target."""
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path)
        stored = flat(getattr(metadata, "item_metadata", metadata).tree)
        wrong = _compare_specs({place: spec_text(leaf.dtype, leaf.shape) for place, leaf in stored.items()}, wanted)
        if wrong:
            return wrong
        samples = _samples(wanted)
        targets = {
            place: np.empty(leaf.shape, np.float32) if place in samples else ocp.PLACEHOLDER
            for place, leaf in wanted.items()
        }
        restored = flat(checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=nested(targets.items()))))
    for place, leaf in samples.items():
        if not np.array_equal(np.asarray(restored[place]).view(np.uint32), leaf.value().view(np.uint32)):
            return f"{'/'.join(place)}: the values differ"
    return ""


def _check_msgpack(path: Path, wanted: dict[Place, Expected]) -> str:
    """Read leaf by leaf; of each only dtype, shape and checksum are kept."""
    import msgpack

    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(file, ext_hook=_digest, raw=False, max_buffer_size=0)
        stored: dict[Place, tuple[str, int]] = flat(unpacker.unpack())
        if file.read(1):
            return "there is something behind the end"
    wrong = _compare_specs({place: spec for place, (spec, _) in stored.items()}, wanted)
    if wrong:
        return wrong
    for place, leaf in _samples(wanted).items():
        if stored[place][1] != zlib.crc32(leaf.value().tobytes()):
            return f"{'/'.join(place)}: the values differ"
    return ""


def _digest(code: int, data: bytes) -> tuple[str, int]:
    """Flax's extension 1: shape, name of the dtype and the bytes of an array."""
    import msgpack

    shape, dtype, values = msgpack.unpackb(data)
    return spec_text(dtype, tuple(shape)), zlib.crc32(values)


def flat(tree: Any, place: Place = ()) -> dict[Place, Any]:
    if not isinstance(tree, dict):
        return {place: tree}
    return {where: leaf for key, child in tree.items() for where, leaf in flat(child, (*place, str(key))).items()}
