"""The neutral value between all formats and all dialects: paths, leaf specs, lazy leaves and trees of them.

Nothing here knows Linen, NNX, Orbax or msgpack, and building a tree reads no array.

A *path* is a tuple of keys. A key is its text; the subclasses of ``str`` remember which container the key came
from. They compare and hash by their text, because the same key has different kinds in different files: position 0 of
an optax state is a sequence index in an Orbax train state, the text ``"0"`` in a msgpack file and an ``int`` dict key
in an ``nnx.State``.
"""

from __future__ import annotations

import ast
import enum
import functools
import json
import math
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.errors import UnsupportedCheckpoint, UsageError
from converter.grid import Grid

if TYPE_CHECKING:
    import numpy as np

Key = str


class IntKey(str):
    """A dict key that is an ``int`` in memory (``nnx.State`` uses them for the items of a list)."""

    __slots__ = ()


class IndexKey(str):
    """A position in a list or tuple."""

    __slots__ = ()


class TupleKey(str):
    """A dict key that is a tuple of texts in memory, as nnx.SpectralNorm has them; written as Python writes it."""

    __slots__ = ()


Path = tuple[Key, ...]


# Paths as text ---------------------------------------------------------------------------------------------------


def format_path(path: Path) -> str:
    """Prints a path: ``params/Dense_0/kernel``. Keys that would be ambiguous are quoted as JSON strings.

    ``parse_path`` is the exact inverse, up to the kind of each key.
    """
    return "/".join(_quote(key) for key in path)


@functools.lru_cache(maxsize=1 << 16)
def _quote(key: Key) -> str:
    plain = key and "/" not in key and not key.startswith('"') and key.isprintable() and key == key.strip()
    return str(key) if plain else json.dumps(str(key))


_SEGMENT = re.compile(r'"(?:[^"\\]|\\.)*"(?=/|$)|[^/"][^/]*')


def parse_path(text: str) -> Path:
    """Reads what ``format_path`` prints; every key comes back as a plain name.

    Raises:
      UsageError: an empty segment or an unfinished quote.
    """
    keys: list[Key] = []
    position = 0
    while position < len(text):
        match = _SEGMENT.match(text, position)
        if match is None:
            raise UsageError(
                f"cannot read the path {text!r}: unexpected {text[position]!r} at column {position + 1}",
                'Separate keys by single slashes; put a key that contains a slash in quotes: "a/b"/kernel.',
            )
        segment = match.group()
        keys.append(_unquoted(segment, text) if segment.startswith('"') else segment)
        position = match.end()
        if position < len(text):
            position += 1
            if position == len(text):
                raise UsageError(f"the path {text!r} ends in a slash", "Remove the last slash.")
    return tuple(keys)


def _unquoted(segment: str, text: str) -> Key:
    try:
        return str(json.loads(segment))
    except ValueError as error:
        raise UsageError(
            f"cannot read the path {text!r}: {segment} is no JSON string ({error})",
            "Inside quotes write backslashes, quotes and control characters as JSON does.",
        ) from None


def path_order(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sorting key: alphabetical, but numbers in numeric order (``layers/10`` after ``layers/2``)."""
    return tuple((0, int(key), "") if key.isascii() and key.isdigit() else (1, 0, key) for key in path)


class PathGlob:
    """A pattern over paths: ``*`` and ``?`` match within one key, a key ``**`` matches any number of keys.

    No other character is special.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        keys = parse_path(text)
        if not keys:
            raise UsageError("an empty pattern matches no leaf", "Write a pattern such as 'params/**/kernel'.")
        self._keys = tuple(None if key == "**" else _key_pattern(key) for key in keys)

    def matches(self, path: Path) -> bool:
        return _glob(self._keys, path)

    def __repr__(self) -> str:
        return f"PathGlob({self.text!r})"


def _key_pattern(key: Key) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(character, re.escape(character)) for character in key), re.DOTALL)


def _glob(pattern: tuple[re.Pattern[str] | None, ...], path: Path) -> bool:
    if not pattern:
        return not path
    first, rest = pattern[0], pattern[1:]
    if first is None:
        return any(_glob(rest, path[start:]) for start in range(len(path) + 1))
    return bool(path) and first.fullmatch(path[0]) is not None and _glob(rest, path[1:])


# Leaves ----------------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class LeafSpec:
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
        dimensions = ",".join(map(str, self.shape))
        match self.kind:
            case LeafKind.ARRAY:
                return f"{self.dtype}[{dimensions}]"
            case LeafKind.NUMPY_SCALAR:
                return f"{self.dtype}()"
            case LeafKind.KEY:
                return f"key<{self.dtype}>[{dimensions}]"
            case LeafKind.EMPTY:
                return EMPTY_TEXT[self.dtype]
            case _:
                return self.dtype

    @property
    def size(self) -> int:
        """Number of elements; 0 for an empty leaf, 1 for a Python value."""
        return 0 if self.kind is LeafKind.EMPTY else math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory (NumPy's item size, so one byte for an int4); 0 for everything else."""
        if self.kind in (LeafKind.ARRAY, LeafKind.NUMPY_SCALAR):
            return self.size * item_size(self.dtype)
        return self.size * 4 * KEY_WORDS.get(self.dtype, 2) if self.kind is LeafKind.KEY else 0


KEY_WORDS: Mapping[str, int] = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}
"""uint32 words of one PRNG key by implementation, as ``jax.random.key_data(jax.random.key(0, impl=…))`` shows them."""


