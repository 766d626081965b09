"""Keeps the tests of a pair together."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts all tests of a pair side by side, so that the process which made its modules for one runs the others too."""
    places = [place for place, item in enumerate(items) if item.path.parent == HERE and hasattr(item, "callspec")]
    order: dict[str, int] = {}
    for place in places:
        order.setdefault(_pair(items[place]), len(order))
    for place, item in zip(
        places, sorted((items[place] for place in places), key=lambda i: order[_pair(i)]), strict=True
    ):
        items[place] = item


def _pair(item: pytest.Item) -> str:
    return item.callspec.params.get("name", "")
