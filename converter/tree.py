"""The neutral value between all formats and all dialects: paths, leaf specs, lazy leaves and trees of them.

Nothing here knows Linen, NNX, Orbax or msgpack, and building a tree reads no array.
"""

from __future__ import annotations

import ast
import enum
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import Any, NamedTuple, Protocol

from converter.dtypes import is_common_dtype, item_size, numpy_dtype
from converter.errors import UnsupportedCheckpoint, UsageError
from converter.grid import Grid
from converter.paths import IndexKey, IntKey, Key, Path, TupleKey, format_path


class LeafKind(enum.Enum):
    """What a leaf is, apart from its dtype and shape."""

    __hash__ = object.__hash__  # specs are hashed by the ten thousand, and that of Enum is written in Python

    ARRAY = "array"
    NUMPY_SCALAR = "numpy scalar"
    """A 0-d value that a msgpack file stores as a NumPy scalar rather than as an array."""
    SCALAR = "scalar"
    """A Python int, float, bool or complex."""
    TEXT = "text"
    """A Python str or bytes."""
    KEY = "PRNG key"
    """A typed JAX PRNG key array; ``fetch`` gives its uint32 key data."""
    EMPTY = "empty"
    """A container without leaves, or None: nothing to read."""


EMPTY_TEXT: Mapping[str, str] = {"none": "None", "dict": "{}", "list": "[]", "tuple": "()", "node": "(empty)"}
"""How each kind of empty leaf prints. ``node`` is an optax state without arrays, such as EmptyState or MaskedNode."""


class LeafSpec(NamedTuple):
    """What is known of a leaf without reading it.

    Attributes:
      kind: see ``LeafKind``.
      dtype: the NumPy or ml_dtypes name for arrays; ``int``, ``float``, ``bool``, ``complex``, ``str`` or ``bytes`` for
        Python values; the implementation (``threefry2x32``) for PRNG keys; a name of ``EMPTY_TEXT`` for empty leaves.
      shape: the shape of the array, for PRNG keys the shape of the key array without the words of its data.
    """

    kind: LeafKind
    dtype: str
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        """``float32[8,128]``, ``key<threefry2x32>[]``, ``int``, ``{}`` …"""
        return _spec_text(self)

    @property
    def size(self) -> int:
        """Number of elements; 0 for an empty leaf, 1 for a Python value."""
        return 0 if self.kind is LeafKind.EMPTY else math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory (NumPy's item size, so one byte for an int4); 0 for everything else."""
        return _nbytes(self)


@functools.lru_cache(maxsize=4096)
def _nbytes(spec: LeafSpec) -> int:
    """Most leaves of a large checkpoint share their spec with many others."""
    if spec.kind in (LeafKind.ARRAY, LeafKind.NUMPY_SCALAR):
        return math.prod(spec.shape) * item_size(spec.dtype)
    return spec.size * 4 * KEY_WORDS.get(spec.dtype, 2) if spec.kind is LeafKind.KEY else 0


@functools.lru_cache(maxsize=4096)
def _spec_text(spec: LeafSpec) -> str:
    """Remembered like ``_nbytes``."""
    dimensions = ",".join(map(str, spec.shape))
    match spec.kind:
        case LeafKind.ARRAY:
            return f"{spec.dtype}[{dimensions}]"
        case LeafKind.NUMPY_SCALAR:
            return f"{spec.dtype}()"
        case LeafKind.KEY:
            return f"key<{spec.dtype}>[{dimensions}]"
        case LeafKind.EMPTY:
            return EMPTY_TEXT[spec.dtype]
        case _:
            return spec.dtype


KEY_WORDS: Mapping[str, int] = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}
"""uint32 words of one PRNG key by implementation, as ``jax.random.key_data(jax.random.key(0, impl=…))`` shows them."""


def array_spec(dtype: str, shape: Iterable[int] = ()) -> LeafSpec:
    return LeafSpec(LeafKind.ARRAY, dtype, tuple(int(n) for n in shape))


def empty_spec(container: str) -> LeafSpec:
    return LeafSpec(LeafKind.EMPTY, container)


_SPEC_TEXT = re.compile(r"\s*(?P<dtype>[A-Za-z_]\w*)\s*\[\s*(?P<shape>(?:\d+\s*(?:,\s*\d+\s*)*,?)?)\s*\]\s*")


def parse_array_spec(text: str) -> LeafSpec:
    """Reads ``float32[8,128]``.

    Raises:
      UsageError: not of that form, or an unknown dtype.
    """
    match = _SPEC_TEXT.fullmatch(text)
    if match is None:
        raise UsageError(f"cannot read the array {text!r}", "Write dtype and shape as in float32[8,128] or int32[].")
    try:
        dtype = match["dtype"] if is_common_dtype(match["dtype"]) else numpy_dtype(match["dtype"]).name
    except UnsupportedCheckpoint as error:
        raise UsageError(f"cannot read the array {text!r}: {error.message}", "Use a dtype such as float32.") from None
    return array_spec(dtype, (int(n) for n in match["shape"].split(",") if n.strip()))


