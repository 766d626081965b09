"""What a new checkpoint may take the place of: a file, or another checkpoint, and nothing that holds more than that."""

from __future__ import annotations

from pathlib import Path as FilePath

from converter.errors import DestinationError

_MODEL_FILES = (".msgpack", ".safetensors", ".index.json")
"""How the files of a model directory end that this program writes."""

_SHOWN = 5


def check_replaceable(path: FilePath) -> None:
    """Refuses to replace directories that are more than one checkpoint, and what is neither file nor directory.

    A link is replaced itself, never what it leads to.

    Raises:
      DestinationError: says what would be lost.
    """
    if path.is_symlink() or path.is_file():
        return
    if not path.is_dir():
        raise DestinationError(f"{path} is no file or directory but a pipe, socket or device", _ELSEWHERE)
    from converter.formats.orbax.layout import is_one_checkpoint

    try:
        others = [entry.name for entry in path.iterdir() if not entry.name.endswith(_MODEL_FILES)]
        replaceable = not others or is_one_checkpoint(path)
    except OSError as error:
        raise DestinationError(f"{path} cannot be read: {error.strerror}", _ELSEWHERE) from None
    if not replaceable:
        listed = ", ".join(sorted(others)[:_SHOWN]) + (" …" if len(others) > _SHOWN else "")
        raise DestinationError(
            f"{path} is not one checkpoint and nothing else: --force would remove {listed}",
            "Choose another name, --as-step N to write one more step, or remove the directory yourself.",
        )


_ELSEWHERE = "Choose another name."
