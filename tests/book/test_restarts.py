"""The noise between restarts: when it is estimated, from which runs, and what tests then promise."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from tunebook.book import FLOOR, LEAST_RESTARTS, Source, diff, spread_between
from tunebook.records import Environment, Offered


def sides(one: Path, other: Path) -> tuple[Source, Source]:
    return Source.read(one), Source.read(other)


def test_from_five_restarts_on_the_noise_between_runs_is_estimated(made: Any) -> None:
    paths = made.restarts(LEAST_RESTARTS - 1, problems=30, deviation=0.01)
    assert spread_between(sides(paths[0], paths[1])).between.restarts == 0
    made.restarts(1, problems=30, deviation=0.01, seed=1)
    found = spread_between(sides(paths[0], paths[1])).between
    assert found.restarts == LEAST_RESTARTS
    assert found.deviation == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("deviation", [0.004, 0.02, 0.1])
def test_the_estimate_is_the_deviation_that_the_runs_have(made: Any, deviation: float) -> None:
    paths = made.restarts(12, problems=60, deviation=deviation)
    spread = spread_between(sides(paths[3], paths[7]))
    assert spread.between.deviation == pytest.approx(deviation, rel=0.15)
    variance = spread.of(made.key(1))
    assert variance is not None
    assert variance.value == pytest.approx(deviation**2, rel=0.8)
    unknown = spread.of("linear|N=9,K=9|bf16|M≤1")
    assert unknown is not None
    assert unknown.value == pytest.approx(deviation**2, rel=0.4), "a problem that no restart has is taken as typical"


def test_one_noisy_problem_does_not_speak_for_the_others(made: Any) -> None:
    rng = random.Random(4)
    for _ in range(12):
        verdicts = [made.verdict(made.key(s), 1.5 * (1 + rng.gauss(0, 0.005)), spread=0.001) for s in range(1, 40)]
        noisy = made.verdict(made.key(99), 1.5 * (1 + rng.gauss(0, 0.1)), spread=0.001)
        path = made.run([*verdicts, noisy])
    spread = spread_between(sides(path, path))
    quiet, loud = spread.of(made.key(1)), spread.of(made.key(99))
    assert quiet is not None
    assert loud is not None
    assert loud.value > 20 * quiet.value


@pytest.mark.parametrize(
    "other",
    [
        {"model": "another"},
        {"commit": "f" * 40},
        {"note": "with larger tiles"},
        {"version": "0.2"},
        {"environment": Environment(hard={"device": "cpu of a test", "threads": "4"})},
        {"environment": Environment(hard={"device": "cpu of a test", "threads": "2"}, soft={"torch": "2.14"})},
    ],
    ids=lambda header: " ".join(header),
)
def test_runs_of_other_code_are_no_restarts(made: Any, other: dict[str, Any]) -> None:
    mine = made.run([made.verdict(made.key(1))])
    made.restarts(8, problems=3, deviation=0.01, **other)
    assert spread_between(sides(mine, mine)).between.restarts == 0


def test_the_load_is_no_code(made: Any) -> None:
    soft = {"torch": "2.13", "load": "7.5"}
    made.restarts(4, problems=3, deviation=0.01, environment=Environment(hard=made.environment.hard, soft=soft))
    mine = made.run([made.verdict(made.key(1))])
    assert spread_between(sides(mine, mine)).between.restarts == LEAST_RESTARTS


def test_verdicts_about_another_version_of_a_runner_do_not_count(made: Any) -> None:
    """The commit is the same, the working directory was not."""
    newer = {**made.offered, "native": Offered(version="8", space="s")}
    for speedup in (1.5, 1.6, 1.4, 1.5, 1.55, 1.45):
        made.run([made.verdict(made.key(1), speedup, offered=newer), made.verdict(made.key(2), speedup)])
    mine = made.run([made.verdict(made.key(1)), made.verdict(made.key(2))])
    spread = spread_between(sides(mine, mine))
    assert spread.own.keys() == {made.key(2)}


def test_both_sides_restarts_are_pooled_about_their_own_means(made: Any) -> None:
    """The code became twice as fast in between: that is no noise."""
    before = made.restarts(6, problems=30, deviation=0.01, commit="a" * 40)
    after = []
    for path in before:
        doubled = [made.verdict(v.problem, 2 * v.speedup, spread=0.002) for v in Source.read(path).verdicts.values()]
        after.append(made.run(doubled, commit="b" * 40))
    spread = spread_between(sides(before[0], after[0]))
    assert spread.between.restarts == 12
    assert spread.between.deviation == pytest.approx(0.01, rel=0.25)
    found = diff(*sides(before[0], after[0]))
    assert len(found.significant) == 30


def test_the_record_of_a_code_is_the_mean_of_its_restarts(made: Any) -> None:
    paths = made.restarts(9, problems=30, deviation=0.02)
    mine, cache = Source.read(paths[4]), Source.read(made.cache([made.verdict(made.key(1))]))
    spread = spread_between((mine, cache))
    found, between = spread.mean(mine, made.key(1)), spread.of(made.key(1))
    assert found is not None
    assert between is not None
    logs = [math.log(Source.read(path).verdicts[made.key(1)].speedup) for path in paths]
    assert found[0] == pytest.approx(sum(logs) / 9)
    assert found[1].value == pytest.approx(between.value / 9)
    assert spread.mean(mine, made.key(99)) is None
    assert spread.mean(cache, made.key(1)) is None


def test_a_cache_tells_no_restarts_and_its_other_side_does(made: Any) -> None:
    paths = made.restarts(6, problems=5, deviation=0.01)
    cache = made.cache([made.verdict(made.key(1))])
    assert spread_between(sides(cache, cache)).between.restarts == 0
    assert spread_between(sides(cache, paths[0])).between.restarts == 6


def test_restarts_that_always_keep_the_default_tell_no_noise(made: Any) -> None:
    for _ in range(6):
        path = made.run([made.verdict(made.key(1), 1.0)])
    assert spread_between(sides(path, path)).between.deviation == FLOOR


def test_among_runs_of_the_same_code_few_problems_are_called_different(made: Any) -> None:
    """40 runs of 50 problems, with a noise of 2 % between them, in 20 pairs."""
    paths = made.restarts(40, problems=50, deviation=0.02)
    called = 0
    for one, other in zip(paths[::2], paths[1::2], strict=True):
        called += len(diff(*sides(one, other)).significant)
    assert called <= 0.005 * 20 * 50, "all are the same: Benjamini and Hochberg let one pair in twenty have any"


def test_with_restarts_a_tenth_is_found_where_the_noise_is_one_percent(made: Any) -> None:
    paths = made.restarts(10, problems=40, deviation=0.01)
    slowed = []
    for verdict in Source.read(paths[0]).verdicts.values():
        factor = 0.9 if verdict.problem == made.key(7) else 1.001
        slowed.append(made.verdict(verdict.problem, verdict.speedup * factor, spread=0.002, run="b.jsonl"))
    found = diff(*sides(paths[0], made.run(slowed, commit="c" * 40)))
    assert [change.problem for change in found.significant] == [made.key(7)]
