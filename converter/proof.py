"""Running both models on random values: what the rules ask where names and shapes leave a question open.

Synthetic values prove more than those of a checkpoint, whose biases may all be zero and whose scales may all be one:
there a wrong correspondence can go unnoticed.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from converter.errors import ConverterError, ModelError
from converter.live import live_variables, restore_nnx
from converter.models import Model
from converter.models.trace import Trace, trace_linen, trace_nnx
from converter.rules.link import Name, format_name
from converter.rules.matching.board import Piece
from converter.rules.matching.evidence import Evidence
from converter.training_state import RNG_COLLECTIONS, Held, Part, Slot, TrainingState
from converter.tree import Leaf, LeafKind, LeafSpec, format_path, numpy_dtype
from converter.verification.outputs import compare_outputs


def evidence(
    linen_model: Model | None,
    nnx_model: Model | None,
    inputs: Sequence[Any] | None,
    linen_kwargs: Mapping[str, Any],
    nnx_kwargs: Mapping[str, Any],
) -> Evidence | None:
    """What both models tell when they are run on these inputs; None unless both and the inputs are there."""
    if linen_model is None or nnx_model is None or inputs is None:
        return None
    linen, nnx = linen_model, nnx_model

    @functools.cache
    def traces() -> tuple[Trace, Trace] | str:
        try:
            return trace_linen(linen, inputs, linen_kwargs), trace_nnx(nnx, inputs, nnx_kwargs)
        except ModelError as error:
            return error.message

    def confirm(pieces: Sequence[Piece]) -> str:
        return _difference(linen, nnx, pieces, inputs, linen_kwargs, nnx_kwargs)

    return Evidence(traces, confirm)


def _difference(
    linen: Model,
    nnx: Model,
    pieces: Sequence[Piece],
    inputs: Sequence[Any],
    linen_kwargs: Mapping[str, Any],
    nnx_kwargs: Mapping[str, Any],
) -> str:
    """Whether both models give the same outputs for the same random values; empty if they do."""
    specs = {(v.collection, v.path): v.spec for v in linen.variables}
    values = {name: _random(name, spec) for name, spec in specs.items()}
    translated: dict[Name, Any] = {}
    for piece in pieces:
        sources = [specs[name] for name in piece.linen]
        made = piece.to_nnx.apply([values[name] for name in piece.linen], sources)
        translated |= dict(zip(piece.nnx, made, strict=True))
        if not piece.nnx:  # what has no place in NNX has to be such that it does not matter
            values |= {name: np.zeros_like(values[name]) for name in piece.linen}
    missing = [v for v in nnx.variables if _is_needed(v.collection, v.is_plain) and _name(v) not in translated]
    if missing:
        return "nothing is known of " + ", ".join(format_path(v.path) for v in missing[:3])
    try:
        variables = live_variables(_held(values))
        differences = []
        for mode in ("eval", "as it is"):
            module = restore_nnx(_held(translated), nnx)
            if mode == "eval":
                module.eval()
            result = compare_outputs(linen.module, variables, module, inputs, linen_kwargs, nnx_kwargs)
            if result.ok:
                return ""
            differences.append(result.problem or "; ".join(str(output) for output in result.outputs if not output.ok))
        return differences[0]
    except ConverterError as error:
        return error.message


def _name(variable: Any) -> Name:
    return variable.collection, variable.path


def _is_needed(collection: str, is_plain: bool) -> bool:
    return not is_plain and collection not in RNG_COLLECTIONS


def _held(values: Mapping[Name, Any]) -> TrainingState:
    leaves = []
    for (collection, path), value in values.items():
        spec = LeafSpec(LeafKind.ARRAY, value.dtype.name, tuple(value.shape))
        leaf = Leaf(spec, lambda value=value: value)  # type: ignore[misc]
        leaves.append((Slot(Part.VARIABLES, collection, path), Held(path, leaf)))
    return TrainingState(leaves)


def _random(name: Name, spec: LeafSpec) -> Any:
    """Values of which no two variables have the same, and that no layer chokes on.

    Variances are positive; integers (the position in a cache) are zero.
    """
    generator = np.random.default_rng(zlib.crc32(format_name(name).encode()))
    dtype = numpy_dtype(spec.dtype)
    if not _is_inexact(dtype):
        return np.zeros(spec.shape, dtype)
    positive = name[1][-1] in ("var", "sigma") or name[1][-1].endswith("/sigma")
    values = generator.uniform(0.5, 1.5, spec.shape) if positive else generator.normal(0.0, 0.5, spec.shape)
    return values.astype(dtype)


def _is_inexact(dtype: np.dtype[Any]) -> bool:
    import jax.numpy as jnp

    return bool(jnp.issubdtype(dtype, jnp.inexact))
