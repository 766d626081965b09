"""Completing an optax state on the Linen side: its members without arrays, which NNX does not record.

A ``TrainState`` is restored into a target of exactly its structure. ``optax.adamw`` is a tuple of three members of
which only the first holds arrays; an ``nnx.Optimizer`` checkpoint shows that one alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from converter.dialects.opt_state import OPT_STATE, missing_positions
from converter.dtypes import numpy_dtype
from converter.paths import Path, format_path
from converter.planning.findings import Findings
from converter.planning.plan import Step, Transfer
from converter.rules.operations import Fill
from converter.tree import LeafKind, LeafSpec, empty_spec, nest

EMPTY_MEMBER = Fill((empty_spec("node"),), "a member of the optimizer state without arrays")


def empty_members(
    steps: Iterable[Step], params: Mapping[Path, LeafSpec], optimizer: Any, findings: Findings, *, checked: bool = True
) -> list[Step]:
    """The steps to add to those of a Linen train state, so that its optimizer state is complete.

    Args:
      params: the parameters by their path below ``params``.
      checked: whether the shapes of ``params`` are known to be theirs; moments alone may be factored.

    With the optax transformation at hand the result is exact, and every leaf is checked against it. Without, the gaps
    in front of known members are filled, and what may follow behind them is noted.
    """
    found = {step.target[1:]: step.spec for step in steps if step.target[0] == OPT_STATE}
    if optimizer is not None:
        return _exact(found, params, optimizer, findings, checked)
    if not found:
        return []
    findings.notes.append(
        "members of the optimizer state without arrays (optax.EmptyState) behind the last one that has some are not "
        "recorded by NNX; --optimizer SPEC adds them, so that the result restores into your TrainState"
    )
    return [_empty(path) for path in missing_positions(found)]


def _exact(
    found: Mapping[Path, LeafSpec],
    params: Mapping[Path, LeafSpec],
    optimizer: Any,
    findings: Findings,
    checked: bool,
) -> list[Step]:
    import jax

    from converter.models import optimizer_state_leaves

    structs = nest((path, jax.ShapeDtypeStruct(spec.shape, numpy_dtype(spec.dtype))) for path, spec in params.items())
    expected = dict(optimizer_state_leaves(optimizer, structs))
    added: list[Step] = []
    advice = "Give the optimizer that the checkpoint was trained with to --optimizer."
    for path, spec in expected.items():
        where = format_path((OPT_STATE, *path))
        if path not in found and spec.kind is LeafKind.EMPTY:
            added.append(_empty(path))
        elif path not in found:
            findings.refuse(f"{where}: expected {spec} by the optimizer, found nothing", advice)
        elif checked and spec.kind is not LeafKind.EMPTY and spec.shape != found[path].shape:
            findings.refuse(f"{where}: expected {spec} by the optimizer, found {found[path]}", advice)
    for path, spec in found.items():
        if path not in expected:
            where = format_path((OPT_STATE, *path))
            findings.refuse(f"{where}: {spec} in the checkpoint, not in the optimizer", advice)
    return added


def _empty(path: Path) -> Step:
    return Step((OPT_STATE, *path), Transfer(EMPTY_MEMBER, ()))
