"""Random arrays, and operations that move their elements."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from converter.dtypes import element_bits, numpy_dtype
from converter.rules.operations import (
    REWRAP,
    Assemble,
    Concat,
    MoveAxis,
    Operation,
    Part,
    Regroup,
    Reshape,
    Split,
    Stack,
    Transpose,
    Unstack,
    chain,
)
from converter.tree import LeafKind, LeafSpec, array_spec

DTYPES = ["float32", "float64", "bfloat16", "float16", "float8_e4m3fn", "int4", "int8", "uint32", "bool", "complex64"]
KEY = "threefry2x32"


def random_array(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Every bit pattern that the dtype has, NaNs among them."""
    generator = np.random.default_rng(seed)
    if dtype == KEY:
        return generator.integers(0, 2**32, (*shape, 2), np.uint32)
    if dtype in ("bool", "int4"):
        return generator.integers(0, 2, shape).astype(numpy_dtype(dtype))
    wanted = numpy_dtype(dtype)
    data = generator.integers(0, 256, (*shape, wanted.itemsize), np.uint8)
    return data.view(wanted).reshape(shape)


@st.composite
def leaves(draw: st.DrawFn) -> tuple[list[LeafSpec], list[Any]]:
    """Some equal specs, with NumPy arrays, JAX arrays or the data of PRNG keys for them."""
    dtype = draw(st.sampled_from([*DTYPES, KEY]))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    count = draw(st.integers(1, 4))
    spec = LeafSpec(LeafKind.KEY, KEY, shape) if dtype == KEY else array_spec(dtype, shape)
    arrays: list[Any] = [random_array(dtype, shape, seed) for seed in range(count)]
    # Not often: JAX compiles every operation anew for every shape.
    if dtype not in ("float64", KEY) and draw(st.integers(0, 3)) == 0:
        arrays = [jnp.asarray(array) for array in arrays]
    return [spec] * count, arrays


@st.composite
def fitting_operation(draw: st.DrawFn, specs: list[LeafSpec]) -> Operation:
    """An operation that can be done to these leaves, which are all alike."""
    shape, count = specs[0].shape, len(specs)
    rank = len(shape)
    possible = [lambda: REWRAP, Transpose, lambda: Stack(count, draw(st.integers(-rank - 1, rank)))]
    possible.append(lambda: Transpose(tuple(draw(st.permutations(range(rank))))))
    possible.append(lambda: Regroup((1, count), (1, 0)))
    possible.append(lambda: Reshape(shape, (specs[0].size, 1)))
    if count % 2 == 0:
        possible.append(lambda: Regroup((count // 2, 2), (1, 0)))
        possible.append(lambda: Stack(2, draw(st.integers(-rank - 1, rank))))
    if rank:
        axes = st.integers(-rank, rank - 1)
        possible.append(lambda: Concat(count, draw(axes)))
        possible.append(lambda: MoveAxis(draw(axes), draw(axes)))
        axis = draw(axes)
        if shape[axis]:
            possible.append(lambda: Unstack(shape[axis], axis))
            possible.append(lambda: Split(shape[axis], axis))
    return draw(st.sampled_from(possible))()


@st.composite
def assemblies(draw: st.DrawFn, specs: list[LeafSpec]) -> Assemble:
    """Each array transposed and flat, behind others."""
    shape, size = specs[0].shape, specs[0].size
    order, places = draw(st.permutations(range(len(shape)))), draw(st.permutations(range(len(specs))))
    before = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    after = {axis: math.prod(shape[other] for other in order[at + 1 :]) for at, axis in enumerate(order)}
    steps = tuple((shape[axis], before[axis], after[axis]) for axis in range(len(shape)))
    parts = tuple(Part(number, 0, (0, place * size), steps) for number, place in enumerate(places))
    return Assemble(parts, (shape,) * len(places), ((len(places) * size,),))


@st.composite
def fitting_operations(draw: st.DrawFn, sources: list[LeafSpec]) -> tuple[Operation, list[LeafSpec]]:
    """Some of them one after the other, and the specs of the results."""
    operations: list[Operation] = []
    specs = sources
    for _ in range(draw(st.integers(1, 4))):
        operations.append(draw(fitting_operation(specs)))
        specs = list(operations[-1].specs(specs))
    return chain(*operations), specs


def assert_like(arrays: list[Any], specs: list[LeafSpec]) -> None:
    for array, spec in zip(arrays, specs, strict=True):
        assert hasattr(array, "reshape"), "a NumPy scalar is no array"
        assert not isinstance(array, np.generic)
        words, dtype = ((2,), "uint32") if spec.kind is LeafKind.KEY else ((), spec.dtype)
        assert (tuple(array.shape), array.dtype.name) == ((*spec.shape, *words), dtype)


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    for left, right in zip(found, wanted, strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        np.testing.assert_array_equal(element_bits(np.asarray(left)), element_bits(np.asarray(right)))
