"""What a freshly made model holds: computed for the variables that are asked for, and for no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from converter import user_code
from converter.errors import ModelError
from converter.models.linen import linen_leaves
from converter.models.model import Model, ModelVariable
from converter.models.nnx import array_leaves, collection_of, raw_value
from converter.paths import Path, format_path
from converter.pytrees import state_path
from converter.training_state import RNG_COLLECTIONS

Name = tuple[str, Path]


class InitialValues:
    """The values of some variables of a new model.

    The model's factory is traced and only these are computed: XLA drops the initialisers of all others as dead code.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._wanted: set[Name] = set()
        self._values: dict[Name, Any] = {}

    def reader(self, variable: ModelVariable) -> Callable[[], Any]:
        """A function that gives the variable's value as a NumPy array (for PRNG keys their uint32 data)."""
        name = (variable.collection, variable.path)
        self._wanted.add(name)
        return lambda: self._value(name)

    def _value(self, name: Name) -> Any:
        if name not in self._values:
            import jax
            import numpy as np
            from flax import nnx

            factory = self._model.factory
            if factory is None:
                found = self._wanted_leaves(self._model.module)
            else:
                with nnx.use_eager_sharding(False):
                    make = jax.jit(lambda: self._wanted_leaves(factory()))
                    found = user_code.call("making the initial values of the model", make)
            self._values = {name: np.asarray(value) for name, value in found.items()}
        return self._values[name]

    def _wanted_leaves(self, made: Any) -> dict[Name, Any]:
        found = self._linen_leaves(made) if self._model.framework == "linen" else self._nnx_leaves(made)
        return {name: _data(name, value) for name, value in found.items() if name in self._wanted}

    @staticmethod
    def _linen_leaves(variables: Any) -> dict[Name, Any]:
        return {(str(path[0]), path[1:]): value for path, value, _ in linen_leaves(variables)}

    @staticmethod
    def _nnx_leaves(module: Any) -> dict[Name, Any]:
        from flax import nnx

        return {
            (collection_of(leaf), state_path(keys) + inside): value
            for keys, leaf in nnx.to_flat_state(nnx.state(module))
            for inside, value in array_leaves(raw_value(leaf))
        }


def _data(name: Name, value: Any) -> Any:
    """A value that NumPy can hold.

    An abstract module that nobody can make anew has no values; any random state is as good as another then.

    Raises:
      ModelError: for anything else.
    """
    import jax
    import numpy as np

    if isinstance(value, jax.ShapeDtypeStruct):
        if name[0] not in RNG_COLLECTIONS:
            raise ModelError(
                f"{format_path(name[1])}: the NNX module is abstract, so that it has no value",
                "Give a factory that makes the module, or a module with values.",
            )
        words = jax.eval_shape(jax.random.key_data, value) if _is_key(value) else value
        return np.zeros(words.shape, words.dtype)
    return jax.random.key_data(value) if _is_key(value) else value


def _is_key(value: Any) -> bool:
    import jax

    return bool(jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key))
