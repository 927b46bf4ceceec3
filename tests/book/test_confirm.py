"""Confirming by a race: who is raced, and what the race and the records settle together."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.book import Source, diff, spread_between
from tunebook.book.confirm import Confirmation, confirm, of_script, still_different, suspects
from tunebook.devices import device_of
from tunebook.dispatch import collecting
from tunebook.errors import UsageError, UserCodeError
from tunebook.records import Member, Offered
from tunebook.tuner import Collection

KEY = "demo::pick|x.1=3|fp32|M≤2"


class Bench:
    """An op whose tactics take 1, 2, 1 and (the default) 3 ms; `wrong` gives another result. And books about it."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.device = device_of("cpu")
        made.environment = self.device.environment()

        @tb.op("demo::pick", buckets={"x": {0: tb.pow2(max=2, name="M")}})
        def pick(x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.003)
            return x + 1

        def pausing(seconds: float, added: float = 1.0) -> Callable[..., torch.Tensor]:
            def run(x: torch.Tensor) -> torch.Tensor:
                time.sleep(seconds)
                return x + added

            return run

        self.op: Any = pick
        for name, seconds, added in (("one", 0.001, 1), ("two", 0.002, 1), ("twin", 0.001, 1), ("wrong", 0.001, 2)):
            self.op.runner(name, version="1")(pausing(seconds, added))
        self.collection = Collection(self.device)
        with collecting(self.collection):
            pick(torch.zeros(2, 3))

    def offered(self, **versions: str) -> dict[str, Offered]:
        """What the op offers now; other versions where they are given."""
        now = {name: runner.offered for name, runner in self.op.runners.items()}
        now["default"] = Offered(version=self.op.default_version, space="")
        changed = {name: Offered(version=version, space=now[name].space) for name, version in versions.items()}
        return {**now, **changed}

    def side(
        self, winner: str, speedup: float, key: str = KEY, more: tuple[Member, ...] = (), **versions: str
    ) -> Source:
        first = Member(tactic=winner, ratio=1.0, low=1.0, high=1.0)
        return self.sides([self.made.verdict(
            key, speedup, winner=winner, offered=self.offered(**versions), run=f"{winner}{versions}", frontier=(first, *more)
        )])  # fmt: skip

    def sides(self, verdicts: list[Any]) -> Source:
        return Source.read(self.made.run(verdicts))

    def confirm(self, before: Source, after: Source, budget_s: float = 20.0) -> tuple[Confirmation, ...]:
        spread = spread_between((before, after))
        found = diff(before, after, spread)
        return confirm(
            found, before, after, spread, self.collection, self.device, budget_s=budget_s, rng=random.Random(0)
        )


@pytest.fixture
def bench(made: Any, clean_ops: None) -> Bench:
    return Bench(made)


def test_two_choices_of_the_same_code_are_settled_by_the_race(bench: Bench) -> None:
    before, after = bench.side("one", 1.5), bench.side("two", 1.5)
    (one,) = bench.confirm(before, after)
    assert (one.problem, one.outcome, one.by) == (KEY, "different", "race")
    assert one.ratio == pytest.approx(0.5, abs=0.15)
    assert one.low <= one.ratio <= one.high < 0.9
    assert one.rounds >= 8
    assert one.today.keys() == {"one", "two"}
    assert one.today["one"][0] == pytest.approx(3, abs=1)
    assert still_different(diff(before, after), [one]) == [KEY]


def test_twins_are_the_same_whatever_the_records_say(bench: Bench) -> None:
    before, after = bench.side("one", 3.0), bench.side("twin", 1.5)
    assert diff(before, after).significant
    (one,) = bench.confirm(before, after)
    assert one.outcome in ("same", "not settled")
    assert one.low < 1.05
    assert one.high > 0.95
    assert still_different(diff(before, after), [one]) == []


def test_one_tactic_in_one_version_cannot_differ(bench: Bench) -> None:
    before, after = bench.side("one", 3.0), bench.side("one", 1.5)
    before = Source.read(before.path)
    (one,) = bench.confirm(before, after)
    assert (one.outcome, one.tactic) == ("same", "one")
    assert "differ by noise" in one.detail


def test_where_the_code_has_changed_the_race_stands_beside_the_newer_record(bench: Bench) -> None:
    """One was six times as fast as the default in a version that is gone; it is three times as fast now."""
    before, after = bench.side("one", 6.0, one="0"), bench.side("one", 3.0)
    (one,) = bench.confirm(before, after)
    assert (one.outcome, one.by, one.tactic) == ("different", "records and race", "one")
    assert one.ratio == pytest.approx(0.5, abs=0.12)
    (back,) = bench.confirm(after, before)
    assert back.outcome == "different"
    assert back.ratio == pytest.approx(1 / one.ratio, rel=0.2)


def test_an_old_winner_that_became_slow_is_named_though_another_was_chosen(bench: Bench) -> None:
    """`two` was as fast as `one` is; now it is half as fast, and `one` serves instead."""
    slower = Member(tactic="two", ratio=2.0, low=1.95, high=2.05)
    before, after = bench.side("two", 3.0, two="0"), bench.side("one", 3.0, more=(slower,))
    (one,) = bench.confirm(before, after)
    assert one.outcome == "different"
    assert one.by == "race"
    assert one.ratio == pytest.approx(2, abs=0.5)
    assert re.match(r"one is [\d.]+ times as fast as two", one.detail)


