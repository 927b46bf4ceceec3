"""Plans that give original weights back: cold and warm starts, memory limits, mixes, and one result whatever the batch."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.devices import CpuDevice
from tunebook.dispatch import is_released, tensor_bytes
from tunebook.engine import ModelRunner, TuneReport, requests
from tunebook.errors import StoreError, UsageError
from tunebook.records import Plan, Problem
from tunebook.store import read_cache
from tunebook.tuner import Selection

pytestmark = pytest.mark.usefixtures("clean_ops")

WANTED = requests(decode=(1,), prefill=(4,))
LINEAR = Selection(ops=("linear",), runners=("packed", "padded", "plain"))
#: What the default of a linear takes.
PAUSE_S = 0.002
#: So many times a weight's memory is what `padded` takes.
PADDED = 60
IDS = torch.arange(6).reshape(1, 6)


class Clock(CpuDevice):
    """The processor with a made-up clock: linears take what the test says, and nothing else takes long."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        self.now += 1e-7
        return self.now


class World:
    """Runners of `linear` that count their calls: `packed` keeps the weight transposed, `padded` three times over, and both
    give it back; `plain` uses the model's own. `pause` says how long a call of each takes."""

    def __init__(self, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.pause: dict[str, float] = {"default": PAUSE_S, "plain": PAUSE_S, "padded": 0.0, "packed": PAUSE_S / 4}
        self.in_model: dict[str, float] = {}
        self.bits = True
        self.clock = Clock()
        self.sleeps = False
        self._rng = random.Random(0)
        self._tiny = tiny_model
        self._runners: list[ModelRunner] = []
        own = torch.nn.Linear.forward

        def default(module: Any, x: Any) -> Any:
            self._wait("default")
            return own(module, x)

        monkeypatch.setattr(torch.nn.Linear, "forward", default)

    def declare(self) -> None:
        """The runners, as they are in a process that starts."""

        def rows(x: Any, weight: Any, bias: Any) -> Any:
            """Row by row, so that what else is in the batch changes nothing."""
            flat = x.reshape(-1, x.shape[-1])
            out = torch.stack([torch.mv(weight, row) for row in flat]) if len(flat) else flat.new_empty(0, len(weight))
            out = out.reshape(*x.shape[:-1], len(weight))
            return out if bias is None else out + bias

        def counted(name: str, make: Callable[[Any], Any]) -> Callable[..., Any]:
            def prepare(weight: Any, bias: Any) -> Any:
                self.made[name] += 1
                return make(weight), bias

            return prepare

        def given_back(prepared: Any, *, last: bool) -> list[Any]:
            weight, bias = prepared
            weight = weight[0] if weight.ndim == 3 else weight.T
            return [part.contiguous().clone() for part in (weight, bias) if part is not None]

        same: Any = {"bits": lambda: "rows"} if self.bits else {}

        @tb.kernels.linear.runner(
            "packed", version="1", prepare=counted("packed", lambda w: w.T.contiguous()), restore=given_back, **same
        )
        def packed(x: Any, prepared: Any) -> Any:
            self._wait("packed")
            return rows(x, prepared[0].T.contiguous(), prepared[1])

        @tb.kernels.linear.runner(
            "padded", version="1", prepare=counted("padded", lambda w: w.repeat(PADDED, 1, 1)), restore=given_back
        )
        def padded(x: Any, prepared: Any) -> Any:
            self._wait("padded")
            return torch.nn.functional.linear(x, prepared[0][0], prepared[1])

        @tb.kernels.linear.runner("plain", version="1")
        def plain(x: Any, weight: Any, bias: Any) -> Any:
            self._wait("plain")
            return torch.nn.functional.linear(x, weight, bias)

    def _wait(self, name: str) -> None:
        self.calls[name] += 1
        seconds = (self.pause[name] + self.in_model.get(name, 0.0)) * self._rng.uniform(1.0, 1.01)
        if self.sleeps:
            time.sleep(seconds)
        self.clock.now += seconds + 1e-5

    def start(self) -> ModelRunner:
        self.declare()
        loaded = self._tiny()
        self._runners.append(ModelRunner(loaded, ops=("linear", "experts"), device=self.clock))
        self.steps = 0
        loaded.model.register_forward_pre_hook(self._step)
        self.made.clear()
        return self._runners[-1]

    def _step(self, *_: object) -> None:
        self.steps += 1

    def tune(self, runner: ModelRunner, **options: Any) -> TuneReport:
        return runner.autotune(**{"budget_s": 60, "wanted": WANTED, "selection": LINEAR, **options})

    def serve(self, runner: ModelRunner, ids: torch.Tensor = IDS) -> tuple[torch.Tensor, set[str]]:
        """The logits, and who computed linears."""
        self.calls.clear()
        with torch.inference_mode():
            logits = runner.loaded.model(ids).logits
        return logits, set(self.calls)

    def close(self) -> None:
        for runner in self._runners:
            runner.close()


@pytest.fixture
def world(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tiny_model, monkeypatch)
    yield made
    made.close()


def plan_of(report: TuneReport) -> Plan:
    assert report.plan is not None
    return report.plan


def held(runner: ModelRunner) -> int:
    """What all weights take now: parameters that have their memory, and what is prepared."""
    kept = [p for p in runner.loaded.model.parameters() if not is_released(p)]
    prepared = [binding.prepared for binding in runner.attachment.bindings.values()]
    return tensor_bytes(kept) + sum(one.bytes for one in prepared)


def layouts(plan: Plan) -> set[str]:
    return {name for names in plan.layouts.values() for name in names}


def test_a_cold_start_compares_both_and_then_gives_the_originals_back(world: World) -> None:
    runner = world.start()
    before, _ = world.serve(runner)
    whole = held(runner)
    weights = [p.detach().clone() for p in runner.loaded.model.parameters()]
    report = world.tune(runner)
    plan = plan_of(report)
    assert (plan.verified, plan.active, plan.limit, plan.model_bytes) == (True, True, "1.1x", whole)
    assert layouts(plan) == {"packed:packed"}
    linears = [b for b in runner.attachment.bindings.values() if b.spec.name == "linear"]
    assert linears
    assert all(binding.released for binding in linears)
    assert plan.bytes == runner.attachment.prepared_bytes
    assert plan.released == runner.attachment.released_bytes > 0
    assert held(runner) <= 1.1 * whole
    assert held(runner) == whole + plan.bytes - plan.released
    after, served = world.serve(runner)
    assert served == {"packed"}
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)

    for holding in plan.holdings:
        assert holding.layers == sum(holding.family in names for names in plan.modules.values())
        assert holding.released == sum(holding.layouts.values()) > 0
        assert holding.source == "packed"
        assert holding.buys["packed:packed"] > 1, "without it the mix takes longer"
    document = report.document()["plan"]
    assert document["released_bytes"] == plan.released
    assert {family["family"] for family in document["families"]} == set(plan.layouts)
    assert [profile.phase for profile in plan.profile] == ["decode 1", "prefill 4"]

    _, served = world.serve(runner, torch.arange(64).reshape(1, 64))
    assert served == {"packed"}, "a size that was never tuned brings the originals back"
    runner.close()
    assert all(torch.equal(p, w) for p, w in zip(runner.loaded.model.parameters(), weights, strict=True))


