"""Whether values rise or fall over time: a test on ranks, which asks nothing of the noise but its independence."""

from __future__ import annotations

import math

import numpy as np

from tunebook.stats._paired import Matrix


def trend_score(values: Matrix) -> float:
    """The standard score of Mann and Kendall's trend test: positive where later values tend to be greater.

    Kendall, Rank Correlation Methods, 4th edition, 1975; Mann, "Nonparametric tests against trend", Econometrica 13(3),
    1945. With continuity correction; ties narrow the variance little and are ignored, which is on the safe side. 0 below
    three values.
    """
    count = len(values)
    if count < 3:
        return 0.0
    rises = np.sign(values[None, :] - values[:, None])
    score = float(np.triu(rises, 1).sum())
    spread = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return math.copysign(max(abs(score) - 1, 0.0), score) / spread
