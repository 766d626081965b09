"""Running both models on random values: what the rules ask where names and shapes leave a question open.

Synthetic values prove more than those of a checkpoint, whose biases may all be zero and whose scales may all be one:
there a wrong correspondence can go unnoticed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from converter.calling.signature import Signature
from converter.errors import ModelError
from converter.models import Model
from converter.models.program import Program, linen_program, nnx_programs
from converter.models.trace import Trace, trace_linen, trace_nnx
from converter.proof.trial import Trial
from converter.rules.matching.evidence import Evidence


def evidence(
    linen_model: Model | None,
    nnx_model: Model | None,
    signature: Signature | None,
) -> Evidence | None:
    """What both models tell when they are called in this way; None unless both and the inputs are there."""
    if linen_model is None or nnx_model is None or signature is None:
        return None
    linen, nnx = linen_model, nnx_model

    @functools.cache
    def traces() -> tuple[Trace, Trace] | str:
        try:
            return trace_linen(linen, signature), trace_nnx(nnx, signature)
        except ModelError as error:
            return error.message

    @functools.cache
    def programs() -> tuple[Program, Sequence[Program]] | str:
        try:
            return linen_program(linen, signature), nnx_programs(nnx, signature)
        except ModelError as error:
            return error.message

    trial = Trial(linen, nnx, signature)
    return Evidence(traces, trial.confirm, trial.silent, programs, trial.shows, trial.measured)
