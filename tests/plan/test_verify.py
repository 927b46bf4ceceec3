"""The whole-model proof on a made-up clock: its outcomes, its order, its rounds, and what it leaves behind."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from tunebook.dispatch import Scope
from tunebook.measure import Budget
from tunebook.plan import Step, verify
from tunebook.records import Overall, Phase


class Model:
    """Steps of known length, default and tuned, on a clock that they move. `log` is the order in which they ran."""

    def __init__(self, noise: float = 0.01, seed: int = 0) -> None:
        self.scope = Scope("model")
        self.now = 0.0
        self.noise = noise
        self.rng = random.Random(seed)
        self.log: list[tuple[str, bool]] = []
        self.waited = 0
        self.slowing = 1.0

    def clock(self) -> float:
        return self.now

    def synchronize(self) -> None:
        self.waited += 1

    def step(self, phase: str, default: float, tuned: float, batch: int = 1, tokens: int = 1) -> Step:
        def run() -> None:
            self.log.append((phase, self.scope.tuned))
            seconds = tuned if self.scope.tuned else default
            self.now += seconds * self.slowing * math.exp(self.rng.gauss(0, self.noise))
            self.slowing *= 1.0 + self.noise

        return Step(phase, batch, tokens, run)

    def verify(
        self, *steps: Step, seconds: float | None = None, seed: int = 0
    ) -> tuple[tuple[Phase, ...], Overall] | None:
        return verify(steps, self.scope, self, Budget(seconds, self), random.Random(seed))


def proof(found: tuple[tuple[Phase, ...], Overall] | None) -> tuple[tuple[Phase, ...], Overall]:
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("tuned", "says"), [(0.8, "faster"), (1.25, "slower"), (1.0, "no difference"), (0.97, "faster"), (1.03, "slower")]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_step_is_judged_by_its_interval(tuned: float, says: str, seed: int) -> None:
    model = Model(noise=0.004, seed=seed)
    (phase,), overall = proof(model.verify(model.step("decode", 1.0, tuned, batch=4), seed=seed))
    assert phase.outcome == says
    assert overall.outcome == says
    assert phase.speedup == pytest.approx(1 / tuned, rel=0.02)
    assert overall.speedup == pytest.approx(phase.speedup)
    assert phase.default_ms / phase.tuned_ms == pytest.approx(1 / tuned, rel=0.05)
    assert (phase.batch, phase.tokens, phase.name) == (4, 1, "decode_4")


def test_overall_is_the_mean_of_the_log_speedups_of_all_phases() -> None:
    model = Model(noise=0.002)
    steps = (model.step("decode", 1.0, 0.5), model.step("prefill", 8.0, 8.0, tokens=512))
    phases, overall = proof(model.verify(*steps))
    assert [phase.phase for phase in phases] == ["decode", "prefill"]
    assert overall.speedup == pytest.approx(math.sqrt(2), rel=0.01)
    assert overall.speedup == pytest.approx(math.sqrt(phases[0].speedup * phases[1].speedup))
    assert overall.speedup_low <= overall.speedup <= overall.speedup_high
    assert overall.outcome == "faster"


def test_a_gain_and_a_loss_of_one_size_are_no_difference() -> None:
    model = Model(noise=0.01)
    phases, overall = proof(model.verify(model.step("decode", 1.0, 0.8), model.step("prefill", 0.8, 1.0)))
    assert [phase.outcome for phase in phases] == ["faster", "slower"]
    assert overall.outcome == "no difference"


def test_default_and_tuned_take_turns_in_random_order() -> None:
    """However the machine slows down, both meet the same of it: pairs run one after the other, either first."""
    model = Model(noise=0.01)
    proof(model.verify(model.step("decode", 1.0, 1.0), model.step("prefill", 1.0, 1.0)))
    measured = model.log[4:]
    pairs = list(zip(measured[::2], measured[1::2], strict=True))
    assert all(one[0] == other[0] and {one[1], other[1]} == {True, False} for one, other in pairs)
    assert {one[1] for one, _ in pairs} == {True, False}, "always the same one first"
    assert [one[0] for one, _ in pairs[:4]] == ["decode", "prefill"] * 2
    assert sorted(model.log[:4]) == sorted((p, t) for p in ("decode", "prefill") for t in (True, False)), "a warm-up"


def test_a_machine_that_slows_down_does_not_make_a_difference() -> None:
    model = Model(noise=0.02, seed=4)
    (phase,), _ = proof(model.verify(model.step("decode", 1.0, 1.0)))
    assert model.slowing > 1.5
    assert phase.outcome == "no difference"
    assert phase.speedup == pytest.approx(1.0, abs=0.05)


def test_warm_up_runs_are_not_counted() -> None:
    model = Model(noise=0.0)
    cold = {True: 100.0, False: 100.0}

    def run() -> None:
        model.now += cold.pop(model.scope.tuned, 0.0) + 1.0

    (phase,), _ = proof(model.verify(Step("decode", 1, 1, run)))
    assert phase.default_ms == pytest.approx(1000)
    assert phase.tuned_ms == pytest.approx(1000)
    assert (phase.speedup, phase.speedup_low, phase.speedup_high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("seconds", [None, 1e9, 100.0, 40.0, 26.0, 22.0, 20.0])
def test_every_phase_gets_six_rounds_at_least_and_an_equal_number(seconds: float | None) -> None:
    """A round of both phases takes two seconds; the warm-up is one more."""
    model = Model(noise=0.0)
    phases, _ = proof(model.verify(model.step("decode", 0.5, 0.5), model.step("prefill", 0.5, 0.5), seconds=seconds))
    assert len({phase.rounds for phase in phases}) == 1
    assert phases[0].rounds >= 6
    assert sum(phase.rounds for phase in phases) * 2 == len(model.log) - 4
    if seconds is not None:
        assert model.now <= 1.5 * seconds + 2


def test_more_time_gives_more_rounds_and_they_have_an_end() -> None:
    def rounds(seconds: float | None) -> int:
        model = Model(noise=0.0)
        (phase,), _ = proof(model.verify(model.step("decode", 0.5, 0.5), seconds=seconds))
        return phase.rounds

    assert rounds(8) < rounds(14) < rounds(1000) == rounds(None)
    assert rounds(None) < 100


def test_how_many_rounds_there_are_does_not_depend_on_what_they_show() -> None:
    """An interval that is looked at until it pleases is none."""

    def rounds(tuned: float) -> int:
        model = Model(noise=0.0)

        def run() -> None:
            seconds = tuned if model.scope.tuned and len(model.log) >= 2 else 1.0
            model.log.append(("decode", model.scope.tuned))
            model.now += seconds

        (phase,), _ = proof(model.verify(Step("decode", 1, 1, run), seconds=60.0))
        return phase.rounds

    assert rounds(0.5) == rounds(1.0) == rounds(0.9) >= 6


@pytest.mark.parametrize("after", [0, 3, 9])
def test_a_machine_on_which_six_rounds_are_hopeless_proves_nothing(after: int) -> None:
    model = Model(noise=0.0)

    def run() -> None:
        model.log.append(("decode", model.scope.tuned))
        model.now += 0.5 if len(model.log) <= after else 1000.0

    assert model.verify(Step("decode", 1, 1, run), seconds=10.0) is None
    assert model.scope.tuned
    assert len(model.log) <= after + 4, "it gives up at once"


@pytest.mark.parametrize("tuned", [0.5, 2.0])
def test_the_scope_is_left_tuned_whatever_came_out(tuned: float) -> None:
    model = Model()
    model.scope.switch(False)
    proof(model.verify(model.step("decode", 1.0, tuned)))
    assert model.scope.tuned


@pytest.mark.parametrize("after", [1, 2, 5, 6])
def test_the_scope_is_left_tuned_when_a_step_raises(after: int) -> None:
    model = Model()

    def run() -> None:
        model.log.append(("decode", model.scope.tuned))
        if len(model.log) > after:
            raise KeyboardInterrupt

    for seed in range(4):  # the interruption meets the default as well as the tuned plan
        model.log.clear()
        with pytest.raises(KeyboardInterrupt):
            model.verify(Step("decode", 1, 1, run), seed=seed)
        assert model.scope.tuned


def test_each_step_is_timed_between_two_waits() -> None:
    model = Model(noise=0.0)
    events: list[str] = []
    model.synchronize = lambda: events.append("wait")  # type: ignore[method-assign]

    def run() -> None:
        events.append("run")
        model.now += 1

    proof(model.verify(Step("decode", 1, 1, run)))
    text = " ".join(events)
    measured = events.count("run") - 2
    assert text.count("wait run wait") >= measured
    assert "run run" in text, "the warm-up needs no wait"


def test_progress_goes_up_to_its_end() -> None:
    model = Model()
    seen: list[tuple[int, int, str]] = []
    note: Callable[[int, int, str], None] = lambda done, total, what: seen.append((done, total, what))  # noqa: E731
    verify([model.step("decode", 1.0, 0.9)], model.scope, model, Budget(None, model), random.Random(0), note)
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][0] == seen[-1][1]
    assert len({total for _, total, _ in seen}) == 1


def test_rounds_beyond_six_leave_the_time_of_what_comes_after() -> None:
    """A round takes a second, the warm-up another; so many rounds are to be left over."""

    def rounds(seconds: float, reserve: int) -> int:
        model = Model(noise=0.0)
        step = model.step("decode", 0.5, 0.5)
        found = verify([step], model.scope, model, Budget(seconds, model), random.Random(0), reserve=reserve)
        (phase,), _ = proof(found)
        assert model.now <= max(seconds - reserve, 7.0)
        return phase.rounds

    assert [rounds(20.0, reserve) for reserve in (0, 6, 12, 100)] == [16, 13, 7, 6]
    assert rounds(100.0, 6) == 16
