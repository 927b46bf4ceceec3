"""Warm-up curves on a made-up clock: calibration waits until they are flat, and gives up on those that never are."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.measure import Calibration, calibrate


class Curve:
    """A default of one replica or more whose n-th call takes `seconds(n)`; it is its own clock."""

    name = "default"
    bytes = 0

    def __init__(self, seconds: Callable[[int], float], replicas: int = 1, flush: bool = False) -> None:
        self.now = 0.0
        self.made = 0
        self.flushes = 0
        self._seconds = seconds
        self.calls: Sequence[Callable[[], Any]] = [self._call] * replicas
        self.flush: Callable[[], None] | None = self._flush if flush else None

    def _call(self) -> None:
        self.now += self._seconds(self.made)
        self.made += 1

    def _flush(self) -> None:
        self.flushes += 1

    def clock(self) -> float:
        return self.now

    def synchronize(self) -> None:
        pass


def run(seconds: Callable[[int], float], **options: Any) -> tuple[Calibration, Curve]:
    curve = Curve(seconds, **options)
    return calibrate(curve, curve), curve


def noisy(level: Callable[[int], float], seed: int, sigma: float = 0.05) -> Callable[[int], float]:
    rng = random.Random(seed)
    return lambda n: level(n) * math.exp(rng.gauss(0, sigma))


@pytest.mark.parametrize("seed", range(5))
def test_a_default_that_is_warm_is_steady_soon(seed: int) -> None:
    found, curve = run(noisy(lambda n: 2e-3, seed))
    assert found.steady
    assert 7 <= curve.made <= 12
    assert found.seconds == pytest.approx(2e-3, rel=0.15)
    assert found.inner == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("calls", [1, 3, 5])
def test_an_exponential_warm_up_is_waited_for(calls: int, seed: int) -> None:
    """Three times as long at the start, falling by 1/e every `calls` calls."""
    found, curve = run(noisy(lambda n: 2e-3 * (1 + 2 * math.exp(-n / calls)), seed, 0.02))
    assert found.steady
    assert found.seconds == pytest.approx(2e-3, rel=0.2)
    assert curve.made >= 7


@pytest.mark.parametrize("after", [1, 2, 4, 5])
def test_a_step_on_the_way_is_not_taken_for_rest(after: int) -> None:
    """First it takes ten times as long (it is being compiled), and suddenly it does not."""
    found, curve = run(lambda n: 2e-2 if n < after else 2e-3)
    assert found.steady
    assert found.seconds == pytest.approx(2e-3)
    assert curve.made >= after + 5


def test_a_fast_start_that_slows_down_is_waited_for() -> None:
    """A clock that is boosted for four calls."""
    found, _ = run(lambda n: 1e-3 if n < 4 else 2e-3)
    assert found.seconds == pytest.approx(2e-3)


def test_a_single_outlier_does_not_matter() -> None:
    for position in range(12):
        found, curve = run(lambda n, position=position: 2e-2 if n == position else 2e-3)  # type: ignore[misc]
        assert found.steady
        assert found.seconds == pytest.approx(2e-3)
        assert curve.made <= 9


def test_a_slow_linear_drift_is_steady_and_a_fast_one_is_not() -> None:
    slow, _ = run(lambda n: 2e-3 * (1 + 0.01 * n))
    fast, curve = run(lambda n: 2e-3 * 1.2**n)
    assert slow.steady
    assert not fast.steady
    assert curve.made <= 24


def test_warm_up_ends_after_its_time_and_says_whether_it_was_steady() -> None:
    steady, curve = run(lambda n: 0.2)
    assert (steady.steady, curve.made) == (True, 3)
    unsteady, curve = run(lambda n: 0.2 * 2**n)
    assert (unsteady.steady, curve.made) == (False, 2)


def test_where_a_turn_is_short_each_warm_up_sample_meets_every_replica() -> None:
    found, curve = run(lambda n: 1.3e-5, replicas=4)
    assert curve.made % 4 == 0
    assert found.inner == 80, "77 calls are long enough, and 80 go round"


def test_a_flush_limits_the_turns_of_a_sample() -> None:
    found, curve = run(lambda n: 1e-5, replicas=2, flush=True)
    assert found.inner < 100
    assert found.inner % 2 == 0
    assert curve.flushes > 0


@given(st.floats(1e-6, 1.0), st.integers(1, 8), st.floats(0, 0.5), st.integers(0, 1 << 30))
def test_whatever_the_noise_it_ends_and_the_same_again_gives_the_same(
    level: float, replicas: int, sigma: float, seed: int
) -> None:
    first, curve = run(noisy(lambda n: level, seed, sigma), replicas=replicas)
    again, _ = run(noisy(lambda n: level, seed, sigma), replicas=replicas)
    assert first == again
    assert curve.made <= 24 * replicas
    assert first.seconds > 0
    assert first.inner >= 1
