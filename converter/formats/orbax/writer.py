"""Writing a tree as an Orbax item: an OCDBT database of zarr arrays with Orbax's JSON files beside it.

Arrays whose bytes need not change are named where they lie (``sharing``); the others are streamed into one data file, a
few pieces of an array in memory at a time. Orbax itself is not needed: its layout on disk is documented
by TensorStore (OCDBT) and zarr, and the result is what its own savers write, read by all of its readers.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, BinaryIO

from converter.errors import DestinationError
from converter.formats import decoding, zarr
from converter.formats.checkpoint import PLAIN, Progress, Strategy, Writing, Written
from converter.formats.chunks import small_chunks
from converter.formats.ocdbt import MAX_INLINE_BYTES, write_database
from converter.formats.orbax.describing import (
    Described,
    write_commit,
    write_committed,
    write_metadata,
    write_strings,
)
from converter.formats.orbax.limits import refuse_unsupported
from converter.formats.orbax.metadata import NUMPY_ARRAY, SavedArray, key_prefix
from converter.formats.orbax.surroundings import ALONE, Surroundings, mark
from converter.formats.sharing import SharedFiles
from converter.formats.streaming import ARRAYS, digest_function, in_turn, leaf_pieces, whole_or_nothing
from converter.grid import Chunk, Encoding, Grid, whole
from converter.paths import Path
from converter.stored import Extent
from converter.tree import KEY_WORDS, Leaf, LeafKind, LeafSpec, Tree

if TYPE_CHECKING:
    import zstandard

_ZSTD = '{"compressor":{"id":"zstd","level":1},"fill_value":null,"filters":null}'
"""What Orbax itself compresses with."""

_ON_A_CPU = {"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"}
"""As JAX calls the device that is always there. Orbax restores a typed PRNG key only where it is told a device."""

_BUFFER = 1 << 20


def strategies(tree: Tree, writing: Writing) -> dict[Path, Strategy]:
    """How each array gets there; see ``Format.strategies``."""
    found: dict[Path, Strategy] = {}
    for path, leaf, grid in _with_grids(tree, writing)[0]:
        if _is_array(leaf):
            shared = Strategy.RELINK if grid is not None and grid.linkable and not writing.copy else Strategy.COPY
            found[path] = Strategy.STREAM if grid is None else shared
    return found


def save(
    tree: Tree,
    destination: FilePath,
    progress: Progress,
    final: FilePath | None = None,
    writing: Writing = PLAIN,
    around: Surroundings = ALONE,
) -> Written:
    """Saves ``tree`` as an item, in ``destination`` or as that; complete when it returns. See ``OrbaxFormat.write``.

    Raises:
      UnsupportedCheckpoint: leaves that Orbax cannot hold; nothing has been written.
      DestinationError: ``destination`` exists, or the file system refused; nothing is left behind.
    """
    destination = FilePath(os.path.abspath(destination))
    if os.path.lexists(destination):
        raise DestinationError(f"{destination} exists already")
    refuse_unsupported(tree)
    final = FilePath(os.path.abspath(final or destination))
    started = time.time_ns()
    with whole_or_nothing(destination):
        destination.mkdir()
        item = around.item_directory(destination)
        item.mkdir(exist_ok=True)
        written = _Save(tree, item, progress, writing).run()
        attached = writing.attached if around.item else {}
        around.attach(destination, attached)
        for name in (around.item, *attached) if around.noted_inside else ():
            write_committed(destination / name, final / name)
        mark(destination, around)
        write_commit(destination, final, started, around.handlers(attached), writing.metadata)
        return written


def _with_grids(tree: Tree, writing: Writing) -> tuple[list[tuple[Path, Leaf, Grid | None]], str]:
    """The leaves, with their grids where arrays can stay as they are, and the zarr version that they can stay in.

    It is ``zarr2``, as Orbax writes by default, unless the first array that knows better lies as zarr 3.
    """
    grids = [leaf.grid() for leaf in tree.values()]
    containers = (grid.form.encoding.container for grid in grids if grid is not None)
    version = next(filter(None, containers), "zarr2")

    def stays(grid: Grid) -> bool:
        """Arrays of an Orbax checkpoint keep their compression; of others it is the user's choice."""
        return zarr.can_hold(grid, version) and not (writing.compress and not grid.encoding.container)

    staying = (grid if grid is not None and stays(grid) else None for grid in grids)
    return list(zip(tree, tree.values(), staying, strict=True)), version


