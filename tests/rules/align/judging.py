"""Holding an alignment against a correspondence written by hand, element by element, with names that say nothing."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from converter.calling.inputs import Arguments
from converter.calling.signature import Side, Signature
from converter.models import Model, linen_model, nnx_model
from converter.models.program import Program
from converter.paths import format_path
from converter.proof import evidence
from converter.rules.align.alignment import Alignment, align, searched
from converter.rules.link import Name, format_name
from converter.rules.matching.board import Piece
from converter.rules.matching.evidence import Evidence
from converter.tree import LeafKind, LeafSpec
from tests.parity.pair import Pair
from tests.parity.support import Case, by_hand


@dataclass(frozen=True)
class Judged:
    """An alignment, and how many leaves of NNX it gets right and wrong."""

    alignment: Alignment
    right: int
    wrong: tuple[str, ...]
    leaves: int

    @property
    def accepted(self) -> bool:
        return self.alignment.confirmed and not self.alignment.problems


def models_of(pair: Pair) -> tuple[Model, Model, Evidence]:
    case = Case(pair)
    kwargs = {key: value for key, value in pair.linen_kwargs.items() if key not in ("mutable", "rngs")}
    linen, nnx = linen_model(case.linen, case.inputs, kwargs), nnx_model(case.module)
    signature = Signature(Arguments(tuple(case.inputs)), Side(pair.linen_kwargs), Side(pair.nnx_kwargs))
    told = evidence(linen, nnx, signature)
    assert told is not None
    return linen, nnx, told


def judged(pair: Pair, *, seed: int | None = None, proved: bool = True) -> Judged:
    """The alignment of a pair.

    Args:
      seed: names are hidden, and variables are in another order.
      proved: run both models.
    """
    linen, nnx, told = models_of(pair)
    if not proved:
        told = replace(told, confirm=lambda pieces: "", silent=lambda groups: (), shows=lambda: True)
    hidden = None if seed is None else Hidden(linen, nnx, told, seed)
    if hidden is None:
        alignment = align(searched(linen), searched(nnx), told, allow_guess=True)
    else:
        alignment = hidden.shown(align(*hidden.specs, hidden.evidence, allow_guess=False))
    right, wrong = compared(pair, linen, alignment)
    return Judged(alignment, right, wrong, len(searched(nnx)))


def compared(pair: Pair, linen: Model, alignment: Alignment) -> tuple[int, tuple[str, ...]]:
    """How many leaves of NNX get every element from where it belongs, and which do not."""
    positions: dict[str, Any] = {}
    start = 0
    for name, spec in searched(linen).items():
        size = int(np.prod(spec.shape))
        positions[format_name(name)] = np.arange(start, start + size).reshape(spec.shape)
        start += size
    truth = by_hand(pair, positions)
    right, wrong = 0, []
    for aligned in alignment.found:
        piece = aligned.piece
        if not piece.linen:
            continue
        values = [positions[format_name(name)] for name in piece.linen]
        specs = [LeafSpec(LeafKind.ARRAY, "int64", value.shape) for value in values]
        for name, made in zip(piece.nnx, piece.to_nnx.apply(values, specs), strict=True):
            where = format_path(tuple(map(str, name[1])))
            if np.array_equal(np.asarray(truth[where]), made):
                right += 1
            else:
                wrong.append(where)
    return right, tuple(wrong)


class Hidden:
    """Two models whose variables have other names and another order."""

    def __init__(self, linen: Model, nnx: Model, told: Evidence, seed: int) -> None:
        self._told = told
        self._names: list[dict[Name, Name]] = []
        self._seed = seed
        specs = []
        for model in (linen, nnx):
            names = {name: (name[0], (self._hashed(name),)) for name in searched(model)}
            shuffled = random.Random(seed).sample(list(names), len(names))
            self._names.append({names[name]: name for name in shuffled})
            specs.append({names[name]: searched(model)[name] for name in shuffled})
        self.specs: tuple[Mapping[Name, LeafSpec], Mapping[Name, LeafSpec]] = (specs[0], specs[1])
        self.evidence = Evidence(told.traces, self._confirm, self._silent, self._programs, told.shows)

    def _hashed(self, name: Name) -> str:
        return hashlib.sha256(f"{self._seed} {format_name(name)}".encode()).hexdigest()[:8]

    def _piece(self, piece: Piece) -> Piece:
        linen, nnx = self._names
        return Piece(tuple(linen[n] for n in piece.linen), tuple(nnx[n] for n in piece.nnx), piece.to_nnx)

    def _confirm(self, pieces: Sequence[Piece]) -> str:
        return self._told.confirm([self._piece(piece) for piece in pieces])

    def _silent(self, groups: Sequence[Sequence[Name]]) -> Any:
        return self._told.silent([[self._names[0][name] for name in group] for group in groups])

    def _programs(self) -> Any:
        programs = self._told.programs()
        if isinstance(programs, str):
            return programs
        linen, nnx = programs
        return self._hide(linen, 0), [self._hide(program, 1) for program in nnx]

    def _hide(self, program: Program, side: int) -> Program:
        hidden = {name: other for other, name in self._names[side].items()}
        order = random.Random(self._seed).sample(range(len(program.variables)), len(program.variables))
        closed, count = program.closed, len(program.variables)

        def run(*arguments: Any) -> Any:
            own: list[Any] = [None] * count
            for place, argument in zip(order, arguments, strict=False):
                own[place] = argument
            return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *own, *arguments[count:])

        structs = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in closed.jaxpr.invars]
        shuffled = [structs[place] for place in order] + structs[count:]
        names = [hidden.get(name, name) for name in program.variables]
        return Program(
            jax.make_jaxpr(run)(*shuffled),
            *(tuple(values[place] for place in order) for values in (names, program.shapes, program.searched)),
            program.outputs,
        )

    def shown(self, alignment: Alignment) -> Alignment:
        """The same with the real names."""
        found = [replace(aligned, piece=self._piece(aligned.piece)) for aligned in alignment.found]
        return replace(alignment, found=found)
