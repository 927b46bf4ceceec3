"""Estimates from paired rounds without a model: medians, their intervals, ratios, rounds centred on their own median."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A value inside its interval; for ratios, all three are ratios."""

    value: float
    low: float
    high: float


def median_interval(values: Sequence[float] | Matrix, confidence: float = 0.95) -> Interval:
    """The sample median with the distribution-free interval between two order statistics.

    The interval [x_(k), x_(n+1-k)] covers the median with probability 1 - 2 P(Bin(n, 1/2) < k); k is the largest for which
    that is at least `confidence`. Below six values no such pair exists at 95 %, and the whole range is given
    (David & Nagaraja, Order Statistics, section 7.1).
    """
    ordered = sorted(float(value) for value in values)
    count = len(ordered)
    if not count:
        raise ValueError("the median of nothing")
    k, _ = order_interval(count, confidence)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return Interval(middle, ordered[k - 1], ordered[count - k])


def order_interval(count: int, confidence: float = 0.95) -> tuple[int, float]:
    """Of `count` values, the k of `median_interval`, and the probability with which that interval covers the median."""
    tail, k, below = (1 - confidence) / 2, 0, 0.0
    # Whole numbers: as floats they would be beyond all bounds from some thousand values on.
    ways, all_ways = 1, 2**count
    while k < count // 2:
        more = below + ways / all_ways
        if more > tail:
            break
        below, ways = more, ways * (count - k) // (k + 1)
        k += 1
    return (k, 1 - 2 * below) if k else (1, 1 - 2 * 0.5**count)


def ratio_interval(
    slow: Sequence[float] | Matrix, fast: Sequence[float] | Matrix, confidence: float = 0.95
) -> Interval:
    """The median of slow/fast over paired rounds, with its interval, all as ratios. Both are times of the same rounds."""
    logs = np.log(np.asarray(slow, dtype=float)) - np.log(np.asarray(fast, dtype=float))
    return Interval(*(math.exp(part) for part in median_interval(logs, confidence)))


def centred(logs: Matrix) -> Matrix:
    """Log times [tactics, rounds] less each round's own median: what drifts with the machine falls out."""
    return logs - np.median(logs, axis=0, keepdims=True)


def centred_medians(logs: Matrix) -> Matrix:
    """The median over rounds of the centred log times, a value a tactic. The least is the leader."""
    return np.asarray(np.median(centred(logs), axis=1), dtype=float)
