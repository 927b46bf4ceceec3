"""FlashInfer under tunebook: what must not win, and what is not touched, with the real package's autotuner on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.flashinfer_stage import OP, Stage, only, product_inputs, tuned  # noqa: E402 - found from the root

import tunebook as tb  # noqa: E402
from tunebook.devices import CpuDevice  # noqa: E402
from tunebook.records import Problem, Tactic  # noqa: E402


def test_a_tactic_that_raises_is_rejected_and_the_others_race(stage: Stage) -> None:
    stage.costs = {("Plain", 2): 0.1, ("Plain", 1): 0.5}
    runners = [stage.runner("Plain", (1, 2), broken={2: RuntimeError("no kernel image")})]
    verdict = only(tuned(stage, runners, stage.config(), product_inputs()))
    assert verdict.winner == "Plain[tactic=1]"
    (rejected,) = verdict.rejected
    assert (rejected.tactic, rejected.reason) == ("Plain[tactic=2]", "runtime")
    assert "no kernel image" in rejected.detail


def test_a_tactic_that_fails_in_the_race_leaves_it(stage: Stage) -> None:
    calls = []

    def fragile(inputs: Any) -> Any:
        calls.append(1)
        if len(calls) > 5:
            raise RuntimeError("illegal access")
        return inputs[0] @ inputs[1]

    stage.costs = {("Plain", 2): 0.1, ("Plain", 1): 0.5}
    runners = [stage.runner("Plain", (1, 2), broken={2: fragile})]
    session = tuned(stage, runners, stage.config(), product_inputs())
    assert only(session).winner == "Plain[tactic=1]"
    assert [(r.tactic, r.reason) for _, r in session.outcome.refused] == [("Plain[tactic=2]", "runtime")]


def test_a_fast_wrong_tactic_does_not_win(stage: Stage) -> None:
    stage.costs = {("Plain", 2): 0.1, ("Plain", 3): 0.1, ("Plain", 1): 0.5}
    wrong = {2: lambda inputs: (inputs[0] @ inputs[1]) * 1.1, 3: lambda inputs: inputs[0]}
    verdict = only(
        tuned(stage, [stage.runner("Plain", (1, 2, 3), broken=wrong)], stage.config((16,)), product_inputs())
    )
    assert verdict.winner == "Plain[tactic=1]"
    assert {r.tactic: r.reason for r in verdict.rejected} == {
        "Plain[tactic=2]": "correctness",
        "Plain[tactic=3]": "correctness",
    }


@pytest.mark.parametrize("buckets", [(16,), ()])
def test_what_is_written_into_a_given_tensor_is_compared(stage: Stage, buckets: tuple[int, ...]) -> None:
    """The output may be one of FlashInfer's own making, or the caller's; a tactic that leaves a part unwritten is wrong."""

    def half(inputs: Any) -> None:
        inputs[2][:8] = (inputs[0] @ inputs[1])[:8]

    stage.costs = {("Plain", 2): 0.1, ("Plain", 1): 0.5}
    runners = [stage.runner("Plain", (1, 2), broken={2: half}, out=True)]
    config = stage.config(buckets)
    verdict = only(tuned(stage, runners, config, product_inputs(out=True)))
    assert verdict.winner == "Plain[tactic=1]"
    assert [(r.tactic, r.reason) for r in verdict.rejected] == [("Plain[tactic=2]", "correctness")]
    assert verdict.note == ""


def test_what_the_default_uses_as_scratch_others_may_too(stage: Stage) -> None:
    def with_scratch(value: float) -> Any:
        def run(inputs: Any) -> Any:
            inputs[2].fill_(value).add_(torch.rand(()))
            return inputs[0] @ inputs[1]

        return run

    stage.costs = {("Plain", 1): 0.5}
    runners = [stage.runner("Plain", (1,), broken={-1: with_scratch(1.0), 1: with_scratch(5.0)})]
    verdict = only(tuned(stage, runners, stage.config((16,)), product_inputs(out=True)))
    assert (verdict.winner, verdict.rejected, verdict.note) == ("Plain[tactic=1]", (), "")


def test_a_tactic_that_changes_an_input_or_the_weights_is_rejected(stage: Stage) -> None:
    def spoil(place: int) -> Any:
        def run(inputs: Any) -> Any:
            product = inputs[0] @ inputs[1]
            inputs[place].add_(1.0)
            return product

        return run

    stage.costs = {("Plain", 2): 0.1, ("Plain", 3): 0.1, ("Plain", 1): 0.5}
    runners = [stage.runner("Plain", (1, 2, 3), broken={2: spoil(0), 3: spoil(1)})]
    verdict = only(tuned(stage, runners, stage.config((16,)), product_inputs()))
    assert verdict.winner == "Plain[tactic=1]"
    details = {r.tactic: r.detail for r in verdict.rejected}
    assert "argument 0 was changed" in details["Plain[tactic=2]"]
    assert details["Plain[tactic=3]"], "by the weights' checksum, or by what comes of them the next time"


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_rejected_tactic_did_to_the_weights_is_undone(stage: Stage, fails: bool) -> None:
    def spoil(inputs: Any) -> Any:
        product = inputs[0] @ inputs[1]
        inputs[1].add_(1.0)
        if fails:
            raise RuntimeError("afterwards")
        return product

    stage.costs = {("Plain", 1): 0.1, ("Plain", 2): 0.5}
    inputs = product_inputs()
    weight = inputs[1].clone()
    verdict = only(tuned(stage, [stage.runner("Plain", (1, 2), broken={1: spoil})], stage.config((16,)), inputs))
    assert torch.equal(inputs[1], weight)
    assert (verdict.winner, [r.tactic for r in verdict.rejected]) == ("Plain[tactic=2]", ["Plain[tactic=1]"])


def test_weights_that_were_loaded_in_inference_mode_are_put_back_outside(stage: Stage) -> None:
    def spoil(inputs: Any) -> Any:
        product = inputs[0] @ inputs[1]
        with torch.inference_mode():  # a kernel's own writes ask nobody
            inputs[1].add_(1.0)
        return product

    stage.costs = {("Plain", 1): 0.1, ("Plain", 2): 0.5}
    with torch.inference_mode():
        inputs = product_inputs()
        weight = inputs[1].clone()
    verdict = only(tuned(stage, [stage.runner("Plain", (1, 2), broken={1: spoil})], stage.config((16,)), inputs))
    assert (verdict.winner, [r.tactic for r in verdict.rejected]) == ("Plain[tactic=2]", ["Plain[tactic=1]"])
    assert torch.equal(inputs[1], weight)


@pytest.mark.parametrize("call", [4, 8])
def test_what_a_tactic_did_to_the_weights_before_it_failed_after_the_check_is_undone(stage: Stage, call: int) -> None:
    """As it is looked at, or in the race."""
    turn = iter(range(1, 99))

    def spoil(inputs: Any) -> Any:
        if next(turn) == call:
            inputs[1].add_(1.0)
            raise RuntimeError("half-way")
        return inputs[0] @ inputs[1]

    stage.costs = {("Plain", 1): 0.1, ("Plain", 2): 0.5}
    inputs = product_inputs()
    weight = inputs[1].clone()
    verdict = only(tuned(stage, [stage.runner("Plain", (1, 2), broken={1: spoil})], stage.config((16,)), inputs))
    assert [(r.tactic, r.reason) for r in verdict.rejected] == [("Plain[tactic=1]", "runtime")]
    assert torch.equal(inputs[1], weight)


def test_weights_too_large_for_a_copy_are_named_where_a_tactic_changed_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turn = iter(range(99))

    def spoil(inputs: Any) -> Any:
        product = inputs[0] @ inputs[1]
        if next(turn) == 1:  # its last call in the check
            inputs[1].add_(1.0)
        return product

    monkeypatch.setattr(CpuDevice, "free_memory", lambda self: 1000)
    inputs = product_inputs()
    weight = inputs[1].clone()
    tuned(stage, [stage.runner("Plain", (1,), broken={1: spoil})], stage.config((16,)), inputs)
    assert not torch.equal(inputs[1], weight)
    assert "Plain[tactic=1] has changed weights that are too large to be kept twice: load them again" in caplog.text


@pytest.mark.parametrize(
    ("default", "why"),
    [
        (lambda inputs: torch.rand(4), "differs from call to call"),
        (lambda inputs: None, "nothing that can be compared"),
        (lambda inputs: (inputs[0] @ inputs[1]).to(torch.uint8), "nothing that can be compared"),
    ],
)
def test_an_op_that_allows_no_check_is_raced_and_the_verdict_says_so(stage: Stage, default: Any, why: str) -> None:
    stage.costs = {("Plain", 1): 0.5}
    verdict = only(tuned(stage, [stage.runner("Plain", (1,), broken={-1: default})], stage.config(), product_inputs()))
    assert verdict.winner == "Plain[tactic=1]"
    assert why in verdict.note


def test_an_op_is_not_checked_where_the_caller_says_so(stage: Stage) -> None:
    stage.costs = {("Plain", 2): 0.1}
    runners = [stage.runner("Plain", (2,), broken={2: lambda inputs: inputs[0]})]
    verdict = only(tuned(stage, runners, stage.config(), product_inputs(), unchecked_ops={OP}))
    assert verdict.winner == "Plain[tactic=2]"
    assert "asked not to" in verdict.note


def test_a_default_that_fails_leaves_the_problem_to_flashinfer(stage: Stage) -> None:
    runners = [stage.runner("Plain", (1,), broken={-1: RuntimeError("no fallback")})]
    session = tuned(stage, runners, stage.config(), product_inputs())
    assert (session.outcome.left_out, session.outcome.fresh) == (1, [])
    assert any("no fallback" in miss for miss in session.outcome.misses)
    assert stage.tuner.profiling_cache == {}


@pytest.mark.parametrize("fault", ["space", "preparation"])
def test_a_runner_that_cannot_start_is_rejected_alone(stage: Stage, fault: str) -> None:
    def fail() -> None:
        raise RuntimeError("no compiler")

    stage.costs = {("Plain", 1): 0.5, ("Broken", 0): 0.1}
    broken = (
        stage.runner("Broken", RuntimeError("no compiler"))
        if fault == "space"
        else stage.runner("Broken", (0,), prepares=fail)
    )
    runners = [stage.runner("Plain", (1,)), broken]
    verdict = only(tuned(stage, runners, stage.config(), product_inputs()))
    assert verdict.winner == "Plain[tactic=1]"
    assert [Tactic.parse(r.tactic).runner for r in verdict.rejected] == ["Broken"]
    assert "no compiler" in verdict.rejected[0].detail


def test_a_first_runner_that_cannot_list_its_tactics_still_runs_the_default(stage: Stage) -> None:
    stage.costs = {("Blocked", 0): 0.5}
    runners = [stage.runner("Broken", RuntimeError("no compiler")), stage.runner("Blocked", (0,))]
    verdict = only(tuned(stage, runners, stage.config(), product_inputs()))
    assert verdict.winner == "Blocked[tactic=0]"
    assert "no compiler" in verdict.note


def test_runners_know_that_they_are_measured_while_they_are_checked(stage: Stage) -> None:
    """FlashInfer's own ones take other memory then than in service: what is preallocated fits one tactic."""
    seen = []

    def look(inputs: Any) -> Any:
        seen.append(stage.module.is_in_profile_measurement())
        return inputs[0] @ inputs[1]

    tuned(stage, [stage.runner("Plain", (1,), broken={1: look})], stage.config(), product_inputs())
    assert len(seen) > 3
    assert all(seen)


