"""Training states as scripts save and restore them, by the framework's own means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx, serialization

from .reshaped_pairs import Pair
from .training import Nnx


def known_to_convert(pair: Pair) -> dict[str, Any]:
    return {"linen_model": pair.linen, "nnx_model": pair.nnx, "inputs": pair.inputs}


def saved_linen(directory: Path, state: Any, format: str) -> Path:
    path = directory / f"linen.{format}"
    if format == "msgpack":
        path.write_bytes(serialization.to_bytes(state))
    else:
        save(path, state)
    return path


def saved_nnx_state(directory: Path, held: Any, format: str) -> Path:
    path = directory / f"nnx.{format}"
    if format == "msgpack":
        pure = {name: nnx.to_pure_dict(nnx.filter_state(state, nnx.Not(nnx.RngState))) for name, state in held.items()}
        path.write_bytes(serialization.to_bytes(pure))
    else:
        save(path, held)
    return path


def save(path: Path, tree: Any) -> None:
    with ocp.StandardCheckpointer() as saver:
        saver.save(path, tree)


def read_linen(path: Path, target: Any) -> Any:
    """Into exactly the structure of the target, by the framework's own reader."""
    if path.suffix == ".msgpack":
        return serialization.from_bytes(target, path.read_bytes())
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(path, target)


def read_nnx(path: Path, target: Nnx) -> Nnx:
    held = states_of(target)
    if path.suffix == ".msgpack":
        read = jax.tree.map(jnp.asarray, serialization.msgpack_restore(path.read_bytes()))
        for name, state in held.items():
            nnx.replace_by_pure_dict(state, nnx.restore_int_paths(read[name]))
    else:
        with ocp.StandardCheckpointer() as reader:
            held = reader.restore(path, held)
    nnx.update(target.model, held["model"])
    nnx.update(target.trainer, held["optimizer"])
    return target


def states_of(trained: Nnx) -> dict[str, nnx.State]:
    return {"model": nnx.state(trained.model), "optimizer": nnx.state(trained.trainer)}
