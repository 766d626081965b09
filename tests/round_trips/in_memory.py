"""Conversions of training states in memory, as the planner makes them of checkpoints; each model is made once."""

from __future__ import annotations

from typing import Any

from converter.calling import Arguments, Signature
from converter.models import linen_model, nnx_model_from_factory
from converter.planning.plan import Plan
from converter.planning.planner import make_plan
from converter.planning.request import Request
from converter.proof import evidence
from converter.tree import LeafKind, Tree

from .reshaped_pairs import Pair
from .training import values_of

_MODELS: dict[int, dict[str, Any]] = {}


def both_models(pair: Pair) -> dict[str, Any]:
    """What a request takes: both models, and what running them tells."""
    if id(pair) not in _MODELS:
        linen, of_nnx = linen_model(pair.linen(), pair.inputs, {}), nnx_model_from_factory(pair.nnx)
        told = evidence(linen, of_nnx, Signature(Arguments(tuple(pair.inputs))))
        _MODELS[id(pair)] = {"linen_model": linen, "nnx_model": of_nnx, "evidence": told}
    return _MODELS[id(pair)]


def planned(tree: Tree, to: Any, pair: Pair, **options: Any) -> Plan:
    """The plan of a conversion with both models, or with those of the options."""
    if not {"linen_model", "nnx_model"} & options.keys():
        options |= both_models(pair)
    return make_plan(tree, Request(to, **options))


def converted(tree: Tree, to: Any, pair: Pair, **options: Any) -> Tree:
    plan = planned(tree, to, pair, **options)
    plan.check()
    plan.check_values()
    return plan.tree()


def recorded(tree: Tree) -> Tree:
    """What Orbax records of an NNX state: nothing of what is masked out."""
    return Tree((path, leaf) for path, leaf in tree.items() if leaf.spec.kind is not LeafKind.EMPTY)


def alone(tree: Tree, above: str = "") -> Tree:
    """The optimizer without the model."""
    paths = {path: path[1:] if above else path for path in tree if path[0] in ((above,) if above else OF_OPTIMIZER)}
    return Tree((shorter, tree[path]) for path, shorter in paths.items())


OF_OPTIMIZER = ("step", "opt_state")


def values_alone(tree: Tree) -> dict[str, Any]:
    """As ``values_of``, without the step, which stands elsewhere."""
    return {path: value for path, value in values_of(tree).items() if path.partition("/")[0] != "step"}
