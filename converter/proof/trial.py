"""A correspondence put to the test: both models on random values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from converter.calling.arrays import array_inputs
from converter.calling.signature import Signature
from converter.errors import ConverterError, ModelError
from converter.models import Model
from converter.paths import format_path
from converter.proof.calls import Call, Outputs, Traced, linen_calls, needs_value, nnx_calls
from converter.proof.outputs import (
    LIMITS,
    MARGIN,
    as_numpy,
    disagreement,
    gaps,
    largest,
    limit_of,
    real_numbers,
    tells,
    weights,
)
from converter.proof.values import (
    DRAWS,
    NORMAL_DRAWS,
    POSITIVE_DRAW,
    inputs_of,
    is_inexact,
    random_value,
    random_values,
)
from converter.rules.link import Name
from converter.rules.matching.board import Piece
from converter.rules.matching.evidence import Measured

ONE_BY_ONE = 8
"""How many groups of variables are changed one after the other where derivatives do not tell. Each costs a run."""


@dataclass(frozen=True, slots=True)
class Point:
    """Values and inputs on which both models agree, what Linen's returns for them, and how near NNX comes to it."""

    draw: int
    traced: Traced
    values: Mapping[Name, Any]
    inputs: Sequence[Any]
    outputs: Outputs
    measured: Sequence[Measured] = ()

    @property
    def arguments(self) -> list[Any]:
        return [*self.values.values(), *self.inputs]


