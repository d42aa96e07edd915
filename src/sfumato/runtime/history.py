"""What was found at some steps, and what it goes on to at those after them."""

import numpy as np

from ..families import Array


class History:
    """Values of the last two steps at which they were found, and the line through them.

    Steps count up in a picture: what is known of a step or a later one is left from the picture before.
    """

    def __init__(self) -> None:
        self._found: list[tuple[int, Array]] = []

    def add(self, step: int, value: Array) -> None:
        """Keep what was found at a step."""
        self._found = [*self._before(step)[-1:], (step, value)]

    def at(self, step: int) -> Array | None:
        """The value on the line at a later step; the last one where one is known, None where none is."""
        before = self._before(step)
        if not before:
            return None
        last, value = before[-1]
        if len(before) < 2:
            return value
        earlier, other = before[0]
        share = np.float32((step - last) / (last - earlier))
        ahead: Array = value + share * (value - other)
        return ahead

    def _before(self, step: int) -> list[tuple[int, Array]]:
        return [each for each in self._found if each[0] < step]
