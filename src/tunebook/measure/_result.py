"""What a race leaves behind: every tactic's samples, who survived and why it ended, and how the machine drifted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tunebook.measure._candidate import Candidate
from tunebook.measure._check import Finding
from tunebook.stats import Matrix, trend_score, two_way

#: Fewer rounds show no drift.
DRIFT_ROUNDS = 8
#: The first and the last of so many parts of the rounds are compared.
DRIFT_PARTS = 3
#: A trend is real from this standard score on: noise alone reaches it in three races of a thousand.
DRIFT_SCORE = 3.0
#: A drift of less than this share is not worth a word: it hits all tactics of a round alike.
DRIFT_LEAST = 0.05


@dataclass
class Entry:
    """A tactic's samples so far: seconds a call, and the round of each."""

    candidate: Candidate
    samples: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    failed: Finding | None = None

    @property
    def name(self) -> str:
        return self.candidate.name


@dataclass(frozen=True)
class RaceResult:
    """How a race went: every entry with its samples, who survived, why it stopped, and what choosing now may cost.

    `stopped` is "one left", "shown" (no survivor is more than `EQUIVALENCE` faster than the leader), "loss" (choosing now
    is expected to cost at most `ACCEPTED_LOSS`), "rounds" or "time". `loss` is what choosing the leader is expected to
    cost, as a log-ratio, `losses` the same for every survivor. `passed_over` left early, without being shown to be slower.
    """

    entries: tuple[Entry, ...]
    survivors: tuple[Entry, ...]
    default: Entry
    rounds: int
    stopped: str
    loss: float
    losses: tuple[float, ...]
    passed_over: tuple[str, ...] = ()

    @property
    def drift(self) -> float:
        """The machine's time in the last third of the rounds over the first third, as a ratio; 1 below `DRIFT_ROUNDS`.

        It is seen in all tactics that took part in every round, the default among them.
        """
        return _ratio(_levels(self))


def drifted(result: RaceResult) -> float | None:
    """The drift where it is real (a trend over the rounds, by ranks) and of some size, else None."""
    levels = _levels(result)
    ratio = _ratio(levels)
    real = len(levels) >= DRIFT_ROUNDS and abs(trend_score(levels)) >= DRIFT_SCORE
    return ratio if real and max(ratio, 1 / ratio) >= 1 + DRIFT_LEAST else None


def _levels(result: RaceResult) -> Matrix:
    """The machine's log time in each round."""
    throughout = [e for e in result.entries if e is result.default or any(e is s for s in result.survivors)]
    return two_way(log_times(throughout)).levels


def _ratio(levels: Matrix) -> float:
    part = len(levels) // DRIFT_PARTS
    if len(levels) < DRIFT_ROUNDS:
        return 1.0
    return float(np.exp(np.median(levels[-part:]) - np.median(levels[:part])))


def log_times(entries: Sequence[Entry]) -> Matrix:
    """The entries' samples as logarithms [entries, rounds]; all have one in each round."""
    return np.asarray(np.log(np.array([entry.samples for entry in entries], dtype=float)))
