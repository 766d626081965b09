"""JSON as it is read from files of others."""

from __future__ import annotations

import json
from typing import Any


class _Twice(ValueError):
    """A name stands twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"{next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def parse_json(text: bytes) -> Any:
    """Reads JSON in UTF-8 whose objects have each name once.

    Raises:
      ValueError: says what is wrong with it.
    """
    try:
        found = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"bytes that are no UTF-8 ({text[error.start : error.start + 4]!r})") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    except _Twice:
        raise
    except ValueError as error:
        raise ValueError(f"no JSON ({error})") from None
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is none of its values")
