"""Spaces of hundreds to thousands of tactics: what is tried, what is left by halving, and what the verdict says of it."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from tunebook.records import DEFAULT, Rejected, Timed
from tunebook.search import FINALISTS

KEY = "o|x.1=3|fp32|M≤1"
TEN = tuple(range(10))
CUBE = {"a": TEN, "b": TEN, "c": TEN}


def valley(size: int, *, a: int, b: int, c: int) -> float:
    """A smooth cost over three parameters, in seconds; at most 14 times as high as at its bottom."""
    x, y, z = a / 9, b / 9, c / 9
    return 1e-3 * math.exp(2.5 * ((x - 0.62) ** 2 + 0.8 * (y - 0.35) ** 2 + 0.6 * (x - y - 0.2) ** 2 + (z - 0.8) ** 2))


LEAST = min(valley(1, a=a, b=b, c=c) for a in TEN for b in TEN for c in TEN)


def cost(tactic: str) -> float:
    params = dict(item.split("=") for item in tactic.partition("[")[2].rstrip("]").split(","))
    return valley(1, **{name: int(value) for name, value in params.items()})


def thousand(lab: Any, *, sigma: float | None = 0.12, **options: Any) -> None:
    lab.op("o", 4e-3, sigma=sigma, weight=options.pop("weight", 0))
    lab.runner("o", "r", CUBE, valley, sigma=sigma, **options)


def tried(lab: Any) -> set[str]:
    return {tactic for _, tactic in lab.calls} - {DEFAULT.name}


def raced(lab: Any, key: str = KEY) -> set[str]:
    timed = [line.trial for line in lab.run().trials if line.problem == key and isinstance(line.trial, Timed)]
    return {trial.tactic for trial in timed if trial.rounds[0] >= 0}


def test_a_part_of_a_thousand_tactics_is_seen_and_a_good_one_found(lab: Any) -> None:
    regrets = []
    for seed in range(4):
        lab.cache = lab.cache.with_name(f"{seed}.json")
        thousand(lab)
        start = lab.machine.now
        verdict = lab.tune({"o": [1]}, 10.0, seed=seed).verdicts[KEY]
        assert lab.machine.now - start < 10.2
        assert verdict.space == 1001
        assert 100 < verdict.seen < 500
        assert verdict.seen == len(tried(lab)) + 1
        assert verdict.note.startswith(f"saw {verdict.seen} of 1,001 tactics")
        assert len(raced(lab)) <= FINALISTS + 1
        regrets.append(math.log(cost(verdict.winner) / LEAST))
    assert statistics.fmean(regrets) < 0.06


def test_with_time_for_it_the_whole_space_is_seen(lab: Any) -> None:
    thousand(lab)
    verdict = lab.tune({"o": [1]}, 120.0).verdicts[KEY]
    assert (verdict.seen, verdict.space) == (1001, 1001)
    assert "saw" not in verdict.note
    assert cost(verdict.winner) < 1.08 * LEAST
    assert len(raced(lab)) <= FINALISTS + 1


def test_a_sample_is_no_reason_to_be_unresolved_but_time_that_ended_is(lab: Any) -> None:
    thousand(lab, sigma=None)
    assert lab.tune({"o": [1]}, 4.0).verdicts[KEY].status != "unresolved"
    lab.cache = lab.cache.with_name("short.json")
    short = lab.tune({"o": [1]}, 0.1).verdicts[KEY]
    assert short.status == "unresolved"
    assert short.seen < 25
    assert short.note.startswith(f"saw {short.seen} of 1,001 tactics")


def test_a_sample_that_was_cut_short_grows_when_time_is_left(lab: Any) -> None:
    """A heavier problem that needs little leaves its time: the sample then reaches its least size."""
    lab.op("o", 4e-3, sigma=0.02)
    lab.runner("o", "r", CUBE, lambda size, **params: 40 * valley(size, **params), sigma=0.02)
    lab.op("quick", 3.9e-3)
    outcome = lab.tune({"o": [1], "quick": [1]}, 30.0)
    verdict = outcome.verdicts[KEY]
    assert f"going on: {KEY}" in lab.asked
    assert verdict.seen >= 25
    lab.cache = lab.cache.with_name("alone.json")
    alone = lab.tune({"o": [1]}, 8.0).verdicts[KEY]
    assert alone.seen < 25
    assert alone.status == "unresolved"


def test_what_halving_leaves_is_among_the_best_that_were_seen(lab: Any) -> None:
    thousand(lab, sigma=None)
    lab.tune({"o": [1]}, 4.0)
    seen = sorted(tried(lab), key=cost)
    finalists = raced(lab) - {DEFAULT.name}
    assert finalists == set(seen[:FINALISTS])


def test_every_call_of_a_look_or_of_halving_is_in_the_run_file(lab: Any) -> None:
    """A tactic's calls are two of its check, two of its look unless it is hopeless, and the samples in the file."""
    thousand(lab)
    lab.tune({"o": [1]}, 4.0)
    timed = [line.trial for line in lab.run().trials if isinstance(line.trial, Timed)]
    inner = {trial.tactic: trial.inner for trial in timed if trial.rounds[0] >= 0}
    for tactic in tried(lab):
        samples = lab.samples(KEY, tactic)
        looks = [number for number, _ in samples if number < 0]
        assert looks == [-1 - i for i in range(len(looks))]
        rounds = len(samples) - len(looks)
        before = lab.calls["o", tactic] - len(looks[1:]) - inner.get(tactic, 0) * rounds
        assert before in ((4,) if cost(tactic) < 6 * LEAST else (2, 4))


