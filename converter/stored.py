"""Where bytes lie on disk."""

from __future__ import annotations

from typing import NamedTuple


class Extent(NamedTuple):
    """Bytes of a file: where a value lies on disk."""

    file: str
    """Absolute path."""
    offset: int
    length: int
