"""Student's t against published tables, and against itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.stats import t_quantile, t_tail

#: Two-sided 95 % and 99.9 % points (Fisher & Yates, Statistical Tables, table III).
TABLE = [
    (1, 12.706, 636.619),
    (2, 4.303, 31.599),
    (4, 2.776, 8.610),
    (10, 2.228, 4.587),
    (30, 2.042, 3.646),
    (120, 1.980, 3.373),
    (math.inf, 1.960, 3.291),
]


@pytest.mark.parametrize(("freedom", "usual", "rare"), TABLE)
def test_the_points_are_those_of_the_table(freedom: float, usual: float, rare: float) -> None:
    assert t_quantile(0.95, freedom) == pytest.approx(usual, abs=6e-4)
    assert t_quantile(0.999, freedom) == pytest.approx(rare, abs=6e-4)
    assert t_tail(usual, freedom) == pytest.approx(0.05, abs=1e-4)


@given(st.floats(0.001, 0.9999), st.floats(0.4, 1e9))
def test_the_quantile_undoes_the_tail(confidence: float, freedom: float) -> None:
    score = t_quantile(confidence, freedom)
    assert t_tail(score, freedom) == pytest.approx(1 - confidence, rel=1e-5, abs=1e-9)
    assert t_tail(-score, freedom) == t_tail(score, freedom)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.4, 1e9))
def test_the_tail_falls(one: float, other: float, freedom: float) -> None:
    near, far = sorted((one, other))
    assert 0.0 <= t_tail(far, freedom) <= t_tail(near, freedom) + 1e-12 <= 1.0 + 1e-12


@given(st.floats(0.1, 50), st.floats(1, 1e6))
def test_a_normal_tail_is_the_lightest(score: float, freedom: float) -> None:
    assert t_tail(score, freedom) >= t_tail(score, math.inf) * (1 - 1e-6)


def test_the_ends() -> None:
    assert t_tail(0.0, 3) == 1.0
    assert t_tail(math.inf, 3) == 0.0


@pytest.mark.parametrize("freedom", [0.0, -1.0, math.nan])
def test_no_degrees_of_freedom(freedom: float) -> None:
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_tail(1.0, freedom)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 2.0])
def test_no_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        t_quantile(confidence, 5)
