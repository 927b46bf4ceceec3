"""Statistics of paired timings: intervals without assumptions on the noise, and tests that may be stopped at any time."""

from tunebook.stats._betting import medians_of, sign_evidence
from tunebook.stats._paired import Interval, Matrix, centred, centred_medians, median_interval, ratio_interval
from tunebook.stats._shift import shift_evidence
from tunebook.stats._trend import trend_score
from tunebook.stats._twoway import Fit, expected_losses, two_way

__all__ = [
    "Fit",
    "Interval",
    "Matrix",
    "centred",
    "centred_medians",
    "expected_losses",
    "median_interval",
    "medians_of",
    "ratio_interval",
    "shift_evidence",
    "sign_evidence",
    "trend_score",
    "two_way",
]
