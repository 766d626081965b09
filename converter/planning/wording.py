"""How plans put things into words: several paths in a few characters, and what an operation demands."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from converter.folding import fold
from converter.paths import Key, Path, format_keys, format_path
from converter.rules.operations import Agree, Cast, Chain, Drop, Operation


def demand(operation: Operation) -> str:
    """What an operation needs of the values so that nothing is lost; empty if nothing."""
    match operation:
        case Chain():
            return ", ".join(filter(None, map(demand, operation.operations)))
        case Drop(expected=number) if number is not None:
            return f"all values are {number:g}"
        case Agree(required=True):
            return "all of them hold the same values"
        case Cast(exact=True):
            return f"every value survives {operation.name}"
    return ""


def several(paths: Sequence[Path]) -> str:
    """Several paths in a few words: ``params/layers_{0…11}/kernel``, ``params/cell/{ir,iz,in}/kernel``."""
    return format_path(paths[0]) if len(paths) == 1 else " + ".join(several_parts(paths))


def several_keys(paths: Sequence[Path]) -> Sequence[str]:
    """The same, cut at its slashes."""
    return format_keys(paths[0]) if len(paths) == 1 else several(paths).split("/")


def several_parts(paths: Sequence[Path]) -> list[str]:
    """The same as a list: one text where the paths are all combinations of some keys, several where they are not."""
    columns = [list(dict.fromkeys(column)) for column in zip(*paths, strict=False)]
    together = len(set(map(len, paths))) == 1 and math.prod(map(len, columns)) == len(set(paths))
    if not together:
        return fold((format_path(path),) for path in paths)
    return ["/".join(map(_either, columns))]


def _either(keys: Sequence[Key]) -> str:
    texts = fold((format_path((key,)),) for key in keys)
    return texts[0] if len(texts) == 1 else "{" + ",".join(texts) + "}"


def section(title: str, rows: Sequence[tuple[str, ...]], plain: Collection[int] = ()) -> list[str]:
    return ["", f"{title}:", *("  " + line for line in fold(rows, plain))] if rows else []


def count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def size_text(nbytes: int) -> str:
    """Bytes for people, in powers of 1024: ``1.5 MiB``."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