def test_a_warm_start_prepares_and_releases_without_a_step(world: World) -> None:
    first = world.start()
    plan = plan_of(world.tune(first))
    logits, _ = world.serve(first)
    second = world.start()
    again = world.tune(second)
    assert (world.steps, again.plan) == (0, plan)
    linears = [b for b in second.attachment.bindings.values() if b.spec.name == "linear"]
    assert world.made == {"packed": len(linears)}, "each layer's weights are packed once"
    assert second.attachment.released_bytes == plan.released
    assert torch.equal(world.serve(second)[0], logits)


def test_a_second_tuning_of_the_same_runner_has_the_originals_again(world: World, caplog: Any) -> None:
    runner = world.start()
    first = plan_of(world.tune(runner))
    grown = plan_of(world.tune(runner, wanted=requests(decode=(1, 2), prefill=(4,))))
    assert grown.sources.keys() >= first.sources.keys()
    assert runner.attachment.released_bytes == grown.released
    assert not [r for r in caplog.records if "are read" in r.message], "they came back by being read"


def test_more_memory_lets_the_faster_layout_serve_and_another_limit_plans_anew_without_measuring(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tunebook")
    wide = plan_of(world.tune(world.start(), memory_limit="60x"))
    assert layouts(wide) == {"padded:padded"}
    assert wide.limit == "60x"
    tight = world.start()
    whole = held(tight)
    report = world.tune(tight, memory_limit="1.1x")
    plan = plan_of(report)
    assert world.steps == 0, "a plan for another limit runs the model"
    assert report.outcome.tuned == 0
    assert "memory limit of 1.1x instead of 60x, without measuring" in report.why
    assert any("nothing was measured" in record.message for record in caplog.records)
    assert (layouts(plan), plan.limit, plan.verified, plan.phases) == ({"packed:packed"}, "1.1x", False, ())
    assert plan.planned_from
    assert plan.active
    assert held(tight) <= 1.1 * whole
    assert world.serve(tight)[1] == {"packed"}
    assert read_cache(report.session.location.cache, None).plans[plan.fingerprint] == plan

    same = world.start()
    assert plan_of(world.tune(same)) == plan, "who asks for no limit gets the plan that is there"
    assert world.steps == 0
    proven = plan_of(world.tune(world.start(), continuing=True))
    assert proven.verified
    assert world.steps > 0
    assert not proven.planned_from


def test_a_limit_that_changes_nothing_keeps_the_proof(world: World) -> None:
    first = plan_of(world.tune(world.start()))
    again = plan_of(world.tune(world.start(), memory_limit="1.2x"))
    assert world.steps == 0
    for name in again.__struct_fields__:
        if name not in ("limit", "holdings"):
            assert getattr(again, name) == getattr(first, name), name
    assert [holding.layouts for holding in again.holdings] == [holding.layouts for holding in first.holdings]
    assert again.sources == first.sources
    assert again.limit == "1.2x"


def test_replay_plans_anew_and_writes_nothing(world: World) -> None:
    report = world.tune(world.start(), memory_limit="60x")
    before = report.session.location.cache.read_bytes()
    plan = plan_of(world.tune(world.start(), memory_limit="1.1x", policy="replay"))
    assert layouts(plan) == {"packed:packed"}
    assert report.session.location.cache.read_bytes() == before


def test_a_plan_of_an_older_version_still_serves_and_is_made_anew_where_a_limit_is_asked_for(world: World) -> None:
    report = world.tune(world.start())
    cache = report.session.location.cache
    document = json.loads(cache.read_text())
    (plan,) = document["plans"].values()
    for name in ("profile", "model_bytes", "holdings", "limit"):
        del plan[name]
    cache.write_text(json.dumps(document))
    old = world.start()
    served = plan_of(world.tune(old))
    assert world.steps == 0
    assert (served.limit, served.sources) == ("", {})
    assert "packed" in world.serve(old, IDS[:, :4])[1]
    assert old.attachment.released_bytes == 0
    new = plan_of(world.tune(world.start(), memory_limit="1.1x"))
    assert world.steps > 0
    assert (new.limit, bool(new.sources), new.verified) == ("1.1x", True, True)


def test_where_both_do_not_fit_nothing_is_released(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = world.tune(world.start())
    cache = report.session.location.cache
    document = json.loads(cache.read_text())
    document["plans"] = {}
    cache.write_text(json.dumps(document))  # the verdicts are known; both layouts are to be compared
    runner = world.start()
    monkeypatch.setattr(type(runner.device), "free_memory", lambda self: 4_000)
    again = world.tune(runner)
    plan = plan_of(again)
    assert again.outcome.tuned == 0
    assert plan.sources == {}
    assert plan.bytes <= 2_000
    assert any("no original weights are released" in record.message for record in caplog.records)


def test_a_slower_plan_gives_nothing_back(world: World) -> None:
    runner = world.start()

    def progress(done: int, total: int, what: str) -> None:
        if what == "preparing weights":
            world.in_model["packed"] = 4 * PAUSE_S
        if what == "verifying" and done == total:
            world.clock.now += 1000.0  # no time is left for a repair

    plan = plan_of(world.tune(runner, progress=progress))
    assert (plan.verified, plan.active) == (True, False)
    assert plan.sources, "it would have released"
    assert runner.attachment.released_bytes == runner.attachment.prepared_bytes == 0
    assert world.serve(runner)[1] == {"default"}
    warm = world.start()
    assert plan_of(world.tune(warm)) == plan
    assert world.steps == 0
    assert warm.attachment.released_bytes == warm.attachment.prepared_bytes == 0
    replayed = plan_of(world.tune(world.start(), policy="replay", memory_limit="1.2x"))
    assert not replayed.active, "what was slower serves under another limit, unmeasured"


def test_what_loses_in_the_model_is_given_back_within_the_limit(world: World) -> None:
    """`packed` and `padded` both win their races; in the model `packed` loses. `padded` fits only where all are released."""
    world.pause |= {"packed": 0.0, "padded": PAUSE_S / 4}
    runner = world.start()
    whole = held(runner)

    def progress(done: int, total: int, what: str) -> None:
        if what == "preparing weights":
            world.in_model["packed"] = 4 * PAUSE_S

    plan = plan_of(world.tune(runner, progress=progress))
    assert "packed" in plan.reverted.values()
    assert plan.overall is not None
    assert plan.overall.outcome != "slower"
    assert held(runner) <= 1.1 * whole
    assert plan.bytes == runner.attachment.prepared_bytes
    _, served = world.serve(runner, torch.arange(4).reshape(1, 4))
    assert "packed" not in served
    warm = world.start()
    assert plan_of(world.tune(warm)) == plan
    assert world.steps == 0
    assert held(warm) <= 1.1 * whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory_limit": "0.9x"}, ("'0.9x'", "1.1x", "3GiB")),
        ({"memory_limit": "plenty"}, ("'plenty'",)),
        ({"memory_limit": "1kB"}, ("1000B", "less than the model's own")),
        ({"mix": "decode 1"}, ("'decode 1'",)),
        ({"mix": "decode 1=0"}, ("'decode 1=0'", "above 0")),
        ({"mix": "decode 1=1,decode 1=2"}, ("decode 1", "twice")),
        ({"mix": "sample 1=1"}, ("'sample 1=1'",)),
        ({"mix": ",="}, ("'='",)),
        ({"mix": {"decode 3": 1}}, ("decode 3", "decode 1, prefill 4")),
        ({"mix": {}}, ("counts nothing",)),
        ({"mix": Path("no_such.json")}, ("no_such.json", "no file")),
    ],
    ids=str,
)
def test_terms_that_cannot_be_are_refused_by_name_before_anything_runs(
    options: dict[str, Any], words: tuple[str, ...], world: World
) -> None:
    runner = world.start()
    with pytest.raises(UsageError) as error:
        world.tune(runner, **options)
    assert all(word in str(error.value) for word in words), error.value
    assert world.steps == 0


