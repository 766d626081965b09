"""Model definitions, evaluated abstractly: what they tell about variables without allocating an array."""

from converter.models.initial import InitialValues
from converter.models.layers import Layer
from converter.models.linen import linen_leaves, linen_model, linen_variables_model
from converter.models.model import Model, ModelVariable, vocabulary
from converter.models.nnx import (
    array_leaves,
    collection_of,
    nnx_model,
    nnx_model_from_factory,
    nnx_state_model,
    raw_value,
)
from converter.models.optimizer import optimizer_state_leaves
from converter.models.trace import Trace, trace_linen, trace_nnx
from converter.pytrees import state_path

__all__ = [
    "InitialValues",
    "Layer",
    "Model",
    "ModelVariable",
    "Trace",
    "array_leaves",
    "collection_of",
    "linen_leaves",
    "linen_model",
    "linen_variables_model",
    "nnx_model",
    "nnx_model_from_factory",
    "nnx_state_model",
    "optimizer_state_leaves",
    "raw_value",
    "state_path",
    "trace_linen",
    "trace_nnx",
    "vocabulary",
]
