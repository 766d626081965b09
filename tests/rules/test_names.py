"""Names that differ by rule: LSTM's gate ``if``, and the items of lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.paths import Path, format_path, parse_path
from converter.rules.names import LINEN_GATE, NNX_GATE, joined_numbers, lstm_cells, rename_gate
from tests.building import texts

INPUT_GATES = ["ii", "if", "ig", "io"]
HIDDEN_GATES = ["hi", "hf", "hg", "ho"]


def cell(prefix: str = "", gate: str = "if", without: str = "") -> list[Path]:
    """The paths of an LSTM cell."""
    gates = [gate if name == "if" else name for name in INPUT_GATES + HIDDEN_GATES if name != without]
    kernels = [f"{prefix}{name}/kernel" for name in gates]
    return [parse_path(path) for path in kernels + [f"{prefix}{name}/bias" for name in gates if name.startswith("h")]]


@pytest.mark.parametrize("gate", [LINEN_GATE, NNX_GATE])
@pytest.mark.parametrize(("prefix", "node"), [("", ()), ("cell/", ("cell",)), ("rnn/0/cell/", ("rnn", "0", "cell"))])
def test_a_cell_is_told_by_its_gates(gate: str, prefix: str, node: Path):
    assert lstm_cells(cell(prefix, gate)) == {node}


@pytest.mark.parametrize("without", INPUT_GATES + HIDDEN_GATES)
def test_every_gate_is_needed(without: str):
    assert lstm_cells(cell("cell/", without=without)) == frozenset()


def test_other_cells_are_left_alone():
    gru = [parse_path(f"cell/{gate}/kernel") for gate in ("ir", "iz", "in", "hr", "hz", "hn")]
    mgu = [parse_path(f"cell/{gate}/kernel") for gate in ("if", "in", "hf", "hn")]
    assert lstm_cells(gru + mgu) == frozenset()


def test_gates_of_two_cells_do_not_make_one():
    first, second = cell("forward/"), cell("backward/")
    assert lstm_cells(first + second) == {("forward",), ("backward",)}
    assert lstm_cells(first[:3] + second[3:]) == frozenset()


def test_only_the_gates_of_cells_are_renamed():
    paths = [*cell("cell/"), ("if", "kernel"), ("block", "if"), ("other", "if_", "kernel"), ("cell", "ii", "if")]
    cells = lstm_cells(paths)
    renamed = {path: rename_gate(path, cells, LINEN_GATE, NNX_GATE) for path in paths}
    assert {format_path(old): format_path(new) for old, new in renamed.items() if old != new} == {
        "cell/if/kernel": "cell/if_/kernel"
    }


def test_a_cell_inside_a_branch_called_if():
    """Only the gate of the cell has another name in NNX; the branch is the user's own."""
    paths = cell("if/cell/")
    cells = lstm_cells(paths)
    assert texts(rename_gate(path, cells, LINEN_GATE, NNX_GATE) for path in paths[:2]) == [
        "if/cell/ii/kernel",
        "if/cell/if_/kernel",
    ]


keys = st.sampled_from([*INPUT_GATES, *HIDDEN_GATES, "cell", "kernel", "bias", "0"])


@given(st.lists(st.lists(keys, min_size=1, max_size=4).map(tuple), max_size=8), st.booleans())
def test_renaming_to_nnx_and_back_changes_nothing(others: list[Path], with_cell: bool):
    paths = others + (cell("cell/") if with_cell else [])
    there = [rename_gate(path, lstm_cells(paths), LINEN_GATE, NNX_GATE) for path in paths]
    back = [rename_gate(path, lstm_cells(there), NNX_GATE, LINEN_GATE) for path in there]
    assert back == paths
    assert len(set(there)) == len(set(paths))


@pytest.mark.parametrize(
    ("path", "joined"),
    [
        ("layers/0/kernel", "layers_0/kernel"),
        ("layers/10/bias", "layers_10/bias"),
        ("d/b/1/kernel", "d/b_1/kernel"),
        ("grid/0/1/kernel", "grid_0_1/kernel"),
        ("0/kernel", "0/kernel"),
        ("0/1/kernel", "0_1/kernel"),
        ("layers_0/kernel", "layers_0/kernel"),
        ("layers/a0/kernel", "layers/a0/kernel"),
        ("layers/²/kernel", "layers/²/kernel"),
        ("kernel", "kernel"),
        ("", ""),
    ],
)
def test_numbers_are_joined_to_the_name_before(path: str, joined: str):
    assert joined_numbers(parse_path(path)) == parse_path(joined)
