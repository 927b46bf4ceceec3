"""Repair of a plan that loses: the default serves what costs the model time, and only that, proven by rounds of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest

from tunebook.plan import Repaired, Serving, loses, measure_effects, repair
from tunebook.records import DEFAULT, Tactic

Make = Callable[..., Any]


class Proven:
    """A plan that serves, is proven, and has the effects of its problems measured, as before a repair in a tuning."""

    def __init__(self, toy: Any, steps: list[Any], tactics: dict[str, Tactic], serving: Serving | None = None) -> None:
        self.toy, self.steps, self.tactics = toy, steps, tactics
        self.serving = serving or toy.serving
        self.proof = toy.proof(*steps)
        self.effects = measure_effects(steps, self.serving, tactics, dict.fromkeys(tactics, 0.5), random.Random(0))

    def repair(self, seconds: float | None = None, **more: Any) -> Repaired:
        """`seconds` of budget are for the repair alone; `more` is what `repair` may be given beside."""
        toy, budget = self.toy, self.toy.budget(seconds)
        given = (self.steps, toy.scope, self.serving, self.tactics, self.proof, self.effects, toy, budget)
        return repair(*given, random.Random(0), **more)


def repaired(toy: Any, steps: list[Any], tactics: dict[str, Tactic], seconds: float | None = None) -> Repaired:
    """Prove, measure and repair."""
    return Proven(toy, steps, tactics).repair(seconds)


@pytest.mark.parametrize("seed", range(3))
def test_the_op_that_loses_is_given_back_and_the_others_keep_their_gain(seed: int, toy: Make) -> None:
    model = toy({"a": (1.0, 0.7), "b": (1.0, 4.0), "c": (2.0, 1.4)}, seed=seed)
    tactics = model.plan("a", "b", "c")
    assert loses(model.proof(model.step()))
    found = repaired(model, [model.step()], tactics)
    assert found.reverted == {model.key("b")}
    assert found.tactics == {**tactics, model.key("b"): DEFAULT}
    assert dict(model.scope.tactics) == found.tactics
    (phase,), overall = found.proof
    assert overall.outcome == "faster"
    assert phase.speedup == pytest.approx(4.1 / 3.2, rel=0.02), "the proof is that of the plan without it"


def test_the_proof_after_a_repair_is_of_rounds_that_did_not_choose_it(toy: Make) -> None:
    """Whatever looked good before is forgotten: from the change on the model is slower, and the proof says so."""
    model = toy({"a": (1.0, 0.7), "b": (1.0, 4.0)}, noise=0.0)
    plan = Proven(model, [model.step()], model.plan("a", "b"))
    install = model.scope.install
    state = {"slow": 1.0}

    def installed(*args: Any, **options: Any) -> None:
        state["slow"] = 3.0
        install(*args, **options)

    model.scope.install = installed
    model.after = lambda op, served, seconds: seconds * (state["slow"] if served == "quick" else 1.0)
    found = plan.repair()
    assert model.key("b") in found.reverted
    assert model.key("a") in found.reverted, "its second proof was taken from the first rounds"
    assert found.proof[1].speedup == 1.0


def test_two_that_lose_are_both_given_back(toy: Make) -> None:
    model = toy({"a": (1.0, 3.0), "b": (1.0, 0.5), "c": (1.0, 2.0), "d": (1.0, 0.9)})
    found = repaired(model, [model.step()], model.plan("a", "b", "c", "d"))
    assert found.reverted == {model.key("a"), model.key("c")}


def test_an_op_that_slows_others_is_found_though_it_is_fast_itself(toy: Make) -> None:
    """Its own time says nothing; only without it is the model faster: that is what an ablation is for."""
    model = toy({"a": (1.0, 0.5), "b": (1.0, 0.8), "rest": (2.0, 2.0)})
    last: dict[str, str] = {}

    def after(op: str, served: str, seconds: float) -> float:
        last[op] = served
        return seconds * 3 if op == "rest" and last["a"] == "quick" else seconds

    model.after = after
    found = repaired(model, [model.step()], model.plan("a", "b"))
    assert found.reverted == {model.key("a")}
    assert found.proof[1].outcome == "faster"


def test_an_op_that_is_slowed_by_another_keeps_its_tactic(toy: Make) -> None:
    """`b` measures slower than its default, and is not to blame."""
    model = toy({"a": (1.0, 0.9), "b": (1.0, 0.8)})
    last: dict[str, str] = {}

    def after(op: str, served: str, seconds: float) -> float:
        last[op] = served
        return seconds * 3 if op == "b" and last["a"] == "quick" else seconds

    model.after = after
    found = repaired(model, [model.step()], model.plan("a", "b"))
    assert model.key("a") in found.reverted
    assert found.proof[1].outcome != "slower"


def test_only_the_buckets_of_the_losing_phase_are_given_back(toy: Make) -> None:
    model = toy({"a": (1.0, 0.5)})
    rows = {"now": 0}
    decode, prefill = model.step(1), model.step(64)
    slow = type(prefill)("prefill", 1, 64, lambda: (rows.update(now=64), prefill.run()))
    fast = type(decode)("decode", 1, 1, lambda: (rows.update(now=1), decode.run()))
    model.after = lambda op, served, seconds: seconds * (20 if served == "quick" and rows["now"] == 64 else 1)
    found = repaired(model, [fast, slow], model.plan("a", rows=(1, 2, 4, 8, 16, 32, 64)))
    assert {key for key, tactic in found.tactics.items() if tactic != DEFAULT} == {
        model.key("a", rows) for rows in (1, 2, 4, 8)
    }, "buckets that no step runs go with the nearest that one runs"
    by_phase = {phase.phase: phase for phase in found.proof[0]}
    assert by_phase["decode"].speedup == pytest.approx(1.1 / 0.6, rel=0.03)
    assert by_phase["prefill"].outcome == "no difference"


def test_a_phase_that_does_not_run_a_problem_does_not_acquit_it(toy: Make) -> None:
    """Prefill seems slower, as noise can have it, whenever the decode bucket alone is taken out."""
    model = toy({"a": (1.0, 3.0)})
    decode, prefill = model.step(1), model.step(64)
    tactics = model.plan("a", rows=(1, 64))
    serving, seen = model.serving, []
    run = serving.run

    def noisy(step: Any, given: Any, **options: Any) -> float:
        seconds: float = run(step, given, **options)
        alone = given.get(model.key("a", 1)) == DEFAULT != given.get(model.key("a", 64))
        seen.append(step.name)
        return seconds * (1.1 if step.name == prefill.name and alone else 1.0)

    serving.run = noisy
    plan = Proven(model, [decode, prefill], tactics, serving)
    seen.clear()
    found = plan.repair()
    assert found.reverted == set(tactics)
    assert seen.count(decode.name) == seen.count(prefill.name) == 6 * 3, "as it is, without its bucket, without both"


def test_a_neighbour_with_another_tactic_stays(toy: Make) -> None:
    model = toy({"a": (1.0, 4.0)})
    other = Tactic(runner="other")
    tactics = {**model.plan("a"), model.key("a", 2): other}
    model.scope.install(tactics, replace=True)
    found = repaired(model, [model.step()], tactics)
    assert found.reverted == {model.key("a")}
    assert found.tactics[model.key("a", 2)] == other


def test_where_everything_loses_the_default_is_left_and_nothing_is_compared(toy: Make) -> None:
    model = toy({"a": (1.0, 2.0)})
    found = repaired(model, [model.step()], model.plan("a"))
    assert set(found.tactics.values()) == {DEFAULT}
    (phase,), overall = found.proof
    assert (phase.speedup, overall.speedup, overall.outcome) == (1.0, 1.0, "no difference")
    assert phase.default_ms == phase.tuned_ms


def test_a_plan_that_does_not_lose_is_left_alone(toy: Make) -> None:
    model = toy({"a": (1.0, 0.5), "b": (1.0, 1.3)})
    tactics = model.plan("a", "b")
    plan = Proven(model, [model.step()], tactics)
    assert not loses(plan.proof)
    ran = model.steps_run
    found = plan.repair()
    assert (found.tactics, found.reverted, found.proof) == (tactics, frozenset(), plan.proof)
    assert model.steps_run == ran


def test_a_phase_that_loses_is_mended_where_the_whole_does_not_win(toy: Make) -> None:
    model = toy({"a": (1.0, 0.8), "b": (1.0, 1.1 * 1.1 / 0.9 - 0.1)})  # the two phases' ratios are each other's inverse
    gain, loss = model.step(1, only=("a",)), model.step(2, only=("b",))
    tactics = {**model.plan("a"), model.key("b", 2): Tactic(runner="quick")}
    model.scope.install(tactics, replace=True)
    plan = Proven(model, [gain, loss], tactics)
    assert [phase.outcome for phase in plan.proof[0]] == ["faster", "slower"]
    assert plan.proof[1].outcome == "no difference"
    assert loses(plan.proof)
    found = plan.repair()
    assert found.reverted == {model.key("b", 2)}
    assert found.proof[1].outcome == "faster"


@pytest.mark.parametrize("seconds", [1.0, 20.0])
def test_without_time_for_a_new_comparison_the_plan_stays_as_it_was_proven(seconds: float, toy: Make) -> None:
    model = toy({"a": (1.0, 0.7), "b": (1.0, 4.0)})
    tactics = model.plan("a", "b")
    found = repaired(model, [model.step()], tactics, seconds=seconds)
    assert (found.tactics, found.reverted) == (tactics, frozenset())
    assert found.proof[1].outcome == "slower"
    assert dict(model.scope.tactics) == tactics


def test_with_time_for_one_comparison_all_of_the_losing_phase_is_given_back(toy: Make) -> None:
    """What is left of the budget (half as much again is allowed) holds one comparison of seven rounds, and no ablation."""
    model = toy({"a": (1.0, 0.7), "b": (1.0, 4.0)}, noise=0.0)
    compare = 7 * (2.1 + 4.8)
    found = repaired(model, [model.step()], model.plan("a", "b"), seconds=1.2 * compare / 1.5)
    assert found.reverted == {model.key("a"), model.key("b")}
    assert found.proof[1].outcome == "no difference"


def test_a_machine_that_became_too_busy_leaves_what_was_proven(toy: Make) -> None:
    model = toy({"a": (1.0, 0.7), "b": (1.0, 4.0)})
    tactics = model.plan("a", "b")
    plan = Proven(model, [model.step()], tactics)
    install = model.scope.install

    def busy(*args: Any, **options: Any) -> None:
        model.after = lambda op, served, seconds: seconds * 1e4
        install(*args, **options)

    model.scope.install = busy
    found = plan.repair(200.0)
    assert (found.tactics, found.proof) == (tactics, plan.proof)
    assert dict(model.scope.tactics) == tactics


def test_what_serves_instead_is_compared_and_served(toy: Make) -> None:
    """Where the default takes memory that is not there, another tactic serves, and the proof is about that."""
    model = toy({"a": (1.0, 0.7), "b": (1.0, 4.0)}, noise=0.0)
    tactics = model.plan("a", "b")
    plan = Proven(model, [model.step()], tactics)
    asked: list[set[str]] = []

    def give_back(now: Mapping[str, Tactic], keys: Collection[str]) -> Mapping[str, Tactic]:
        asked.append(set(keys))
        return {**now, **dict.fromkeys([*keys, model.key("a")], DEFAULT)}  # the one costs the other its layout

    found = plan.repair(give_back=give_back)
    assert asked == [{model.key("b")}]
    assert found.reverted == {model.key("b")}
    assert set(found.tactics.values()) == {DEFAULT}
    assert dict(model.scope.tactics) == found.tactics
    assert found.proof[1].speedup == 1.0


def test_attempts_have_an_end(toy: Make) -> None:
    """However many lose, there are three comparisons at most."""
    model = toy(dict.fromkeys("abcdefghijkl", (1.0, 1.5)))
    tactics = model.plan(*"abcdefghijkl")
    rounds: list[int] = []
    plan = Proven(model, [model.step()], tactics)
    found = plan.repair(progress=lambda done, total, what: rounds.append(done) if what == "verifying" else None)
    assert rounds.count(1) <= 3
    assert set(found.tactics.values()) == {DEFAULT}
