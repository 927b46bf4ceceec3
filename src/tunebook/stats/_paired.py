"""Estimates from paired rounds: medians, their intervals, the leader after centring, the expected loss of choosing now."""

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
    tail, k, below = (1 - confidence) / 2, 0, 0.0
    while k < count // 2:
        below += math.comb(count, k) * 0.5**count
        if below > tail:
            break
        k += 1
    k = max(k, 1)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return Interval(middle, ordered[k - 1], ordered[count - k])


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


def expected_loss(logs: Matrix, leader: int, rng: np.random.Generator, draws: int = 200) -> float:
    """What choosing `leader` now is expected to cost in log time, by a bootstrap over rounds.

    In each draw the rounds are resampled, the best tactic of that draw found, and the leader's distance to it taken; the
    mean of these distances is the loss (Chick & Inoue's opportunity cost, with the bootstrap as the posterior).
    """
    values = centred(logs)
    rounds = values.shape[1]
    picks = rng.integers(0, rounds, size=(draws, rounds))
    medians = np.median(values[:, picks], axis=2)
    return float(np.mean(medians[leader] - medians.min(axis=0)))


def block_inflation(values: Sequence[float] | Matrix, block: int = 10) -> float:
    """The variance of block means over what independent values would give; 1 without dependence, 0 below three blocks."""
    data = np.asarray(values, dtype=float)
    blocks = len(data) // block
    if blocks < 3:
        return 0.0
    means = data[: blocks * block].reshape(blocks, block).mean(axis=1)
    independent = data.var(ddof=1) / block
    return float(means.var(ddof=1) / independent) if independent > 0 else 0.0
