"""The switch on a whole model: what a first, a second, a fresh and a replaying start of an engine do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import collecting
from tunebook.engine import ModelRunner, TuneReport, requests
from tunebook.records import Rejected
from tunebook.store import read_run
from tunebook.tuner import Selection

pytestmark = pytest.mark.usefixtures("clean_ops")

WANTED = requests(decode=(1,), prefill=(2,))
TORCH = Selection(runners=("torch",))  # enough of a race, and a short one
IDS = torch.arange(6).reshape(1, 6)


class Start:
    """A start of an engine: a new runner of the same model, that counts the model's steps."""

    def __init__(self, loaded: Any) -> None:
        self.runner = ModelRunner(loaded, ops=("linear", "experts"))
        self.steps = 0
        loaded.model.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.steps += 1

    def autotune(self, **options: Any) -> TuneReport:
        return self.runner.autotune(**{"budget_s": 3, "wanted": WANTED, "selection": TORCH, **options})

    def logits(self) -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = self.runner.loaded.model(IDS).logits
        return result


@pytest.fixture
def start(tiny_model: Callable[..., Any]) -> Callable[[], Start]:
    return lambda: Start(tiny_model())


def paths(report: TuneReport) -> tuple[Path, list[Path]]:
    cache = report.session.location.cache
    return cache, sorted(cache.parent.glob("runs/*"))


def test_a_second_start_takes_everything_from_the_cache(start: Callable[[], Start]) -> None:
    first = start()
    before = first.logits()
    report = first.autotune()
    document = report.document()
    assert document["problems"]["seen"] == document["problems"]["tuned"] + document["problems"]["left_out"] > 0
    assert document["plan"]["verified"]
    assert document["published"]
    assert [(p["phase"], p["batch"], p["tokens"]) for p in document["phases"]] in (
        [],
        [("decode", 1, 1), ("prefill", 1, 2)],
    )
    torch.testing.assert_close(first.logits(), before, rtol=1e-3, atol=1e-4)
    cache, runs = paths(report)
    content = cache.read_bytes()
    assert [str(run) for run in runs] == [document["run"]]

    second = start()
    again = second.autotune().document()
    assert second.steps == 0, "a warm start runs the model"
    assert again["problems"]["tuned"] == 0
    assert again["problems"]["left_out"] == document["problems"]["left_out"]  # a busy machine may leave some out
    assert again["problems"]["cached"] == again["problems"]["seen"] == document["problems"]["seen"]
    assert again["plan"]["tactics"] == document["plan"]["tactics"]
    assert again["plan"]["active"] == document["plan"]["active"]
    assert again["run"] is None
    assert (cache.read_bytes(), paths(report)[1]) == (content, runs)
    assert torch.equal(second.logits(), first.logits())


def test_a_warm_start_does_not_run_a_tactic(start: Callable[[], Start]) -> None:
    calls = []

    def slow(x: Any, index: Any, scores: Any, gate_up: Any, down: Any, activation: str) -> Any:
        calls.append(len(x))
        time.sleep(0.01)
        return tb.kernels.experts.function(x, index, scores, gate_up, down, activation)

    tb.kernels.experts.runner("slow", version="1")(slow)
    narrow = Selection(ops=("experts",), runners=("slow",))
    assert start().autotune(selection=narrow).outcome.tuned == 2
    assert calls
    calls.clear()
    second = start()
    assert second.autotune(selection=narrow).outcome.tuned == 0
    assert not calls
    second.logits()
    assert not calls, "the loser serves"


