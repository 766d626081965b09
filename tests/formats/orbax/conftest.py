"""Fixtures of the tests of Orbax directories."""

from __future__ import annotations

from pathlib import Path as FilePath

import numpy as np
import pytest

from tests.formats.orbax.support import pytree


@pytest.fixture
def saved(tmp_path: FilePath) -> FilePath:
    """A checkpoint to damage: two arrays too big for the index, one small, in OCDBT."""
    directory = tmp_path / "saved"
    random = np.random.default_rng(0)
    tree = {name: random.standard_normal((40, 40)) for name in ("a", "b")}
    pytree(directory, tree | {"small": np.ones(2)})
    return directory
