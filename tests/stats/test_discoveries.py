"""Benjamini & Hochberg: the definition, its bounds, and what it promises."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.stats import adjusted

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def rejected_by_definition(p_values: list[float], rate: float) -> set[int]:
    """The k least p-values, k the largest with p_(k) ≤ k/m · rate."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    k = max((rank for rank, place in enumerate(order, 1) if p_values[place] * (len(order) / rank) <= rate), default=0)
    return {place for place in range(len(p_values)) if k and p_values[place] <= p_values[order[k - 1]]}


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
def test_it_rejects_what_the_step_up_procedure_rejects(p_values: list[float], rate: float) -> None:
    rates = adjusted(p_values)
    assert {i for i, q in enumerate(rates) if q <= rate} == rejected_by_definition(p_values, rate)


@given(P_VALUES)
def test_adjusting_raises_and_keeps_the_order(p_values: list[float]) -> None:
    rates = adjusted(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, rates, strict=True))
    ordered = sorted(zip(p_values, rates, strict=True))
    assert [q for _, q in ordered] == sorted(rates)


@given(P_VALUES, st.randoms(use_true_random=False))
def test_the_order_given_does_not_matter(p_values: list[float], rng: random.Random) -> None:
    places = list(range(len(p_values)))
    rng.shuffle(places)
    shuffled = adjusted([p_values[place] for place in places])
    rates = adjusted(p_values)
    assert shuffled == [rates[place] for place in places]


def test_one_test_is_not_adjusted() -> None:
    assert adjusted([0.03]) == [0.03]
    assert adjusted([]) == []


def test_false_discoveries_are_as_rare_as_promised() -> None:
    """A hundred tests, ten of them of real effects: the share of false ones among the significant, over 400 books."""
    rng = random.Random(3)
    shares = []
    for _ in range(400):
        p_values = [rng.random() ** 12 for _ in range(10)] + [rng.random() for _ in range(90)]
        called = [i for i, q in enumerate(adjusted(p_values)) if q <= 0.1]
        shares.append(sum(i >= 10 for i in called) / max(1, len(called)))
    assert 0.05 < sum(shares) / len(shares) <= 0.1  # the procedure gives 0.1 times the share of true nulls, 0.09


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_no_p_value(p: float) -> None:
    with pytest.raises(ValueError, match="p-value"):
        adjusted([0.5, p])
