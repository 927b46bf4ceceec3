"""One budget for all problems: who is tuned first, for how long, what goes on afterwards, and what an end leaves behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tunebook.records import DEFAULT, Verdict
from tunebook.store import read_cache

CROWD = {"p": tuple(range(6))}


def key(op: str, size: int = 1) -> str:
    return f"{op}|x.1=3|fp32|M≤{size}"


def crowded(lab: Any, name: str, default: float, **options: Any) -> None:
    """An op whose tactics are so near each other, and so noisy, that a race of them ends unresolved."""
    lab.op(name, default, sigma=0.3, weight=options.pop("weight", 0))
    lab.runner(name, "near", CROWD, lambda size, p: default * (0.5 + 0.002 * p), sigma=0.3, **options)


def plain(lab: Any, name: str, default: float) -> None:
    """An op with one tactic of half the time: settled at once."""
    lab.op(name, default)
    lab.runner(name, "fast", {"p": (1,)}, lambda size, p: default / 2)


def rounds(lab: Any, op: str, tactic: str = "default") -> list[int]:
    return [number for number, _ in lab.samples(key(op), tactic) if number >= 0]


# ------------------------------------------------------------------------------------------------------------ first pass


def test_what_takes_most_of_the_time_comes_first(lab: Any) -> None:
    for name, default in (("little", 1e-3), ("much", 9e-3), ("some", 4e-3)):
        plain(lab, name, default)
    outcome = lab.tune({"little": [1], "much": [1], "some": [1]}, 60.0)
    assert lab.asked == [key("much"), key("some"), key("little")]
    assert {verdict.winner for verdict in outcome.verdicts.values()} == {"fast[p=1]"}


def test_what_neighbours_showed_counts_where_nothing_is_to_be_gained_comes_later(lab: Any) -> None:
    """Two families of three sizes: the heavier one's first problem shows that the default is the best there is."""
    lab.op("settled", 8e-3)
    lab.runner("settled", "slow", {"p": (1,)}, lambda size, p: 12e-3)
    plain(lab, "open", 5e-3)
    lab.tune({"settled": [2, 4], "open": [2, 4]}, 60.0)
    assert lab.asked[0] == key("settled", 2)
    assert lab.asked[1:3] == [key("open", 2), key("open", 4)], (
        "4 ms may be saved there, and almost nothing on the other"
    )
    assert lab.asked[-1] == key("settled", 1), "the bucket that was not met counts least"
    assert len(lab.asked) == 6


def test_an_expensive_hopeless_space_starves_nobody(lab: Any) -> None:
    """Twenty tactics, each a second a call and wrong, on the heavier problem: the other one is settled all the same."""
    lab.op("trap", 11e-3)
    lab.runner("trap", "wrong", {"p": tuple(range(20))}, lambda size, p: 1.0, right=lambda p: False)
    plain(lab, "good", 10e-3)
    before = lab.machine.now
    outcome = lab.tune({"trap": [1], "good": [1]}, 8.0)
    assert lab.asked[0] == key("trap")
    assert outcome.verdicts[key("good")].status == "proven"
    trap = outcome.verdicts[key("trap")]
    assert (trap.winner, trap.status) == (DEFAULT.name, "unresolved")
    assert trap.space == 21
    assert 1 < trap.seen < 21
    assert trap.note.startswith(f"saw {trap.seen} of 21 tactics")
    assert lab.machine.now - before < 8.0 + 4.0, "one check too long, no more"


def test_where_nothing_passes_its_check_the_time_still_ends(lab: Any) -> None:
    lab.op("trap", 1e-3)
    lab.runner("trap", "wrong", {"p": tuple(range(20))}, lambda size, p: 1.0, right=lambda p: False)
    outcome = lab.tune({"trap": [1]}, 1e-3)
    assert sum(count > 0 for (_, tactic), count in lab.calls.items() if tactic != "default") == 1
    assert outcome.verdicts[key("trap")].seen == 2


