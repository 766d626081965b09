"""Aligning two models: which variable is which, how sure that is, and what remains open."""

from __future__ import annotations

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from converter.models import Model
from converter.models.program import Program
from converter.rules.align.biases import ApartFromBiases, paired_apart_from_biases
from converter.rules.align.canonical import Sketch, additive
from converter.rules.align.confidence import Confidence, confidence_of
from converter.rules.align.correspondence import Group, Misfit, groups_of
from converter.rules.align.elements import paired_elements
from converter.rules.align.levels import Level, Pair, Pairing, paired
from converter.rules.align.recipes import Recipe
from converter.rules.align.sketches import Sketches
from converter.rules.align.trying import TRIES, choices
from converter.rules.align.unused import paired_by_name
from converter.rules.align.uses import EACH
from converter.rules.align.views import Region
from converter.rules.link import Name, format_name
from converter.rules.matching.board import Piece
from converter.rules.matching.evidence import Evidence, Measured
from converter.rules.operations import REWRAP, Drop, fill_number
from converter.training_state import PARAMS
from converter.tree import LeafSpec

Specs = Mapping[Name, LeafSpec]

ONE_SIDED = "only {} adds it: it has to be zero"

SILENT = "the outputs do not depend on it"

_COARSE = (Level.SKELETON, Level.CONTRACTIONS, Level.WITHOUT_INPUTS)

AMBIGUOUS_ADVICE = (
    "Give inputs, or an output (--linen-output, --nnx-output), that tell them apart, or state these in a rule file "
    "(--rules)."
)
UNUSED_ADVICE = (
    "Align a call that uses them (a method, other inputs or keyword arguments), state them in a rule file (--rules), "
    "or accept guesses from names (--allow-guess)."
)


@dataclass(frozen=True, slots=True)
class Aligned:
    """Variables that are each other's.

    Attributes:
      piece: their names and the operation.
      confidence: how sure that is.
      remark: what else is to be said; may be empty.
      recipe: how the operation is made up; None where it is no cutting and joining of axes.
      level: how it was paired; None where it was not paired by the computation.
    """

    piece: Piece
    confidence: Confidence
    remark: str = ""
    recipe: Recipe | None = None
    level: Level | None = None


@dataclass(slots=True)
class Alignment:
    """What is known of two models.

    Attributes:
      found: the groups, in the order of Linen's variables.
      problems: one line for everything that is not known, with advice.
      confirmed: whether running both models confirmed what was found.
      measured: how near the outputs were then.
    """

    found: list[Aligned] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    confirmed: bool = False
    measured: Sequence[Measured] = ()

    @property
    def pieces(self) -> list[Piece]:
        return [aligned.piece for aligned in self.found]


def align(linen: Specs, nnx: Specs, evidence: Evidence, *, allow_guess: bool = False) -> Alignment:
    """Finds out which variable of Linen is which of NNX from the calls of both models, and confirms it by running them.

    Args:
      linen, nnx: the variables of both models, without random state and arrays that are no Variables.
      evidence: the calls.
      allow_guess: accept also what names alone tell.
    """
    programs = evidence.programs()
    if isinstance(programs, str):
        return Alignment(problems=[(programs, "")])
    for program, specs in ((programs[0], linen), *((each, nnx) for each in programs[1])):
        unknown = (
            n for n, wanted in zip(program.variables, program.searched, strict=True) if wanted and n not in specs
        )
        left_out = next(unknown, None)
        if left_out is not None:  # an optimizer alone names parameters
            return Alignment(problems=[(f"{format_name(left_out)} is left out, which the call has", "")])
    best: Alignment | None = None
    for attempt in _attempts(_ways(*programs), (linen, nnx), evidence, allow_guess):
        alignment = attempt.alignment()
        if alignment.confirmed and not alignment.problems:
            return alignment
        if best is None or _rank(alignment) < _rank(best):
            best = alignment
    assert best is not None
    return best


