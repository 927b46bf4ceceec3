"""Student's t: tail and quantile, without a library of special functions."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()
_STEPS = 200
_MANY = 1e6  # degrees of freedom that are as good as infinite
_PRECISION = 1e-14
_TINY = 1e-300


def t_tail(score: float, freedom: float) -> float:
    """P(|T| ≥ |score|) for Student's t with `freedom` degrees of freedom; normal where that is infinite.

    I_x(ν/2, 1/2) with x = ν/(ν + t²), the regularised incomplete beta function (Abramowitz & Stegun, 26.7.1 and 26.5.3).
    """
    if not freedom > 0:
        raise ValueError(f"{freedom} degrees of freedom")
    if math.isinf(score):
        return 0.0
    if freedom >= _MANY:
        return math.erfc(abs(score) / math.sqrt(2))
    return _beta_share(
        freedom / 2, 0.5, freedom / (freedom + score * score), 1 / (1 + freedom / (score * score or _TINY))
    )


def t_quantile(confidence: float, freedom: float) -> float:
    """The score that |T| stays below with probability `confidence`: 2.228 for 0.95 and 10 degrees of freedom."""
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence}")
    return _quantile(confidence, round(freedom, 6) if freedom < _MANY else math.inf)


@lru_cache(maxsize=4096)
def _quantile(confidence: float, freedom: float) -> float:
    """By Newton's method from the normal quantile: the tail is convex beyond the centre, so that no step goes too far."""
    score, wanted = _NORMAL.inv_cdf((1 + confidence) / 2), 1 - confidence
    if math.isinf(freedom):
        return score
    log_height = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(math.pi * freedom) / 2
    for _ in range(_STEPS):
        density = 2 * math.exp(log_height - (freedom + 1) / 2 * math.log1p(score * score / freedom))
        step = (t_tail(score, freedom) - wanted) / density
        score += step
        if abs(step) <= 1e-9 * score:
            break
    return score


def _beta_share(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function I_x(a, b); `rest` is 1 − x, given apart since the difference would lose it."""
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _beta_share(b, a, rest, x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    return min(1.0, math.exp(log_front) / (a * _fraction(a, b, x)))


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), evaluated by the modified Lentz method."""
    value = numerator = 1.0
    denominator = 0.0
    for step in range(1, _STEPS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1 / (1 + term * denominator or _TINY)
        numerator = 1 + term / numerator or _TINY
        value *= numerator * denominator
        if abs(numerator * denominator - 1) < _PRECISION:
            break
    return value
