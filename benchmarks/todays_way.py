"""What people do today: restore the whole checkpoint, rename the leaves in a dict, save it again.

Usage: python -m benchmarks.todays_way SRC DST  (an Orbax directory of a Linen variables dict to an nnx.State)
"""

from __future__ import annotations

import sys
from typing import Any


def main(source: str, destination: str) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(source)
        checkpointer.save(destination, _wrapped(variables["params"]))


def _wrapped(node: Any) -> Any:
    """Every array in the wrapper that an nnx.State has on disk."""
    return {key: _wrapped(child) for key, child in node.items()} if isinstance(node, dict) else {"value": node}


if __name__ == "__main__":
    main(*sys.argv[1:])
