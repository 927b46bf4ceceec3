"""Budgets on a made-up clock, the memory guard, the screening, and the calibration that comes before a race."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.measure import (
    Budget,
    Finding,
    allowance,
    calibrate,
    first_look,
    hopeless,
    memory_limit,
    refuse_for_memory,
    sample,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []

    def clock(self) -> float:
        self.log.append("clock")
        return self.now

    def synchronize(self) -> None:
        self.log.append("wait")


class Timed:
    """A default whose n-th call takes `seconds(n)`, on several replicas."""

    name = "default"
    bytes = 0
    flush: Callable[[], None] | None = None

    def __init__(self, clock: Clock, seconds: Callable[[int], float], replicas: int = 1) -> None:
        self.clock = clock
        self.seconds = seconds
        self.made: list[int] = []
        self.calls: Sequence[Callable[[], Any]] = [lambda r=r: self._run(r) for r in range(replicas)]  # type: ignore[misc]

    def _run(self, replica: int) -> None:
        self.clock.log.append("call")
        self.clock.now += self.seconds(len(self.made))
        self.made.append(replica)


# ----------------------------------------------------------------------------------------------------------- budget


def test_a_budget_is_spent_as_the_clock_goes() -> None:
    clock = Clock()
    budget = Budget(10, clock)
    assert (budget.spent(), budget.left(), budget.over()) == (0, 10, False)
    clock.now += 4
    assert (budget.spent(), budget.left(), budget.over()) == (4, 6, False)
    clock.now += 6
    assert (budget.left(), budget.over()) == (0, True)
    clock.now += 5
    assert (budget.spent(), budget.left(), budget.over()) == (15, 0, True)


def test_a_budget_without_an_end_is_never_over() -> None:
    clock = Clock()
    budget = Budget(None, clock)
    clock.now += 1e9
    assert budget.left() == math.inf
    assert not budget.over()
    assert Budget(0, clock).over()


WEIGHTS = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20)


@given(WEIGHTS, st.floats(0, 1e4))
def test_allowances_that_are_spent_share_the_budget_by_weight(weights: list[float], seconds: float) -> None:
    left, given_out = seconds, []
    for position in range(len(weights)):
        given_out.append(allowance(left, weights, position))
        left -= given_out[-1]
    assert sum(given_out) == pytest.approx(seconds)
    for weight, part in zip(weights, given_out, strict=True):
        assert part == pytest.approx(seconds * weight / sum(weights), rel=1e-6, abs=1e-6)


@given(WEIGHTS, st.floats(1, 1e4), st.lists(st.floats(0, 1), min_size=20, max_size=20))
def test_what_is_not_used_flows_on_and_nobody_starves(weights: list[float], seconds: float, used: list[float]) -> None:
    """Each uses a part of what it is given: everyone after it gets at least its fair share of the whole."""
    left = seconds
    for position, weight in enumerate(weights):
        mine = allowance(left, weights, position)
        assert mine >= seconds * weight / sum(weights) * (1 - 1e-9)
        assert mine <= left * (1 + 1e-9)
        left -= mine * used[position]
    assert left >= -1e-6
    assert allowance(seconds, weights, len(weights) - 1) == pytest.approx(seconds), "the last one gets all that is left"


@given(WEIGHTS, st.floats(1, 1e4), st.randoms(use_true_random=False), st.floats(0, 1))
def test_nobody_starves_in_whatever_order_and_however_the_others_worths_fall(
    weights: list[float], seconds: float, rng: random.Random, used: float
) -> None:
    """As tuning goes, others turn out to be worth less than was thought: what remains for one only grows."""
    whole, left, waiting = sum(weights), seconds, list(weights)
    while waiting:
        mine = waiting.pop(rng.randrange(len(waiting)))
        got = allowance(left, [mine, *waiting], 0)
        assert seconds * mine / whole * (1 - 1e-9) <= got <= left * (1 + 1e-9)
        left -= used * got
        waiting = [value * rng.uniform(0.1, 1) for value in waiting]


def test_allowances_of_problems_without_weight_are_equal_and_an_endless_budget_stays_endless() -> None:
    assert allowance(12, [0, 0, 0], 0) == 4
    assert allowance(12, [0, 0, 0], 2) == 12
    assert allowance(0, [1, 1], 0) == 0
    assert allowance(math.inf, [1, 2], 0) == math.inf


# ------------------------------------------------------------------------------------------------------------ guard


def test_the_limit_is_what_was_asked_for_else_a_quarter_of_what_is_free() -> None:
    assert memory_limit(8 << 30, None) == 2 << 30
    assert memory_limit(8 << 30, 0.5) == 500_000_000
    assert memory_limit(8 << 30, 0.0) == 0
    assert memory_limit(1 << 30, 100.0) == 100_000_000_000


def test_a_tactic_that_needs_more_than_the_limit_is_refused_with_both_figures() -> None:
    asked = []

    def workspace(*args: Any) -> int:
        asked.append(args)
        return 3_000_000_000

    found = refuse_for_memory(workspace, (1, 2), 1_500_000_000)
    assert isinstance(found, Finding)
    assert found.reason == "memory"
    assert "3.00 GB" in found.detail
    assert "1.50 GB" in found.detail
    assert asked == [(1, 2)]
    assert refuse_for_memory(workspace, (), 3_000_000_000) is None
    assert refuse_for_memory(None, (), 0) is None


@pytest.mark.parametrize("answer", [None, "much", math.nan], ids=str)
def test_an_estimate_that_fails_is_a_refusal_in_words(answer: Any) -> None:
    found = refuse_for_memory(lambda: answer, (), 10)
    assert isinstance(found, Finding)
    assert found.reason == "runtime"
    assert "estimate" in found.detail

    def broken(x: int) -> int:
        raise ZeroDivisionError("by zero")

    found = refuse_for_memory(broken, (1,), 10)
    assert isinstance(found, Finding)
    assert "ZeroDivisionError: by zero" in found.detail


# -------------------------------------------------------------------------------------------------------- screening


def test_a_first_look_is_the_better_of_two_calls_and_waits_for_each() -> None:
    clock = Clock()
    seconds = iter([0.5, 0.125])

    def call() -> None:
        clock.log.append("call")
        clock.now += next(seconds)

    assert first_look(call, clock) == 0.125
    assert clock.log == ["wait", "clock", "call", "wait", "clock"] * 2
    assert first_look(lambda: None, clock) > 0, "a clock that did not move is no division by zero later"


def test_twofold_noise_is_not_hopeless_and_tenfold_is() -> None:
    assert not hopeless(1.0, 1.0)
    assert not hopeless(2.0, 1.0)
    assert hopeless(10.0, 1.0)


# ------------------------------------------------------------------------------------------------------ calibration


def test_a_sample_is_seconds_a_call_goes_round_the_replicas_and_waits_before_and_after() -> None:
    clock = Clock()
    default = Timed(clock, lambda n: 0.25 + 0.25 * (n % 2), replicas=3)
    assert sample(default, clock, inner=4, offset=2) == 0.375
    assert default.made == [2, 0, 1, 2]
    assert clock.log == ["wait", "clock", "call", "call", "call", "call", "wait", "clock"]


@given(st.floats(1e-7, 0.05), st.integers(1, 12), st.floats(1e-4, 1e-2))
def test_a_sample_is_long_enough_and_goes_round_all_replicas_where_a_turn_is_short(
    seconds: float, replicas: int, least: float
) -> None:
    clock = Clock()
    found = calibrate(Timed(clock, lambda _: seconds, replicas), clock, least)
    assert found.steady
    assert found.seconds == pytest.approx(seconds, rel=1e-4)
    assert found.inner >= 1
    assert found.inner * seconds >= least * (1 - 1e-4)
    assert found.inner <= 1.001 * least / seconds + replicas + 1, "no longer than it must be"
    if found.inner > replicas // 2:
        assert found.inner % replicas == 0, "whole turns"


def test_warming_up_goes_on_until_the_last_samples_agree_with_those_before_them() -> None:
    clock = Clock()
    first = [8e-3, 4e-3, 3e-3, 2e-3, 1.02e-3, 1.01e-3, 1e-3, 1e-3]
    default = Timed(clock, lambda n: first[min(n, len(first) - 1)])
    found = calibrate(default, clock)
    assert found.steady
    assert found.seconds <= 1.02e-3
    assert 6 <= len(default.made) <= 10


def test_a_default_that_never_settles_is_given_up_and_said_to_be_unsteady() -> None:
    clock = Clock()
    default = Timed(clock, lambda n: 1e-3 * (1 + n % 2) / (1 + n))
    found = calibrate(default, clock)
    assert not found.steady
    assert len(default.made) < 50
    assert found.inner >= 1


def test_a_slow_default_is_not_called_more_than_twice() -> None:
    clock = Clock()
    default = Timed(clock, lambda _: 5.0)
    found = calibrate(default, clock)
    assert len(default.made) == 2
    assert found.inner == 1
    assert found.seconds == pytest.approx(5.0)


def test_a_slow_default_on_many_replicas_is_not_taken_all_round() -> None:
    clock = Clock()
    default = Timed(clock, lambda _: 0.1, replicas=16)
    assert calibrate(default, clock).inner == 1
