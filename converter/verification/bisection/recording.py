"""Recording the calls of all modules of a model while it runs."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.paths import Path
from converter.verification.bisection.settings import settings_in_call, settings_of


@dataclass(eq=False, slots=True)
class Visit:
    """One call of a method of a module.

    Attributes:
      path: where the module stands in its model.
      kind: the name of its class.
      method: which method was called.
      settings: the attributes and arguments of the call that are plain values.
      parent: the visit during which it happened; None for the outermost one.
      inputs, outputs: the arrays that went in and came out.
    """

    path: Path
    kind: str
    method: str
    settings: Mapping[str, Any]
    parent: Visit | None
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)


class Recorder:
    """The visits of a run, in the order in which they ended: inner ones before those that they are part of.

    Args:
      sees: whether an array can be looked at. In transformed functions (``vmap``, ``grad``) there are stand-ins that
        cannot; visits with such arrays are left out.
    """

    def __init__(self, sees: Callable[[Any], bool]) -> None:
        self._sees = sees
        self._open: list[Visit] = []
        self.visits: list[Visit] = []

    def record(self, visit: Visit, call: Callable[[], Any], given: Any) -> Any:
        """Makes a call of a module and takes note of it."""
        visit.parent = self._open[-1] if self._open else None
        self._open.append(visit)
        try:
            returned = call()
        finally:
            self._open.pop()
        visit.inputs, visit.outputs = _arrays(given), _arrays(returned)
        if all(map(self._sees, (*visit.inputs, *visit.outputs))):
            self.visits.append(visit)
        return returned


def _arrays(tree: Any) -> list[Any]:
    import jax
    import numpy as np

    leaves = jax.tree.leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray) and not _is_key(leaf)]


def _is_key(leaf: Any) -> bool:
    import jax

    return bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))


@contextlib.contextmanager
def unrolled() -> Iterator[None]:
    """Lets scans run as Python loops and rematerialised functions as they are, so that modules inside can be seen."""
    import jax

    def as_it_is(function: Any = None, **options: Any) -> Any:
        return (lambda given: given) if function is None else function

    kept = jax.checkpoint, jax.remat
    jax.checkpoint = jax.remat = as_it_is
    try:
        with jax.disable_jit():
            yield
    finally:
        jax.checkpoint, jax.remat = kept


# Linen ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def linen_recording(recorder: Recorder) -> Iterator[None]:
    """Records all methods of Linen modules that are called in this context."""
    from flax import linen as nn

    def interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, method = context.module, context.method_name
        # A transformed class calls a function without a name, and that the method.
        if module.scope is None or method == "setup" or method.startswith("<"):
            return call(*args, **kwargs)
        settings = settings_of({name: getattr(module, name, None) for name in module.__dataclass_fields__})
        settings |= settings_in_call(context.orig_method, args, kwargs)
        visit = Visit(tuple(module.scope.path), type(module).__name__, method, settings, None)
        return recorder.record(visit, lambda: call(*args, **kwargs), (args, kwargs))

    with nn.intercept_methods(interceptor):
        yield


# NNX -----------------------------------------------------------------------------------------------------------------

_MARK = "path_in_the_model"
"""An attribute that tells a module where it stands; it survives the copies that the transformations of NNX make."""


def mark(module: Any) -> None:
    """Tells all modules of a model where they stand."""
    from flax import nnx

    for path, inner in nnx.iter_modules(module):
        setattr(inner, _MARK, "/".join(map(str, path)))


@contextlib.contextmanager
def nnx_recording(module: Any, recorder: Recorder) -> Iterator[None]:
    """Records all public methods of the NNX modules in a marked model that are called in this context."""
    from flax import nnx

    kept: list[tuple[type, str, Any]] = []
    classes = {cls: None for _, inner in nnx.iter_modules(module) for cls in type(inner).__mro__}
    busy: set[int] = set()
    try:
        for cls in classes:
            if cls.__module__.startswith("flax.nnx.") and cls.__name__ in _MACHINERY:
                continue
            for name, function in list(vars(cls).items()):
                if inspect.isfunction(function) and (name == "__call__" or not name.startswith("_")):
                    kept.append((cls, name, function))
                    setattr(cls, name, _recorded(name, function, recorder, busy))
        yield
    finally:
        for cls, name, function in kept:
            setattr(cls, name, function)


_MACHINERY = frozenset({"Module", "Pytree", "Object", "List", "Dict"})
"""Classes of NNX whose methods do not compute anything."""


def _recorded(name: str, function: Callable[..., Any], recorder: Recorder, busy: set[int]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        where = getattr(self, _MARK, None)
        # A method that calls another one of its module, or that of the class it inherits from, is one visit.
        if where is None or id(self) in busy:
            return function(self, *args, **kwargs)
        settings = settings_of(vars(self)) | settings_in_call(function, (self, *args), kwargs)
        visit = Visit(tuple(where.split("/")) if where else (), type(self).__name__, name, settings, None)
        busy.add(id(self))
        try:
            return recorder.record(visit, lambda: function(self, *args, **kwargs), (args, kwargs))
        finally:
            busy.discard(id(self))

    return call
