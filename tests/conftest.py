"""What all tests share: a quiet JAX on the CPU, reproducible property tests, and the places of checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from pathlib import Path

import hypothesis
import pytest

# Before anything imports jax. The tests never need more than the CPU, even where there is more.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("default", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session", autouse=True)
def _quiet_logs() -> None:
    """Orbax and JAX log through absl. Its logger needs absl's own class, so it is imported rather than named."""
    with contextlib.suppress(ImportError):
        from absl import logging

        logging.set_verbosity(logging.ERROR)


COMPILATION = {
    # Less time for the compiler, more for programs that are too small to notice.
    "jax_disable_most_optimizations": True,
    # A scan is compiled anew with every eager call, and many models are the same: there is much use for the files.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="session", autouse=True)
def _quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Much of the time would go into compiling. All processes of this run share what they have compiled."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    for option, value in {**COMPILATION, "jax_compilation_cache_dir": str(shared / "compiled")}.items():
        jax.config.update(option, value)
    # JAX looks at these options only once, unless it is told to do so again.
    compilation_cache.reset_cache()


LOOKED_AT_EVERY, MOST_MAPPINGS = 50, 20_000
_finished = itertools.count(1)


def pytest_runtest_teardown() -> None:
    """Compiled programs take mappings of memory, of which Linux gives a process 65,530; one more ends it."""
    if next(_finished) % LOOKED_AT_EVERY or "jax" not in sys.modules:
        return
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > MOST_MAPPINGS:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """The directory of fixture scripts; the checkpoints are in ``checkpoints/NAME`` below, a ``card.json`` in each."""
    return ROOT / "fixtures"


@pytest.fixture(scope="session")
def corpus_dir() -> Path:
    """A larger collection of checkpoints by old and new library versions, which not every machine has."""
    directory = ROOT.parent / "shared" / "corpus"
    if not directory.is_dir():
        pytest.skip("needs the checkpoint corpus in ../shared/corpus")
    return directory
