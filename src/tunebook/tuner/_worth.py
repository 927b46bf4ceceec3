"""What a problem's tuning is worth: its share of the model's time, times what can still be gained there."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tunebook.records import Problem, Verdict

#: Nothing is written off: what neighbours say, and tactics that were not reached, count at least for this gain.
MIN_GAIN = 0.1
#: The least expected loss of what is unresolved: verdicts of older versions do not tell theirs.
MIN_LOSS = 1e-3
#: The least weight of a problem, in seconds of the default.
MIN_WEIGHT = 1e-6


def worth(weight: float, gain: float, before: Verdict | None = None) -> float:
    """Seconds that may be saved: those that the problem takes by now (`before` tells how much less than the default)."""
    return max(weight, MIN_WEIGHT) * gain / (before.speedup if before is not None else 1.0)


def expected_gain(problem: Problem, settled: Iterable[Verdict]) -> float:
    """The share of the default's time that tuning a problem is expected to save: 1 where nothing is known.

    Else what was saved at most (the interval's upper end) on the nearest of the `settled` problems of its family, by size.
    """
    size = math.prod(dim.size for dim in problem.dims)
    nearest = min((v for v in settled if v.rounds), key=lambda v: (_distance(v, size), v.problem), default=None)
    return 1.0 if nearest is None else max(MIN_GAIN, 1.0 - 1.0 / max(1.0, nearest.high))


def open_gain(verdict: Verdict) -> float:
    """What may still be gained where a verdict is unresolved: all if it was left out, else the loss to be expected.

    The share of the tactics that were not tried counts for `MIN_GAIN`.
    """
    if not verdict.rounds:
        return 1.0
    unseen = 1.0 - verdict.seen / verdict.space if verdict.space else 0.0
    return min(1.0, max(verdict.loss, MIN_LOSS) + MIN_GAIN * unseen)


def _distance(verdict: Verdict, size: int) -> float:
    return abs(math.log(math.prod(dim.size for dim in Problem.parse(verdict.problem).dims) / size))
