"""What the parity tests need beside the converter: random variables, hand-made translations, and comparisons.

Nothing here imports the converter's translation: this is the measure it is held against.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import meta

from converter.paths import format_path
from tests.parity.pair import Pair

Values = dict[str, Any]
"""Arrays by the text of their path."""

JOIN = " + "

POSITIVE = {"var", "sigma", "scale"}
"""Variables that a layer divides by or takes the root of, and factors whose sign a norm would lose."""

CACHE_INDEX = 2
"""Of the first layer; those of others in a stack differ. Caches are long enough for two more steps."""


# Leaves by path ------------------------------------------------------------------------------------------------------


def flat_linen(variables: Mapping[str, Any]) -> Values:
    """The leaves of Linen variables by path, collection first, without their boxes."""
    leaves = jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_box)[0]
    return {_text(keys): meta.unbox(leaf) for keys, leaf in leaves}


def flat_nnx(module_or_state: nnx.Module | nnx.State) -> Values:
    """The leaves of an NNX module or state by path; random state is left out."""
    return {path: value for _, variable in _variables(module_or_state) for path, value in _inside(*variable)}


def wrappers(module_or_state: nnx.Module | nnx.State) -> dict[str, tuple[type, dict[str, Any]] | None]:
    """The class and the metadata of the Variable around each leaf of ``flat_nnx``, None for a plain array attribute."""
    return {
        path: (type(leaf), dict(leaf.get_metadata())) if isinstance(leaf, nnx.Variable) else None
        for _, (prefix, leaf) in _variables(module_or_state)
        for path, _ in _inside(prefix, leaf)
    }


def _variables(module_or_state: nnx.Module | nnx.State) -> Iterator[tuple[Sequence[Any], tuple[str, Any]]]:
    state = nnx.state(module_or_state) if isinstance(module_or_state, nnx.Module) else module_or_state
    for keys, leaf in nnx.to_flat_state(state):
        if not isinstance(leaf, nnx.RngState):
            # A key may be a tuple (SpectralNorm keeps its statistics under the path of the kernel): its text counts.
            yield keys, (format_path(tuple(map(str, keys))), leaf)


def _inside(prefix: str, leaf: Any) -> list[tuple[str, Any]]:
    """A Variable usually holds one array, but any pytree may stand in its place."""
    leaves = jax.tree_util.tree_flatten_with_path(_raw(leaf))[0]
    return [("/".join(filter(None, (prefix, _text(keys)))), value) for keys, value in leaves]


def _raw(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _is_box(node: Any) -> bool:
    return isinstance(node, meta.AxisMetadata)


def _text(keys: Sequence[Any]) -> str:
    return format_path(tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in keys))


# Random values -------------------------------------------------------------------------------------------------------


def on_device(array: Any, dtype: Any = None) -> jax.Array:
    """A NumPy array as one of JAX; ``jnp.asarray`` would compile a program for every shape."""
    return jax.device_put(np.asarray(array, dtype))


def sample(*shape: int, dtype: Any = jnp.float32, seed: int = 0) -> jax.Array:
    """Standard normal numbers, the same on every machine."""
    return on_device(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


def random_value(path: str, shape: tuple[int, ...], dtype: Any, seed: int) -> jax.Array:
    """A value for the leaf at ``path`` that no initialiser would give it, and with which its layer can be run.

    The values of two leaves differ even where their shapes are the same, and those of a leaf do not depend on which
    others there are.
    """
    generator = np.random.default_rng([seed, zlib.crc32(path.encode())])
    name = path.strip('"').rpartition("/")[2]
    if jnp.issubdtype(dtype, jnp.integer):
        cache_index = CACHE_INDEX + np.arange(np.prod(shape, dtype=int)).reshape(shape) % 3
        value = cache_index if name == "cache_index" else generator.integers(1, 9, shape)
    elif jnp.issubdtype(dtype, jnp.bool_):
        value = generator.integers(0, 2, shape)
    elif name in POSITIVE:
        value = generator.uniform(0.5, 1.5, shape)
    else:
        # Without the shift of biases, layers with a rectifier behind them may have nothing but zeros to tell.
        value = 0.5 * generator.standard_normal(shape) + (0.5 if name == "bias" else 0)
    return on_device(value, dtype)


def _zeros(like: jax.ShapeDtypeStruct) -> jax.Array:
    """Zeros, also for random keys."""
    if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return on_device(np.zeros(like.shape, like.dtype))
    words = jax.eval_shape(jax.random.key_data, like)
    return jax.random.wrap_key_data(np.zeros(words.shape, words.dtype))


def replace_linen(variables: Any, values: Values) -> Any:
    """Linen variables of the same structure, boxes included, around other arrays."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_box)
    new = [leaf.replace_boxed(values[_text(keys)]) if _is_box(leaf) else values[_text(keys)] for keys, leaf in leaves]
    return jax.tree.unflatten(structure, new)


