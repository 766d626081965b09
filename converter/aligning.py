"""Aligning two model definitions: which variable of the one is which of the other, as a table and as a rule file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from converter.errors import ConversionRefused, UsageError
from converter.folding import columns
from converter.models import Model
from converter.options import MethodOptions, read_linen_model, read_nnx_model, read_signature, suited
from converter.proof import evidence
from converter.rules.align.alignment import Alignment, align_models, searched
from converter.rules.align.confidence import Confidence
from converter.rules.align.rule_text import Written, rules_of
from converter.rules.link import Name, format_name
from converter.tree import LeafSpec

HEADER = """\
# Which variable of {linen} (Linen) is which of {nnx} (NNX), for --rules.
# Found by flax-convert align from the calls of both models, and confirmed by running them on random values.
"""

TIED_ADVICE = "Conversions that are given both models and their inputs find and do this by themselves, without rules."


@dataclass(frozen=True, slots=True)
class AlignmentReport:
    """What is known of two models.

    Attributes:
      linen, nnx: what the models are called.
      inputs: what both were called with, in words.
      variables: the variables of Linen and of NNX that were to be found in the other one.
      alignment: what belongs together, and what is not known.
      found: the same as rules, folded over layers.
      unstated: what rules cannot state, one line each.
    """

    linen: str
    nnx: str
    inputs: tuple[str, ...]
    variables: tuple[Mapping[Name, LeafSpec], Mapping[Name, LeafSpec]]
    alignment: Alignment
    found: tuple[Written, ...]
    unstated: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is known and confirmed."""
        return self.alignment.confirmed and not self.alignment.problems

    @property
    def rules(self) -> str:
        """The text of a rule file."""
        header = HEADER.format(linen=self.linen, nnx=self.nnx)
        return "\n".join([header, *(rule.text for rule in self.found)])

    def check(self) -> None:
        """Raises: ConversionRefused, with everything that is not known."""
        if self.ok:
            return
        problems = self.alignment.problems
        advice = " ".join(dict.fromkeys(advice for _, advice in problems if advice))
        headline = f"{self.linen} and {self.nnx} cannot be aligned:"
        raise ConversionRefused(headline, [text for text, _ in problems], advice, self.to_json())

    def check_rules(self) -> None:
        """Raises: ConversionRefused, with everything that rules cannot state."""
        if self.unstated:
            headline = "what was found cannot be written as rules:"
            raise ConversionRefused(headline, self.unstated, TIED_ADVICE, self.to_json())

    def text(self) -> str:
        """The table for people."""
        rows = [("Linen", "NNX", "to NNX", "confidence"), *map(_row, self.found)]
        counts = Counter(aligned.confidence for aligned in self.alignment.found)
        summary = ", ".join(f"{counts[c]} {c.value}" for c in Confidence if counts[c])
        proof = "confirmed by running both on random values" if self.alignment.confirmed else "not confirmed"
        lines = [f"{self.linen} (Linen) and {self.nnx} (NNX): {summary or 'nothing in common'}; {proof}", ""]
        lines += [f"  {line}" for line in columns(rows)] if self.found else []
        lines += ["", *(f"  not to be stated in rules: {text}" for text in self.unstated)] if self.unstated else []
        known = [c for c in Confidence if counts[c]]
        meanings = [f"  {c.value}: {c.meaning(self.alignment.confirmed)}" for c in known]
        lines += ["", *meanings] if meanings else []
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report for machines."""
        linen, nnx = self.variables
        return {
            "ok": self.ok,
            "linen": self.linen,
            "nnx": self.nnx,
            "variables": {"linen": _texts(linen), "nnx": _texts(nnx)},
            "confirmed": self.alignment.confirmed,
            "outputs": self._outputs_to_json() if self.alignment.confirmed else None,
            "aligned": [
                {
                    "linen": [format_name(name) for name in aligned.piece.linen],
                    "nnx": [format_name(name) for name in aligned.piece.nnx],
                    "operation": aligned.piece.to_nnx.name,
                    "confidence": aligned.confidence.value,
                    "remark": aligned.remark,
                }
                for aligned in self.alignment.found
            ],
            "problems": [{"problem": text, "advice": advice} for text, advice in self.alignment.problems],
            "unstated": list(self.unstated),
            "rules": self.rules if self.ok and not self.unstated else None,
        }

    def _outputs_to_json(self) -> dict[str, Any]:
        """How near both models were, in the words of a verification of outputs."""
        outputs = [
            {"name": each.name, "spec": each.spec, "max_abs": each.gap, "limit": each.limit, "bitwise": not each.gap}
            for each in self.alignment.measured
        ]
        return {"ok": True, "inputs": list(self.inputs), "outputs": outputs}


def _texts(variables: Mapping[Name, LeafSpec]) -> dict[str, str]:
    return {format_name(name): str(spec) for name, spec in variables.items()}


def _row(rule: Written) -> tuple[str, str, str, str]:
    remark = f" ({rule.remark})" if rule.remark else ""
    operations = ", ".join(rule.operations)
    return rule.linen_text or "(zeros)", rule.nnx_text or "(zeros)", operations, rule.confidence.value + remark


def align(
    linen_model: Any,
    nnx_model: Any,
    inputs: Any,
    *,
    linen_kwargs: Mapping[str, Any] | None = None,
    nnx_kwargs: Mapping[str, Any] | None = None,
    allow_guess: bool = False,
    **methods: Unpack[MethodOptions],
) -> AlignmentReport:
    """Finds out which variable of a Linen model is which of an NNX model that computes the same.

    Names, nesting and the order of definition do not matter, and neither do fused, split, stacked, transposed and
    reshaped variables. Both calls are traced, and what is found is confirmed by running both on random values.

    Args:
      linen_model, nnx_model: modules, factories, or names of factories.
      allow_guess: accept what names alone tell, of variables that the calls do not use.
      inputs, linen_kwargs, nnx_kwargs, methods: how both are called; see ``converter.Options``.

    Returns:
      A report; its ``check`` raises if anything is not known.

    Raises:
      UsageError: no inputs, or some that cannot be read.
      ModelError: a model cannot be built.
    """
    signature = read_signature({"inputs": inputs, "linen_kwargs": linen_kwargs, "nnx_kwargs": nnx_kwargs, **methods})
    if signature is None:
        raise UsageError(
            "models are aligned by calling them: the inputs are missing",
            "Describe them with --input 'float32[2,8]' (once for each argument), or give a factory with --inputs SPEC.",
        )
    linen = read_linen_model(linen_model, signature)
    nnx = read_nnx_model(nnx_model)
    if linen is None or nnx is None:
        raise UsageError("two models are needed", "Give both --linen-model and --nnx-model.")
    told = evidence(linen, nnx, suited(signature, linen, nnx))
    assert told is not None
    alignment = align_models(linen, nnx, told, allow_guess=allow_guess)
    found, unstated = rules_of(alignment.found, (_specs(linen), _specs(nnx)))
    names = type(linen.module).__name__, type(nnx.module).__name__
    described = (signature.recipe or signature.arguments).described()
    return AlignmentReport(
        *names, described, (searched(linen), searched(nnx)), alignment, tuple(found), tuple(unstated)
    )


def _specs(model: Model) -> dict[Name, LeafSpec]:
    return {(variable.collection, variable.path): variable.spec for variable in model.variables}
