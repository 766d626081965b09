"""Keeps the parity tests quick: most of their time would go into compiling, often the same small program again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent

CONFIG = {
    # Less time for the compiler, more for programs that are too small to notice.
    "jax_disable_most_optimizations": True,
    # A scan is compiled anew with every eager call, so even one run of the tests has much use for the files.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    config = {**CONFIG, "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled"))}
    before = {option: jax.config.values[option] for option in config}
    for option, value in config.items():
        jax.config.update(option, value)
    # JAX looks at these options only once, unless it is told to do so again.
    compilation_cache.reset_cache()
    yield
    for option, value in before.items():
        jax.config.update(option, value)
    compilation_cache.reset_cache()


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