def test_the_variable_limits_where_no_argument_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBOOK_MEMORY_LIMIT", "60x")
    assert plan_of(world.tune(world.start())).limit == "60x"
    assert plan_of(world.tune(world.start(), memory_limit="1.3x")).limit == "1.3x"
    monkeypatch.setenv("TUNEBOOK_MEMORY_LIMIT", "10B")
    with pytest.raises(UsageError, match="less than the model's own"):
        world.tune(world.start())


def test_a_mix_is_part_of_the_plan_and_another_one_plans_anew(world: World) -> None:
    first = plan_of(world.tune(world.start(), mix="decode 1=10, prefill 4=1"))
    assert first.mix is not None
    assert first.mix.steps == {"decode 1": 10, "prefill 4": 1}
    assert plan_of(world.tune(world.start())) == first
    other = world.tune(world.start(), mix={"prefill 4": 2})
    assert world.steps == 0
    assert "the mix prefill 4=2 instead of decode 1=10,prefill 4=1" in other.why
    equal = plan_of(world.tune(world.start(), mix="equal"))
    assert equal.mix is None
    assert world.steps == 0


def test_calls_are_recorded_while_serving_and_planned_for(world: World, tmp_path: Path) -> None:
    runner, path = world.start(), tmp_path / "deep" / "mix.json"
    plan = plan_of(world.tune(runner))
    for _ in range(2):
        with runner.record_mix(path):
            world.serve(runner, torch.arange(4).reshape(1, 4))
        world.serve(runner)
    document = json.loads(path.read_text())
    assert (document["schema"], document["model"], document["fingerprint"]) == (
        1,
        runner.name,
        runner.loaded.fingerprint,
    )
    linears = {key: count for key, count in document["calls"].items() if key.startswith("linear|")}
    assert sum(linears.values()) == 2 * sum(b.spec.name == "linear" for b in runner.attachment.bindings.values())
    assert all(Problem.parse(key).dims[0].size in (1, 4) for key in linears)
    again = plan_of(world.tune(world.start(), mix=path))
    assert world.steps == 0
    assert again.mix is not None
    assert again.mix.calls == document["calls"]
    assert again.tactics == plan.tactics


