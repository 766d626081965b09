"""Model definitions, evaluated abstractly: what they tell about variables without allocating an array."""

from converter.models.linen import linen_leaves, linen_model
from converter.models.model import Model, ModelVariable
from converter.models.nnx import (
    RandomState,
    array_leaves,
    collection_of,
    nnx_model,
    nnx_model_from_factory,
    nnx_state_model,
    raw_value,
    state_path,
)
from converter.models.optimizer import optimizer_state_leaves

__all__ = [
    "Model",
    "ModelVariable",
    "RandomState",
    "array_leaves",
    "collection_of",
    "linen_leaves",
    "linen_model",
    "nnx_model",
    "nnx_model_from_factory",
    "nnx_state_model",
    "optimizer_state_leaves",
    "raw_value",
    "state_path",
]
