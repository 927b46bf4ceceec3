"""Evidence from the size of paired log-ratios under a noise model with outliers: much faster than signs alone."""

from __future__ import annotations

import math

import numpy as np

from tunebook.stats._paired import Matrix

#: The shifts of the alternative, as log-ratios: from 2 % to 36 times, each weighted alike.
SHIFTS: Matrix = np.geomspace(0.02, 3.6, 22)
#: The width of each of these shifts, as a share of it: together they leave no gap.
SHIFT_WIDTH = 0.13
#: How far below the margin H0 is searched for its most likely shift.
NULL_DEPTHS: Matrix = np.array([0.0, 0.01, 0.04, 0.1, 0.3, 1.0])
#: An outlier's log-ratio may lie anywhere within this of 0, on either side: forty times as slow or as fast.
OUTLIER_REACH = math.log(40.0)
#: Log-ratios are not taken to be better known than this: the clock and the fit have their own limits.
LEAST_SCALE = 0.01
#: Evidence is cut off here, before its exponential overflows.
MOST_LOG_EVIDENCE = 600.0
#: Degrees of freedom beyond which the noise is taken as normal.
MOST_FREEDOM = 30.0


def shift_evidence(log_ratios: Matrix, margin: float, *, scale: float, freedom: float, outliers: float) -> float:
    """The e-value against H0 "the typical log-ratio is at most `margin`", under a model of the noise.

    A log-ratio is Student's t about the typical one, with `scale` and `freedom` (degrees of freedom, those of the scale's own
    estimate), or with probability `outliers` anywhere within `OUTLIER_REACH` of 0. So a single outlier counts for little, and
    several large ratios that agree count for much: a tactic several times slower goes after three rounds. The numerator is
    the mean likelihood over `SHIFTS`, each blurred by its width, the denominator the greatest one that H0 allows, which makes
    it an e-value for any alternative: universal inference, Wasserman, Ramdas & Balakrishnan, PNAS 117(29), 2020. It is one as
    far as the model holds; the scale comes from the data, so what it promises is tested by simulation.
    """
    scale, freedom = max(scale, LEAST_SCALE), min(max(freedom, 1.0), MOST_FREEDOM)
    centres = np.concatenate((margin - NULL_DEPTHS, margin + SHIFTS))
    scales = np.hypot(scale, np.concatenate((np.zeros(len(NULL_DEPTHS)), SHIFT_WIDTH * SHIFTS)))
    height = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    squares = np.square((log_ratios[:, None] - centres) / scales) / freedom
    density = (1 - outliers) * height / scales * (1 + squares) ** (-(freedom + 1) / 2) + outliers / (2 * OUTLIER_REACH)
    logs = np.log(density).sum(axis=0)
    null = float(logs[: len(NULL_DEPTHS)].max())
    return float(np.exp(np.minimum(logs[len(NULL_DEPTHS) :] - null, MOST_LOG_EVIDENCE)).mean())
