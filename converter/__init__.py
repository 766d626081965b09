"""flax-convert: Flax NNX checkpoints to Linen and back, verified.

Everything public is named here and imported when first used: ``import converter`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "align": "converter.aligning",
    "convert": "converter.api",
    "diff": "converter.api",
    "inspect": "converter.api",
    "plan": "converter.api",
    "verify": "converter.api",
    "linen_to_nnx": "converter.memory",
    "nnx_to_linen": "converter.memory",
    "verify_outputs": "converter.memory",
    "state_translation": "converter.seed",
    "AlignmentReport": "converter.aligning",
    "Comparison": "converter.comparison",
    "Inspection": "converter.inspection",
    "Options": "converter.options",
    "Plan": "converter.planning.plan",
    "Report": "converter.report",
    "ConverterError": "converter.errors",
    "UsageError": "converter.errors",
    "UnreadableCheckpoint": "converter.errors",
    "UnsupportedCheckpoint": "converter.errors",
    "ConversionRefused": "converter.errors",
    "DestinationError": "converter.errors",
    "ModelError": "converter.errors",
    "VerificationFailed": "converter.errors",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from converter.aligning import AlignmentReport as AlignmentReport
    from converter.aligning import align as align
    from converter.api import convert as convert
    from converter.api import diff as diff
    from converter.api import inspect as inspect
    from converter.api import plan as plan
    from converter.api import verify as verify
    from converter.comparison import Comparison as Comparison
    from converter.errors import ConversionRefused as ConversionRefused
    from converter.errors import ConverterError as ConverterError
    from converter.errors import DestinationError as DestinationError
    from converter.errors import ModelError as ModelError
    from converter.errors import UnreadableCheckpoint as UnreadableCheckpoint
    from converter.errors import UnsupportedCheckpoint as UnsupportedCheckpoint
    from converter.errors import UsageError as UsageError
    from converter.errors import VerificationFailed as VerificationFailed
    from converter.inspection import Inspection as Inspection
    from converter.memory import linen_to_nnx as linen_to_nnx
    from converter.memory import nnx_to_linen as nnx_to_linen
    from converter.memory import verify_outputs as verify_outputs
    from converter.options import Options as Options
    from converter.planning.plan import Plan as Plan
    from converter.report import Report as Report
    from converter.seed import state_translation as state_translation


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
