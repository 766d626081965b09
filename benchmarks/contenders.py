"""What people do today, written as they write it: read everything, rename in a dict, write everything.

Usage: python -m benchmarks.contenders NAME SRC DST
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def restore_save(source: str, destination: str) -> None:
    """Orbax nnx.State → Orbax Linen variables."""
    save(destination, {"params": unwrapped(restore(source))})


def msgpack_save(source: str, destination: str) -> None:
    """Flax msgpack, Linen variables → Orbax nnx.State."""
    from flax import serialization

    variables = serialization.msgpack_restore(Path(source).read_bytes())
    save(destination, wrapped(variables["params"]))


def restore_msgpack(source: str, destination: str) -> None:
    """Orbax nnx.State → flax msgpack, Linen variables."""
    from flax import serialization

    variables = {"params": unwrapped(restore(source))}
    Path(destination).write_bytes(serialization.to_bytes(variables))


def restore_stack(source: str, destination: str) -> None:
    """Orbax Linen variables, a loop over layers → Orbax nnx.State, layers scanned along axis 1."""
    import numpy as np

    layers = list(numbered(restore(source)["params"], "layers_").values())
    save(destination, {"layers": wrapped(merged(layers, lambda leaves: np.stack(leaves, axis=1)))})


def restore_unstack(source: str, destination: str) -> None:
    """Orbax nnx.State, layers scanned along axis 1 → Orbax Linen variables, a loop over layers."""
    import numpy as np

    scanned = unwrapped(restore(source)["layers"])
    layers = mapped(scanned, lambda leaf: list(np.moveaxis(np.asarray(leaf), 1, 0)))
    save(destination, {"params": {f"layers_{i}": taken(layers, i) for i in range(length(layers))}})


def compare(source: str, destination: str) -> None:
    """Orbax nnx.State against Orbax Linen variables, every array decoded. Exits with 1 if they differ."""
    import numpy as np

    left, right = unwrapped(restore(source)), restore(destination)["params"]
    equal = merged([left, right], lambda pair: np.array_equal(np.asarray(pair[0]), np.asarray(pair[1])))
    sys.exit(not all(leaves(equal)))


CONTENDERS: dict[str, Callable[[str, str], None]] = {
    "restore-save": restore_save,
    "msgpack-save": msgpack_save,
    "restore-msgpack": restore_msgpack,
    "restore-stack": restore_stack,
    "restore-unstack": restore_unstack,
    "compare": compare,
}


# What every such script has of its own -------------------------------------------------------------------------------


def restore(path: str) -> Any:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path)


def save(path: str, tree: Any) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def wrapped(node: Any) -> Any:
    """Every array in the wrapper that an nnx.State has on disk."""
    return mapped(node, lambda leaf: {"value": leaf})


def unwrapped(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    return node["value"] if node.keys() == {"value"} else {key: unwrapped(child) for key, child in node.items()}


def mapped(node: Any, function: Callable[[Any], Any]) -> Any:
    return {k: mapped(child, function) for k, child in node.items()} if isinstance(node, dict) else function(node)


def merged(nodes: list[Any], function: Callable[[list[Any]], Any]) -> Any:
    """Several trees of one structure, joined leaf by leaf."""
    if not isinstance(nodes[0], dict):
        return function(nodes)
    return {key: merged([node[key] for node in nodes], function) for key in nodes[0]}


def taken(node: Any, i: int) -> Any:
    return mapped(node, lambda leaf: leaf[i])


def length(node: Any) -> int:
    return len(next(leaves(node)))


def leaves(node: Any) -> Any:
    if isinstance(node, dict):
        for child in node.values():
            yield from leaves(child)
    else:
        yield node


def numbered(node: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The children with that prefix, in the order of their numbers."""
    return dict(sorted(node.items(), key=lambda item: int(item[0].removeprefix(prefix))))


def main(name: str, source: str, destination: str) -> None:
    CONTENDERS[name](source, destination)


if __name__ == "__main__":
    main(*sys.argv[1:])