def test_a_file_of_calls_that_is_not_one_is_refused(world: World, tmp_path: Path) -> None:
    runner, path = world.start(), tmp_path / "mix.json"
    good = {"schema": 1, "model": "m", "fingerprint": runner.loaded.fingerprint, "calls": {}}
    for content, kind, words in [
        (b"{", StoreError, "no file of recorded calls"),
        (json.dumps({**good, "calls": {"nonsense": 1}}).encode(), StoreError, "nonsense"),
        (json.dumps({**good, "schema": 2}).encode(), StoreError, "schema 2"),
        (json.dumps({**good, "fingerprint": "other"}).encode(), UsageError, "another model, m"),
        (json.dumps(good).encode(), UsageError, "no call was recorded"),
    ]:
        path.write_bytes(content)
        with pytest.raises(kind, match=words):
            world.tune(runner, mix=path)
        if words != "no call was recorded":
            with pytest.raises(kind, match=words), runner.record_mix(path):
                raise AssertionError("the block was entered")
            assert path.read_bytes() == content
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"), runner.record_mix(tmp_path / "file" / "mix.json"):
        pass
    with pytest.raises(StoreError):
        world.tune(runner, mix=tmp_path)
    assert world.steps == 0


def test_one_result_whatever_the_batch(world: World) -> None:
    runner = world.start()
    report = world.tune(runner, batch_invariant=True)
    plan = plan_of(report)
    assert plan.batch_invariant
    assert {holding.numerics for holding in plan.holdings} == {"packed:rows"}
    linears = {key: name for key, name in plan.tactics.items() if key.startswith("linear|")}
    assert set(linears.values()) == {"packed"}
    for rows in (1, 2, 5, 64, 200):  # sizes that were tuned, and that were not
        world.calls.clear()
        for binding in runner.attachment.bindings.values():
            if binding.spec.name == "linear":
                with torch.inference_mode():
                    x = torch.randn(rows, binding.constants[0].shape[1])
                    call = binding.caller()
                    assert torch.equal(call(x)[-1:], call(x[-1:]))
        assert set(world.calls) == {"packed"}
    warm = world.start()
    assert plan_of(world.tune(warm, batch_invariant=True)) == plan
    assert world.steps == 0
    usual = plan_of(world.tune(world.start()))
    assert usual.fingerprint != plan.fingerprint
    assert not usual.batch_invariant


