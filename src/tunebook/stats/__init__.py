"""Statistics of paired timings: intervals without assumptions on the noise, and tests that may be stopped at any time."""

from tunebook.stats._betting import medians_of, sign_evidence
from tunebook.stats._discoveries import adjusted
from tunebook.stats._moderated import Prior, Variance, common_variance
from tunebook.stats._paired import Interval, Matrix, centred, centred_medians, median_interval, ratio_interval
from tunebook.stats._precision import interval_variance, median_variance
from tunebook.stats._shift import shift_evidence
from tunebook.stats._student import t_quantile, t_tail
from tunebook.stats._trend import trend_score
from tunebook.stats._twoway import Fit, expected_losses, two_way

__all__ = [
    "Fit",
    "Interval",
    "Matrix",
    "Prior",
    "Variance",
    "adjusted",
    "centred",
    "centred_medians",
    "common_variance",
    "expected_losses",
    "interval_variance",
    "median_interval",
    "median_variance",
    "medians_of",
    "ratio_interval",
    "shift_evidence",
    "sign_evidence",
    "t_quantile",
    "t_tail",
    "trend_score",
    "two_way",
]