class Trial:
    """Both models with their inputs. ``silent`` is about the correspondence that was confirmed last."""

    def __init__(self, linen: Model, nnx: Model, signature: Signature) -> None:
        self._linen, self._nnx = linen, nnx
        self._arrays, fill = array_inputs(signature)
        self._linen_calls = linen_calls(linen, fill, signature)
        self._make_nnx_calls = functools.partial(nnx_calls, nnx, fill, signature)
        self._nnx_calls: list[Call] = []
        self._doubles = True
        self._limit = LIMITS[0]
        self._points: list[Point] = []
        self._confirmed: Callable[[int], tuple[Point, str, float]]

    # Confirming ------------------------------------------------------------------------------------------------------

    def confirm(self, pieces: Sequence[Piece]) -> str:
        """How the outputs of both models differ for values translated by these pieces; empty if they agree."""
        covered = {name for piece in pieces for name in piece.nnx}
        missing = [v.path for v in self._nnx.variables if needs_value(v) and (v.collection, v.path) not in covered]
        if missing:
            return "nothing is known of " + ", ".join(map(format_path, missing[:3]))
        try:
            with numbers():
                self._nnx_calls = self._nnx_calls or self._make_nnx_calls()
            objections = []
            for call in self._nnx_calls:
                objections.append(self._difference(call, pieces))
                if not objections[-1]:
                    return ""
            return objections[0]
        except ConverterError as error:
            return error.message

    def _difference(self, nnx_call: Call, pieces: Sequence[Piece]) -> str:
        """The same for one way to call the NNX model."""
        points: list[Point] = []
        limits = [0.0]
        for draw in (*NORMAL_DRAWS, POSITIVE_DRAW):
            if draw == POSITIVE_DRAW and points:
                break
            point, objection, limit = self._tried(nnx_call, pieces, draw)
            if objection:
                return objection
            if tells(point.outputs):
                points.append(point)
                limits.append(limit)
        self._points, self._limit = points, max(limits)
        self._confirmed = functools.partial(self._tried, nnx_call, list(pieces))
        return "" if points else "they return no numbers for random values"

    def _tried(self, nnx_call: Call, pieces: Sequence[Piece], draw: int) -> tuple[Point, str, float]:
        """One draw: where that is, how the outputs differ, and within which limit they agree."""
        with numbers():
            values, translated = self._translated(pieces, draw)
            inputs = inputs_of(self._arrays, draw)
        traced, other = self._traced_linen(values, inputs), nnx_call.traced(translated, inputs)
        point = Point(draw, traced, values, inputs, {})
        with numbers():
            left, right = self._outputs(point, other, [*translated.values(), *inputs])
        objection, limit = self._disagreement(left, right) if tells(left) else ("", 0.0)
        near = () if objection else gaps(left, right, limit)
        return replace(point, outputs=left, measured=near), objection, limit

    def _translated(self, pieces: Sequence[Piece], draw: int) -> tuple[dict[Name, Any], dict[Name, Any]]:
        """Values for Linen, such that nothing is lost by the pieces, and what they make of them for NNX."""
        specs = {(v.collection, v.path): v.spec for v in self._linen.variables}
        covered = {name for piece in pieces for name in piece.linen if piece.nnx}
        values = random_values(specs, draw)
        # What has no place in NNX has to be such that it does not matter.
        values |= {name: zeros_like(value) for name, value in values.items() if name not in covered}
        translated: dict[Name, Any] = {}
        for piece in pieces:
            sources = [specs[name] for name in piece.linen]
            made = piece.to_nnx.apply([values[name] for name in piece.linen], sources)
            translated |= dict(zip(piece.nnx, made, strict=True))
            if piece.to_nnx.looks_at_values and piece.nnx:  # copies of one array are equal
                values |= dict(zip(piece.linen, self._undone(piece, made, sources), strict=True))
        return values, translated

    @staticmethod
    def _undone(piece: Piece, made: Sequence[Any], sources: Sequence[Any]) -> Sequence[Any]:
        return piece.to_nnx.inverse().apply(made, piece.to_nnx.specs(sources))

    def _traced_linen(self, values: Mapping[Name, Any], inputs: Sequence[Any]) -> Traced:
        """The first of the possible calls of Linen that succeeds."""
        *early, last = self._linen_calls
        for call in early:
            try:
                return call.traced(values, inputs)
            except ModelError:
                continue
        return last.traced(values, inputs)

    def _outputs(self, point: Point, other: Traced, arguments: Sequence[Any]) -> tuple[Outputs, Outputs]:
        import jax

        if self._doubles:
            try:
                with jax.enable_x64(True):
                    return as_numpy(point.traced.doubled(point.arguments)), as_numpy(other.doubled(arguments))
            except Exception:  # not everything that JAX can do exists in double precision, or runs on this machine
                self._doubles = False
        return as_numpy(point.traced(point.arguments)), as_numpy(other(arguments))

    def _disagreement(self, left: Outputs, right: Outputs) -> tuple[str, float]:
        """How the outputs differ, or within which limit they agree."""
        objection = ""
        for limit in LIMITS if self._doubles else (limit_of(left),):
            objection = disagreement(left, right, limit)
            if not objection:
                return "", limit
        return objection, 0.0

    def measured(self) -> list[Measured]:
        """How near each output was, in the run in which it came nearest to its limit."""
        worst: dict[str, Measured] = {}
        for each in (each for point in self._points for each in point.measured):
            known = worst.setdefault(each.name, each)
            if each.gap * known.limit > known.gap * each.limit:
                worst[each.name] = each
        return list(worst.values())

    # What the outputs depend on --------------------------------------------------------------------------------------

    def silent(self, groups: Sequence[Sequence[Name]]) -> frozenset[int]:
        """The groups of Linen's variables on none of which the outputs depend, so far as that can be seen."""
        import jax

        pending = dict(enumerate(groups))
        if not self._doubles:
            return frozenset(pending)
        for point in self._points_to_look_at():
            with numbers(), jax.enable_x64(True):
                pending = self._without_felt(pending, point)
            if not pending:
                break
        return frozenset(pending)

    def shows(self) -> bool:
        """Whether the outputs depend on the variables at all; cheaper than ``silent``, for one run of Linen's model."""
        import jax

        if not self._doubles:
            return True
        every = {0: [(v.collection, v.path) for v in self._linen.variables]}
        with numbers(), jax.enable_x64(True):
            return any(self._felt_by_change(point, every) for point in self._points)

    def _points_to_look_at(self) -> Iterator[Point]:
        """Where both models are known to agree; the last one is tried only if it is asked for."""
        yield from reversed(self._points)
        if all(point.draw != POSITIVE_DRAW for point in self._points):
            point, objection, limit = self._confirmed(POSITIVE_DRAW)
            if not objection and tells(point.outputs):
                self._limit = max(self._limit, limit)
                yield point

    def _without_felt(self, groups: Mapping[int, Sequence[Name]], point: Point) -> dict[int, Sequence[Name]]:
        pending = dict(groups)
        for look in (self._felt_by_derivative, self._felt_by_change):
            felt = look(point, pending) if pending else ()
            pending = {position: group for position, group in pending.items() if position not in felt}
        return pending

    def _felt_by_derivative(self, point: Point, groups: Mapping[int, Sequence[Name]]) -> set[int]:
        import jax

        names = [name for name, value in point.values.items() if is_inexact(value.dtype)]

        def results_of(values: Sequence[Any]) -> list[Any]:
            given = {**point.values, **dict(zip(names, values, strict=True))}
            outputs = point.traced.doubled([*given.values(), *point.inputs])
            return list(real_numbers(outputs).values())

        try:
            results, pull = jax.vjp(results_of, [wide(point.values[name]) for name in names])
            (gradients,) = pull(weights(results))
        except Exception:  # loops without a fixed length have no derivative of this kind
            return set()
        felt = {n for n, gradient in zip(names, gradients, strict=True) if largest(gradient) > MARGIN * self._limit}
        return {position for position, group in groups.items() if felt & set(group)}

    def _felt_by_change(self, point: Point, groups: Mapping[int, Sequence[Name]]) -> set[int]:
        felt = set()
        specs = {(v.collection, v.path): v.spec for v in self._linen.variables}
        for position, group in list(groups.items())[:ONE_BY_ONE]:
            other = {name: random_value(name, specs[name], point.draw + DRAWS) for name in group}
            outputs = point.traced.doubled([*{**point.values, **other}.values(), *point.inputs])
            before, after = real_numbers(point.outputs), as_numpy(real_numbers(outputs))
            if disagreement(before, after, MARGIN * self._limit):
                felt.add(position)
        return felt


def numbers() -> Any:
    """Computes with numbers even inside of a function that JAX traces. Tracing under it takes ten times as long."""
    import jax

    return jax.ensure_compile_time_eval()


def zeros_like(value: Any) -> Any:
    """Zeros, except for random keys, which have none."""
    import numpy as np

    return np.zeros(value.shape, value.dtype) if isinstance(value, np.ndarray) else value


def wide(value: Any) -> Any:
    import numpy as np

    return value.astype(np.complex128 if np.iscomplexobj(value) else np.float64)
