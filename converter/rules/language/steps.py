"""Operations as rule files write them: one text each, ``stack i, axis=0``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from converter.dtypes import numpy_dtype
from converter.errors import UnsupportedCheckpoint
from converter.rules.language.fault import Fault
from converter.rules.operations import Cast, Concat, MoveAxis, Operation, Select, Split, Stack, Transpose, Unstack
from converter.rules.operations.rearrange import parse_rearrange
from converter.rules.operations.regroup import Regroup


@dataclass(frozen=True, slots=True)
class LeafStep:
    """An operation on every leaf by itself."""

    text: str
    operation: Operation


@dataclass(frozen=True, slots=True)
class GroupStep:
    """An operation that takes or gives one leaf for every value of a capture.

    Attributes:
      text: as the user wrote it.
      word: ``stack`` and ``concat`` take several leaves, ``unstack`` and ``split`` give several.
      capture: the name of the capture.
      axis: along which the leaves are joined or taken apart.
      sizes: their lengths along it.
      offset: where the name of the capture stands in ``text``.
    """

    text: str
    word: str
    capture: str
    axis: int
    sizes: tuple[int, ...] | None = None
    offset: int = 0

    @property
    def joins(self) -> bool:
        return self.word in ("stack", "concat")

    @property
    def whole_axis(self) -> bool:
        """Whether there are as many leaves as the axis is long."""
        return self.word in ("stack", "unstack")

    def operation(self, count: int) -> Operation:
        match self.word:
            case "stack":
                return Stack(count, self.axis)
            case "unstack":
                return Unstack(count, self.axis)
            case "concat":
                return Concat(count, self.axis, self.sizes)
            case _:
                return Split(count, self.axis, self.sizes)


@dataclass(frozen=True, slots=True)
class ShuffleStep:
    """Leaves counted by some captures, the last one running fastest, are counted in another order."""

    before: tuple[str, ...]
    after: tuple[str, ...]

    def operation(self, counts: Mapping[str, int]) -> Operation:
        return Regroup(tuple(counts[name] for name in self.before), tuple(map(self.before.index, self.after)))


Step = LeafStep | GroupStep
Stage = LeafStep | GroupStep | ShuffleStep


def stages(steps: Sequence[Step]) -> tuple[Stage, ...]:
    """The steps with shuffles between them, so that each finds its leaves side by side.

    In front of the first step leaves are counted by the captures that steps take, the one that is taken first running
    fastest; behind the last one by the captures that steps give, in their order, the last one running fastest.
    """
    active = [step.capture for step in steps if isinstance(step, GroupStep) and step.joins][::-1]
    found: list[Stage] = []
    for step in steps:
        if isinstance(step, GroupStep) and step.joins:
            after = [name for name in active if name != step.capture]
            if active[-1] != step.capture:
                found.append(ShuffleStep(tuple(active), (*after, step.capture)))
            active = after
        elif isinstance(step, GroupStep):
            active.append(step.capture)
        found.append(step)
    return tuple(found)


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """What stands between two commas, without the blanks around it, and where."""

    text: str
    offset: int


def parse_step(text: str) -> Step:
    """Reads one operation.

    Raises:
      Fault: an unknown operation, or arguments that are not its own.
    """
    match = re.match(r"\s*([^\s,]*)", text)
    assert match is not None
    word, start = match[1], match.start(1)
    if word not in _READERS:
        what = f"there is no operation {word!r}" if word else "an empty operation"
        raise Fault(what, min(start, max(len(text) - 1, 0)), f"Known operations: {', '.join(sorted(_READERS))}.")
    try:
        return _READERS[word](text, word, match.end())
    except Fault as fault:
        if not fault.advice:
            fault.advice = f"Write it as in: {_EXAMPLES[word]}"
        raise


def _parts(text: str, start: int) -> list[_Part]:
    parts = []
    for piece in text[start:].split(","):
        blank = len(piece) - len(piece.lstrip()) if piece.strip() else 0
        parts.append(_Part(piece.strip(), start + blank))
        start += len(piece) + 1
    return parts


def _options(parts: Sequence[_Part], known: Sequence[str]) -> dict[str, _Part]:
    """The arguments of the form ``name=value``: the part of each value by its name."""
    found: dict[str, _Part] = {}
    for part in parts:
        name, equals, value = part.text.partition("=")
        name = name.strip()
        if not equals or name not in known:
            expected = " or ".join(f"{option}=…" for option in known) or "nothing more"
            raise Fault(f"expected {expected}, found {part.text!r}", part.offset)
        if name in found:
            raise Fault(f"{name} stands twice", part.offset)
        found[name] = _Part(value.strip(), part.offset + part.text.index("=") + 1 + len(value) - len(value.lstrip()))
    return found


def _whole(part: _Part, what: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", part.text):
        raise Fault(f"expected a whole number for {what}, found {part.text!r}", part.offset)
    return int(part.text)


def _axis(options: Mapping[str, _Part], default: int) -> int:
    return _whole(options["axis"], "axis") if "axis" in options else default


def _read_group(text: str, word: str, start: int) -> Step:
    head, *rest = _parts(text, start)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", head.text):
        raise Fault(f"expected the name of a capture, found {head.text!r}", head.offset)
    whole_axis = word in ("stack", "unstack")
    options = _options(rest, ("axis",) if whole_axis else ("axis", "sizes"))
    sizes = None
    if "sizes" in options:
        part = options["sizes"]
        if not re.fullmatch(r"[1-9][0-9]{0,9}( +[1-9][0-9]{0,9})+", part.text):
            raise Fault(f"expected lengths with blanks between them, found {part.text!r}", part.offset)
        sizes = tuple(map(int, part.text.split()))
    return GroupStep(text, word, head.text, _axis(options, 0 if whole_axis else -1), sizes, head.offset)


def _read_rearrange(text: str, word: str, start: int) -> Step:
    try:
        return LeafStep(text, parse_rearrange(text[start:]))
    except Fault as fault:
        fault.offset += start
        raise


def _read_transpose(text: str, word: str, start: int) -> Step:
    head, *rest = _parts(text, start)
    _options(rest, ())
    if not head.text:
        return LeafStep(text, Transpose())
    if not re.fullmatch(r"[0-9]{1,3}(\s+[0-9]{1,3})*", head.text):
        raise Fault(f"expected axes with blanks between them, found {head.text!r}", head.offset)
    axes = tuple(map(int, head.text.split()))
    if sorted(axes) != list(range(len(axes))):
        raise Fault(f"{head.text!r} does not name every axis from 0 to {len(axes) - 1} once", head.offset)
    return LeafStep(text, Transpose(axes))


def _read_moveaxis(text: str, word: str, start: int) -> Step:
    arrow = text.find("->", start)
    if arrow < 0:
        raise Fault("'->' is missing", max(len(text.rstrip()) - 1, 0))
    parts = [*_parts(text[:arrow], start), *_parts(text, arrow + 2)]
    if len(parts) != 2:
        raise Fault(f"expected two axes, found {text[start:].strip()!r}", start)
    axes = [_whole(part, "an axis") for part in parts]
    return LeafStep(text, MoveAxis(axes[0], axes[1]))


def _read_cast(text: str, word: str, start: int) -> Step:
    before, arrow, after = text[start:].partition("->")
    if not arrow:
        raise Fault("'->' is missing", max(len(text.rstrip()) - 1, 0))
    names = []
    for dtype, position in ((before, start), (after, start + len(before) + len(arrow))):
        try:
            names.append(numpy_dtype(dtype.strip()).name)
        except UnsupportedCheckpoint:
            offset = position + len(dtype) - len(dtype.lstrip()) if dtype.strip() else max(position - 1, 0)
            raise Fault(f"there is no dtype {dtype.strip()!r}", offset) from None
    return LeafStep(text, Cast(names[0], names[1]))


def _read_select(text: str, word: str, start: int) -> Step:
    head, *rest = _parts(text, start)
    match = re.fullmatch(r"([0-9]{1,18})(?::([0-9]{1,18}))?", head.text)
    if match is None or (match[2] is not None and int(match[1]) >= int(match[2])):
        raise Fault(f"expected an index or a range such as 2:5, found {head.text!r}", head.offset)
    axis = _axis(_options(rest, ("axis",)), 0)
    return LeafStep(text, Select(axis, int(match[1]), None if match[2] is None else int(match[2])))


_READERS: Mapping[str, Callable[[str, str, int], Step]] = {
    "rearrange": _read_rearrange,
    "transpose": _read_transpose,
    "moveaxis": _read_moveaxis,
    "stack": _read_group,
    "unstack": _read_group,
    "concat": _read_group,
    "split": _read_group,
    "cast": _read_cast,
    "select": _read_select,
}

_EXAMPLES: Mapping[str, str] = {
    "rearrange": "rearrange d (h k) -> d h k, h=4",
    "transpose": "transpose 1 0 2",
    "moveaxis": "moveaxis 1 -> 0",
    "stack": "stack i, axis=0",
    "unstack": "unstack i, axis=0",
    "concat": "concat p, axis=-1, sizes=8 8 16",
    "split": "split p, axis=-1, sizes=8 8 16",
    "cast": "cast float32 -> bfloat16",
    "select": "select 0, axis=1",
}
