"""Finding the first two modules that belong together and make unlike things of the same inputs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converter.calling.arrays import array_inputs
from converter.calling.inputs import Arguments
from converter.calling.signature import Signature, apply_linen, call_nnx
from converter.errors import ConverterError
from converter.models import linen_leaves
from converter.paths import Path
from converter.proof.calls import LINEN_CALL, NNX_CALL, Call, linen_call, nnx_call, nnx_values
from converter.proof.outputs import as_numpy, gap_and_scale
from converter.verification.bisection.causes import relation
from converter.verification.bisection.pairing import VariableLink, VisitPair, pair_visits
from converter.verification.bisection.recording import Recorder, Visit, linen_recording, mark, nnx_recording, unrolled
from converter.verification.bisection.settings import differing
from converter.verification.replay import traced_linen, traced_nnx, widened
from converter.verification.running import Pair


@dataclass(frozen=True, slots=True)
class Precision:
    """What may be expected of numbers that were computed alike.

    Attributes:
      name: what they were computed in.
      noise: differences, relative to the largest number, that equal arithmetic may make.
      jump: how many times as much a module has to add to be at fault: it may well enlarge what differs already.
      visible: from which difference on a place is looked for at first.
    """

    name: str
    noise: float
    jump: float
    visible: float


DOUBLE = Precision("double precision", 1e-12, 30.0, 1e-6)
OWN = Precision("the models' own precision", 2.5e-7, 8.0, 1e-5)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where outputs begin to differ.

    Attributes:
      linen, nnx: the paths of the two modules; () for the models themselves.
      kinds: the names of their classes.
      call: how often the modules had been called before.
      difference: the largest difference of their outputs, for equal inputs.
      causes: what is known about why.
      problem: why no place is known; empty if it is.
    """

    linen: Path = ()
    nnx: Path = ()
    kinds: tuple[str, str] = ("", "")
    call: int = 0
    difference: float = 0.0
    causes: tuple[str, ...] = field(default=())
    problem: str = ""

    def lines(self) -> list[str]:
        if self.problem:
            return [f"first difference: {self.problem}", *(f"  {cause}" for cause in self.causes)]
        call = f", call {self.call + 1}" if self.call else ""
        names = f"{linen_name(self.linen)} (Linen {self.kinds[0]}) and {nnx_name(self.nnx)} (NNX {self.kinds[1]})"
        found = f"first difference: {names}{call}: inputs agree, outputs differ by {self.difference:.3g}"
        return [found, *(f"  {cause}" for cause in self.causes)]

    def to_json(self) -> dict[str, Any]:
        return {
            "linen": "/".join(self.linen),
            "nnx": ".".join(self.nnx),
            "kinds": {"linen": self.kinds[0], "nnx": self.kinds[1]},
            "call": self.call,
            "difference": self.difference,
            "causes": list(self.causes),
            "problem": self.problem,
        }


def linen_name(path: Path) -> str:
    return "/".join(path) or "the model itself"


def nnx_name(path: Path) -> str:
    return ".".join(path) or "the model itself"


def first_divergence(pair: Pair, arguments: Arguments, links: Sequence[VariableLink]) -> Divergence:
    """Runs both models once more, with a look at all of their modules.

    In double precision equal arithmetic agrees to ten digits, so that a fault stands out wherever it is. Where that is
    not possible, or where only the precision is at fault, the models run in their own.
    """
    problem = ""
    for precision in (DOUBLE, OWN):
        try:
            linen, nnx = _visits_in_double(pair, arguments) if precision is DOUBLE else _visits(pair, arguments)
        except ConverterError as error:
            problem = problem or error.message.splitlines()[0]
            continue
        except Exception as error:  # not everything that JAX can do exists in double precision, or can be unrolled
            problem = problem or f"{type(error).__name__}: {error}".splitlines()[0][:120]
            continue
        pairs = pair_visits(linen, nnx, links)
        place = _place([_Gap.of(*each) for each in pairs], precision)
        if place is not None:
            return _described(place, pairs, linen, pair, links)
    return Divergence(problem=f"not found{f' ({problem})' if problem else ''}")


Recording = Callable[[Recorder], contextlib.AbstractContextManager[None]]


# Recording -----------------------------------------------------------------------------------------------------------


Visits = tuple[list[Visit], list[Visit]]
"""Those of the Linen and of the NNX model."""


