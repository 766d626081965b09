"""The source checkpoints, made by the real libraries. Runs in a process of its own: see ``aside.Aside``."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from benchmarks.tree import Expected, Layout, Place, Scale, expected

if TYPE_CHECKING:
    import numpy as np

Source = Literal["nnx", "linen", "linen.msgpack", "scanned", "scanned-one-chunk", "linen-odd"]


def make_source(kind: Source, scale: Scale, path: Path) -> None:
    """Writes a checkpoint. ``linen-odd`` differs from ``linen`` in one bit of one leaf; no verifier may miss it."""
    if kind == "linen.msgpack":
        with path.open("wb") as file:
            _write_msgpack(file, expected(scale, "linen"))
    else:
        _save(path, _LAYOUTS[kind], scale, odd=kind == "linen-odd", by_layer=kind == "scanned")
    gc.collect()


_LAYOUTS: dict[str, Layout] = {
    "nnx": "nnx",
    "linen": "linen",
    "linen-odd": "linen",
    "scanned": "scanned",
    "scanned-one-chunk": "scanned",
}


def _save(path: Path, layout: Layout, scale: Scale, *, odd: bool, by_layer: bool) -> None:
    """Orbax, as it comes: an array is one chunk. ``by_layer`` asks for one chunk per layer of a scanned array."""
    import jax
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    # Arrays of jax, as in training; those of numpy Orbax would copy once more.
    leaves = expected(scale, layout)
    values = {place: jnp.asarray(leaf.value()) for place, leaf in leaves.items()}
    if odd:
        place = list(leaves)[len(leaves) // 2]
        values[place] = jnp.asarray(_one_bit_off(leaves[place].value()))
    tree = nested(values.items()) if layout == "linen" else _nnx_state(values)
    save_args = jax.tree.map(lambda leaf: _one_chunk_per_layer(leaf, scale), tree) if by_layer else None
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree, save_args=save_args)


def _nnx_state(values: dict[Place, Any]) -> Any:
    """Without the last key, ``value``: that is what Orbax writes of an ``nnx.Param``."""
    from flax import nnx

    return nnx.State(nested((place[:-1], nnx.Param(value)) for place, value in values.items()))


def _one_chunk_per_layer(leaf: Any, scale: Scale) -> Any:
    import orbax.checkpoint as ocp

    return ocp.SaveArgs(chunk_byte_size=leaf.nbytes // scale.layers, shard_axes=(1,))


def _one_bit_off(value: np.ndarray) -> np.ndarray:
    value.view("uint32").flat[-1] ^= 1
    return value


def nested(leaves: Iterable[tuple[Place, Any]]) -> dict[str, Any]:
    """A dict of dicts from places and leaves."""
    tree: dict[str, Any] = {}
    for place, leaf in leaves:
        node = tree
        for key in place[:-1]:
            node = node.setdefault(key, {})
        node[place[-1]] = leaf
    return tree


def _write_msgpack(file: IO[bytes], leaves: dict[Place, Expected]) -> None:
    """The bytes of ``flax.serialization.to_bytes``, which needs memory for the whole tree several times over. Here flax
    serialises leaf after leaf; only the heads of the dicts between them are written by hand.
    """
    _write_node(file, nested(leaves.items()))


def _write_node(file: IO[bytes], node: dict[str, Any] | Expected) -> None:
    import msgpack
    from flax import serialization

    if isinstance(node, Expected):
        file.write(serialization.msgpack_serialize(node.value()))
        return
    packer = msgpack.Packer()
    file.write(packer.pack_map_header(len(node)))
    for key, child in node.items():
        file.write(packer.pack(key))
        _write_node(file, child)
