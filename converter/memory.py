"""Translating live objects: the same plan as for files, executed on arrays in memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from converter.calling.signature import Signature
from converter.dialects.linen import LinenVariables
from converter.dialects.nnx import NnxLayout
from converter.errors import ConverterError, UsageError
from converter.live import BARE_PARAMS, lift_linen, lift_nnx, linen_variables, nnx_state
from converter.models import Model, linen_variables_model, nnx_model, nnx_state_model
from converter.options import (
    SEEDS,
    CallOptions,
    MethodOptions,
    read_linen_model,
    read_seeds,
    read_signature,
    suited,
)
from converter.planning.planner import plan_state
from converter.planning.request import Request
from converter.proof import evidence
from converter.report import Report
from converter.rules.language.rule_file import read_rules
from converter.training_state import COLLECTIONS
from converter.verification.bisection import VariableLink
from converter.verification.bisection.links import links_of, source_paths
from converter.verification.outputs import compare_outputs

if TYPE_CHECKING:
    from flax import linen, nnx


def nnx_to_linen(
    module_or_state: nnx.Module | nnx.State,
    *,
    linen_module: linen.Module | None = None,
    rules: Any = None,
    allow_lossy: bool = False,
    **call: Unpack[CallOptions],
) -> dict[str, Any]:
    """The Linen variables of an NNX module: ``{"params": {…}, "batch_stats": {…}, …}`` of plain nested dicts.

    Collections come from the Variables' own types, items of lists are named as Linen names them where a module is given
    (``layers_0``); random state is left out, as Linen takes it as an argument of ``apply``. Arrays that only change
    their name are the very same objects; under ``jax.jit`` they may be tracers.

    With ``linen_module`` and ``inputs`` variables may be called otherwise on both sides: where names do not tell, the
    calls of both modules do, and running them on random values confirms it.

    Args:
      module_or_state: a module, or its ``nnx.state`` (then names stay as they are).
      linen_module: the Linen module that the variables are for; names, shapes and dtypes are then checked against it.
      rules: names and shapes that you state yourself: the path or the text of a rule file, or what it holds.
      allow_lossy: convert also what has no place in Linen, without it.
      call: how both modules are called, as in ``Options``; ``inputs`` (arrays, ShapeDtypeStructs or texts such as
        ``float32[2,8]``) are needed with ``linen_module``.

    Raises:
      ConversionRefused: a leaf has no counterpart, or another shape or dtype, or would be lost; all are listed.
      UsageError: the state of an optimizer, ``linen_module`` without ``inputs``, or rules that cannot be read.
      ModelError: the Linen module cannot be initialised on these inputs.
    """
    from flax import nnx

    is_module = isinstance(module_or_state, nnx.Module)
    state = nnx.state(module_or_state) if is_module else module_or_state
    lifted = lift_nnx(state)
    own_model = nnx_model(module_or_state) if is_module else nnx_state_model(state)
    models = _models(linen_module, own_model, call)
    request = Request(to="linen", **models, **_stated(rules, allow_lossy), exact_dtypes=True, target=LinenVariables())
    made = plan_state(NnxLayout(None), lifted, request)
    made.check()
    made.check_values()
    return linen_variables(made.steps)


def linen_to_nnx(
    variables: Mapping[str, Any],
    module: nnx.Module,
    *,
    linen_module: linen.Module | None = None,
    rules: Any = None,
    allow_lossy: bool = False,
    **call: Unpack[CallOptions],
) -> nnx.State:
    """The state of an NNX module from Linen variables; ``nnx.update(module, state)`` puts it in.

    The Variables carry the module's metadata (sharding names). Random state is not part of the result, nor are arrays
    that are no Variables: the module keeps its own. Every path, shape and dtype is checked, which ``nnx.update`` does
    not do.

    With ``linen_module`` and ``inputs`` variables may be called otherwise on both sides: where names do not tell, the
    calls of both modules do, and running them on random values confirms it.

    Args:
      variables: a dict of collections, plain or FrozenDict, boxed or not.
      module: the NNX module, concrete or abstract (``nnx.eval_shape``).
      linen_module: the Linen module the variables belong to.
      rules: names and shapes that you state yourself: the path or the text of a rule file, or what it holds.
      allow_lossy: convert also what has no place in NNX, without it.
      call: how both modules are called, as in ``Options``; ``inputs`` (arrays, ShapeDtypeStructs or texts such as
        ``float32[2,8]``) are needed with ``linen_module``.

    Raises:
      ConversionRefused: a leaf has no counterpart, or another shape or dtype, or would be lost; all are listed.
      UsageError: not a dict of collections, ``linen_module`` without ``inputs``, or rules that cannot be read.
      ModelError: ``module`` is no NNX module.
    """
    model = nnx_model(module)
    lifted = lift_linen(variables)
    known = {variable.collection for variable in model.variables} | set(COLLECTIONS)
    if variables and not known & set(variables):
        raise UsageError(
            f"expected collections such as params or batch_stats, found {', '.join(map(str, variables))}", BARE_PARAMS
        )
    request = Request(
        to="nnx",
        **_models(linen_module, model, call),
        **_stated(rules, allow_lossy),
        exact_dtypes=True,
        fill_random_state=False,
        fill_from_model=False,
        target=NnxLayout(None),
    )
    made = plan_state(LinenVariables(), lifted, request)
    made.check()
    made.check_values()
    return nnx_state(made.steps, model)


def _models(linen_module: Any, own_model: Model, call: CallOptions) -> Any:
    """Both models and what running them tells, as a request takes them."""
    signature = read_signature(call)
    linen_model = read_linen_model(linen_module, signature)
    nnx_model = own_model if own_model.module is not None else None  # a state alone cannot be called
    if signature is not None:
        signature = suited(signature, linen_model, nnx_model)
    return {
        "linen_model": linen_model,
        "nnx_model": own_model,
        "evidence": evidence(linen_model, nnx_model, signature),
    }


def _stated(rules: Any, allow_lossy: bool) -> Any:
    return {"rules": None if rules is None else read_rules(rules), "allow_lossy": allow_lossy}


def verify_outputs(
    linen_module: linen.Module,
    variables: Mapping[str, Any],
    nnx_module: nnx.Module,
    inputs: Any,
    linen_kwargs: Mapping[str, Any] | None = None,
    nnx_kwargs: Mapping[str, Any] | None = None,
    *,
    seeds: int = SEEDS,
    **more: Unpack[MethodOptions],
) -> Report:
    """Runs both modules on the same inputs and compares what they return; where it differs, says where that begins.

    Args:
      linen_module: called as ``linen_module.apply(variables, *inputs, **linen_kwargs)``.
      variables: a dict of collections.
      nnx_module: called as ``nnx_module(*inputs, **nnx_kwargs)``, in the mode it is in (``nnx_module.eval()`` first);
        every call is one of a copy, so that its state stays as it is.
      inputs: a tuple of arrays; ShapeDtypeStructs and texts such as ``float32[2,8]``, ``int32[2,16] < 1000`` or
        ``mask=bool[2,16]`` become random arrays. A dict is keyword arguments.
      seeds: how many inputs to compare on: other random numbers each time, or the numbers of an array in another order.
      more: methods and selected outputs, as in ``Options``.

    Raises:
      ModelError: one of the two calls fails.
      UsageError: inputs that cannot be read.
    """
    call: CallOptions = {**more, "inputs": inputs, "linen_kwargs": linen_kwargs, "nnx_kwargs": nnx_kwargs}
    signature = read_signature(call)
    assert signature is not None
    signature = suited(signature, linen_variables_model(variables), nnx_model(nnx_module))
    links = functools.partial(_links, linen_module, variables, nnx_module, signature)
    outputs = compare_outputs(linen_module, variables, nnx_module, signature, read_seeds(seeds), links)
    return Report(type(linen_module).__name__, type(nnx_module).__name__, outputs=outputs)


def _links(linen_module: Any, variables: Mapping[str, Any], module: nnx.Module, signature: Signature) -> Any:
    """Which variables of the two modules are which: as a translation would pair them, else those of equal names."""
    model, lifted = nnx_model(module), lift_linen(variables)
    try:
        linen_model = read_linen_model(linen_module, signature)
        request = Request(
            to="nnx",
            linen_model=linen_model,
            nnx_model=model,
            evidence=evidence(linen_model, model, signature),
            fill_random_state=False,
            fill_from_model=False,
            target=NnxLayout(None),
        )
        made = plan_state(LinenVariables(), lifted, request)
        targets = {variable.path: variable.path for variable in model.variables}
        links = links_of(made.steps, source_paths(lifted.state), targets, to_linen=False)
    except ConverterError:
        links = []
    return links or [VariableLink((variable.linen_path,), (variable.path,)) for variable in model.variables]
