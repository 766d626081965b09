"""Conversions between files: plan, convert, verify; and looking at one file: inspect."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal, Unpack

from converter import __version__
from converter.dialects import readings, unreadable
from converter.dialects.dialect import Dialect, Framework
from converter.errors import UnreadableCheckpoint, UnsupportedCheckpoint, UsageError, VerificationFailed
from converter.formats import (
    FORMAT_TITLES,
    FORMATS,
    destination_format,
    open_checkpoint,
    step_destination,
    takes_along,
)
from converter.formats.checkpoint import PLAIN, Checkpoint, Format, Progress, Writing, Written
from converter.formats.provenance import KEY as PROVENANCE
from converter.formats.provenance import Provenance, read_record
from converter.opening import open_source
from converter.options import Job, Options, make_job, read_size
from converter.planning.plan import Plan
from converter.planning.planner import make_plan
from converter.report import Report
from converter.run import check_destination, write_atomically
from converter.scratch import DEFAULT_BUDGET, room
from converter.training_state import Part
from converter.tree import Path, PathGlob, Tree, format_path
from converter.verification.structure import compare_structure
from converter.verification.values import compare_values

if TYPE_CHECKING:
    from converter.comparison import Comparison
    from converter.inspection import Inspection
    from converter.verification.bisection import VariableLink
    from converter.verification.outputs import OutputsResult


def _silent(nbytes: int, leaves: int) -> None:
    """Progress nobody looks at."""


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
    progress: Progress = _silent,
) -> Comparison:
    """Compares any two checkpoints, whatever their formats, layouts and frameworks; imports neither jax nor flax.

    Args:
      a, b: the checkpoints; neither is written to.
      step_a, item_a, step_b, item_b: which step and item of each.
      values: compare values too, bit for bit, where shapes and dtypes agree; without it no array is read.
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


Verify = bool | Literal["full"]

SHOWN_OBJECTIONS = 40

Stamps = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Conversion:
    """A planned conversion: everything is known, no array has been read.

    Attributes:
      source: the opened checkpoint.
      format: what the destination is written as.
      job: the evaluated options.
      plan: what will be done; its ``problems`` say what refuses it.
      tree: what the plan makes; empty where it has problems.
      writing: what the user wants of the destination.
      stamps: what tells that the files of the source are still those that were opened; see ``_stamps``.
    """

    source: Checkpoint
    format: Format
    job: Job
    plan: Plan
    tree: Tree
    writing: Writing = PLAIN
    stamps: Stamps = ()

    def run(
        self,
        destination: FilePath,
        *,
        force: bool = False,
        verify: Verify = True,
        memory_budget: int | str = DEFAULT_BUDGET,
        progress: Progress = _silent,
    ) -> Report:
        """Executes the plan; see ``convert`` for the arguments and errors."""
        budget = read_size(memory_budget)
        if verify == "full":
            _require_reader(self.format.name)
        for path in (self.source.path, *self.source.files):
            check_destination(path, destination, force)
        self.plan.check()
        with room(_existing(destination), budget):
            self.plan.check_values()
        report = Report(str(self.source.path), str(destination), self.plan)

        def check(temporary: FilePath, written: Written) -> None:
            nonlocal report
            report = replace(report, written=written)
            self._require_the_same_source()
            if verify:
                found = self.format.open(temporary)
                report = _verified(
                    report, self.plan, self.job, self.source.tree, found, progress, written.digests, verify == "full"
                )
                if not report.ok:
                    advice = "Nothing was kept. --no-verify writes the result all the same."
                    raise VerificationFailed(report.text(), report, advice)
                self._require_the_same_source()

        write_atomically(
            self.tree,
            destination,
            self.format,
            force=force,
            check=check,
            progress=progress,
            writing=self.writing,
            budget=budget,
        )
        return report

    def _require_the_same_source(self) -> None:
        if _stamps(self.source) != self.stamps:
            raise UnreadableCheckpoint(
                f"{self.source.location} was replaced or written to while it was converted",
                "Wait until the program that writes it is done, and start again.",
            )


