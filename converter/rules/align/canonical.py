"""A graph without what two ways of writing one formula differ in.

What disappears: layout, constants (scales, epsilons, masks), signs, the order of summands and factors, the shift by the
maximum inside of a softmax. Division is multiplication by a reciprocal; a gather of rows is a product. So equal
sketches need not compute the same, and nothing that is found with them counts until both models have been run.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from converter.rules.align.consumers import Consumers
from converter.rules.align.graph import CONSTANT, INPUT, VARIABLE, Node, live
from converter.rules.align.pushing import ELEMENTWISE
from converter.rules.align.uses import Use, uses_of
from converter.rules.align.views import Region

LAYOUT = frozenset({"reshape", "transpose", "broadcast_in_dim"})

ORDERED = frozenset(
    {
        "product",
        "scores",
        "convolution",
        "concatenate",
        "select_n",
        "cond",
        "while",
        "pow",
        "scatter",
        "gather",
        "sub from",
        "div from",
    }
)
"""Operations whose operands are not exchanged freely."""


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A result in a sketch.

    Attributes:
      number: counts the terms of a sketch, operands first.
      operation, details: what is computed, in words that both models share.
      operands: of what; their order counts only where the operation is among ``ORDERED``.
      depends: on what, as of a ``Node``.
      region: the part of a variable that it is.
    """

    number: int
    operation: str
    details: Hashable
    operands: tuple[Term, ...]
    depends: int
    region: Region | None = None

    @property
    def is_ordered(self) -> bool:
        return self.operation in ORDERED and self.details != "symmetric"


@dataclass(frozen=True, slots=True)
class Sketch:
    """A call in canonical form.

    Attributes:
      terms: everything that the results depend on, operands first.
      results: what the call returns.
      leaves: the parts of variables that are used, in the order of their first use.
      uses: how they are used.
      removed: parts that count as zeros, and the terms that they would be added to.
    """

    terms: tuple[Term, ...]
    results: tuple[Term, ...]
    leaves: Mapping[Region, Term]
    uses: Mapping[Region, Sequence[Use]]
    removed: Mapping[Region, Sequence[Term]] = field(default_factory=dict)


def sketch_of(
    results: Sequence[Node], *, by_role: bool = False, zeros: Collection[Region] = (), literally: bool = False
) -> Sketch:
    """The canonical form of what computes these results.

    Args:
      by_role: take one part that is used in several roles for several parts.
      zeros: parts that are only added to something, and are taken for zeros.
      literally: keep constants and signs, for formulas that are written alike.
    """
    sketcher = _Sketcher(Consumers(results), by_role, zeros, literally)
    sketcher.walk()
    return sketcher.finished(results)


def flattened(sketch: Sketch) -> Sketch:
    """The same with sums of sums and products of products as one, where nothing else uses the inner ones."""
    count: Counter[int] = Counter(operand.number for term in sketch.terms for operand in term.operands)
    count.update(result.number for result in sketch.results)
    made: dict[int, Term] = {}
    for term in sketch.terms:
        operands: list[Term] = []
        for operand in term.operands:
            inner = made[operand.number]
            same = term.operation in ("add", "mul") and inner.operation == term.operation and count[operand.number] == 1
            operands += inner.operands if same else [inner]
        made[term.number] = Term(term.number, term.operation, term.details, tuple(operands), term.depends, term.region)
    results = tuple(made[term.number] for term in sketch.results)
    return Sketch(tuple(live(results)), results, {r: made[t.number] for r, t in sketch.leaves.items()}, sketch.uses)


