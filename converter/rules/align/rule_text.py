"""An alignment as a rule file."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from converter.paths import Path
from converter.rules.align.alignment import Aligned
from converter.rules.align.confidence import Confidence
from converter.rules.align.layouts import Digit, Inexpressible, Layout
from converter.rules.align.recipes import Recipe, cuts, exposing
from converter.rules.align.rule_patterns import (
    Hole,
    Pattern,
    Spot,
    beside_captures,
    blanked,
    literal,
    numbers_in,
    over_digits,
    pattern_text,
    with_hole,
)
from converter.rules.language.patterns import PathPattern
from converter.rules.link import Name, format_name
from converter.rules.operations import REWRAP, Assemble, Drop, Operation, Split, Transpose
from converter.training_state import COLLECTIONS
from converter.tree import LeafSpec

PARTS, LAYERS = "pqrst", "ijklmn"
"""Names of captures, for the parts of a fused variable and for layers."""


@dataclass(frozen=True, slots=True)
class Written:
    """A rule to be.

    Attributes:
      linen, nnx: its patterns; None for a side that it does not speak of.
      collection: of its variables.
      operations: what is done on the way to NNX.
      fill: the leaf that is filled with zeros on the way to the side that has it; "" where nothing is filled.
      confidence: how sure it is.
      remark: what else is to be said.
    """

    linen: Pattern | None
    nnx: Pattern | None
    collection: str
    operations: tuple[str, ...]
    fill: str
    confidence: Confidence
    remark: str

    @property
    def text(self) -> str:
        """The rule as a rule file writes it."""
        comment = self.confidence.value + (f": {self.remark}" if self.remark else "")
        lines = ["[[rule]]" + ("" if self.confidence is Confidence.EXACT and not self.remark else f"  # {comment}")]
        lines += [_entry(key, text) for key, text in (("linen", self.linen_text), ("nnx", self.nnx_text)) if text]
        if self.collection not in COLLECTIONS:
            lines.append(_entry("collection", self.collection))
        if self.operations:
            lines.append(f"to_nnx = [{', '.join(json.dumps(text, ensure_ascii=False) for text in self.operations)}]")
        if self.fill:
            lines += [_entry("fill", "zeros"), _entry("leaf", self.fill)]
        return "\n".join(lines) + "\n"

    @property
    def linen_text(self) -> str:
        """The pattern of Linen; "" where there is none."""
        if self.linen is None:
            return ""
        return pattern_text(((self.collection,), *self.linen) if self.collection in COLLECTIONS else self.linen)

    @property
    def nnx_text(self) -> str:
        """The pattern of NNX; "" where there is none."""
        return "" if self.nnx is None else pattern_text(self.nnx)


def _entry(key: str, text: str) -> str:
    return f"{key} = {json.dumps(text, ensure_ascii=False)}"


def rules_of(
    found: Sequence[Aligned], specs: tuple[Mapping[Name, LeafSpec], Mapping[Name, LeafSpec]]
) -> tuple[list[Written], list[str]]:
    """The rules of an alignment, folded over layers, and what rules cannot state.

    Args:
      found: what belongs together.
      specs: the variables of both models.
    """
    rules: list[Written] = []
    unstated: list[str] = []
    for aligned in found:
        try:
            rules.append(_rule(aligned, specs))
        except Inexpressible as error:
            names = " + ".join(map(format_name, aligned.piece.linen)) or " + ".join(map(format_name, aligned.piece.nnx))
            unstated.append(f"{names}: {error}")
    return _folded(rules, tuple([path for _, path in side] for side in specs)), unstated


def _rule(aligned: Aligned, specs: tuple[Mapping[Name, LeafSpec], Mapping[Name, LeafSpec]]) -> Written:
    piece = aligned.piece
    collections = {collection for collection, _ in (piece.linen or piece.nnx)}
    if len(collections) > 1:
        raise Inexpressible("variables of several collections are joined")
    (collection,) = collections
    rule = Written(None, None, collection, (), "", aligned.confidence, aligned.remark)
    if not piece.nnx or not piece.linen:
        ((side, name),) = [(0, name) for name in piece.linen] + [(1, name) for name in piece.nnx]
        pattern = literal(name[1])
        filled = replace(rule, fill=str(specs[side][name]))
        return replace(filled, linen=pattern) if isinstance(piece.to_nnx, Drop) else replace(filled, nnx=pattern)
    if isinstance(piece.to_nnx, Assemble):
        raise Inexpressible("what is put together from parts of unlike shapes cannot be stated in rules")
    if aligned.recipe is None and piece.to_nnx != REWRAP:
        raise Inexpressible("weights that are tied on one side only cannot be stated in rules")
    if aligned.recipe is None:
        return replace(rule, linen=literal(piece.linen[0][1]), nnx=literal(piece.nnx[0][1]))
    return _of_recipe(rule, piece.linen, piece.nnx, aligned.recipe)


def _of_recipe(rule: Written, linen: Sequence[Name], nnx: Sequence[Name], recipe: Recipe) -> Written:
    apart, joined = recipe.linen_layout.digits, recipe.nnx_layout.digits
    letters = {True: iter(LAYERS), False: iter(PARTS)}
    # What Linen holds in one variable has a capture in NNX's names, and the other way round.
    given, taken = ([next(letters[digit.lengths is None]) for digit in digits] for digits in (apart, joined))
    linen_pattern = over_digits(_counted(linen, joined), taken)
    nnx_pattern = over_digits(_counted(nnx, apart), given)
    operations = [
        *_text(exposing(recipe.linen_layout)),
        *_cut_texts(recipe.linen_layout, given, nnx_pattern, join=False),
        *_text(recipe.middle),
        *_cut_texts(recipe.nnx_layout, taken, linen_pattern, join=True),
        *_text(exposing(recipe.nnx_layout).inverse()),
    ]
    return replace(rule, linen=linen_pattern, nnx=nnx_pattern, operations=tuple(operations))


def _counted(names: Sequence[Name], digits: Sequence[Digit]) -> dict[tuple[int, ...], Path]:
    places = list(itertools.product(*(range(digit.count) for digit in digits)))
    if len(places) != len(names):
        raise Inexpressible("the variables are joined in a way that no rule describes")
    return {place: path for place, (_, path) in zip(places, names, strict=True)}


def _text(operation: Operation) -> list[str]:
    if operation == REWRAP:
        return []
    if isinstance(operation, Transpose) and operation.axes is not None:
        axes = operation.axes
        return ["transpose" + ("" if axes == tuple(range(len(axes)))[::-1] else f" {' '.join(map(str, axes))}")]
    return [operation.name]


def _cut_texts(layout: Layout, names: Sequence[str], pattern: Pattern, *, join: bool) -> list[str]:
    """The operations that cut a variable apart, or join its parts, each with its capture."""
    holes = {part.name: part for segment in pattern for part in segment if isinstance(part, Hole)}
    texts = []
    for name, digit, cut in zip(names, layout.digits, cuts(layout.digits), strict=True):
        assert hasattr(cut, "axis")
        if isinstance(cut, Split):
            sizes = digit.lengths if digit.lengths and (not digit.equal or not holes[name].words) else None
            word = "concat" if join else "split"
            texts.append(f"{word} {name}, axis={cut.axis}" + (f", sizes={' '.join(map(str, sizes))}" if sizes else ""))
        else:
            texts.append(f"{'stack' if join else 'unstack'} {name}, axis={cut.axis}")
    return texts[::-1] if join else texts


# Folding -------------------------------------------------------------------------------------------------------------


def _folded(rules: Sequence[Written], paths: tuple[list[Path], ...]) -> list[Written]:
    """Rules that differ in one number on each side as one rule, as long as there are any."""
    current = list(rules)
    while True:
        merged = _fold_once(current, paths)
        if merged is None:
            return current
        current = merged


def _fold_once(rules: Sequence[Written], paths: tuple[list[Path], ...]) -> list[Written] | None:
    groups: dict[Hashable, list[tuple[int, Spot | None, Spot | None, tuple[str, str]]]] = defaultdict(list)
    for at, rule in enumerate(rules):
        for left, right in itertools.product(_spots(rule.linen), _spots(rule.nnx)):
            if left is None and right is None:
                continue
            shown = tuple(
                pattern if pattern is None or spot is None else blanked(pattern, spot[0])
                for pattern, spot in ((rule.linen, left), (rule.nnx, right))
            )
            key = (shown, left and left[0][:2], right and right[0][:2], rule.operations, rule.collection, rule.fill)
            numbers = (left[1] if left else "", right[1] if right else "")
            groups[key, rule.confidence, rule.remark].append((at, left and left[0], right and right[0], numbers))
    done: set[int] = set()
    made: dict[int, Written] = {}
    for group in sorted(groups.values(), key=lambda group: -_worth(group)):
        if _worth(group) < 2 or any(at in done for at, *_ in group):
            continue
        one = _merged([(rules[at], left, right, numbers) for at, left, right, numbers in group], paths)
        if one is not None:
            done.update(at for at, *_ in group)
            made[min(at for at, *_ in group)] = one
    if not made:
        return None
    return [made.get(at, rule) for at, rule in enumerate(rules) if at in made or at not in done]


def _spots(pattern: Pattern | None) -> list[tuple[Spot, str] | None]:
    if pattern is None:
        return [None]
    return [(spot, text) for spot, text in numbers_in(pattern) if not beside_captures(pattern, spot)]


def _worth(group: Sequence[tuple[int, Spot | None, Spot | None, tuple[str, str]]]) -> float:
    """How many rules become one; numbers that are the same on both sides are to be preferred."""
    left, right = ({numbers[side] for *_, numbers in group} for side in (0, 1))
    if len(group) < 2 or (left != {""} and len(left) < len(group)) or (right != {""} and len(right) < len(group)):
        return 0
    return len(group) + 0.5 * (left == right and all(numbers[0] == numbers[1] for *_, numbers in group))


Member = tuple[Written, Spot | None, Spot | None, tuple[str, str]]


def _merged(members: Sequence[Member], paths: tuple[list[Path], ...]) -> Written | None:
    members = sorted(members, key=lambda member: int(member[3][0] or member[3][1]))
    first = members[0][0]
    used = {
        part.name for pattern in (first.linen, first.nnx) for s in pattern or () for part in s if isinstance(part, Hole)
    }
    name = next((letter for letter in LAYERS if letter not in used), None)
    if name is None:
        return None
    sides = [(first.linen, members[0][1], 0), (first.nnx, members[0][2], 1)]
    made: list[Pattern | None] = [None, None]
    words = [tuple(numbers[side] for *_, numbers in members) for side in (0, 1)]
    plain = words[0] == words[1] or "" in (words[0][0], words[1][0])
    for pattern, spot, side in sides:
        if pattern is not None and spot is not None:
            hole = Hole(name) if plain else Hole(name, words[side])
            made[side] = with_hole(pattern, spot, hole)
    if plain and not all(
        _takes_only(own, pattern, side, members, paths[side])
        for side, (own, pattern) in enumerate(zip(made, (first.linen, first.nnx), strict=True))
        if own is not None and pattern is not None
    ):
        return None if "" in (words[0][0], words[1][0]) else _with_words(members, name, words)
    return replace(first, linen=made[0], nnx=made[1])


def _with_words(members: Sequence[Member], name: str, words: Sequence[tuple[str, ...]]) -> Written | None:
    """The same, taking these numbers only."""
    rule, left, right, _ = members[0]
    if rule.linen is None or rule.nnx is None or left is None or right is None:
        return None
    linen, nnx = with_hole(rule.linen, left, Hole(name, words[0])), with_hole(rule.nnx, right, Hole(name, words[1]))
    return replace(rule, linen=linen, nnx=nnx)


def _takes_only(
    folded: Pattern, single: Pattern, side: int, members: Sequence[Member], paths: Collection[Path]
) -> bool:
    """Whether the folded pattern takes no variable that the single ones do not."""
    own = [_compiled(rule.nnx if side else rule.linen) for rule, *_ in members]
    whole = _compiled(folded)
    return all(any(one.match(path) is not None for one in own) for path in paths if whole.match(path) is not None)


def _compiled(pattern: Pattern | None) -> PathPattern:
    assert pattern is not None
    return PathPattern.parse(pattern_text(pattern))
