"""A planned conversion of a checkpoint: planning it, carrying it out, and checking the result."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal, Unpack

from converter import __version__
from converter.dialects.dialect import Framework
from converter.errors import UnreadableCheckpoint, VerificationFailed
from converter.formats import FORMAT_TITLES, FORMATS, takes_along
from converter.formats.checkpoint import PLAIN, Checkpoint, Format, Progress, Writing, Written, refuse_objections
from converter.formats.provenance import KEY as PROVENANCE
from converter.formats.provenance import Provenance, read_record
from converter.opening import open_source
from converter.options import Job, Options, make_job, read_size
from converter.paths import Path
from converter.planning.plan import Plan
from converter.planning.planner import make_plan
from converter.report import Report
from converter.run import check_destination, write_atomically
from converter.scratch import DEFAULT_BUDGET, room
from converter.training_state import Part
from converter.tree import Tree
from converter.verification.structure import compare_structure
from converter.verification.values import compare_values

if TYPE_CHECKING:
    from converter.verification.bisection import VariableLink
    from converter.verification.outputs import OutputsResult


def silent(nbytes: int, leaves: int) -> None:
    """Progress nobody looks at."""


Verify = bool | Literal["full"]

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

    def planned(self) -> Plan:
        """The plan, after a look at where every array lies on disk.

        Raises:
          UnreadableCheckpoint: chunks of the source are missing.
        """
        self.plan.moving()
        return self.plan

    def run(
        self,
        destination: FilePath,
        *,
        force: bool = False,
        verify: Verify = True,
        memory_budget: int | str = DEFAULT_BUDGET,
        progress: Progress = silent,
    ) -> Report:
        """Executes the plan; see ``convert`` for the arguments and errors."""
        budget = read_size(memory_budget)
        if verify == "full":
            from converter.verification.libraries import require_reader

            require_reader(self.format.name)
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
                report = verified(
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
        made = replace(made, moving=functools.cache(functools.partial(format.strategies, tree, writing)))
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
    if objections := format.objections(tree):
        held = {step.target: step.sources[0].source if step.sources else step.target for step in made.steps}
        refuse_objections(FORMAT_TITLES[format.name], {held[path]: why for path, why in objections.items()})


def verified(
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

        values = compare_with_library(made.steps, found, progress)
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