def replace_nnx(module: nnx.Module, values: Values) -> nnx.Module:
    """A copy of the module with other arrays; leaves that are not among ``values`` stay what they are.

    Every call of a module needs a copy of its own, because a call may change it.
    """
    flat = []
    for keys, (prefix, leaf) in _variables(module):
        inside = [values.get(path, own) for path, own in _inside(prefix, leaf)]
        value = jax.tree.unflatten(jax.tree.structure(_raw(leaf)), inside)
        flat.append((keys, leaf.replace(value) if isinstance(leaf, nnx.Variable) else value))
    copy = nnx.clone(module)
    nnx.update(copy, nnx.from_flat_state(flat))
    return copy


# A pair, made --------------------------------------------------------------------------------------------------------


def by_hand(pair: Pair, linen: Values) -> Values:
    """The NNX leaves that belong to Linen leaves, according to the pair's own ``paths`` and ``to_nnx``."""
    found: Values = {}
    for sources, targets in pair.paths.items():
        arrays = tuple(linen[source] for source in sources.split(JOIN))
        made = pair.to_nnx[sources](*arrays) if sources in pair.to_nnx else arrays
        made = made if isinstance(made, tuple | list) else (made,)
        for target, array in zip(targets.split(JOIN), made, strict=True):
            assert target not in found, f"two leaves for {target}"
            found[target] = array
    return found


