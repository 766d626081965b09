"""The options of a conversion, and evaluating what they name: models, optimizer, inputs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from converter import user_code
from converter.calling.inputs import SMALL_RANGE, Arguments, InputSpec, parse_input
from converter.calling.signature import OF_APPLY, Side, Signature
from converter.dialects.dialect import Dialect, Framework
from converter.errors import ModelError, UsageError
from converter.formats import ORBAX_LAYOUTS
from converter.paths import PathGlob, parse_path
from converter.planning.request import LinenStyle, NnxBundle, NnxStyle, Request
from converter.tree import LeafKind, LeafSpec

if TYPE_CHECKING:
    from converter.models import Model
    from converter.rules.language.rule_set import RuleSet
    from converter.rules.matching.evidence import Evidence
    from converter.template import Template


class MethodOptions(TypedDict, total=False):
    """What else there is to say about the calls of both models; see ``Options``."""

    linen_init: Any
    linen_method: str | None
    nnx_method: str | None
    linen_output: str | None
    nnx_output: str | None


class CallOptions(MethodOptions, total=False):
    """How both models are called; see ``Options``."""

    inputs: Any
    linen_kwargs: Mapping[str, Any] | None
    nnx_kwargs: Mapping[str, Any] | None


class Options(CallOptions, total=False):
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
      inputs: what the models are called with: arrays, ShapeDtypeStructs or texts such as ``float32[2,8]``,
        ``int32[2,16] < 1000`` or ``mask=bool[2,16]`` (random values), a dict of keyword arguments, or a factory or name
        of one. A Linen model needs them.
      linen_init: what the Linen model is initialised with, through ``__call__``, where the call does not do for that.
      linen_kwargs, nnx_kwargs: keyword arguments of the two calls.
      linen_method, nnx_method: the methods that are called in the place of ``__call__``.
      linen_output, nnx_output: paths of what counts in the returned pytrees, such as ``0/hidden``.
      seeds: how many random inputs outputs are compared on; 3 by default.
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
    seeds: int


SEEDS = 3


@dataclass(frozen=True, slots=True)
class Job:
    """A request with what is needed to run its models.

    Attributes:
      request: what shapes the plan.
      signature: how both models are called; None where no inputs were given.
      seeds: how many random inputs outputs are compared on.
    """

    request: Request
    signature: Signature | None
    seeds: int = SEEDS


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
    signature = read_signature(options)
    nnx_model = read_nnx_model(options.get("nnx_model"))
    linen_model = read_linen_model(options.get("linen_model"), signature)
    if signature is not None:
        signature = suited(signature, linen_model, nnx_model)
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
        evidence=_evidence(linen_model, nnx_model, signature),
        rules=None if rules is None else _read_rules(rules),
        allow_lossy=options.get("allow_lossy", False),
        optimizer=_read_optimizer(options.get("optimizer")),
        fill_random_state=to_format in ORBAX_LAYOUTS,
        target=target or _template_layout(template, options),
    )
    return Job(request, signature, read_seeds(options.get("seeds", SEEDS)))


# Each of these rooms is loaded only where its option is given: loading them takes longer than renaming a checkpoint.


def _read_template(given: Any, to: Framework) -> Template | None:
    if given is None:
        return None
    from converter.template import read_template

    return read_template(given, to)


def _read_rules(given: Any) -> RuleSet:
    from converter.rules.language.rule_file import read_rules

    return read_rules(given)


def _evidence(linen: Model | None, nnx: Model | None, signature: Signature | None) -> Evidence | None:
    if linen is None and nnx is None:
        return None
    from converter.proof import evidence

    return evidence(linen, nnx, signature)


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


def read_linen_model(given: Any, signature: Signature | None) -> Model | None:
    """A model from a Linen module, a factory, or the name of a factory, initialised abstractly on its inputs.

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
    if signature is None:
        raise UsageError(
            "a Linen model has no variables until it is called: the inputs are missing",
            "Describe them with --input 'float32[2,8]' (once for each argument), or give a factory with --inputs SPEC.",
        )
    if signature.init is not None:
        return models.linen_model(given, signature.init.positional, signature.init.named)
    kwargs = {name: value for name, value in signature.linen_kwargs.items() if name not in OF_APPLY}
    method = signature.linen.call if signature.linen.method else None
    return models.linen_model(given, signature.arguments.positional, kwargs, method)


# Calls ---------------------------------------------------------------------------------------------------------------


def read_signature(options: CallOptions) -> Signature | None:
    """How both models are called; None where no inputs are given.

    Raises:
      UsageError: a text that cannot be read.
      ModelError: a factory that fails.
    """
    given = options.get("inputs")
    if given is None:
        return None
    recipe, init = _read_arguments(given), options.get("linen_init")
    linen = _read_side(options.get("linen_kwargs"), options.get("linen_method"), options.get("linen_output"))
    nnx = _read_side(options.get("nnx_kwargs"), options.get("nnx_method"), options.get("nnx_output"))
    return Signature(recipe.drawn(), linen, nnx, None if init is None else _read_arguments(init).drawn(), recipe)


def _read_side(kwargs: Mapping[str, Any] | None, method: str | None, output: str | None) -> Side:
    return Side(dict(kwargs or {}), _read_method(method or ""), parse_path(output or ""))


def suited(signature: Signature, linen: Model | None, nnx: Model | None) -> Signature:
    """The same with integers that the embedding tables of the models have room for."""
    if signature.recipe is None or not signature.recipe.is_random:
        return signature
    from converter.models import vocabulary

    return signature.drawing(vocabulary((linen, nnx)) or SMALL_RANGE)


def read_seeds(given: int) -> int:
    """How many random inputs there shall be.

    Raises:
      UsageError: not even one.
    """
    if given < 1:
        raise UsageError(f"cannot run the models on {given} random inputs", "Use --seeds 1 or more.")
    return given


def _read_method(given: str) -> str:
    if given == "__call__":
        return ""
    if given and not all(name.isidentifier() for name in given.split(".")):
        raise UsageError(f"cannot read the method {given!r}", "Write its name, as in 'encode' or 'encoder.encode'.")
    return given


def _read_arguments(given: Any) -> Arguments:
    """Arguments from arrays, specs, texts such as ``float32[2,8]``, a dict of them, or a factory or the name of one."""
    if isinstance(given, str) and ":" in given:
        given = user_code.load(given)
    if callable(given):
        given = user_code.call(f"making the inputs {getattr(given, '__name__', given)}", given)
    if isinstance(given, Arguments):
        return given
    if isinstance(given, Mapping):
        return Arguments((), {str(name): _as_spec(value)[1] for name, value in given.items()})
    several = isinstance(given, list | tuple) and not isinstance(given, LeafSpec)
    read = [_as_spec(value) for value in (given if several else [given])]
    named = [name for name, _ in read if name]
    if len(set(named)) < len(named):
        raise UsageError(f"two inputs have the same name: {', '.join(named)}", "Name each argument once.")
    return Arguments(tuple(value for name, value in read if not name), {name: value for name, value in read if name})


def _as_spec(value: Any) -> tuple[str, Any]:
    """The name of an argument ("" for none), and the spec that stands for a random array or the value itself."""
    if isinstance(value, str):
        return parse_input(value)
    if isinstance(value, LeafSpec):
        return "", InputSpec(value)
    import jax

    if isinstance(value, jax.ShapeDtypeStruct):
        return "", InputSpec(LeafSpec(LeafKind.ARRAY, value.dtype.name, value.shape))
    return "", value


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