def test_weights_that_stay_serve_every_size_alike_too(world: World, tiny_model: Callable[..., Any]) -> None:
    """Of a weight that the embedding shares nothing can be released, and no size may run the default for it."""
    runner = world.start()
    for binding in runner.attachment.bindings.values():
        binding.releasable = 0
    plan = plan_of(world.tune(runner, batch_invariant=True, memory_limit="3x"))
    assert plan.sources == {}
    _, served = world.serve(runner, torch.arange(200).reshape(2, 100) % 64)
    assert served == {"packed"}


def test_what_cannot_have_one_result_whatever_the_batch_is_refused_by_name(world: World) -> None:
    runner = world.start()
    both = Selection(ops=("linear", "experts"), runners=("packed", "padded", "plain"))
    with pytest.raises(UsageError, match=r"op experts.*--op") as error:
        world.tune(runner, batch_invariant=True, selection=both)
    assert "op linear" not in str(error.value)
    assert world.steps == 0
    with pytest.raises(UsageError, match="op linear: no runner here promises"):
        world.tune(runner, batch_invariant=True, selection=Selection(ops=("linear",), runners=("padded", "plain")))
    with pytest.raises(UsageError, match="no plan for one result whatever the batch"):
        world.tune(runner, batch_invariant=True, policy="replay")
    tb.kernels.linear.remove_runner("packed")
    world.bits = False
    other = world.start()
    with pytest.raises(UsageError, match="op linear: no runner here promises"):
        world.tune(other, batch_invariant=True)
    assert world.steps == 0


