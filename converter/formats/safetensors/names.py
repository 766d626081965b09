"""Between the paths of a tree and the flat names of a safetensors file, without loss.

Keys are joined by dots, as everybody does. What such a name does not tell stands in the file's metadata, under one key,
as JSON with these entries, each of them left out where there is nothing to say:

* ``separator``: what joins the keys;
* ``ints``, ``positions``: the names of containers whose numeric keys are ints, or positions of a list;
* ``paths``: the exact path of a name that would be read as another one: a key is a text, an int, ``[position]``
  or ``{"tuple": text}``;
* ``kinds``: what is no array: ``int``, ``float`` and ``bool`` are Python's, ``numpy`` is a NumPy scalar;
* ``empty``: by kind, the names of containers without leaves, and of None; they have no array.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.formats.flat_names import SEPARATORS, separator_of
from converter.formats.safetensors.header import METADATA
from converter.formats.strict_json import parse_json
from converter.paths import IndexKey, IntKey, Key, Path, TupleKey
from converter.tree import EMPTY_TEXT, LeafKind, LeafSpec, Tree

TREE_KEY = "flax_convert.tree"
"""Where all this stands in the metadata."""

RECORD_KEY = "flax_convert.from"
"""Where the metadata say, as JSON, what the file was converted from; see ``converter.formats.provenance``."""

SEPARATOR = "."

KINDS = ("int", "float", "bool", "numpy")


@dataclass(frozen=True, slots=True)
class Naming:
    """How names are read as paths; see the module for the fields."""

    separator: str = SEPARATOR
    ints: Collection[str] = ()
    positions: Collection[str] = ()
    paths: Mapping[str, Path] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    empty: Mapping[str, Collection[str]] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """The path that a name stands for."""
        return self.paths[name] if name in self.paths else self._split(name)

    def _split(self, name: str) -> Path:
        keys: list[Key] = []
        end = -1
        for text in name.split(self.separator):
            container = name[: max(end, 0)]
            key: Key = text
            if (self.ints or self.positions) and _is_int(text):
                key = IntKey(text) if container in self.ints else text
                key = IndexKey(text) if container in self.positions else key
            keys.append(key)
            end += 1 + len(text)
        return tuple(keys)


def _is_int(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(text)) == text if len(text) < 20 else False


# Reading -------------------------------------------------------------------------------------------------------------


def read_naming(metadata: Mapping[str, str], names: Iterable[str]) -> Naming:
    """What the metadata say of the names; where they say nothing, the names themselves tell what joins their keys.

    Raises:
      ValueError: the metadata are damaged.
    """
    text = metadata.get(TREE_KEY)
    if text is None:
        return Naming(separator_of(names))
    said = parse_json(text.encode())
    try:
        return Naming(
            _one_of(SEPARATORS, said["separator"]),
            frozenset(map(_text, said.get("ints", []))),
            frozenset(map(_text, said.get("positions", []))),
            {name: tuple(map(_read_key, path)) for name, path in said.get("paths", {}).items()},
            {name: _one_of(KINDS, kind) for name, kind in said.get("kinds", {}).items()},
            {_one_of(EMPTY_TEXT, kind): list(map(_text, names)) for kind, names in said.get("empty", {}).items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no description of a tree ({error!r})") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _one_of(values: Collection[str], value: Any) -> str:
    if not isinstance(value, str) or value not in values:
        raise ValueError(f"{value!r} is none of {', '.join(values)}")
    return value


def _read_key(key: Any) -> Key:
    match key:
        case str():
            return key
        case bool() | [bool()]:
            raise ValueError(f"{key!r} is no key")
        case int():
            return IntKey(str(key))
        case [int() as position]:
            return IndexKey(str(position))
        case {"tuple": str() as text}:
            return TupleKey(text)
        case _:
            raise ValueError(f"{key!r} is no key")


# Writing -------------------------------------------------------------------------------------------------------------


def name_leaves(tree: Tree) -> dict[Path, str]:
    """A name for every leaf; those of empty ones stand at the end, and give way to the others."""
    ordered = [*tree.full(), *_empty_paths(tree)]
    return dict(zip(ordered, _distinct(map(SEPARATOR.join, ordered)), strict=True))


def _empty_paths(tree: Tree) -> list[Path]:
    return [path for path, leaf in tree.items() if leaf.spec.kind is LeafKind.EMPTY]


def tell_names(tree: Tree, given: Mapping[Path, str]) -> str:
    """What the metadata of a file have to say of its leaves.

    Args:
      tree: what is in the file: all leaves, or a part of them.
      given: the names of these, and perhaps of others.
    """
    empty = _empty_paths(tree)
    names = {path: given[path] for path in (*tree.full(), *empty)}
    plain = Naming(SEPARATOR, *_numbered(names))
    told = {
        "separator": SEPARATOR,
        "ints": sorted(plain.ints),
        "positions": sorted(plain.positions),
        "paths": {
            name: [_spell_key(key) for key in path] for path, name in names.items() if not _same(plain.path(name), path)
        },
        "kinds": {name: kind for path, name in names.items() if (kind := _kind(tree[path].spec))},
        "empty": {
            kind: [names[path] for path in empty if tree[path].spec.dtype == kind]
            for kind in sorted({tree[path].spec.dtype for path in empty})
        },
    }
    content = {entry: value for entry, value in told.items() if value}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _distinct(names: Iterable[str]) -> Iterator[str]:
    """The names, those that stand there already with a number behind them."""
    taken = {METADATA}
    for name in names:
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}#{number}", number + 1
        taken.add(unique)
        yield unique


def _numbered(paths: Iterable[Path]) -> tuple[set[str], set[str]]:
    """The names of containers all of whose numeric keys are ints, and of those where all are positions."""
    classes: dict[Path, set[type[Key]]] = {}
    for path in paths:
        for depth, key in enumerate(path):
            if type(key) is not str or _is_int(key):
                classes.setdefault(path[:depth], set()).add(type(key))
    ints, positions = (
        {SEPARATOR.join(path) for path, found in classes.items() if found == {kind}} for kind in (IntKey, IndexKey)
    )
    return ints, positions


def _same(left: Path, right: Path) -> bool:
    return left == right and all(type(a) is type(b) for a, b in zip(left, right, strict=True))


def _spell_key(key: Key) -> Any:
    if isinstance(key, IntKey) and _is_int(key):
        return int(key)
    if isinstance(key, IndexKey) and _is_int(key):
        return [int(key)]
    return {"tuple": str(key)} if isinstance(key, TupleKey) else str(key)


def _kind(spec: LeafSpec) -> str:
    """What is noted of a leaf that is no array."""
    if spec.kind is LeafKind.NUMPY_SCALAR:
        return "numpy"
    return spec.dtype if spec.kind is LeafKind.SCALAR else ""
