"""Races on a made-up machine: its clock moves with each call, drifts, jumps and spikes, and the truth is known."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tunebook.measure import MAX_ROUNDS, Choice, RaceResult, _race, choose, drifted, race


@dataclass
class World:
    """A machine whose time passes only in calls. `noise` is the scale of a call's log time; drift and jumps hit all alike."""

    seed: int = 0
    noise: float = 0.0
    drift: float = 0.0
    spikes: float = 0.0
    slow_mode: float = 1.0
    now: float = 0.0
    mode: float = 1.0
    waited: int = 0
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def clock(self) -> float:
        return self.now

    def synchronize(self) -> None:
        self.waited += 1

    def work(self, seconds: float) -> None:
        """A call of this length on a quiet machine."""
        if self.slow_mode != 1.0 and self.rng.random() < 0.01:
            self.mode = self.slow_mode if self.mode == 1.0 else 1.0
        factor = math.exp(self.rng.gauss(0, self.noise)) if self.noise else 1.0
        if self.spikes and self.rng.random() < self.spikes:
            factor *= 3.0
        self.now += seconds * factor * self.mode * math.exp(self.drift * math.sin(30 * self.now))


class Runnable:
    """A tactic of known length on several replicas, which counts its calls on each."""

    def __init__(self, world: World, name: str, seconds: float, *, bytes_: int = 0, replicas: int = 4) -> None:
        self.name = name
        self.bytes = bytes_
        self.counts: Counter[int] = Counter()
        self.flush: Callable[[], None] | None = None
        self.calls: Sequence[Callable[[], Any]] = [self._call(world, seconds, replica) for replica in range(replicas)]

    def _call(self, world: World, seconds: float, replica: int) -> Callable[[], None]:
        def call() -> None:
            self.counts[replica] += 1
            world.work(seconds)

        return call


class Failing(Runnable):
    """Works on every replica but one."""

    def __init__(self, world: World, name: str, seconds: float, broken: int) -> None:
        super().__init__(world, name, seconds)
        calls = list(self.calls)

        def call() -> None:
            raise RuntimeError("illegal instruction\nsecond line")

        calls[broken] = call
        self.calls = calls


def field_of(world: World, seconds: dict[str, float], **options: Any) -> list[Runnable]:
    return [Runnable(world, name, value, **options) for name, value in seconds.items()]


def run(world: World, runnables: Sequence[Runnable], *, inner: int = 1, seed: int = 0, **options: Any) -> RaceResult:
    return race(runnables, "default", world, inner=inner, rng=random.Random(seed), **options)


def group(name: str) -> tuple[str, str]:
    """``runner:layout[…]``: what a name of these tests says of its group."""
    runner, _, layout = name.partition("[")[0].partition(":")
    return runner, layout


def settle(result: RaceResult, **options: Any) -> Choice:
    return choose(result, group, **options)


def test_who_is_far_behind_after_the_preliminary_rounds_is_passed_over_without_being_shown_to_be_slower() -> None:
    seconds = {"default": 3e-3, "best": 1e-3, "near": 1.01e-3, "far:a": 1.6e-3, "far:b": 1.7e-3, "far:c": 1.8e-3}
    often = 0
    for seed in range(20):
        world = World(seed, noise=0.15)
        found = run(world, field_of(world, seconds), seed=seed, preliminary=4)
        rounds = {entry.name: len(entry.rounds) for entry in found.entries}
        assert rounds["default"] == found.rounds, "the default stays"
        assert {rounds[name] for name in found.passed_over} <= {4}
        assert not set(found.passed_over) & {"default", "best", "near"}
        assert not {entry.name for entry in found.survivors} & set(found.passed_over)
        often += len(found.passed_over)
        choice = settle(found)
        assert choice.winner in ("best", "near")
        assert choice.status in (("likely", "unresolved") if found.passed_over else ("proven", "likely", "unresolved"))
        assert any(member.tactic.startswith("far") for member in choice.frontier)
    assert often > 40


