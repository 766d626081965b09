"""Which files make a msgpack checkpoint of Hugging Face's: one, or shards that an index names.

``FlaxPreTrainedModel.save_pretrained`` of transformers 4 writes ``flax_model.msgpack``, or beyond 10 GB
``flax_model-00001-of-00002.msgpack`` and so on, with the index ``flax_model.msgpack.index.json``. Names in the index
are keys joined by slashes; each shard is a tree of its own that lacks what the others hold.
"""

from __future__ import annotations

from pathlib import Path as FilePath

from converter.formats import shards

KIND = shards.Kind(".msgpack", "flax msgpack", "flax_model")

OTHERS = (".safetensors", ".safetensors.index.json", ".npz")


def is_index(path: FilePath) -> bool:
    return path.name.endswith(KIND.index_suffix)


def is_model_directory(directory: FilePath) -> bool:
    """Whether it looks like what ``save_pretrained`` makes; that of diffusers puts something in front of the name."""
    names = [child.name for child in directory.iterdir()]
    shard_names = [name for name in names if KIND.shard(name)]
    return bool(shard_names) or any(name.endswith((KIND.stem + KIND.suffix, KIND.index_suffix)) for name in names)


def choose_file(directory: FilePath) -> FilePath:
    """See ``shards.choose_file``."""
    return shards.choose_file(directory, KIND, OTHERS)


def files_of(location: FilePath) -> tuple[dict[str, str], list[FilePath]]:
    """What the index says, nothing where there is none, and the files that hold arrays, in the order of their numbers.

    Raises:
      UnreadableCheckpoint: a damaged index, or a missing file.
      UsageError: one shard of many.
    """
    if not is_index(location):
        shards.refuse_single_shard(location, KIND)
        return {}, [location]
    named = shards.read_index(location, KIND)
    return named, [location.with_name(name) for name in sorted(set(named.values()))]
