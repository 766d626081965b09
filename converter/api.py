"""Conversions between files: plan, convert, verify; and looking at one file: inspect."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Unpack

from converter.dialects import readings, unreadable
from converter.dialects.dialect import Dialect, Framework
from converter.errors import UnsupportedCheckpoint, UsageError, VerificationFailed
from converter.formats import FORMAT_TITLES, FORMATS, destination_format, open_checkpoint
from converter.formats.checkpoint import Checkpoint, Format, Progress
from converter.inspection import Inspection, inspect_checkpoint
from converter.live import live_variables, restore_nnx
from converter.options import Job, Options, make_job
from converter.planning.plan import Plan
from converter.planning.planner import make_plan
from converter.report import Report
from converter.run import check_destination, write_atomically
from converter.training_state import Part
from converter.tree import Tree, format_path
from converter.verification.outputs import OutputsResult, compare_outputs
from converter.verification.structure import compare_structure
from converter.verification.values import compare_values


def _silent(nbytes: int, leaves: int) -> None:
    """Progress nobody looks at."""


# Files -----------------------------------------------------------------------------------------------------------


def inspect(path: str | os.PathLike[str], *, step: int | None = None, item: str | None = None) -> Inspection:
    """Tells what a checkpoint is, from its metadata alone; imports neither jax nor flax.

    Raises:
      UnreadableCheckpoint, UnsupportedCheckpoint: it cannot be read.
      UsageError: no such step or item.
    """
    return inspect_checkpoint(open_checkpoint(FilePath(path), step=step, item=item))


SHOWN_OBJECTIONS = 40


@dataclass(frozen=True, slots=True)
class Conversion:
    """A planned conversion: everything is known, no array has been read.

    Attributes:
      source: the opened checkpoint.
      format: what the destination is written as.
      job: the evaluated options.
      plan: what will be done; its ``problems`` say what refuses it.
    """

    source: Checkpoint
    format: Format
    job: Job
    plan: Plan

    def run(
        self,
        destination: FilePath,
        *,
        force: bool = False,
        verify: bool = True,
        progress: Progress = _silent,
    ) -> Report:
        """Executes the plan; see ``convert`` for the arguments and errors."""
        check_destination(self.source.path, destination, force)
        self.plan.check()
        self.plan.check_values()
        report = Report(str(self.source.path), str(destination), self.plan)

        def check(written: FilePath) -> None:
            nonlocal report
            if verify:
                found = self.format.open(written).tree
                report = _verified(report, self.plan, self.job, self.source.tree, found, progress)
                if not report.ok:
                    advice = "Nothing was kept. --no-verify writes the result all the same."
                    raise VerificationFailed(report.text(), report, advice)

        write_atomically(self.plan.tree(), destination, self.format, force=force, check=check, progress=progress)
        return report


def prepare(src: str | os.PathLike[str], to: Framework, *, to_format: str, **options: Unpack[Options]) -> Conversion:
    """Opens a checkpoint and plans its conversion; see ``plan`` for the errors."""
    format = FORMATS[to_format]
    source = open_checkpoint(FilePath(src), step=options.get("step"), item=options.get("item"))
    job = make_job(to, options, to_format=to_format)
    made = make_plan(source.tree, job.request)
    others = [name for name in source.items if name != source.item]
    if others:
        note = f"only the item {source.item} is converted, not {', '.join(others)} (--item chooses)"
        made = replace(made, notes=(*made.notes, note))
    made = replace(made, path=str(src))
    if not made.problems:
        _require_storable(made, format)
    return Conversion(source, format, job, made)


def _require_storable(made: Plan, format: Format) -> None:
    """Refuses leaves that the format has no form for, by the names they have in the source."""
    objections = format.objections(made.tree())
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


def plan(src: str | os.PathLike[str], to: Framework, *, to_format: str = "orbax", **options: Unpack[Options]) -> Plan:
    """Plans a conversion without reading an array; ``Plan.problems`` says what would refuse it.

    Raises:
      UnreadableCheckpoint, UnsupportedCheckpoint: the source cannot be read, or the format cannot hold a leaf.
      UsageError: the source belongs to ``to`` already, or the options do not fit together.
      ModelError: a model cannot be evaluated.
    """
    return prepare(src, to, to_format=to_format, **options).plan


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    to: Framework,
    *,
    to_format: str | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Progress = _silent,
    **options: Unpack[Options],
) -> Report:
    """Converts a checkpoint and verifies the result; the destination appears complete and verified, or not at all.

    Args:
      src: any checkpoint that ``inspect`` reads; it is never written to.
      dst: the new checkpoint.
      to: the framework to convert to.
      to_format: ``orbax`` or ``msgpack``; by default what the suffix of ``dst`` stands for.
      force: replace an existing ``dst``.
      verify: read the result again and compare it bit for bit; with two models and inputs, compare outputs too.
      progress: called with (bytes, leaves) as work is done.

    Raises:
      UnreadableCheckpoint, UnsupportedCheckpoint: the source cannot be read.
      ConversionRefused: a leaf would be lost, invented or misplaced; all such leaves are listed.
      DestinationError: ``dst`` exists or cannot be written.
      VerificationFailed: the result differs; it is not kept.
      UsageError, ModelError: as for ``plan``.
    """
    destination = FilePath(dst)
    check_destination(FilePath(src), destination, force)
    conversion = prepare(src, to, to_format=destination_format(destination, to_format), **options)
    return conversion.run(destination, force=force, verify=verify, progress=progress)


def verify(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    progress: Progress = _silent,
    **options: Unpack[Options],
) -> Report:
    """Checks that ``dst`` is what converting ``src`` gives, in the layout that ``dst`` has: structure, values, outputs.

    The options have to be those of the conversion (what was dropped, the models).

    Raises:
      as ``plan``; also ``UsageError`` where both checkpoints belong to the same framework.
    """
    source = open_checkpoint(FilePath(src), step=options.get("step"), item=options.get("item"))
    destination = open_checkpoint(FilePath(dst))
    target = _opposite(source, destination)
    job = make_job(target.framework, options, to_format=destination.format, target=target)
    # Whichever random state the destination holds, the source has nothing to say about it.
    made = replace(make_plan(source.tree, replace(job.request, fill_random_state=False)), path=str(src))
    made.check()
    made.check_values()
    return _verified(Report(str(src), str(dst), made), made, job, source.tree, destination.tree, progress)


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


def _verified(report: Report, made: Plan, job: Job, source: Tree, destination: Tree, progress: Progress) -> Report:
    """The report with all checks that can be made."""
    structure = compare_structure(made.steps, destination)
    values = compare_values(made.steps, destination, progress)
    report = replace(report, structure=structure, values=values)
    if not report.ok or job.request.nnx_model is None or job.request.linen_model is None:
        return report
    if not made.source.lift(source).state.has(Part.VARIABLES):  # an optimizer alone: there is nothing to run with
        return report
    return replace(report, outputs=_outputs(made, job, source, destination))


def _outputs(made: Plan, job: Job, source: Tree, destination: Tree) -> OutputsResult:
    """Runs both models, each with the variables of its own checkpoint as it is on disk."""
    linen, nnx = job.request.linen_model, job.request.nnx_model
    assert linen is not None and nnx is not None and job.inputs is not None
    sides = {made.source.framework: made.source.lift(source), made.target.framework: made.target.lift(destination)}
    variables = live_variables(sides["linen"].state)
    module = restore_nnx(sides["nnx"].state, nnx)
    module.eval()
    return compare_outputs(linen.module, variables, module, job.inputs, job.linen_kwargs, job.nnx_kwargs)
