"""Calibration: warm up until steady, then choose how many calls make a sample that is long against the clock's noise."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from tunebook.measure._candidate import Candidate, Clock, most_calls, sample

#: The least duration of the default's sample, in seconds: far above the clock's step and a timer interrupt.
MIN_SAMPLE_S = 1e-3
#: Steady is when the medians of the last samples and of as many before them lie within this ratio.
STEADY_RATIO = 1.10
#: How many samples each of these two medians is of.
STEADY_SAMPLES = 3
MAX_WARM_UP = 24
#: Warm-up ends in any case after this long, in seconds.
MAX_WARM_UP_S = 0.5


@dataclass(frozen=True)
class Calibration:
    """`inner` calls make a sample; `seconds` is the default's time a call; `steady` whether it settled while warming up."""

    inner: int
    seconds: float
    steady: bool


def calibrate(default: Candidate, clock: Clock, min_sample_s: float = MIN_SAMPLE_S) -> Calibration:
    """Warm the default up and choose the inner count: whole turns round the replicas where a turn is short enough.

    Warm-up goes on until two halves of a sliding window agree twice in a row, so that the state is seen to be steady and not
    assumed after a count (Georges, Buytaert & Eeckhout, OOPSLA 2007; Kalibera & Jones, "Rigorous benchmarking in reasonable
    time", ISMM 2013). Medians of three let one outlier pass. It ends in any case after `MAX_WARM_UP` samples or
    `MAX_WARM_UP_S`; where the time allowed less, halves of what there is are compared once.
    """
    started = clock.clock()
    replicas = len(default.calls)
    samples = [max(sample(default, clock, replicas, 0), 1e-9)]  # the first one meets every replica
    steady = False
    while not steady and len(samples) < MAX_WARM_UP:
        if len(samples) >= 2 and clock.clock() - started > MAX_WARM_UP_S:
            steady = _steady(samples, min(STEADY_SAMPLES, len(samples) // 2))
            break
        inner = replicas if samples[-1] * replicas < min_sample_s else 1
        samples.append(max(sample(default, clock, inner, len(samples)), 1e-9))
        steady = _steady(samples, STEADY_SAMPLES) and _steady(samples[:-1], STEADY_SAMPLES)
    level = statistics.median(samples[-min(STEADY_SAMPLES, len(samples)) :])
    return Calibration(inner=_inner(default, level, min_sample_s), seconds=level, steady=steady)


def _steady(samples: list[float], half: int) -> bool:
    """Whether the medians of the last `half` samples and of the `half` before them agree."""
    if len(samples) < 2 * half:
        return False
    last, before = statistics.median(samples[-half:]), statistics.median(samples[-2 * half : -half])
    return max(last, before) <= STEADY_RATIO * min(last, before)


def _inner(candidate: Candidate, seconds: float, min_sample_s: float) -> int:
    """How many calls of `seconds` make a sample."""
    replicas = len(candidate.calls)
    inner = max(1, math.ceil(min_sample_s / seconds))
    if inner > replicas // 2:
        inner = math.ceil(inner / replicas) * replicas
    return most_calls(candidate, inner)
