"""A model definition and what it tells about its variables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from converter.dialects.dialect import Framework
from converter.training_state import RNG_COLLECTIONS
from converter.tree import LeafSpec, Path


@dataclass(frozen=True, slots=True)
class ModelVariable:
    """One variable of a model.

    Attributes:
      collection: Linen's collection, or the one that belongs to the NNX Variable's type; "" for an array attribute of
        an NNX module that is no Variable.
      path: its path in the model's own framework.
      spec: shape and dtype.
      linen_path: the path Linen gives to the same structure: items of lists and dicts are joined to the name of the
        attribute that holds them (``layers/0`` is ``layers_0``).
      boxed: whether Linen wraps it in a box (``nn.Partitioned``).
      trainable: whether it is a parameter (for NNX, any subclass of ``nnx.Param``).
    """

    collection: str
    path: Path
    spec: LeafSpec
    linen_path: Path
    boxed: bool = False
    trainable: bool = False

    @property
    def is_random_state(self) -> bool:
        return self.collection in RNG_COLLECTIONS


@dataclass(frozen=True, slots=True)
class Model:
    """A model definition and its variables.

    Attributes:
      framework: which framework it is written in.
      module: the Linen module, or the NNX module (abstract if it came from a factory).
      variables: all variables in the model's own order.
      factory: makes the module anew; None where a module was given.
    """

    framework: Framework
    module: Any
    variables: tuple[ModelVariable, ...]
    factory: Callable[[], Any] | None = None

    @property
    def boxed(self) -> frozenset[Path]:
        return frozenset(variable.path for variable in self.variables if variable.boxed)
