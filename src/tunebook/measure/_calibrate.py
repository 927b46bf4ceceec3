"""Calibration: warm up until steady, then choose how many calls make a sample that is long against the clock's noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tunebook.measure._candidate import Candidate, Clock, sample

#: The least duration of the default's sample, in seconds: far above the clock's step and a timer interrupt.
MIN_SAMPLE_S = 1e-3
#: Warm-up ends when two samples in a row lie within this ratio of the least seen.
STEADY_RATIO = 1.10
MAX_WARM_UP = 12
#: Warm-up ends in any case after this long, in seconds.
MAX_WARM_UP_S = 0.5


@dataclass(frozen=True)
class Calibration:
    """`inner` calls make a sample; `seconds` is the default's time a call; `steady` whether it settled while warming up."""

    inner: int
    seconds: float
    steady: bool


def calibrate(default: Candidate, clock: Clock, min_sample_s: float = MIN_SAMPLE_S) -> Calibration:
    """Warm the default up and choose the inner count: whole turns round the replicas where a turn is short enough."""
    replicas = len(default.calls)
    least, close, seen, wanted = math.inf, 0, 0, 2
    started = clock.clock()
    while seen < MAX_WARM_UP and close < wanted:
        inner = replicas if not math.isfinite(least) or least * replicas < min_sample_s else 1
        seconds = sample(default, clock, inner, seen)
        seen += 1
        near = least / STEADY_RATIO <= seconds <= least * STEADY_RATIO  # much less than before is no rest either
        close = close + 1 if near else 0
        least = min(least, seconds)
        if clock.clock() - started > MAX_WARM_UP_S and seen >= 2:
            wanted = 1  # where a call is long, two that agree must do
            break
    least = max(least, 1e-9)
    inner = max(1, math.ceil(min_sample_s / least))
    if inner > replicas // 2:
        inner = math.ceil(inner / replicas) * replicas
    return Calibration(inner=inner, seconds=least, steady=close >= wanted)
