"""The proof on a real model: whose gain did not arrive, the repair of a plan that loses, and what a later start does with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.devices import CpuDevice
from tunebook.engine import ModelRunner, TuneReport, requests
from tunebook.records import Plan
from tunebook.store import read_cache, read_run
from tunebook.tuner import Selection

pytestmark = pytest.mark.usefixtures("clean_ops")

WANTED = requests(decode=(1,), prefill=(2,))
#: Longer than anything else in a step of the tiny model, so that what wins and what loses is certain.
PAUSE_S, LONG_S = 0.001, 0.012
#: So much slower than the processor's own goes the clock: pauses are exact on it, and what a busy machine adds is little.
SLOWER = 50


class Clock(CpuDevice):
    """The processor with a slow clock that is put forward by what pauses, and by a test."""

    ahead = 0.0

    def clock(self) -> float:
        return super().clock() / SLOWER + Clock.ahead


def pause(seconds: float) -> None:
    Clock.ahead += seconds


@dataclass
class Start:
    """A start of an engine on a model whose defaults pause.

    Of linears the runner `swift` does not pause; of experts `cheat` does not either while it is raced, and pauses for long
    in the model.
    """

    runner: ModelRunner
    calls: Counter[str]
    state: dict[str, bool]
    steps: list[int] = field(default_factory=list)
    after_verifying: Callable[[], None] = lambda: None

    def autotune(self, **options: Any) -> TuneReport:
        return self.runner.autotune(
            **{
                "budget_s": 60,
                "wanted": WANTED,
                "selection": Selection(runners=("swift", "cheat")),
                "progress": self._progress,
                **options,
            }
        )

    def _progress(self, done: int, total: int, what: str) -> None:
        if what == "preparing weights":  # the races are over
            self.state["in model"] = True
        if what == "verifying" and done == total:
            self.after_verifying()

    def serve(self, tokens: int = 2) -> Counter[str]:
        """What computes a step of so many tokens."""
        self.calls.clear()
        with torch.inference_mode():
            self.runner.loaded.model(torch.arange(tokens).reshape(1, tokens), logits_to_keep=1)
        return Counter(self.calls)


@pytest.fixture
def start(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Start]]:
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    calls: Counter[str] = Counter()
    state = {"in model": False}
    slow_experts, slow_linear = MixtralExperts.forward, torch.nn.Linear.forward

    def pausing(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            pause(PAUSE_S)
            return forward(*args, **kwargs)

        return run

    monkeypatch.setattr(MixtralExperts, "forward", pausing("experts default", slow_experts))
    monkeypatch.setattr(torch.nn.Linear, "forward", pausing("linear default", slow_linear))

    @tb.kernels.linear.runner("swift", version="1")
    def swift(x: Any, weight: Any, bias: Any) -> Any:
        calls["swift"] += 1
        return torch.nn.functional.linear(x, weight, bias)

    @tb.kernels.experts.runner("cheat", version="1")
    def cheat(x: Any, index: Any, scores: Any, gate_up: Any, down: Any, activation: str) -> Any:
        calls["cheat"] += 1
        if state["in model"]:
            pause(LONG_S)
        return tb.kernels.experts.function(x, index, scores, gate_up, down, activation)

    made: list[ModelRunner] = []

    def make() -> Start:
        loaded = tiny_model()
        made.append(ModelRunner(loaded, ops=("linear", "experts"), device=Clock()))
        one = Start(made[-1], calls, state)
        loaded.model.register_forward_pre_hook(lambda *_: one.steps.append(1))
        return one

    yield make
    for runner in made:
        runner.close()


def plan_of(report: TuneReport) -> Plan:
    assert report.plan is not None
    return report.plan


def ops(keys: Any) -> set[str]:
    return {key.partition("|")[0] for key in keys}


def test_what_loses_is_given_back_named_and_remembered(
    start: Callable[[], Start], caplog: pytest.LogCaptureFixture
) -> None:
    first = start()
    report = first.autotune()
    plan = plan_of(report)
    assert ops(report.outcome.verdicts) == {"linear", "experts"}
    assert set(plan.reverted.values()) == {"cheat"}
    assert plan.reverted.keys() == {key for key in plan.tactics if key.startswith("experts|")}
    assert {plan.tactics[key] for key in plan.reverted} == {"default"}
    assert {name for key, name in plan.tactics.items() if key.startswith("linear|")} == {"swift"}
    assert plan.overall is not None
    assert (plan.verified, plan.active, plan.overall.outcome) == (True, True, "faster")
    assert all(phase.outcome == "faster" for phase in plan.phases)
    served = first.serve()
    assert served["swift"] > 0
    assert (served["cheat"], served["linear default"]) == (0, 0)

    effects = {(effect.phase, effect.problem): effect for effect in plan.effects}
    assert {phase for phase, _ in effects} == {"decode_1", "prefill_2"}
    for (_, key), effect in effects.items():
        if key.startswith("experts|"):
            assert (effect.tactic, effect.calls, effect.outcome, effect.missing) == ("cheat", 2, "slower", True)
            assert effect.high_ms < 0 < effect.predicted_ms
        else:
            assert (effect.tactic, effect.outcome, effect.missing) == ("swift", "arrived", False)
            assert 0 < effect.low_ms <= effect.measured_ms
            assert effect.default_ms >= effect.calls * PAUSE_S * 1e3
    lines = [record.message for record in caplog.records if "predicted gain" in record.message]
    assert len(lines) == 2
    for key, phase in zip(sorted(plan.reverted), ("decode_1", "prefill_2"), strict=True):
        assert any(line.startswith(f"{key} in {phase}: predicted gain of ") for line in lines)
    document = report.document()
    assert {e["problem"] for e in document["effects"] if e["outcome"] == "slower"} == plan.reverted.keys()
    assert document["plan"]["reverted"] == plan.reverted

    assert report.session.run_path is not None
    assert read_run(report.session.run_path).plans == {plan.fingerprint: plan}
    assert read_cache(report.session.location.cache, None).plans == {plan.fingerprint: plan}

    second = start()
    again = second.autotune()
    assert not second.steps, "a warm start runs the model"
    assert (again.outcome.tuned, again.plan) == (0, plan)
    assert second.serve() == served


def test_a_plan_that_grows_keeps_what_was_given_back(start: Callable[[], Start]) -> None:
    first = plan_of(start().autotune())
    more = start()
    report = more.autotune(wanted=requests(decode=(1,), prefill=(2, 4)))
    grown = plan_of(report)
    assert more.steps
    assert "prefill 4" in grown.requested
    assert grown.reverted == first.reverted
    assert {grown.tactics[key] for key in first.reverted} == {"default"}
    assert not any(effect.problem in first.reverted for effect in grown.effects), "tried once more"
    assert more.serve()["cheat"] == 0


def test_what_was_given_back_is_tried_again_where_another_tactic_wins_now(start: Callable[[], Start]) -> None:
    first = plan_of(start().autotune())

    @tb.kernels.experts.runner("honest", version="1")
    def honest(x: Any, index: Any, scores: Any, gate_up: Any, down: Any, activation: str) -> Any:
        return tb.kernels.experts.function(x, index, scores, gate_up, down, activation)

    again = plan_of(start().autotune(selection=Selection(runners=("swift", "cheat", "honest"))))
    assert {again.tactics[key] for key in first.reverted} == {"honest"}
    assert again.reverted == {}


def test_without_time_for_a_repair_a_slower_plan_is_not_activated_and_that_is_remembered(
    start: Callable[[], Start],
) -> None:
    first = start()

    def late() -> None:
        pause(1000.0)

    first.after_verifying = late
    report = first.autotune()
    plan = plan_of(report)
    assert plan.overall is not None
    assert (plan.verified, plan.active, plan.overall.outcome) == (True, False, "slower")
    assert (plan.effects, plan.reverted) == ((), {})
    assert first.serve()["cheat"] == 0, "the slower plan serves"

    second = start()
    again = second.autotune()
    assert not second.steps
    assert (again.outcome.tuned, again.plan) == (0, plan)
    assert second.serve()["cheat"] == 0, "the slower plan serves after a restart"


def test_layouts_of_what_was_given_back_are_released(start: Callable[[], Start]) -> None:
    state = start().state

    @tb.kernels.experts.runner(
        "packed", version="1", prepare=lambda gate_up, down, activation: (gate_up.clone(), down.clone(), activation)
    )
    def packed(x: Any, index: Any, scores: Any, prepared: Any) -> Any:
        if state["in model"]:
            pause(LONG_S)
        return tb.kernels.experts.function(x, index, scores, *prepared)

    @tb.kernels.linear.runner("copied", version="1", prepare=lambda weight, bias: (weight.clone(), bias))
    def copied(x: Any, prepared: Any) -> Any:
        return torch.nn.functional.linear(x, *prepared)

    one = start()
    plan = plan_of(one.autotune(selection=Selection(runners=("packed", "copied")), memory_limit="3x"))
    assert set(plan.reverted.values()) == {"packed"}
    assert set(plan.layouts.values()) == {("copied:copied",)}
    assert ops(plan.layouts) == {"linear"}
    held = {name: binding.prepared.layouts for name, binding in one.runner.attachment.bindings.items()}
    assert {layouts for name, layouts in held.items() if name.endswith("experts")} == {()}
    assert plan.bytes == one.runner.attachment.prepared_bytes > 0