def test_each_problem_is_reached_before_any_race_takes_long_and_then_all_go_on_to_their_end(lab: Any) -> None:
    names = [f"op{number}" for number in range(5)]
    for name in names:
        crowded(lab, name, 0.01)
    after_first: dict[str, int] = {}

    def look(done: int, total: int, what: str) -> None:
        if what.startswith("going on") and not after_first:
            after_first.update({key: verdict.rounds for key, verdict in lab.session.outcome.verdicts.items()})

    outcome = lab.tune({name: [1] for name in names}, 500.0, progress=look)
    assert after_first.keys() == outcome.verdicts.keys()
    assert all(2 <= rounds <= 8 for rounds in after_first.values())
    assert all(v.status != "unresolved" or v.rounds == 40 for v in outcome.verdicts.values())
    assert not any("time was up" in v.note for v in outcome.verdicts.values())
    assert max(v.rounds for v in outcome.verdicts.values()) > 8


def test_every_problem_has_a_verdict_when_the_budget_ends_and_those_left_out_are_answers(lab: Any) -> None:
    for number in range(6):
        plain(lab, f"op{number}", 1.0)
    asked: dict[str, list[int]] = {f"op{number}": [1] for number in range(6)}
    outcome = lab.tune(asked, 20.0)
    assert set(outcome.verdicts) == {key(name) for name in asked}
    left = [verdict for verdict in outcome.verdicts.values() if verdict.note.startswith("left out")]
    assert len(left) == outcome.left_out > 0
    assert all((v.winner, v.status, v.space, v.seen, v.rounds) == ("default", "unresolved", 2, 0, 0) for v in left)
    again = lab.tune(asked, 1000.0)
    assert (again.tuned, again.left_out, lab.asked) == (0, 0, []), "a plain second start tunes nothing"


# ----------------------------------------------------------------------------------------------------------- second pass


def test_what_others_leave_goes_to_the_race_that_time_ended_and_all_samples_are_kept(lab: Any) -> None:
    crowded(lab, "crowd", 0.1)
    plain(lab, "quick", 0.09)
    outcome = lab.tune({"crowd": [1], "quick": [1]}, 22.0)
    verdict = outcome.verdicts[key("crowd")]
    assert [asked for asked in lab.asked if asked.startswith("going on")]
    assert lab.asked[:2] == [key("crowd"), key("quick")]
    written = rounds(lab, "crowd")
    assert written == list(range(verdict.rounds)), "each round once, in order, though it went on later"
    lines = [line for line in lab.run().trials if line.problem == key("crowd") and line.trial.tactic == "default"]
    assert len(lines) == 1, "one race, whose samples are one trial"
    assert lab.run().verdicts[key("crowd")] == verdict, "the last verdict counts"
    assert outcome.fresh.count(key("crowd")) == 1


def test_a_race_that_goes_on_calls_each_tactic_once_a_round_and_checks_nothing_again(lab: Any) -> None:
    """Each call of a tactic is one of its check, of its look, or a round that the run file has."""
    crowded(lab, "crowd", 0.1)
    plain(lab, "quick", 0.09)
    lab.tune({"crowd": [1], "quick": [1]}, 22.0)
    for number in CROWD["p"]:
        tactic = f"near[p={number}]"
        assert lab.calls["crowd", tactic] - len(rounds(lab, "crowd", tactic)) in (2, 4)


def test_the_race_goes_on_first_where_most_is_at_stake(lab: Any) -> None:
    crowded(lab, "heavy", 0.2)
    crowded(lab, "light", 0.1)
    plain(lab, "quick", 0.09)
    lab.tune({"light": [1], "heavy": [1], "quick": [1]}, 35.0)
    going = [asked for asked in lab.asked if asked.startswith("going on")]
    assert going[0] == f"going on: {key('heavy')}"


def test_without_a_budget_every_race_runs_to_its_end_and_nothing_is_left_to_go_on_with(lab: Any) -> None:
    crowded(lab, "crowd", 0.1)
    plain(lab, "quick", 0.09)
    outcome = lab.tune({"crowd": [1], "quick": [1]}, None)
    assert not [asked for asked in lab.asked if asked.startswith("going on")]
    assert not any("time was up" in verdict.note for verdict in outcome.verdicts.values())


def test_the_second_pass_ends_with_the_budget(lab: Any) -> None:
    for name in ("one", "two", "three"):
        crowded(lab, name, 0.1)
    before = lab.machine.now
    outcome = lab.tune({"one": [1], "two": [1], "three": [1]}, 15.0)
    assert 14.0 < lab.machine.now - before < 18.0
    assert {verdict.status for verdict in outcome.verdicts.values()} == {"unresolved"}
    assert all(verdict.loss > 0.005 for verdict in outcome.verdicts.values())
    assert all("its time was up" in verdict.note for verdict in outcome.verdicts.values())


