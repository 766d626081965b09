"""Many paths in few words, what operations demand, and what plans say of both."""

from __future__ import annotations

import numpy as np
import pytest

from converter.paths import parse_path
from converter.planning.planner import make_plan
from converter.planning.request import Request
from converter.planning.wording import demand, several
from converter.rules.operations import REWRAP, Agree, Cast, Copies, Drop, Transpose, Unstack, chain
from tests.building import tree_at


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        (["a/kernel"], "a/kernel"),
        (["cell/ir/kernel", "cell/iz/kernel", "cell/in/kernel"], "cell/{ir,iz,in}/kernel"),
        ([f"layers_{n}/kernel" for n in range(12)], "layers_{0…11}/kernel"),
        ([f"layers/{n}/kernel" for n in range(12)], "layers/{0…11}/kernel"),
        ([f"layers_{n}/{gate}/bias" for n in range(3) for gate in ("hi", "hf")], "layers_{0…2}/{hi,hf}/bias"),
        (["embed/embedding", "head/kernel"], "embed/embedding + head/kernel"),
        (["a/kernel", "b/c/kernel"], "a/kernel + b/c/kernel"),
        (['a/"b/c"', "a/d"], 'a/{"b/c",d}'),
    ],
)
def test_several_paths(paths: list[str], shown: str) -> None:
    assert several(list(map(parse_path, paths))) == shown


@pytest.mark.parametrize(
    ("operation", "wanted"),
    [
        (REWRAP, ""),
        (chain(Unstack(3, 1), Transpose()), ""),
        (Copies((REWRAP, Transpose())), ""),
        (Drop("it has no place", 0.0), "all values are 0"),
        (Drop("it has no place"), ""),
        (Agree((REWRAP, Transpose())), "all of them hold the same values"),
        (Cast("float32", "bfloat16"), ""),
        (Cast("float32", "bfloat16", exact=True), "every value survives cast float32 → bfloat16"),
        (chain(Transpose(), Cast("float32", "bfloat16", exact=True)), "every value survives cast float32 → bfloat16"),
    ],
)
def test_what_operations_demand(operation: object, wanted: str) -> None:
    """It says something exactly where the operation looks at values, so that no condition goes unsaid."""
    assert demand(operation) == wanted  # type: ignore[arg-type]
    assert bool(wanted) == operation.looks_at_values  # type: ignore[attr-defined]
    assert demand(operation.lossy()) == ""  # type: ignore[attr-defined]


FILL = [{"nnx": "bias", "fill": "ones", "leaf": "float32[3]"}]


def test_a_plan_says_what_it_fills_in_and_with_what() -> None:
    """The moments of what is filled with ones begin with zeros."""
    from converter.rules.language.rule_file import read_rules

    kernel = np.ones((4, 3), np.float32)
    moments = {f"opt_state/0/{name}/kernel": kernel for name in ("mu", "nu")}
    tree = tree_at({"step": np.int32(1), "params/kernel": kernel, "opt_state/0/count": np.int32(1), **moments})
    text = make_plan(tree, Request("nnx", rules=read_rules({"default": "auto", "rule": FILL}))).text()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("model/bias/value float32[3] only NNX has it, filled with 1") for line in lines)
    filled = "float32[3] filled with 0: what an optimizer starts with"
    assert [line for line in lines if filled in line] == [
        f"optimizer/opt_state/0/{name}/bias/value {filled}" for name in ("mu", "nu")
    ]
    assert not any("←" in line and "bias" in line for line in lines), "what is filled in is said once"
