"""What a cached verdict is worth today, and who races on what is left open: on a made-up clock that the tactics move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import FREE, Op, collecting
from tunebook.errors import UsageError
from tunebook.records import DEFAULT, Member, Offered, Problem, Rejected, Tactic, Timed, Verdict
from tunebook.store import Run, read_run, resolve_policy
from tunebook.tuner import Answer, Collection, Outcome, Selection, Session, answer, available_runners, tasks

pytestmark = pytest.mark.usefixtures("clean_ops")


@dataclass
class Offer:
    """A runner of the op: the seconds of each of its tactics by their parameter ``p``, and how it is declared."""

    seconds: Mapping[int, float]
    version: str = "1"
    available: Callable[[], str | None] | None = None
    supports: Callable[..., str | None] | None = None
    wrong: tuple[int, ...] = ()
    raises: tuple[int, ...] = ()
    fails_on: int = 1 << 30


class World:
    """One machine with one op, declared anew by `offer`, as each new process would."""

    def __init__(self, machine: Any, cache: Path) -> None:
        self.machine = machine
        self.cache = cache
        self.calls: Counter[str] = Counter()
        self.order: list[str] = []
        self.op: Op[Any, Any]
        self.session: Session

    def offer(self, default: float = 4e-3, **offers: Offer) -> None:
        @tb.op("o", buckets={"x": {0: tb.pow2(name="M")}})
        def op(x: torch.Tensor) -> torch.Tensor:
            self.called("default")
            self.machine.work(default)
            return x * 2

        for name, offer in offers.items():
            op.runner(
                name,
                {"p": tuple(offer.seconds)},
                version=offer.version,
                available=offer.available,
                supports=offer.supports,
            )(self._runner(name, offer))
        self.op = op

    def _runner(self, name: str, offer: Offer) -> Callable[..., torch.Tensor]:
        def run(x: torch.Tensor, *, p: int) -> torch.Tensor:
            tactic = f"{name}[p={p}]"
            self.called(tactic)
            if p in offer.raises or self.calls[tactic] > offer.fails_on:
                raise RuntimeError("illegal instruction")
            self.machine.work(offer.seconds[p])
            return x * 3 if p in offer.wrong else x * 2

        return run

    def called(self, tactic: str) -> None:
        self.calls[tactic] += 1
        if tactic not in self.order:
            self.order.append(tactic)

    def tune(
        self,
        sizes: Sequence[int] = (1,),
        *,
        policy: str = "reuse",
        selection: Selection | None = None,
        budget: float | None = 60.0,
        continuing: bool = False,
    ) -> Outcome:
        """A session over one call of each size; `calls` and `order` then tell of the session alone."""
        FREE.install({}, replace=True)
        session = Session(
            resolve_policy(policy=policy),
            cache=str(self.cache),
            device=self.machine,
            selection=selection,
            seed=0,
            continuing=continuing,
        )
        collection = Collection(self.machine)
        with collecting(collection), torch.inference_mode():
            for size in sizes:
                self.op(torch.ones(size, 3))
        self.calls.clear()
        self.order.clear()
        outcome = session.tune(collection, budget)
        session.publish(outcome)
        session.finish()
        self.session = session
        return outcome

    def run(self) -> Run:
        assert self.session.run_path is not None
        return read_run(self.session.run_path)


@pytest.fixture
def world(machine: Any, tmp_path: Path) -> World:
    return World(machine, tmp_path / "cache.json")


def key(size: int = 1) -> str:
    return f"o|x.1=3|fp32|M≤{size}"


# ---------------------------------------------------------------------------------------------------- what it is worth


def verdict_of(op: Op[Any, Any], *tactics: str, default: str = "d1") -> Verdict:
    """A verdict whose frontier is these tactics, reached with what the op offers now."""
    members = tuple(Member(tactic=name, ratio=1.0 + i, low=1.0 + i, high=1.0 + i) for i, name in enumerate(tactics))
    offered = {name: runner.offered for name, runner in op.runners.items()}
    return Verdict(
        problem=key(),
        winner=tactics[0],
        status="proven",
        speedup=2.0,
        low=2.0,
        high=2.0,
        seconds=1e-3,
        frontier=members,
        offered={**offered, "default": Offered(version=default, space="")},
    )


ONE = Offer({1: 1e-3, 2: 2e-3})
FRONTIER = ("one[p=1]", "two[p=1]", "default")


def worth(world: World, verdict: Verdict, default: str = "d1", selection: Selection | None = None) -> Answer:
    return answer(verdict, world.op, default, selection or Selection())


def names(found: Answer) -> tuple[str, ...]:
    return tuple(member.tactic for member in found.members)


@pytest.fixture
def before(world: World) -> Verdict:
    world.offer(one=ONE, two=ONE)
    return verdict_of(world.op, *FRONTIER)


def test_a_verdict_about_what_is_still_offered_is_simply_taken(world: World, before: Verdict) -> None:
    found = worth(world, before)
    assert (names(found), found.changed, found.notes) == (FRONTIER, (), ())
    assert found.complete
    assert found.tactic == Tactic.parse("one[p=1]")


def test_declaring_the_same_again_changes_nothing(world: World, before: Verdict) -> None:
    world.offer(two=ONE, one=ONE)
    assert worth(world, before).complete


def test_a_new_runner_races_and_the_winner_serves_meanwhile(world: World, before: Verdict) -> None:
    world.offer(one=ONE, two=ONE, three=ONE)
    found = worth(world, before)
    assert (names(found), found.changed) == (FRONTIER, ("three",))
    assert found.notes == ("runner three is new",)
    assert not found.complete


def test_a_changed_version_of_the_winner_hands_over_to_the_next(world: World, before: Verdict) -> None:
    world.offer(one=Offer(ONE.seconds, version="2"), two=ONE)
    found = worth(world, before)
    assert (names(found), found.changed) == (FRONTIER[1:], ("one",))
    assert any("v:2" in note and "v:1" in note for note in found.notes)
    assert any(note.startswith("one[p=1]: ") for note in found.notes)


def test_a_changed_version_behind_the_winner_leaves_the_winner(world: World, before: Verdict) -> None:
    world.offer(one=ONE, two=Offer(ONE.seconds, version="2"))
    found = worth(world, before)
    assert (names(found), found.changed) == (("one[p=1]", "default"), ("two",))
    assert len(found.notes) == 1, "what stands behind a winner that serves needs no word of its own"


def test_a_space_that_grew_leaves_what_it_still_holds(world: World, before: Verdict) -> None:
    world.offer(one=Offer({1: 1e-3, 2: 2e-3, 3: 3e-3}), two=ONE)
    found = worth(world, before)
    assert (names(found), found.changed) == (FRONTIER, ("one",))
    assert found.notes == ("runner one offers other tactics than the verdict is about",)


def test_a_space_that_lost_the_winner_hands_over_to_the_next(world: World, before: Verdict) -> None:
    world.offer(one=Offer({2: 2e-3}), two=ONE)
    found = worth(world, before)
    assert (names(found), found.changed) == (FRONTIER[1:], ("one",))
    assert any("does not offer this tactic" in note for note in found.notes)


def test_a_runner_that_is_gone_hands_over_to_the_next_and_nothing_must_race(world: World, before: Verdict) -> None:
    world.offer(two=ONE)
    found = worth(world, before)
    assert (names(found), found.changed) == (FRONTIER[1:], ())
    assert found.notes == ("one[p=1]: runner one is not offered",)
    assert found.complete


def test_a_runner_that_cannot_run_here_is_named_with_the_reason(world: World, before: Verdict) -> None:
    world.offer(one=Offer(ONE.seconds, available=lambda: "needs a GPU"), two=ONE)
    assert set(available_runners(world.op)) == {"two"}
    found = worth(world, before)
    assert (names(found), found.changed) == (FRONTIER[1:], ())
    assert found.notes == ("one[p=1]: runner one is not available: needs a GPU",)


def test_a_changed_default_must_race_and_does_not_serve_from_memory(world: World, before: Verdict) -> None:
    found = worth(world, before, default="d2")
    assert (names(found), found.changed) == (("one[p=1]", "two[p=1]"), ("default",))
    assert any("'d2'" in note and "'d1'" in note for note in found.notes)
    assert not found.complete


def test_where_nothing_of_a_verdict_serves_it_is_worth_nothing(world: World, before: Verdict) -> None:
    world.offer(three=ONE)
    found = worth(world, before, default="d2")
    assert (found.members, found.tactic, found.complete) == ((), None, False)
    assert found.changed == ("three", "default")


def test_a_runner_that_is_not_asked_for_is_noted_and_does_not_race(world: World, before: Verdict) -> None:
    world.offer(one=ONE, two=Offer(ONE.seconds, version="2"), three=ONE)
    found = worth(world, before, selection=Selection(runners=("three",)))
    assert found.changed == ("three",)
    assert len(found.notes) == 2


def test_a_selection_of_names_that_nothing_has_is_an_error(world: World, before: Verdict) -> None:
    specs: dict[str, Any] = {"o": world.op}
    Selection(ops=("o",), skip_ops=("o",), runners=("one",)).check(specs)
    for wrong, named in (
        (Selection(ops=("p",)), "'p'"),
        (Selection(skip_ops=("p",)), "'p'"),
        (Selection(runners=("x",)), "'x'"),
    ):
        with pytest.raises(UsageError, match=named):
            wrong.check(specs)


# ------------------------------------------------------------------------------------------------------------ who races


def test_on_a_cold_start_every_tactic_of_every_runner_races_and_the_fastest_wins(world: World) -> None:
    world.offer(one=Offer({1: 2e-3, 2: 1e-3}), two=Offer({1: 3e-3}))
    outcome = world.tune()
    assert set(world.calls) == {"default", "one[p=1]", "one[p=2]", "two[p=1]"}
    verdict = outcome.verdicts[key()]
    assert verdict.winner == "one[p=2]"
    assert verdict.speedup == pytest.approx(4, rel=0.05)
    assert outcome.tactics == {key(): Tactic.parse("one[p=2]")}
    assert set(verdict.offered) == {"default", "one", "two"}
    assert [member.tactic for member in verdict.frontier] == ["one[p=2]", "two[p=1]", "default"]


def test_the_runners_take_turns_so_that_each_is_tried_where_time_is_short(world: World) -> None:
    world.offer(
        a=Offer({1: 2e-3, 2: 2e-3, 3: 2e-3}),
        b=Offer({1: 2e-3}),
        c=Offer({1: 2e-3, 2: 2e-3}),
    )
    world.tune()
    order = [name for name in world.order if name != "default"]
    assert order == ["a[p=1]", "b[p=1]", "c[p=1]", "a[p=2]", "c[p=2]", "a[p=3]"]


def test_a_second_start_calls_nothing(world: World) -> None:
    world.offer(one=ONE, two=ONE)
    world.tune()
    outcome = world.tune()
    assert not world.calls
    assert (outcome.tuned, outcome.cached, outcome.misses) == (0, 1, [])
    assert outcome.tactics == {key(): Tactic.parse("one[p=1]")}
    assert world.session.run_path is None


def test_on_a_warm_cache_the_changed_runner_races_the_incumbent_and_the_default_alone(world: World) -> None:
    world.offer(one=Offer({1: 1e-3, 2: 2e-3}), two=Offer({1: 1.5e-3, 2: 3e-3}), three=Offer({1: 1.8e-3}))
    world.tune()
    world.offer(one=Offer({1: 1e-3, 2: 2e-3}), two=Offer({1: 0.5e-3, 2: 3e-3}, version="2"), three=Offer({1: 1.8e-3}))
    outcome = world.tune()
    assert set(world.calls) == {"default", "one[p=1]", "two[p=1]", "two[p=2]"}
    verdict = outcome.verdicts[key()]
    assert verdict.winner == "two[p=1]"
    assert verdict.offered["two"].version == "v:2"
    found = {member.tactic: member.ratio for member in verdict.frontier}
    assert found["one[p=1]"] == pytest.approx(2, rel=0.05)
    assert found["three[p=1]"] == pytest.approx(3.6, rel=0.05), (
        "what did not race is known from before, on the new scale"
    )
    assert found["default"] == pytest.approx(8, rel=0.05)
    assert not world.tune().tuned


def test_an_incumbent_that_is_still_as_good_is_kept(world: World) -> None:
    world.offer(one=Offer({1: 1e-3}))
    world.tune()
    world.offer(one=Offer({1: 1e-3}), another=Offer({1: 1e-3}))
    assert world.tune().verdicts[key()].winner == "one[p=1]"


def test_a_new_runner_that_is_faster_takes_over(world: World) -> None:
    world.offer(one=Offer({1: 1e-3}))
    world.tune()
    world.offer(one=Offer({1: 1e-3}), another=Offer({1: 0.5e-3}))
    assert world.tune().verdicts[key()].winner == "another[p=1]"
    assert set(world.calls) == {"default", "one[p=1]", "another[p=1]"}


def test_replay_measures_nothing_and_serves_what_may_serve(world: World) -> None:
    world.offer(one=Offer({1: 1e-3}), two=Offer({1: 2e-3}))
    world.tune()
    world.offer(one=Offer({1: 1e-3}, version="2"), two=Offer({1: 2e-3}))
    outcome = world.tune((1, 2), policy="replay")
    assert not world.calls
    assert outcome.tactics == {key(): Tactic.parse("two[p=1]")}
    assert any("v:2" in note for note in outcome.misses)


def test_fresh_knows_nothing_and_leaves_the_cache_alone(world: World) -> None:
    world.offer(one=Offer({1: 1e-3}))
    world.tune()
    before = world.cache.read_bytes()
    outcome = world.tune(policy="fresh")
    assert outcome.tuned == 1
    assert world.cache.read_bytes() == before


def test_only_the_runners_asked_for_race_beside_the_default(world: World) -> None:
    world.offer(one=Offer({1: 1e-3}), two=Offer({1: 2e-3}))
    outcome = world.tune(selection=Selection(runners=("two",)))
    assert set(world.calls) == {"default", "two[p=1]"}
    assert outcome.verdicts[key()].winner == "two[p=1]"
    assert set(outcome.verdicts[key()].offered) == {"default", "two"}
    again = world.tune()
    assert again.verdicts[key()].winner == "one[p=1]", "what did not race is new to the next start"
    assert set(world.calls) == {"default", "two[p=1]", "one[p=1]"}


def test_an_op_that_is_skipped_keeps_its_default(world: World) -> None:
    world.offer(one=Offer({1: 1e-3}))
    outcome = world.tune(selection=Selection(skip_ops=("o",)))
    assert not world.calls
    assert (outcome.seen, outcome.tuned, outcome.tactics) == (1, 0, {})


def test_runners_that_cannot_run_and_tactics_that_do_not_fit_are_listed_unrun(world: World) -> None:
    def no_even(problem: Problem, p: int) -> str | None:
        assert problem.op == "o"
        return f"{p} is even" if p % 2 == 0 else None

    world.offer(
        one=Offer({1: 1e-3, 2: 0.5e-3}, supports=no_even),
        absent=Offer({1: 1e-3, 2: 1e-3}, available=lambda: "needs a GPU"),
    )
    outcome = world.tune()
    assert set(world.calls) == {"default", "one[p=1]"}
    rejected = {line.trial.tactic: line.trial for line in world.run().trials if isinstance(line.trial, Rejected)}
    assert {name: (trial.reason, trial.detail) for name, trial in rejected.items()} == {
        "absent": ("unavailable", "needs a GPU"),
        "one[p=2]": ("constraints", "2 is even"),
    }
    assert "absent" not in outcome.verdicts[key()].offered


def test_what_is_wrong_or_raises_is_rejected_and_the_rest_races(world: World) -> None:
    world.offer(one=Offer({1: 1e-4, 2: 1e-4, 3: 1e-3}, wrong=(1,), raises=(2,)))
    outcome = world.tune()
    assert outcome.verdicts[key()].winner == "one[p=3]"
    reasons = {rejected.tactic: rejected.reason for _, rejected in outcome.rejected}
    assert reasons == {"one[p=1]": "correctness", "one[p=2]": "runtime"}
    timed = {line.trial.tactic for line in world.run().trials if isinstance(line.trial, Timed)}
    assert timed == {"default", "one[p=3]"}


@pytest.mark.parametrize("fails_on", [2, 3, 4, 5, 6])
def test_a_tactic_that_fails_in_the_race_is_rejected_and_never_serves(world: World, fails_on: int) -> None:
    """Whenever it fails, at the first round or at a later one: the fastest of all is no longer to be had."""
    world.offer(one=Offer({1: 1e-3}), bad=Offer({1: 0.5e-3}, fails_on=fails_on))
    outcome = world.tune()
    verdict = outcome.verdicts[key()]
    assert [(rejected.tactic, rejected.reason) for rejected in verdict.rejected] == [("bad[p=1]", "runtime")]
    assert verdict.winner == "one[p=1]"
    assert {member.tactic for member in verdict.frontier} == {"one[p=1]", "default"}


def test_where_all_are_rejected_the_default_wins(world: World) -> None:
    world.offer(one=Offer({1: 1e-4, 2: 1e-4}, wrong=(1,), raises=(2,)))
    verdict = world.tune().verdicts[key()]
    assert (verdict.winner, verdict.speedup) == ("default", 1.0)
    assert not world.tune().tuned, "and that is an answer"


def test_a_hopeless_tactic_is_screened_out_and_stays_in_the_frontier(world: World) -> None:
    world.offer(one=Offer({1: 1e-3}), snail=Offer({1: 0.09}))
    verdict = world.tune().verdicts[key()]
    assert world.calls["snail[p=1]"] < 8
    assert world.calls["one[p=1]"] > world.calls["snail[p=1]"]
    assert verdict.frontier[-1].tactic == "snail[p=1]"


def test_a_budget_that_is_spent_leaves_the_rest_to_the_default_and_says_so(world: World) -> None:
    world.offer(default=1.0, one=Offer({1: 0.5}))
    outcome = world.tune((1, 2, 4, 8), budget=1e-6)
    assert outcome.left_out >= 3
    for verdict in outcome.verdicts.values():
        if verdict.note.startswith("left out"):
            assert (verdict.winner, verdict.status) == ("default", "unresolved")
    assert len(outcome.verdicts) == 4


def test_a_tuning_that_goes_on_takes_up_what_is_unresolved_alone(world: World) -> None:
    world.offer(one=Offer({1: 1e-3}))
    world.tune((1,))
    world.tune((1, 2), budget=0.0)
    outcome = world.tune((1, 2), continuing=True)
    assert outcome.fresh == [key(2)]
    assert outcome.verdicts[key(2)].winner == "one[p=1]"


# ---------------------------------------------------------------------------------------------------------- what is open


def collected(world: World, sizes: Sequence[int]) -> Collection:
    collection = Collection(world.machine)
    with collecting(collection), torch.inference_mode():
        for size in sizes:
            world.op(torch.ones(size, 3))
    return collection


def test_every_bucket_up_to_the_largest_size_is_a_task_and_the_costliest_comes_first(world: World) -> None:
    world.offer(one=ONE)
    found = tasks(collected(world, [1, 1, 1, 7]))
    assert {task.problem.key for task in found} == {key(size) for size in (1, 2, 4, 8)}
    weights = [task.weight for task in found]
    assert weights == sorted(weights, reverse=True)
    assert all(weight > 0 for weight in weights)
    by_key = {task.problem.key: task for task in found}
    assert by_key[key(1)].weight == pytest.approx(3 * 4e-3, rel=0.02)
    assert by_key[key(1)].calls == 3
    assert [by_key[key(size)].seen for size in (1, 2, 4, 8)] == [True, False, False, True]
    assert by_key[key(2)].weight < by_key[key(8)].weight, "what was not met counts less"


def test_a_task_is_checked_at_both_edges_of_its_bucket_and_raced_at_the_upper_one(world: World) -> None:
    world.offer(one=ONE)
    (task,) = (task for task in tasks(collected(world, [7])) if task.problem.key == key(8))
    sizes = [edge["M"] for edge in task.edge_sizes()]
    assert sizes[-1] == 8
    assert min(sizes) == 5
    assert all(5 <= size <= 8 for size in sizes)
    assert task.sizes == {"M": 8}


def test_no_call_is_no_task(world: World) -> None:
    world.offer(one=ONE)
    collection = Collection(world.machine)
    assert not collection
    assert tasks(collection) == []
    assert world.tune(()).seen == 0


def test_the_default_always_races(world: World) -> None:
    world.offer()
    verdict = world.tune().verdicts[key()]
    assert verdict.winner == DEFAULT.name
    assert [member.tactic for member in verdict.frontier] == ["default"]
