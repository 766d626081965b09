"""How a model is called, in one value that everybody who calls it is given: tracing, trials, comparing outputs."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from converter.calling.inputs import SMALL_RANGE, Arguments
from converter.errors import ModelError
from converter.paths import Path, format_path

OF_APPLY = ("mutable", "rngs")
"""Keyword arguments that Linen's ``apply`` takes for itself; ``init`` has neither."""


@dataclass(frozen=True, slots=True)
class Side:
    """What is particular to the call of one of the two models.

    Attributes:
      kwargs: keyword arguments.
      method: the method that is called, or that of a submodule (``encoder.encode``); "" for ``__call__``.
      output: the path of what counts in the returned pytree: attributes, keys of dicts, positions.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    output: Path = ()

    def call(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the method of the module."""
        return (operator.attrgetter(self.method)(module) if self.method else module)(*args, **kwargs)

    def selected(self, returned: Any, framework: str) -> Any:
        """The part that counts.

        Raises:
          ModelError: there is no such part.
        """
        node = returned
        for depth, key in enumerate(self.output):
            try:
                node = _child(node, key)
            except LookupError:
                option = f"--{framework.lower()}-output {format_path(self.output)}"
                above = format_path(self.output[:depth]) or "the model's output"
                raise ModelError(
                    f"{option}: {above} is a {type(node).__name__} without {key}; it has {_children(node)}",
                    "Name attributes, keys and positions in what the model returns, as in 0/hidden.",
                ) from None
        return node


def _child(node: Any, key: str) -> Any:
    if isinstance(node, Mapping):
        return {str(own): value for own, value in node.items()}[key]
    if isinstance(node, list | tuple) and key.isdecimal():
        return node[int(key)]
    try:
        if key.startswith("_") or (hasattr(node, "shape") and hasattr(node, "dtype")):
            raise KeyError(key)
        return getattr(node, key)
    except AttributeError:
        raise KeyError(key) from None


def _children(node: Any) -> str:
    if isinstance(node, Mapping):
        names = [str(key) for key in node]
    elif hasattr(node, "_fields"):
        names = list(node._fields)
    elif isinstance(node, list | tuple):
        names = [str(position) for position in range(len(node))]
    else:
        names = [name for name in getattr(node, "__dict__", {}) if not name.startswith("_")]
    return ", ".join(names[:12]) or "no parts"


@dataclass(frozen=True, slots=True)
class Signature:
    """How both models are called.

    Attributes:
      arguments: what both get.
      linen, nnx: what is particular to each.
      init: what Linen's ``init`` gets, through ``__call__``, where the call itself does not do (other methods, caches
        that are initialised at full length); None for the arguments and method of the call.
      recipe: the arguments with descriptions of what is to be drawn, where other draws are possible.
      vocabulary: the range of integers for which none is stated.
    """

    arguments: Arguments = field(default_factory=Arguments)
    linen: Side = field(default_factory=Side)
    nnx: Side = field(default_factory=Side)
    init: Arguments | None = None
    recipe: Arguments | None = None
    vocabulary: int = SMALL_RANGE

    @property
    def linen_kwargs(self) -> dict[str, Any]:
        return {**self.arguments.named, **self.linen.kwargs}

    @property
    def nnx_kwargs(self) -> dict[str, Any]:
        return {**self.arguments.named, **self.nnx.kwargs}

    def calling(self, arguments: Arguments) -> Signature:
        """The same call with other arguments."""
        return replace(self, arguments=arguments)

    def drawing(self, vocabulary: int) -> Signature:
        """The same with integers of another range."""
        if self.recipe is None:
            return self
        return replace(self, arguments=self.recipe.drawn(0, vocabulary), vocabulary=vocabulary)


def apply_linen(module: Any, variables: Any, args: Any, kwargs: Mapping[str, Any], side: Side) -> tuple[Any, Any]:
    """What ``module.apply`` returns, as far as it counts, and the collections that it changed."""
    method = side.call if side.method else None
    returned = module.apply(variables, *args, **kwargs, method=method)
    # flax.linen.Module.apply returns a pair unless mutable is False, even for an empty list.
    returned, changed = (returned, {}) if kwargs.get("mutable", False) is False else returned
    return side.selected(returned, "Linen"), changed


def call_nnx(module: Any, args: Any, kwargs: Mapping[str, Any], side: Side) -> Any:
    """What the call of an NNX module returns, as far as it counts."""
    return side.selected(side.call(module, *args, **kwargs), "NNX")
