"""Anytime-valid tests on paired log-ratios: evidence that may be looked at after every round without inflating errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: H0 of the tail test: at most this share of rounds has the tactic more than twice as slow.
TAIL_SHARE = 0.05
#: The share of the capital that the tail test bets in each round.
TAIL_BET = 0.9
#: A tactic is "twice as slow" in a round when its log-ratio exceeds this.
TAIL_LOG = math.log(2.0)


def sign_evidence(above: int, count: int) -> float:
    """The e-value against H0 "the median is at most the threshold", after `above` of `count` signs were above it.

    Under H0 a sign is above with probability at most 1/2. The alternative is a uniform mixture over (1/2, 1), so the
    e-value is 2^(n+1) B(k+1, n-k+1) P(Bin(n+1, 1/2) ≤ k), an e-process in n (the one-sided beta-binomial mixture of
    Howard & Ramdas, "Sequential estimation of quantiles", Bernoulli 2022).
    """
    if not 0 <= above <= count:
        raise ValueError(f"{above} of {count} signs")
    log_beta = math.lgamma(above + 1) + math.lgamma(count - above + 1) - math.lgamma(count + 2)
    upper = sum(math.comb(count + 1, i) for i in range(above + 1)) * 0.5 ** (count + 1)
    return math.exp((count + 1) * math.log(2) + log_beta) * upper


def tail_evidence(above: int, count: int) -> float:
    """The e-value against H0 "at most 5 % of the rounds exceed ln 2", betting a fixed share each round.

    The product of 1 + bet·(x/share − 1): a tactic that is several times slower goes after two or three rounds.
    """
    hit = 1 + TAIL_BET * (1 / TAIL_SHARE - 1)
    return float(hit**above * (1 - TAIL_BET) ** (count - above))


def slower_evidence(log_ratios: Sequence[float], margin: float) -> float:
    """The e-value against "this tactic is at most `margin` (a log-ratio) slower": the mean of the sign and the tail test."""
    count = len(log_ratios)
    sign = sign_evidence(sum(ratio > margin for ratio in log_ratios), count)
    tail = tail_evidence(sum(ratio > TAIL_LOG for ratio in log_ratios), count)
    return (sign + tail) / 2


def medians_of(values: Sequence[float], group: int) -> list[float]:
    """Medians of consecutive groups, the unfinished last one left out: what is bet on where rounds depend on each other."""
    out = []
    for start in range(0, len(values) - group + 1, group):
        part = sorted(values[start : start + group])
        out.append((part[(group - 1) // 2] + part[group // 2]) / 2)
    return out
