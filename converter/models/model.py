"""A model definition and what it tells about its variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.dialects.dialect import Framework
from converter.models.layers import Layer
from converter.paths import Path
from converter.training_state import RNG_COLLECTIONS
from converter.tree import LeafSpec


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

    @property
    def is_plain(self) -> bool:
        """Whether it is an array that an NNX module holds without a Variable, such as the mask of a Conv.

        The scales of flax 0.12.8's WeightNorm are such arrays too, but trained ones: their key is a tuple.
        """
        return not self.collection and not self.path[-1].startswith("(")


@dataclass(frozen=True, slots=True)
class Model:
    """A model definition and its variables.

    Attributes:
      framework: which framework it is written in.
      module: the Linen module, or the NNX module (abstract if it came from a factory).
      variables: all variables in the model's own order.
      factory: makes the NNX module anew, or the variables of the Linen module; None where an NNX module was given.
      layers: the Flax layers it is made of (a state alone does not tell).
      lifted: the paths of those variables that have an axis more than the layer which declares them gives them, because
        it stands inside ``nn.scan`` or ``nn.vmap``. Only known of Linen models.
      typed: whether the collections of its variables are known; a template on the NNX side does not tell them.
      items: for a Linen model, paths of submodules that are items of a list or dict of their parent, with the path that
        NNX would give them (``blocks_0`` and ``blocks/0``).
    """

    framework: Framework
    module: Any
    variables: tuple[ModelVariable, ...]
    factory: Callable[[], Any] | None = None
    layers: tuple[Layer, ...] = ()
    lifted: frozenset[Path] = frozenset()
    typed: bool = True
    items: Mapping[Path, Path] = field(default_factory=dict)

    @property
    def boxed(self) -> frozenset[Path]:
        return frozenset(variable.path for variable in self.variables if variable.boxed)


def vocabulary(models: Iterable[Model | None]) -> int | None:
    """The length of the smallest embedding table of these models: integers below it are in range for all of them."""
    tables = (
        variable.spec.shape[0]
        for model in models
        if model is not None
        for variable in model.variables
        if variable.path[-1:] == ("embedding",) and len(variable.spec.shape) == 2
    )
    return min(tables, default=None)
