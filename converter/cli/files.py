"""Files that commands write beside checkpoints, such as reports: complete, or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path as FilePath

from converter.errors import DestinationError

_ELSEWHERE = "Name a file in a directory that exists and may be written to."


def check_file(file: FilePath, what: str, checkpoints: Iterable[FilePath] = ()) -> None:
    """Refuses a place where no file can be written; a file that exists there will be replaced.

    Args:
      what: what it will be, for messages (``report``).
      checkpoints: what the file must not lie in, nor take the place of.

    Raises:
      DestinationError
    """
    if file.is_dir():
        raise DestinationError(f"{file} is a directory, no place for a {what}", _ELSEWHERE)
    if file.exists() and not file.is_file():
        raise DestinationError(f"{file} is no ordinary file", _ELSEWHERE)
    parent = file.parent
    if not parent.is_dir():
        raise DestinationError(f"{file} cannot be written: there is no directory {parent}", _ELSEWHERE)
    real = file.resolve()
    for checkpoint in checkpoints:
        if checkpoint.resolve() in (real, *real.parents):
            raise DestinationError(f"the {what} {file} would be part of the checkpoint {checkpoint}", _ELSEWHERE)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DestinationError(f"{file} cannot be written: no permission to write in {parent}", _ELSEWHERE)


def write_file(file: FilePath, what: str, text: str) -> None:
    """Writes a text. An existing file is replaced at once, or left as it is.

    Raises:
      DestinationError: the file cannot be written.
    """
    import tempfile

    data = text.encode("utf-8", errors="replace")
    temporary = ""
    try:
        file = file.resolve()
        number, temporary = tempfile.mkstemp(prefix=f".{file.name[:64]}-", dir=file.parent)
        with open(number, "wb") as stream:
            stream.write(data)
        os.chmod(temporary, _mode(file))
        os.replace(temporary, file)
    except OSError as error:
        raise DestinationError(f"the {what} {file} cannot be written: {error.strerror}", _ELSEWHERE) from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _mode(file: FilePath) -> int:
    """The permissions of the file that is replaced, or those of any new file: ``mkstemp`` keeps others out."""
    with contextlib.suppress(OSError):
        return file.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
