"""The OCDBT database format: a key-value store in a file ``manifest.ocdbt`` and data files beside it.

TensorStore documents it as "OCDBT database format" (https://google.github.io/tensorstore/kvstore/ocdbt/). A manifest
names the root of a B-tree for each version of the database; a leaf of the tree has keys, and for each key either the
value itself or the place of the value in a data file. Reading and writing this index alone is enough to give values on
disk other names, or to learn where they lie, without touching them, and takes no TensorStore.

``wire`` and ``frames`` know the pieces of which everything is made, ``reader`` and ``writer`` know manifests and nodes.
"""

from converter.formats.ocdbt.reader import MANIFEST_FILE, read_database
from converter.formats.ocdbt.writer import MAX_INLINE_BYTES, write_database

__all__ = ["MANIFEST_FILE", "MAX_INLINE_BYTES", "read_database", "write_database"]
