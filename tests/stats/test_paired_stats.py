"""Estimates from paired rounds: what an interval promises it covers, and each estimate is the one that its words say."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.stats import (
    Matrix,
    centred,
    centred_medians,
    median_interval,
    ratio_interval,
)

SECONDS = st.floats(1e-9, 1e3)
VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def coverage(count: int, low: int, high: int) -> Fraction:
    """P(x_(low) ≤ median ≤ x_(high)) for continuous values: the number below the median is Bin(count, 1/2). One-based."""
    inside = sum(math.comb(count, below) for below in range(low, high))
    return Fraction(inside, 2**count)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 8, 9, 10, 20, 40, 200])
def test_an_interval_of_the_median_covers_it_and_is_the_shortest_that_does(count: int, confidence: float) -> None:
    value, low, high = median_interval([float(i) for i in range(1, count + 1)], confidence)
    first, last = int(low), int(high)
    assert first + last == count + 1, "not symmetric"
    assert value == (count + 1) / 2
    if coverage(count, 1, count) < confidence:
        assert (first, last) == (1, count), "the whole range, where no interval exists"
        return
    assert coverage(count, first, last) >= confidence
    if first + 1 < last - 1:
        assert coverage(count, first + 1, last - 1) < confidence


def test_six_values_are_the_fewest_that_have_an_interval_at_95_percent() -> None:
    assert coverage(6, 1, 6) >= 0.95
    assert coverage(5, 1, 5) < 0.95
    assert median_interval([1, 2, 3, 4, 5, 6])[1:] == (1.0, 6.0)
    assert median_interval([1, 2, 3, 4, 5, 6, 7, 8, 9])[1:] == (2.0, 8.0)


@given(VALUES)
def test_a_median_is_inside_its_interval_and_no_order_matters(values: list[float]) -> None:
    value, low, high = median_interval(values)
    assert low <= value <= high
    assert value == pytest.approx(float(np.median(values)))
    assert {low, high} <= set(values)
    assert median_interval(values[::-1]) == (value, low, high)


def test_thousands_of_values_have_an_interval_of_the_width_that_a_normal_approximation_says() -> None:
    count = 5000
    value, low, high = median_interval([float(i) for i in range(1, count + 1)])
    assert value == (count + 1) / 2
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(count) / 2, rel=0.02)


def test_the_median_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        median_interval([])


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=30))
def test_a_ratio_is_the_median_of_the_rounds_own_ratios(rounds: list[tuple[float, float]]) -> None:
    slow, fast = [pair[0] for pair in rounds], [pair[1] for pair in rounds]
    ratios = sorted(a / b for a, b in rounds)
    found = ratio_interval(slow, fast)
    middle = math.sqrt(ratios[(len(ratios) - 1) // 2] * ratios[len(ratios) // 2])
    assert found.value == pytest.approx(middle)
    assert found.low <= found.value <= found.high
    logs = median_interval([math.log(ratio) for ratio in ratios])
    assert (found.low, found.high) == pytest.approx((math.exp(logs.low), math.exp(logs.high)))
    turned = ratio_interval(fast, slow)
    assert turned == pytest.approx((1 / found.value, 1 / found.high, 1 / found.low))


def test_a_ratio_pairs_rounds_so_that_drift_falls_out() -> None:
    fast = [2.0**i for i in range(12)]
    assert ratio_interval([1.1 * second for second in fast], fast) == pytest.approx((1.1, 1.1, 1.1))


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 1 << 32))
def test_centring_takes_each_rounds_own_median_away(tactics: int, rounds: int, seed: int) -> None:
    logs = np.random.default_rng(seed).normal(size=(tactics, rounds))
    found = centred(logs)
    for r in range(rounds):
        column = sorted(logs[:, r])
        middle = (column[(tactics - 1) // 2] + column[tactics // 2]) / 2
        assert found[:, r] == pytest.approx(logs[:, r] - middle)
    assert centred_medians(logs) == pytest.approx([sorted_median(row) for row in found])
    drift = np.linspace(-5, 5, rounds)
    assert centred_medians(logs + drift) == pytest.approx(centred_medians(logs), abs=1e-9)


def sorted_median(row: Matrix) -> float:
    ordered = sorted(map(float, row))
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def test_the_leader_is_found_through_a_drift_that_hides_it() -> None:
    """Round after round the machine slows down by half; plain medians of unequal rounds would mislead, centred ones do not."""
    rng = np.random.default_rng(1)
    drift = np.cumsum(np.full(20, math.log(1.5)))
    logs = drift + rng.normal(0, 0.01, (3, 20)) + np.array([[0.05], [0.0], [0.1]])
    assert int(centred_medians(logs).argmin()) == 1
    assert centred_medians(logs) == pytest.approx([0.0, -0.05, 0.05], abs=0.02)
