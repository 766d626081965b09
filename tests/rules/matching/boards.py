"""Boards, models and evidence in a few words, for the tests of the matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from converter.models import Model, ModelVariable
from converter.models.layers import Layer
from converter.models.trace import Trace
from converter.paths import IntKey, Path, parse_path
from converter.rules.link import Correspondence, Link, Name
from converter.rules.matching.board import Board, Piece
from converter.rules.matching.evidence import Evidence
from converter.tree import LeafSpec, array_spec


def name(text: str) -> Name:
    """``batch_stats:norm/mean``; without a collection it is a parameter. Numbers are items of NNX lists."""
    collection, colon, path = text.rpartition(":")
    keys = (IntKey(key) if key.isdigit() else key for key in parse_path(path))
    return (collection if colon else "params"), tuple(keys)


def specs(shapes: Mapping[str, Sequence[int]]) -> dict[Name, LeafSpec]:
    return {name(text): array_spec("float32", shape) for text, shape in shapes.items()}


def model(
    framework: str,
    shapes: Mapping[str, Sequence[int]],
    layers: Mapping[str, str] | None = None,
    lifted: Sequence[str] = (),
) -> Model:
    """A model with these variables; ``layers`` tells the kind of the layer at each path."""
    found = [ModelVariable(*key, spec, key[1], trainable=key[0] == "params") for key, spec in specs(shapes).items()]
    kinds = tuple(Layer(kind, name(path)[1]) for path, kind in (layers or {}).items())
    return Model(framework, None, tuple(found), layers=kinds, lifted=frozenset(name(text)[1] for text in lifted))  # type: ignore[arg-type]


def board(linen: Mapping[str, Sequence[int]], nnx: Mapping[str, Sequence[int]], lifted: Sequence[str] = ()) -> Board:
    return Board(specs(linen), specs(nnx), model("linen", linen, lifted=lifted), model("nnx", nnx))


def trace(order: Sequence[str] = (), scanned: Mapping[str, Sequence[int]] | None = None) -> Trace:
    """A call that uses these variables one after the other; one that stands twice is used twice."""
    uses: dict[Name, list[int]] = {}
    for position, text in enumerate(order):
        uses.setdefault(name(text), []).append(position)
    walked = {name(text): tuple(axes) for text, axes in (scanned or {}).items()}
    return Trace({key: tuple(places) for key, places in uses.items()}, walked)


class Judge:
    """Evidence that knows the right answer.

    Args:
      traces: those of both calls.
      truth: Linen names by NNX name.
      silent: Linen variables on which no output depends.
    """

    def __init__(self, traces: tuple[Trace, Trace], truth: Mapping[str, str], silent: Sequence[str] = ()) -> None:
        self.asked = 0
        self._truth = {name(nnx): name(linen) for nnx, linen in truth.items()}
        self._silent = {name(text) for text in silent}
        self.evidence = Evidence(lambda: traces, self.confirm, self.silent)

    def confirm(self, pieces: Sequence[Piece]) -> str:
        self.asked += 1
        wrong = [
            nnx
            for piece in pieces
            for linen, nnx in zip(piece.linen, piece.nnx, strict=False)
            if self._truth[nnx] != linen and self._truth[nnx] not in self._silent
        ]
        return f"{len(wrong)} are wrong" if wrong else ""

    def silent(self, groups: Sequence[Sequence[Name]]) -> list[int]:
        return [position for position, group in enumerate(groups) if self._silent.issuperset(group)]


def paired(pieces: Sequence[Piece]) -> dict[str, str]:
    """The Linen paths of all pieces by their NNX paths, without collections."""
    return {_joined(piece.nnx): _joined(piece.linen) for piece in pieces}


def _joined(names: Sequence[Name]) -> str:
    return " + ".join("/".join(path) for _, path in names)


def made(found: Correspondence, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the links make of these values, by the path in the target."""
    arrays = {name(text): value for text, value in values.items()}
    results: dict[Name, np.ndarray] = {}
    for link in found.links:
        results |= _carried_out(link, arrays)
    return {"/".join(path): value for (_, path), value in results.items()}


def _carried_out(link: Link, arrays: Mapping[Name, np.ndarray]) -> dict[Name, np.ndarray]:
    sources = [arrays[key] for key in link.sources]
    own = [array_spec(array.dtype.name, array.shape) for array in sources]
    return dict(zip(link.targets, link.operation.apply(sources, own), strict=True))


def problems(found: Correspondence) -> str:
    return "\n".join(problem for problem, _ in found.problems)


def path(text: str) -> Path:
    return name(text)[1]