def test_the_incumbent_and_the_default_always_race(lab: Any) -> None:
    """The incumbent is slower than most of the new runner's thousand: it races all the same."""
    lab.op("o", 4e-3)
    lab.runner("o", "old", {"p": (1,)}, lambda size, p: 3.5e-3)
    assert lab.tune({"o": [1]}, 4.0).verdicts[KEY].winner == "old[p=1]"
    lab.runner("o", "r", CUBE, valley)
    verdict = lab.tune({"o": [1]}, 4.0).verdicts[KEY]
    assert raced(lab) >= {"old[p=1]", DEFAULT.name}
    assert verdict.winner.startswith("r[")
    assert verdict.space == 1002


def test_a_small_runner_beside_a_large_one_is_tried_whole(lab: Any) -> None:
    thousand(lab)
    lab.runner("o", "few", {"p": tuple(range(5))}, lambda size, p: 0.8e-3)
    verdict = lab.tune({"o": [1]}, 4.0).verdicts[KEY]
    assert {f"few[p={p}]" for p in range(5)} <= tried(lab)
    assert verdict.winner.startswith("few[")
    assert {member.tactic.partition("[")[0] for member in verdict.frontier} == {"few", "r", "default"}


def test_two_large_runners_share_the_sample(lab: Any) -> None:
    thousand(lab)
    lab.runner("o", "other", CUBE, lambda size, **params: 2 * valley(size, **params))
    verdict = lab.tune({"o": [1]}, 6.0).verdicts[KEY]
    mine = sum(name.startswith("r[") for name in tried(lab))
    assert abs(2 * mine - (verdict.seen - 1)) <= 1
    assert verdict.space == 2001


def test_the_sample_is_spread_over_the_space(lab: Any) -> None:
    thousand(lab)
    lab.tune({"o": [1]}, 1.0)
    seen = [dict(item.split("=") for item in name.partition("[")[2].rstrip("]").split(",")) for name in tried(lab)]
    assert 10 <= len(seen) < 500
    for name in "abc":
        assert {params[name] for params in seen} == {str(value) for value in TEN}


def test_rejections_of_a_large_space_are_all_in_the_run_file_and_some_in_the_verdict(lab: Any) -> None:
    thousand(lab, right=lambda a, b, c: a > 4)
    outcome = lab.tune({"o": [1]}, 60.0)
    verdict = outcome.verdicts[KEY]
    refused = [line.trial for line in lab.run().trials if isinstance(line.trial, Rejected)]
    assert len(refused) == len(outcome.rejected) == 500
    assert len(verdict.rejected) == 32
    assert set(verdict.rejected) <= set(refused)
    assert "468 more rejections are in the run file" in verdict.note
    assert verdict.seen == 1001


@pytest.mark.parametrize("budget", [4.0, 60.0])
def test_a_thousand_layouts_do_not_fill_the_memory(lab: Any, budget: float) -> None:
    """Each tactic prepares a megabyte of its own, and 16 may be held: what is eliminated is released."""
    megabyte = 1 << 20
    lab.machine.free = 64 * megabyte
    thousand(lab, weight=megabyte)
    verdict = next(iter(lab.tune({"o": [1]}, budget).verdicts.values()))
    assert lab.made > 40
    assert lab.peak <= (16 + 4) * megabyte
    assert cost(verdict.winner) < 1.2 * LEAST
    assert len(verdict.frontier) <= FINALISTS + 3


def test_tactics_that_share_a_layout_share_its_copy(lab: Any) -> None:
    thousand(lab, weight=1 << 20, layout=lambda a, b, c: f"c{c}")
    lab.tune({"o": [1]}, 60.0)
    assert lab.made == 10
