"""Rearranging axes, compared with an interpretation of the notation index by index; and reordering leaves."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.rules.language.fault import Fault
from converter.rules.operations import NotInvertible, Unfit
from converter.rules.operations.rearrange import Rearrange, parse_rearrange
from converter.rules.operations.regroup import Regroup
from converter.tree import LeafKind, LeafSpec, array_spec, empty_spec
from tests.grids import alike, decoded, encoded

Side = tuple[tuple[str, ...], ...]


def by_indices(value: np.ndarray, before: Side, after: Side, lengths: dict[str, int]) -> np.ndarray:
    """What the notation means: the element at every combination of named indices goes to where ``after`` puts it."""
    names = [axis for group in before for axis in group]

    def at(side: Side, index: dict[str, int]) -> tuple[int, ...]:
        places = []
        for group in side:
            place = 0
            for axis in group:
                place = place * lengths[axis] + index[axis]
            places.append(place)
        return tuple(places)

    made = np.empty([math.prod(lengths[a] for a in group) for group in after], value.dtype)
    for numbers in itertools.product(*(range(lengths[name]) for name in names)):
        index = dict(zip(names, numbers, strict=True))
        made[at(after, index)] = value[at(before, index)]
    return made


@st.composite
def rearrangements(draw: st.DrawFn) -> tuple[Side, Side, dict[str, int]]:
    names = list("abcde"[: draw(st.integers(0, 5))])
    lengths = {name: draw(st.integers(1, 3)) for name in names}

    def side() -> Side:
        order = draw(st.permutations(names))
        groups: list[tuple[str, ...]] = []
        while order:
            size = draw(st.integers(0, len(order)))
            groups.append(tuple(order[:size]))
            order = order[size:]
        return tuple(groups)

    return side(), side(), lengths


def text_of(before: Side, after: Side, lengths: dict[str, int]) -> str:
    sides = (" ".join("1" if not g else f"({' '.join(g)})" if len(g) > 1 else g[0] for g in s) for s in (before, after))
    return " -> ".join(sides) + "".join(f", {name}={length}" for name, length in lengths.items())


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=np.int32).reshape(shape)


@given(rearrangements())
def test_it_does_what_the_notation_means(case: tuple[Side, Side, dict[str, int]]):
    before, after, lengths = case
    operation = parse_rearrange(text_of(before, after, lengths))
    value = numbered(tuple(math.prod(lengths[a] for a in group) for group in before))
    spec = array_spec("int32", value.shape)
    (made,) = operation.apply([value], [spec])
    np.testing.assert_array_equal(made, by_indices(value, before, after, lengths))
    assert operation.specs([spec]) == (array_spec("int32", made.shape),)
    inverse = operation.inverse()
    np.testing.assert_array_equal(inverse.apply([made], operation.specs([spec]))[0], value)
    assert inverse.specs(operation.specs([spec])) == (spec,)


CASES = [
    ("d (h k) -> d h k, h=4", (6, 8), (6, 4, 2)),
    ("d (h k) -> h d k, k=4", (6, 8), (2, 6, 4)),
    ("d h k -> d (h k), h=4", (6, 4, 2), (6, 8)),
    ("a b -> b a", (2, 3), (3, 2)),
    ("a -> 1 a 1", (3,), (1, 3, 1)),
    ("1 a () -> a", (1, 3, 1), (3,)),
    ("(1 a) -> a", (3,), (3,)),
    ("a -> a", (0,), (0,)),
    ("(h k)->h k ,h = 2", (4,), (2, 2)),
    ("->1", (), (1,)),
    ("out_features in_1 -> in_1 out_features", (2, 3), (3, 2)),
]


@pytest.mark.parametrize(("text", "before", "after"), CASES)
def test_shapes(text: str, before: tuple[int, ...], after: tuple[int, ...]):
    operation = parse_rearrange(text)
    assert operation.specs([array_spec("float32", before)]) == (array_spec("float32", after),)
    assert operation.apply([np.zeros(before)], [array_spec("float64", before)])[0].shape == after
    assert parse_rearrange(operation.name.removeprefix("rearrange ")) == operation


@given(rearrangements(), st.data())
def test_bytes_stay_where_they_are_or_are_made_anew(case: tuple[Side, Side, dict[str, int]], data: st.DataObject):
    before, after, lengths = case
    operation = parse_rearrange(text_of(before, after, lengths))
    shape = tuple(math.prod(lengths[a] for a in group) for group in before)
    unsplit = encoded(numbered(shape))
    for grid in (unsplit, *data.draw(alike([numbered(shape)]))):
        value, spec = decoded(grid), array_spec("int32", shape)
        made = operation.regrid([grid], [spec])
        if made is not None:
            np.testing.assert_array_equal(decoded(made[0]), operation.apply([value], [spec])[0])
    same_order = [name for group in before for name in group] == [name for group in after for name in group]
    if same_order or all(len(group) == 1 for group in after):
        assert operation.regrid([unsplit], [array_spec("int32", shape)]) is not None


@pytest.mark.parametrize(
    ("text", "shape", "possible"),
    [
        ("d (h k) -> d h k, h=4", (3, 8), True),
        ("a b -> (a b)", (2, 3), True),
        ("a -> 1 a", (3,), True),
        ("a b -> b a", (2, 3), True),
        ("d (h k) -> h d k, h=4", (3, 8), True),
        ("a b -> (b a)", (2, 3), False),
        ("a b c -> b (a c)", (2, 3, 4), False),
    ],
)
def test_what_an_order_of_axes_can_say(text: str, shape: tuple[int, ...], possible: bool):
    made = parse_rearrange(text).regrid([encoded(numbered(shape))], [array_spec("int32", shape)])
    assert (made is not None) is possible


def test_words_of_prng_keys_stay_behind_everything():
    keys = jax.random.split(jax.random.key(0), (2, 3))
    data = np.asarray(jax.random.key_data(keys))
    spec = LeafSpec(LeafKind.KEY, "threefry2x32", (2, 3))
    operation = parse_rearrange("a b -> (b a) 1, a=2")
    (made,) = operation.apply([data], [spec])
    assert operation.specs([spec]) == (LeafSpec(LeafKind.KEY, "threefry2x32", (6, 1)),)
    np.testing.assert_array_equal(made, data.transpose(1, 0, 2).reshape(6, 1, 2))
    np.testing.assert_array_equal(operation.inverse().apply([made], operation.specs([spec]))[0], data)
    assert operation.regrid([encoded(data)], [spec]) is None
    apart = parse_rearrange("a b -> b a")
    (grid,) = apart.regrid([encoded(data)], [spec]) or []
    np.testing.assert_array_equal(decoded(grid), apart.apply([data], [spec])[0])


def test_jax_arrays_and_tracers():
    operation = parse_rearrange("d (h k) -> h d k, h=2")
    value = jnp.arange(12).reshape(3, 4)
    spec = array_spec("int32", (3, 4))
    expected = operation.apply([np.asarray(value)], [spec])[0]
    assert isinstance(operation.apply([value], [spec])[0], jax.Array)
    np.testing.assert_array_equal(jax.jit(lambda x: operation.apply([x], [spec])[0])(value), expected)


def test_nothing_to_do_hands_on_the_very_same_object():
    for value in (np.zeros((3, 2)), jnp.zeros((3, 2))):
        assert parse_rearrange("a b -> a b").apply([value], [array_spec("float32", (3, 2))])[0] is value


def test_a_numpy_scalar_becomes_an_array():
    spec = LeafSpec(LeafKind.NUMPY_SCALAR, "float32")
    assert parse_rearrange(" -> 1").specs([spec]) == (array_spec("float32", (1,)),)
    assert parse_rearrange(" -> 1").apply([np.float32(2)], [spec])[0].shape == (1,)


@pytest.mark.parametrize(
    ("text", "spec", "message"),
    [
        ("d (h k) -> d h k, h=4", array_spec("float32", (8,)), r"expects 2 axes, found float32\[8\]"),
        ("a -> 1 a", array_spec("float32"), r"expects 1 axis, found float32\[\]"),
        ("d (h k) -> d h k, h=4", array_spec("float32", (8, 6)), r"multiple of 4 along \(h k\), found float32\[8,6\]"),
        ("(h k) -> h k, h=4, k=2", array_spec("float32", (12,)), r"expects 8 along \(h k\)"),
        ("1 a -> a", array_spec("float32", (2, 3)), "expects 1 along 1"),
        ("a -> 1 a", empty_spec("none"), "needs arrays"),
    ],
)
def test_leaves_that_do_not_fit(text: str, spec: LeafSpec, message: str):
    with pytest.raises(Unfit, match=message):
        parse_rearrange(text).specs([spec])


def test_without_lengths_there_is_no_way_back():
    with pytest.raises(NotInvertible, match="does not say how long h is"):
        parse_rearrange("d h k -> d (h k)").inverse()


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a b", 3, "'->' is missing"),
        ("", 1, "'->' is missing"),
        ("a -> a -> a", 8, "unexpected '-'"),
        ("a (b -> a b", 3, "not closed"),
        ("a b) -> a b", 4, "unexpected"),
        ("(a (b)) -> a b", 4, "unexpected"),
        ("... a -> a", 1, "unexpected"),
        ("2 a -> a", 1, "unexpected"),
        ("1a -> a", 1, "unexpected"),
        ("a a -> a", 3, "twice"),
        ("a b -> a", 3, "one side only"),
        ("a -> a b", 8, "one side only"),
        ("(h k) -> h k", 2, "both unknown"),
        ("a -> a, b=2", 9, "no axis 'b'"),
        ("a -> a, a=2, a=2", 14, "two lengths"),
        ("a -> a, a", 9, "expected the length"),
        ("a -> a, a=0", 9, "expected the length"),
        ("a -> a, a=-1", 9, "expected the length"),
        ("a -> a,", 8, "expected the length"),
    ],
)
def test_faults_point_at_the_character(text: str, column: int, message: str):
    with pytest.raises(Fault, match=message) as caught:
        parse_rearrange(text)
    assert caught.value.offset + 1 == column


# Other orders of leaves ----------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=4).flatmap(
        lambda counts: st.tuples(st.just(tuple(counts)), st.permutations(range(len(counts))).map(tuple))
    )
)
def test_leaves_are_transposed_like_an_array_of_leaves(case: tuple[tuple[int, ...], tuple[int, ...]]):
    counts, order = case
    operation = Regroup(counts, order)
    items: list[Any] = list(range(2 * math.prod(counts)))
    expected = np.arange(len(items)).reshape(2, *counts).transpose(0, *(1 + at for at in order)).ravel()
    specs = [array_spec("int32", (item,)) for item in items]
    assert operation.apply(items, specs) == list(expected)
    assert [spec.shape for spec in operation.specs(specs)] == [(n,) for n in expected]
    assert operation.inverse().apply(operation.apply(items, specs), specs) == items


def test_leaves_that_cannot_be_counted_so():
    with pytest.raises(Unfit, match="takes 6 leaves"):
        Regroup((2, 3), (1, 0)).apply([1, 2, 3], [])


def test_a_rearrangement_is_a_value():
    assert parse_rearrange("a b->b a") == Rearrange((("a",), ("b",)), (("b",), ("a",)))