def test_tactics_that_were_not_reached_are_tried_later(lab: Any) -> None:
    """The best is the last one, and there is no time for it in the problem's own share."""
    lab.op("slow", 0.1)
    lab.runner("slow", "many", {"p": tuple(range(12))}, lambda size, p: 0.2 if p < 11 else 0.02)
    plain(lab, "quick", 0.09)
    outcome = lab.tune({"slow": [1], "quick": [1]}, 12.5)
    verdict = outcome.verdicts[key("slow")]
    assert f"going on: {key('slow')}" in lab.asked
    assert (verdict.seen, verdict.space, verdict.winner) == (13, 13, "many[p=11]")
    assert verdict.status != "unresolved"
    assert verdict.speedup == pytest.approx(5, rel=0.1)
    assert "saw" not in verdict.note
    written = rounds(lab, "slow")
    assert len(set(written)) == len(written), "a race that was begun again counts its rounds on"


def test_a_tactic_that_fails_when_the_race_goes_on_is_rejected_then(lab: Any) -> None:
    crowded(lab, "crowd", 0.1)
    lab.runner("crowd", "late", {"p": (1,)}, lambda size, p: 0.04, sigma=0.3, fails_after=14)
    plain(lab, "quick", 0.09)
    outcome = lab.tune({"crowd": [1], "quick": [1]}, 60.0)
    verdict = outcome.verdicts[key("crowd")]
    assert [(r.tactic, r.reason) for r in verdict.rejected] == [("late[p=1]", "runtime")]
    assert "late[p=1]" not in {member.tactic for member in verdict.frontier}
    assert [tactic for _, tactic in ((k, r.tactic) for k, r in outcome.rejected)] == ["late[p=1]"], "told once"


def test_races_that_do_not_fit_the_memory_are_entered_anew_with_their_samples(lab: Any) -> None:
    """Weights of a race that waits for its turn are released, and prepared again when it goes on."""
    megabyte = 1 << 20
    lab.machine.free = 32 * megabyte  # of which a quarter may be held
    for name in ("one", "two"):
        crowded(lab, name, 0.1, weight=megabyte)
    plain(lab, "quick", 0.099)
    lab.tune({"one": [1], "two": [1], "quick": [1]}, 35.0)
    assert lab.made > 2 * 6, "some were prepared twice"
    assert lab.peak <= 8 * megabyte, "those of one race, and two more"
    for name in ("one", "two"):
        problem = f"{name}|x.1=3,w.0={megabyte // 4}|fp32|M≤1"
        assert f"going on: {problem}" in lab.asked
        verdict = lab.session.outcome.verdicts[problem]
        written = [number for number, _ in lab.samples(problem, "default") if number >= 0]
        assert written == list(range(verdict.rounds))


