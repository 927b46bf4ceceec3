"""Statistics of paired timings: intervals without assumptions on the noise, and tests that may be stopped at any time."""

from tunebook.stats._betting import medians_of, sign_evidence, slower_evidence, tail_evidence
from tunebook.stats._paired import (
    Interval,
    Matrix,
    block_inflation,
    centred,
    centred_medians,
    expected_loss,
    median_interval,
    ratio_interval,
)

__all__ = [
    "Interval",
    "Matrix",
    "block_inflation",
    "centred",
    "centred_medians",
    "expected_loss",
    "median_interval",
    "medians_of",
    "ratio_interval",
    "sign_evidence",
    "slower_evidence",
    "tail_evidence",
]
