"""Values and inputs to run models on, such that as much as possible shows in the outputs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from converter.dtypes import numpy_dtype
from converter.rules.link import Name, format_name
from converter.tree import KEY_WORDS, LeafKind, LeafSpec

if TYPE_CHECKING:
    import numpy as np

DRAWS = 3
"""How often values and inputs may be drawn.

In the first draw the inputs are the user's own, which are often all zeros or ones: these hide what they are multiplied
with, attention over equal tokens does not depend on queries and keys, and two equal inputs hide which of them is which.
So they are others from the second draw on. In the third draw all values are positive: some layers choke on negative
ones, and rectifiers let nothing through.
"""

NORMAL_DRAWS, POSITIVE_DRAW = (0, 1), 2


def random_values(specs: Mapping[Name, LeafSpec], draw: int) -> dict[Name, Any]:
    """Values of which no two variables have the same, other ones in each draw."""
    return {name: random_value(name, spec, draw) for name, spec in specs.items()}


def random_value(name: Name, spec: LeafSpec, draw: int) -> Any:
    """Values that no layer chokes on: of a size that keeps the numbers inside of deep models in bounds.

    Variances are positive; integers (the position in a cache) are 0 or 1.
    """
    import numpy as np

    generator = np.random.default_rng([draw, zlib.crc32(format_name(name).encode())])
    if spec.kind is LeafKind.KEY:
        import jax

        words = generator.integers(0, 2**32, (*spec.shape, KEY_WORDS[spec.dtype]), np.uint32)
        return jax.random.wrap_key_data(words, impl=spec.dtype)
    dtype = numpy_dtype(spec.dtype)
    if not is_inexact(dtype):
        return generator.integers(0, 2, spec.shape).astype(dtype)
    positive = name[1][-1] in ("var", "sigma") or name[1][-1].endswith("/sigma")
    if positive or draw == POSITIVE_DRAW:
        values = generator.uniform(0.5, 1.5, spec.shape)
    else:
        values = generator.normal(0.0, 1.0, spec.shape)
    # Sums over many numbers would saturate what comes next, and a saturated layer hides those before it.
    inputs = math.prod(spec.shape[:-1])
    return np.asarray(values / math.sqrt(max(inputs, 4)) if not positive else values).astype(dtype)


def inputs_of(arrays: Sequence[Any], draw: int) -> list[Any]:
    """The arrays that the user gives as inputs, then others like them."""
    import numpy as np

    if draw == 0:
        return list(arrays)
    return [_another(array, np.random.default_rng([draw, place])) for place, array in enumerate(arrays)]


def _another(array: Any, generator: np.random.Generator) -> Any:
    """The same numbers in another order, which are valid wherever they stand; in the place of a single number others.

    Masks stay as they are.
    """
    import jax.numpy as jnp
    import numpy as np

    if array.size < 2 or not (is_inexact(array.dtype) or jnp.issubdtype(array.dtype, jnp.integer)):
        return array
    values = np.asarray(array)
    first = values.reshape(-1)[0]
    if not (values == first).all():
        return generator.permuted(values)
    if is_inexact(values.dtype):
        return values + generator.uniform(0.1, 1.0, values.shape).astype(values.dtype)
    low, high = min(int(first), 0), max(int(first), 1)
    return generator.integers(low, high, values.shape, endpoint=True).astype(values.dtype)


def is_inexact(dtype: Any) -> bool:
    """Whether values of that dtype are real or complex numbers."""
    import jax.numpy as jnp

    return bool(jnp.issubdtype(dtype, jnp.inexact))
