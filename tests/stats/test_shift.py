"""The evidence of sizes: what it promises by simulation, what an outlier can do to it, and how soon it speaks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.stats import Matrix, shift_evidence

MARGIN = math.log(1.01)
MODEL = {"scale": 0.17, "freedom": 30.0, "outliers": 0.1}


def evidence(ratios: Matrix, margin: float = MARGIN, **model: float) -> float:
    known = MODEL | model
    return shift_evidence(ratios, margin, scale=known["scale"], freedom=known["freedom"], outliers=known["outliers"])


def test_nothing_seen_is_no_evidence() -> None:
    assert evidence(np.array([])) == pytest.approx(1)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_looking_after_every_round_keeps_the_promised_rate_of_errors(share: float) -> None:
    """At the boundary of H0 and under its model: no more than one path in twenty ever reaches 20."""
    rng = np.random.default_rng(1)
    reached = 0
    for _ in range(600):
        ratios = MARGIN + rng.normal(0, 0.17, 40)
        ratios = np.where(rng.random(40) < share, rng.uniform(-2.3, 2.3, 40), ratios)
        reached += any(evidence(ratios[:n]) >= 20 for n in range(3, 41))
    assert reached <= 0.05 * 600


@pytest.mark.parametrize(("factor", "most"), [(10.0, 4), (5.0, 4), (3.0, 4), (2.0, 5), (1.5, 9), (1.2, 45)])
def test_how_many_rounds_a_slower_tactic_stays_among_eight(factor: float, most: int) -> None:
    rng = np.random.default_rng(2)
    needed = 2 * 8 * 7 / 0.05
    rounds = []
    for _ in range(40):
        ratios = math.log(factor) + rng.normal(0, 0.17, 100)
        rounds.append(next(n for n in range(2, 101) if evidence(ratios[:n]) >= needed))
    assert np.median(rounds) <= most


@given(st.floats(0.5, 3.5), st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=10))
def test_one_outlier_shows_nothing(outlier: float, others: list[float]) -> None:
    assert evidence(np.array([outlier, *others, -sum(others)])) < 1 / 0.05 * 8 * 7


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=30), st.floats(-0.05, 0.05))
def test_only_the_distance_to_the_margin_counts(ratios: list[float], margin: float) -> None:
    values = np.array(ratios)
    assert evidence(values + margin, margin) == pytest.approx(evidence(values, 0.0), rel=1e-6)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=30))
def test_evidence_is_finite_and_the_order_of_the_rounds_does_not_matter(ratios: list[float]) -> None:
    values = np.array(ratios)
    assert 0 <= evidence(values) < math.inf
    assert evidence(values[::-1]) == pytest.approx(evidence(values), rel=1e-6)


@given(st.integers(1, 40))
def test_a_tactic_at_the_margin_or_faster_is_never_shown_to_be_slower(rounds: int) -> None:
    for ratio in (MARGIN, 0.0, -0.5):
        assert evidence(np.full(rounds, ratio)) <= 1


def test_overwhelming_evidence_does_not_overflow() -> None:
    assert evidence(np.full(5000, 1.0)) < math.inf
