"""The options of a conversion, and evaluating what they name: models, optimizer, inputs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from converter import user_code
from converter.dialects.dialect import Dialect, Framework
from converter.errors import ModelError, UsageError
from converter.formats import ORBAX_LAYOUTS
from converter.planning.request import LinenStyle, NnxBundle, NnxStyle, Request
from converter.tree import LeafKind, LeafSpec, PathGlob, parse_array_spec

if TYPE_CHECKING:
    from converter.models import Model
    from converter.rules.language.rule_set import RuleSet
    from converter.rules.matching.evidence import Evidence
    from converter.template import Template


class Options(TypedDict, total=False):
    """What shapes a conversion; every option is optional. The command line has one option for each.

    Keys:
      step, item: which step or item of the source.
      linen_style: ``variables``, ``params`` or ``train-state``; by default a train state if there is training state.
      nnx_style: ``state`` (leaves end in ``value``, the default in Orbax) or ``pure`` (the default elsewhere).
      nnx_bundle: ``dict`` ({"model", "optimizer"}, the default), ``tuple`` (as ``nnx.split((model, optimizer))``), or
        ``model-and-optimizer`` (as ``nnx.ModelAndOptimizer``).
      params_only: leave everything but the parameters behind.
      drop, keep: path patterns of leaves to leave behind, and of exceptions from that and from the defaults.
      collections: collection by path pattern, for NNX variables whose type the checkpoint does not tell.
      nnx_model, linen_model: a model definition: a factory without arguments (or taking ``rngs=``), an
        ``pkg.module:factory`` or ``file.py:factory`` naming one, or a module.
      like: a checkpoint of the framework to convert to, whose names, shapes and layout the result gets.
      rules: names and shapes that you state yourself: the path or the text of a rule file, or what it holds.
      allow_lossy: convert also what has no place on the other side, without it.
      optimizer: the optax transformation, a factory for it, or a name of a factory; completes the optimizer state on
        the Linen side.
      inputs: what the models are called with: arrays, ShapeDtypeStructs or texts such as ``float32[2,8]`` (random
        values), or a factory or name of one. A Linen model needs them.
      linen_kwargs, nnx_kwargs: keyword arguments of the two calls.
    """

    step: int | None
    item: str | None
    linen_style: LinenStyle | None
    nnx_style: NnxStyle | None
    nnx_bundle: NnxBundle | None
    params_only: bool
    drop: Sequence[str]
    keep: Sequence[str]
    collections: Mapping[str, str]
    nnx_model: Any
    linen_model: Any
    like: str | os.PathLike[str] | None
    rules: Any
    allow_lossy: bool
    optimizer: Any
    inputs: Any
    linen_kwargs: Mapping[str, Any] | None
    nnx_kwargs: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Job:
    """A request with what is needed to run its models.

    Attributes:
      request: what shapes the plan.
      inputs: what both models are called with; None where none were given.
      linen_kwargs, nnx_kwargs: keyword arguments of the calls.
    """

    request: Request
    inputs: tuple[Any, ...] | None
    linen_kwargs: Mapping[str, Any]
    nnx_kwargs: Mapping[str, Any]


def make_job(to: Framework, options: Options, *, to_format: str, target: Dialect | None = None) -> Job:
    """Evaluates everything that the options name.

    Args:
      to_format: the format of the destination; only Orbax holds typed PRNG keys, so elsewhere no random state is filled
        in.
      target: the layout of an existing destination; by default it follows from the options.

    Raises:
      UsageError: options that cannot be read or lack another one.
      ModelError: user code that fails.
    """
    if to_format == "hf-msgpack" and to != "linen":
        raise UsageError("the models of Hugging Face are Linen modules, not NNX", "Choose another format.")
    inputs = read_inputs(options.get("inputs"))
    linen_kwargs, nnx_kwargs = dict(options.get("linen_kwargs") or {}), dict(options.get("nnx_kwargs") or {})
    nnx_model = read_nnx_model(options.get("nnx_model"))
    linen_model = read_linen_model(options.get("linen_model"), inputs, linen_kwargs)
    template = _read_template(options.get("like"), to)
    rules = options.get("rules")
    nnx_style = options.get("nnx_style") or ("state" if to_format in ORBAX_LAYOUTS else "pure")
    request = Request(
        to=to,
        linen_style=options.get("linen_style"),
        bare_params=to_format == "hf-msgpack",
        nnx_style=nnx_style,
        nnx_bundle=options.get("nnx_bundle") or "dict",
        params_only=options.get("params_only", False),
        drop=tuple(map(PathGlob, options.get("drop", ()))),
        keep=tuple(map(PathGlob, options.get("keep", ()))),
        collections=tuple((PathGlob(glob), name) for glob, name in options.get("collections", {}).items()),
        nnx_model=nnx_model,
        linen_model=linen_model,
        template=template.model if template else None,
        evidence=_evidence(linen_model, nnx_model, inputs, linen_kwargs, nnx_kwargs),
        rules=None if rules is None else _read_rules(rules),
        allow_lossy=options.get("allow_lossy", False),
        optimizer=_read_optimizer(options.get("optimizer")),
        fill_random_state=to_format in ORBAX_LAYOUTS,
        target=target or _template_layout(template, options),
    )
    return Job(request, inputs, linen_kwargs, nnx_kwargs)


# Each of these rooms is loaded only where its option is given: loading them takes longer than renaming a checkpoint.


def _read_template(given: Any, to: Framework) -> Template | None:
    if given is None:
        return None
    from converter.template import read_template

    return read_template(given, to)


def _read_rules(given: Any) -> RuleSet:
    from converter.rules.language.rule_file import read_rules

    return read_rules(given)


def _evidence(
    linen: Model | None,
    nnx: Model | None,
    inputs: tuple[Any, ...] | None,
    linen_kwargs: Mapping[str, Any],
    nnx_kwargs: Mapping[str, Any],
) -> Evidence | None:
    if linen is None and nnx is None:
        return None
    from converter.proof import evidence

    return evidence(linen, nnx, inputs, linen_kwargs, nnx_kwargs)


def _template_layout(template: Template | None, options: Options) -> Dialect | None:
    """The layout of the template, unless another one is asked for."""
    chosen = any(options.get(name) for name in ("linen_style", "nnx_style", "nnx_bundle"))
    return None if template is None or chosen else template.layout


def read_nnx_model(given: Any) -> Model | None:
    """A model from an NNX module, a factory, or the name of a factory.

    Raises:
      ModelError: it fails, or is no NNX module.
    """
    if given is None:
        return None
    if isinstance(given, str):
        given = user_code.load(given)
    from flax import linen as nn
    from flax import nnx

    from converter import models

    is_module = isinstance(given, nnx.Module | nn.Module)
    return models.nnx_model(given) if is_module or not callable(given) else models.nnx_model_from_factory(given)


def read_linen_model(
    given: Any, inputs: Sequence[Any] | None, kwargs: Mapping[str, Any], method: str = ""
) -> Model | None:
    """A model from a Linen module, a factory, or the name of a factory, initialised abstractly on ``inputs``.

    Args:
      kwargs: keyword arguments of the call.
      method: the method that is called; "" for ``__call__``.

    Raises:
      UsageError: there are no inputs.
      ModelError: it fails, or is no Linen module.
    """
    if given is None:
        return None
    if isinstance(given, str):
        given = user_code.load(given)
    from flax import linen as nn
    from flax import nnx

    from converter import models

    if callable(given) and not isinstance(given, nnx.Module | nn.Module):
        given = user_code.call(f"building the Linen model {getattr(given, '__name__', given)}", given)
    if inputs is None:
        raise UsageError(
            "a Linen model has no variables until it is called: the inputs are missing",
            "Describe them with --input 'float32[2,8]' (once for each argument), or give a factory with --inputs SPEC.",
        )
    # These two are arguments of apply; init has neither.
    call_kwargs = {name: value for name, value in kwargs.items() if name not in ("mutable", "rngs")}
    return models.linen_model(given, inputs, call_kwargs, method or None)


def read_inputs(given: Any) -> tuple[Any, ...] | None:
    """Inputs from arrays, specs, texts such as ``float32[2,8]`` or ``int32[2,8]<1000``, or a factory.

    Raises:
      UsageError: a text that cannot be read.
      ModelError: a factory that fails.
    """
    if given is None:
        return None
    if isinstance(given, str) and ":" in given:
        given = user_code.load(given)
    if callable(given):
        given = user_code.call(f"making the inputs {getattr(given, '__name__', given)}", given)
    from converter.verification.outputs import random_inputs

    values = [_ranged(value) for value in (given if isinstance(given, list | tuple) else [given])]
    specs = {position: spec for position, value in enumerate(values) if (spec := _as_spec(value)) is not None}
    made = dict(zip(specs, random_inputs(list(specs.values())), strict=True))
    return tuple(made.get(position, value) for position, value in enumerate(values))


_RANGE = re.compile(r"(?P<spec>[^<]*)<\s*(?P<limit>[0-9]{1,18})\s*")


def _ranged(value: Any) -> Any:
    """Random whole numbers below a limit from ``int32[2,8]<1000``; anything else as it is."""
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    import jax.numpy as jnp
    import numpy as np

    spec, limit = parse_array_spec(match["spec"].strip()), int(match["limit"])
    if limit < 1 or not jnp.issubdtype(spec.dtype, jnp.integer):
        raise UsageError(f"cannot make whole numbers as in {value!r}", "Write it as in 'int32[2,8]<1000'.")
    return jnp.asarray(np.random.default_rng(0).integers(0, limit, spec.shape)).astype(spec.dtype)


def _as_spec(value: Any) -> LeafSpec | None:
    """The spec that stands for a random array; None for a value to be used as it is."""
    if isinstance(value, str):
        return parse_array_spec(value)
    if isinstance(value, LeafSpec):
        return value
    import jax

    if isinstance(value, jax.ShapeDtypeStruct):
        return LeafSpec(LeafKind.ARRAY, value.dtype.name, value.shape)
    return None


def _read_optimizer(given: Any) -> Any:
    if isinstance(given, str):
        given = user_code.load(given)
    if given is None or _is_optimizer(given):
        return given
    if callable(given):
        given = user_code.call(f"building the optimizer {getattr(given, '__name__', given)}", given)
    if not _is_optimizer(given):
        raise ModelError(
            f"expected an optax.GradientTransformation as the optimizer, found {type(given).__name__} ({given})"[:300],
            "Name a factory that returns one.",
        )
    return given


def _is_optimizer(given: Any) -> bool:
    return hasattr(given, "init") and hasattr(given, "update")


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", re.IGNORECASE)


def read_size(given: int | str, *, least: int = 1 << 20, what: str = "a memory budget") -> int:
    """Bytes from a number or a text such as ``512MiB``, ``2 GB`` or ``1.5g``.

    Raises:
      UsageError: no such text, or less than ``least``.
    """
    match = _SIZE.fullmatch(str(given))
    size = 0
    if match is not None:
        base = 1000 if match[2] and match[0].strip().lower().endswith("b") and not match[3] else 1024
        size = int(float(match[1]) * base ** (" kmgt".index(match[2].lower()) if match[2] else 0))
    if size < least:
        smallest = "1 MiB" if least == 1 << 20 else f"{least} byte" + "s" * (least > 1)
        raise UsageError(
            f"cannot use {str(given)!r} as {what}: expected a size of at least {smallest}",
            "Write a number of bytes or a size such as 512MiB.",
        )
    return size
