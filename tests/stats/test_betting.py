"""Evidence that may be looked at after every round: its values against integrals, its promise against simulated rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.stats import medians_of, sign_evidence, slower_evidence, tail_evidence

ROUNDS = 60
PATHS = 4000
ALPHA = 0.05
LN2 = math.log(2)


def mixture(above: int, count: int, steps: int = 4000) -> float:
    """The mean over p, uniform in (1/2, 1), of the likelihood ratio of p against 1/2: by Simpson's rule."""
    p = np.linspace(0.5, 1.0, steps + 1)
    ratio = (2 * p) ** above * (2 * (1 - p)) ** (count - above)
    weights = np.full(steps + 1, 2.0)
    weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
    return float((weights * ratio).sum() / 3 / steps)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 13, 40, 200])
def test_the_evidence_of_signs_is_the_mixture_over_all_alternatives(count: int) -> None:
    for above in {0, count // 4, count // 2, count - count // 4, count}:
        assert sign_evidence(above, count) == pytest.approx(mixture(above, count), rel=1e-6)


@given(st.integers(0, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_evidence_of_signs_is_a_martingale_at_the_boundary_and_grows_with_what_is_above(
    pair: tuple[int, int],
) -> None:
    above, count = pair
    now, up, down = sign_evidence(above, count), sign_evidence(above + 1, count + 1), sign_evidence(above, count + 1)
    assert (up + down) / 2 == pytest.approx(now, rel=1e-9), "a fair next sign changes nothing in the mean"
    assert down < up
    assert now > 0


def test_the_evidence_of_signs_starts_at_one() -> None:
    assert sign_evidence(0, 0) == 1
    assert tail_evidence(0, 0) == 1
    assert slower_evidence([], 0.01) == 1


@pytest.mark.parametrize(("above", "count"), [(-1, 3), (4, 3)])
def test_signs_that_cannot_be_are_an_error(above: int, count: int) -> None:
    with pytest.raises(ValueError, match="signs"):
        sign_evidence(above, count)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05])
def test_the_evidence_of_the_tail_is_expected_to_be_one_at_most(share: float) -> None:
    for count in (1, 2, 7, 30):
        expected = sum(
            math.comb(count, above) * share**above * (1 - share) ** (count - above) * tail_evidence(above, count)
            for above in range(count + 1)
        )
        assert expected <= 1 + 1e-9
        if share == 0.05:
            assert expected == pytest.approx(1)
    assert tail_evidence(2, 2) > 140, "a tactic twice as slow goes after two or three rounds"


def ever(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], margin: float) -> float:
    """The share of paths on which the evidence reaches 1/ALPHA at any look."""
    signs = np.array([[sign_evidence(k, n) if k <= n else 0.0 for k in range(ROUNDS + 1)] for n in range(ROUNDS + 1)])
    tails = np.array([[tail_evidence(k, n) if k <= n else 0.0 for k in range(ROUNDS + 1)] for n in range(ROUNDS + 1)])
    counts = np.arange(1, ROUNDS + 1)
    above, far = (values > margin).cumsum(axis=1), (values > LN2).cumsum(axis=1)
    evidence = (signs[counts, above] + tails[counts, far]) / 2
    return float((evidence >= 1 / ALPHA).any(axis=1).mean())


def test_looking_after_every_round_keeps_the_promised_rate_of_errors() -> None:
    """At the boundary of H0: the median is the margin itself, and just 5 % of the rounds lie beyond ln 2."""
    rng = np.random.default_rng(7)
    margin = math.log(1.01)
    place = rng.random((PATHS, ROUNDS))
    values = np.where(place < 0.05, 1.0, np.where(place < 0.5, margin + 0.01, margin - 0.01))
    share = ever(values, margin)
    assert share <= ALPHA
    assert share > 0.005, "the simulation never comes near: it shows nothing"


def test_a_tactic_that_is_slower_is_found_out() -> None:
    rng = np.random.default_rng(8)
    assert ever(math.log(1.03) + rng.normal(0, 0.02, (500, ROUNDS)), math.log(1.01)) > 0.95


@given(st.lists(st.floats(-2, 2), max_size=40), st.floats(-1, 1))
def test_the_evidence_of_being_slower_is_the_mean_of_both_tests(ratios: list[float], margin: float) -> None:
    sign = mixture(sum(ratio > margin for ratio in ratios), len(ratios))
    far = sum(ratio > LN2 for ratio in ratios)
    tail = 18.1**far * 0.1 ** (len(ratios) - far)
    assert slower_evidence(ratios, margin) == pytest.approx((sign + tail) / 2, rel=1e-6)


@pytest.mark.parametrize(("factor", "most"), [(3.0, 4), (10.0, 4), (1.5, 12)])
def test_how_many_rounds_a_slow_tactic_stays_among_eight(factor: float, most: int) -> None:
    needed = 7 / ALPHA
    rounds = next(n for n in range(1, 100) if slower_evidence([math.log(factor)] * n, math.log(1.01)) >= needed)
    assert 2 <= rounds <= most


def test_no_number_of_rounds_shows_that_an_equal_tactic_is_slower() -> None:
    """Signs that alternate, and a tactic exactly at the margin."""
    for count in range(1, 200):
        assert slower_evidence([0.02 if i % 2 else 0.0 for i in range(count)], math.log(1.01)) < 1 / ALPHA
        assert slower_evidence([math.log(1.01)] * count, math.log(1.01)) < 1


@given(st.lists(st.floats(-1e3, 1e3), max_size=30), st.integers(1, 6))
def test_medians_of_groups_leave_the_unfinished_one_out(values: list[float], group: int) -> None:
    found = medians_of(values, group)
    assert len(found) == len(values) // group
    for position, value in enumerate(found):
        assert value == pytest.approx(float(np.median(values[position * group : (position + 1) * group])))
