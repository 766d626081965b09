"""Which files make a safetensors checkpoint: one, or shards that an index names.

The index is that of Hugging Face's libraries, ``model.safetensors.index.json``: its ``weight_map`` says which file has
which array. The shards are called ``model-00001-of-00003.safetensors``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint, UsageError
from converter.formats.safetensors.header import MAX_HEADER, Header, parse_json, read_header

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".index.json"

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a checkpoint.

    Attributes:
      location: the file that tells all: the only one, or the index.
      headers: what each file that holds arrays says.
    """

    location: FilePath
    headers: Mapping[FilePath, Header]


def is_directory_of_files(directory: FilePath) -> bool:
    return any(child.name.endswith((SUFFIX, SUFFIX + INDEX_SUFFIX)) for child in directory.iterdir())


def find_files(path: FilePath) -> Found:
    """The files of the checkpoint that a file, an index or a directory stands for.

    Raises:
      UnreadableCheckpoint: a file is damaged, or missing, or is not what the index says.
      UnsupportedCheckpoint: an index of other files, or dtypes that cannot be read.
      UsageError: a directory with several checkpoints, or one shard of many.
    """
    location = _choose(path) if path.is_dir() else path
    if location.name.endswith(INDEX_SUFFIX):
        return Found(location, _read_shards(location))
    shard = _SHARD.fullmatch(location.name)
    if shard is not None and int(shard["count"]) > 1:
        raise _only_a_shard(location, shard)
    return Found(location, {location: read_header(location)})


def _choose(directory: FilePath) -> FilePath:
    """The one checkpoint in a directory."""
    names = sorted(child.name for child in directory.iterdir())
    shards = [name for name in names if (match := _SHARD.fullmatch(name)) is not None and int(match["count"]) > 1]
    whole = [name for name in names if name.endswith((SUFFIX, SUFFIX + INDEX_SUFFIX)) and name not in shards]
    # Repositories often hold the same model for several frameworks, and its safetensors file is PyTorch's.
    whole += [name for name in names if name.endswith((".msgpack", ".npz"))] if whole else []
    if len(whole) > 1:
        raise UsageError(f"{directory} holds several checkpoints: {', '.join(whole)}", "Name one of the files.")
    if not whole:
        index = f"{shards[0][: -len('-00001-of-00001') - len(SUFFIX)]}{SUFFIX}{INDEX_SUFFIX}"
        raise UnreadableCheckpoint(
            f"{directory} holds shards ({shards[0]} …), but no index that names them: expected {index}",
            "Copy or download the index too.",
        )
    return directory / whole[0]


def _only_a_shard(file: FilePath, shard: re.Match[str]) -> UsageError:
    index = file.with_name(f"{shard['stem']}{SUFFIX}{INDEX_SUFFIX}")
    problem = f"{file} is shard {int(shard['number'])} of {int(shard['count'])} of a checkpoint"
    if index.is_file():
        return UsageError(problem, f"Name the index instead: {index}")
    return UsageError(f"{problem}, and {index.name} is not beside it", "Copy or download the whole checkpoint.")


# The index -----------------------------------------------------------------------------------------------------------


def _read_shards(index: FilePath) -> dict[FilePath, Header]:
    """The headers of all files that an index names, if index and headers agree."""
    named = _weight_map(index)
    headers: dict[FilePath, Header] = {}
    for name in dict.fromkeys(named.values()):
        file = index.with_name(name)
        if not file.is_file():
            count = sum(each == name for each in named.values())
            raise UnreadableCheckpoint(
                f"{index} names {name} for {count} of its arrays, and there is no such file beside it",
                "Copy or download the missing shards.",
            )
        headers[file] = read_header(file)
    _check_agreement(index, named, headers)
    return headers


def _weight_map(index: FilePath) -> dict[str, str]:
    try:
        if index.stat().st_size > MAX_HEADER:
            raise _damaged(index, f"at most {MAX_HEADER} bytes of JSON", f"{index.stat().st_size}")
        content = parse_json(index.read_bytes())
    except OSError as error:
        raise UnreadableCheckpoint(f"{index} cannot be read: {error.strerror}", "Check its permissions.") from None
    except ValueError as error:
        raise _damaged(index, "JSON", str(error)) from None
    named: Any = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise _damaged(index, "files by names of arrays as weight_map", repr(named)[:80])
    for name in dict.fromkeys(named.values()):
        if not name.endswith(SUFFIX):
            raise UnsupportedCheckpoint(
                f"{index} is the index of {name} and other files, which are not safetensors",
                "Save it as safetensors with the library that wrote it.",
            )
        if FilePath(name).name != name or "\0" in name:
            raise _damaged(index, "names of files beside it", repr(name)[:80])
    return named


def _check_agreement(index: FilePath, named: Mapping[str, str], headers: Mapping[FilePath, Header]) -> None:
    """Each array lies in the file that the index says, and in no other; else something would be lost, or be old."""
    problems: list[str] = []
    for name, file in named.items():
        if name not in headers[index.with_name(file)].arrays:
            problems.append(f"{name!r} is not in {file}, which the index says has it")
    for path, header in headers.items():
        for name in header.arrays:
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


def _damaged(index: FilePath, expected: str, found: str) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(
        f"{index} is damaged, as the index of a safetensors checkpoint: expected {expected}, found {found}",
        "Copy or download it again.",
    )
