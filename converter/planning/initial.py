"""What the source does not have and the NNX model has by itself: random state, and arrays that are no Variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from converter.dialects.dialect import Dialect
from converter.paths import format_path
from converter.planning.findings import Findings
from converter.planning.plan import Step, Transfer
from converter.planning.request import Request
from converter.rules.operations import Fill
from converter.training_state import Part, Slot

if TYPE_CHECKING:
    from converter.models import InitialValues, ModelVariable


def from_the_model(
    unfilled: Sequence[ModelVariable], target: Dialect, request: Request, findings: Findings
) -> list[Step]:
    """Steps that fill in what no source does, from a freshly made NNX model."""
    model = request.nnx_model
    wanted = [v for v in unfilled if request.fill_random_state or not v.is_random_state]
    if len(wanted) < len(unfilled) and request.target is None:
        findings.notes.append("random state is not written: the NNX model keeps its own")
    if model is None and request.template is not None:
        why = "the model's to make: --nnx-model fills it in"
        findings.notes += [f"{format_path(v.path)} {v.spec} is in the --like checkpoint only, {why}" for v in unfilled]
    if model is None or not request.fill_from_model:
        return []
    from converter.models import InitialValues

    values = InitialValues(model)
    steps = []
    for variable in wanted:
        path = target.lower(Slot(Part.VARIABLES, variable.collection, variable.path))
        if path is not None:
            steps.append(Step(path, Transfer(_initial(values, variable), ())))
    return steps


def _initial(values: InitialValues, variable: ModelVariable) -> Fill:
    what = "random state" if variable.is_random_state else "array"
    read = values.reader(variable)
    return Fill((variable.spec,), f"the model's own initial {what}", lambda: (read(),))