class _Sketcher:
    def __init__(self, consumers: Consumers, by_role: bool, zeros: Collection[Region], literally: bool) -> None:
        self.consumers = consumers
        self._rules = _LITERAL_RULES if literally else _RULES
        self._literally = literally
        self._by_role = by_role
        self._zeros = frozenset(zeros)
        self._removed: dict[Region, list[Term]] = {region: [] for region in zeros}
        self._terms: dict[Hashable, Term] = {}
        self._of_node: dict[int, Term] = {}
        self.constant = self.term("constant")
        self._uses: dict[Region, list[Use]] = defaultdict(list)

    def term(
        self, operation: str, details: Hashable = None, operands: Sequence[Term] = (), depends: int | None = None
    ) -> Term:
        key = (operation, details, tuple(operand.number for operand in operands))
        if key not in self._terms:
            if depends is None:
                depends = max((operand.depends for operand in operands), default=CONSTANT)
            region = details if isinstance(details, Region) else None
            self._terms[key] = Term(len(self._terms), operation, details, tuple(operands), depends, region)
        return self._terms[key]

    def of(self, nodes: Sequence[Node]) -> list[Term]:
        """The terms of nodes that have been walked over."""
        return [self._of_node[node.number] for node in nodes]

    def commuting(self, operation: str, operands: Sequence[Term]) -> Term:
        return self.term(operation, None, sorted(operands, key=lambda term: term.number))

    def walk(self) -> None:
        for node in self.consumers.nodes:
            uses = {place: (region, use) for place, region, use in uses_of(node)}
            if self._by_role:
                uses = {place: (replace(region, role=use.role), use) for place, (region, use) in uses.items()}
            term = self._made(node, {place: region for place, (region, _) in uses.items()})
            self._of_node[node.number] = term
            for region, use in uses.values():
                self._uses[region].append(use)
                if region in self._zeros:
                    self._removed[region].append(term)

    def _leaf(self, region: Region) -> Term:
        return self.constant if region in self._zeros else self.term("variable", region, (), VARIABLE)

    def finished(self, results: Sequence[Node]) -> Sketch:
        outputs = tuple(self._of_node[node.number] for node in results)
        terms = tuple(live(outputs))
        leaves = {term.region: term for term in terms if term.region is not None}
        first = {operand.number: term.number for term in reversed(terms) for operand in term.operands}
        ordered = sorted(leaves, key=lambda region: (first.get(leaves[region].number, -1), leaves[region].number))
        return Sketch(terms, outputs, {region: leaves[region] for region in ordered}, dict(self._uses), self._removed)

    def _made(self, node: Node, parts: Mapping[int, Region]) -> Term:
        if node.depends == CONSTANT:
            number = _number(node) if self._literally and node.is_real else None
            return self.constant if number is None else self.term("constant", number)
        if node.operation == "view":
            return self._leaf(node.details.region)
        if node.operation == "input":
            return self.term("input", node.details, (), INPUT)
        operands = [
            self._leaf(parts[place]) if place in parts else self._of_node[operand.number]
            for place, operand in enumerate(node.operands)
        ]
        if node.operation in LAYOUT:
            return operands[0]
        varying = [term for term in operands if term.depends != CONSTANT]
        if not node.is_real and node.operation in ELEMENTWISE and len(set(varying)) == 1:
            return varying[0]  # arithmetic on positions
        rule = self._rules.get(node.operation)
        if rule is not None:
            return rule(self, node, operands, varying)
        return self.term(node.operation, _details(node), operands)


def additive(sketch: Sketch) -> list[Region]:
    """The parts that are only ever added to something."""
    uses: dict[int, set[bool]] = defaultdict(set)
    for term in sketch.terms:
        for operand in term.operands:
            uses[operand.number].add(term.operation == "add")
    return [region for region, leaf in sketch.leaves.items() if uses[leaf.number] == {True}]


def _details(node: Node) -> Hashable:
    """What two models have in common of the details; axes are numbered differently where the layout differs."""
    if node.operation == "slice":
        return tuple(node.details[1:])
    return node.details if node.operation == "integer_pow" else None


# Single operations ---------------------------------------------------------------------------------------------------

Rule = Callable[[_Sketcher, Node, list[Term], list[Term]], Term]


