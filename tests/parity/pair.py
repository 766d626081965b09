"""One Flax layer, or arrangement of layers, written in both frameworks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pair:
    """Two modules that compute the same once their variables are translated.

    Attributes:
      name: what the tests call it.
      linen: makes the Linen module.
      nnx: makes the NNX module; called with ``rngs``.
      inputs: makes the positional arguments of both calls.
      linen_kwargs, nnx_kwargs: keyword arguments of ``linen.apply(variables, *inputs, **linen_kwargs)`` and of
        ``nnx_module(*inputs, **nnx_kwargs)``.
      init_inputs: makes the arguments of Linen's ``init`` where they differ from those of the call (decoding).
      prepare: is given the new NNX module before anything else (``init_cache``, ``eval``).
      paths: NNX path by Linen path (collection first), both as ``format_path`` prints them, where a leaf of one side is
        one leaf of the other; several paths joined by `` + `` for leaves that are combined. The ground truth, written
        by hand: every leaf that is not random state stands here.
      to_nnx: what happens to the arrays of a leaf on the way to NNX, by Linen path as in ``paths``; leaves that are not
        listed are the very same array.
      tolerance: largest accepted difference of outputs, relative to the largest output; 0 is bit for bit.
      lossy: Linen paths that have no place in NNX; random values for them have to be refused, and zeros accepted.
      by_convention: whether the names follow Flax's own conventions, so that one of the two models is enough.
      copies: what NNX holds several times and Linen once; then not every value of the NNX module is one of Linen's.
      rules: the text of a rule file (docs/rules.md) that says what names and shapes do not.
    """

    name: str
    linen: Callable[[], Any]
    nnx: Callable[..., Any]
    inputs: Callable[[], tuple[Any, ...]]
    linen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    nnx_kwargs: Mapping[str, Any] = field(default_factory=dict)
    init_inputs: Callable[[], tuple[Any, ...]] | None = None
    prepare: Callable[[Any], None] = lambda module: None
    paths: Mapping[str, str] = field(default_factory=dict)
    to_nnx: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    tolerance: float = 0.0
    lossy: tuple[str, ...] = ()
    by_convention: bool = False
    copies: str = ""
    rules: str = ""
