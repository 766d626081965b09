"""Which files make a safetensors checkpoint: one, or shards that an index names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath

from converter.formats import shards
from converter.formats.safetensors.header import Header, read_header

SUFFIX = ".safetensors"
INDEX_SUFFIX = shards.INDEX_SUFFIX

KIND = shards.Kind(SUFFIX, "safetensors", "model")


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
    return any(child.name.endswith((SUFFIX, KIND.index_suffix)) for child in directory.iterdir())


def find_files(path: FilePath) -> Found:
    """The files of the checkpoint that a file, an index or a directory stands for.

    Raises:
      UnreadableCheckpoint: a file is damaged, or missing, or is not what the index says.
      UnsupportedCheckpoint: an index of other files, or dtypes that cannot be read.
      UsageError: a directory with several checkpoints, or one shard of many.
    """
    location = shards.choose_file(path, KIND, (".msgpack", ".npz")) if path.is_dir() else path
    if not location.name.endswith(INDEX_SUFFIX):
        shards.refuse_single_shard(location, KIND)
        return Found(location, {location: read_header(location)})
    named = shards.read_index(location, KIND)
    files = [location.with_name(name) for name in dict.fromkeys(named.values())]
    headers = {file: read_header(file) for file in files}
    shards.check_agreement(location, named, {file: header.arrays for file, header in headers.items()})
    return Found(location, headers)
