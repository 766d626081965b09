"""Executing a plan: the destination appears complete and checked, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path as FilePath

from converter.errors import DestinationError
from converter.formats.checkpoint import Format, Progress
from converter.tree import Tree


def check_destination(source: FilePath, destination: FilePath, force: bool) -> None:
    """Refuses a destination that exists, or whose writing could touch the source; reads nothing else.

    Raises:
      DestinationError
    """
    real_source, real_destination = source.resolve(), destination.resolve()
    if real_destination == real_source or real_source in real_destination.parents:
        raise DestinationError(
            f"{destination} lies inside the source {source}", "The source is never written to: choose another place."
        )
    if real_destination in real_source.parents:
        raise DestinationError(f"{destination} contains the source {source}", "Choose another place.")
    if os.path.lexists(destination) and not force:
        raise DestinationError(f"{destination} exists already", "Choose another name, or replace it with --force.")
    for parent in destination.parents:
        if os.path.lexists(parent):
            if not parent.is_dir():
                raise DestinationError(f"{destination} cannot be created: {parent} is not a directory")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise DestinationError(f"{destination} cannot be created: no permission to write in {parent}")
            return


def write_atomically(
    tree: Tree,
    destination: FilePath,
    format: Format,
    *,
    force: bool,
    check: Callable[[FilePath], None],
    progress: Progress,
) -> None:
    """Writes beside the destination, lets ``check`` look at the result, and only then gives it its name.

    Args:
      check: called with the path of the complete but unpublished checkpoint; what it raises prevents the publication.

    Raises:
      DestinationError: the file system refused, or the destination appeared meanwhile.
    """
    created = _make_parents(destination)
    temporary = destination.with_name(f".{destination.name}.unfinished-{secrets.token_hex(4)}")
    try:
        format.write(tree, temporary, progress, final=destination)
        check(temporary)
        _publish(temporary, destination, force)
    except BaseException:
        remove(temporary)
        for parent in created:
            parent.rmdir()
        raise


def _make_parents(destination: FilePath) -> list[FilePath]:
    """Creates the missing directories above the destination; returns them, innermost first."""
    missing = [parent for parent in destination.parents if not parent.exists()]
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DestinationError(f"{destination.parent} cannot be created: {error.strerror}") from error
    return missing


def _publish(temporary: FilePath, destination: FilePath, force: bool) -> None:
    replaced = destination.with_name(f".{destination.name}.replaced-{secrets.token_hex(4)}")
    try:
        if os.path.lexists(destination):
            if not force:
                raise DestinationError(f"{destination} appeared meanwhile", "Choose another name, or use --force.")
            os.rename(destination, replaced)
        os.rename(temporary, destination)
    except OSError as error:
        if os.path.lexists(replaced) and not os.path.lexists(destination):
            os.rename(replaced, destination)
        raise DestinationError(f"{destination} cannot be written: {error.strerror}") from error
    remove(replaced)


def remove(path: FilePath) -> None:
    """Removes a file or directory tree of ours, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()