def test_where_the_choices_are_alike_now_the_former_one_is_still_held_against_its_record(bench: Bench) -> None:
    """`twin` was six times as fast as the default, and is as fast as `one` now, which serves instead: both lost half."""
    before, after = bench.side("twin", 6.0, twin="0"), bench.side("one", 3.0)
    (one,) = bench.confirm(before, after)
    assert (one.outcome, one.by) == ("different", "records and race")
    assert one.ratio == pytest.approx(0.5, abs=0.12)
    (back,) = bench.confirm(after, before)
    assert back.ratio == pytest.approx(1 / one.ratio, rel=0.25)


def test_where_neither_code_is_here_one_tactic_cannot_be_settled_and_two_are_raced(bench: Bench) -> None:
    (one,) = bench.confirm(bench.side("one", 3.0, one="0"), bench.side("one", 1.5, one="00"))
    assert one.outcome == "not settled"
    assert "not here now" in one.detail
    (two,) = bench.confirm(bench.side("one", 3.0, one="0"), bench.side("two", 1.5, default="0"))
    assert (two.outcome, two.by) == ("different", "race")


def test_a_record_that_the_race_does_not_bear_out_is_not_believed(bench: Bench) -> None:
    """The second record says that `one` lost two thirds; now it is as fast as the first one said."""
    (one,) = bench.confirm(bench.side("one", 2.8, one="0"), bench.side("one", 1.0 + 1e-9))
    assert one.outcome in ("same", "not settled")
    assert one.p > 0.01


def test_a_choice_that_is_wrong_now_is_a_difference(bench: Bench) -> None:
    (one,) = bench.confirm(bench.side("one", 3.0), bench.side("wrong", 3.0))
    assert (one.outcome, one.tactic) == ("different", "wrong")
    assert "correctness" in one.detail


def test_a_choice_that_nobody_offers_now_is_left_to_the_records(bench: Bench) -> None:
    gone = bench.side("one", 6.0)
    del bench.op.runners["one"]
    for before, after, ratio in ((gone, bench.side("two", 1.5), 0.25), (bench.side("two", 1.5), gone, 4.0)):
        (one,) = bench.confirm(before, after)
        assert (one.outcome, one.by, one.tactic) == ("different", "records and race", "two")
        assert one.ratio == pytest.approx(ratio, rel=0.2)
    both_gone = bench.side("two", 1.5)
    del bench.op.runners["two"]
    (one,) = bench.confirm(gone, both_gone)
    assert one.outcome == "not settled"
    assert "not offered now" in one.detail


def test_only_suspects_are_raced_and_the_likeliest_first(bench: Bench) -> None:
    made, now = bench.made, bench.offered()
    keys = {
        name: f"demo::pick|x.1={place}|fp32|M≤2" for place, name in enumerate(("calm", "flip", "large", "little"), 4)
    }

    def side(flip: str, large: float, little: float, name: str) -> Source:
        told = {"calm": 2.0, "flip": 1.5, "large": large, "little": little}
        return bench.sides([
            made.verdict(keys[k], value, winner=flip if k == "flip" else "one", offered=now, run=name, spread=0.002)
            for k, value in told.items()
        ])  # fmt: skip

    before, after = side("one", 3.0, 2.0, "a"), side("two", 1.5, 2.02, "b")
    spread = spread_between((before, after))
    ranked = suspects(diff(before, after, spread), before, after, spread)
    assert [change.problem for change in ranked] == [keys["large"], keys["flip"]]


def test_what_cannot_be_raced_is_said_and_its_record_stands(bench: Bench) -> None:
    other = KEY.replace("x.1=3", "x.1=4")
    before, after = bench.side("one", 3.0, key=other), bench.side("two", 1.5, key=other)
    (one,) = bench.confirm(before, after)
    assert one.outcome == "not raced"
    assert "do not meet this problem" in one.detail
    assert still_different(diff(before, after), [one]) == [other]


def test_a_budget_that_is_spent(bench: Bench) -> None:
    verdicts = [[bench.made.verdict(key, 1.5, winner=winner, offered=bench.offered(), run=winner)
                 for key in (KEY, KEY.replace("M≤2", "M≤1"))] for winner in ("one", "two")]  # fmt: skip
    before, after = map(bench.sides, verdicts)
    raced = bench.confirm(before, after, budget_s=1e-3)
    assert [one.outcome for one in raced][1] == "not raced"
    assert "--budget" in raced[1].detail
    assert raced[0].rounds == 8, "one that is begun has the least number of rounds"


# Calls from a script


def test_the_calls_of_a_script_are_collected_and_nothing_is_tuned(clean_ops: None, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(
        "import torch\nimport tunebook as tb\n\n"
        "@tb.op('demo::script')\ndef add(x):\n    return x + 1\n\n"
        "with tb.autotune():\n    add(torch.zeros(4, 2))\n",
        encoding="utf-8",
    )
    collection = of_script([script])
    assert [o.problem.key for o in collection.observations] == ["demo::script|x.1=2|fp32|x.0≤4"]
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_script_without_calls_and_one_that_fails(clean_ops: None, tmp_path: Path) -> None:
    silent, failing = tmp_path / "silent.py", tmp_path / "failing.py"
    silent.write_text("x = 1\n", encoding="utf-8")
    failing.write_text("raise RuntimeError('no')\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"silent\.py: importing it calls no op"):
        of_script([silent])
    with pytest.raises(UserCodeError, match=r"failing\.py:1: RuntimeError: no"):
        of_script([failing])
    with tb.autotune(policy="replay"):
        pass  # the block that was left behind is closed
