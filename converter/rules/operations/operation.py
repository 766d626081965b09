"""What an operation is: it makes a list of arrays from a list of arrays, knows the specs of the result without reading
anything, and knows what undoes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from converter import scratch
from converter.dtypes import is_sub_byte
from converter.grid import Grid
from converter.tree import LeafKind, LeafSpec

if TYPE_CHECKING:
    import numpy as np

Specs = Sequence[LeafSpec]


class Unfit(ValueError):
    """An operation cannot work on leaves of these specs; the text says what it needs and what there is."""


class NotInvertible(ValueError):
    """An operation loses something that its inverse would need; the text says what."""


class Operation(Protocol):
    """Makes leaves from leaves.

    Operations on several leaves take them in groups: a ``Stack`` of 4 makes 2 leaves of 8. That is how they chain.
    """

    @property
    def name(self) -> str:
        """How the plan prints it; empty where the arrays stay as they are."""

    def specs(self, sources: Specs) -> tuple[LeafSpec, ...]:
        """The specs of the results.

        Raises:
          Unfit: it cannot work on these leaves.
        """

    def apply(self, values: Sequence[Any], specs: Specs) -> list[Any]:
        """The results, from NumPy or JAX arrays (tracers included) of these specs.

        Where nothing has to be done to an array it is handed on as the very same object.
        """

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        """The results as they lie on disk when the sources lie so; None where bytes have to be made anew.

        Args:
          grids: how the sources lie; a typed PRNG key has one axis more than its spec.
          specs: of the sources.
        """

    def inverse(self) -> Operation:
        """What undoes it.

        Raises:
          NotInvertible: it loses something.
        """

    def objection(self, values: Sequence[Any], specs: Specs) -> str:
        """What in the values themselves forbids the operation (they would not survive it); empty if nothing."""

    @property
    def looks_at_values(self) -> bool:
        """Whether ``objection`` has anything to look at."""

    def lossy(self) -> Operation:
        """The same operation without objections: what does not survive is lost."""


@dataclass(frozen=True, slots=True)
class Harmless:
    """What most operations have in common: they lose nothing, whatever the values are."""

    def regrid(self, grids: Sequence[Grid], specs: Specs) -> list[Grid] | None:
        return None

    def objection(self, values: Sequence[Any], specs: Specs) -> str:
        return ""

    @property
    def looks_at_values(self) -> bool:
        return False

    def lossy(self) -> Any:
        return self


def require_arrays(what: str, sources: Specs) -> None:
    """Raises ``Unfit`` for leaves without axes of their own: Python values, texts, empty containers."""
    for spec in sources:
        if spec.kind not in (LeafKind.ARRAY, LeafKind.NUMPY_SCALAR, LeafKind.KEY):
            raise Unfit(f"{what} needs arrays, found {spec}")


def shaped(spec: LeafSpec, shape: tuple[int, ...]) -> LeafSpec:
    """The spec with another shape; a scalar that NumPy holds becomes an array where it gets axes."""
    kind = LeafKind.ARRAY if shape and spec.kind is LeafKind.NUMPY_SCALAR else spec.kind
    return spec._replace(kind=kind, shape=shape)


def axis_of(what: str, axis: int, rank: int) -> int:
    """The axis counted from the front, where negative ones count from the back.

    Raises:
      Unfit: there is no such axis.
    """
    if not -rank <= axis < rank:
        raise Unfit(f"{what}: there is no axis {axis} among {rank}")
    return axis % rank


def groups(what: str, items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Consecutive groups of ``count`` items.

    Raises:
      Unfit: they cannot be grouped.
    """
    if count < 1 or len(items) % count:
        raise Unfit(f"{what} takes {count} leaves at a time, found {len(items)}")
    return [items[start : start + count] for start in range(0, len(items), count)]


def joined(how: Literal["stack", "concatenate"], values: Sequence[Any], axis: int) -> Any:
    """``numpy.stack`` or ``numpy.concatenate``, bit for bit; a JAX array as soon as one of the values is one.

    XLA joins bfloat16 and float8 on the CPU by way of float32, which turns signalling NaNs into quiet ones (seen with
    jax 0.10.2): they are joined as integers.
    """
    import numpy as np

    if all(isinstance(value, np.ndarray | np.generic) for value in values):
        return _joined_in_room(how, [np.asarray(value) for value in values], axis)
    import jax
    import jax.numpy as jnp

    dtype = values[0].dtype
    join = getattr(jnp, how)
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 2 or is_sub_byte(dtype.name):
        return join(list(values), axis=axis)
    bits = [jax.lax.bitcast_convert_type(jnp.asarray(value), f"uint{8 * dtype.itemsize}") for value in values]
    return jax.lax.bitcast_convert_type(join(bits, axis=axis), dtype)


def _joined_in_room(how: Literal["stack", "concatenate"], values: Sequence[np.ndarray[Any, Any]], axis: int) -> Any:
    """The same of NumPy arrays, however large."""
    shape, before = list(values[0].shape), (slice(None),) * axis
    if how == "stack":
        shape.insert(axis, len(values))
    else:
        shape[axis] = sum(value.shape[axis] for value in values)
    made = scratch.empty(tuple(shape), values[0].dtype)
    start = 0
    for value in values:
        stop = start + (1 if how == "stack" else value.shape[axis])
        scratch.copy(made[(*before, slice(start, stop))], value[(*before, None)] if how == "stack" else value)
        start = stop
    return made


def with_shape(value: Any, shape: tuple[int, ...]) -> Any:
    """``value.reshape``, however large a copy that takes."""
    import numpy as np

    return (scratch.contiguous(value) if isinstance(value, np.ndarray) else value).reshape(shape)
