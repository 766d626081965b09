"""The Flax layers a model is made of: what each group of variables is, whatever the user named it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.paths import IntKey, Path
from converter.pytrees import pytree_path, state_path

if TYPE_CHECKING:
    from flax import nnx

WRAPPERS = ("SpectralNorm", "WeightNorm")
"""Layers that normalise the variables of another layer, which both frameworks hold in ``layer_instance``."""

_BASES = frozenset({"Module", "ModuleBase", "Pytree", "Object", "List", "Dict", "RNNCellBase"})
"""What layers are derived from, and containers: being one of them says nothing about the variables inside."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One Flax layer of a model.

    Attributes:
      kind: the name of the Flax class that it is, or that its class derives from (``LSTMCell``). One kind has a name of
        its own: ``GroupedQueryAttention`` is an ``nnx.MultiHeadAttention`` with fewer heads for keys and values, which
        Linen does not have.
      path: where its variables stand below the collection, in the model's own framework.
      wraps: for a SpectralNorm or WeightNorm, the path of the layer that it wraps.
      attends: for an Embed, whether its ``attend`` was called. Only a Linen model tells; otherwise False.
    """

    kind: str
    path: Path
    wraps: Path | None = None
    attends: bool = False


def _kind(cls: type, package: str, machinery: str) -> str:
    """The first Flax layer among a class and its bases; "" if there is none.

    Transformed classes (``CheckpointDense``, ``ScanBlock``) are made by the machinery and stand for their base.
    """
    for base in cls.__mro__:
        if f"{base.__module__}.".startswith(f"{package}.") and not base.__module__.startswith(machinery):
            return "" if base.__name__ in _BASES else base.__name__
    return ""


# NNX -----------------------------------------------------------------------------------------------------------------


def nnx_layers(module: nnx.Module) -> tuple[Layer, ...]:
    """The layers of a concrete or abstract NNX module, in the order of their paths in its state.

    A layer that is shared has the one path under which the state stores it.
    """
    from flax import nnx

    found = [(keys, node) for keys, node in nnx.iter_graph(module) if isinstance(node, nnx.Module)]
    paths = {id(node): state_path(keys) for keys, node in found}
    layers = []
    for _, node in found:
        kind = _kind(type(node), "flax.nnx", "flax.nnx.bridge")
        if not kind:
            continue
        if kind == "MultiHeadAttention" and getattr(node, "num_kv_heads", node.num_heads) != node.num_heads:
            kind = "GroupedQueryAttention"
        wraps = paths.get(id(node.layer_instance)) if kind in WRAPPERS else None
        layers.append(Layer(kind, paths[id(node)], wraps))
    return tuple(layers)


# Linen ---------------------------------------------------------------------------------------------------------------


class LinenRecord:
    """What was seen of a Linen model's modules while ``recording`` was active around its ``init``."""

    def __init__(self) -> None:
        self._layers: dict[tuple[str, Path], Layer] = {}
        self._shapes: dict[tuple[str, Path], set[tuple[int, ...]]] = {}
        self._items: dict[Path, tuple[Path, Path]] = {}

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All Flax layers of which a method was called, inner ones before those that called them."""
        return tuple(self._layers.values())

    def lifted(self, shapes: Mapping[tuple[str, Path], tuple[int, ...]]) -> frozenset[Path]:
        """The paths of those variables that some module saw with another shape than the model has them in the end.

        Args:
          shapes: the shapes of the model's variables by (collection, path).
        """
        return frozenset(key[1] for key, seen in self._shapes.items() if key in shapes and seen - {shapes[key]})

    @property
    def items(self) -> dict[Path, Path]:
        """The items of lists and dicts: Linen's path (``blocks_0``), and what NNX would call it (``blocks/0``)."""
        found: dict[Path, Path] = {}
        for path in sorted(self._items, key=len):
            parent, keys = self._items[path]
            outer = next((parent[:depth] for depth in range(len(parent), 0, -1) if parent[:depth] in found), ())
            found[path] = (*found.get(outer, ()), *parent[len(outer) :], *keys)
        return found

    def _see(self, module: Any, method: str) -> None:
        from flax.linen.module import TestScope

        # A module outside of any model has no scope; and Linen tries out each setup in a scope that is thrown away.
        if module.scope is None or isinstance(module.scope.root, TestScope):
            return
        path = tuple(module.scope.path)
        self._see_shapes(module.scope, path)
        self._see_items(module, path)
        kind = _kind(type(module), "flax.linen", "flax.linen.transforms")
        if not kind:
            return
        wraps = tuple(module.layer_instance.scope.path) if kind in WRAPPERS else None
        known = self._layers.get((kind, path))
        attends = (kind == "Embed" and method == "attend") or (known is not None and known.attends)
        self._layers[kind, path] = Layer(kind, path, wraps, attends)

    def _see_items(self, module: Any, path: Path) -> None:
        """Notes the submodules that stand in a list, tuple or dict, which Linen names after their attribute."""
        from flax import linen as nn

        def walk(value: Any, keys: Path) -> None:
            if isinstance(value, nn.Module):
                name = "_".join(keys)
                if len(keys) > 1 and value.name == name:
                    self._items[*path, name] = (path, keys)
            elif isinstance(value, list | tuple):
                for position, item in enumerate(value):
                    walk(item, (*keys, IntKey(position)))
            elif isinstance(value, Mapping):
                for key, item in value.items():
                    walk(item, (*keys, str(key)))

        for attribute, value in vars(module).items():
            if not attribute.startswith("_") and attribute != "parent":
                walk(value, (attribute,))

    def _see_shapes(self, scope: Any, path: Path) -> None:
        import jax
        from flax.core import meta

        for name, collections in scope.reservations.items():
            for collection in collections:
                # None reserves the name for a module.
                if collection is None or not scope.has_variable(collection, name):
                    continue
                value = meta.unbox(scope.get_variable(collection, name))
                for keys, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
                    key = (collection, (*path, name, *pytree_path(keys)))
                    self._shapes.setdefault(key, set()).add(tuple(getattr(leaf, "shape", ())))


@contextlib.contextmanager
def recording() -> Iterator[LinenRecord]:
    """Records the layers of all Linen modules that are called in this context."""
    from flax import linen as nn

    record = LinenRecord()

    def interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        result = call(*args, **kwargs)
        # Only now are its scope (nn.share_scope replaces it) and its variables final.
        record._see(context.module, context.method_name)
        return result

    with nn.intercept_methods(interceptor):
        yield record
