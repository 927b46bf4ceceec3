"""Successive halving on made-up costs: what it calls, whom it keeps, and how it compares with as many calls at random."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.records import Tactic
from tunebook.search import FINALISTS, MAX_CALLS, calls_needed, halving, space_filling


class Bench:
    """Costs by name, with noise; counts the calls."""

    def __init__(self, costs: dict[str, float], sigma: float = 0.0, seed: int = 0) -> None:
        self.costs = costs
        self.rng = random.Random(seed)
        self.sigma = sigma
        self.calls: Counter[str] = Counter()
        self.fails: set[str] = set()
        self.machine: Callable[[int], float] = lambda call: 1.0

    def call(self, name: str) -> float | None:
        self.calls[name] += 1
        if name in self.fails:
            return None
        return self.costs[name] * self.rng.lognormvariate(0, self.sigma) * self.machine(self.calls.total())

    def looks(self) -> dict[str, float]:
        return {name: min(self._noisy(name), self._noisy(name)) for name in self.costs}

    def _noisy(self, name: str) -> float:
        return self.costs[name] * self.rng.lognormvariate(0, self.sigma)


def ladder(count: int, step: float = 0.05) -> dict[str, float]:
    """The i-th is i steps slower than the best; names in no order of speed."""
    places = random.Random(count).sample(range(count), count)
    return {f"t{place}": 1e-3 * (1 + step) ** i for i, place in enumerate(places)}


@given(st.integers(0, 300), st.integers(1, 20))
def test_so_many_calls_are_made_as_were_foreseen(count: int, finalists: int) -> None:
    bench = Bench(ladder(count))
    found = halving(bench.costs, bench.call, random.Random(0), finalists=finalists)
    assert bench.calls.total() == calls_needed(count, finalists)
    assert found.complete
    assert len(found.survivors) == min(count, finalists)
    assert (found.rungs == 0) == (not bench.calls)
    best = sorted(bench.costs, key=bench.costs.__getitem__)
    assert list(found.survivors) == best[: len(found.survivors)], "without noise the best stay, best first"


def test_each_rung_keeps_the_better_half_and_calls_it_twice_as_often() -> None:
    bench = Bench(ladder(96))
    halving(bench.costs, bench.call, random.Random(0), finalists=12)
    assert Counter(bench.calls.values()) == {2: 24, 2 + 4: 24}
    assert calls_needed(96, 12) == 48 * 2 + 24 * 4
    assert calls_needed(FINALISTS) == 0


def test_one_rung_calls_nobody_more_often_than_the_limit() -> None:
    bench = Bench(ladder(1024, 0.01))
    found = halving(bench.costs, bench.call, random.Random(0), finalists=2)
    rungs = [min(2 ** (i + 1), MAX_CALLS) for i in range(found.rungs)]
    assert max(bench.calls.values()) == sum(rungs)
    assert rungs.count(MAX_CALLS) > 1


def test_the_best_survive_noise() -> None:
    """The best of 200 in steps of 1 %, spread over 7.3 times, with noise of 12 %: it is left at the end as a rule."""
    kept = 0
    for seed in range(50):
        bench = Bench(ladder(200, 0.01), sigma=0.12, seed=seed)
        found = halving(bench.looks(), bench.call, random.Random(seed))
        ranked = sorted(bench.costs, key=bench.costs.__getitem__)
        kept += bool(set(ranked[:3]) & set(found.survivors))
    assert kept >= 48


def test_a_drifting_machine_does_not_change_who_survives() -> None:
    """Turns hit all alike: clocks that fall by a factor of four on the way leave the same names."""
    steady, drifting = Bench(ladder(96)), Bench(ladder(96))
    drifting.machine = lambda call: 4.0 ** (call / calls_needed(96))
    left = [set(halving(b.costs, b.call, random.Random(1)).survivors) for b in (steady, drifting)]
    assert left[0] == left[1]


def test_what_fails_leaves_and_the_next_best_take_its_place() -> None:
    bench = Bench(ladder(48))
    ranked = sorted(bench.costs, key=bench.costs.__getitem__)
    bench.fails = set(ranked[:3])
    found = halving(bench.costs, bench.call, random.Random(0), finalists=4)
    assert found.complete
    assert list(found.survivors) == ranked[3:7]
    assert all(bench.calls[name] == 1 for name in bench.fails)


def test_where_all_fail_nobody_is_left() -> None:
    bench = Bench(ladder(48))
    bench.fails = set(bench.costs)
    assert halving(bench.costs, bench.call, random.Random(0), finalists=4).survivors == ()


@pytest.mark.parametrize("after", [0, 1, 10, 47, 48, 100, 150])
def test_where_the_time_ends_the_best_by_then_are_taken_and_it_is_said(after: int) -> None:
    bench = Bench(ladder(96))
    found = halving(bench.costs, bench.call, random.Random(0), stop=lambda: bench.calls.total() >= after)
    assert not found.complete
    assert bench.calls.total() == after
    ranked = sorted(bench.costs, key=bench.costs.__getitem__)
    assert list(found.survivors) == ranked[:FINALISTS]


def smooth(tactic: Tactic) -> float:
    """A valley over three parameters of ten values each, eight times as high at the far corner as at its bottom."""
    x, y, z = (float(value) / 9 for _, value in tactic.params)
    return 1e-3 * math.exp(2.5 * ((x - 0.62) ** 2 + 0.8 * (y - 0.35) ** 2 + 0.6 * (x - y - 0.2) ** 2 + (z - 0.8) ** 2))


def test_a_thousand_tactics_with_about_one_call_each_and_better_than_at_random() -> None:
    """A sample of 200, its looks and its halving, against as many calls spent on tactics at random, ten each."""
    values = itertools.product(range(10), repeat=3)
    space = [Tactic(runner="r", params=tuple(zip("xyz", point, strict=True))) for point in values]
    costs = {tactic.name: smooth(tactic) for tactic in space}
    least = min(costs.values())
    mine, theirs = [], []
    for seed in range(30):
        rng = random.Random(seed)
        sample = [tactic.name for tactic in itertools.islice(space_filling(space, rng), 200)]
        bench = Bench({name: costs[name] for name in sample}, sigma=0.12, seed=seed)
        found = halving(bench.looks(), bench.call, rng)
        calls = 2 * len(sample) + bench.calls.total()
        assert calls == 2 * 200 + calls_needed(200) <= 1250
        mine.append(math.log(costs[found.survivors[0]] / least))
        noisy = Bench(costs, sigma=0.12, seed=seed)
        means = {
            tactic.name: statistics.fmean(noisy.call(tactic.name) or 0.0 for _ in range(10))
            for tactic in rng.sample(space, calls // 10)
        }
        theirs.append(math.log(costs[min(means, key=means.__getitem__)] / least))
    assert statistics.fmean(mine) < 0.04
    assert statistics.fmean(mine) < 0.6 * statistics.fmean(theirs)
