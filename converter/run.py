"""Executing a plan: the destination appears complete and checked, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath

from converter import scratch
from converter.errors import DestinationError
from converter.formats.checkpoint import PLAIN, Format, Progress, Writing, Written, undisturbed
from converter.formats.chunks import forget_files
from converter.tree import Tree


def check_destination(source: FilePath, destination: FilePath, force: bool) -> None:
    """Refuses a destination that exists, or whose writing could touch the source; reads nothing else.

    Raises:
      DestinationError
    """
    real_source, real_destination = source.resolve(), destination.resolve()
    if real_destination == real_source or real_source in real_destination.parents:
        raise DestinationError(
            f"{destination} is the source {source}, or lies inside it",
            "The source is never written to: choose another place.",
        )
    if real_destination in real_source.parents:
        raise DestinationError(f"{destination} contains the source {source}", "Choose another place.")
    if os.path.lexists(destination):
        if not force:
            raise DestinationError(f"{destination} exists already", "Choose another name, or replace it with --force.")
        from converter.formats.replacing import check_replaceable

        check_replaceable(destination)
    if destination.name in ("", ".."):
        raise DestinationError(f"{destination} names no new file or directory", "Choose another name.")
    for parent in destination.parents:
        if os.path.lexists(parent):
            if not parent.is_dir():
                raise DestinationError(f"{destination} cannot be created: {parent} is not a directory", _ELSEWHERE)
            if not os.access(parent, os.W_OK | os.X_OK):
                raise DestinationError(
                    f"{destination} cannot be created: no permission to write in {parent}", _ELSEWHERE
                )
            return


_ELSEWHERE = "Choose another place."


def write_atomically(
    tree: Tree,
    destination: FilePath,
    format: Format,
    *,
    force: bool,
    check: Callable[[FilePath, Written], None],
    progress: Progress,
    writing: Writing = PLAIN,
    budget: int = scratch.DEFAULT_BUDGET,
) -> Written:
    """Writes beside the destination, lets ``check`` look at the result, and only then gives it its name.

    Args:
      check: called with the path of the complete but unpublished checkpoint and with what its writing came to; what it
        raises prevents the publication.
      writing: what the user wants of the destination.
      budget: bytes of memory that arrays may take meanwhile; larger ones lie in files beside the destination.

    Raises:
      DestinationError: the file system refused, or the destination appeared meanwhile.
    """
    created = _make_parents(destination)
    # The name says whose it is after a power failure; it does not grow with the destination's.
    temporary = destination.with_name(f".flax-convert-unfinished-{os.urandom(4).hex()}")
    try:
        with scratch.room(destination.parent, budget):
            with _naming(temporary, destination):
                written = format.write(tree, temporary, progress, final=destination, writing=writing)
            with _reaching_the_disk(temporary, destination):
                check(temporary, written)
        forget_files()
        with undisturbed():
            _publish(temporary, destination, force)
            with contextlib.suppress(OSError):  # not every file system has it for directories
                _flush(destination.parent)
    except BaseException:
        with undisturbed():
            forget_files()
            remove(temporary)
            _remove_empty(created)
        raise
    return written


def _make_parents(destination: FilePath) -> list[FilePath]:
    """Creates the missing directories above the destination; returns them, innermost first."""
    missing = [parent for parent in destination.parents if not os.path.lexists(parent)]
    created: list[FilePath] = []
    for parent in reversed(missing):
        try:
            parent.mkdir()
        except OSError as error:
            _remove_empty(created)
            raise DestinationError(f"{parent} cannot be created: {error.strerror}", _ELSEWHERE) from error
        created.insert(0, parent)
    return created


def _remove_empty(directories: list[FilePath]) -> None:
    """Removes directories that were made for the destination, innermost first, unless somebody uses them."""
    for directory in directories:
        with contextlib.suppress(OSError):
            directory.rmdir()


@contextlib.contextmanager
def _naming(temporary: FilePath, destination: FilePath) -> Iterator[None]:
    """Lets errors speak of the destination that the user named, not of the temporary file beside it."""
    try:
        yield
    except DestinationError as error:
        for name in (os.path.abspath(temporary), str(temporary)):
            error.message = error.message.replace(name, str(destination))
            error.advice = error.advice.replace(name, str(destination))
        raise


@contextlib.contextmanager
def _reaching_the_disk(temporary: FilePath, destination: FilePath) -> Iterator[None]:
    """Brings what was written to the disk in the meantime, so that a power failure after the publication loses nothing.

    Raises:
      DestinationError: the disk refused.
    """
    failed: list[OSError] = []

    def work() -> None:
        try:
            _sync(temporary)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="flax-convert-sync", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failed:
        raise DestinationError(f"{destination} cannot be written: {failed[0].strerror}", _ELSEWHERE) from failed[0]


def _sync(path: FilePath) -> None:
    """Flushes a file, or all files of a directory that are its own, and the directories."""
    if path.is_dir():
        for child in path.iterdir():
            _sync(child)
    elif path.stat().st_nlink > 1:  # a link to what has been on the disk for long
        return
    _flush(path)


def _flush(path: FilePath) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _publish(temporary: FilePath, destination: FilePath, force: bool) -> None:
    replaced = destination.with_name(f".flax-convert-replaced-{os.urandom(4).hex()}")
    try:
        if os.path.lexists(destination):
            if not force:
                raise DestinationError(f"{destination} appeared meanwhile", "Choose another name, or use --force.")
            if _exchange(temporary, destination):
                remove(temporary)
                return
            os.rename(destination, replaced)
        os.rename(temporary, destination)
    except OSError as error:
        if os.path.lexists(replaced) and not os.path.lexists(destination):
            os.rename(replaced, destination)
        raise DestinationError(f"{destination} cannot be written: {error.strerror}", _ELSEWHERE) from error
    remove(replaced)


def _exchange(one: FilePath, other: FilePath) -> bool:
    """Swaps two names at once, so that neither of them is missing at any time; false where the system cannot."""
    import ctypes

    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return bool(swap(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def remove(path: FilePath) -> None:
    """Removes a file or directory tree of ours, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()
