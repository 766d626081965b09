"""Arrays that stand in a file in one piece, as they are in memory: a grid of one chunk that is not encoded."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from converter.formats import decoding, zarr
from converter.grid import Encoding, Form, Grid, Index, whole
from converter.stored import Extent
from converter.tree import LazyLeaf, Leaf, LeafKind, LeafSpec


def raw_leaf(spec: LeafSpec, extent: Extent, *, dtype: str = "", fortran: bool = False) -> Leaf:
    """The leaf of an array, a NumPy scalar or a Python number whose bytes are those at ``extent``.

    Args:
      dtype: NumPy's type string of the elements where it does not follow from the spec: of Python numbers, and of
        big-endian ones.
      fortran: the first axis runs fastest.
    """
    grid = functools.partial(raw_grid, spec, extent, dtype, fortran=fortran)
    fetch = functools.partial(_fetch, spec, grid)
    return LazyLeaf(spec, fetch) if spec.kind is LeafKind.SCALAR else LazyLeaf(spec, fetch, grid)


def raw_grid(spec: LeafSpec, extent: Extent, dtype: str = "", *, fortran: bool = False) -> Grid:
    """How an array lies whose bytes are those at ``extent``."""
    form, places = _raw_form(spec, dtype, fortran)
    return Grid(form, dict.fromkeys(places, extent))


@functools.lru_cache(maxsize=4096)
def _raw_form(spec: LeafSpec, dtype: str, fortran: bool) -> tuple[Form, tuple[Index, ...]]:
    """How such arrays lie, and the places of their chunks: one, or none where there is nothing in it."""
    form = whole(spec.shape, Encoding(dtype or zarr.type_string(spec.dtype)))
    if fortran:
        form = replace(form, order=form.order[::-1])
    return form, ((0,) * len(spec.shape),) if spec.size else ()


def _fetch(spec: LeafSpec, grid: functools.partial[Grid]) -> Any:
    array = decoding.read(grid())
    match spec.kind:
        case LeafKind.SCALAR:
            return array.item()
        case LeafKind.NUMPY_SCALAR:
            return array[()]
        case _:
            return array
