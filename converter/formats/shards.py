"""Checkpoints in several files, and the index that says which array lies in which of them.

The index is that of Hugging Face's libraries, ``model.safetensors.index.json`` or ``flax_model.msgpack.index.json``:
its ``weight_map`` names the file of each array. The files are called ``model-00001-of-00003.safetensors``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint, UsageError
from converter.formats.strict_json import parse_json

INDEX_SUFFIX = ".index.json"

MAX_INDEX = 100_000_000
"""Bytes; that of a million arrays is about as long."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What such files are called.

    Attributes:
      suffix: how their names end.
      title: the format, for people.
      stem: what their names begin with where they are written.
    """

    suffix: str
    title: str
    stem: str

    @property
    def index_suffix(self) -> str:
        return self.suffix + INDEX_SUFFIX

    def shard(self, name: str) -> re.Match[str] | None:
        """The parts of the name of one of several files: ``stem``, ``number``, ``count``; None for other names."""
        match = re.fullmatch(rf"(?P<stem>.+)-(?P<number>\d{{5}})-of-(?P<count>\d{{5}}){re.escape(self.suffix)}", name)
        return match if match is not None and int(match["count"]) > 1 else None

    def name(self, stem: str, number: int, count: int) -> str:
        """The name of a file; ``number`` counts from 1."""
        return f"{stem}{self.suffix}" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}{self.suffix}"


def refuse_single_shard(file: FilePath, kind: Kind) -> None:
    """Refuses one of several files.

    Raises:
      UsageError
    """
    shard = kind.shard(file.name)
    if shard is None:
        return
    index = file.with_name(f"{shard['stem']}{kind.index_suffix}")
    problem = f"{file} is shard {int(shard['number'])} of {int(shard['count'])} of a checkpoint"
    if index.is_file():
        raise UsageError(problem, f"Name the index instead: {index}")
    raise UsageError(f"{problem}, and {index.name} is not beside it", "Copy or download the whole checkpoint.")


def choose_file(directory: FilePath, kind: Kind, others: tuple[str, ...]) -> FilePath:
    """The one checkpoint of the kind in a directory: a file, or an index.

    Args:
      others: suffixes of files of other formats that a directory may hold too, and that are not chosen from.

    Raises:
      UnreadableCheckpoint: shards without an index.
      UsageError: several checkpoints.
    """
    names = sorted(child.name for child in directory.iterdir())
    shards = [name for name in names if kind.shard(name) is not None]
    whole = [name for name in names if name.endswith((kind.suffix, kind.index_suffix)) and name not in shards]
    # Repositories often hold the same model for several frameworks, and its safetensors file is PyTorch's.
    whole = sorted({*whole, *(name for name in names if whole and name.endswith(others))})
    if len(whole) > 1:
        raise UsageError(f"{directory} holds several checkpoints: {', '.join(whole)}", "Name one of the files.")
    if not whole:
        stem = shards[0][: -len("-00001-of-00001") - len(kind.suffix)]
        raise UnreadableCheckpoint(
            f"{directory} holds shards ({shards[0]} …), but no index that names them: "
            f"expected {stem}{kind.index_suffix}",
            "Copy or download the index too.",
        )
    return directory / whole[0]


# The index -----------------------------------------------------------------------------------------------------------


def read_index(index: FilePath, kind: Kind) -> dict[str, str]:
    """The file of each array, by its name there; all of them exist.

    Raises:
      UnreadableCheckpoint: it is damaged, or a file is missing.
      UnsupportedCheckpoint: it names files of another kind.
    """
    named = _weight_map(index, kind)
    for name in dict.fromkeys(named.values()):
        if not index.with_name(name).is_file():
            count = sum(each == name for each in named.values())
            raise UnreadableCheckpoint(
                f"{index} names {name} for {count} of its arrays, and there is no such file beside it",
                "Copy or download the missing shards.",
            )
    return named


def _weight_map(index: FilePath, kind: Kind) -> dict[str, str]:
    try:
        if index.stat().st_size > MAX_INDEX:
            raise _damaged(index, kind, f"at most {MAX_INDEX} bytes of JSON", f"{index.stat().st_size}")
        content = parse_json(index.read_bytes())
    except OSError as error:
        raise UnreadableCheckpoint(f"{index} cannot be read: {error.strerror}", "Check its permissions.") from None
    except ValueError as error:
        raise _damaged(index, kind, "JSON", str(error)) from None
    named: Any = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise _damaged(index, kind, "files by names of arrays as weight_map", repr(named)[:80])
    for name in dict.fromkeys(named.values()):
        if not name.endswith(kind.suffix):
            raise UnsupportedCheckpoint(
                f"{index} is the index of {name} and other files, which are not {kind.title}",
                f"Save it as {kind.title} with the library that wrote it.",
            )
        if FilePath(name).name != name or "\0" in name:
            raise _damaged(index, kind, "names of files beside it", repr(name)[:80])
    return named


def check_agreement(index: FilePath, named: Mapping[str, str], held: Mapping[FilePath, Iterable[str]]) -> None:
    """Each array lies in the file that the index says, and in no other; else something would be lost, or be old.

    Args:
      held: the names of the arrays in each file.

    Raises:
      UnreadableCheckpoint
    """
    problems: list[str] = []
    found = {path: frozenset(names) for path, names in held.items()}
    for name, file in named.items():
        if name not in found[index.with_name(file)]:
            problems.append(f"{name!r} is not in {file}, which the index says has it")
    for path, names in held.items():
        for name in names:
            if name not in named:
                problems.append(f"{name!r} is in {path.name}, and the index does not name it")
            elif named[name] != path.name:
                problems.append(f"{name!r} is in {path.name} too, and the index says {named[name]} has it")
    if problems:
        shown = [f"  {problem}" for problem in problems[:8]]
        if len(problems) > len(shown):
            shown.append(f"  … and {len(problems) - len(shown)} more")
        raise UnreadableCheckpoint(
            "\n".join([f"{index} and its shards do not belong together:", *shown]),
            "Files of two checkpoints are probably mixed: copy or download all of one of them.",
        )


def _damaged(index: FilePath, kind: Kind, expected: str, found: str) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(
        f"{index} is damaged, as the index of a {kind.title} checkpoint: expected {expected}, found {found}",
        "Copy or download it again.",
    )