@dataclass(slots=True)
class _Save:
    """One save: the values of the database as they come together, and the leaves to be described."""

    tree: Tree
    destination: FilePath
    progress: Progress
    writing: Writing
    written: Written = field(default_factory=Written)
    values: dict[bytes, Chunk] = field(default_factory=dict)
    described: list[Described] = field(default_factory=list)

    def run(self) -> Written:
        leaves, version = _with_grids(self.tree, self.writing)
        grids = [grid for _, _, grid in leaves if grid is not None]
        like = _like_the_others(grids)
        files = SharedFiles(self.destination / "d", copy=self.writing.copy, progress=self.progress)
        place = self._shared(grids, files)
        streamed = [(path, leaf) for path, leaf, grid in leaves if grid is None and _is_array(leaf)]
        with _Sink(files.new_file, self.writing.compress and version == "zarr2") as sink:
            for (path, leaf), pieces in in_turn(streamed, _pieces):
                self._stream(path, leaf, pieces, sink, version, like)
        for path, leaf, grid in leaves:
            if grid is not None:
                saved = grid.origin if isinstance(grid.origin, SavedArray) else _saved(leaf.spec, like)
                chunks = {index: place(chunk) for index, chunk in grid.chunks.items()}
                self._add(Described(path, leaf.spec, grid, saved), version, chunks)
            elif _is_array(leaf):  # it has been streamed
                continue
            else:
                self.described.append(Described(path, leaf.spec))
            self.progress(0, 1)
        self._finish(files, version)
        return self.written

    def _shared(self, grids: Iterable[Grid], files: SharedFiles) -> Callable[[Chunk], Chunk]:
        """Brings the chunks over that stay as they are. Returns: where each of them is then.

        Those of a few bytes are put into the index, unless their files are linked anyway.
        """
        small: list[Extent] = []
        others: list[tuple[Extent, bool]] = []
        for grid in grids:
            is_linked = grid.linkable and not self.writing.copy
            for chunk in grid.chunks.values():
                if isinstance(chunk, bytes):
                    continue
                if chunk.length <= MAX_INLINE_BYTES and not is_linked:
                    small.append(chunk)
                else:
                    others.append((chunk, grid.linkable))
        inside = dict(zip(small, small_chunks(small), strict=True))
        files.add(others)

        def place(chunk: Chunk) -> Chunk:
            if isinstance(chunk, bytes):
                return chunk
            found = inside.get(chunk)
            return files.place(chunk) if found is None else found

        return place

    def _stream(
        self, path: Path, leaf: Leaf, pieces: Iterator[Any], sink: _Sink, version: str, like: SavedArray
    ) -> None:
        grid = _new_grid(leaf, sink.compress)
        chunk, self.written.digests[path] = sink.put(pieces, math.prod(grid.form.shape) * _item_size(grid))
        described = Described(path, leaf.spec, grid, _saved(leaf.spec, like))
        self._add(described, version, {(0,) * len(grid.axes): chunk})
        self.written.streamed += leaf.spec.nbytes
        self.progress(leaf.spec.nbytes, 1)

    def _add(self, leaf: Described, version: str, chunks: Mapping[tuple[int, ...], Chunk]) -> None:
        """The values of an array: its metadata and its chunks."""
        assert leaf.grid is not None
        prefix = key_prefix(leaf.name)
        text = zarr.metadata(leaf.grid.form, version)
        self.values[f"{prefix}{zarr.METADATA_KEYS[version]}".encode()] = text
        array = zarr.parse(text)
        for index, key in array.places():
            if index in chunks:
                self.values[f"{prefix}{key}".encode()] = chunks[index]
        self.described.append(leaf)

    def _finish(self, files: SharedFiles, version: str) -> None:
        self.written.linked, self.written.copied, self.written.unused = files.linked, files.copied, files.unused
        with _Sink(files.new_file) as sink:  # a source may have kept more inside of its index than we do
            for key, value in self.values.items():
                if isinstance(value, bytes) and len(value) > MAX_INLINE_BYTES:
                    self.values[key], _ = sink.put([value], len(value))
        write_database(self.destination, self.values)
        complete = all(leaf.grid is None or leaf.grid.is_complete for leaf in self.described)
        write_metadata(self.destination, self.described, zarr3=version == "zarr3", all_stored=complete)
        texts = {".".join(path): leaf.fetch() for path, leaf in self.tree.items() if leaf.spec.kind is LeafKind.TEXT}
        write_strings(self.destination, texts)


