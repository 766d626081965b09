"""Whether the operations of a rule and the captures of its patterns go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from converter.rules.language.fault import Fault
from converter.rules.language.patterns import PathPattern
from converter.rules.language.steps import GroupStep, Step
from converter.rules.language.templates import Kind

SIDES = {True: ("Linen", "stack and concat"), False: ("NNX", "unstack and split")}
"""By whether an operation joins leaves: the only side where its capture stands, and the operations of its kind."""


def check_steps(steps: Sequence[Step], linen: PathPattern, nnx: PathPattern) -> Iterator[tuple[int | str, Fault]]:
    """Everything that is wrong, each with the position of its operation, or with ``linen`` or ``nnx`` for a pattern."""
    used: set[str] = set()
    for at, step in enumerate(steps):
        if isinstance(step, GroupStep):
            fault = _fault(step, linen, nnx, used)
            if fault is not None:
                yield at, fault
            used.add(step.capture)
    for key, own, other, words in (("linen", linen, nnx, SIDES[True][1]), ("nnx", nnx, linen, SIDES[False][1])):
        for name, capture in own.captures.items():
            if name not in other.captures and name not in used:
                yield (
                    key,
                    Fault(
                        f"capture {name!r} stands on this side only",
                        capture.offset,
                        f"Use it on the other side too, or in one of the operations {words}.",
                    ),
                )


def _fault(step: GroupStep, linen: PathPattern, nnx: PathPattern, used: set[str]) -> Fault | None:
    name = step.capture
    own, other = (linen, nnx) if step.joins else (nnx, linen)
    side, _ = SIDES[step.joins]
    if name not in own.captures and name not in other.captures:
        known = ", ".join(dict.fromkeys((*linen.captures, *nnx.captures))) or "none"
        return Fault(f"there is no capture {name!r}", step.offset, f"Captures of this rule: {known}.")
    if name not in own.captures or name in other.captures:
        where = "on both sides" if name in own.captures else "on the other side only"
        return Fault(
            f"{step.word} needs a capture of the {side} side only, and {name!r} stands {where}",
            step.offset,
            "On the way to NNX, stack and concat take captures that only linen has; "
            "unstack and split give captures that only nnx has.",
        )
    if name in used:
        return Fault(f"capture {name!r} is used by an operation before", step.offset, "Use every capture once.")
    capture = own.captures[name]
    if capture.kind not in (Kind.NUMBER, Kind.ALTERNATIVES):
        advice = f"Write {{{name}}} for numbers, or name all alternatives: {{{name}:a|b}}."
        return Fault(f"{step.word} needs numbers or alternatives, and {name!r} takes any text", step.offset, advice)
    if step.sizes and capture.alternatives and len(step.sizes) != len(capture.alternatives):
        return Fault(
            f"{len(step.sizes)} sizes for the {len(capture.alternatives)} alternatives of {name!r}",
            step.text.index("sizes"),
            "Give one size for each alternative.",
        )
    return None
