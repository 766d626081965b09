"""Running both models on random values: what the rules ask where names and shapes leave a question open.

Synthetic values prove more than those of a checkpoint, whose biases may all be zero and whose scales may all be one:
there a wrong correspondence can go unnoticed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from converter.errors import ModelError
from converter.models import Model
from converter.models.program import Calling, Program, linen_program, nnx_programs
from converter.models.trace import Trace, trace_linen, trace_nnx
from converter.proof.trial import Trial
from converter.rules.matching.evidence import Evidence


def evidence(
    linen_model: Model | None,
    nnx_model: Model | None,
    inputs: Sequence[Any] | None,
    linen_calling: Calling | Mapping[str, Any],
    nnx_calling: Calling | Mapping[str, Any],
) -> Evidence | None:
    """What both models tell when they are run on these inputs; None unless both and the inputs are there.

    Args:
      linen_calling, nnx_calling: how they are called; keyword arguments are enough.
    """
    if linen_model is None or nnx_model is None or inputs is None:
        return None
    linen, nnx = linen_model, nnx_model
    of_linen, of_nnx = _calling(linen_calling), _calling(nnx_calling)

    @functools.cache
    def traces() -> tuple[Trace, Trace] | str:
        try:
            return trace_linen(linen, inputs, of_linen.kwargs), trace_nnx(nnx, inputs, of_nnx.kwargs)
        except ModelError as error:
            return error.message

    @functools.cache
    def programs() -> tuple[Program, Sequence[Program]] | str:
        try:
            return linen_program(linen, inputs, of_linen), nnx_programs(nnx, inputs, of_nnx)
        except ModelError as error:
            return error.message

    trial = Trial(linen, nnx, inputs, of_linen, of_nnx)
    return Evidence(traces, trial.confirm, trial.silent, programs, trial.shows)


def _calling(given: Calling | Mapping[str, Any]) -> Calling:
    return given if isinstance(given, Calling) else Calling(given)
