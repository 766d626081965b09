"""What the user wants from a conversion, apart from files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from converter.dialects.dialect import Dialect, Framework
from converter.paths import PathGlob

if TYPE_CHECKING:
    from converter.models import Model
    from converter.rules.language.rule_set import RuleSet
    from converter.rules.matching.evidence import Evidence

LinenStyle = Literal["variables", "params", "train-state"]
NnxStyle = Literal["state", "pure"]
NnxBundle = Literal["dict", "tuple", "model-and-optimizer"]


@dataclass(frozen=True, slots=True)
class Request:
    """All that shapes a plan.

    Attributes:
      to: the framework to convert to.
      linen_style: layout on the Linen side; None for a train state if there is a step or an optimizer state, else
        variables.
      bare_params: write Linen variables without the collection level where they are all parameters.
      nnx_style: ``state`` (leaves end in ``value``) or ``pure``.
      nnx_bundle: how a model and its optimizer stand together on the NNX side.
      params_only: leave everything but the parameters behind.
      drop: leaves to leave behind; matched against the source path and against collection and path.
      keep: exceptions from ``drop`` and from what is dropped by default.
      collections: collections of NNX variables by pattern; the first match counts.
      nnx_model: the model on the NNX side, for exact names, collections and shapes.
      linen_model: the model on the Linen side.
      template: names, shapes and dtypes on the target side, taken from a checkpoint where no model is at hand.
      evidence: what running both models tells.
      rules: what the user states about names and shapes.
      allow_lossy: whether what has no place in the target may be lost.
      optimizer: the optax transformation, for the members of its state that hold no arrays.
      fill_random_state: whether random state that only the NNX model has is filled in from it.
      fill_from_model: whether anything is; live modules keep what they have.
      exact_dtypes: whether another dtype than the model declares is a problem; files keep theirs, live objects have to
        fit.
      target: a layout to use instead of the styles.
    """

    to: Framework
    linen_style: LinenStyle | None = None
    bare_params: bool = False
    nnx_style: NnxStyle = "state"
    nnx_bundle: NnxBundle = "dict"
    params_only: bool = False
    drop: tuple[PathGlob, ...] = ()
    keep: tuple[PathGlob, ...] = ()
    collections: tuple[tuple[PathGlob, str], ...] = ()
    nnx_model: Model | None = None
    linen_model: Model | None = None
    template: Model | None = None
    evidence: Evidence | None = None
    rules: RuleSet | None = None
    allow_lossy: bool = False
    optimizer: Any = None
    fill_random_state: bool = True
    fill_from_model: bool = True
    exact_dtypes: bool = False
    target: Dialect | None = None
