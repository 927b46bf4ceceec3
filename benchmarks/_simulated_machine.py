"""A made-up machine: its time passes in calls alone, and its noise is drawn beforehand, call by call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

#: The noise of one sample, as the standard deviation of its logarithm.
SIGMA = 0.12
TACTICS = 8
ROUNDS = 60
#: 30 % slower over so many samples (fifteen rounds of eight), then steady.
DRIFT, DRIFT_SAMPLES = math.log(1.3), 120
#: The slow mode of a clock with two speeds, and the mean number of samples that it stays in one of them.
SLOW_MODE = math.log(1.5)
LONG_DWELL, SHORT_DWELL = 80, 8
AUTOCORRELATION = 0.3

Samples = npt.NDArray[np.float64]

WORLDS = {
    "plain": "",
    "drift": "30 % slower over the first 15 rounds",
    "drift within a round": "30 % slower over 8 samples, then fast again",
    "spikes 1 %": "1 % of samples take 3 to 10 times as long",
    "spikes 5 %": "5 %",
    "spikes 20 %": "20 %: beyond what is asked",
    "bimodal": "two speeds, 1 : 1.5, switching every 80 samples in the mean",
    "bimodal within a round": "the same, every 8 samples",
    "autocorrelation": "0.3 from sample to sample",
}


def noise(world: str, count: int, rng: np.random.Generator) -> Samples:
    """The log of what each of `count` samples, in order of time, takes beyond its tactic's own time."""
    values = rng.standard_normal(count)
    if world == "autocorrelation":
        step = math.sqrt(1 - AUTOCORRELATION**2)
        for i in range(1, count):
            values[i] = AUTOCORRELATION * values[i - 1] + step * values[i]
    values *= SIGMA
    place = np.arange(count)
    if world == "drift":
        values += DRIFT * np.minimum(1, place / DRIFT_SAMPLES)
    elif world == "drift within a round":
        values += DRIFT * (place % TACTICS) / (TACTICS - 1)
    elif world.startswith("spikes"):
        hit = rng.random(count) < float(world.split()[1]) / 100
        values += hit * np.log(rng.uniform(3, 10, count))
    elif world.startswith("bimodal"):
        dwell = SHORT_DWELL if world.endswith("round") else LONG_DWELL
        values += SLOW_MODE * ((np.cumsum(rng.random(count) < 1 / dwell) + rng.integers(2)) % 2)
    elif world not in ("plain", "autocorrelation"):
        raise ValueError(f"no world {world!r}; there are {', '.join(WORLDS)}")
    return values


class Machine:
    """A clock that is moved by calls: the i-th call takes its tactic's time times the i-th factor."""

    def __init__(self, factors: Samples) -> None:
        self._factors = factors.tolist()
        self._now = 0.0
        self.calls = 0

    def clock(self) -> float:
        return self._now

    def synchronize(self) -> None:
        pass

    def work(self, seconds: float) -> None:
        self._now += seconds * self._factors[self.calls]
        self.calls += 1


class Simulated:
    """A tactic that takes `seconds` on a quiet machine."""

    bytes = 0
    flush = None

    def __init__(self, machine: Machine, name: str, seconds: float) -> None:
        self.name = name
        self.calls: Sequence[Callable[[], Any]] = (lambda: machine.work(seconds),)
