"""What can be done to arrays: their bits are moved and nothing else, and what is lost is told."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from converter.dtypes import numpy_dtype
from converter.errors import ConversionRefused, UnsupportedCheckpoint
from converter.rules.operations import (
    REWRAP,
    Agree,
    Assemble,
    Cast,
    CastCounter,
    Concat,
    Copies,
    Drop,
    Fill,
    MoveAxis,
    NotInvertible,
    Operation,
    Part,
    Reshape,
    Select,
    Split,
    Stack,
    Transpose,
    Unfit,
    Unstack,
    chain,
    fill_number,
    without_casts,
)
from converter.tree import LeafKind, LeafSpec, array_spec, empty_spec
from tests.rules.operations.moves import (
    DTYPES,
    KEY,
    assemblies,
    assert_like,
    assert_same,
    fitting_operations,
    leaves,
    random_array,
)

RANGES = {"int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1)}


def test_rewrapping_hands_on_the_very_same_object():
    value = object()
    assert REWRAP.apply([value], [])[0] is value
    assert REWRAP.specs([array_spec("int4", (3,))]) == (array_spec("int4", (3,)),)
    assert REWRAP.name == ""


@pytest.mark.parametrize(
    "counter", [7, np.int32(7), np.uint32(7), np.int64(7), np.array(7, np.uint8), jnp.int32(7), jnp.uint32(7)]
)
@pytest.mark.parametrize("dtype", RANGES)
def test_counters_keep_their_number(counter: Any, dtype: str):
    result = CastCounter(dtype).apply([counter], [])[0]
    assert (result.dtype.name, result.shape, int(result)) == (dtype, (), 7)


def test_counters_of_every_replica_keep_their_shape():
    result = CastCounter("uint32").apply([np.array([[5, 6]], np.int32)], [])[0]
    np.testing.assert_array_equal(result, np.array([[5, 6]], np.uint32))
    assert CastCounter("uint32").specs([array_spec("int32", (1, 2))]) == (array_spec("uint32", (1, 2)),)


def test_counters_without_elements_are_cast():
    assert CastCounter("uint32").apply([np.zeros((0,), np.int32)], [])[0].shape == (0,)


def test_a_python_counter_becomes_an_array():
    cast = CastCounter("int32")
    assert cast.specs([LeafSpec(LeafKind.SCALAR, "int")]) == (array_spec("int32"),)
    assert cast.name == "as int32"


@given(st.sampled_from(sorted(RANGES)), st.integers(-(2**70), 2**70))
def test_a_number_is_kept_or_refused(dtype: str, number: int):
    smallest, largest = RANGES[dtype]
    if smallest <= number <= largest:
        assert int(CastCounter(dtype).apply([number], [])[0]) == number
    else:
        with pytest.raises(UnsupportedCheckpoint) as caught:
            CastCounter(dtype).apply([number], [])[0]
        for word in (dtype, str(smallest), str(largest), str(number)):
            assert word in caught.value.message


@pytest.mark.parametrize(
    ("dtype", "counter"),
    [
        ("uint32", -1),
        ("uint32", 2**32),
        ("int32", 2**31),
        ("int32", np.uint32(2**32 - 1)),
        ("uint32", np.array([3, -3])),
    ],
)
def test_numbers_out_of_range_are_refused(dtype: str, counter: Any):
    with pytest.raises(UnsupportedCheckpoint, match="step: expected a number from"):
        CastCounter(dtype).apply([counter], [])[0]


@pytest.mark.parametrize("counter", [2.5, np.float32(0.5), float("nan"), float("inf")])
def test_what_is_no_whole_number_is_refused(counter: Any):
    with pytest.raises(UnsupportedCheckpoint):
        CastCounter("int32").apply([counter], [])


def test_the_largest_counters_are_kept():
    for dtype, bounds in RANGES.items():
        for bound in bounds:
            assert int(CastCounter(dtype).apply([bound], [])[0]) == bound


def test_a_fill_gives_its_value_when_asked():
    calls = []

    def value() -> tuple[int]:
        calls.append(1)
        return (42,)

    fill = Fill((array_spec("int32"),), "the answer", value)
    assert fill.specs([]) == (array_spec("int32"),)
    assert fill.name == "the answer"
    assert calls == []
    assert fill.apply([], []) == [42]


def test_a_fill_is_known_by_spec_and_reason():
    number = (array_spec("int32"),)
    assert Fill(number, "why", lambda: (1,)) == Fill(number, "why", lambda: (2,))
    assert Fill(number, "why") != Fill(number, "why else")


# Operations that move elements ---------------------------------------------------------------------------------------


@given(leaves(), st.data())
def test_what_moves_elements_tells_what_it_makes_and_undoes_itself(found: Any, data: st.DataObject):
    sources, arrays = found
    operation, specs = data.draw(fitting_operations(sources))
    assert list(operation.specs(sources)) == specs
    made = operation.apply(arrays, sources)
    assert_like(made, specs)
    assert not operation.looks_at_values
    assert operation.objection(arrays, sources) == ""
    back = operation.inverse()
    assert list(back.specs(specs)) == sources
    assert_same(back.apply(made, specs), arrays)
    assert_same(back.inverse().apply(arrays, sources), made)


@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), st.integers(-2, 1), st.sampled_from(DTYPES))
def test_parts_of_different_lengths(sizes: list[int], axis: int, dtype: str):
    shapes = [(size, 2) if axis % 2 == 0 else (2, size) for size in sizes] * 2
    specs = [array_spec(dtype, shape) for shape in shapes]
    arrays = [random_array(dtype, shape, seed) for seed, shape in enumerate(shapes)]
    concat = Concat(len(sizes), axis, tuple(sizes))
    made = concat.apply(arrays, specs)
    assert_like(made, list(concat.specs(specs)))
    assert_same(concat.inverse().apply(made, concat.specs(specs)), arrays)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e5m2", "float8_e4m3fn"])
def test_signalling_nans_of_jax_stay_what_they_are(dtype: str, jitted: bool):
    """XLA on the CPU joins bfloat16 and float8 by way of float32, which makes quiet NaNs of them."""
    every = np.arange(2 ** (8 * numpy_dtype(dtype).itemsize))
    array = every.astype(f"uint{8 * numpy_dtype(dtype).itemsize}").view(numpy_dtype(dtype)).reshape(16, -1)
    specs = [array_spec(dtype, array.shape)] * 2
    for operation in (Stack(2, 1), Concat(2, 0)):
        apply = jax.jit(lambda values, made=operation: made.apply(values, specs)) if jitted else operation.apply
        made = apply([jnp.asarray(array)] * 2) if jitted else apply([jnp.asarray(array), array], specs)
        assert_same(made, operation.apply([array, array], specs))


def test_typed_keys_are_moved_as_they_are():
    keys = [jax.random.split(jax.random.key(seed), 3) for seed in range(2)]
    specs = [LeafSpec(LeafKind.KEY, KEY, (3,))] * 2
    operation = chain(Stack(2, -1), Transpose())
    (made,) = operation.apply(keys, specs)
    assert made.shape == operation.specs(specs)[0].shape == (2, 3)
    back = operation.inverse().apply([made], operation.specs(specs))
    for key, other in zip(keys, back, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(other))


def test_scalars_of_numpy_become_arrays_with_axes():
    scalars = [LeafSpec(LeafKind.NUMPY_SCALAR, "float32")] * 2
    values = [np.float32(1), np.float32(2)]
    assert Stack(2).specs(scalars) == (array_spec("float32", (2,)),)
    assert Reshape((), (1,)).specs(scalars) == (array_spec("float32", (1,)),) * 2
    (made,) = Stack(2).apply(values, scalars)
    np.testing.assert_array_equal(made, np.array([1, 2], np.float32))
    assert_like(Unstack(2).apply([made], [array_spec("float32", (2,))]), [array_spec("float32")] * 2)


def test_operations_work_inside_of_jit():
    operation = chain(Concat(2), Stack(2, 1), Reshape((3, 2, 4), (3, 8)), Transpose())
    specs = [array_spec("float32", (3, 2))] * 4
    arrays = [jnp.asarray(random_array("float32", (3, 2), seed)) for seed in range(4)]
    made = jax.jit(lambda values: operation.apply(values, specs))(arrays)
    assert_same(made, operation.apply(arrays, specs))


SCALAR, EMPTY, TEXT = LeafSpec(LeafKind.SCALAR, "float"), empty_spec("dict"), LeafSpec(LeafKind.TEXT, "str")


@pytest.mark.parametrize("spec", [SCALAR, EMPTY, TEXT], ids=str)
@pytest.mark.parametrize(
    "operation",
    [Stack(1), Unstack(1), Concat(1), Split(1), Reshape((), (1,)), Transpose(), MoveAxis(0, 0), Select(0, 0)],
    ids=lambda operation: type(operation).__name__,
)
def test_what_has_no_axes_cannot_be_moved(operation: Operation, spec: LeafSpec):
    with pytest.raises(Unfit, match="needs arrays, found"):
        operation.specs([spec])


@pytest.mark.parametrize(
    ("operation", "shapes", "words"),
    [
        (Stack(2), [(3,), (4,)], "equal leaves"),
        (Stack(2), [(3,)] * 3, "2 leaves at a time, found 3"),
        (Stack(2, 2), [(3,)] * 2, "no axis 2 among 2"),
        (Stack(2, -3), [(3,)] * 2, "no axis -3 among 2"),
        (Unstack(2), [(3,)], "unstack into 2"),
        (Unstack(2), [()], "no axis 0 among 0"),
        (Concat(2), [(3,)], "2 leaves at a time, found 1"),
        (Concat(2), [(3,), (4,)], "lengths 3,3"),
        (Concat(2, 0), [(3, 2), (3, 5)], "differ along axis 0 alone"),
        (Concat(2, -1), [(3, 2), (2,)], "lengths 2,2"),
        (Concat(2, 0, (1, 2)), [(2,), (1,)], "lengths 1,2"),
        (Concat(2, 0), [(), ()], "no axis 0 among 0"),
        (Split(2), [(3,)], "2 equal parts"),
        (Split(2, 0, (1, 1)), [(3,)], "lengths 1,1"),
        (Split(3, 0, (1, 2)), [(3,)], "lengths 1,2"),
        (Reshape((3, 2), (6,)), [(2, 3)], "reshape"),
        (Reshape((3, 2), (5,)), [(3, 2)], "reshape"),
        (Transpose((0,)), [(2, 3)], "transpose 0"),
        (Transpose((0, 0)), [(2, 3)], "transpose 0,0"),
        (MoveAxis(0, 2), [(2, 3)], "no axis 2 among 2"),
        (Select(0, 3), [(3,)], "select 3"),
        (Select(0, 2, 2), [(3,)], "select 2:2"),
        (Select(0, 1, 4), [(3,)], "select 1:4"),
        (Select(1, 0), [(3,)], "no axis 1 among 1"),
        (Agree((REWRAP, REWRAP)), [(2,), (3,)], "copies of one array must be equal"),
        (Agree((REWRAP, REWRAP)), [(2,)], "2 copies of one array expected, found 1"),
    ],
)
def test_shapes_that_do_not_fit(operation: Operation, shapes: list[tuple[int, ...]], words: str):
    with pytest.raises(Unfit, match=words):
        operation.specs([array_spec("float32", shape) for shape in shapes])


def test_only_equal_dtypes_become_one():
    different = [array_spec("float32", (2,)), array_spec("bfloat16", (2,))]
    for operation in (Stack(2), Concat(2), Agree((REWRAP, REWRAP))):
        with pytest.raises(Unfit):
            operation.specs(different)


# Operations that lose or invent --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (CastCounter("int32"), "dtype from the framework"),
        (Select(0, 1), "'select 1, axis 0' leaves out"),
        (Drop("no such layer"), "it was dropped: no such layer"),
        (Fill((array_spec("float32"),), "the model's own"), "one side only .the model's own."),
        (chain(Transpose(), Select(0, 1)), "leaves out"),
    ],
)
def test_why_an_operation_has_no_inverse(operation: Operation, words: str):
    with pytest.raises(NotInvertible, match=words):
        operation.inverse()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_selecting(shape: list[int], data: st.DataObject):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    start = data.draw(st.integers(0, shape[axis] - 1))
    stop = data.draw(st.none() | st.integers(start + 1, shape[axis]))
    spec, array = array_spec("bfloat16", shape), random_array("bfloat16", tuple(shape), 0)
    select = Select(axis, start, stop)
    made = select.apply([array], [spec])
    assert_like(made, list(select.specs([spec])))
    wanted = np.take(array, range(start, stop) if stop else start, axis)
    assert_same(made, [np.asarray(wanted)])


def test_what_is_dropped_may_have_to_be_a_number():
    drop = Drop("no bias here", expected=0.0)
    specs = [array_spec("float32", (2,))] * 2
    zero, other = np.array([0.0, -0.0], np.float32), np.array([0.0, 1e-45], np.float32)
    assert drop.looks_at_values
    assert drop.objection([zero, jnp.asarray(zero)], specs) == ""
    assert drop.objection([zero, other], specs) == "no bias here, and not all its values are 0"
    assert drop.objection([np.full(2, np.nan, np.float32)], specs[:1])
    assert drop.lossy().objection([other], specs[:1]) == ""
    assert not drop.lossy().looks_at_values
    assert (drop.specs(specs), drop.apply([zero, other], specs)) == ((), [])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4", "float8_e4m3fn", "bool", "complex64"])
def test_a_number_that_was_filled_in_may_be_dropped_again(dtype: str):
    spec = array_spec(dtype, (2, 3))
    fill = fill_number(spec, 1.0, "not in the checkpoint")
    (made,) = fill.apply([], [])
    assert_like([made], [spec])
    assert fill.inverse().objection([made], [spec]) == ""
    made[0, 0] = 0
    assert "not all its values are 1" in fill.inverse().objection([made], [spec])


def test_copies_must_agree_to_become_one_again():
    views = (REWRAP, Transpose())
    spec, array = array_spec("float32", (2, 3)), random_array("float32", (2, 3), 0)
    copies = Copies(views)
    made = copies.apply([array], [spec])
    assert made[0] is array
    specs = copies.specs([spec])
    assert_like(made, list(specs))
    agree = copies.inverse()
    assert agree == Agree(views)
    assert agree.inverse() == copies
    assert agree.specs(specs) == (spec,)
    assert agree.looks_at_values
    assert agree.objection(made, specs) == ""  # NaNs among them
    assert_same(agree.apply(made, specs), [array])
    other = [made[0], made[1].copy()]
    other[1][0, 0] = 7 if other[1][0, 0] != 7 else 8
    assert "do not hold the same" in agree.objection(other, specs)
    assert agree.lossy().objection(other, specs) == ""
    assert_same(agree.lossy().apply(other, specs), [array])


def test_a_zero_is_not_the_negative_zero():
    specs = [array_spec("float32", (1,))] * 2
    assert Agree((REWRAP, REWRAP)).objection([np.zeros(1, np.float32), -np.zeros(1, np.float32)], specs)


@pytest.mark.parametrize(("dtype", "upper"), [("int4", 0xF0), ("uint4", 0xF0), ("int2", 0xFC)])
def test_the_upper_bits_of_small_types_mean_nothing(dtype: str, upper: int):
    """ml_dtypes stores a number of four bits in a byte, and leaves anything in the others."""
    assert hasattr(ml_dtypes, dtype)
    clean = np.array([1, 0], np.uint8)
    dirty = clean | np.uint8(upper)
    arrays = [bits.view(numpy_dtype(dtype)) for bits in (clean, dirty)]
    specs = [array_spec(dtype, (2,))] * 2
    assert Agree((REWRAP, REWRAP)).objection(arrays, specs) == ""
    assert Agree((REWRAP, REWRAP)).objection([arrays[0], arrays[1][::-1]], specs)


WIDENING = [
    ("bfloat16", "float32"),
    ("float16", "float32"),
    ("int4", "int8"),
    ("float32", "float64"),
    ("int32", "int64"),
]


@pytest.mark.parametrize(("narrow", "wide"), WIDENING)
@pytest.mark.parametrize("container", [np.asarray, jnp.asarray])
def test_casts_there_and_back(narrow: str, wide: str, container: Any):
    specs, array = [array_spec(narrow, (3,))], container(np.array([1, 0, 2]).astype(numpy_dtype(narrow)))
    cast = Cast(narrow, wide)
    made = cast.apply([array], specs)
    assert_like(made, list(cast.specs(specs)))
    back = cast.inverse()
    assert back == Cast(wide, narrow, exact=True)
    assert back.looks_at_values
    assert back.objection(made, cast.specs(specs)) == ""
    assert_same(back.apply(made, cast.specs(specs)), [array])
    assert not back.inverse().looks_at_values


def test_a_narrowing_cast_refuses_what_does_not_survive():
    back = Cast("bfloat16", "float32").inverse()
    spec = array_spec("float32", (2,))
    for value in (1.0001, 1e39, 1e-45):
        with np.errstate(over="ignore"):
            array = np.array([1, value]).astype(np.float32)
        survives = np.isinf(array[1])
        assert bool(back.objection([array], [spec])) != survives
        assert back.lossy().objection([array], [spec]) == ""
    numbers = Cast("float32", "int8", exact=True)
    for wrong in (0.5, 300.0, np.nan):
        assert numbers.objection([np.array([wrong], np.float32)], [array_spec("float32", (1,))])


def test_a_cast_demands_its_dtype():
    for spec in (array_spec("float16", (1,)), SCALAR, LeafSpec(LeafKind.KEY, KEY, (1,))):
        with pytest.raises(Unfit, match="cast float32 → bfloat16 does not fit"):
            Cast("float32", "bfloat16").specs([spec])


def test_mirrors_of_another_dtype_are_not_cast():
    operation = chain(Stack(2), Cast("float32", "bfloat16"), Transpose())
    assert without_casts(operation) == chain(Stack(2), Transpose())
    assert without_casts(Cast("float32", "bfloat16")) == REWRAP


def test_a_chain_asks_each_of_its_operations():
    operation = chain(Transpose(), Cast("float32", "bfloat16", exact=True), Stack(2))
    specs = [array_spec("float32", (2, 2))] * 2
    good, bad = np.ones((2, 2), np.float32), np.full((2, 2), 1.0001, np.float32)
    assert operation.looks_at_values
    assert operation.objection([good, good], specs) == ""
    assert "not every value survives" in operation.objection([good, bad], specs)
    assert operation.lossy().objection([good, bad], specs) == ""
    assert operation.lossy().specs(specs) == operation.specs(specs)


@pytest.mark.parametrize(
    "operation",
    [Drop("why", 0.0), Agree((REWRAP, REWRAP)), Cast("float32", "bfloat16", exact=True), Cast("float32", "float64")],
    ids=lambda operation: type(operation).__name__,
)
def test_values_are_not_known_inside_of_jit(operation: Operation):
    specs = [array_spec("float32", (2,))] * 2

    def look(array: Any) -> Any:
        operation.objection([array, array], specs)
        return operation.apply([array, array], specs)

    with pytest.raises(ConversionRefused, match="not known inside"):
        jax.jit(look)(jnp.ones(2))


# Arrays put together from parts --------------------------------------------------------------------------------------

ASSEMBLED = Assemble(
    # The second array turned around stands left of the first one, in every row of the result.
    (Part(1, 0, (0, 0), ((3, 1, 5), (2, 3, 1))), Part(0, 0, (0, 2), ((3, 3, 5), (3, 1, 1)))),
    ((3, 3), (2, 3)),
    ((3, 5),),
)


def test_parts_come_to_their_places():
    first, second = np.arange(9.0).reshape(3, 3), 10 + np.arange(6.0).reshape(2, 3)
    specs = [array_spec("float64", (3, 3)), array_spec("float64", (2, 3))]
    assert ASSEMBLED.specs(specs) == (array_spec("float64", (3, 5)),)
    (made,) = ASSEMBLED.apply([first, second], specs)
    assert np.array_equal(made, np.concatenate([second.T, first], 1))
    back = ASSEMBLED.inverse()
    assert [np.array_equal(*pair) for pair in zip(back.apply([made], ()), (first, second), strict=True)] == [True, True]
    assert back.inverse() == ASSEMBLED
    assert ASSEMBLED.name == "put together from 2 parts"


@given(leaves(), st.data())
@settings(deadline=None)
def test_parts_keep_all_their_bits(found: Any, data: st.DataObject):
    specs, arrays = found
    assume(specs[0].kind is LeafKind.ARRAY)
    operation = data.draw(assemblies(specs))
    made = operation.apply(arrays, specs)
    assert_like(made, list(operation.specs(specs)))
    assert_same(operation.apply([np.asarray(array) for array in arrays], specs), made)
    assert_same(operation.inverse().apply(made, operation.specs(specs)), arrays)


@pytest.mark.parametrize(
    "specs",
    [
        [array_spec("float32", (3, 3))],
        [array_spec("float32", (3, 3)), array_spec("float32", (3, 2))],
        [array_spec("float32", (3, 3)), array_spec("bfloat16", (2, 3))],
        [LeafSpec(LeafKind.KEY, KEY, (3, 3)), LeafSpec(LeafKind.KEY, KEY, (2, 3))],
    ],
)
def test_parts_of_other_arrays_are_refused(specs: list[LeafSpec]):
    with pytest.raises(Unfit, match="found"):
        ASSEMBLED.specs(specs)
