"""Loops and scans: the axis of the layers is found, in numeric order, or it is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.rules.matching.match import correspond
from tests.rules.matching.boards import Judge, made, model, problems, specs, trace

GATES = ("ir", "iz", "in", "hr", "hz", "hn")


def values(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Numbers that are all different."""
    starts = itertools.accumulate([0, *(int(np.prod(shape)) for shape in shapes.values())])
    return {
        text: (np.arange(np.prod(shape)).reshape(shape) + start).astype(np.float32)
        for (text, shape), start in zip(shapes.items(), starts, strict=False)
    }


def stacked(layers: list[np.ndarray], counts: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """The layers in one array, by NumPy's own means: axes are those of the result."""
    array = np.stack(layers).reshape((*counts, *layers[0].shape))
    return np.moveaxis(array, range(len(counts)), axes)


@st.composite
def loops(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Lengths of one loop or two, the shape of a layer, and the axes of the stacked array; no two lengths are equal."""
    lengths = draw(st.permutations([1, 2, 3, 4, 5, 11]))
    depth, rank = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    axes = tuple(draw(st.permutations(range(depth + rank)))[:depth])
    return tuple(lengths[:depth]), tuple(lengths[depth : depth + rank]), axes


@given(loops(), st.booleans())
def test_every_axis_is_found_by_its_length(
    loop: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], in_linen: bool
):
    counts, shape, axes = loop
    numbers = list(itertools.product(*map(range, counts)))
    looped_names = {n: "/".join(f"{key}_{i}" for key, i in zip("ab", n, strict=False)) + "/w" for n in numbers}
    if in_linen:  # Linen is stacked, NNX has lists
        looped_names = {n: text.replace("_", "/") for n, text in looped_names.items()}
    one = "/".join("ab"[: len(counts)]) + "/w"
    # Names sort as texts do: 10 comes before 2.
    looped = values({looped_names[n]: shape for n in sorted(numbers, key=str)})
    whole = stacked([looped[looped_names[n]] for n in numbers], counts, axes)
    shapes = {text: array.shape for text, array in looped.items()}
    linen, nnx = ({one: whole.shape}, shapes) if in_linen else (shapes, {one: whole.shape})
    models = model("linen", linen), model("nnx", nnx)

    to_nnx = correspond("nnx", specs(linen), {}, *models)
    back = correspond("linen", specs(nnx), {}, *models)
    assert problems(to_nnx) == problems(back) == ""
    folding, unfolding = (back, to_nnx) if in_linen else (to_nnx, back)
    np.testing.assert_array_equal(made(folding, looped)[one], whole)
    for text, array in made(unfolding, {one: whole}).items():
        np.testing.assert_array_equal(array, looped[text])


def test_the_axis_of_a_square_is_refused():
    linen, nnx = {f"block_{i}/w": (3, 3) for i in range(3)}, {"block/w": (3, 3, 3)}
    found = correspond("nnx", specs(linen), {}, model("linen", linen), model("nnx", nnx))
    assert "params/block/w: its shape allows for several axes of the layers (0 or 1 or 2)" in problems(found)
    assert not found.links


def test_other_variables_of_the_loop_tell_the_axis_of_a_square():
    linen = {f"block_{i}/{leaf}": shape for i in range(3) for leaf, shape in (("w", (3, 3)), ("b", (5,)))}
    nnx = {"block/w": (3, 3, 3), "block/b": (5, 3)}
    found = correspond("nnx", specs(linen), {}, model("linen", linen), model("nnx", nnx))
    assert problems(found) == ""
    arrays = values({text: tuple(shape) for text, shape in linen.items()})
    wanted = np.stack([arrays[f"block_{i}/w"] for i in range(3)], axis=1)
    np.testing.assert_array_equal(made(found, arrays)["block/w"], wanted)


def test_each_collection_of_a_scan_has_its_own_axis():
    linen = {f"b_{i}/w": (3, 5) for i in range(3)} | {f"batch_stats:b_{i}/m": (3,) for i in range(3)}
    nnx = {"b/w": (3, 5, 3), "batch_stats:b/m": (3, 3)}
    found = correspond("nnx", specs(linen), {}, model("linen", linen), model("nnx", nnx))
    assert problems(found).startswith("batch_stats/b/m: its shape allows for several axes")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_call_tells_the_axis_of_a_square(axis: int):
    linen, nnx = {f"block_{i}/w": (3, 3) for i in range(3)}, {"block/w": (3, 3, 3)}
    judge = Judge((trace(), trace(scanned={"block/w": (axis,)})), {})
    found = correspond("nnx", specs(linen), {}, model("linen", linen), model("nnx", nnx), judge.evidence)
    assert problems(found) == ""
    arrays = values({text: tuple(shape) for text, shape in linen.items()})
    np.testing.assert_array_equal(made(found, arrays)["block/w"], np.stack(list(arrays.values()), axis=axis))


def test_a_call_that_contradicts_the_shapes_tells_nothing():
    linen, nnx = {f"block_{i}/w": (3, 4) for i in range(4)}, {"block/w": (3, 4, 4)}
    judge = Judge((trace(), trace(scanned={"block/w": (0,)})), {})
    found = correspond("nnx", specs(linen), {}, model("linen", linen), model("nnx", nnx), judge.evidence)
    assert "several axes of the layers (1 or 2)" in problems(found)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 1, 3), (0, 1)])
def test_incomplete_loops_are_no_loops(numbers: tuple[int, ...]):
    linen, nnx = {f"block_{i}/w": (5,) for i in numbers}, {"block/w": (3, 5)}
    found = correspond("nnx", specs(linen), {}, model("linen", linen), model("nnx", nnx))
    assert not found.links
    assert len(found.problems) == 1 + len(numbers)


def test_layers_of_different_shapes_are_no_loop():
    linen, nnx = {"block_0/w": (5,), "block_1/w": (6,)}, {"block/w": (2, 5)}
    assert not correspond("nnx", specs(linen), {}, model("linen", linen), model("nnx", nnx)).links


@pytest.mark.parametrize("in_linen", [True, False])
def test_loops_of_fused_gates(in_linen: bool):
    """Three layers with three gates each are one array in NNX; or the other way round, each gate is one in Linen."""
    gates = {f"cell_{i}/{gate}/kernel": (2, 4) for i in range(3) for gate in GATES}
    fused = {f"cell/{i}/dense_{side}/kernel": (2, 12) for i in range(3) for side in "ih"}
    if in_linen:
        linen = {f"cell/{gate}/kernel": (3, 2, 4) for gate in GATES}
        nnx, layers = fused, {f"cell/{i}": "GRUCell" for i in range(3)}
    else:
        linen, nnx, layers = gates, {f"cell/dense_{side}/kernel": (3, 2, 12) for side in "ih"}, {"cell": "GRUCell"}
    models = model("linen", linen), model("nnx", nnx, layers)
    found = correspond("nnx", specs(linen), {}, *models)
    back = correspond("linen", specs(nnx), {}, *models)
    assert problems(found) == ""
    arrays = values({text: tuple(shape) for text, shape in linen.items()})
    result = made(found, arrays)
    for side, layer in itertools.product("ih", range(3)):
        wanted = [f"{side}{gate}" for gate in "rzn"]
        if in_linen:
            parts = [arrays[f"cell/{gate}/kernel"][layer] for gate in wanted]
            np.testing.assert_array_equal(result[f"cell/{layer}/dense_{side}/kernel"], np.concatenate(parts, -1))
        else:
            parts = [arrays[f"cell_{layer}/{gate}/kernel"] for gate in wanted]
            np.testing.assert_array_equal(result[f"cell/dense_{side}/kernel"][layer], np.concatenate(parts, -1))
    returned = {text: array for text, array in made(back, result).items() if not text.endswith("bias")}
    assert returned.keys() == arrays.keys()
    for text, array in returned.items():
        np.testing.assert_array_equal(array, arrays[text])


def test_numbers_that_are_no_items_are_left_alone():
    """``conv_1`` and ``conv_2`` are attributes; they are not two layers of an array ``conv``."""
    linen = {"conv_1/w": (5,), "conv_2/w": (5,), "head_0/w": (5,)}
    nnx = {"conv/w": (2, 5), "head/0/w": (5,)}
    found = correspond("nnx", specs(linen), {}, model("linen", linen), model("nnx", nnx))
    assert [link.targets[0][1] for link in found.links] == [("head", "0", "w")]
    assert "params/conv/w: expected float32[2,5] by the NNX model, found nothing" in problems(found)
