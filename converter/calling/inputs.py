"""What models are called with: stated arrays, and random ones that suit what they stand for."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from converter.dtypes import described, numpy_dtype
from converter.errors import UsageError
from converter.tree import LeafKind, LeafSpec, parse_array_spec

if TYPE_CHECKING:
    import numpy as np

SMALL_RANGE = 2
"""Integers are zeros and ones unless a range is stated or an embedding table tells one: these suit any vocabulary."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A random array: standard normal numbers, integers of a range, or a mask.

    Attributes:
      spec: shape and dtype.
      below: integers are drawn from zero up to, not including, this one; None for the range that the models allow.
    """

    spec: LeafSpec
    below: int | None = None

    def drawn(self, generator: np.random.Generator, vocabulary: int = SMALL_RANGE) -> Any:
        """A jax.Array of these.

        A mask has at least one True along each last axis: attention to nothing at all is NaN, or whatever.

        Raises:
          UsageError: a dtype that is no number, or an array that is too large for the memory.
        """
        import jax.numpy as jnp

        spec = self.spec
        dtype = numpy_dtype(spec.dtype) if spec.kind is LeafKind.ARRAY else None
        if dtype is None or not (jnp.issubdtype(dtype, jnp.number) or dtype.kind == "b"):
            raise UsageError(f"cannot make random inputs of {spec}", "Give them with --inputs SPEC.")
        try:
            made: Any
            if jnp.issubdtype(dtype, jnp.inexact):
                made = generator.standard_normal(spec.shape)
            elif dtype.kind == "b":
                made = _mask(generator, spec.shape)
            else:
                upper = int(jnp.iinfo(dtype).max) + 1
                made = generator.integers(0, min(self.below or vocabulary, upper), spec.shape)
            return jnp.asarray(made).astype(dtype)
        except (MemoryError, ValueError, OverflowError) as error:
            raise UsageError(f"cannot make an input {spec}: {error}", "Use a smaller batch.") from None

    def __str__(self) -> str:
        return str(self.spec) if self.below is None else f"{self.spec} < {self.below}"


def _mask(generator: np.random.Generator, shape: tuple[int, ...]) -> Any:
    import numpy as np

    mask = np.asarray(generator.integers(0, 2, shape), bool)
    if mask.ndim > 1 and mask.size:
        rows = np.arange(shape[-2])
        mask[..., rows, rows % shape[-1]] = True
    return mask


_INPUT = re.compile(r"\s*(?:(?P<name>\w+)\s*=)?(?P<array>[^<=]*)(?:<(?P<below>[^<]*))?")


def parse_input(text: str) -> tuple[str, InputSpec]:
    """Reads ``float32[2,8]``, ``int32[2,16] < 1000`` or ``mask=bool[2,16]``: a name ("" for none) and what to draw.

    Raises:
      UsageError: not of that form.
    """
    match = _INPUT.fullmatch(text)
    if match is None:
        raise UsageError(f"cannot read the input {text!r}", "Write it as in 'ids=int32[2,16] < 1000'.")
    name, spec = match["name"] or "", parse_array_spec(match["array"] if match["name"] or match["below"] else text)
    if name and (not name.isidentifier() or keyword.iskeyword(name)):
        raise UsageError(f"cannot read the input {text!r}: {name} is no name of an argument")
    return name, InputSpec(spec, None if match["below"] is None else _limit(text, spec, match["below"].strip()))


def _limit(text: str, spec: LeafSpec, below: str) -> int:
    advice = "Write a range of integers as in 'int32[2,16] < 1000'."
    if not re.fullmatch(r"[1-9][0-9_]*", below):
        raise UsageError(f"cannot read the input {text!r}: {below!r} is no positive number", advice)
    if not spec.dtype.startswith(("int", "uint")):
        raise UsageError(f"cannot read the input {text!r}: {spec.dtype} has no range", advice)
    return int(below)


@dataclass(frozen=True, slots=True)
class Arguments:
    """What both models are called with.

    Attributes:
      positional: arguments in their order; an ``InputSpec`` stands for an array that is still to be drawn.
      named: keyword arguments, which both models get under the same name.
    """

    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)

    def drawn(self, seed: int = 0, vocabulary: int = SMALL_RANGE) -> Arguments:
        """The same with arrays; one generator makes all of them, so that no two are alike."""
        import numpy as np

        generator = np.random.default_rng(seed)

        def draw(value: Any) -> Any:
            return value.drawn(generator, vocabulary) if isinstance(value, InputSpec) else value

        return Arguments(tuple(map(draw, self.positional)), {name: draw(each) for name, each in self.named.items()})

    @property
    def is_random(self) -> bool:
        """Whether anything is to be drawn."""
        return any(isinstance(value, InputSpec) for value in (*self.positional, *self.named.values()))

    def described(self) -> tuple[str, ...]:
        """Each of them as a text."""
        return (*map(_described, self.positional), *(f"{name}={_described(v)}" for name, v in self.named.items()))

    def leaves(self) -> tuple[list[Any], Any]:
        """All leaves, and the treedef whose ``unflatten`` puts others in their places."""
        import jax

        leaves, structure = jax.tree.flatten((self.positional, dict(self.named)), is_leaf=_is_spec)
        return leaves, structure

    def with_batch(self, size: int) -> Arguments | None:
        """The same inputs in a batch of that size: the first ones, or some of them twice.

        None where there is no batch: the arrays do not share their first axis.
        """
        leaves, structure = self.leaves()
        if self.batch in (None, size):
            return None
        resized = [_resized(leaf, size) if _has_shape(leaf) else leaf for leaf in leaves]
        positional, named = structure.unflatten(resized)
        return Arguments(positional, named)

    @property
    def batch(self) -> int | None:
        """The length of the first axis that all arrays share."""
        shapes = [_shape(leaf) for leaf in self.leaves()[0] if _has_shape(leaf)]
        sizes = {shape[0] if shape else 0 for shape in shapes}
        return sizes.pop() or None if len(sizes) == 1 else None


def _is_spec(value: Any) -> bool:
    return isinstance(value, InputSpec)


def _has_shape(value: Any) -> bool:
    return _is_spec(value) or (hasattr(value, "shape") and hasattr(value, "dtype"))


def _shape(value: Any) -> tuple[int, ...]:
    return value.spec.shape if isinstance(value, InputSpec) else tuple(value.shape)


def _resized(value: Any, size: int) -> Any:
    if isinstance(value, InputSpec):
        return replace(value, spec=value.spec._replace(shape=(size, *value.spec.shape[1:])))
    import jax.numpy as jnp

    return value[jnp.arange(size) % value.shape[0]]


def _described(value: Any) -> str:
    return str(value) if isinstance(value, InputSpec) else described(value)
