"""Do both frameworks compute the same? Runs the two models on the same inputs in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from converter.calling.signature import Signature
from converter.dtypes import described
from converter.errors import ModelError
from converter.proof.outputs import TOLERANCE
from converter.verification.differences import OutputDifference, difference
from converter.verification.replay import Replay, replayed
from converter.verification.running import Pair, Run, runs_of

if TYPE_CHECKING:
    from flax import linen, nnx

    from converter.verification.bisection import Divergence, VariableLink
    from converter.verification.running import Outputs

__all__ = ["TOLERANCE", "OutputDifference", "OutputsResult", "compare_outputs"]

FEW_ULPS = 4
"""From how many units in the last place of the largest output on, a difference is looked at closely although it is
within the limits: there may be another epsilon or another variant of an activation behind it."""


@dataclass(frozen=True, slots=True)
class OutputsResult:
    """The outcome of running both models.

    Attributes:
      inputs: what they were called with.
      outputs: for each output how far it is apart in the worst run.
      problem: why outputs could not be compared at all.
      runs: the calls that were compared beyond the first one, as in "with seed 1" or "on a batch of 1".
      notes: calls that could not be made, and other remarks.
      replay: the same in double precision, where rounding may be what outputs differ by.
      divergence: where the difference begins.
    """

    inputs: tuple[str, ...]
    outputs: tuple[OutputDifference, ...]
    problem: str = ""
    runs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    replay: Replay | None = None
    divergence: Divergence | None = None

    @property
    def ok(self) -> bool:
        if self.problem:
            return False
        if self.replay is not None and self.replay.decides:
            whole = all(output.ok for output in self.outputs if not _has_fractions(output))
            return whole and self.replay.agrees
        return all(output.ok for output in self.outputs)

    def lines(self) -> list[str]:
        """What there is to say beyond the verdict."""
        replay = [str(self.replay)] if self.replay is not None else []
        found = self.divergence.lines() if self.divergence is not None else []
        problem = [self.problem] if self.problem else []
        return [*map(str, self.outputs), *problem, *replay, *found, *self.notes]

    def conditions(self) -> str:
        """``float32[2,8] with seeds 0 to 2 and on a batch of 1``."""
        seeds = sum(run.startswith("with") for run in self.runs) + 1
        others = [run for run in self.runs if not run.startswith("with")]
        parts = ([f"with {seeds} seeds"] if seeds > 1 else []) + others
        return f"{', '.join(self.inputs) or 'nothing'}{', ' if parts else ''}{' and '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "inputs": list(self.inputs),
            "runs": list(self.runs),
            "problem": self.problem,
            "notes": list(self.notes),
            "outputs": [output.to_json() for output in self.outputs],
            "replay": None if self.replay is None else self.replay.to_json(),
            "divergence": None if self.divergence is None else self.divergence.to_json(),
        }


def _has_fractions(output: OutputDifference) -> bool:
    return output.spec.startswith(("float", "bfloat", "complex"))


Links = Callable[[], Sequence["VariableLink"]]


def compare_outputs(
    linen_module: linen.Module,
    variables: Mapping[str, Any],
    nnx_module: nnx.Module,
    signature: Signature,
    seeds: int = 3,
    links: Links = tuple,
) -> OutputsResult:
    """Calls ``linen_module.apply(variables, …)`` and ``nnx_module(…)`` on several inputs, as the signature says.

    The NNX module is called in the mode it is in; ``mutable`` among Linen's keyword arguments works as in ``apply``,
    and the mutated collections are not compared.

    Args:
      seeds: how many inputs of the given shapes there shall be; where there are several, one more run is made with a
        batch of another size.
      links: which variables are which, to find the modules that belong together; asked for only if outputs differ.

    Raises:
      ModelError: one of the two calls fails on the first inputs.
    """
    pair = Pair(linen_module, variables, nnx_module, signature)
    result = OutputsResult((signature.recipe or signature.arguments).described(), ())
    worst: tuple[float, Run] | None = None
    for run in runs_of(signature, seeds):
        try:
            left, right = pair.linen_outputs(run.arguments), pair.nnx_outputs(run.arguments)
        except ModelError as error:
            if worst is None:
                raise
            result = replace(result, notes=(*result.notes, f"not run {run}: {error.message.splitlines()[0]}"))
            continue
        if _shapes(left) != _shapes(right):
            where = f" {run}" if worst is not None else ""
            problem = f"the models return different structures{where}: Linen {_named(left)}, NNX {_named(right)}"
            problem += " (--linen-output and --nnx-output select what counts)"
            return replace(result, outputs=(), problem=problem)
        found = [difference(name, value, right[name]) for name, value in left.items()]
        excess = max((each.excess for each in found if not each.bitwise), default=0.0)
        if worst is None:
            result, worst = replace(result, outputs=tuple(found)), (excess, run)
            continue
        joined = tuple(one.joined(other) for one, other in zip(result.outputs, found, strict=True))
        result, worst = (
            replace(result, outputs=joined, runs=(*result.runs, str(run))),
            max(worst, (excess, run), key=_excess),
        )
    assert worst is not None
    return _explained(result, pair, worst[1], links)


def _excess(run: tuple[float, Run]) -> float:
    return run[0]


def _explained(result: OutputsResult, pair: Pair, run: Run, links: Links) -> OutputsResult:
    """The result with a replay where rounding may be at work, and with the place where a difference begins.

    A difference within the limits that is no matter of rounding is worth a remark: another epsilon, for instance.
    """
    if not any(map(_is_suspicious, result.outputs)):
        return result
    replay = replayed(pair, run.arguments)
    explained = replace(result, replay=replay)
    if explained.ok and (replay.agrees or replay.problem):
        return explained if replay.decides else result
    from converter.verification.bisection import first_divergence

    return replace(explained, divergence=first_divergence(pair, run.arguments, links()))


def _is_suspicious(output: OutputDifference) -> bool:
    """Whether an output differs by more than rounding explains at first sight."""
    import jax.numpy as jnp

    dtype = output.spec.partition("[")[0]
    if not output.ok or output.bitwise or not _has_fractions(output) or dtype.startswith("float8"):
        return not output.ok
    return output.max_abs > FEW_ULPS * float(jnp.finfo(dtype).eps) * output.scale


def _shapes(outputs: Outputs) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, array.shape) for name, array in outputs.items()]


def _named(outputs: Outputs) -> str:
    return ", ".join(f"{name} {described(array)}" for name, array in outputs.items()) or "nothing"