def array_spec(dtype: str, shape: Iterable[int] = ()) -> LeafSpec:
    return LeafSpec(LeafKind.ARRAY, dtype, tuple(int(n) for n in shape))


def empty_spec(container: str) -> LeafSpec:
    return LeafSpec(LeafKind.EMPTY, container)


_COMMON = re.compile(
    r"(?:bool|u?int4|float8_(?:e4m3(?:fn|fnuz|b11fnuz)|e5m2|e5m2fnuz))|(?:u?int|float|complex|bfloat)(8|16|32|64|128)"
)
_NOT_AMONG_THEM = frozenset({"float8", "float128", "int128", "uint128", "complex8", "complex16", "complex32"})


def is_common_dtype(name: str) -> bool:
    """Whether the name is one of a dtype that NumPy and ml_dtypes have in every version, found without loading them."""
    return (
        _COMMON.fullmatch(name) is not None
        and name not in _NOT_AMONG_THEM
        and (not name.startswith("bfloat") or name == "bfloat16")
    )


@functools.cache
def item_size(name: str) -> int:
    """Bytes of one element in memory.

    Raises:
      UnsupportedCheckpoint: no such dtype.
    """
    match = _COMMON.fullmatch(name) if is_common_dtype(name) else None
    return int(match[1] or 8) // 8 if match is not None else numpy_dtype(name).itemsize


@functools.cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name, including bfloat16, float8_*, int4 and the other types of ml_dtypes.

    Raises:
      UnsupportedCheckpoint: no such dtype.
    """
    import ml_dtypes  # registers its types with NumPy
    import numpy as np

    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    # NumPy understands more than the names of number types ("f4,f4", ">f4", "object", "void").
    if dtype is not None and dtype.name == name and dtype.kind in "biufcmMV" and dtype.itemsize and not dtype.names:
        return dtype
    raise UnsupportedCheckpoint(
        f"the dtype {name!r} is unknown to NumPy {np.__version__} and ml_dtypes {ml_dtypes.__version__}",
        "Install the version of ml_dtypes that the checkpoint was written with.",
    )


_SUB_BYTE = re.compile(r"u?int[1-7]|float[4-7]_.*")


def is_sub_byte(dtype: str) -> bool:
    """Whether elements of that dtype are smaller than a byte: NumPy and JAX store one to a byte."""
    return _SUB_BYTE.fullmatch(dtype) is not None


def element_bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bytes of each element, uint8 of shape [size, bytes]: what is compared where every bit counts."""
    import numpy as np

    flat = np.ascontiguousarray(array).reshape(-1)
    if is_sub_byte(flat.dtype.name):
        # Stored one to a byte, of which the upper bits mean nothing.
        flat = flat.astype(np.float32)
    return flat.view(np.uint8).reshape(flat.size, flat.dtype.itemsize)


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


def _nowhere() -> None:
    """The grid of a leaf that lies nowhere on disk."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value of a checkpoint: what it is, and how to get it.

    ``fetch`` reads the value when called: a NumPy array (for PRNG keys the uint32 key data, whose last axis holds the
    words), the Python value itself for scalars and text, ``None`` for an empty leaf. Trees built from live objects hand
    out the objects' own arrays.
    """

    spec: LeafSpec
    fetch: Callable[[], Any]
    grid: Callable[[], Grid | None] = _nowhere
    """How the array lies on disk, where it does and somebody can use that. A PRNG key's has an axis for its words."""


class Tree(Mapping[Path, Leaf]):
    """An ordered, immutable mapping from path to leaf.

    Raises:
      UnsupportedCheckpoint: a path stands twice, or one leaf lies below another.
    """

    def __init__(self, leaves: Iterable[tuple[Path, Leaf]] = ()) -> None:
        self._leaves: dict[Path, Leaf] = {}
        self._children: dict[Path, dict[Key, None]] | None = None
        for path, leaf in leaves:
            if path in self._leaves:
                raise UnsupportedCheckpoint(f"{format_path(path)} stands twice in the checkpoint")
            self._leaves[path] = leaf
        above = _above(self._leaves)
        if not above.isdisjoint(self._leaves):
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

    def __repr__(self) -> str:
        return f"Tree({len(self)} leaves)"

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays in memory."""
        return sum(leaf.spec.nbytes for leaf in self.values())

    def children(self, *prefix: Key) -> dict[Key, None]:
        """The keys directly below ``prefix``, in order (as the keys of a dict)."""
        if self._children is None:
            self._children = {}
            for path in self._leaves:
                for depth in range(len(path)):
                    self._children.setdefault(path[:depth], {}).setdefault(path[depth])
        return dict(self._children.get(prefix, {}))


def _above(paths: Iterable[Path]) -> set[Path]:
    """The paths of all containers above the given ones."""
    found: set[Path] = set()
    for path in paths:
        while path and (path := path[:-1]) not in found:
            found.add(path)
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