def _visits(pair: Pair, arguments: Arguments) -> Visits:
    """The visits of both models as they are, with NumPy arrays."""
    signature, module = pair.signature.calling(arguments), pair.module()
    mark(module)
    return (
        _seen(linen_recording, lambda: apply_to(pair, signature)),
        _seen(
            functools.partial(nnx_recording, module),
            lambda: call_nnx(module, arguments.positional, signature.nnx_kwargs, signature.nnx),
        ),
    )


def apply_to(pair: Pair, signature: Signature) -> Any:
    args, kwargs = signature.arguments.positional, signature.linen_kwargs
    return apply_linen(pair.linen, pair.variables, args, kwargs, signature.linen)


def _visits_in_double(pair: Pair, arguments: Arguments) -> Visits:
    """The same in double precision."""
    with widened(pair, arguments) as (wide, inputs):
        module = wide.module()
        mark(module)
        marked = Pair(wide.linen, wide.variables, module, wide.signature)
        _, fill = array_inputs(wide.signature.calling(inputs))
        recording = functools.partial(nnx_recording, module)
        return (
            _doubled(LINEN_CALL, linen_recording, linen_call(wide.linen, fill), marked, inputs, traced_linen),
            _doubled(NNX_CALL, recording, nnx_call(marked.graph, marked.state, fill), marked, inputs, traced_nnx),
        )


def _seen(recording: Recording, run: Callable[[], Any]) -> list[Visit]:
    import jax

    recorder = Recorder(lambda array: not isinstance(array, jax.core.Tracer))
    with unrolled(), recording(recorder):
        run()
    for visit in recorder.visits:
        visit.inputs, visit.outputs = (list(map(as_array, own)) for own in (visit.inputs, visit.outputs))
    return recorder.visits


def as_array(value: Any) -> Any:
    import numpy as np

    return np.asarray(value)


def _doubled(
    what: str, recording: Recording, plain: Call, pair: Pair, arguments: Arguments, trace: Callable[..., Any]
) -> list[Visit]:
    """The visits of a traced call: what goes in and comes out of modules are further results of the trace."""
    import jax

    visits: list[Visit] = []

    def run(values: Any, arrays: Any) -> list[Any]:
        level = next(iter([*values.values(), *arrays]))._trace
        recorder = Recorder(lambda array: not isinstance(array, jax.core.Tracer) or array._trace is level)
        with recording(recorder):
            plain.run(values, arrays)
        visits[:] = recorder.visits
        return [array for visit in visits for array in (*visit.inputs, *visit.outputs)]

    with unrolled():
        traced, values = trace(pair, arguments, Call(what, run))
    with jax.enable_x64(True):
        found = iter(as_numpy(traced.doubled(values)).values())
    for visit in visits:
        for own in (visit.inputs, visit.outputs):
            own[:] = [next(found) for _ in own]
    return visits


# Searching -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Gap:
    """How far the inputs and the outputs of two visits are apart, relative to their largest numbers."""

    linen: Visit
    nnx: Visit
    inputs: float
    outputs: float

    @classmethod
    def of(cls, linen: Visit, nnx: Visit) -> _Gap:
        return cls(linen, nnx, farthest(linen.inputs, nnx.inputs), farthest(linen.outputs, nnx.outputs))


def farthest(left: Sequence[Any], right: Sequence[Any]) -> float:
    """The largest relative difference of arrays to those that are most like them on the other side.

    The two frameworks pass masks and carries in other places, and one may take more than the other: each array on the
    side with fewer of them has to have its like.
    """
    fewer, more = sorted((left, right), key=len)
    return max((min((_relative(one, other) for other in more), default=0.0) for one in fewer), default=0.0)


def _relative(left: Any, right: Any) -> float:
    import numpy as np

    if left.shape != right.shape:
        return float(np.inf)
    gap, scale = gap_and_scale(left, right)
    return gap / (scale or gap * 1e-30) if gap else 0.0


def _place(gaps: Sequence[_Gap], precision: Precision) -> _Gap | None:
    """The first visit that adds a difference which is not there in what it gets."""
    for least in (precision.visible, precision.jump * precision.noise):
        for gap in gaps:
            if gap.outputs > least and gap.outputs > precision.jump * max(gap.inputs, precision.noise):
                return gap
    return None


SHOWN = 4


