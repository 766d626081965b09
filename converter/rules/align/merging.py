"""Parts that lie at equal distances in both variables are one part: layers that both models stack stay stacked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from converter.rules.align.elements import Elements, Step


def merged_parts(every: Iterable[Elements]) -> list[Elements]:
    """The same elements in as few pairs of parts as possible."""
    groups: dict[tuple[int, int, tuple[Step, ...]], list[Elements]] = defaultdict(list)
    for elements in every:
        groups[elements.linen, elements.nnx, elements.steps].append(elements)
    return [part for group in groups.values() for part in _merged(group)]


def _merged(group: Sequence[Elements]) -> list[Elements]:
    """One level of counting after the other, the innermost first."""
    parts = sorted(group, key=lambda elements: elements.starts)
    while len(parts) > 1:
        count, distance = _run([part.starts for part in parts])
        blocks = [parts[at : at + count] for at in range(0, len(parts), count)]
        if count < 2 or any(_run([part.starts for part in block]) != (count, distance) for block in blocks):
            break
        step = (count, *distance)
        parts = [Elements(b[0].linen, b[0].nnx, b[0].starts, (step, *b[0].steps)) for b in blocks]
    return parts


def _run(starts: Sequence[tuple[int, int]]) -> tuple[int, tuple[int, int]]:
    """How many of the first parts lie at equal distances, and at which."""
    if len(starts) < 2:
        return len(starts), (0, 0)
    distance = starts[1][0] - starts[0][0], starts[1][1] - starts[0][1]
    count = 2
    while count < len(starts) and all(starts[count][s] - starts[count - 1][s] == distance[s] for s in (0, 1)):
        count += 1
    return (count, distance) if min(distance) > 0 else (1, distance)
