"""The arithmetic of quality.py: regret, flips, gaps and intervals on made-up times whose truth is known."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from _quality_problems import Candidate, Problem
from _quality_report import Summary, figures, intervals, report
from _quality_truth import Truth, hopeless_tactics, inner_count, is_sampled, measure_rounds
from _quality_worker import Plan

NAMES = ("default", "a", "b")


def times(*ratios: float, rounds: int = 40, seed: int = 0) -> Any:
    """Seconds [tactics, rounds] in exact ratios, on a machine that drifts."""
    machine = np.exp(np.random.default_rng(seed).normal(0, 0.3, rounds).cumsum())
    return 1e-3 * np.array(ratios)[:, None] * machine


@dataclass
class FakeClock:
    """A device whose time passes in calls only."""

    now: float = 0.0
    called: list[tuple[str, int]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def synchronize(self) -> None:
        """Nothing runs behind its back."""

    def candidate(self, name: str, seconds: float, layers: int = 2) -> Candidate:
        def call(layer: int) -> Callable[[], None]:
            def run() -> None:
                self.now += seconds
                self.called.append((name, layer))

            return run

        return Candidate(name, tuple(call(layer) for layer in range(layers)))


def test_regret_is_the_paired_ratio_to_the_best_whatever_the_machine_does():
    truth = Truth(NAMES, times(1.2, 1.0, 1.05))
    assert truth.best == "a"
    assert truth.regret("a") == 0.0
    assert truth.regret("b") == pytest.approx(0.05)
    assert truth.regret("default") == pytest.approx(0.2)
    assert truth.spread == pytest.approx(1.2)
    assert list(truth.gaps()) == ["a", "b", "default"]
    assert truth.gaps()["b"] == pytest.approx(0.05)


def test_the_best_is_picked_on_one_half_and_scored_on_the_other():
    seconds = times(1.0, 1.0, 1.0)
    seconds[1, 1::2] /= 1.1  # the fastest in the rounds that pick
    seconds[2, 0::2] /= 1.2  # the fastest in those that score
    truth = Truth(NAMES, seconds)
    assert truth.best == "a"
    assert truth.regret("b") == pytest.approx(1 / 1.2 - 1)
    assert truth.regret("default") == pytest.approx(0.0)


def test_a_tactic_that_mostly_rests_is_compared_in_the_rounds_that_it_took_part_in():
    seconds = times(1.0, 1.5, 4.0, rounds=100)
    resting = [number for number in range(100) if not is_sampled(number)]
    seconds[2, resting] = np.nan
    truth = Truth(NAMES, seconds)
    assert truth.regret("b") == pytest.approx(3.0)
    assert truth.spread == pytest.approx(4.0)
    assert truth.distance("a", "b") == pytest.approx(math.log(4.0 / 1.5))


def test_rounds_of_a_hopeless_tactic_are_a_tenth_and_fall_into_both_halves():
    sampled = [number for number in range(400) if is_sampled(number)]
    assert len(sampled) == 40
    assert sum(number % 2 for number in sampled) == 20


def test_nobody_is_hopeless_before_forty_rounds():
    assert hopeless_tactics(NAMES, times(1.0, 3.5, 2.9, rounds=39)) == ()
    assert hopeless_tactics(NAMES, times(1.0, 3.5, 2.9, rounds=40)) == ("a",)


def test_a_flip_is_a_pair_of_choices_more_than_two_per_cent_apart():
    truth = Truth(NAMES, times(1.0, 1.01, 1.05))
    assert truth.flips(["default", "a", "default", "a"]) == 0.0  # within 2 %: no matter
    assert truth.flips(["default", "default", "b"]) == pytest.approx(2 / 3)
    assert truth.flips(["b"]) == 0.0


def test_rounds_sample_everybody_once_on_the_same_layers_and_let_the_hopeless_rest():
    clock = FakeClock()
    candidates = [clock.candidate("default", 2e-3), clock.candidate("a", 1e-3), clock.candidate("b", 9e-3)]
    seconds = measure_rounds(
        candidates,
        clock,  # type: ignore[arg-type]  # of a device it uses the clock alone
        first=5,
        rounds=20,
        inner=1,
        hopeless=("b",),
        rng=random.Random(0),
    )
    assert seconds[0] == pytest.approx([2e-3] * 20)
    assert seconds[1] == pytest.approx([1e-3] * 20)
    assert [5 + int(column) for column in np.flatnonzero(~np.isnan(seconds[2]))] == [11, 20]
    by_layer = Counter(clock.called)
    assert by_layer[("default", 0)] == by_layer[("default", 1)] == by_layer[("a", 0)] == 10


def test_a_sample_has_as_many_calls_as_the_fastest_tactic_needs():
    clock = FakeClock()
    slow, fast = clock.candidate("default", 2e-3), clock.candidate("a", 1.1e-4)
    assert inner_count([slow, fast], clock) == 5  # type: ignore[arg-type]  # as above
    assert inner_count([slow], clock) == 1  # type: ignore[arg-type]
    assert inner_count([clock.candidate("b", 1e-9)], clock) == 16  # type: ignore[arg-type]


def summary(regret: float, *, flips: float = 0.0, seconds: float = 1.0, default: float = 2.0) -> Summary:
    """A problem where the two other tuners always have a regret of 4 % and take a second."""
    truth = Truth(NAMES, times(default, 1.0, 1.05))
    tuners = ("tunebook", "flashinfer", "do_bench")
    return Summary(
        problem=Problem("made up", 1, NAMES[1:]),
        truth=truth,
        regrets={tuner: [regret if tuner == "tunebook" else 0.04] * 2 for tuner in tuners},
        flips={tuner: flips if tuner == "tunebook" else 0.5 for tuner in tuners},
        seconds={tuner: seconds if tuner == "tunebook" else 1.0 for tuner in tuners},
        tunings=2,
        ties=[1, 3],
        race_share=0.5,
        loaded=[regret, 2 * regret],
    )


def test_figures_weigh_problems_equally_and_add_up_seconds():
    found = figures([summary(0.0, seconds=0.5), summary(0.04, flips=0.25, seconds=2.5)])
    assert found["regret_mean"] == pytest.approx(0.02)
    assert found["regret_mean_flashinfer"] == pytest.approx(0.04)
    assert found["regret_ratio_flashinfer"] == pytest.approx(0.5)
    assert found["share_above_3pct"] == pytest.approx(0.5)
    assert found["flips"] == pytest.approx(0.125)
    assert found["flips_ratio_flashinfer"] == pytest.approx(0.25)
    assert found["tie_set_median"] == 2
    assert found["seconds_ratio_flashinfer"] == pytest.approx(1.5)
    assert found["seconds_ratio_do_bench_each"] == pytest.approx(math.sqrt(0.5 * 2.5))
    assert found["regret_mean_loaded"] == pytest.approx(0.03)


def test_short_problems_are_those_whose_default_takes_less_than_a_millisecond():
    fast = summary(0.0, seconds=0.25, default=1e-6)
    assert fast.short
    assert not summary(0.0, default=1e6).short
    assert "seconds_ratio_do_bench_short" not in figures([summary(0.0, default=1e6)])
    assert figures([fast, summary(0.0, default=1e6)])["seconds_ratio_do_bench_short"] == pytest.approx(0.25)


def test_intervals_come_of_resampled_problems():
    same = intervals([summary(0.02)] * 5, figures, draws=50)
    assert same["regret_mean"] == (pytest.approx(0.02), pytest.approx(0.02))
    low, high = intervals([summary(0.0)] * 6 + [summary(0.07)] * 6, figures, draws=400)["regret_mean"]
    assert 0.0 < low < 0.035 < high < 0.07


def test_a_ratio_to_nothing_is_left_out_and_named():
    good = summary(0.01, flips=0.1)
    perfect = {**good.flips, "flashinfer": 0.0}
    result = report([Summary(**{**vars(good), "flips": perfect})], Plan(3, 10, 2, 1, quick=False, threads=None))
    assert "flips_ratio_flashinfer" not in result.figures
    assert "flips_ratio_flashinfer" not in result.goals
    assert any(note.startswith("`flips_ratio_flashinfer` is not given") for note in result.notes)
    assert set(result.met()) == set(result.goals)
