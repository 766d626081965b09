"""What modules say about themselves in plain values: epsilon, number of heads, whether they are deterministic."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

_NOT_ABOUT_THE_CALL = frozenset({"name", "parent", "rngs", "rng_collection", "path_in_the_model", "param_dtype"})
"""Attributes that say nothing about what a module computes once it has its variables."""


def settings_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those attributes that are numbers, texts, types, functions with a name, or tuples of such."""
    found = {}
    for name, value in attributes.items():
        if name.startswith("_") or name in _NOT_ABOUT_THE_CALL or name.endswith("_init"):
            continue
        plain = _plain(value)
        if plain is not _OTHER:
            found[name] = plain
    return found


def settings_in_call(function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same for the arguments of a call: many settings may be given there instead (``deterministic``)."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {}
    given = {name: value for name, value in bound.arguments.items() if name != "self"}
    given |= given.pop("kwargs", {}) if isinstance(given.get("kwargs"), dict) else {}
    return {name: value for name, value in settings_of(given).items() if value is not None}


_OTHER = object()


def _plain(value: Any) -> Any:
    import numpy as np

    if value is None or isinstance(value, bool | int | float | complex | str):
        return value
    if isinstance(value, list | tuple):
        items = tuple(map(_plain, value))
        return _OTHER if any(item is _OTHER for item in items) else items
    if isinstance(value, functools.partial):
        inner, given = _plain(value.func), settings_of(value.keywords)
        return inner if inner is _OTHER else f"{inner}({', '.join(f'{k}={v}' for k, v in given.items())})"
    if isinstance(value, np.dtype | type):
        return _dtype_name(value)
    name = getattr(value, "__name__", "") if callable(value) else ""
    return name if name and not name.startswith("<") else _OTHER


def _dtype_name(value: Any) -> Any:
    """The name of a dtype, however it is written."""
    import numpy as np

    try:
        name: str = np.dtype(value).name
    except TypeError:
        return _OTHER
    return name if name != "object" else _OTHER


def differing(linen: Mapping[str, Any], nnx: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The settings of the same name that are not alike.

    None says that something else decides (an argument, the shape of the input), so it differs from nothing; only a
    dtype of low precision that one side states and the other does not is a difference.
    """
    return [
        (name, value, nnx[name])
        for name, value in linen.items()
        if name in nnx and not _alike(value, nnx[name], name == "dtype")
    ]


def _alike(left: Any, right: Any, none_counts: bool) -> bool:
    if left is None or right is None:
        return left is right or not none_counts or "float32" in (left, right)
    if isinstance(left, tuple) != isinstance(right, tuple):  # 3 and (3,) are the same size of a kernel
        left, right = (value if isinstance(value, tuple) else (value,) for value in (left, right))
        return len(set(left) | set(right)) == 1
    return bool(left == right)
