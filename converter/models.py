"""What a model definition tells about its variables, found by evaluating it abstractly: no array is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter import user_code
from converter.dialects.dialect import Framework
from converter.errors import ModelError
from converter.training_state import PARAMS, RNG_COLLECTIONS
from converter.tree import IndexKey, IntKey, LeafKind, LeafSpec, Path, array_spec, empty_spec

if TYPE_CHECKING:
    from flax import linen, nnx


@dataclass(frozen=True, slots=True)
class ModelVariable:
    """One variable of a model.

    Attributes:
      collection: Linen's collection, or the one that belongs to the NNX Variable's type; "" for an array attribute of an
        NNX module that is no Variable.
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


# NNX -------------------------------------------------------------------------------------------------------------


def nnx_factory(factory: Callable[..., Any]) -> Callable[[], nnx.Module]:
    """A factory that needs no arguments: ``rngs=nnx.Rngs(0)`` is passed where the given one takes it."""
    from flax import nnx

    if user_code.requires(factory, "rngs"):
        return lambda: factory(rngs=nnx.Rngs(0))
    return lambda: factory()


def nnx_model_from_factory(factory: Callable[..., Any]) -> Model:
    """Evaluates an NNX factory abstractly.

    Raises:
      ModelError: it cannot be called, or does not return a module.
    """
    from flax import nnx

    make = nnx_factory(factory)
    name = getattr(factory, "__name__", str(factory))
    # Variables with sharding names would ask for a mesh, which describing them does not need.
    with nnx.use_eager_sharding(False):
        module = user_code.call(f"building the NNX model {name}", nnx.eval_shape, make)
    return nnx_model(module, make)