def test_an_interruption_while_races_go_on_keeps_what_the_first_pass_found(lab: Any) -> None:
    crowded(lab, "crowd", 0.1)
    plain(lab, "quick", 0.09)

    def interrupt(done: int, total: int, what: str) -> None:
        if what.startswith("going on"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.tune({"crowd": [1], "quick": [1]}, 22.0, progress=interrupt)
    kept = read_cache(lab.cache, lab.session.environment).verdicts
    assert set(kept) == {key("crowd"), key("quick")}
    assert kept[key("crowd")].winner != DEFAULT.name
    assert kept[key("crowd")].rounds >= 2


# ------------------------------------------------------------------------------------------------------------ continuing


def continued(lab: Any, calls: dict[str, list[int]], budget: float | None, **options: Any) -> dict[str, Verdict]:
    found: dict[str, Verdict] = lab.tune(calls, budget, continuing=True, **options).verdicts
    return found


def test_a_tuning_that_goes_on_begins_with_what_was_left_out_then_with_the_least_certain(lab: Any) -> None:
    crowded(lab, "sure", 0.02)
    crowded(lab, "unsure", 0.2)
    plain(lab, "late", 0.05)
    plain(lab, "done", 0.001)
    lab.tune({"done": [1]}, 12.0)
    first = lab.tune({"sure": [1], "unsure": [1]}, 12.0).verdicts
    assert {first[key(name)].status for name in ("sure", "unsure")} == {"unresolved"}
    lab.tune({"late": [1]}, 0.0)
    continued(lab, {"sure": [1], "unsure": [1], "late": [1], "done": [1]}, 300.0)
    asked = [what for what in lab.asked if not what.startswith("going on")]
    assert asked == [key("late"), key("unsure"), key("sure")]


def test_going_on_runs_more_rounds_than_the_first_time(lab: Any) -> None:
    crowded(lab, "crowd", 0.01)
    first = lab.tune({"crowd": [1]}, None).verdicts[key("crowd")]
    if first.status != "unresolved":
        pytest.fail("the crowd is meant to be too near to tell apart")
    second = continued(lab, {"crowd": [1]}, None)[key("crowd")]
    assert second.rounds > first.rounds
    assert second.loss < first.loss


def test_a_thorough_tuning_races_on_until_choosing_is_expected_to_cost_almost_nothing(lab: Any) -> None:
    crowded(lab, "crowd", 0.01)
    usual = lab.tune({"crowd": [1]}, None).verdicts[key("crowd")]
    lab.cache.unlink()
    thorough = lab.tune({"crowd": [1]}, None, thorough=True).verdicts[key("crowd")]
    assert usual.rounds <= 40 < thorough.rounds <= 200
    assert thorough.loss < usual.loss


@pytest.mark.parametrize("budget", [None, 600.0])
def test_what_is_likely_enough_for_the_usual_tuning_is_not_for_a_thorough_one(lab: Any, budget: float | None) -> None:
    lab.op("o", 4e-3, sigma=0.1)
    lab.runner("o", "a", {"p": tuple(range(6))}, lambda size, p: 2e-3 * (1 + 0.06 * p), sigma=0.1)
    usual = lab.tune({"o": [1]}, budget).verdicts[key("o")]
    assert usual.status == "likely"
    assert usual.loss > 0.001
    lab.cache.unlink()
    thorough = lab.tune({"o": [1]}, budget, thorough=True).verdicts[key("o")]
    assert thorough.loss <= 0.001 or thorough.status == "proven"


def test_a_short_tuning_that_goes_on_does_not_replace_a_verdict_by_a_lesser_one(lab: Any) -> None:
    crowded(lab, "crowd", 0.01)
    first = lab.tune({"crowd": [1]}, None).verdicts[key("crowd")]
    assert first.status == "unresolved"
    second = continued(lab, {"crowd": [1]}, 0.05)[key("crowd")]
    assert second == first
    assert rounds(lab, "crowd"), "what was measured is in the run file all the same"
    assert key("crowd") not in lab.run().verdicts


def test_a_verdict_says_how_much_of_the_space_stands_behind_it_also_after_a_partial_race(lab: Any) -> None:
    lab.op("o", 4e-3)
    lab.runner("o", "a", {"p": (1, 2, 3)}, lambda size, p: 1e-3 * p)
    first = lab.tune({"o": [1]}, 60.0).verdicts[key("o")]
    assert (first.seen, first.space) == (4, 4)
    lab.runner("o", "b", {"p": (1, 2)}, lambda size, p: 0.5e-3 * p)
    second = lab.tune({"o": [1]}, 60.0).verdicts[key("o")]
    assert second.winner == "b[p=1]"
    assert (second.seen, second.space) == (6, 6)


# ------------------------------------------------------------------------------------------------------------------ drift


@pytest.mark.parametrize(("slope", "drifts"), [(0.0, False), (3.0, True)])
def test_a_drift_of_the_machine_is_a_remark(lab: Any, slope: float, drifts: bool) -> None:
    born = lab.machine.now

    def heated(seconds: float) -> Callable[..., float]:
        return lambda size, **params: seconds * (1 + slope * (lab.machine.now - born))

    lab.op("o", heated(4e-3), sigma=0.02)
    lab.runner("o", "a", {"p": tuple(range(6))}, heated(2e-3), sigma=0.02)
    note = lab.tune({"o": [1]}, None).verdicts[key("o")].note
    found = re.search(r"the machine drifted: last rounds ([\d.]+)x the first", note)
    assert (found is not None and float(found[1]) > 1.2) == drifts
