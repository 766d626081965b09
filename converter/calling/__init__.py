"""How both models are called: with which inputs, which method, and which part of what they return counts."""

from converter.calling.inputs import Arguments, InputSpec, parse_input
from converter.calling.signature import Side, Signature, apply_linen, call_nnx

__all__ = ["Arguments", "InputSpec", "Side", "Signature", "apply_linen", "call_nnx", "parse_input"]
