"""Evidence that may be looked at after every round: its values against integrals, its promise against simulated rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.stats import medians_of, sign_evidence

ROUNDS = 60
PATHS = 4000
ALPHA = 0.05


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


@pytest.mark.parametrize(("above", "count"), [(-1, 3), (4, 3)])
def test_signs_that_cannot_be_are_an_error(above: int, count: int) -> None:
    with pytest.raises(ValueError, match="signs"):
        sign_evidence(above, count)


def ever(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], margin: float) -> float:
    """The share of paths on which the evidence reaches 1/ALPHA at any look."""
    signs = np.array([[sign_evidence(k, n) if k <= n else 0.0 for k in range(ROUNDS + 1)] for n in range(ROUNDS + 1)])
    evidence = signs[np.arange(1, ROUNDS + 1), (values > margin).cumsum(axis=1)]
    return float((evidence >= 1 / ALPHA).any(axis=1).mean())


def test_looking_after_every_round_keeps_the_promised_rate_of_errors() -> None:
    """At the boundary of H0, where the median is the margin itself, whatever the rest of the distribution."""
    rng = np.random.default_rng(7)
    margin = math.log(1.01)
    above = rng.random((PATHS, ROUNDS)) < 0.5
    share = ever(np.where(above, margin + rng.exponential(2.0, above.shape), margin - 0.001), margin)
    assert share <= ALPHA
    assert share > 0.005, "the simulation never comes near: it shows nothing"


def test_a_tactic_that_is_slower_is_found_out() -> None:
    rng = np.random.default_rng(8)
    assert ever(math.log(1.03) + rng.normal(0, 0.02, (500, ROUNDS)), math.log(1.01)) > 0.95


@given(st.lists(st.floats(-1e3, 1e3), max_size=30), st.integers(1, 6))
def test_medians_of_groups_leave_the_unfinished_one_out(values: list[float], group: int) -> None:
    found = medians_of(values, group)
    assert len(found) == len(values) // group
    for position, value in enumerate(found):
        assert value == pytest.approx(float(np.median(values[position * group : (position + 1) * group])))
