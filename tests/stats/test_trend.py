"""A trend by ranks: its score against the definition, and how often noise alone looks like one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.stats import trend_score


def test_a_score_has_the_mean_and_spread_that_all_orders_give() -> None:
    """Over every order of six values the sum of the rises' signs has the variance of the formula."""
    sums = [
        sum((b > a) - (b < a) for a, b in itertools.combinations(order, 2))
        for order in itertools.permutations(range(6))
    ]
    spread = math.sqrt(np.var(sums))
    assert trend_score(np.arange(6.0)) == pytest.approx((max(sums) - 1) / spread)


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=30))
def test_the_score_turns_with_the_values_and_ignores_their_scale(values: list[float]) -> None:
    data = np.array(values)
    score = trend_score(data)
    assert trend_score(data[::-1]) == pytest.approx(-score)
    assert trend_score(-data) == pytest.approx(-score)
    assert trend_score(8 * data) == pytest.approx(score)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 1.0], [3.0, 3.0, 3.0]])
def test_where_nothing_can_be_told_the_score_is_nothing(values: list[float]) -> None:
    assert trend_score(np.array(values)) == 0


def test_noise_alone_seldom_looks_like_a_trend() -> None:
    rng = np.random.default_rng(0)
    scores = [trend_score(rng.standard_cauchy(30)) for _ in range(2000)]
    assert np.mean(np.abs(scores) >= 3) <= 0.006
    assert np.mean(np.abs(scores) >= 1.96) == pytest.approx(0.05, abs=0.015)