def test_runners_prepare_once_before_they_are_measured(stage: Stage) -> None:
    prepared: list[int] = []
    runners = [stage.runner("Plain", (1, 2), prepares=lambda: prepared.append(len(stage.sampled)))]
    tuned(stage, runners, stage.config(), product_inputs())
    assert prepared == [0]


def test_flashinfers_blocklist_holds(stage: Stage) -> None:
    stage.costs = {("Plain", 2): 0.1, ("Plain", 1): 0.5}
    stage.tuner._blocklist._invalid = {f"{OP}::Plain": {2}}
    verdict = only(tuned(stage, [stage.runner("Plain", (1, 2))], stage.config(), product_inputs()))
    assert (verdict.winner, verdict.space) == ("Plain[tactic=1]", 2)


def test_ops_that_are_skipped_are_left_alone(stage: Stage) -> None:
    config, inputs = stage.config(), product_inputs()
    with tb.flashinfer.autotune(policy="fresh", skip_ops={"demo::skipped"}, seed=1) as session:
        assert stage.choose("demo::skipped", [stage.runner("Plain", (1,))], config, inputs) == ("Plain", -1)
        stage.choose(OP, [stage.runner("Plain", (1,))], config, inputs)
    assert [Problem.parse(key).op for key in session.outcome.fresh] == [OP]


def test_what_flashinfer_tunes_itself_in_the_block_is_its_own(stage: Stage) -> None:
    runners, config, inputs = [stage.runner("Plain", (1,))], stage.config(), product_inputs()
    with tb.flashinfer.autotune(policy="fresh", seed=1) as session, stage.module.autotune(True):
        stage.choose(OP, runners, config, inputs)
    assert session.outcome.seen == 0
    assert stage.choose(OP, runners, config, inputs)[1] in (-1, 1)
