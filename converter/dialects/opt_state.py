"""How an optax state is laid out: which of its leaves follow a parameter, and where its empty members stand.

An optax state is a nest of tuples and named tuples. Some of its fields (``mu``, ``nu``, ``trace``, ``acc_grads`` …)
hold one value per parameter under the parameter's own path; these *mirrors* follow whatever happens to the parameters.
Members without arrays (``EmptyState``, ``MaskedNode``) are recorded by Linen's savers and mostly left out by NNX's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from converter.paths import IndexKey, Path
from converter.tree import LazyLeaf, empty_spec

STEP, OPT_STATE = "step", "opt_state"
"""Where a train state and an ``nnx.Optimizer`` alike keep their counter and their optax state."""

MIRROR_FIELDS = frozenset(
    {"mu", "nu", "nu_max", "trace", "acc_grads", "ema", "sum_of_squares", "v", "v_row", "v_col", "e_g", "e_x"}
)
"""Fields of optax's states that hold one value per parameter: used only where the parameters are not at hand."""

EMPTY_NODE = LazyLeaf(empty_spec("node"), lambda: None)
"""An optax state without arrays, or the place of a masked-out parameter."""


def split_mirror(path: Path, variables: Collection[Path], mixed: Collection[Path] = ()) -> tuple[Path, Path]:
    """Splits a path below ``opt_state`` into the way through the optax state and the path of a variable.

    The variable's path is the longest tail that names one, empty if none does. Without ``variables`` (an optimizer
    saved alone) it is what follows the first field known to mirror the parameters.

    Args:
      mixed: see ``mixed_prefixes``. A single key below one of them is no mirror, unless optax's name for the field says
        so: the ``count`` of adam does not follow a variable of that name.

    Examples:
      ``0/mu/Dense_0/kernel`` → ``0/mu``, ``Dense_0/kernel``; ``0/count`` → ``0/count``, nothing.
    """
    if variables:
        for start in range(len(path)):
            tail = path[start:]
            # One key alone may agree by chance, where other things stand beside it.
            sure = len(tail) > 1 or path[:start] not in mixed or path[start - 1] in MIRROR_FIELDS
            if sure and tail in variables:
                return path[:start], path[start:]
        return path, ()
    for start, key in enumerate(path[:-1]):
        if key in MIRROR_FIELDS:
            return path[: start + 1], path[start + 1 :]
    return path, ()


def mixed_prefixes(paths: Iterable[Path], variables: Collection[Path]) -> frozenset[Path]:
    """The prefixes below which something stands that has no variable's path: they are no mirrors as a whole."""
    return frozenset(path[:start] for path in paths for start in range(len(path)) if path[start:] not in variables)


def as_positions(prefix: Path) -> Path:
    """The same way through an optax state with its numbers as positions of a tuple, as a Linen train state has them."""
    return tuple(IndexKey(key) if _is_number(key) else str(key) for key in prefix)


def missing_positions(paths: Iterable[Path]) -> Iterator[Path]:
    """Positions that must exist in a tuple because a later one does, and that no path leads through.

    They held states without arrays (optax's ``EmptyState``). What stood behind the last known position cannot be told.
    """
    nodes: dict[Path, set[int]] = {}
    for path in paths:
        for depth, key in enumerate(path):
            if isinstance(key, IndexKey):
                nodes.setdefault(path[:depth], set()).add(int(key))
    for node, positions in nodes.items():
        for position in range(max(positions)):
            if position not in positions:
                yield (*node, IndexKey(str(position)))


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit() and (key == "0" or not key.startswith("0"))
