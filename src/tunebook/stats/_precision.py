"""How well the median of paired log-ratios is known: its variance, from the rounds themselves or from its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tunebook.stats._moderated import Variance
from tunebook.stats._paired import Matrix, order_interval
from tunebook.stats._student import t_quantile
from tunebook.stats._twoway import MAD_EFFICIENCY, OUTLYING, inflation

_TO_SIGMA = 1.4826  # the median absolute deviation of a normal variable is its standard deviation over this
_OF_MEDIAN = math.pi / 2  # the variance of a median over that of a mean, under normal noise


def median_variance(slow: Sequence[float] | Matrix, fast: Sequence[float] | Matrix) -> Variance | None:
    """The variance of the median of log(slow/fast) over paired rounds; None for fewer than two rounds.

    π/2 · σ²/n, with σ from the median absolute deviation of the log-ratios (with the small-sample factor n/(n − 0.8) of
    Croux & Rousseeuw, "Time-efficient algorithms for two highly robust estimators of scale", COMPSTAT 1992), widened where
    neighbouring rounds depend on each other as in `two_way`.
    """
    slow_logs, fast_logs = np.log(np.array([slow, fast], dtype=float))
    ratios = slow_logs - fast_logs
    count = len(ratios)
    if count < 2:
        return None
    residuals = ratios - np.median(ratios)
    sigma = _TO_SIGMA * count / (count - 0.8) * float(np.median(np.abs(residuals)))
    pull = np.clip(residuals, -OUTLYING * sigma, OUTLYING * sigma)
    return Variance(_OF_MEDIAN * sigma * sigma / count * inflation(pull[None, :]), freedom(count))


def interval_variance(low: float, high: float, rounds: int) -> Variance | None:
    """The same from an interval that `ratio_interval` gave for so many paired rounds; None for fewer than two rounds."""
    if rounds < 2:
        return None
    _, coverage = order_interval(rounds)
    half = (math.log(high) - math.log(low)) / 2
    return Variance((half / t_quantile(coverage, math.inf)) ** 2, freedom(rounds))


def freedom(rounds: int) -> float:
    """The degrees of freedom of a variance that rests on the median absolute deviation of so many rounds."""
    return max(1.0, MAD_EFFICIENCY * (rounds - 1))
