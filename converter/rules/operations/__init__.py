"""What can be done to the arrays on their way from one framework to the other."""

from converter.rules.operations.assemble import Assemble, Part
from converter.rules.operations.changing import (
    Agree,
    Cast,
    CastCounter,
    Copies,
    Drop,
    Fill,
    Select,
    fill_number,
    without_casts,
)
from converter.rules.operations.moving import (
    REWRAP,
    Chain,
    Concat,
    MoveAxis,
    Reshape,
    Rewrap,
    Split,
    Stack,
    Transpose,
    Unstack,
    chain,
)
from converter.rules.operations.operation import NotInvertible, Operation, Unfit
from converter.rules.operations.rearrange import Rearrange, parse_rearrange
from converter.rules.operations.regroup import Regroup

__all__ = [
    "REWRAP",
    "Agree",
    "Assemble",
    "Cast",
    "CastCounter",
    "Chain",
    "Concat",
    "Copies",
    "Drop",
    "Fill",
    "MoveAxis",
    "NotInvertible",
    "Operation",
    "Part",
    "Rearrange",
    "Regroup",
    "Reshape",
    "Rewrap",
    "Select",
    "Split",
    "Stack",
    "Transpose",
    "Unfit",
    "Unstack",
    "chain",
    "fill_number",
    "parse_rearrange",
    "without_casts",
]
