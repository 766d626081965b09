"""Loops and branches as graphs: a scan is the sequence of its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from converter.models.dataflow import scan_groups
from converter.rules.align.graph import CONSTANT, VARIABLE, Node

if TYPE_CHECKING:
    from converter.rules.align.lowering import Lowering

STEPS = 96
"""Scans of more steps that walk through no variable are cut off: the steps are alike."""

SHOWN_STEPS = 3


def scan(lowering: Lowering, equation: Any, operands: list[Node]) -> list[Node]:
    """The results of a scan, all steps one after the other."""
    params = equation.params
    constants, carried = scan_groups(params)
    fixed, carry = operands[:constants], operands[constants : constants + carried]
    walked = operands[constants + carried :]
    length = int(params["length"])
    steps = range(length)[::-1] if params["reverse"] else range(length)
    if length > STEPS and not any(node.depends == VARIABLE for node in walked):
        steps = steps[:SHOWN_STEPS]
    collected: dict[int, list[Node]] = {}
    for step in steps:
        items = [lowering.item(node, 0, step) for node in walked]
        results = lowering.call(params["jaxpr"], [*fixed, *carry, *items])
        carry, collected[step] = results[:carried], results[carried:]
    if not collected:
        return lowering.other(equation, operands)
    in_order = [collected[step] for step in sorted(collected)]
    return [*carry, *(lowering.stacked(items, 0) for items in zip(*in_order, strict=True))]


def while_loop(lowering: Lowering, equation: Any, operands: list[Node]) -> list[Node]:
    """One step stands for all, and is told from what it starts with."""
    params = equation.params
    test, body = params["cond_nconsts"], params["body_nconsts"]
    for_body, start = operands[test : test + body], operands[test + body :]
    if all(node.depends == CONSTANT for node in operands):
        return lowering.constants(equation, operands)
    results = lowering.call(params["body_jaxpr"], [*for_body, *start])
    return [
        lowering.graph.node("while", None, (before, after), after.shape, is_real=after.is_real)
        for before, after in zip(start, results, strict=True)
    ]


def conditional(lowering: Lowering, equation: Any, operands: list[Node]) -> list[Node]:
    """All branches, the one that is taken included where that is known."""
    choice, *rest = operands
    branches = equation.params["branches"]
    if choice.value is not None:
        taken = min(max(int(choice.value()), 0), len(branches) - 1)
        return lowering.call(branches[taken], rest)
    every = [lowering.call(branch, rest) for branch in branches]
    return [
        same[0]
        if all(node is same[0] for node in same)
        else lowering.graph.node("cond", None, (choice, *same), same[0].shape, is_real=same[0].is_real)
        for same in zip(*every, strict=True)
    ]