def test_a_fresh_start_leaves_the_cache_alone_and_is_verified_all_the_same(
    start: Callable[[], Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, (run,) = paths(start().autotune())
    before = (cache.read_bytes(), cache.stat().st_mtime_ns)
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE_CACHE", "0")
    fresh = start()
    report = fresh.autotune()
    assert fresh.steps > 0
    assert report.outcome.tuned > 0
    assert report.outcome.cached == 0
    assert not report.outcome.published
    assert report.plan is not None
    assert report.plan.verified
    assert (cache.read_bytes(), cache.stat().st_mtime_ns) == before
    (new,) = set(paths(report)[1]) - {run}
    kept = read_run(new)
    assert kept.header.policy == "fresh"
    assert kept.header.model == "tiny-mixtral"
    assert kept.plans == {report.plan.fingerprint: report.plan}


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_replay_never_runs_the_model(how: str, start: Callable[[], Start], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"policy": "replay"} if how == "argument" else {}
    if how == "variable":
        monkeypatch.setenv("TUNEBOOK_AUTOTUNE", "0")
    cold = start()
    before = cold.logits()
    steps = cold.steps
    report = cold.autotune(**options)
    assert cold.steps == steps
    assert (report.outcome.tuned, report.plan, report.session.run_path) == (0, None, None)
    assert not report.session.location.cache.parent.exists()
    assert torch.equal(cold.logits(), before)

    monkeypatch.delenv("TUNEBOOK_AUTOTUNE", raising=False)
    tuned = start().autotune()
    if how == "variable":
        monkeypatch.setenv("TUNEBOOK_AUTOTUNE", "0")
    warm = start()
    report = warm.autotune(**options)
    assert warm.steps == 0
    assert report.plan == tuned.plan


def test_another_phase_is_tuned_and_the_rest_comes_from_the_cache(start: Callable[[], Start]) -> None:
    first = start().autotune(selection=Selection(ops=("experts",), runners=("torch",)), budget_s=30)
    more = start()
    report = more.autotune(
        selection=Selection(ops=("experts",), runners=("torch",)), budget_s=30, wanted=requests((1,), (2, 8))
    )
    assert more.steps > 0
    assert (first.outcome.tuned, report.outcome.tuned) == (2, 2)  # M ≤ 1, 2; then 4, 8
    assert report.outcome.cached == 2
    assert "prefill 8" in report.why


def test_a_tactic_that_is_slower_on_the_whole_model_is_given_back_and_that_is_remembered(
    start: Callable[[], Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    original = MixtralExperts.forward
    calls = {"cheat": 0, "slow": False}

    def default(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.003)
        return original(*args, **kwargs)

    def cheat(x: Any, index: Any, scores: Any, gate_up: Any, down: Any, activation: str) -> Any:
        calls["cheat"] += 1
        if calls["slow"]:
            time.sleep(0.03)
        return tb.kernels.experts.function(x, index, scores, gate_up, down, activation)

    def progress(done: int, total: int, what: str) -> None:
        if what == "preparing weights":  # the race is over
            calls["slow"] = True

    monkeypatch.setattr(MixtralExperts, "forward", default)
    tb.kernels.experts.runner("cheat", version="1")(cheat)
    options: dict[str, Any] = {"selection": Selection(ops=("experts",), runners=("cheat",)), "budget_s": 30}
    first = start()
    report = first.autotune(progress=progress, **options)
    assert set(report.outcome.tactics.values()) == {tb.records.Tactic(runner="cheat")}
    document = report.document()
    assert set(document["plan"]["reverted"].values()) == {"cheat"}
    assert set(document["plan"]["tactics"].values()) == {"default"}
    assert all(effect["outcome"] == "slower" for effect in document["effects"])
    assert (document["overall"]["speedup"], document["overall"]["outcome"]) == (1.0, "no difference")
    assert (document["plan"]["verified"], document["plan"]["active"]) == (True, True)
    assert document["published"]
    calls["cheat"] = 0
    first.logits()
    assert calls["cheat"] == 0, "the slower tactic serves"

    second = start()
    report = second.autotune(**options)
    assert second.steps == 0
    assert report.outcome.tuned == 0
    assert report.plan is not None
    assert report.plan.reverted == document["plan"]["reverted"]
    second.logits()
    assert calls["cheat"] == 0, "the slower tactic serves after a restart"


@pytest.mark.parametrize(
    ("selection", "ops"),
    [
        (Selection(ops=("linear",), runners=("torch",)), {"linear"}),
        (Selection(skip_ops=("linear",), runners=("torch",)), {"experts"}),
        (Selection(runners=("torch",)), {"linear", "experts"}),
    ],
)
def test_a_tuning_is_narrowed_to_ops_and_runners(
    selection: Selection, ops: set[str], start: Callable[[], Start]
) -> None:
    report = start().autotune(selection=selection, budget_s=20)
    assert report.session.run_path is not None
    trials = read_run(report.session.run_path).trials
    assert {line.problem.partition("|")[0] for line in trials} == ops
    assert {line.trial.tactic.partition("[")[0] for line in trials} == {"default", "torch"}


@pytest.mark.parametrize(
    "selection",
    [Selection(ops=("conv",)), Selection(skip_ops=("conv",)), Selection(runners=("cutlass",))],
)
def test_a_name_that_nothing_has_is_an_error_that_lists_those_there_are(
    selection: Selection, start: Callable[[], Start]
) -> None:
    with pytest.raises(ValueError, match=r"'(conv|cutlass)'.*(linear|onednn)"):
        start().autotune(selection=selection)


def test_a_dummy_run_and_generation_outside_a_tuning(start: Callable[[], Start]) -> None:
    one = start()
    assert one.runner.dummy_run("prefill", 2, tokens=3).shape == (2, 1, 256)
    first, second = one.runner.dummy_run("decode", 2), one.runner.dummy_run("decode", 2)
    assert first.shape == (2, 1, 256)
    assert torch.equal(first, second), "a decode step does not leave the key-value cache as it was"
    assert not first.requires_grad
    for phase, batch in (("train", 1), ("decode", 0)):
        with pytest.raises(ValueError, match=f"{phase}"):
            one.runner.dummy_run(phase, batch)  # type: ignore[arg-type]
    with pytest.raises(tb.TunebookError, match="no tokenizer"):
        next(one.runner.generate("hello"))


def test_the_batched_algorithm_is_refused_unrun_where_it_would_not_fit(
    start: Callable[[], Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEBOOK_MEMORY_LIMIT_GB", "0.0001")
    report = start().autotune(selection=Selection(ops=("experts",), runners=("torch",)), budget_s=20)
    rejected = {(r.tactic, r.reason) for _, r in report.outcome.rejected}
    assert ("torch[algorithm=batched_mm]", "memory") in rejected
    assert all(isinstance(r, Rejected) and "GB" in r.detail for _, r in report.outcome.rejected if r.reason == "memory")


def test_collecting_twice_at_once_is_an_error(start: Callable[[], Start]) -> None:
    one = start()
    with tb.autotune(budget_s=1), pytest.raises(ValueError, match="collected already"):
        one.autotune()
    from tunebook.tuner import Collection

    with collecting(Collection(one.runner.device)):
        pass  # nothing is left open
