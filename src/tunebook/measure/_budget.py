"""One wall-clock budget, handed out problem by problem in proportion to what each is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunebook.measure._candidate import Clock


class Budget:
    """`seconds` from its creation on; infinite where None."""

    def __init__(self, seconds: float | None, clock: Clock) -> None:
        self._clock = clock
        self.seconds = math.inf if seconds is None else seconds
        self._start = clock.clock()

    def spent(self) -> float:
        return self._clock.clock() - self._start

    def left(self) -> float:
        return max(0.0, self.seconds - self.spent())

    def over(self) -> bool:
        return self.left() <= 0


def allowance(left: float, weights: Sequence[float], position: int) -> float:
    """Seconds for the problem at `position`: its weight's share of what is left for it and those after it.

    What a problem does not use flows on to the later ones, and no problem can starve them.
    """
    rest = sum(weights[position:])
    return left * weights[position] / rest if rest > 0 else left / max(1, len(weights) - position)
