"""The checkpoint that is measured: which leaves it has at a scale, where each layout puts them, what they hold.

Every value follows from its place alone, so that a result can be checked without the source being kept.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

WIDTH = 1024
"""The last axis of a large kernel."""
SMALL_LAYERS = 50
"""Layers of a checkpoint of many small leaves."""
KERNELS = ("up", "gate", "down", "out")

Layout = Literal["nnx", "linen", "scanned"]
Place = tuple[str, ...]
Origin = tuple[int, str, str]
"""Layer, module, leaf."""


@dataclass(frozen=True, slots=True, order=True)
class Scale:
    """How large: so many megabytes (10^6 bytes) in large leaves, or so many small leaves of about 200 bytes."""

    megabytes: int = 0
    leaves: int = 0

    @classmethod
    def parse(cls, text: str) -> Scale:
        """``512MB``, ``2GB``, ``50,000 leaves``, or a number of megabytes.

        Raises:
          ValueError: the text is something else.
        """
        found = re.fullmatch(r"(\d+)\s*(MB|GB|LEAVES|)", text.strip().upper().replace(",", ""))
        number = int(found[1]) if found else 0
        if not found or not number:
            raise ValueError(f"{text!r} is no size; write 512MB or 2GB")
        if found[2] == "LEAVES":
            return cls(leaves=number)
        return cls(megabytes=number * (1000 if found[2] == "GB" else 1))

    def __str__(self) -> str:
        if self.leaves:
            return f"{self.leaves:,} leaves"
        return f"{self.megabytes // 1000} GB" if self.megabytes % 1000 == 0 else f"{self.megabytes} MB"

    @property
    def layers(self) -> int:
        """12 layers at 2 GB. More bytes are more layers, not larger leaves, as in real models."""
        return SMALL_LAYERS if self.leaves else max(2, round(12 * self.megabytes / 2000))

    @property
    def shapes(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Module and leaf name → shape, the same in every layer."""
        if self.leaves:
            units = max(1, self.leaves // (2 * SMALL_LAYERS))
            return {(f"unit_{i}", leaf): shape for i in range(units) for leaf, shape in SMALL_SHAPES.items()}
        rows = max(1, self.megabytes * 10**6 // (self.layers * len(KERNELS) * 4 * WIDTH))
        return {**{(module, "kernel"): (rows, WIDTH) for module in KERNELS}, ("out", "bias"): (WIDTH,)}

    @property
    def count(self) -> int:
        """The number of leaves while layers are apart."""
        return self.layers * len(self.shapes)

    @property
    def nbytes(self) -> int:
        return 4 * self.layers * sum(_product(shape) for shape in self.shapes.values())


SMALL_SHAPES: dict[str, tuple[int, ...]] = {"kernel": (7, 7), "bias": (50,)}


@dataclass(frozen=True, slots=True)
class Expected:
    """A float32 leaf: its shape and what it is made of, one origin or (scanned, along axis 1) that of every layer."""

    shape: tuple[int, ...]
    origins: tuple[Origin, ...]

    def value(self) -> np.ndarray:
        import numpy as np

        if len(self.origins) == 1:
            return random_array(self.origins[0], self.shape)
        stacked = np.empty(self.shape, np.float32)
        for i, origin in enumerate(self.origins):
            stacked[:, i] = random_array(origin, (self.shape[0], *self.shape[2:]))
        return stacked


def expected(scale: Scale, layout: Layout) -> dict[Place, Expected]:
    """Every leaf of the checkpoint in a layout, by its place on disk."""
    return dict(_scanned(scale) if layout == "scanned" else _apart(scale, layout))


def random_array(origin: Origin, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array of one layer: the same wherever and whenever it is asked for."""
    import numpy as np

    seed = zlib.crc32("/".join(map(str, origin)).encode())
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _apart(scale: Scale, layout: Layout) -> Iterator[tuple[Place, Expected]]:
    for i in range(scale.layers):
        for (module, leaf), shape in scale.shapes.items():
            inner = (f"layers_{i}", module, leaf)
            place = ("params", *inner) if layout == "linen" else (*inner, "value")
            yield place, Expected(shape, ((i, module, leaf),))


def _scanned(scale: Scale) -> Iterator[tuple[Place, Expected]]:
    for (module, leaf), shape in scale.shapes.items():
        origins = tuple((i, module, leaf) for i in range(scale.layers))
        yield ("layers", module, leaf, "value"), Expected((shape[0], scale.layers, *shape[1:]), origins)


def _product(numbers: tuple[int, ...]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result