def _described(
    place: _Gap, pairs: Sequence[VisitPair], visits: Sequence[Visit], pair: Pair, links: Sequence[VariableLink]
) -> Divergence:
    linen, nnx = place.linen, place.nnx
    causes = _unlike_settings([(linen, nnx)]) or _unlike_values(linen.path, nnx.path, pair, links)
    causes = causes or [*_between(place, pairs), *_unlike_settings(_inside(linen, pairs))]
    earlier = [
        visit for visit in visits[: visits.index(linen)] if (visit.path, visit.method) == (linen.path, linen.method)
    ]
    gap = max(
        (gap_and_scale(a, b)[0] for a, b in zip(linen.outputs, nnx.outputs, strict=False) if a.shape == b.shape),
        default=0.0,
    )
    return Divergence(linen.path, nnx.path, (linen.kind, nnx.kind), len(earlier), gap, tuple(causes[:SHOWN]))


def _inside(visit: Visit, pairs: Sequence[VisitPair]) -> list[VisitPair]:
    return [(one, other) for one, other in pairs if one.parent is visit]


def _unlike_settings(pairs: Sequence[VisitPair]) -> list[str]:
    found = []
    for one, other in pairs:
        for name, left, right in differing(one.settings, other.settings):
            found.append(f"{linen_name(one.path)}: {name} is {left} (Linen) and {right} (NNX)")
    return found


def _unlike_values(linen: Path, nnx: Path, pair: Pair, links: Sequence[VariableLink]) -> list[str]:
    """The variables of two modules that have the same place in both models and not the same values, or no such place.

    A variable of Linen that has no place in NNX changes nothing while it is zero.
    """
    import numpy as np

    ours = {path[1:]: np.asarray(value) for path, value, _ in linen_leaves(pair.variables) if not _is_key(value)}
    theirs = {name[1]: np.asarray(value) for name, value in nnx_values(pair.state).items()}
    found = []
    for link in links:
        if link.renamed and len(link.linen) == 1 and link.linen[0][: len(linen)] == linen:
            left, right = ours.get(link.linen[0]), theirs.get(link.nnx[0])
            if left is not None and right is not None and not np.array_equal(left, right):
                names = f"{linen_name(link.linen[0])} (Linen) and {nnx_name(link.nnx[0])} (NNX)"
                found.append(f"the values of {names} differ")
    if links:
        linked = {path for link in links for path in link.linen}, {path for link in links for path in link.nnx}
        found += [f"{linen_name(p)} (Linen) has no place in NNX" for p in _alone(ours, linked[0], linen)]
        found += [f"{nnx_name(p)} (NNX) has no place in Linen" for p in _alone(theirs, linked[1], nnx)]
    return found


def _alone(values: Mapping[Path, Any], linked: Collection[Path], below: Path) -> list[Path]:
    """Variables below a path that have no counterpart, and are not zero."""
    return [
        path for path, value in values.items() if path[: len(below)] == below and path not in linked and value.any()
    ]


def _is_key(value: Any) -> bool:
    import jax

    return bool(jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key))


def _between(place: _Gap, pairs: Sequence[VisitPair]) -> list[str]:
    """What the code of two modules does between their submodules: the first of these that does not get the same."""
    sources = [("its input", array) for array in place.linen.inputs]
    last = ""
    for one, other in _inside(place.linen, pairs):
        gap = _Gap.of(one, other)
        if gap.inputs > DOUBLE.jump * DOUBLE.noise:
            after = f" after {last}" if last else ""
            where = f"{linen_name(one.path)} (Linen) and {nnx_name(other.path)} (NNX)"
            related = _relations(one.inputs, other.inputs, sources)
            found = [f"inside, {where} are the first to get other inputs{after}"]
            return found + ([f"such an input is {related}"] if related else [])
        last = linen_name(one.path)
        sources += [(f"the output of {last}", array) for array in one.outputs]
    related = _relations(place.linen.outputs, place.nnx.outputs, sources)
    found = [f"the modules inside agree: it is what follows {last}" if last else "it is their own code"]
    return found + ([f"the output is {related}"] if related else [])


def _relations(left: Sequence[Any], right: Sequence[Any], sources: Sequence[tuple[str, Any]]) -> str:
    for one, other in zip(left, right, strict=False):
        if _relative(one, other) > 0:
            related = relation(one, other, reversed(sources))
            if related:
                return related
    return ""
