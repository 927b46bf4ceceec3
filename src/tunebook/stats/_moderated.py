"""Variances of many alike quantities, each known from a few values: what all have in common steadies each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_LARGE = 6.0
_HALVINGS = 50


class Variance(NamedTuple):
    """An estimated variance, and the degrees of freedom that it is known with."""

    value: float
    freedom: float


class Prior(NamedTuple):
    """What the true variances have in common: `value` is the typical one, known as if from `freedom` values more.

    Infinite where the estimates differ no more than chance lets them. `pooled` are the degrees of freedom of all estimates
    together: nothing is better known than by all of them.
    """

    value: float
    freedom: float
    pooled: float

    def moderate(self, own: Variance) -> Variance:
        """A variance between its own estimate and the typical one, each weighted by its degrees of freedom."""
        freedom = self.freedom + own.freedom
        if math.isinf(self.freedom):
            return Variance(self.value, self.pooled)
        return Variance((self.freedom * self.value + own.freedom * own.value) / freedom, min(freedom, self.pooled))


def common_variance(estimates: Sequence[Variance]) -> Prior | None:
    """The prior that a scaled inverse χ² distribution of the true variances gives; None without an estimate above 0.

    By the moments of log s²: Smyth, "Linear models and empirical Bayes methods for assessing differential expression in
    microarray experiments", Statistical Applications in Genetics and Molecular Biology 3(1), 2004, section 6.2. A variance
    of exactly 0 (a quantity that cannot vary) says nothing of the others and is left out.
    """
    known = [one for one in estimates if one.value > 0 and one.freedom > 0]
    if not known:
        return None
    logs = [math.log(one.value) - digamma(one.freedom / 2) + math.log(one.freedom / 2) for one in known]
    centre = sum(logs) / len(logs)
    excess, pooled = -1.0, sum(one.freedom for one in known)
    if len(known) > 1:
        spread = sum((value - centre) ** 2 for value in logs) / (len(logs) - 1)
        excess = spread - sum(trigamma(one.freedom / 2) for one in known) / len(known)
    if excess <= 0:
        return Prior(math.exp(centre), math.inf, pooled)
    half = _inverse_trigamma(excess)
    return Prior(math.exp(centre + digamma(half) - math.log(half)), 2 * half, pooled)


def digamma(x: float) -> float:
    """ψ(x) for x > 0: the recurrence up to 6, then the asymptotic series (Abramowitz & Stegun, 6.3.5 and 6.3.18)."""
    below = 0.0
    while x < _LARGE:
        below -= 1 / x
        x += 1
    square = 1 / (x * x)
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132))))
    return below + math.log(x) - 0.5 / x - series


def trigamma(x: float) -> float:
    """ψ′(x) for x > 0, in the same way (Abramowitz & Stegun, 6.4.6 and 6.4.12)."""
    below = 0.0
    while x < _LARGE:
        below += 1 / (x * x)
        x += 1
    square = 1 / (x * x)
    series = square * (1 / 6 - square * (1 / 30 - square * (1 / 42 - square * (1 / 30 - square * 5 / 66))))
    return below + 1 / x + square / 2 + series / x


def _inverse_trigamma(value: float) -> float:
    """The x > 0 with ψ′(x) = `value`, by bisection on the logarithm: ψ′ falls from infinity to 0."""
    low, high = math.log(1e-8), math.log(1e8)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if trigamma(math.exp(middle)) > value else (low, middle)
    return math.exp((low + high) / 2)
