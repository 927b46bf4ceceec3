"""The simulated bench, with fewer races than benchmarks/race_simulation.py: what it promises of each world holds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RACES = 100


@pytest.fixture(scope="module")
def bench() -> Any:
    """The script as a module; it finds what it shares with the others beside itself."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("race_simulation")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("world", "share"),
    [
        ("plain", 0.95),
        ("spikes 1 %", 0.95),
        ("spikes 5 %", 0.95),
        ("autocorrelation", 0.95),
        ("spikes 20 %", 0.9),
        ("drift", 0.9),
        ("drift within a round", 0.9),
        ("bimodal", 0.9),
        ("bimodal within a round", 0.9),
    ],
)
def test_in_a_clear_world_the_best_is_chosen(bench: Any, world: str, share: float) -> None:
    tally = bench.simulate(world, "clear", RACES)
    assert np.mean(tally.best) >= share
    assert np.mean(tally.best) > max(np.mean(best) for best in tally.baseline_best.values())
    assert max(tally.rounds) <= 60
    assert np.mean(tally.samples) <= 200
    assert tally.lossy == 0
    assert tally.wrongly_proven == 0


@pytest.mark.parametrize("world", ["plain", "drift", "spikes 5 %", "bimodal", "autocorrelation"])
def test_in_a_crowded_world_little_is_lost_and_nobody_near_the_best_is_eliminated(bench: Any, world: str) -> None:
    tally = bench.simulate(world, "crowded", RACES)
    assert np.mean(tally.regret) <= 0.009, "0.8 % over a thousand races"
    assert np.mean(tally.regret) < np.mean(tally.baseline_regret["mean"])
    assert tally.near > RACES
    assert tally.lossy <= 0.02 * RACES
    assert tally.wrongly_proven == 0


def test_among_equals_hardly_anybody_is_eliminated_even_where_every_fifth_sample_is_a_spike(bench: Any) -> None:
    tally = bench.simulate("spikes 20 %", "equal", RACES)
    assert tally.near == 8 * RACES
    assert tally.lossy <= 0.02 * RACES


def test_where_all_others_are_five_percent_slower_it_comes_near_what_all_samples_could_tell(bench: Any) -> None:
    tally = bench.simulate("plain", "hardest", RACES)
    every = bench.estimators("plain", "hardest", RACES)
    assert np.mean(tally.best) >= every["two-way fit"][0] - 0.12
    assert np.mean(tally.samples) <= 0.8 * 480
    assert every["two-way fit"][0] >= every["median of centred rounds"][0]


def test_in_a_wide_field_the_hopeless_leave_early(bench: Any) -> None:
    tally = bench.simulate("plain", "wide", RACES)
    with bench.rule("signs"):
        by_signs = bench.simulate("plain", "wide", RACES)
    assert np.mean(tally.samples) <= 0.9 * np.mean(by_signs.samples)
    assert np.mean(tally.best) >= 0.95


def test_a_world_that_is_not_there_is_an_error(bench: Any) -> None:
    with pytest.raises(ValueError, match="no world 'lunar'"):
        bench.simulate("lunar", "clear", 1)
