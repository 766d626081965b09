"""Folding repeated rows: short for people, and nothing that can be counted is lost."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from converter.folding import END, Row, fold, fold_keys, folded

_TOKEN = re.compile(r"\{([^}]*)\}|(?<=[_/])\d+")


def unfolded(line: str) -> list[Row]:
    """The rows that a printed line stands for; columns are two or more blanks apart.

    Braces at the same place of several columns, counted from the end, stand for the same number.
    """
    cells = re.split(r"  +", line)
    tokens = [list(reversed(list(_TOKEN.finditer(cell)))) for cell in cells]
    choices = [members(token.group(1)) if token.group(1) else [token.group()] for token in tokens[0]]
    rows = []
    for chosen in itertools.product(*choices):
        row = []
        for cell, found in zip(cells, tokens, strict=True):
            for position, token in enumerate(found):  # from the end, so that the earlier places stay where they are
                if token.group(1):
                    cell = cell[: token.start()] + chosen[position] + cell[token.end() :]
            row.append(cell)
        rows.append(tuple(row))
    return rows


def members(text: str) -> list[str]:
    """``0…3`` and ``0,2,5`` as lists; leading zeros of the first number are those of all."""
    if "…" not in text:
        return text.split(",")
    first, last = text.split("…")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


# Golden examples -----------------------------------------------------------------------------------------------------


def rows(*lines: str) -> list[Row]:
    return [tuple(re.split(r"  +", line)) for line in lines]


def test_equal_layers_become_one_row():
    found = fold((f"params/layers_{n}/kernel", "float32[8,8]") for n in range(32))
    assert found == ["params/layers_{0…31}/kernel  float32[8,8]"]


def test_the_number_may_be_a_key_of_its_own():
    assert fold((f"layers/{n}/kernel",) for n in range(12)) == ["layers/{0…11}/kernel"]


def test_the_number_is_folded_in_all_columns():
    found = fold((f"layers_{n}/kernel", f"← layers/{n}/kernel/value", "float32[2]") for n in range(4))
    assert found == ["layers_{0…3}/kernel  ← layers/{0…3}/kernel/value  float32[2]"]


def test_gaps_are_spelled_out():
    assert fold((f"layers_{n}",) for n in (0, 1, 3, 10)) == ["layers_{0,1,3,10}"]


def test_members_print_in_numeric_order():
    assert fold((f"layers_{n}",) for n in (10, 2, 9, 1)) == ["layers_{1,2,9,10}"]
    assert fold((f"layers_{n}",) for n in (3, 2, 4)) == ["layers_{2…4}"]


def test_two_numbers_fold_one_after_the_other():
    found = fold((f"Block_{block}/Dense_{dense}/kernel",) for block in range(12) for dense in range(2))
    assert found == ["Block_{0…11}/Dense_{0…1}/kernel"]


def test_the_other_number_may_be_the_same_everywhere():
    found = fold((f"opt_state/0/mu/layers_{n}/Dense_1/kernel",) for n in range(3))
    assert found == ["opt_state/0/mu/layers_{0…2}/Dense_1/kernel"]


def test_unequal_layers_stay_apart():
    lines = ["layers_0/kernel  float32[2]", "layers_1/kernel  float32[3]", "layers_2/kernel  float32[2]"]
    assert fold(rows(*lines)) == ["layers_{0,2}/kernel  float32[2]", "layers_1/kernel      float32[3]"]


def test_mixed_rows_keep_their_order_and_are_aligned():
    found = fold(
        rows(
            "step  int32[]",
            "params/embed/embedding  float32[16,8]",
            "params/layers_0/bias  float32[8]",
            "params/layers_0/kernel  float32[8,8]",
            "params/layers_1/bias  float32[8]",
            "params/layers_1/kernel  float32[8,8]",
            "params/head  bfloat16[8]",
        )
    )
    assert found == [
        "step                        int32[]",
        "params/embed/embedding      float32[16,8]",
        "params/layers_{0…1}/bias    float32[8]",
        "params/layers_{0…1}/kernel  float32[8,8]",
        "params/head                 bfloat16[8]",
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ["kernel: found float32[2,3]", "kernel: found float32[2,4]"],
        ["kernel: found float32", "kernel: found float16"],
        ["written by flax 0.12.8", "written by flax 0.12.9"],
        ["conv1/kernel", "conv2/kernel"],
        ["layer_2a", "layer_3a"],
    ],
)
def test_numbers_of_dtypes_shapes_versions_and_names_are_left_alone(lines: list[str]):
    assert fold((line,) for line in lines) == lines


def test_a_number_that_changes_elsewhere_keeps_rows_apart():
    crossed = [("layers_0", "← blocks_1"), ("layers_1", "← blocks_0")]
    assert fold(crossed) == ["layers_0  ← blocks_1", "layers_1  ← blocks_0"]


def test_cells_need_not_go_along():
    rows = [("layers_0/kernel", "← a_0"), ("layers_1/kernel", "← a_1"), ("layers_2/kernel", "← a_7")]
    assert fold(rows) == ["layers_{0…1}/kernel  ← a_{0…1}", "layers_2/kernel      ← a_7"]
    assert fold((f"layers_{n}", "← a_7/b") for n in range(3)) == ["layers_{0…2}  ← a_7/b"]


def test_empty_cells_and_rows_of_several_widths_stay_as_they_are():
    assert fold([("a_0", "", "x"), ("a_1", "", "x"), ("a_0",), ("a_1",), ("",)]) == [
        "a_{0…1}    x",
        "a_{0…1}",
        "",
    ]
    plain = fold([("a_0", "", "b_1"), ("a_1", "", "b_1")], plain=(1, 2, 5))
    assert plain == ["a_{0…1}    b_1"]


def test_the_empty_path_is_an_empty_cell():
    assert fold_keys([((), ("x",)), ((END, "a_1"), ("x",)), ((END, "a_2"), ("x",))]) == [
        (("",), ("x",), (0,)),
        (("", "a_1"), ("x",), (1,)),
        (("", "a_2"), ("x",), (2,)),
    ]
    assert folded([(), ()]) == folded([("",), ("",)])


def test_any_text_may_stand_in_a_cell():
    rows = [(f"\0_{n}//", "/", "\0") for n in range(2)]
    assert [each.row for each in folded(rows, plain=(2,))] == [("\0_{0…1}//", "/", "\0")]


def test_nothing_folds_to_nothing():
    assert fold([]) == []
    assert fold([("layers_7", "float32[]")]) == ["layers_7  float32[]"]


def test_equal_rows_can_still_be_counted():
    found = fold([("a note",), ("layers_0",), ("a note",)])
    assert found.count("a note") == 2


# Properties ----------------------------------------------------------------------------------------------------------

names = st.builds(
    lambda parts: "/".join(f"{name}{number}" for name, number in parts) + "/k",
    st.lists(st.tuples(st.sampled_from(["a", "b_", "/"]), st.integers(0, 4).map(str)), min_size=1, max_size=3),
).map(lambda text: re.sub("[ab](?=[0-9])", "a_", text).replace("//", "/"))

specs = st.sampled_from(["float32[8]", "float32[8,4]", "int32[]"])


@given(st.lists(st.tuples(names), unique=True, max_size=24))
def test_every_row_can_be_read_off_the_folded_lines(given_rows: list[Row]):
    found = [row for line in fold(given_rows) for row in unfolded(line)]
    assert sorted(found) == sorted(given_rows)


@given(st.lists(st.tuples(names, st.one_of(specs, names)), unique=True, max_size=24))
@example([("x_0", "y/0"), ("x_1", "y/0"), ("x_1", "y/1")])
@example([("x_0", "y_1/0"), ("x_1", "y_1/1")])
def test_every_row_of_two_columns_can_be_read_off(given_rows: list[Row]):
    found = [row for line in fold(given_rows) for row in unfolded(line)]
    assert sorted(found) == sorted(given_rows)


@given(st.lists(st.tuples(names, names, specs), unique=True, max_size=24))
def test_rows_of_paths_are_folded_like_their_texts(given_rows: list[Row]):
    paths = [((*a.split("/"), END, *b.split("/")), (spec,)) for a, b, spec in given_rows]
    found = [((*cells, *aside), members) for cells, aside, members in fold_keys(paths)]
    assert found == folded(given_rows)


@given(st.lists(st.tuples(names, specs), unique=True, max_size=24))
def test_rows_keep_the_order_of_their_first_appearance(given_rows: list[Row]):
    first = [min(map(given_rows.index, unfolded(line))) for line in fold(given_rows)]
    assert first == sorted(first)


two_numbers = st.builds("a_{}/b_{}".format, st.integers(0, 2), st.integers(0, 2))


@given(st.lists(st.tuples(two_numbers), unique=True, max_size=9))
@example([("a_0/b_0",), ("a_0/b_1",), ("a_1/b_0",), ("a_1/b_1",)])
def test_rows_that_differ_in_one_number_only_are_never_left_apart(given_rows: list[Row]):
    lines = fold(given_rows)
    blanked = [_TOKEN.sub("#", line) for line in lines]
    for one, other in itertools.combinations(range(len(lines)), 2):
        if blanked[one] == blanked[other]:
            tokens = zip(_TOKEN.finditer(lines[one]), _TOKEN.finditer(lines[other]), strict=True)
            assert sum(a.group() != b.group() for a, b in tokens) > 1


@pytest.mark.parametrize("numbers", [("00", "01", "02"), ("1", "01"), ("08", "09", "10")])
def test_leading_zeros_are_not_lost(numbers: tuple[str, ...]):
    found = fold((f"block_{number}",) for number in numbers)
    assert sorted(row for line in found for row in unfolded(line)) == sorted((f"block_{number}",) for number in numbers)


def test_numbers_of_plain_columns_count_nothing() -> None:
    """An axis or a size may happen to be the number of a layer."""
    rows = [(f"layers/{number}/kernel", f"layers_{number}/kernel", "unstack, axis 1") for number in range(3)]
    assert fold(rows, plain=(2,)) == ["layers/{0…2}/kernel  layers_{0…2}/kernel  unstack, axis 1"]
    assert len(fold(rows)) > 1
