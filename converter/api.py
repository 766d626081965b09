"""Conversions between files: plan, convert, verify; and looking at one file: inspect."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Unpack

from converter.conversion import Verify, prepare, silent, verified
from converter.dialects import readings, unreadable
from converter.dialects.dialect import Dialect, Framework
from converter.errors import UnsupportedCheckpoint, UsageError
from converter.formats import (
    FORMAT_TITLES,
    SHARDED,
    SUFFIXES,
    destination_format,
    step_destination,
)
from converter.formats.checkpoint import Checkpoint, Progress, Writing
from converter.opening import open_named, open_source
from converter.options import Options, make_job, read_size
from converter.paths import PathGlob
from converter.planning.plan import Plan
from converter.planning.planner import make_plan
from converter.report import Report
from converter.run import check_destination
from converter.scratch import DEFAULT_BUDGET, room

if TYPE_CHECKING:
    from converter.comparison import Comparison
    from converter.inspection import Inspection


# Files -----------------------------------------------------------------------------------------------------------


def inspect(
    path: str | os.PathLike[str], *, step: int | None = None, item: str | None = None, filters: Sequence[str] = ()
) -> Inspection:
    """Tells what a checkpoint is, from its metadata alone; imports neither jax nor flax.

    Args:
      path: any checkpoint.
      step: which step, where there are several; the latest by default.
      item: which item, where a step holds several; all of them together where none is a default.
      filters: path patterns; only leaves that match one of them are shown and counted.

    Raises:
      UnreadableCheckpoint, UnsupportedCheckpoint: it cannot be read.
      UsageError: no such step or item, or a pattern that matches no leaf.
    """
    from converter.inspection import inspect_path

    return inspect_path(FilePath(path), step=step, item=item, filters=tuple(map(PathGlob, filters)))


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    step_a: int | None = None,
    item_a: str | None = None,
    step_b: int | None = None,
    item_b: str | None = None,
    values: bool = False,
    filters: Sequence[str] = (),
    memory_budget: int | str = DEFAULT_BUDGET,
    progress: Progress = silent,
) -> Comparison:
    """Compares any two checkpoints, whatever their formats, layouts and frameworks; imports neither jax nor flax.

    Args:
      a, b: the checkpoints; neither is written to.
      step_a, item_a, step_b, item_b: which step and item of each.
      values: compare values too, bit for bit where shapes and dtypes agree, and where numbers of one shape have unlike
        dtypes by how far they are apart; without it no array is read.
      filters: path patterns; only leaves that match one of them in either checkpoint are compared.
      memory_budget: bytes, or a text such as ``"512MiB"``, that arrays may take in memory at a time.
      progress: called with (bytes, leaves) as values are compared.

    Returns: ``ok`` says whether they are equal, ``text`` and ``to_json`` what differs.

    Raises:
      UnreadableCheckpoint, UnsupportedCheckpoint: one of them cannot be read.
      UsageError: no such step or item, several items and none chosen, or a pattern that matches no leaf.
    """
    from converter.comparison import compare

    budget = read_size(memory_budget)
    patterns = tuple(map(PathGlob, filters))
    found = compare(FilePath(a), FilePath(b), steps=(step_a, step_b), items=(item_a, item_b), filters=patterns)
    return found.with_values(budget, progress) if values else found


def plan(
    src: str | os.PathLike[str],
    to: Framework,
    *,
    to_format: str = "orbax",
    copy: bool = False,
    compress: bool = False,
    **options: Unpack[Options],
) -> Plan:
    """Plans a conversion without reading an array; ``Plan.problems`` says what would refuse it.

    ``copy`` and ``compress`` are those of ``convert``; ``Plan.strategies`` says how bytes would get to the destination.

    Raises:
      UnreadableCheckpoint, UnsupportedCheckpoint: the source cannot be read, or the format cannot hold a leaf.
      UsageError: the source belongs to ``to`` already, or the options do not fit together.
      ModelError: a model cannot be evaluated.
    """
    return prepare(src, to, to_format=to_format, writing=Writing(copy, compress), **options).planned()


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    to: Framework,
    *,
    to_format: str | None = None,
    as_step: int | None = None,
    max_shard_size: int | str | None = None,
    force: bool = False,
    verify: Verify = True,
    copy: bool = False,
    compress: bool = False,
    memory_budget: int | str = DEFAULT_BUDGET,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Report:
    """Converts a checkpoint and verifies the result; the destination appears complete and verified, or not at all.

    Args:
      src: any checkpoint that ``inspect`` reads; it is never written to.
      dst: the new checkpoint.
      to: the framework to convert to.
      to_format: ``orbax``, ``orbax-v1`` (as ``orbax.checkpoint.v1.save`` lays it out), ``msgpack``, ``hf-msgpack`` (a
        directory with the ``flax_model.msgpack`` that transformers loads) or ``safetensors``; by default what the
        suffix of ``dst`` stands for.
      as_step: make it this step of ``dst``, which may hold others: ``CheckpointManager(dst)`` of Orbax finds it, in
        msgpack ``flax.training.checkpoints``. What the source holds beside the tree (JSON items) is copied along.
      max_shard_size: bytes, or a text such as ``"5GB"``, of arrays in one file of ``hf-msgpack`` (10 GB by default);
        with it ``safetensors`` makes a directory, in which larger checkpoints are shards with an index.
      force: replace an existing ``dst``.
      verify: read the result again and compare it bit for bit; with two models and inputs, compare outputs too.
        ``"full"`` reads it with Orbax, Flax or safetensors itself, which takes the whole checkpoint into memory.
      copy: share no bytes with ``src``. Without it an Orbax destination names the bytes of an Orbax source through hard
        links, where the file system has them: Orbax never changes such files.
      compress: compress arrays of an Orbax destination as Orbax does, except those that stay as they are in an Orbax
        source.
      memory_budget: bytes, or a text such as ``"512MiB"``, that arrays may take in memory at a time.
      progress: called with (bytes, leaves) as work is done.

    Raises:
      UnreadableCheckpoint, UnsupportedCheckpoint: the source cannot be read.
      ConversionRefused: a leaf would be lost, invented or misplaced; all such leaves are listed.
      DestinationError: ``dst`` exists or cannot be written.
      VerificationFailed: the result differs; it is not kept.
      UsageError, ModelError: as for ``plan``.
    """
    to_format = destination_format(FilePath(dst), to_format)
    destination = FilePath(dst) if as_step is None else step_destination(FilePath(dst), to_format, as_step)
    check_destination(FilePath(src), destination, force)
    writing = make_writing(destination, to_format, copy, compress, as_step, max_shard_size)
    conversion = prepare(src, to, to_format=to_format, writing=writing, **options)
    return conversion.run(destination, force=force, verify=verify, memory_budget=memory_budget, progress=progress)


def make_writing(
    destination: FilePath,
    to_format: str,
    copy: bool,
    compress: bool,
    as_step: int | None,
    max_shard_size: int | str | None,
) -> Writing:
    """What the user wants of the destination; see ``convert``.

    Raises:
      UsageError: a size that cannot be read, or that the format or the destination's name has no use for.
    """
    if max_shard_size is None:
        return Writing(copy, compress, as_step=as_step is not None)
    if to_format not in SHARDED:
        raise UsageError(
            f"{FORMAT_TITLES[to_format]} is not split into shards",
            f"Leave out --max-shard-size, or choose {' or '.join(SHARDED)} with --to-format.",
        )
    if to_format == "safetensors" and SUFFIXES.get(destination.suffix) == to_format:
        raise UsageError(
            f"{destination} is the name of one file, and --max-shard-size makes a directory of files",
            "Name a directory and give --to-format safetensors, or leave out --max-shard-size.",
        )
    size = read_size(max_shard_size, least=1, what="the size of a shard")
    return Writing(copy, compress, as_step=as_step is not None, max_shard=size)


def verify(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    full: bool = False,
    memory_budget: int | str = DEFAULT_BUDGET,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Report:
    """Checks that ``dst`` is what converting ``src`` gives, in the layout that ``dst`` has: structure, values, outputs.

    The options have to be those of the conversion (what was dropped, the models). ``full`` and ``memory_budget`` are as
    for ``convert``.

    Raises:
      as ``plan``; also ``UsageError`` where both checkpoints belong to the same framework.
    """
    source = open_source(FilePath(src), step=options.get("step"), item=options.get("item"))
    destination = open_named(FilePath(dst))
    if full:
        from converter.verification.libraries import require_reader

        require_reader(destination.format)
    target = _opposite(source, destination)
    job = make_job(target.framework, options, to_format=destination.format, target=target)
    # Whichever random state the destination holds, the source has nothing to say about it.
    made = replace(make_plan(source.tree, replace(job.request, fill_random_state=False)), path=str(src))
    made.check()
    with room(FilePath(tempfile.gettempdir()), read_size(memory_budget)):
        made.check_values()
        return verified(Report(str(src), str(dst), made), made, job, source.tree, destination, progress, {}, full)


def _opposite(source: Checkpoint, destination: Checkpoint) -> Dialect:
    """The reading of the destination that suits the source: the two most plausible ones of different frameworks.

    Bare dicts of arrays may be either. From Linen to NNX such a dict stays one by default, the other way it gets a
    level of collections, so where nothing else tells, the destination is NNX.
    """
    for checkpoint in (source, destination):
        if unreadable(checkpoint.tree):
            raise UnsupportedCheckpoint(f"{checkpoint.path} cannot be verified: {unreadable(checkpoint.tree)}")
    possible = [
        (of_source + of_target, target.framework != "nnx", target)
        for of_source, dialect in enumerate(readings(source.tree))
        for of_target, target in enumerate(readings(destination.tree))
        if dialect.framework != target.framework
    ]
    if possible:
        return min(possible, key=lambda each: each[:2])[2]
    raise UsageError(
        f"{source.path} and {destination.path} are both {readings(source.tree)[0].title}",
        "verify compares a checkpoint with its conversion to the other framework.",
    )