def test_a_family_whose_frontier_lacks_it_is_refused_before_anything_serves(world: World) -> None:
    runner = world.start()
    wrong = tb.kernels.linear.runners["packed"]

    def refuse(problem: Problem) -> str | None:
        return "too small" if problem.dims[0].size == 1 else None

    object.__setattr__(wrong, "supports", refuse)
    with pytest.raises(UsageError, match=r"op linear, linear\|.*for all its sizes") as error:
        world.tune(runner, batch_invariant=True)
    assert "--budget" not in str(error.value)
    assert runner.attachment.prepared_bytes == 0 or not runner.scope.tactics
    assert runner.attachment.released_bytes == 0


def test_a_budget_that_leaves_sizes_out_is_said_to_be_why_one_result_cannot_be_had(world: World) -> None:
    runner = world.start()
    with pytest.raises(UsageError, match=r"\d+ of its \d+ sizes were not tuned: give a larger --budget"):
        world.tune(runner, batch_invariant=True, budget_s=1e-9)


def test_less_memory_than_one_result_needs_is_said(world: World) -> None:
    runner = world.start()
    for binding in runner.attachment.bindings.values():
        binding.releasable = 0
    with pytest.raises(UsageError, match="larger limit"):
        world.tune(runner, batch_invariant=True, memory_limit="1x")


def test_a_block_gives_originals_back_too_and_the_next_one_begins_with_them(world: World) -> None:
    world.declare()
    world.sleeps = True
    model = world._tiny().model
    with tb.attach(model, ops=("linear",)) as attachment:
        for ids in (torch.arange(4).reshape(1, 4), torch.arange(2).reshape(1, 2)):
            with tb.autotune(budget_s=30, only_runners=("packed",)), torch.inference_mode():
                model(ids)
            assert attachment.released_bytes > 0
        own = sum(tensor_bytes(list(b.constants)) for b in attachment.bindings.values() if not b.released)
        assert attachment.prepared_bytes - attachment.released_bytes <= 0.1 * (own + attachment.released_bytes)
    assert not any(is_released(p) for p in model.parameters())
