"""Anytime-valid evidence from the signs of paired log-ratios: it may be looked at after every round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=1 << 16)
def sign_evidence(above: int, count: int) -> float:
    """The e-value against H0 "the median is at most the threshold", after `above` of `count` signs were above it.

    Under H0 a sign is above with probability at most 1/2. The alternative is a uniform mixture over (1/2, 1), so the
    e-value is 2^(n+1) B(k+1, n-k+1) P(Bin(n+1, 1/2) ≤ k), an e-process in n (the one-sided beta-binomial mixture of
    Howard & Ramdas, "Sequential estimation of quantiles", Bernoulli 28(3), 2022).
    """
    if not 0 <= above <= count:
        raise ValueError(f"{above} of {count} signs")
    log_beta = math.lgamma(above + 1) + math.lgamma(count - above + 1) - math.lgamma(count + 2)
    upper: float = sum(math.comb(count + 1, i) for i in range(above + 1)) * 0.5 ** (count + 1)
    return math.exp((count + 1) * math.log(2) + log_beta) * upper


def medians_of(values: Sequence[float], group: int) -> list[float]:
    """Medians of consecutive groups, the unfinished last one left out: what is bet on where rounds depend on each other."""
    out = []
    for start in range(0, len(values) - group + 1, group):
        part = sorted(values[start : start + group])
        out.append((part[(group - 1) // 2] + part[group // 2]) / 2)
    return out