class Leaf(Protocol):
    """One value of a checkpoint: what it is, and how to get it."""

    @property
    def spec(self) -> LeafSpec:
        """What it is."""

    def fetch(self) -> Any:
        """Reads the value.

        Returns: a NumPy array (for PRNG keys the uint32 key data, whose last axis holds the words), the Python value
          itself for scalars and text, ``None`` for an empty leaf. Live objects hand out their own arrays.
        """

    def grid(self) -> Grid | None:
        """How the array lies on disk, where it does and somebody can use that.

        The grid of a PRNG key has an axis for its words.
        """


def _nowhere() -> None:
    """The grid of a leaf that lies nowhere on disk."""


class LazyLeaf(NamedTuple):
    """A leaf that is made of functions."""

    spec: LeafSpec
    fetch: Callable[[], Any]
    grid: Callable[[], Grid | None] = _nowhere


class Tree(Mapping[Path, Leaf]):
    """An ordered, immutable mapping from path to leaf.

    Raises:
      UnsupportedCheckpoint: a path stands twice, or one leaf lies below another.
    """

    def __init__(self, leaves: Iterable[tuple[Path, Leaf]] = ()) -> None:
        given = list(leaves)
        self._leaves: dict[Path, Leaf] = dict(given)
        if len(self._leaves) < len(given):
            path, _ = Counter(path for path, _ in given).most_common(1)[0]
            raise UnsupportedCheckpoint(f"{format_path(path)} stands twice in the checkpoint")
        if above := containers(self._leaves).intersection(self._leaves):
            upper = next(path for path in self._leaves if path in above)
            lower = next(path for path in self._leaves if len(path) > len(upper) and path[: len(upper)] == upper)
            raise UnsupportedCheckpoint(f"{format_path(lower)} lies below the leaf {format_path(upper)}")

    def __getitem__(self, path: Path) -> Leaf:
        return self._leaves[path]

    def __iter__(self) -> Iterator[Path]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def items(self) -> ItemsView[Path, Leaf]:
        return self._leaves.items()

    def values(self) -> ValuesView[Leaf]:
        return self._leaves.values()

    def full(self) -> dict[Path, Leaf]:
        """The leaves that hold something."""
        return {path: leaf for path, leaf in self._leaves.items() if leaf.spec.kind is not LeafKind.EMPTY}

    def __repr__(self) -> str:
        return f"Tree({len(self)} leaves)"

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays in memory."""
        return sum(leaf.spec.nbytes for leaf in self.values())

    @functools.cached_property
    def _children(self) -> dict[Path, list[Key]]:
        return _children(self._leaves)

    def children(self, *prefix: Key) -> dict[Key, None]:
        """The keys directly below ``prefix``, in order (as the keys of a dict)."""
        return dict.fromkeys(self._children.get(prefix, ()))

    def is_alone(self, path: Path) -> bool:
        """Whether a leaf is all that its container holds."""
        return len(self._children[path[:-1]]) == 1


def _children(paths: Iterable[Path]) -> dict[Path, list[Key]]:
    """The keys directly below every container, in order."""
    found: dict[Path, list[Key]] = {}
    for path in paths:
        while path:
            path, key = path[:-1], path[-1]
            if path in found:  # so are all containers above it
                found[path].append(key)
                break
            found[path] = [key]
    return found


def containers(paths: Iterable[Path]) -> set[Path]:
    """All that paths lead through."""
    above = found = {path[:-1] for path in paths if path}
    while above:
        above = {path[:-1] for path in above if path} - found
        found |= above
    return found


class _Node(dict[Key, Any]):
    """An inner node while nesting, told apart from values that happen to be dicts."""


def nest(values: Iterable[tuple[Path, Any]]) -> Any:
    """Builds nested containers from paths: a list where all keys of a node are positions, else a dict.

    ``IntKey`` keys become ints, ``TupleKey`` keys tuples. A single value at the empty path is returned as it is.

    Raises:
      UnsupportedCheckpoint: the positions of a list leave a hole.
    """
    root = _Node()
    for path, value in values:
        if not path:
            return value
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, _Node())
        node[path[-1]] = value
    return _plain(root, ())


def _plain(node: Any, path: Path) -> Any:
    if not isinstance(node, _Node):
        return node
    children = {key: _plain(child, (*path, key)) for key, child in node.items()}
    if children and all(isinstance(key, IndexKey) for key in children):
        if sorted(map(int, children)) != list(range(len(children))):
            raise UnsupportedCheckpoint(
                f"{format_path(path)} is a sequence with positions {', '.join(children)}: some are missing"
            )
        return [children[key] for key in sorted(children, key=int)]
    return {_own_key(key): child for key, child in children.items()}


def _own_key(key: Key) -> Any:
    """The key that a dict in memory has."""
    if isinstance(key, IntKey):
        return int(key)
    return ast.literal_eval(key) if isinstance(key, TupleKey) else str(key)
