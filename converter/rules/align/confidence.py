"""How sure a correspondence is."""

from __future__ import annotations

import enum

from converter.rules.align.levels import Level


class Confidence(enum.Enum):
    """The classes, the surest first.

    All but guesses are to be confirmed by running both models; guesses are about variables that the call does not use,
    or does not use in a way that shows.
    """

    EXACT = "exact"
    TRACED = "traced"
    NUMERIC = "numeric"
    GUESSED = "guessed"

    def meaning(self, confirmed: bool) -> str:
        """What the class says, and whether running both models has confirmed it."""
        return _MEANINGS[self] + ("; confirmed" if confirmed and self is not Confidence.GUESSED else "")


_MEANINGS = {
    Confidence.EXACT: "the only variable that the call uses in this way, in both models",
    Confidence.TRACED: "the only one at this place of the computation, or one of several that are alike",
    Confidence.NUMERIC: "told by the numbers that both models compute",
    Confidence.GUESSED: "told by its name alone",
}


def confidence_of(level: Level) -> Confidence:
    """How sure a confirmed pair of that level is."""
    if level is Level.TRIED:
        return Confidence.NUMERIC
    return Confidence.EXACT if level is Level.UNIQUE else Confidence.TRACED