def _stamps(source: Checkpoint) -> Stamps:
    """Which files have these names, and when they were last written to; None for directories.

    What Orbax has written is never written to again, and its files are named by their content or at random. Files of a
    single name are saved over, and copies open them by name.
    """

    def stamp(file: FilePath) -> tuple[int, ...] | None:
        try:
            found = os.stat(file)
        except OSError:
            return ()
        return None if stat.S_ISDIR(found.st_mode) else (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    return tuple(stamp(file) for file in (source.location, *source.files))


def _require_reader(format: str) -> None:
    from converter.verification.libraries import require_reader

    require_reader(format)


def _existing(destination: FilePath) -> FilePath:
    """The innermost directory above the destination that exists."""
    return next(parent for parent in FilePath(os.path.abspath(destination)).parents if parent.is_dir())


def prepare(
    src: str | os.PathLike[str],
    to: Framework,
    *,
    to_format: str,
    writing: Writing = PLAIN,
    **options: Unpack[Options],
) -> Conversion:
    """Opens a checkpoint and plans its conversion; see ``plan`` for the errors."""
    format = FORMATS[to_format]
    source = open_source(FilePath(src), step=options.get("step"), item=options.get("item"))
    stamps = _stamps(source)
    job = make_job(to, options, to_format=to_format)
    made = make_plan(source.tree, job.request)
    notes = _left_beside(source, takes_along(to_format, as_step=writing.as_step))
    made = replace(made, path=str(src), notes=(*made.notes, *notes))
    tree = Tree() if made.problems else made.tree()
    if not made.problems:
        _require_storable(made, tree, format)
        made = replace(made, strategies=format.strategies(tree, writing))
    writing = replace(writing, metadata=_metadata(source, made, job), attached=source.attached)
    return Conversion(source, format, job, made, tree, writing, stamps)


def _left_beside(source: Checkpoint, goes_along: bool) -> Iterator[str]:
    """What the checkpoint holds beside what is converted, and what becomes of it."""
    others = [name for name in source.items if name not in (source.item, *source.attached)]
    if source.item is not None and others:
        yield f"only the item {source.item} is converted, not {', '.join(others)} (--item chooses)"
    if source.attached:
        listed = ", ".join(f"{name} ({each.kind})" for name, each in source.attached.items())
        behind = "stays behind (--as-step N or --to-format orbax-v1 takes it along)"
        yield f"{listed} {'goes along as it is' if goes_along else behind}"


def _metadata(source: Checkpoint, made: Plan, job: Job) -> dict[str, Any]:
    """What the destination says of itself: what the source had noted, and what was converted from what."""
    rules = job.request.rules
    record = Provenance(
        version=__version__,
        direction=f"{made.source.framework}-to-{made.target.framework}",
        source=FilePath(os.path.abspath(source.path)).name,
        source_format=source.format,
        source_dialect=made.source.title,
        dialect=made.target.title,
        step=source.step,
        item=source.item or ", ".join(name for name in source.items if name not in source.attached) or None,
        rules=rules.digest if rules is not None else "",
        before=read_record(source.metadata),
    )
    return {**source.metadata, PROVENANCE: record.to_json()}


def _require_storable(made: Plan, tree: Tree, format: Format) -> None:
    """Refuses leaves that the format has no form for, by the names they have in the source."""
    objections = format.objections(tree)
    if not objections:
        return
    held = {step.target: step.sources[0].source if step.sources else step.target for step in made.steps}
    lines = [f"  {format_path(held[path])}: {why}" for path, why in objections.items()]
    shown = lines[:SHOWN_OBJECTIONS]
    if len(lines) > len(shown):
        shown.append(f"  … and {len(lines) - len(shown)} more")
    first = format_path(held[next(iter(objections))])
    raise UnsupportedCheckpoint(
        "\n".join([f"{FORMAT_TITLES[format.name]} cannot hold these leaves:", *shown]),
        f"Leave them behind with --drop '{first}' and so on, or choose another format with --to-format.",
    )


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
    return prepare(src, to, to_format=to_format, writing=Writing(copy, compress), **options).plan


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
    progress: Progress = _silent,
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
      max_shard_size: bytes, or a text such as ``"5GB"``, of arrays in one file of ``hf-msgpack`` (10 GB by default).
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
    writing = make_writing(to_format, copy, compress, as_step, max_shard_size)
    conversion = prepare(src, to, to_format=to_format, writing=writing, **options)
    return conversion.run(destination, force=force, verify=verify, memory_budget=memory_budget, progress=progress)


def make_writing(
    to_format: str, copy: bool, compress: bool, as_step: int | None, max_shard_size: int | str | None
) -> Writing:
    """What the user wants of the destination; see ``convert``.

    Raises:
      UsageError: a size that cannot be read, or that the format has no use for.
    """
    if max_shard_size is None:
        return Writing(copy, compress, as_step=as_step is not None)
    if to_format != "hf-msgpack":
        raise UsageError(f"{FORMAT_TITLES[to_format]} is not split into shards", "Leave out --max-shard-size.")
    size = read_size(max_shard_size, least=1, what="the size of a shard")
    return Writing(copy, compress, as_step=as_step is not None, max_shard=size)


def verify(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    full: bool = False,
    memory_budget: int | str = DEFAULT_BUDGET,
    progress: Progress = _silent,
    **options: Unpack[Options],
) -> Report:
    """Checks that ``dst`` is what converting ``src`` gives, in the layout that ``dst`` has: structure, values, outputs.

    The options have to be those of the conversion (what was dropped, the models). ``full`` and ``memory_budget`` are as
    for ``convert``.

    Raises:
      as ``plan``; also ``UsageError`` where both checkpoints belong to the same framework.
    """
    source = open_source(FilePath(src), step=options.get("step"), item=options.get("item"))
    destination = open_checkpoint(FilePath(dst))
    if full:
        _require_reader(destination.format)
    target = _opposite(source, destination)
    job = make_job(target.framework, options, to_format=destination.format, target=target)
    # Whichever random state the destination holds, the source has nothing to say about it.
    made = replace(make_plan(source.tree, replace(job.request, fill_random_state=False)), path=str(src))
    made.check()
    with room(FilePath(tempfile.gettempdir()), read_size(memory_budget)):
        made.check_values()
        return _verified(Report(str(src), str(dst), made), made, job, source.tree, destination, progress, {}, full)


def _opposite(source: Checkpoint, destination: Checkpoint) -> Dialect:
    """The most plausible reading of the destination as the framework that the source can be converted to."""
    for checkpoint in (source, destination):
        if unreadable(checkpoint.tree):
            raise UnsupportedCheckpoint(f"{checkpoint.path} cannot be verified: {unreadable(checkpoint.tree)}")
    convertible = {"linen" if dialect.framework == "nnx" else "nnx" for dialect in readings(source.tree)}
    for target in readings(destination.tree):
        if target.framework in convertible:
            return target
    raise UsageError(
        f"{source.path} and {destination.path} are both {readings(source.tree)[0].title}",
        "verify compares a checkpoint with its conversion to the other framework.",
    )


def _verified(
    report: Report,
    made: Plan,
    job: Job,
    source: Tree,
    found: Checkpoint,
    progress: Progress,
    digests: Mapping[Path, int],
    full: bool,
) -> Report:
    """The report with all checks that can be made."""
    destination = found.tree
    structure = compare_structure(made.steps, destination)
    if full:
        from converter.verification.libraries import compare_with_library

        values = compare_with_library(made.steps, found.location, found.format, progress)
    else:
        values = compare_values(made.steps, destination, progress, digests)
    report = replace(report, structure=structure, values=values)
    if not report.ok or job.request.nnx_model is None or job.request.linen_model is None:
        return report
    if not made.source.lift(source).state.has(Part.VARIABLES):  # an optimizer alone: there is nothing to run with
        return report
    return replace(report, outputs=_outputs(made, job, source, destination))


def _outputs(made: Plan, job: Job, source: Tree, destination: Tree) -> OutputsResult:
    """Runs both models, each with the variables of its own checkpoint as it is on disk."""
    from converter.live import live_variables, restore_nnx
    from converter.verification.bisection.links import links_of, source_paths, target_paths
    from converter.verification.outputs import compare_outputs

    linen, nnx = job.request.linen_model, job.request.nnx_model
    assert linen is not None and nnx is not None and job.signature is not None
    lifted, target = made.source.lift(source).state, made.target.lift(destination).state
    to_linen = made.target.framework == "linen"
    on_linen, on_nnx = (target, lifted) if to_linen else (lifted, target)
    module = restore_nnx(on_nnx, nnx)
    module.eval()

    def links() -> Sequence[VariableLink]:
        paths = source_paths(lifted), target_paths(target, made.target)
        return links_of(made.steps, *paths, to_linen=to_linen)

    return compare_outputs(linen.module, live_variables(on_linen), module, job.signature, job.seeds, links)
