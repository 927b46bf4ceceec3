"""Moderated variances, and how well a median is known: what they say of made-up noise of known size."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.stats import Variance, common_variance, interval_variance, median_variance, ratio_interval
from tunebook.stats._moderated import digamma, trigamma


def chi_square(rng: random.Random, freedom: float) -> float:
    return rng.gammavariate(freedom / 2, 2)


def estimates(rng: random.Random, typical: float, prior: float, freedom: int, count: int) -> list[Variance]:
    """Variances that scatter about `typical` as a scaled inverse χ² variable with `prior` degrees of freedom does."""
    found = []
    for _ in range(count):
        true = typical if math.isinf(prior) else typical * prior / chi_square(rng, prior)
        found.append(Variance(true * chi_square(rng, freedom) / freedom, freedom))
    return found


@pytest.mark.parametrize(
    ("x", "first", "second"),
    [(1.0, -0.5772156649, math.pi**2 / 6), (0.5, -1.9635100260, math.pi**2 / 2), (10.0, 2.2517525891, 0.1051663357)],
)
def test_digamma_and_trigamma_are_those_of_the_tables(x: float, first: float, second: float) -> None:
    assert digamma(x) == pytest.approx(first, abs=1e-9)
    assert trigamma(x) == pytest.approx(second, abs=1e-8)


@given(st.floats(0.05, 1e4))
def test_their_recurrences(x: float) -> None:
    assert digamma(x + 1) == pytest.approx(digamma(x) + 1 / x, abs=1e-8, rel=1e-9)
    assert trigamma(x + 1) == pytest.approx(trigamma(x) - 1 / x**2, abs=1e-8, rel=1e-6)


@pytest.mark.parametrize("prior", [4.0, 12.0])
def test_the_prior_is_found_again(prior: float) -> None:
    found = common_variance(estimates(random.Random(1), 0.0004, prior, 5, 3000))
    assert found is not None
    assert found.value == pytest.approx(0.0004, rel=0.12)
    assert found.freedom == pytest.approx(prior, rel=0.35)


def test_equal_variances_are_pooled() -> None:
    found = common_variance([Variance(2.0, 5.0)] * 20)
    assert found is not None
    assert math.isinf(found.freedom)
    assert found.moderate(Variance(9.0, 5.0)) == Variance(found.value, 100.0)


def test_moderating_lies_between_the_own_and_the_typical_variance() -> None:
    found = common_variance(estimates(random.Random(2), 1.0, 6.0, 4, 400))
    assert found is not None
    for own in (0.01, 1.0, 50.0):
        value, freedom = found.moderate(Variance(own, 4.0))
        assert min(own, found.value) <= value <= max(own, found.value)
        assert 4.0 < freedom <= 1600.0


def test_nothing_is_known_better_than_by_all_together() -> None:
    found = common_variance([Variance(0.3, 4.0)])
    assert found is not None
    assert found.moderate(Variance(0.3, 4.0)).freedom == 4.0


def test_what_cannot_vary_says_nothing() -> None:
    assert common_variance([]) is None
    assert common_variance([Variance(0.0, 9.0), Variance(0.0, 9.0)]) is None
    with_zero = common_variance([Variance(0.0, 9.0), Variance(2.0, 9.0), Variance(1.0, 9.0)])
    assert with_zero == common_variance([Variance(2.0, 9.0), Variance(1.0, 9.0)])


@pytest.mark.parametrize("rounds", [3, 6, 12, 40])
def test_the_variance_of_a_median_is_about_what_medians_do(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    medians, by_rounds, by_interval = [], [], []
    for _ in range(1500):
        level = np.exp(rng.normal(0, 0.2, rounds))  # the machine's own, which hits both and falls out
        slow, fast = 3 * level * np.exp(rng.normal(0, 0.02, rounds)), level * np.exp(rng.normal(0, 0.02, rounds))
        interval = ratio_interval(slow, fast)
        medians.append(math.log(interval.value))
        first, second = median_variance(slow, fast), interval_variance(interval.low, interval.high, rounds)
        assert first is not None
        assert second is not None
        by_rounds.append(first.value)
        by_interval.append(second.value)
    true = float(np.std(medians))
    assert math.sqrt(np.mean(by_rounds)) == pytest.approx(true, rel=0.4)
    assert math.sqrt(np.mean(by_interval)) == pytest.approx(true, rel=0.4)


def test_rounds_that_depend_on_each_other_tell_less() -> None:
    rng = np.random.default_rng(5)
    alone, together = [], []
    for _ in range(100):
        noise = rng.normal(0, 0.02, 60)
        slow = np.exp(noise)
        drifting = np.exp(np.convolve(noise, np.ones(6) / math.sqrt(6), mode="same"))
        alone.append(median_variance(slow, np.ones(60)))
        together.append(median_variance(drifting, np.ones(60)))
    assert np.mean([v.value for v in together if v]) > 2 * np.mean([v.value for v in alone if v])


def test_one_round_tells_nothing() -> None:
    assert median_variance([2.0], [1.0]) is None
    assert median_variance([], []) is None
    assert interval_variance(1.0, 2.0, 1) is None


@given(st.floats(1.0, 3.0), st.floats(1.001, 1.5), st.integers(2, 300))
def test_a_wider_interval_is_a_larger_variance(low: float, ratio: float, rounds: int) -> None:
    narrow, wide = interval_variance(low, low * ratio, rounds), interval_variance(low, low * ratio**2, rounds)
    assert narrow is not None
    assert wide is not None
    assert wide.value == pytest.approx(4 * narrow.value)
    assert wide.freedom == narrow.freedom >= 1.0
