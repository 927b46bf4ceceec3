"""The screening: two calls on one layer tell which tactics are hopeless, before other layers' weights are prepared for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunebook.measure._candidate import Clock

#: A tactic that takes this many times the best one's first look does not enter the race. Noise reaches twofold.
SCREEN_RATIO = 4.0
#: The round number of samples taken before the race.
SCREENING = -1


def first_look(call: Callable[[], Any], clock: Clock) -> float:
    """The better of two calls, in seconds."""
    seconds = []
    for _ in range(2):
        clock.synchronize()
        start = clock.clock()
        call()
        clock.synchronize()
        seconds.append(clock.clock() - start)
    return max(min(seconds), 1e-9)


def hopeless(seconds: float, best: float) -> bool:
    """Whether a first look is too far from the best one."""
    return seconds > SCREEN_RATIO * best
