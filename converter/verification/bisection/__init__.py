"""Where outputs that differ begin to differ: the first modules that belong together and make unlike things of the same.

The calls of all modules of both models are recorded with what goes in and what comes out (``recording``), those of
modules with corresponding variables are paired (``pairing``), and the first pair with equal inputs and unlike outputs
is the place (``search``). What the two modules say about themselves may tell why (``settings``, ``causes``).
"""

from converter.verification.bisection.pairing import VariableLink
from converter.verification.bisection.search import Divergence, first_divergence

__all__ = ["Divergence", "VariableLink", "first_divergence"]