def nnx_model(module: nnx.Module, factory: Callable[[], Any] | None = None) -> Model:
    """Describes a concrete or abstract NNX module.

    Raises:
      ModelError: not a module.
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise ModelError(
            f"expected an nnx.Module, found {type(module).__name__}",
            "A Linen module belongs to --linen-model (linen_module=).",
        )
    variables = []
    for keys, leaf in nnx.to_flat_state(nnx.state(module)):
        linen_path = _joined_items(module, keys)
        for inside, value in array_leaves(raw_value(leaf)):
            variables.append(
                ModelVariable(
                    collection=collection_of(leaf),
                    path=state_path(keys) + inside,
                    spec=live_spec(value),
                    linen_path=linen_path + inside,
                    trainable=isinstance(leaf, nnx.Param),
                )
            )
    return Model("nnx", module, tuple(variables), factory)


def state_path(keys: Sequence[Any]) -> Path:
    """The path of a flat ``nnx.State`` entry; a tuple key becomes its text, as Orbax writes it."""
    return tuple(IntKey(str(key)) if isinstance(key, int) else str(key) for key in keys)


def raw_value(leaf: Any) -> Any:
    """The value inside an NNX Variable, or the leaf itself where an attribute is a plain array."""
    from flax import nnx

    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def array_leaves(value: Any) -> list[tuple[Path, Any]]:
    """What an NNX Variable holds: its array at the empty path, or the leaves of the pytree it was given."""
    import jax

    return [(pytree_path(keys), leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(value)[0]]


def collection_of(leaf: Any) -> str:
    """The Linen collection of an NNX Variable: the registered one, else the name of its class; "" for a plain array.

    This is the rule of ``flax.nnx.bridge`` (``variable_name_from_type``), without registering new names globally.
    """
    from flax import nnx

    if not isinstance(leaf, nnx.Variable):
        return ""
    try:
        return str(nnx.variable_name_from_type(type(leaf)))
    except ValueError:
        return type(leaf).__name__


def _joined_items(module: Any, keys: Sequence[Any]) -> Path:
    names: list[str] = []
    node = module
    for key in keys:
        inside_container = _is_container(node)
        if inside_container and names:
            names[-1] = f"{names[-1]}_{key}"
        else:
            names.append(str(key))
        node = _child(node, key)
    return tuple(names)


def _is_container(node: Any) -> bool:
    from flax import nnx

    return isinstance(node, (nnx.List, nnx.Dict, list, tuple, dict))


def _child(node: Any, key: Any) -> Any:
    try:
        return node[key] if _is_container(node) else getattr(node, key)
    except (AttributeError, KeyError, IndexError, TypeError):
        return None


# Linen -----------------------------------------------------------------------------------------------------------


def linen_model(
    module: linen.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None, method: Any = None
) -> Model:
    """Evaluates ``module.init`` abstractly on ``inputs`` (arrays or ShapeDtypeStructs).

    Raises:
      ModelError: not a Linen module, or its init fails on these inputs.
    """
    import jax
    from flax import linen as nn

    if not isinstance(module, nn.Module):
        raise ModelError(
            f"expected a Linen module, found {type(module).__name__}",
            "An NNX module belongs to --nnx-model (module=).",
        )
    rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
    variables = user_code.call(
        f"initialising the Linen model {type(module).__name__}",
        lambda: jax.eval_shape(lambda: module.init(rngs, *_dummies(inputs), **(kwargs or {}))),
    )
    found = []
    for path, value, boxed in linen_leaves(variables):
        found.append(
            ModelVariable(
                collection=str(path[0]),
                path=path[1:],
                spec=live_spec(value),
                linen_path=path[1:],
                boxed=boxed,
                trainable=path[0] == PARAMS,
            )
        )
    return Model("linen", module, tuple(found))


def _dummies(inputs: Sequence[Any]) -> list[Any]:
    import jax
    import jax.numpy as jnp

    return [jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x for x in inputs]


def linen_leaves(variables: Any) -> list[tuple[Path, Any, bool]]:
    """The leaves of a live Linen variables dict: path, value without its box, and whether it had one."""
    import jax
    from flax.core import meta

    def is_box(node: Any) -> bool:
        return isinstance(node, meta.AxisMetadata)

    leaves = jax.tree_util.tree_flatten_with_path(variables, is_leaf=is_box)[0]
    return [(pytree_path(keys), meta.unbox(leaf), is_box(leaf)) for keys, leaf in leaves]


def pytree_path(keys: Sequence[Any]) -> Path:
    """The path of a leaf as ``jax.tree_util`` names it."""
    import jax.tree_util as tu

    path: list[str] = []
    for key in keys:
        if isinstance(key, tu.SequenceKey):
            path.append(IndexKey(key.idx))
        elif isinstance(key, tu.GetAttrKey):
            path.append(key.name)
        elif isinstance(key, tu.DictKey):
            path.append(IntKey(key.key) if isinstance(key.key, int) else str(key.key))
        else:
            path.append(str(key.key))
    return tuple(path)


# Both ------------------------------------------------------------------------------------------------------------


def live_spec(value: Any) -> LeafSpec:
    """The spec of a live leaf: an array, a ShapeDtypeStruct, a tracer, a typed PRNG key or a Python value."""
    if isinstance(value, bool | int | float | complex):
        return LeafSpec(LeafKind.SCALAR, type(value).__name__)
    if isinstance(value, str | bytes):
        return LeafSpec(LeafKind.TEXT, type(value).__name__)
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return empty_spec("node")
    import jax

    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        implementation = value.dtype._impl.name
        return LeafSpec(LeafKind.KEY, str(implementation), tuple(value.shape))
    return array_spec(value.dtype.name, value.shape)


def optimizer_state_leaves(optimizer: Any, params: Any) -> list[tuple[Path, LeafSpec]]:
    """What ``optimizer.init(params)`` holds, members without arrays included (their spec is empty).

    Args:
      optimizer: an ``optax.GradientTransformation``.
      params: a pytree of ShapeDtypeStructs.

    Raises:
      ModelError: its init fails on these parameters.
    """
    import jax

    if not hasattr(optimizer, "init"):
        raise ModelError(
            f"expected an optax.GradientTransformation, found {type(optimizer).__name__}", "Return it from the factory."
        )
    state = user_code.call("initialising the optimizer", lambda: jax.eval_shape(optimizer.init, params))
    leaves = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda node: not jax.tree.leaves(node))[0]
    return [(pytree_path(keys), live_spec(leaf)) for keys, leaf in leaves]


class RandomState:
    """The random state a freshly made NNX model starts from, without making the rest of the model.

    The factory is traced and only its random state is computed: XLA drops the parameters' initialisers as dead code.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._values: dict[Path, Any] | None = None

    def reader(self, variable: ModelVariable) -> Callable[[], Any]:
        """A function that gives the variable's value as a NumPy array (for PRNG keys their uint32 data)."""
        return lambda: self._all()[variable.path]

    def _all(self) -> dict[Path, Any]:
        if self._values is None:
            import jax
            import numpy as np
            from flax import nnx

            def random_leaves(module: Any) -> dict[Path, Any]:
                state = nnx.to_flat_state(nnx.state(module, nnx.RngState))
                return {state_path(keys): _key_data(raw_value(leaf)) for keys, leaf in state}

            factory = self._model.factory
            if factory is None:
                found = random_leaves(self._model.module)
            else:
                with nnx.use_eager_sharding(False):
                    found = user_code.call("making the NNX model's random state", jax.jit(lambda: random_leaves(factory())))
            self._values = {path: np.asarray(value) for path, value in found.items()}
        return self._values


def _key_data(value: Any) -> Any:
    import jax

    return jax.random.key_data(value) if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key) else value
