"""Both models once more in double precision: is a difference one of rounding, or of what they compute?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from converter.calling.arrays import array_inputs
from converter.calling.inputs import Arguments
from converter.errors import ModelError
from converter.models import linen_leaves
from converter.planning.wording import size_text
from converter.proof.calls import Call, Traced, Values, linen_call, nnx_call, nnx_values
from converter.proof.outputs import LIMITS, TOLERANCE, as_numpy, gap_and_scale
from converter.verification.running import Pair

LOW = ("bfloat16", "float16", "float8")
"""Beginnings of the names of types in which rounding hides what a model computes."""


@dataclass(frozen=True, slots=True)
class Replay:
    """How far the outputs are apart if everything is computed in double precision, with the same values and inputs.

    Attributes:
      output: the output that differs most, relative to its limit.
      max_abs: its largest absolute difference.
      limit: what that may be: the limit for float32 models where types of low precision are written into their code,
        which the replay cannot take back altogether; else what constants make that were rounded to float32.
      low: the types of low precision in which Linen and NNX compute otherwise; "" for none.
      problem: why there is no such replay; empty if there is.
    """

    output: str = ""
    max_abs: float = 0.0
    limit: float = 0.0
    low: tuple[str, str] = ("", "")
    problem: str = ""

    @property
    def agrees(self) -> bool:
        return not self.problem and self.max_abs <= self.limit

    @property
    def decides(self) -> bool:
        """Whether both models are of low precision, in which case the replay tells more than their own outputs do."""
        return all(self.low) and not self.problem

    def __str__(self) -> str:
        if self.problem:
            return f"no replay in double precision: {self.problem}"
        low = " and ".join(dict.fromkeys(each for each in self.low if each))
        instead = f" instead of {low}" if low else ""
        outcome = "a matter of rounding" if self.agrees else "no matter of rounding"
        found = f"max abs difference {self.max_abs:.3g} (limit {self.limit:.3g})"
        return f"replayed in double precision{instead}: {outcome}, {self.output} {found}"

    def to_json(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "max_abs": self.max_abs,
            "limit": self.limit,
            "low_precision": {"linen": self.low[0], "nnx": self.low[1]},
            "problem": self.problem,
        }


def replayed(pair: Pair, arguments: Arguments) -> Replay:
    """Runs both models in double precision.

    Types of low precision that modules state become float32, so that constants are not rounded to them; then the calls
    are traced, and the traces run with wider numbers. All values are held in double precision, one model after the
    other.
    """
    low = ("", "")
    needed = _in_double(pair)
    if needed > _memory() // 2:
        return Replay(problem=f"it would take {size_text(needed)} of memory")
    try:
        low = (lowest(traced_linen(pair, arguments)[0]), lowest(traced_nnx(pair, arguments)[0]))
        with widened(pair, arguments) as (wide, inputs):
            left = in_double(*traced_linen(wide, inputs))
            right = in_double(*traced_nnx(wide, inputs))
    except ModelError as error:
        return Replay(low=low, problem=error.message.splitlines()[0])
    except Exception as error:  # not everything that JAX can do exists in double precision, or runs on this machine
        return Replay(low=low, problem=f"{type(error).__name__}: {error}".splitlines()[0][:120])
    worst = Replay(low=low, problem="there are no numbers among the outputs")
    for name, value in left.items():
        if not hasattr(value, "dtype") or value.dtype.kind not in "fc":
            continue
        gap, scale = gap_and_scale(value, right[name])
        found = Replay(name, gap, (TOLERANCE["float32"] if any(low) else LIMITS[-1]) * max(scale, 1e-30), low)
        if worst.problem or found.max_abs / found.limit > worst.max_abs / worst.limit:
            worst = found
    return worst


def _in_double(pair: Pair) -> int:
    """The bytes of all values of the larger model in double precision."""
    import jax

    counts: list[int] = [
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (dict(pair.variables), pair.state)
    ]
    return 8 * max(counts)


def _memory() -> int:
    """The bytes of memory that this machine has."""
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return 8 << 30


@contextlib.contextmanager
def widened(pair: Pair, arguments: Arguments) -> Iterator[tuple[Pair, Arguments]]:
    """Both models and their inputs with float32 in the place of types of low precision, to be called in this context.

    What modules state in an attribute is replaced; a cast that is written in their code stays.
    """
    import jax
    from flax import linen as nn
    from flax import nnx

    module = nnx.merge(pair.graph, jax.tree.map(_widened, pair.state))
    for _, inner in nnx.iter_modules(module):
        for name in _stating(vars(inner)):
            setattr(inner, name, jax.numpy.float32)
    variables = jax.tree.map(_widened, dict(pair.variables))
    leaves, structure = arguments.leaves()
    wide = Arguments(*structure.unflatten(map(_widened, leaves)))

    def interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        names = _stating({name: getattr(context.module, name, None) for name in context.module.__dataclass_fields__})
        kept = {name: getattr(context.module, name) for name in names}
        try:
            for name in names:
                object.__setattr__(context.module, name, jax.numpy.float32)  # a module is frozen
            return call(*args, **kwargs)
        finally:
            for name, value in kept.items():
                object.__setattr__(context.module, name, value)

    with nn.intercept_methods(interceptor):
        yield Pair(pair.linen, variables, module, pair.signature), wide


def _stating(attributes: Mapping[str, Any]) -> list[str]:
    """The names of the attributes that state a type of low precision."""
    return [name for name, value in attributes.items() if not hasattr(value, "shape") and _is_low(value)]


def _is_low(value: Any) -> bool:
    import numpy as np

    if isinstance(value, str):
        return value.startswith(LOW)
    return isinstance(value, np.dtype | type) and _dtype_name(value).startswith(LOW)


def _dtype_name(value: Any) -> str:
    import numpy as np

    try:
        return str(np.dtype(value).name)
    except TypeError:
        return ""


def _widened(leaf: Any) -> Any:
    return leaf.astype("float32") if hasattr(leaf, "astype") and str(leaf.dtype).startswith(LOW) else leaf


def in_double(traced: Traced, arguments: list[Any]) -> dict[str, Any]:
    """The results of a traced call in double precision, as NumPy arrays."""
    import jax

    with jax.enable_x64(True):
        return as_numpy(traced.doubled(arguments))


def traced_linen(pair: Pair, arguments: Arguments, call: Call | None = None) -> tuple[Traced, list[Any]]:
    """The call of the Linen model as a trace, and the values to run it on."""
    arrays, fill = array_inputs(pair.signature.calling(arguments))
    values = {(str(path[0]), path[1:]): value for path, value, _ in linen_leaves(pair.variables)}
    return _traced(call or linen_call(pair.linen, fill), values, arrays)


def traced_nnx(pair: Pair, arguments: Arguments, call: Call | None = None) -> tuple[Traced, list[Any]]:
    """The same for the NNX model."""
    arrays, fill = array_inputs(pair.signature.calling(arguments))
    return _traced(call or nnx_call(pair.graph, pair.state, fill), nnx_values(pair.state), arrays)


def _traced(call: Call, values: Values, arrays: list[Any]) -> tuple[Traced, list[Any]]:
    return call.traced(values, arrays), [*values.values(), *arrays]


def lowest(traced: Traced) -> str:
    """The type of low precision that a traced call computes in; "" if there is none."""
    found = (name for name in _dtypes(traced.closed.jaxpr) if name.startswith(LOW))
    return next(found, "")


def _dtypes(jaxpr: Any) -> Iterator[str]:
    """The types of all results of operations, inner ones included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if hasattr(variable.aval, "dtype"):
                yield str(variable.aval.dtype)
        for parameter in equation.params.values():
            for body in parameter if isinstance(parameter, tuple | list) else (parameter,):
                inner = getattr(body, "jaxpr", body)
                if hasattr(inner, "eqns"):
                    yield from _dtypes(inner)
