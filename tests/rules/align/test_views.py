"""Views are what NumPy makes of an array by slicing, reshaping and transposing it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from converter.rules.align.views import View

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@st.composite
def changed(draw: st.DrawFn) -> tuple[View, np.ndarray]:
    """A view, and the positions in the same arrangement by NumPy."""
    shape = draw(SHAPES)
    view, array = View.whole(0, shape), np.arange(np.prod(shape)).reshape(shape)
    for _ in range(draw(st.integers(0, 5))):
        match draw(st.sampled_from(["take", "transpose", "reshape"])):
            case "take":
                axis = draw(st.integers(0, array.ndim - 1))
                rows = np.arange(array.shape[axis])
                start, step = draw(st.integers(0, len(rows) - 1)), draw(st.sampled_from([1, 1, 2, 3, -1]))
                taken = rows[start::step][: draw(st.integers(1, 6))]
                made = view.taken(axis, start, len(taken), step if len(taken) > 1 else 1)
                array = array if made is None else np.take(array, taken, axis)
                view = made or view
            case "transpose":
                order = draw(st.permutations(range(array.ndim)))
                view, array = view.transposed(order), array.transpose(order)
            case _:
                sizes = draw(st.permutations(_factors(array.size)))
                cut = draw(st.integers(0, len(sizes)))
                target = (int(np.prod(sizes[:cut], dtype=int)), *sizes[cut:])
                made = view.reshaped(target)
                array = array if made is None else array.reshape(target)
                view = made or view
    return view, array


def _factors(number: int) -> list[int]:
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found or [1]


@given(changed())
def test_views_follow_numpy(case: tuple[View, np.ndarray]):
    view, array = case
    assert view.shape == array.shape
    assert np.array_equal(view.positions(), array)


@given(changed(), changed())
def test_equal_regions_are_the_same_elements(one: tuple[View, np.ndarray], other: tuple[View, np.ndarray]):
    if one[0].region == other[0].region:
        assert set(one[1].ravel()) == set(other[1].ravel())


@given(changed())
def test_the_order_of_elements_does_not_count_in_a_region(case: tuple[View, np.ndarray]):
    view, array = case
    turned = view.transposed(range(array.ndim)[::-1])
    assert turned.region == view.region
    assert view.region.size == array.size


def test_what_strides_cannot_say():
    whole = View.whole(0, (2, 3))
    assert whole.transposed((1, 0)).reshaped((2, 3)) is None
    assert View.whole(0, (2, 3)).reshaped((7,)) is None
    columns = whole.transposed((1, 0)).reshaped((6,))
    assert columns is not None
    assert columns.taken(0, 1, 3) is None