class Case:
    """A pair with its modules made and its variables drawn; everything is made once, when it is first needed."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.linen = pair.linen()
        self.inputs = pair.inputs()
        self.variables = functools.cache(self._variables)
        self.linen_output = functools.cache(lambda: self.apply(self.variables(0)))
        self.nnx_output = functools.cache(self._nnx_output)

    @functools.cached_property
    def shapes(self) -> Any:
        """What Linen's ``init`` makes, as ShapeDtypeStructs."""
        inputs = self.pair.init_inputs() if self.pair.init_inputs else self.inputs
        kwargs = {name: value for name, value in self.pair.linen_kwargs.items() if name not in ("mutable", "rngs")}
        rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
        return jax.eval_shape(lambda: self.linen.init(rngs, *inputs, **kwargs))

    @functools.cached_property
    def module(self) -> nnx.Module:
        """The NNX module as it was made, with zeros. Never call it: ``nnx_module`` gives copies for that."""
        # Initialisers would have to be compiled, and their values do not matter here.
        module = nnx.eval_shape(self._made)
        variables = wrappers(module)
        targets = {path for joined in self.pair.paths.values() for path in joined.split(JOIN)}
        if None in variables.values() or not targets <= variables.keys():
            # Plain arrays are part of the model (masks), and nothing else says what they hold. Inside of dicts
            # eval_shape does not even return them (the scales of WeightNorm before flax 0.12.12).
            return self._made()
        graph, state = nnx.split(module)
        return nnx.merge(graph, jax.tree.map(_zeros, state))

    def _made(self) -> nnx.Module:
        module = self.pair.nnx(rngs=nnx.Rngs(0))
        self.pair.prepare(module)
        return module

    def _variables(self, seed: int, lossy: bool = False) -> Any:
        """Random Linen variables; zeros where NNX has no place for a leaf, unless ``lossy``."""
        values = {
            path: random_value(path, like.shape, like.dtype, seed)
            if lossy or path not in self.pair.lossy
            else _zeros(like)
            for path, like in flat_linen(self.shapes).items()
        }
        return replace_linen(self.shapes, values)

    def values(self, seed: int) -> Values:
        """The leaves of ``variables(seed)``."""
        return flat_linen(self.variables(seed))

    def truth(self, seed: int) -> Values:
        """The NNX leaves that belong to ``variables(seed)``."""
        return by_hand(self.pair, self.values(seed))

    def nnx_module(self, seed: int) -> nnx.Module:
        """A new copy of the NNX module that holds ``truth(seed)``."""
        return replace_nnx(self.module, self.truth(seed))

    def _nnx_output(self) -> tuple[Any, Values]:
        """The output of the NNX module, and its leaves after the call, which may have changed them."""
        module = self.nnx_module(0)
        return self.call(module), flat_nnx(module)

    def apply(self, variables: Any) -> tuple[Any, Values]:
        """The output of the Linen module, and the leaves of the collections it changed."""
        kwargs = self.pair.linen_kwargs
        output = self.linen.apply(variables, *self.inputs, **kwargs)
        # Even an empty list of mutable collections makes apply return a pair.
        if kwargs.get("mutable", False) is False:
            return output, {}
        return output[0], flat_linen(output[1])

    def call(self, module: nnx.Module) -> Any:
        """The output of the NNX module, which changes it."""
        return module(*self.inputs, **self.pair.nnx_kwargs)

    @property
    def models(self) -> dict[str, Any]:
        """The arguments that tell the converter about the Linen module and about both calls."""
        return {
            "linen_module": self.linen,
            "inputs": self.inputs,
            "linen_kwargs": self.pair.linen_kwargs,
            "nnx_kwargs": self.pair.nnx_kwargs,
        }

    @property
    def told(self) -> dict[str, Any]:
        """The same, and what the user has to say."""
        return self.models | ({"rules": self.pair.rules} if self.pair.rules else {})


# Comparisons ---------------------------------------------------------------------------------------------------------


def assert_same_bits(found: Values, wanted: Values) -> None:
    """The same paths, and for each the same shape, dtype and bits; all differences are shown at once."""
    problems = [f"{path}: missing" for path in wanted if path not in found]
    problems += [f"{path}: not expected" for path in found if path not in wanted]
    for path in found.keys() & wanted.keys():
        left, right = np.asarray(found[path]), np.asarray(wanted[path])
        if (left.shape, left.dtype) != (right.shape, right.dtype):
            problems.append(f"{path}: {left.dtype}{left.shape} instead of {right.dtype}{right.shape}")
        elif left.tobytes() != right.tobytes():
            problems.append(f"{path}: other values")
    assert not problems, "\n".join(sorted(problems))


def assert_close(found: Any, wanted: Any, tolerance: float) -> None:
    """Two outputs of one structure, shape and dtype whose values differ by no more than ``tolerance``, relative to the
    largest; with a tolerance of 0 all bits are equal.
    """
    left = {_text(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(found)[0]}
    right = {_text(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(wanted)[0]}
    if tolerance == 0:
        assert_same_bits(left, right)
        return
    kinds = [{path: (array.shape, array.dtype) for path, array in side.items()} for side in (left, right)]
    assert kinds[0] == kinds[1], f"{kinds[0]} instead of {kinds[1]}"
    for path, array in right.items():
        wide, other = array.astype(np.float64), left[path].astype(np.float64)
        largest, difference = np.abs(wide).max(initial=0), np.abs(wide - other).max(initial=0)
        assert difference <= tolerance * largest, f"{path}: differs by {difference:.3g}, largest value {largest:.3g}"
