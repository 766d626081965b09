"""Running both models on the same inputs: which inputs, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter import user_code
from converter.calling.inputs import Arguments
from converter.calling.signature import Signature, apply_linen, call_nnx
from converter.proof.calls import LINEN_CALL, NNX_CALL
from converter.proof.values import inputs_of
from converter.pytrees import named_leaves

if TYPE_CHECKING:
    import numpy as np

    Outputs = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """One call of both models.

    Attributes:
      seed: which draw of the inputs it is; 0 for the given ones.
      batch: the length of the batch where it is another than the given one.
      arguments: what both are called with.
    """

    seed: int
    batch: int | None
    arguments: Arguments

    def __str__(self) -> str:
        return f"with seed {self.seed}" if self.batch is None else f"on a batch of {self.batch}"


def runs_of(signature: Signature, seeds: int) -> Iterator[Run]:
    """The given inputs, others like them, and the same in a batch of another size, as far as there are such.

    Random inputs are drawn anew; of an array that is given the numbers change places, which are valid wherever they
    stand. The other batch has one element, or two where that was given.
    """
    yield Run(0, None, signature.arguments)
    for seed in range(1, seeds):
        other = _another(signature, seed)
        if other is not None:
            yield Run(seed, None, other)
    recipe = signature.recipe or signature.arguments
    size = 2 if recipe.batch == 1 else 1
    other = recipe.with_batch(size)
    if other is not None and seeds > 1:
        yield Run(0, size, other.drawn(0, signature.vocabulary))


def _another(signature: Signature, seed: int) -> Arguments | None:
    """Other inputs; None where there are none."""
    if signature.recipe is not None and signature.recipe.is_random:
        return signature.recipe.drawn(seed, signature.vocabulary)
    leaves, structure = signature.arguments.leaves()
    places = [place for place, leaf in enumerate(leaves) if hasattr(leaf, "dtype") and hasattr(leaf, "shape")]
    given = [leaves[place] for place in places]
    others = inputs_of(given, seed)
    if all(one is other for one, other in zip(given, others, strict=True)):
        return None
    import jax.numpy as jnp

    others = [jnp.asarray(other) for other in others]
    return Arguments(*structure.unflatten((dict(enumerate(leaves)) | dict(zip(places, others, strict=True))).values()))


class Pair:
    """Both models with their values, ready to be called any number of times.

    They run operation by operation, not compiled: then the same layers of both frameworks do the same arithmetic in the
    same order and agree bit for bit, whereas XLA fuses each model in a way of its own. Every call of the NNX module is
    one of a copy, so that its state (caches, statistics, random counts) is the same each time.
    """

    def __init__(self, linen: Any, variables: Mapping[str, Any], nnx_module: Any, signature: Signature) -> None:
        from flax import nnx

        self.linen, self.variables, self.signature = linen, variables, signature
        self.graph, self.state = nnx.split(nnx_module)

    def linen_outputs(self, arguments: Arguments) -> Outputs:
        """Everything that the call of the Linen model returns, as far as it counts, by path.

        Raises:
          ModelError: the call fails.
        """
        called = self.signature.calling(arguments)

        def run() -> Any:
            return apply_linen(self.linen, self.variables, arguments.positional, called.linen_kwargs, called.linen)[0]

        return _leaves(user_code.call(LINEN_CALL, run))

    def nnx_outputs(self, arguments: Arguments) -> Outputs:
        """The same for the NNX model."""
        called = self.signature.calling(arguments)

        def run() -> Any:
            return call_nnx(self.module(), arguments.positional, called.nnx_kwargs, called.nnx)

        return _leaves(user_code.call(NNX_CALL, run))

    def module(self) -> Any:
        """A copy of the NNX module, which can be changed without changing any other."""
        import jax
        from flax import nnx

        # Merging alone hands out the Variables of the state themselves.
        return nnx.merge(self.graph, jax.tree.map(lambda array: array, self.state))


def _leaves(outputs: Any) -> Outputs:
    return {name: _array(leaf) for name, leaf in named_leaves(outputs)}


def _array(leaf: Any) -> np.ndarray[Any, Any]:
    import jax
    import numpy as np

    is_key = hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)