def test_nobody_is_passed_over_unasked_or_among_few() -> None:
    for names, options in ((("a", "b"), {"preliminary": 4}), (("a", "b", "c", "d"), {})):
        world = World(0, noise=0.1)
        seconds = {"default": 1e-3, **dict.fromkeys(names, 1.5e-3)}
        assert run(world, field_of(world, seconds), **options).passed_over == ()


@pytest.mark.parametrize("seconds", [0.0, 1e-2])
def test_samples_are_not_looked_at_more_often_than_looking_is_worth(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round takes 3 ms here: a look of 10 ms is worth it after 80 ms."""
    world, looks = World(0, noise=0.05), []
    look = _race._look

    def slow_look(alive: Any, offered: int, done: int, *rest: Any) -> Any:
        looks.append(done)
        world.now += seconds
        return look(alive, offered, done, *rest)

    monkeypatch.setattr(_race, "_look", slow_look)
    run(world, field_of(world, {"default": 1e-3, "other": 1e-3, "same": 1e-3}), max_rounds=40, accepted_loss=0.0)
    assert looks[0] == 2
    assert min(b - a for a, b in itertools.pairwise(looks)) >= (25 if seconds else 1)
    assert len(looks) >= (2 if seconds else 15)


UNQUIET: dict[str, dict[str, Any]] = {
    "noise": {"noise": 0.06},
    "drift": {"noise": 0.04, "drift": 0.3},
    "spikes": {"noise": 0.04, "spikes": 0.03},
    "bimodal": {"noise": 0.04, "slow_mode": 1.4},
    "all": {"noise": 0.04, "drift": 0.1, "spikes": 0.02, "slow_mode": 1.3},
}


@pytest.mark.parametrize("kind", UNQUIET)
def test_in_a_clear_world_the_right_tactic_wins(kind: str) -> None:
    """Eight tactics, the others at least 5 % slower: at least 190 of 200 races of at most 60 rounds find the fastest."""
    races, right, rounds = 200, 0, 0
    for seed in range(races):
        world = World(seed=seed, **UNQUIET[kind])
        order = random.Random(seed)
        slower = [1.05, 1.06, 1.08, 1.1, 1.2, 1.5, 4.0]
        order.shuffle(slower)
        seconds = {name: 1e-3 * factor for name, factor in zip(["default", *"abcdef"], slower, strict=True)}
        seconds["best"] = 1e-3
        result = run(world, field_of(world, seconds), seed=seed, max_rounds=60, inner=2)
        right += settle(result).winner == "best"
        rounds += result.rounds
        assert result.rounds <= 60
    assert right >= math.ceil(0.95 * races), f"{right} of {races}"
    assert rounds / races < 60, "clear worlds end by themselves"


def test_where_the_default_is_the_fastest_it_wins() -> None:
    right = 0
    for seed in range(40):
        world = World(seed=seed, noise=0.03, spikes=0.02)
        seconds = {"default": 1e-3, **dict.fromkeys("abcdefg", 1.05e-3)}
        choice = settle(run(world, field_of(world, seconds), seed=seed, max_rounds=60))
        right += choice.winner == "default"
        if choice.winner == "default":
            assert choice.speedup == (1.0, 1.0, 1.0)
    assert right >= 38


def test_equal_tactics_are_seldom_told_apart() -> None:
    """Of 60 races between three equal tactics under noise, no more than the promised share loses one as slower."""
    lost = 0
    for seed in range(60):
        world = World(seed=seed, noise=0.03)
        result = run(world, field_of(world, dict.fromkeys(["default", "a", "b"], 1e-3)), seed=seed)
        lost += len(result.survivors) < 3
    assert lost <= 60 * 0.05 * 3


def equal(world: World, bytes_: dict[str, int], **slower: float) -> list[Runnable]:
    return [Runnable(world, name, slower.get(name, 1.0) * 1e-3, bytes_=size) for name, size in bytes_.items()]


def test_among_equals_the_incumbent_goes_first_then_the_default_then_the_least_memory_then_the_name() -> None:
    world = World()
    sizes = {"b": 5, "default": 9, "a": 5, "c": 9}
    result = run(world, equal(world, sizes))
    assert len(result.survivors) == 4
    choice = settle(result, incumbent="c")
    assert choice.winner == "c"
    assert choice.ties == ("a", "b", "default")
    assert settle(result).winner == "default"
    assert settle(result).ties == ("a", "b", "c")
    slow = run(world, equal(world, sizes, default=1.5))
    assert settle(slow).winner == "a", "by name between a and b, which take least"
    assert settle(run(world, equal(world, {**sizes, "b": 4}, default=1.5))).winner == "b"
    assert settle(slow, incumbent="default").winner == "a", "an incumbent that is no tie is not kept"


def test_not_eliminated_is_not_tied() -> None:
    """Two rounds are too few to drop a tactic that takes 1.3 times as long, and it is no tie either."""
    world = World()
    result = run(world, equal(world, {"default": 0, "a": 0}, default=1.3), max_rounds=2)
    assert len(result.survivors) == 2
    assert settle(result, incumbent="default").winner == "a"
    assert settle(result).ties == ()


@pytest.mark.parametrize("offered", [2, 8, 20])
def test_a_tactic_several_times_slower_leaves_after_three_or_four_rounds(offered: int) -> None:
    for seed in range(5):
        world = World(seed=seed, noise=0.05)
        names = ["default", *(f"t{i}" for i in range(offered - 2))]
        runnables = field_of(world, {**dict.fromkeys(names, 1e-3), "snail": 5e-3})
        result = run(world, runnables, seed=seed)
        snail = next(entry for entry in result.entries if entry.name == "snail")
        assert 3 <= len(snail.samples) <= 4
        assert sum(runnables[-1].counts.values()) == len(snail.samples)
        assert snail not in result.survivors


def test_the_default_has_a_sample_in_every_round_also_when_it_is_out() -> None:
    world = World(noise=0.02)
    result = run(world, field_of(world, {"default": 5e-3, "a": 1e-3, "b": 1.02e-3, "c": 1.02e-3}))
    assert result.default not in result.survivors
    assert result.rounds > 4
    assert result.default.rounds == list(range(result.rounds))
    assert len(result.default.samples) == result.rounds
    choice = settle(result)
    assert choice.speedup.value == pytest.approx(5, rel=0.1)
    assert choice.speedup.low <= choice.speedup.value <= choice.speedup.high


def test_every_survivor_has_a_sample_in_every_round_and_samples_are_seconds_a_call() -> None:
    world = World()
    runnables = field_of(world, {"default": 2e-3, "a": 1e-3, "b": 1.02e-3}, replicas=3)
    result = run(world, runnables, inner=3)
    for entry in result.survivors:
        assert entry.rounds == list(range(result.rounds))
    by_name = {entry.name: entry for entry in result.entries}
    assert by_name["a"].samples == pytest.approx([1e-3] * len(by_name["a"].samples))
    assert by_name["default"].samples == pytest.approx([2e-3] * result.rounds)
    assert world.waited == 2 * sum(len(entry.samples) for entry in result.entries), "each sample waits before and after"


@pytest.mark.parametrize("most", [1, 2, 3, 7, 11])
def test_the_number_of_rounds_is_capped(most: int) -> None:
    world = World(noise=0.5)
    result = run(world, field_of(world, dict.fromkeys(["default", "a", "b", "c"], 1e-3)), max_rounds=most)
    assert result.rounds <= most
    assert all(max(entry.rounds) < most for entry in result.entries)
    assert settle(result).winner in {"default", "a", "b", "c"}


def test_without_a_cap_of_its_own_a_race_ends_too() -> None:
    world = World(noise=1.0, seed=3)
    result = run(world, field_of(world, {name: 1e-3 * (1 + i / 50) for i, name in enumerate(["default", *"abcdefg"])}))
    assert result.rounds <= MAX_ROUNDS


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_race_that_is_told_to_stop_does_so_but_not_before_two_rounds(after: int) -> None:
    world = World(noise=0.3)
    runnables = field_of(world, dict.fromkeys(["default", "a", "b"], 1e-3))
    result = run(world, runnables, stop=lambda: sum(runnables[0].counts.values()) >= after)
    assert result.rounds == max(2, after)
    assert result.stopped == "time"
    assert settle(result).status != "proven"


@pytest.mark.parametrize(("replicas", "inner"), [(1, 1), (4, 1), (4, 4), (4, 3), (5, 2), (3, 6)])
def test_every_tactic_meets_every_replica_equally_often(replicas: int, inner: int) -> None:
    world = World(noise=0.3)
    names = ["default", "a", "b"]
    runnables = field_of(world, dict.fromkeys(names, 1e-3), replicas=replicas)
    rounds = 2 * replicas
    result = run(world, runnables, inner=inner, max_rounds=rounds)
    survivors = {entry.name for entry in result.survivors}
    for runnable in runnables:
        counts = runnable.counts
        if runnable.name in survivors and result.rounds == rounds:
            assert set(counts.values()) == {rounds * inner // replicas}
        else:
            assert max(counts.values()) - min(counts.values(), default=0) <= inner
    first = runnables[0].counts
    assert all(r.counts == first for r in runnables if r.name in survivors), "the same replicas for all"


def test_a_round_begins_with_the_replica_after_the_last_ones() -> None:
    """Replicas that a sample met just now would be warmer than in service: a whole turn lies between two meetings."""
    world = World(noise=0.01)
    met: list[int] = []
    runnables = field_of(world, {"default": 1e-3, "a": 1e-3}, replicas=5)

    def noting(number: int, call: Callable[[], object]) -> Callable[[], object]:
        def noted() -> object:
            met.append(number)
            return call()

        return noted

    runnables[0].calls = [noting(number, call) for number, call in enumerate(runnables[0].calls)]
    run(world, runnables, inner=2, max_rounds=5)
    assert met == [0, 1, 2, 3, 4] * 2


def test_the_same_seed_gives_the_same_race_and_another_one_another_order() -> None:
    def samples(seed: int) -> list[list[float]]:
        world = World(noise=0.1)
        result = run(world, field_of(world, dict.fromkeys(["default", "a", "b"], 1e-3)), seed=seed)
        return [entry.samples for entry in result.entries]

    assert samples(1) == samples(1)
    assert samples(1) != samples(2)


def test_a_frontier_begins_with_the_winner_and_holds_the_best_of_each_runner_and_layout() -> None:
    world = World(noise=0.005)
    seconds = {
        "default": 1.3e-3,
        "one:x[p=1]": 1.0e-3,
        "one:x[p=2]": 1.2e-3,
        "one:y[p=1]": 1.1e-3,
        "one:y[p=2]": 1.4e-3,
        "two": 2.0e-3,
        "three[p=1]": 5e-3,
        "three[p=2]": 6e-3,
    }
    runnables = field_of(world, seconds)
    for runnable in runnables:
        runnable.bytes = 7 if ":" in runnable.name else 0
    choice = settle(run(world, runnables, inner=8))
    assert choice.winner == "one:x[p=1]"
    assert choice.frontier[0].tactic == choice.winner
    found = {member.tactic: member for member in choice.frontier}
    assert set(found) == {"one:x[p=1]", "one:y[p=1]", "default", "two", "three[p=1]"}
    for name, member in found.items():
        assert member.ratio == pytest.approx(seconds[name] / 1e-3, rel=0.02)
        assert member.low <= member.ratio <= member.high
        assert (member.bytes, member.layout) == (7 if ":" in name else 0, group(name)[1])
    ratios = [member.ratio for member in choice.frontier]
    assert ratios == sorted(ratios)
    assert choice.seconds == pytest.approx(1e-3, rel=0.02)
    assert choice.speedup.value == pytest.approx(1.3, rel=0.02)


def test_a_winner_by_preference_leads_the_frontier_and_its_own_group_though_another_is_faster() -> None:
    world = World()
    runnables = [
        Runnable(world, "default", 2e-3),
        Runnable(world, "one:x[p=1]", 1.000e-3, bytes_=9),
        Runnable(world, "one:x[p=2]", 1.004e-3, bytes_=3),
        Runnable(world, "two", 1.002e-3, bytes_=9),
    ]
    choice = settle(run(world, runnables))
    assert choice.winner == "one:x[p=2]"
    assert [member.tactic for member in choice.frontier] == ["one:x[p=2]", "two", "default"]
    assert choice.frontier[0].ratio == 1.0


def test_one_that_is_clearly_the_only_one_left_is_proven() -> None:
    world = World(noise=0.01)
    result = run(world, field_of(world, {"default": 2e-3, "a": 1e-3}))
    assert result.stopped == "one left"
    assert result.rounds >= 6, "an interval of the speed-up at 95 % needs six rounds"
    choice = settle(result)
    assert (choice.status, choice.loss) == ("proven", 0.0)


def test_a_choice_that_no_survivor_can_beat_by_much_is_proven() -> None:
    """Two that are equal, for as many rounds as a race has: neither is out, and neither is 3 % faster."""
    world = World(noise=0.002)
    result = run(world, field_of(world, {"default": 1e-3, "a": 1e-3, "b": 2e-3}))
    assert {entry.name for entry in result.survivors} == {"default", "a"}
    choice = settle(result)
    assert (choice.winner, choice.status) == ("default", "proven")
    assert choice.ties == ("a",)


def test_a_choice_that_is_worth_making_and_not_more_is_likely() -> None:
    world = World(noise=0.1, seed=1)
    result = run(world, field_of(world, {"default": 1e-3, **dict.fromkeys("abcd", 1.15e-3)}))
    assert result.stopped == "loss"
    choice = settle(result)
    assert (choice.winner, choice.status) == ("default", "likely")
    assert 0 <= choice.loss <= 0.005
    assert choice.loss == result.loss == min(result.losses)


def test_a_race_without_a_clear_end_is_unresolved() -> None:
    world = World(noise=0.2, seed=5)
    result = run(world, field_of(world, dict.fromkeys(["default", *"abcdefg"], 1e-3)), max_rounds=4)
    choice = settle(result)
    assert choice.status == "unresolved"
    assert 0.005 < choice.loss < math.inf


def test_no_choice_is_proven_that_is_far_from_the_best() -> None:
    proven = 0
    for seed in range(60):
        world = World(seed=seed, noise=0.02, spikes=0.03)
        gaps = random.Random(seed)
        seconds = {name: 1e-3 * gaps.uniform(1, 1.3) for name in ["default", *"abc"]}
        choice = settle(run(world, field_of(world, seconds), seed=seed, max_rounds=60))
        if choice.status == "proven":
            proven += 1
            assert seconds[choice.winner] <= 1.03 * min(seconds.values())
    assert proven >= 5, "nothing is ever proven"


def test_the_loss_of_a_choice_is_that_of_the_winner_and_not_of_the_leader() -> None:
    world = World(noise=0.001)
    result = run(world, equal(world, {"default": 0, "a": 0, "b": 0}, default=1.006, b=1.3))
    choice = settle(result)
    assert choice.winner == "default", "a tie, and preferred"
    assert choice.loss == pytest.approx(math.log(1.006), rel=0.2)
    assert result.loss == pytest.approx(0, abs=1e-4)
    assert [entry.name for entry in result.survivors][:2] == ["default", "a"]
    assert len(result.losses) == len(result.survivors)


def test_the_default_alone_wins() -> None:
    world = World(noise=0.01)
    choice = settle(run(world, field_of(world, {"default": 1e-3})))
    assert choice.winner == "default"
    assert [member.tactic for member in choice.frontier] == ["default"]
    assert choice.ties == ()


@pytest.mark.parametrize("broken", [0, 1, 3])
def test_a_tactic_that_fails_on_one_replica_leaves_and_the_race_goes_on(broken: int) -> None:
    world = World(noise=0.01)
    bad = Failing(world, "bad", 0.98e-3, broken)
    runnables = [*field_of(world, {"default": 1.5e-3, "a": 1e-3, "b": 1.2e-3}), bad]
    result = run(world, runnables)
    entry = next(entry for entry in result.entries if entry.name == "bad")
    assert entry.failed is not None
    assert entry.failed.reason == "runtime"
    assert "illegal instruction" in entry.failed.detail
    assert "\n" not in entry.failed.detail
    assert entry not in result.survivors
    choice = settle(result)
    assert choice.winner == "a"
    assert "bad" not in {member.tactic for member in choice.frontier}, "it has been seen to fail"
    assert "bad" not in choice.ties


def test_where_every_other_tactic_fails_the_default_wins() -> None:
    world = World(noise=0.01)
    runnables = [Runnable(world, "default", 1e-3), *(Failing(world, name, 1e-4, 2) for name in "ab")]
    result = run(world, runnables)
    assert result.default.rounds == list(range(result.rounds))
    assert settle(result).winner == "default"


def test_a_default_that_fails_is_the_callers_error() -> None:
    world = World()
    with pytest.raises(RuntimeError, match="illegal"):
        run(world, [Failing(world, "default", 1e-3, 0), Runnable(world, "a", 1e-3)])


# ------------------------------------------------------------------------------------------------------ going on


def test_a_race_that_goes_on_keeps_its_samples_and_numbers_its_rounds_on() -> None:
    world = World(noise=0.1, seed=2)
    runnables = field_of(world, {**dict.fromkeys(["default", "a", "b"], 1e-3), "snail": 9e-3})
    first = run(world, runnables, max_rounds=6)
    before = {entry.name: list(entry.samples) for entry in first.entries}
    made = sum(runnables[-1].counts.values())
    assert "snail" not in {entry.name for entry in first.survivors}
    again = run(world, runnables, max_rounds=12, earlier=first)
    assert (first.rounds, again.rounds) == (6, 12), "the earlier rounds count"
    for entry in again.entries:
        assert entry.samples[: len(before[entry.name])] == before[entry.name]
        assert entry.rounds == list(range(len(entry.samples)))
    assert sum(runnables[-1].counts.values()) == made, "who is out is not called"
    assert {entry.name for entry in again.survivors} <= {entry.name for entry in first.survivors}
    assert again.default.rounds == list(range(12))
    assert {name: list(entry.samples) for name, entry in zip(before, first.entries, strict=True)} == before


def test_a_race_goes_on_to_what_one_race_would_have_shown() -> None:
    """In parts of three rounds, with a new object for each tactic, it settles what is clear."""
    for seed in range(10):
        world = World(noise=0.05, seed=seed)
        seconds = {"default": 1.3e-3, "best": 1e-3, "b": 1.12e-3, "c": 3e-3}
        result = run(world, field_of(world, seconds), max_rounds=3)
        parts = 1
        while result.stopped == "rounds" and parts < 20:
            parts += 1
            result = run(world, field_of(world, seconds), max_rounds=3 * parts, earlier=result)
        assert parts >= 2
        assert result.stopped in ("one left", "loss", "shown")
        assert settle(result).winner == "best"


def test_a_race_that_had_all_its_rounds_does_not_go_on() -> None:
    world = World(noise=0.3)
    runnables = field_of(world, dict.fromkeys(["default", "a"], 1e-3))
    first = run(world, runnables, max_rounds=3)
    made = sum(runnables[0].counts.values())
    again = run(world, runnables, max_rounds=3, earlier=first)
    assert sum(runnables[0].counts.values()) == made
    assert (again.rounds, again.stopped) == (3, "rounds")
    assert again.loss == pytest.approx(first.loss, rel=0.5)


def test_one_that_failed_stays_out_when_the_race_goes_on() -> None:
    world = World(noise=0.3)
    runnables = [*field_of(world, dict.fromkeys(["default", "a"], 1e-3)), Failing(world, "bad", 1e-3, 0)]
    first = run(world, runnables, max_rounds=2)
    again = run(world, runnables, max_rounds=4, earlier=first)
    bad = next(entry for entry in again.entries if entry.name == "bad")
    assert bad.failed is not None
    assert bad.samples == []
    assert runnables[2].counts == Counter()


@pytest.mark.parametrize("names", [["default", "a"], ["default", "a", "b", "c"], ["default", "a", "c"]])
def test_a_race_of_others_cannot_go_on(names: list[str]) -> None:
    world = World(noise=0.3)
    first = run(world, field_of(world, dict.fromkeys(["default", "a", "b"], 1e-3)), max_rounds=2)
    with pytest.raises(ValueError, match="earlier race"):
        run(world, field_of(world, dict.fromkeys(names, 1e-3)), earlier=first)


def test_a_race_with_another_default_cannot_go_on() -> None:
    world = World(noise=0.3)
    runnables = field_of(world, dict.fromkeys(["default", "a"], 1e-3))
    first = run(world, runnables, max_rounds=2)
    with pytest.raises(ValueError, match="default a"):
        race(runnables, "a", world, inner=1, rng=random.Random(0), earlier=first)


# ------------------------------------------------------------------------------------------------------ drift


class Warming(World):
    """A machine that is slower and slower, or faster and faster: `rate` is what its log time grows by with each call."""

    rate = 0.0

    def work(self, seconds: float) -> None:
        self.calls = getattr(self, "calls", 0) + 1
        super().work(seconds * math.exp(self.rate * self.calls))


@pytest.mark.parametrize("percent", [60, -40])
def test_a_machine_that_drifts_is_found_out_and_the_choice_is_not_harmed(percent: int) -> None:
    found = 0
    for seed in range(20):
        world = Warming(noise=0.08, seed=seed)
        world.rate = math.log(1 + percent / 100) / 160
        seconds = dict.fromkeys(["default", *"abcdef"], 1.1e-3) | {"best": 1e-3}
        result = run(world, field_of(world, seconds), seed=seed, max_rounds=60)
        ratio = drifted(result)
        found += ratio is not None
        assert ratio is None or ratio == result.drift
        assert (result.drift > 1) == (percent > 0)
        assert settle(result).winner == "best"
    assert found >= 12


def test_a_quiet_machine_does_not_drift() -> None:
    for seed in range(30):
        world = World(noise=0.12, spikes=0.05, seed=seed)
        result = run(world, field_of(world, dict.fromkeys(["default", *"abc"], 1e-3)), seed=seed)
        assert drifted(result) is None
        assert result.drift == pytest.approx(1, rel=0.25)


def test_a_drift_too_small_to_matter_is_no_news() -> None:
    world = Warming()
    world.rate = math.log(1.02) / 160
    result = run(world, field_of(world, dict.fromkeys(["default", "a"], 1e-3)), max_rounds=3)
    result = run(world, field_of(world, dict.fromkeys(["default", "a"], 1e-3)), max_rounds=40, earlier=result)
    assert 1 < result.drift < 1.02
    assert drifted(result) is None


def test_a_race_of_few_rounds_shows_no_drift() -> None:
    world = Warming(noise=0.01)
    world.rate = 0.2
    result = run(world, field_of(world, dict.fromkeys(["default", "a"], 1e-3)), max_rounds=4)
    assert (result.drift, drifted(result)) == (1.0, None)
