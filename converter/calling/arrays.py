"""The arrays among the arguments of a call, and calls with others in their places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from converter.calling.inputs import Arguments
from converter.calling.signature import Signature

Fill = Callable[[Sequence[Any]], Signature]
"""Puts arrays in the places of those among the arguments of a call."""


def array_inputs(signature: Signature) -> tuple[list[Any], Fill]:
    """The arrays and ShapeDtypeStructs among the arguments of a call, and what puts others in their places."""
    import jax
    import numpy as np

    leaves, structure = signature.arguments.leaves()
    kinds = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, kinds)]

    def fill(arrays: Sequence[Any]) -> Signature:
        filled = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
        return signature.calling(Arguments(*structure.unflatten(filled.values())))

    return [leaves[place] for place in places], fill
