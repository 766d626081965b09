"""Saving a tree with Orbax's own saver.

``PyTreeCheckpointer`` is used and not ``StandardCheckpointer``, because the latter refuses texts; the files are the
same otherwise, and either of them and the v1 API read them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from converter.errors import DestinationError, UnsupportedCheckpoint
from converter.formats.checkpoint import Progress, undisturbed
from converter.formats.orbax.layout import UNFINISHED
from converter.formats.orbax.limits import refuse_unsupported
from converter.tree import IndexKey, Leaf, LeafKind, LeafSpec, Path, Tree, format_path, nest

_EMPTY_NODES: dict[str, Callable[[], Any]] = {"dict": dict, "list": list, "tuple": tuple}
"""What stands for each kind of empty leaf; None for the others."""

_PATIENCE, _LONG_PATIENCE, _REMOVALS = 1.0, 10.0, 10
"""Seconds to wait for TensorStore to give up, and for the threads of a failed save; how often to look then."""


def save(tree: Tree, destination: FilePath, progress: Progress, final: FilePath | None = None) -> None:
    """Saves ``tree`` as the item directory ``destination``; complete when it returns. See ``OrbaxFormat.write``.

    Raises:
      UnsupportedCheckpoint: leaves that Orbax cannot hold; nothing has been written.
      DestinationError: ``destination`` exists, or the file system refused; nothing is left behind.
    """
    destination = FilePath(os.path.abspath(destination))
    if os.path.lexists(destination):
        raise DestinationError(f"{destination} exists already")
    refuse_unsupported(tree)
    with _quiet(), _on_cpu() as to_device:
        values = _nested(tree, progress, to_device)
        with _removing_remains(destination):
            _save(values, destination)
            if final is not None:
                _rename_in_commit_file(destination, final)


# Values ----------------------------------------------------------------------------------------------------------


def _nested(tree: Tree, progress: Progress, to_device: Callable[[Any], Any]) -> Any:
    """Fetches all leaves into the containers that Orbax saves."""
    values: list[tuple[Path, Any]] = []
    for path, leaf in tree.items():
        # An int key is stored as text anyway, and JAX cannot sort a dict that mixes ints and texts.
        keys = tuple(key if isinstance(key, IndexKey) else str(key) for key in path)
        values.append((keys, _value(path, leaf, to_device)))
        progress(leaf.spec.nbytes, 1)
    return nest(values)


def _value(path: Path, leaf: Leaf, to_device: Callable[[Any], Any]) -> Any:
    spec = leaf.spec
    if spec.kind is LeafKind.EMPTY:
        return _EMPTY_NODES.get(spec.dtype, lambda: None)()
    value = leaf.fetch()
    if spec.kind is LeafKind.KEY:
        return _typed_key(path, spec, to_device(np.asarray(value)))
    if spec.kind in (LeafKind.ARRAY, LeafKind.NUMPY_SCALAR):
        array = np.asarray(value, order="C")
        return to_device(array) if _fits_jax(array.dtype) else array
    return value


def _typed_key(path: Path, spec: LeafSpec, data: Any) -> Any:
    import jax

    try:
        return jax.random.wrap_key_data(data, impl=spec.dtype)
    except (TypeError, ValueError) as error:
        raise UnsupportedCheckpoint(f"{format_path(path)}: JAX {jax.__version__} makes no {spec}: {error}") from None


def _fits_jax(dtype: np.dtype[Any]) -> bool:
    """Whether JAX holds the dtype unchanged: without x64 it would make float32 of float64."""
    import jax

    try:
        return bool(jax.dtypes.canonicalize_dtype(dtype) == dtype)
    except TypeError:
        return False


@contextlib.contextmanager
def _on_cpu() -> Iterator[Callable[[Any], Any]]:
    """Gives a function that makes an array a JAX array on the CPU, so that no accelerator holds the checkpoint."""
    import jax

    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves out the CPU
        device = jax.local_devices()[0]
    with jax.default_device(device):
        yield lambda array: jax.device_put(array, device)


# Files -----------------------------------------------------------------------------------------------------------


def _save(values: Any, destination: FilePath) -> None:
    """The synchronous saver: all files are complete when it returns."""
    import orbax.checkpoint as ocp

    with contextlib.closing(ocp.PyTreeCheckpointer()) as saver:
        saver.save(destination, values)


def _rename_in_commit_file(destination: FilePath, final: FilePath) -> None:
    """Orbax from 0.12.8 notes in words where it saved to; nothing reads it, but a temporary name would mislead."""
    file = destination / "commit_success.txt"
    if file.is_file():
        file.write_text(file.read_text().replace(str(destination), os.path.abspath(final)))


@contextlib.contextmanager
def _removing_remains(destination: FilePath) -> Iterator[None]:
    """Removes what a failed save leaves, and makes a DestinationError of what the file system refused."""
    before, threads = _saves_of(destination), set(threading.enumerate())
    try:
        yield
    except BaseException as error:
        # Orbax raises the first failure while its threads, and those of TensorStore, go on writing: they would make
        # the directory anew, so it is removed for a while.
        with undisturbed():
            _await(set(threading.enumerate()) - threads)
            for _ in range(_REMOVALS):
                for remains in _saves_of(destination) - before:
                    shutil.rmtree(remains, ignore_errors=True)
                time.sleep(_PATIENCE / _REMOVALS)
        reason = _disk_trouble(error)
        if reason is None:
            raise
        raise DestinationError(
            f"{destination} cannot be written: {reason}", "Check free space and permissions; nothing was left behind."
        ) from error


def _await(threads: Iterable[threading.Thread]) -> None:
    """Waits for threads to end, but not for ever."""
    until = time.monotonic() + _LONG_PATIENCE
    for thread in threads:
        while thread.is_alive() and time.monotonic() < until:
            # Orbax's own join raises what went wrong in the thread, or that it takes too long.
            with contextlib.suppress(Exception):
                threading.Thread.join(thread, timeout=_PATIENCE)


def _disk_trouble(error: BaseException) -> str | None:
    """What the operating system said, if it did. TensorStore puts its code into a ValueError, in one of two ways."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    match = re.search(r"(?:\[os_error_code='|\[OS error )(\d+)", str(error))
    return os.strerror(int(match[1])) if match else None


def _saves_of(destination: FilePath) -> set[FilePath]:
    """The destination and the temporary directories that Orbax makes beside it."""
    try:
        children = list(destination.parent.iterdir())
    except OSError:
        return set()
    name = destination.name
    return {child for child in children if child.name == name or child.name.startswith(name + UNFINISHED)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what Orbax, TensorStore and their threads say away from stderr: a failure is raised here as well."""
    from absl import logging as absl_logging  # not by name: absl must be the first to make its logger

    logger = absl_logging.get_absl_logger()
    before = logger.level, threading.excepthook, sys.unraisablehook
    logger.setLevel(logging.CRITICAL + 1)
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before[0])
        threading.excepthook, sys.unraisablehook = before[1:]