def _attempts(
    ways: Iterable[Way], specs: tuple[Specs, Specs], evidence: Evidence, allow_guess: bool
) -> Iterator[_Attempt]:
    """All ways to look at the calls; after these the choices that the first one leaves."""
    first = None
    for way in ways:
        attempt = _Attempt(way, specs, evidence, allow_guess)
        first = first or attempt
        yield attempt
    assert first is not None
    for pairs in itertools.islice(first.choices(), TRIES):
        yield _Attempt(first.way, specs, evidence, allow_guess, pairs)


def align_models(linen: Model, nnx: Model, evidence: Evidence, *, allow_guess: bool = False) -> Alignment:
    """The same for all variables of two models that are to be found in the other one."""
    return align(searched(linen), searched(nnx), evidence, allow_guess=allow_guess)


def searched(model: Model) -> dict[Name, LeafSpec]:
    """The variables of a model without random state and arrays that are no Variables."""
    return {(v.collection, v.path): v.spec for v in model.variables if not v.is_random_state and not v.is_plain}


def _rank(alignment: Alignment) -> tuple[bool, int]:
    return not alignment.confirmed, len(alignment.problems)


Way = tuple[Sketches, Sketches, bool]
"""Both calls, and whether parts are told apart by their roles."""


def _ways(linen: Program, nnx: Sequence[Program]) -> Iterator[Way]:
    """The ways in which the calls are looked at, the most likely first."""
    left = Sketches(linen)
    right = [Sketches(program) for program in nnx]
    for by_role in (False, True):
        for other in right:
            yield left, other, by_role


