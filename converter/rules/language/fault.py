"""What is wrong with a piece of text that a user wrote, and where in it."""

from __future__ import annotations


class Fault(ValueError):
    """A pattern or an operation that cannot be read.

    Who knows where the text stands (a line of a file) turns it into an error for the user.

    Args:
      message: what is wrong.
      offset: the position in the text of the first character at fault, from 0.
      advice: what to write instead.
    """

    def __init__(self, message: str, offset: int = 0, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.advice = advice