class _Sink:
    """A data file that values are written to one after the other; values of a few bytes are given back instead.

    Args:
      new_file: makes its path when there is something to write.
      compress: compress values as Orbax does.
    """

    def __init__(self, new_file: Callable[[], str], compress: bool = False) -> None:
        self.compress = compress
        self._new_file = new_file
        self._stream: BinaryIO | None = None
        self._path = ""
        self._end = 0

    def put(self, pieces: Iterable[Any], size: int) -> tuple[Chunk, int]:
        """Writes a value of ``size`` bytes before compression.

        Returns: the value or where it is now, and the crc32c of what it was before compression.
        """
        extend, digest = digest_function(), 0
        small = size <= MAX_INLINE_BYTES
        compressor = self._compressor.compressobj(size=size) if self.compress else None
        kept: list[bytes] = []
        start = self._end
        for piece in pieces:
            digest = extend(digest, piece)
            data = piece if compressor is None else compressor.compress(piece)
            kept += self._put(data, small)
        if compressor is not None:
            kept += self._put(compressor.flush(), small)
        return (b"".join(kept) if small else Extent(self._path, start, self._end - start)), digest

    @functools.cached_property
    def _compressor(self) -> zstandard.ZstdCompressor:
        import zstandard

        return zstandard.ZstdCompressor(level=1)

    def _put(self, data: Any, small: bool) -> list[bytes]:
        if small:
            return [bytes(data)]
        if self._stream is None:
            self._path = self._new_file()
            self._stream = open(self._path, "xb", buffering=_BUFFER)  # noqa: SIM115
        self._stream.write(data)
        self._end += len(data)
        return []

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._stream is None:
            return
        if kind is None:
            self._stream.flush()
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._stream.close()


# Arrays that are written anew ----------------------------------------------------------------------------------------


def _is_array(leaf: Leaf) -> bool:
    return leaf.spec.kind in ARRAYS or leaf.spec.kind is LeafKind.SCALAR


def _pieces(path: Path, leaf: Leaf) -> Iterator[Any]:
    import numpy as np

    if leaf.spec.kind is not LeafKind.SCALAR:
        return leaf_pieces(path, leaf)
    return decoding.array_pieces(np.asarray(leaf.fetch(), np.dtype(_scalar_type(leaf))))


def _scalar_type(leaf: Leaf) -> str:
    """As Orbax stores Python numbers: 64 bits wide."""
    if leaf.spec.dtype == "int":
        return "<i8" if leaf.fetch() < 2**63 else "<u8"
    return {"bool": "|b1", "float": "<f8"}[leaf.spec.dtype]


def _new_grid(leaf: Leaf, compress: bool) -> Grid:
    """One chunk for the whole array, as Orbax writes what one device holds."""
    spec = leaf.spec
    if spec.kind is LeafKind.SCALAR:
        dtype, shape = _scalar_type(leaf), spec.shape
    elif spec.kind is LeafKind.KEY:
        dtype, shape = "<u4", (*spec.shape, KEY_WORDS.get(spec.dtype, 2))
    else:
        dtype, shape = zarr.type_string(spec.dtype), spec.shape
    encoding = Encoding(dtype, "zstd", "zarr2", _ZSTD) if compress else Encoding(dtype)
    return Grid(whole(shape, encoding), {(0,) * len(shape): b""})


def _item_size(grid: Grid) -> int:
    return decoding.element_type(grid).itemsize


def _like_the_others(grids: Iterable[Grid]) -> SavedArray:
    """What is noted of arrays that Orbax has noted nothing of: NumPy arrays, but on the device where all others are."""
    for grid in grids:
        saved = grid.origin
        if isinstance(saved, SavedArray) and (saved.sharding or {}).get("sharding_type") == "SingleDeviceSharding":
            return SavedArray("jax.Array", is_listed=saved.is_listed, sharding=saved.sharding)
    return NUMPY_ARRAY


def _saved(spec: LeafSpec, like: SavedArray) -> SavedArray:
    if spec.kind is LeafKind.SCALAR:
        return SavedArray("scalar")
    if spec.kind is LeafKind.KEY:
        extra = {"random_key_impl": spec.dtype}
        return SavedArray("jax.Array", is_listed=True, extra=extra, sharding=like.sharding or _ON_A_CPU)
    return like