def _sum(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    if len(varying) == 1:
        return varying[0]
    left, right = operands
    if node.operation == "sub" and right.operation == "reduce_max" and right.operands[0] is left:
        return left  # the shift in a softmax
    return sketcher.commuting("add", varying)


def _multiplied(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    if len(varying) == 1:
        return varying[0]
    if varying[0] is varying[1]:
        return sketcher.term("square", None, varying[:1])
    return sketcher.commuting("mul", varying)


def _divided(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    above, below = operands
    if below is sketcher.constant:
        return above
    if below.operation == "sqrt":
        inverse = sketcher.term("rsqrt", None, below.operands)
    else:
        inverse = sketcher.term("reciprocal", None, (below,))
    return inverse if above is sketcher.constant else sketcher.commuting("mul", (above, inverse))


def _limited(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    if len(varying) > 1:
        return sketcher.commuting(node.operation, varying)
    (term,) = varying
    if term.operation in ("reduce_max", "reduce_min") or _is_no_limit(node):
        return term
    return sketcher.term("rectified", None, varying)


def _is_no_limit(node: Node) -> bool:
    import numpy as np

    bounds = [operand.value for operand in node.operands if operand.depends == CONSTANT and operand.shape == ()]
    return any(value is not None and np.isinf(np.asarray(value(), np.float64)).all() for value in bounds)


def _compared(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    if node.operation == "select_n" and len(set(varying)) == 1:
        return varying[0]
    if len(varying) == 1:
        return sketcher.term(node.operation, None, varying)
    return sketcher.term(node.operation, None, operands)


def _product(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    left, right = node.operands
    if left.depends < INPUT or right.depends < INPUT:
        first = operands if right.depends == VARIABLE and left.depends != VARIABLE else operands[::-1]
        return sketcher.term("product", None, first)
    (contracted, batched), rank = node.details, len(node.shape)
    middle = len(left.shape) - len(contracted[0])
    return _scores(sketcher, node, operands, (range(len(batched[0]), middle), range(middle, rank)))


def _scores(
    sketcher: _Sketcher, node: Node, operands: Sequence[Term], own: tuple[Sequence[int], Sequence[int]]
) -> Term:
    """A product of results; last comes the one without axes of its own, or whose own axes are summed over sooner."""
    bare_left, bare_right = (all(node.shape[axis] == 1 for axis in axes) for axes in own)
    if bare_left != bare_right:
        return sketcher.term("scores", None, operands if bare_right else operands[::-1])
    near, far = (sketcher.consumers.distances_to_sums(node, axes) for axes in own)
    if near == far:
        return sketcher.term("scores", "symmetric", sorted(operands, key=lambda term: term.number))
    return sketcher.term("scores", None, operands if near < far else operands[::-1])


def _summed_up(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    """``(x * y).sum(axis)`` of results that are repeated along different axes is a product of them."""
    (inner,) = node.operands
    factors = sketcher.of(inner.operands)
    repeated = [_repeated(side) for side in inner.operands]
    is_product = inner.operation == "mul" and all(side.depends == INPUT for side in inner.operands) and any(repeated)
    if not is_product or factors[0] is factors[1] or any(axis in node.details for axes in repeated for axis in axes):
        return sketcher.term("reduce_sum", None, operands)
    kept = [axis for axis in range(len(inner.shape)) if axis not in node.details]
    left, right = ([kept.index(axis) for axis in other - own] for own, other in (repeated, repeated[::-1]))
    return _scores(sketcher, node, factors, (left, right))


def _repeated(node: Node) -> frozenset[int]:
    """The axes along which a result is the same everywhere, because it was broadcast."""
    if node.operation != "broadcast_in_dim":
        return frozenset()
    (source,) = node.operands
    kept = {axis for axis, size in zip(node.details, source.shape, strict=True) if size == node.shape[axis]}
    return frozenset(axis for axis, size in enumerate(node.shape) if size > 1 and axis not in kept)


def _gathered(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    source, indices = node.operands
    if source.depends == VARIABLE and indices.depends == INPUT:
        return sketcher.term("product", None, operands[::-1])
    return sketcher.term("gather", None, operands)


def _one_hot(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    """Numbers compared with a row of numbers stand for themselves: the product that follows takes the rows."""
    return varying[0] if len(set(varying)) == 1 else sketcher.commuting("eq", operands)


def _convolution(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    return sketcher.term("convolution", node.details.groups[0] > 1, operands)


def _renamed(name: str) -> Rule:
    return lambda sketcher, node, operands, varying: sketcher.term(name, None, operands)


def _power(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    if node.details == 2:
        return sketcher.term("square", None, operands)
    return sketcher.term("integer_pow", node.details, operands)


def _alone(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    return operands[0]


_RULES: Mapping[str, Rule] = {
    "add": _sum,
    "add_any": _sum,
    "sub": _sum,
    "mul": _multiplied,
    "outer_product": _multiplied,
    "div": _divided,
    "max": _limited,
    "min": _limited,
    "neg": _alone,
    "square": _renamed("square"),
    "integer_pow": _power,
    "eq": _one_hot,
    **dict.fromkeys(("select_n", "and", "or", "ne", "lt", "le", "gt", "ge"), _compared),
    "dot_general": _product,
    "reduce_sum": _summed_up,
    "gather": _gathered,
    "conv_general_dilated": _convolution,
}


def _literal(sketcher: _Sketcher, node: Node, operands: list[Term], varying: list[Term]) -> Term:
    if node.operation in ("sub", "div"):
        return sketcher.term(node.operation + " from", node.details, operands)
    return sketcher.commuting(node.operation, operands)


_LITERAL_RULES: Mapping[str, Rule] = {
    **_RULES,
    **dict.fromkeys(("add", "add_any", "sub", "mul", "div", "max", "min"), _literal),
    "neg": _renamed("neg"),
}


def _number(node: Node) -> float | None:
    """The number that a constant holds everywhere, to six digits; None where it holds several, or is not known."""
    while node.operation in LAYOUT:
        (node,) = node.operands
    if node.value is None or math.prod(node.shape) > SMALL:
        return None
    import numpy as np

    value = np.asarray(node.value()).reshape(-1)
    if not value.size or (value != value[0]).any() or np.iscomplexobj(value):
        return None
    return float(f"{float(value[0]):.5e}")


SMALL = 4096
"""Larger constants are not looked at."""