class _Attempt:
    """One way to look at the calls."""

    def __init__(
        self,
        way: Way,
        specs: tuple[Specs, Specs],
        evidence: Evidence,
        allow_guess: bool,
        chosen: Sequence[Pair] = (),
    ) -> None:
        self.way = way
        self._sides = way[:2]
        self._names = tuple(side.program.variables for side in self._sides)
        self._specs = specs
        self._evidence = evidence
        self._allow_guess = allow_guess
        self._chosen = chosen
        self._result = Alignment()
        self._done: tuple[set[Name], set[Name]] = set(), set()

    @functools.cached_property
    def _sketches(self) -> tuple[Sketch, Sketch]:
        linen, nnx = (side.sketch(by_role=self.way[2]) for side in self._sides)
        return linen, nnx

    @functools.cached_property
    def _pairing(self) -> Pairing:
        linen, nnx = self._sketches
        if self._chosen:
            return paired(linen, nnx, known=self._chosen)
        literal = [side.sketch(by_role=self.way[2], literally=True) for side in self._sides]
        pairing = paired(linen, nnx, (literal[0], literal[1]))
        if len(pairing.pairs) == len(linen.leaves) == len(nnx.leaves) or self.way[2]:
            return pairing
        known = self._apart_from_biases.pairs
        return paired(linen, nnx, known=known) if known else pairing

    @functools.cached_property
    def _apart_from_biases(self) -> ApartFromBiases:
        return paired_apart_from_biases(*self._sides)

    def choices(self) -> Iterator[list[Pair]]:
        """The pairs, with each of the choices that are left open."""
        return choices(*self._sketches, self._pairing.pairs) if self._pairing.open else iter(())

    def alignment(self) -> Alignment:
        sketches, pairing = self._sketches, self._pairing
        groups, misfits = self._groups(pairing, sketches[0], sketches[1])
        for group in groups:
            self._take(group)
        self._take_one_sided(pairing, sketches[0], sketches[1])
        self._take_unused(sketches[0], sketches[1], groups)
        self._refuse_misfits(misfits)
        self._refuse_open(pairing)
        self._refuse_rest(sketches[0], sketches[1])
        order = {name: place for place, name in enumerate(self._specs[0])}
        self._result.found.sort(key=lambda a: min((order[name] for name in a.piece.linen), default=len(order)))
        if not self._result.problems:
            objection = self._evidence.confirm(self._result.pieces)
            self._result.confirmed = not objection
            if not objection:
                self._result.measured = self._evidence.measured()
                self._doubt_silent(sketches[0])
            else:
                text = f"what was read off the computation does not give the same outputs: {objection}"
                self._result.problems.append((text, "The models may not compute the same function."))
        return self._result

    def _groups(self, pairing: Pairing, linen: Sketch, nnx: Sketch) -> tuple[list[Group], list[Misfit]]:
        elements = [(pair, paired_elements(linen.uses[pair.linen], nnx.uses[pair.nnx])) for pair in pairing.pairs]
        groups, misfits = groups_of(
            [(pair, own) for pair, own in elements if own is not None],
            (self._sides[0].shapes, self._sides[1].shapes),
        )
        misfits += [
            Misfit((pair.linen.variable,), (pair.nnx.variable,), "their elements correspond in no regular way")
            for pair, own in elements
            if own is None
        ]
        return groups, misfits

    def _doubt_silent(self, linen: Sketch) -> None:
        """Kernels paired by their place only that do not show in the outputs could be others that do not all the same.

        What is combined element by element belongs to the kernels around it, and needs no proof of its own. Where
        nothing shows at all, nothing is proved.
        """
        kernels = {
            self._names[0][region.variable]
            for region in linen.leaves
            if any(use.role != EACH for use in linen.uses[region])
        }
        shown = [aligned for aligned in self._result.found if aligned.piece.linen and aligned.piece.nnx]
        coarse = [a for a in shown if a.level is Level.TRIED or (a.level in _COARSE and kernels & set(a.piece.linen))]
        silent = [coarse[at] for at in sorted(self._evidence.silent([a.piece.linen for a in coarse]))] if coarse else []
        shapes = Counter(map(self._shape, silent))
        doubtful = [aligned for aligned in silent if shapes[self._shape(aligned)] > 1]
        if shown and not self._evidence.shows():
            doubtful = shown
        for aligned in doubtful:
            place = self._result.found.index(aligned)
            self._result.found[place] = replace(aligned, confidence=Confidence.GUESSED, remark=SILENT)
        if doubtful and not self._allow_guess:
            names = ", ".join(format_name(name) for a in doubtful[:6] for name in a.piece.linen[:1])
            more = " …" if len(doubtful) > 6 else ""
            self._refuse(f"the outputs do not depend on these variables: {names}{more}", UNUSED_ADVICE)

    def _shape(self, aligned: Aligned) -> tuple[tuple[int, ...], ...]:
        return tuple(sorted(tuple(sorted(self._specs[0][name].shape)) for name in aligned.piece.linen))

    # Taking over -----------------------------------------------------------------------------------------------------

    def _take(self, group: Group) -> None:
        linen = tuple(self._names[0][number] for number in group.linen)
        nnx = tuple(self._names[1][number] for number in group.nnx)
        remark = "the call reads the first rows only; the others are in the same places" if group.extended else ""
        piece = Piece(linen, nnx, group.operation)
        self._add(Aligned(piece, confidence_of(group.level), remark, group.recipe, group.level))

    def _add(self, aligned: Aligned) -> None:
        self._result.found.append(aligned)
        self._done[0].update(aligned.piece.linen)
        self._done[1].update(aligned.piece.nnx)

    def _take_one_sided(self, pairing: Pairing, linen: Sketch, nnx: Sketch) -> None:
        """Biases that one side lacks, where nothing of the other side could be them."""
        known = pairing.known()
        free = [[r for r in sketch.leaves if r not in own] for sketch, own in zip((linen, nnx), known, strict=True)]
        complete = not free[0] and not free[1]
        for side, sketch in () if complete else enumerate((linen, nnx)):
            only_added = set(additive(sketch))
            alone = self._apart_from_biases.alone[side]
            sizes = {region.size for region in free[1 - side]}
            own: dict[Name, list[Region]] = defaultdict(list)
            for region in free[side]:
                if region in alone or (region in only_added and region.size not in sizes):
                    own[self._names[side][region.variable]].append(region)
            for name, regions in own.items():
                whole = sum(region.size for region in regions) == self._specs[side][name].size
                if whole and name not in self._done[side] and name[0] == PARAMS:
                    self._add(Aligned(self._one_sided(side, name), Confidence.TRACED, "zero"))

    def _one_sided(self, side: int, name: Name) -> Piece:
        reason = ONE_SIDED.format(("Linen", "NNX")[side])
        if side == 0:
            return Piece((name,), (), Drop(reason, 0.0))
        return Piece((), (name,), fill_number(self._specs[1][name], 0.0, reason))

    def _take_unused(self, linen: Sketch, nnx: Sketch, groups: Sequence[Group]) -> None:
        if not self._allow_guess:
            return
        free = [
            {name: spec for name, spec in specs.items() if name not in self._done[side] and name not in used}
            for side, (specs, used) in enumerate(zip(self._specs, self._used(linen, nnx), strict=True))
        ]
        for left, right in paired_by_name(free[0], free[1], groups, (self._names[0], self._names[1])):
            self._add(Aligned(Piece((left,), (right,), REWRAP), Confidence.GUESSED, "not used by the call"))

    def _used(self, linen: Sketch, nnx: Sketch) -> tuple[set[Name], set[Name]]:
        first, second = (
            {names[region.variable] for region in sketch.leaves}
            for names, sketch in zip(self._names, (linen, nnx), strict=True)
        )
        return first, second

    # Refusing --------------------------------------------------------------------------------------------------------

    def _refuse(self, text: str, advice: str) -> None:
        self._result.problems.append((text, advice))

    def _shown(self, side: int, numbers: Sequence[int]) -> str:
        names = [format_name(self._names[side][number]) for number in dict.fromkeys(numbers)]
        return ", ".join(names[:4]) + (f" … ({len(names)})" if len(names) > 4 else "")

    def _settle(self, side: int, numbers: Sequence[int]) -> None:
        self._done[side].update(self._names[side][number] for number in numbers)

    def _refuse_misfits(self, misfits: Sequence[Misfit]) -> None:
        for misfit in misfits:
            left, right = self._shown(0, misfit.linen), self._shown(1, misfit.nnx)
            self._refuse(f"{left} of Linen and {right} of NNX belong together, but {misfit.reason}", AMBIGUOUS_ADVICE)
            self._settle(0, misfit.linen)
            self._settle(1, misfit.nnx)

    def _refuse_open(self, pairing: Pairing) -> None:
        """What both calls use in a way that several variables share."""
        known = pairing.known()
        for members, others in pairing.open:
            left = self._open(0, members, known[0])
            right = self._open(1, others, known[1])
            if left and right:
                text = f"{self._shown(0, left)} of Linen can be any of {self._shown(1, right)} of NNX"
                self._refuse(f"{text}: the computation uses them alike", AMBIGUOUS_ADVICE)
                self._settle(0, left)
                self._settle(1, right)

    def _open(self, side: int, regions: Sequence[Region], known: Mapping[Region, int]) -> list[int]:
        return [
            region.variable
            for region in regions
            if region not in known and self._names[side][region.variable] not in self._done[side]
        ]

    def _refuse_rest(self, linen: Sketch, nnx: Sketch) -> None:
        for side, used in enumerate(self._used(linen, nnx)):
            own, other = ("Linen", "NNX") if side == 0 else ("NNX", "Linen")
            for name, spec in self._specs[side].items():
                if name in self._done[side]:
                    continue
                where = f"{format_name(name)}: {spec} of {own}"
                if name in used:
                    self._refuse(
                        f"{where} plays a part in the computation that nothing of {other} plays", AMBIGUOUS_ADVICE
                    )
                else:
                    self._refuse(
                        f"{where} is not used by the call, so the computation does not tell what it is", UNUSED_ADVICE
                    )
