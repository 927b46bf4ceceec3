"""The truth about a problem's tactics, from interleaved rounds of their own, and what a choice costs by it."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from _quality_problems import Candidate

from tunebook.devices import Device
from tunebook.measure import sample

Matrix = npt.NDArray[np.float64]

#: A sample of the truth takes at least this long, in seconds, so that the clock's step does not matter.
MIN_SAMPLE_S = 5e-4
MAX_INNER = 16
#: A tactic that takes this many times the best one's time, after so many rounds, is sampled in every tenth round from then on.
HOPELESS_RATIO = 3.0
HOPELESS_AFTER = 40
HOPELESS_EVERY = 10
#: Two choices whose times differ by more than this, as a log-ratio, are a material flip.
MATERIAL = math.log(1.02)


def inner_count(candidates: Sequence[Candidate], device: Device) -> int:
    """Calls a sample: what makes the fastest tactic's sample long enough."""
    fastest = min(sample(candidate, device, 3, 0) for candidate in candidates)
    return min(MAX_INNER, max(1, math.ceil(MIN_SAMPLE_S / fastest)))


def measure_rounds(
    candidates: Sequence[Candidate],
    device: Device,
    *,
    first: int,
    rounds: int,
    inner: int,
    hopeless: Collection[str],
    rng: random.Random,
) -> Matrix:
    """Seconds a call [tactics, rounds] for the rounds from `first` on, in shuffled order; NaN where a hopeless one rests."""
    seconds = np.full((len(candidates), rounds), np.nan)
    for column in range(rounds):
        number = first + column
        order = [
            row for row, candidate in enumerate(candidates) if candidate.name not in hopeless or is_sampled(number)
        ]
        rng.shuffle(order)
        for row in order:
            seconds[row, column] = sample(candidates[row], device, inner, number * inner)
    return seconds


def is_sampled(number: int) -> bool:
    """Whether a hopeless tactic is sampled in this round: every tenth, even and odd rounds in turn, for both halves."""
    return number % HOPELESS_EVERY == (number // HOPELESS_EVERY) % 2


def hopeless_tactics(names: Sequence[str], seconds: Matrix) -> tuple[str, ...]:
    """Who may rest, given seconds [tactics, rounds] so far; nobody in the first rounds."""
    if seconds.shape[1] < HOPELESS_AFTER:
        return ()
    medians = np.nanmedian(seconds, axis=1)
    return tuple(name for name, median in zip(names, medians, strict=True) if median >= HOPELESS_RATIO * medians.min())


class Truth:
    """What `seconds` [tactics, rounds] say: the best is picked on the odd rounds, and regret scored on the even ones."""

    def __init__(self, names: Sequence[str], seconds: Matrix) -> None:
        self.names = tuple(names)
        self.logs: Matrix = np.log(seconds)
        self.medians = dict(zip(self.names, map(float, centred_medians(self.logs)), strict=True))
        self.seconds = dict(zip(self.names, map(float, np.nanmedian(seconds, axis=1)), strict=True))
        picked = centred_medians(self.logs[:, 1::2])
        self.best = self.names[int(picked.argmin())]

    @property
    def rounds(self) -> int:
        return int(self.logs.shape[1])

    @property
    def spread(self) -> float:
        """The slowest tactic's time over the fastest's."""
        return math.exp(max(self.medians.values()) - min(self.medians.values()))

    def gaps(self) -> dict[str, float]:
        """How much slower than the fastest each tactic is, as a share, the fastest first, by all rounds."""
        least = min(self.medians.values())
        return {
            name: math.expm1(self.medians[name] - least) for name in sorted(self.names, key=self.medians.__getitem__)
        }

    def regret(self, choice: str) -> float:
        """The median paired ratio of a choice to the best, less 1. Below 0 where the halves disagree about the best."""
        logs = self.logs[:, 0::2]
        return math.expm1(_paired(logs, self.names.index(choice), self.names.index(self.best)))

    def flips(self, choices: Sequence[str]) -> float:
        """The share of all pairs of tunings whose choices differ materially, by all rounds; 0 for a single tuning."""
        pairs = list(combinations(choices, 2))
        return sum(self.distance(one, two) > MATERIAL for one, two in pairs) / len(pairs) if pairs else 0.0

    def distance(self, one: str, two: str) -> float:
        """How far apart two tactics are, as the absolute median paired log-ratio."""
        return abs(_paired(self.logs, self.names.index(one), self.names.index(two)))


def centred_medians(logs: Matrix) -> Matrix:
    """The median over rounds of the log times less each round's own median over those that were sampled in every round."""
    always = ~np.isnan(logs).any(axis=1)
    return np.asarray(np.nanmedian(logs - np.median(logs[always], axis=0, keepdims=True), axis=1), dtype=float)


def _paired(logs: Matrix, one: int, two: int) -> float:
    return float(np.nanmedian(logs[one] - logs[two])) if one != two else 0.0
