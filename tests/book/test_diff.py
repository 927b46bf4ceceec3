"""What `diff` says of two books whose content is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunebook.book import FLOOR, Source, check_names, diff, place_of, resolve
from tunebook.errors import StoreError, UsageError
from tunebook.records import Environment, Member, Offered, Overall, Phase, Plan, Profile, Rejected, Timed


def compared(one: Path, other: Path) -> Any:
    return diff(Source.read(one), Source.read(other))


def test_a_run_against_itself_is_the_same(made: Any) -> None:
    path = made.run([made.verdict(made.key(1)), made.verdict(made.key(2), 1.0)])
    found = compared(path, path)
    assert [(c.ratio, c.p, c.q, c.flipped) for c in found.changes] == [(1.0, 1.0, 1.0, False)] * 2
    assert not found.significant
    assert found.comparable
    assert (found.fields, found.turns, found.only_before, found.only_after, found.unmeasured) == ((),) * 5


def test_a_change_is_of_the_speed_up_over_the_runs_own_default(made: Any) -> None:
    """The whole machine is twice as slow in the second run: nothing has changed."""
    slow = made.verdict(made.key(1), 1.5, seconds=2e-4 / 1.5, run="b.jsonl")
    found = compared(made.run([made.verdict(made.key(1), 1.5)]), made.run([slow]))
    (change,) = found.changes
    assert change.ratio == pytest.approx(1.0)
    assert not change.significant
    assert change.default_ratio == pytest.approx(2.0)
    assert found.default_ratio == pytest.approx((2.0, 2.0, 2.0))
    assert change.before.default_s == pytest.approx(1e-4)
    assert change.after.default_s == pytest.approx(2e-4)


def test_a_large_change_is_significant_and_its_interval_is_of_both_noises(made: Any) -> None:
    one = made.run([made.verdict(made.key(1), 2.0, spread=0.02)])
    other = made.run([made.verdict(made.key(1), 1.0 + 1e-9, winner="native[tile=2]", spread=0.02, run="b.jsonl")])
    (change,) = compared(one, other).changes
    assert change.ratio == pytest.approx(0.5)
    assert change.significant
    assert change.flipped
    within = (math.log(1.02 / 0.98) / 2 / 2.04) ** 2  # the interval of 20 rounds covers 95.9 %
    half = 1.96 * math.sqrt(2 * (within + FLOOR**2))
    assert math.log(change.high / change.low) / 2 == pytest.approx(half, rel=0.03)


def test_without_restarts_ten_percent_of_one_run_are_not_shown(made: Any) -> None:
    """3 % from run to run are assumed, on both sides."""
    one = made.run([made.verdict(made.key(1), 1.5, spread=0.001)])
    other = made.run([made.verdict(made.key(1), 1.5 * 0.93, spread=0.001, run="b.jsonl")])
    found = compared(one, other)
    assert found.between.restarts == 0
    assert found.between.deviation == FLOOR
    assert not found.significant


def test_two_that_keep_the_default_have_nothing_to_differ_in(made: Any) -> None:
    one = made.run([made.verdict(made.key(1), 1.0, seconds=1e-4)])
    other = made.run([made.verdict(made.key(1), 1.0, seconds=3e-4, run="b.jsonl")])
    (change,) = compared(one, other).changes
    assert (change.ratio, change.p) == (1.0, 1.0)
    assert change.default_ratio == pytest.approx(3.0)


def test_a_cache_is_compared_by_the_intervals_of_its_verdicts(made: Any) -> None:
    cache = made.cache([made.verdict(made.key(1), 1.5, run="a.jsonl"), made.verdict(made.key(2), 3.0)])
    run = made.run([made.verdict(made.key(1), 1.5, run="a.jsonl"), made.verdict(made.key(2), 1.1, run="b.jsonl")])
    found = compared(cache, run)
    assert (found.before.kind, found.after.kind) == ("cache", "run")
    first, second = sorted(found.changes, key=lambda c: c.problem)
    assert first.p == 1.0, "it is the verdict of that very run"
    assert second.significant


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.tuples(st.floats(1.01, 4), st.floats(1.01, 4)), min_size=1, max_size=8))
def test_exchanging_the_sides_inverts_every_change(made: Any, speedups: list[tuple[float, float]]) -> None:
    sides = [
        made.run(
            [made.verdict(made.key(i + 1), pair[place], run=f"{place}.jsonl") for i, pair in enumerate(speedups)],
            name=f"winners.{place}.jsonl",
        )
        for place in (0, 1)
    ]
    there, back = ({c.problem: c for c in compared(*pair).changes} for pair in (sides, sides[::-1]))
    for key, change in there.items():
        assert change.ratio == pytest.approx(1 / back[key].ratio)
        assert (change.low, change.high) == pytest.approx((1 / back[key].high, 1 / back[key].low))
        assert (change.p, change.q) == pytest.approx((back[key].p, back[key].q))
        assert change.low <= change.ratio <= change.high


def test_every_problem_more_makes_the_same_change_less_sure(made: Any) -> None:
    one = [made.verdict(made.key(1), 2.0)]
    other = [made.verdict(made.key(1), 1.7, run="b.jsonl")]
    more = [made.verdict(made.key(size), 1.5) for size in range(2, 40)]
    alone = compared(made.run(one), made.run(other)).changes[0]
    among = compared(made.run([*one, *more]), made.run([*other, *more])).changes[0]
    assert among.problem == alone.problem
    assert among.p == pytest.approx(alone.p)
    assert among.q == pytest.approx(39 * alone.p)


def test_problems_of_one_side_and_those_that_were_left_out_are_named(made: Any) -> None:
    left_out = made.verdict(made.key(3), 1.0, note="left out: the budget was spent", rounds=0, run="b.jsonl")
    one = made.run([made.verdict(made.key(1)), made.verdict(made.key(3), 5.0)])
    other = made.run([made.verdict(made.key(2)), left_out])
    found = compared(one, other)
    assert found.only_before == (made.key(1),)
    assert found.only_after == (made.key(2),)
    assert found.unmeasured == (made.key(3),)
    assert found.changes == ()


def test_tactics_that_are_newly_rejected_or_offered_are_told_once_for_all_problems(made: Any) -> None:
    def rejected(tactic: str, detail: str = "row 3 is off") -> Rejected:
        return Rejected(tactic=tactic, reason="correctness", detail=detail)

    keys = [made.key(size) for size in (1, 2, 4, 8)]
    newer = {
        "default": made.offered["default"],
        "native": Offered(version="8", space="s"),
        "fast": Offered(version="1", space=""),
    }
    one = made.run([made.verdict(key) for key in keys], trials={keys[0]: [rejected("native[tile=9]")]})
    other = made.run(
        [made.verdict(key, offered=newer, run="b.jsonl") for key in keys],
        trials={key: [rejected("native[tile=4]")] for key in keys},
    )
    turns = {(turn.what, turn.tactic): turn for turn in compared(one, other).turns}
    assert turns.keys() == {
        ("newly rejected", "native[tile=4]"),
        ("no longer rejected", "native[tile=9]"),
        ("newly offered", "fast"),
        ("another version", "native"),
    }
    assert turns["newly rejected", "native[tile=4]"].count == 4
    assert turns["newly rejected", "native[tile=4]"].detail == "correctness: row 3 is off"
    assert turns["no longer rejected", "native[tile=9]"].problems == (keys[0],)
    assert turns["another version", "native"].detail == "7 ≠ 8"


def test_a_space_that_has_changed_tells_which_tactics_are_new_and_gone(made: Any) -> None:
    def timed(tile: int) -> Timed:
        return Timed(tactic=f"native[tile={tile}]", samples=(1e-4,), rounds=(0,))

    wider = {**made.offered, "native": Offered(version="7", space="wider")}
    key = made.key(1)
    one = made.run([made.verdict(key)], trials={key: [timed(1), timed(2)]})
    other = made.run([made.verdict(key, offered=wider, run="b.jsonl")], trials={key: [timed(1), timed(3)]})
    told = {(turn.what, turn.tactic) for turn in compared(one, other).turns}
    assert told == {("newly offered", "native[tile=3]"), ("no longer offered", "native[tile=2]")}


def test_a_runner_that_is_gone(made: Any) -> None:
    one = made.run([made.verdict(made.key(1))])
    only_default = {"default": made.offered["default"]}
    other = made.run([made.verdict(made.key(1), 1.0, offered=only_default, run="b.jsonl")])
    assert [(t.what, t.tactic) for t in compared(one, other).turns] == [("no longer offered", "native")]


def test_environments_and_headers_are_compared_field_by_field(made: Any) -> None:
    elsewhere = Environment(hard={"device": "another cpu", "threads": "2"}, soft={"torch": "2.14", "load": "0.1"})
    one = made.run([made.verdict(made.key(1))], commit="a" * 40, dirty=True)
    other = made.run([made.verdict(made.key(1))], environment=elsewhere, commit="b" * 40, dirty=False, note="new tiles")
    found = compared(one, other)
    assert not found.comparable
    assert {(f.name, f.before, f.after, f.hard) for f in found.fields} == {
        ("device", "cpu of a test", "another cpu", True),
        ("torch", "2.13", "2.14", False),
        ("run commit", "a" * 40, "b" * 40, False),
        ("run dirty", "yes", "no", False),
        ("run note", "-", "new tiles", False),
    }


def test_another_default_is_told(made: Any) -> None:
    other_default = {**made.offered, "default": Offered(version="2", space="")}
    one = made.run([made.verdict(made.key(1))])
    other = made.run([made.verdict(made.key(1), 1.6, offered=other_default, run="b.jsonl")])
    found = compared(one, other)
    assert found.changes[0].default_changed
    assert found.default_ratio is None


def plan(tactics: dict[str, str], taken: dict[str, float], seconds: float, overall: float) -> Plan:
    phase = Phase(
        phase="decode",
        batch=4,
        tokens=1,
        default_ms=10.0,
        tuned_ms=10.0 / overall,
        speedup=overall,
        speedup_low=overall - 0.1,
        speedup_high=overall + 0.1,
    )
    return Plan(
        model="a-model",
        fingerprint="f",
        tactics=tactics,
        requested=("decode 4",),
        profile=(Profile(phase="decode 4", seconds=seconds, calls=dict.fromkeys(taken, 1), taken=taken),),
        verified=True,
        phases=(phase,),
        overall=Overall(speedup=overall, speedup_low=overall - 0.1, speedup_high=overall + 0.1),
    )


def test_the_expected_effect_on_a_phase_is_that_of_both_sides_in_one_profile(made: Any) -> None:
    """A step of 1 s, of which one problem takes 0.6: 0.3 with the first choice, 0.15 with the second; another is the same."""
    first, second = made.key(1), made.key(2)
    taken = {first: 0.6, second: 0.2, made.key(64): 0.1}
    tactics = {first: "native[tile=1]", second: "native[tile=1]"}
    one = made.run(
        [made.verdict(first, 2.0), made.verdict(second, 2.0)], plan=plan(tactics, {first: 9.0}, 10.0, overall=1.2)
    )
    other = made.run(
        [made.verdict(first, 4.0, run="b.jsonl"), made.verdict(second, 2.0)],
        plan=plan(tactics, taken, 1.0, overall=1.5),
    )
    (phase,) = compared(one, other).phases
    assert phase.phase == "decode 4"
    assert phase.ratio == pytest.approx((1 - 0.3 - 0.1) / (1 - 0.45 - 0.1))
    assert phase.low < phase.ratio < phase.high
    assert phase.share == pytest.approx(0.8)
    assert phase.before == pytest.approx((1.2, 1.1, 1.3))
    assert phase.after == pytest.approx((1.5, 1.4, 1.6))


def test_a_plan_that_serves_another_tactic_than_the_winner_counts_with_that(made: Any) -> None:
    key = made.key(1)
    frontier = (
        Member(tactic="native[tile=1]", ratio=1.0, low=1.0, high=1.0),
        Member(tactic="torch", ratio=2.0, low=1.9, high=2.1),
    )
    offered = {**made.offered, "torch": Offered(version="1", space="")}
    verdict = made.verdict(key, 4.0, frontier=frontier, offered=offered)
    served = {"winner": "native[tile=1]", "other": "torch", "default": "default"}
    runs = {
        name: made.run([verdict], plan=plan({key: tactic}, {key: 0.5}, 1.0, overall=1.1))
        for name, tactic in served.items()
    }
    steps = {"winner": 1 - 0.5 * 3 / 4, "other": 1 - 0.5 / 2, "default": 1.0}
    for name, step in steps.items():
        (phase,) = compared(runs["default"], runs[name]).phases
        assert phase.ratio == pytest.approx(1.0 / step)


def test_without_a_profile_no_phase_is_told(made: Any) -> None:
    assert compared(made.run([made.verdict(made.key(1))]), made.run([made.verdict(made.key(1))])).phases == ()


def test_lines_that_cannot_be_read_are_counted_and_a_torn_one_is_not(made: Any) -> None:
    path = made.run([made.verdict(made.key(1)), made.verdict(made.key(2))])
    header, first, second, _ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + first + second.replace(b'"proven"', b'"perhaps"') + b"\xff\xff\n" + second[:40])
    source = Source.read(path)
    assert source.verdicts.keys() == {made.key(1)}
    assert source.unreadable == 1
    assert diff(source, source).before.unreadable == 1


def test_lines_in_another_layout_are_read_as_well(made: Any) -> None:
    path = made.run(
        [made.verdict(made.key(1))], trials={made.key(1): [Rejected(tactic="native[tile=3]", reason="memory")]}
    )
    spaced = [b" " + line.replace(b'{"type":', b'{ "type" : ') for line in path.read_bytes().splitlines(keepends=True)]
    other = path.with_name("winners.spaced.jsonl")
    other.write_bytes(b"".join(spaced))
    one, two = Source.read(path), Source.read(other)
    assert (two.verdicts, two.header) == (one.verdicts, one.header)
    assert two.rejected(made.key(1)) == one.rejected(made.key(1)) != {}


def test_what_is_neither_a_run_nor_a_cache(made: Any, tmp_path: Path) -> None:
    for name, content in {
        "empty": b"",
        "text": b"hello\n",
        "list": b"[1]",
        "old": b'{"type":"header","schema":99}\n',
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(StoreError, match=name):
            Source.read(path)
    with pytest.raises(StoreError, match="no such file"):
        Source.read(tmp_path / "absent")
    with pytest.raises(StoreError, match="directory"):
        Source.read(tmp_path)


# The words that stand for files


def test_latest_previous_and_cache(made: Any) -> None:
    paths = [
        made.run([made.verdict(made.key(1))]),
        made.run([made.verdict(made.key(1))], model="another"),
        made.run([made.verdict(made.key(1))]),
    ]
    place = place_of(made.cache([]))
    assert resolve("latest", place) == paths[2]
    assert resolve("previous", place) == paths[0], "the one before it is of another model"
    assert resolve("latest", place, "another") == paths[1]
    assert resolve("cache", place) == made.cache_path
    assert resolve("some/path.jsonl", place) == Path("some/path.jsonl")


def test_runs_of_one_second_are_told_apart_by_their_number(made: Any) -> None:
    verdicts, started = [made.verdict(made.key(1))], "2026-01-01T00:00:00"
    for suffix in ("", "-9", "-10"):
        made.run(verdicts, name=f"winners.20260101_000000{suffix}.jsonl", started=started)
    place = place_of(made.cache([]))
    assert resolve("latest", place).name == "winners.20260101_000000-10.jsonl"
    assert resolve("previous", place).name == "winners.20260101_000000-9.jsonl"


def test_words_without_a_file(made: Any) -> None:
    place = place_of(made.cache_path)
    with pytest.raises(StoreError, match="latest: there is no run"):
        resolve("latest", place)
    made.run([made.verdict(made.key(1))])
    with pytest.raises(StoreError, match="only run of a-model"):
        resolve("previous", place)
    with pytest.raises(StoreError, match="no run of nobody"):
        resolve("latest", place, "nobody")
    with pytest.raises(UsageError, match="latest and latest are the same"):
        check_names(("latest", "latest"))
    check_names(("a.jsonl", "a.jsonl"))
