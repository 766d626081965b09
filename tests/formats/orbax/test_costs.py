"""What reading and writing load, print and cost."""

from __future__ import annotations

import json
from pathlib import Path as FilePath

import numpy as np
import pytest

from tests.formats.orbax.support import FORMAT, keys, legacy, misc, needs_v1, run_script, version_1

pytestmark = pytest.mark.filterwarnings("ignore")


READING = """
    import sys
    from pathlib import Path
    from converter.formats.orbax import OrbaxFormat
    for name in sys.argv[1:]:
        assert OrbaxFormat().sniff(Path(name))
        for leaf in OrbaxFormat().open(Path(name)).tree.values():
            leaf.fetch()
    print(sorted({name.partition(".")[0] for name in sys.modules} & {"jax", "flax", "orbax", "jaxlib", "optax"}))
"""


@needs_v1
def test_reading_imports_no_framework(tmp_path: FilePath) -> None:
    version_1(tmp_path / "new", misc() | keys())
    legacy(tmp_path / "old", {"a": np.ones(3)})
    done = run_script(READING, tmp_path / "new", tmp_path / "old")
    assert (done.stdout, done.stderr) == ("[]\n", "")


WRITING = """
    import sys
    from pathlib import Path
    import numpy as np
    from converter.formats.orbax import OrbaxFormat
    from converter.tree import (LazyLeaf, LeafKind, LeafSpec, Tree, array_spec)
    tree = Tree([
        (("a",), LazyLeaf(array_spec("float64", (2,)), lambda: np.ones(2))),
        (("k",), LazyLeaf(LeafSpec(LeafKind.KEY, "threefry2x32"), lambda: np.ones(2, np.uint32))),
        (("t",), LazyLeaf(LeafSpec(LeafKind.TEXT, "str"), lambda: "text")),
    ])
    OrbaxFormat().write(tree, Path(sys.argv[1]) / "tree", lambda *_: None)
    OrbaxFormat().write(Tree([(("t",), tree[("t",)])]), Path(sys.argv[1]) / "text", lambda *_: None)
"""


def test_writing_is_silent(tmp_path: FilePath) -> None:
    done = run_script(WRITING, tmp_path)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.slow
def test_opens_many_leaves(tmp_path: FilePath) -> None:
    import tensorstore as ts

    count = 50_000
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/"}).result()
    array = {"zarr_format": 2, "shape": [8], "chunks": [8], "dtype": "<f4", "compressor": None, "order": "C"}
    with ts.Transaction() as transaction:
        for number in range(count):
            store.with_transaction(transaction)[f"layer_{number}.w/.zarray"] = json.dumps(array).encode()
    value = {"value_type": "np.ndarray", "skip_deserialize": False}
    keys = ([{"key": f"layer_{number}", "key_type": 2}, {"key": "w", "key_type": 2}] for number in range(count))
    tree = {str(key): {"key_metadata": key, "value_metadata": value} for key in keys}
    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": tree}))
    assert len(FORMAT.open(tmp_path).tree) == count
