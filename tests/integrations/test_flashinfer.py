"""FlashInfer under tunebook: what is collected, raced, refused and installed, with the real package's autotuner on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.flashinfer_stage import Stage, product_inputs  # noqa: E402 - found from the root

import tunebook as tb  # noqa: E402
from tunebook.devices import CpuDevice  # noqa: E402
from tunebook.errors import UsageError  # noqa: E402
from tunebook.integrations.flashinfer._names import tactic_of, value_of  # noqa: E402
from tunebook.records import DEFAULT, Problem, Tactic, Verdict  # noqa: E402
from tunebook.search import FINALISTS  # noqa: E402
from tunebook.store import read_run  # noqa: E402

OP = "demo::product"


def tuned(stage: Stage, runners: list[Any], config: Any, inputs: list[Any], op: str = OP, **options: Any) -> Any:
    """One block with one call, tuned afresh."""
    options = {"policy": "fresh", "seed": 1, **options}
    with tb.flashinfer.autotune(**options) as session:
        stage.choose(op, runners, config, inputs)
    return session


def only(session: Any) -> Verdict:
    (verdict,) = session.outcome.verdicts.values()
    assert isinstance(verdict, Verdict)
    return verdict


# ---------------------------------------------------------------- choosing and serving


def test_the_best_of_all_runners_is_served(stage: Stage) -> None:
    stage.costs = {("Plain", 1): 0.9, ("Blocked", 0): 0.8, ("Blocked", (64, (1, 2))): 0.5}
    runners = [stage.runner("Plain", (1,)), stage.runner("Blocked", (0, (64, (1, 2))))]
    config, inputs = stage.config(), product_inputs()
    with tb.flashinfer.autotune(policy="fresh", seed=1) as session:
        assert stage.choose(OP, runners, config, inputs) == ("Plain", -1), "the fallback serves while it is collected"
    assert stage.choose(OP, runners, config, inputs) == ("Blocked", (64, (1, 2)))
    verdict = only(session)
    assert verdict.winner == "Blocked[tactic=(64 (1 2))]"
    assert verdict.status == "proven"
    assert verdict.low <= verdict.speedup <= verdict.high
    assert verdict.speedup == pytest.approx(2.0, rel=0.1)
    assert (verdict.space, verdict.seen) == (4, 4)
    assert session.run is not None
    assert read_run(session.run).verdicts[verdict.problem] == verdict


def test_the_default_wins_where_nothing_is_better_and_is_served_as_an_entry(stage: Stage) -> None:
    stage.costs = {("Plain", -1): 0.5}
    runners, config, inputs = [stage.runner("Plain", (1, 2))], stage.config(), product_inputs()
    assert only(tuned(stage, runners, config, inputs)).winner == DEFAULT.name
    hit, place, tactic, _ = stage.tuner.search_cache(
        OP, runners, tuple(tuple(t.shape) for t in inputs), config, inputs=inputs
    )
    assert (hit, place, tactic) == (True, 0, -1)


def test_each_sample_is_one_call_without_warm_up_and_the_settings_come_back(stage: Stage) -> None:
    tuned(stage, [stage.runner("Plain", (1, 2))], stage.config(), product_inputs())
    assert {(repeat, warm_up) for _, _, repeat, warm_up in stage.sampled} == {(1, 0)}
    assert (stage.tuner.repeat, stage.tuner.warmup, stage.tuner.stream_delay_micro_secs) == (10, 3, 5000)
    assert "choose_one" not in vars(stage.tuner)
    assert not stage.tuner.is_tuning_mode


def test_where_the_l2_is_to_be_cold_the_samples_go_round_copies_of_the_inputs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.module.AutoTuner, "_get_l2_cache_size_in_bytes", lambda *device: 1 << 14)
    met: list[int] = []

    def note(inputs: Any) -> Any:
        met.append(inputs[0].data_ptr())
        return inputs[0] @ inputs[1]

    runners = [stage.runner("Plain", (1,), broken={1: note})]
    session = tuned(stage, runners, stage.config(use_cold_l2_cache=True), product_inputs())
    assert Problem.parse(only(session).problem).policy == "eager.cold"
    assert len(set(met[2:])) > 2


def test_the_settings_come_back_after_an_interruption(stage: Stage) -> None:
    calls = []

    def interrupt(inputs: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return inputs[0] @ inputs[1]

    runners = [stage.runner("Plain", (1,), broken={1: interrupt})]
    with pytest.raises(KeyboardInterrupt):
        tuned(stage, runners, stage.config(), product_inputs())
    assert (stage.tuner.repeat, stage.tuner.warmup) == (10, 3)
    assert "choose_one" not in vars(stage.tuner)


def test_every_bucket_is_tuned_and_served(stage: Stage) -> None:
    stage.costs = {("Plain", 1, 8): 0.3, ("Plain", 2, 16): 0.3, ("Plain", 3, 64): 0.3}
    runners, config = [stage.runner("Plain", (1, 2, 3))], stage.config((8, 16, 64))
    session = tuned(stage, runners, config, product_inputs(20))
    assert len(session.outcome.fresh) == 3
    chosen = {rows: stage.choose(OP, runners, config, product_inputs(rows))[1] for rows in (8, 15, 16, 63, 64, 99)}
    assert chosen == {8: 1, 15: 1, 16: 2, 63: 2, 64: 3, 99: 3}
    assert sorted(Problem.parse(key).dims[0].size for key in session.outcome.fresh) == [8, 16, 64]


def test_buckets_and_rounding_are_those_of_the_block(stage: Stage) -> None:
    stage.costs = {("Plain", 1, 32): 0.3, ("Plain", 2, 64): 0.3}
    runners, config = [stage.runner("Plain", (1, 2))], stage.config((8, 16))
    tuned(stage, runners, config, product_inputs(33), tuning_buckets=(64, 32), round_up=True)
    with stage.module.autotune(False, tuning_buckets=(32, 64), round_up=True):
        assert stage.choose(OP, runners, config, product_inputs(33)) == ("Plain", 2)
        assert stage.choose(OP, runners, config, product_inputs(9)) == ("Plain", 1)
    assert stage.choose(OP, runners, config, product_inputs(16)) == ("Plain", -1), "another bucket is another entry"


def test_what_a_runner_adds_to_the_key_makes_another_problem(stage: Stage) -> None:
    def extras(inputs: Any) -> tuple[Any, ...]:
        return (inputs[0].dtype,)

    runners, config = [stage.runner("Plain", (1,), extras=extras)], stage.config((16,))
    with tb.flashinfer.autotune(policy="fresh", seed=1) as session:
        for dtype in (torch.float32, torch.bfloat16, torch.float32):
            stage.choose(OP, runners, config, product_inputs(dtype=dtype))
    problems = [Problem.parse(key) for key in session.outcome.fresh]
    assert sorted(dict(problem.attrs)["extras"] for problem in problems) == ["(torch.bfloat16,)", "(torch.float32,)"]


def test_the_op_may_be_asked_for_with_fewer_runners_too(stage: Stage) -> None:
    """FlashInfer has one entry for both: the winner of the few would stand in the way of the winner of the many."""
    stage.costs = {("Plain", 1): 0.5, ("Blocked", 0): 0.3}
    plain, blocked = stage.runner("Plain", (1,)), stage.runner("Blocked", (0,))
    config, inputs = stage.config(), product_inputs()
    with tb.flashinfer.autotune(policy="fresh", seed=1) as session:
        for offered in ([plain], [plain, blocked], [blocked]):
            stage.choose(OP, offered, config, inputs)
    assert stage.choose(OP, [plain, blocked], config, inputs) == ("Blocked", 0)
    assert only(session).winner == "Blocked[tactic=0]"
    (miss,) = session.outcome.misses
    assert "first=Blocked" in miss
    assert "FlashInfer serves one entry for it" in miss


# ---------------------------------------------------------------- what must not win


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


# ---------------------------------------------------------------- spaces


def test_staged_spaces_are_seen_whole(stage: Stage) -> None:
    """A runner that ranks its first stage while it lists its tactics sees one tactic of it outside of tuning mode."""
    stage.costs = {("Stage", n): 1.0 + n for n in range(4)} | {("Whole", (1, 7)): 0.2}
    first, config = stage.runner("Stage", (0, 1, 2, 3)), stage.config()

    def staged(inputs: Any, profile: Any) -> list[Any]:
        best = stage.tuner.rank_tactics("demo::stage", [first], config, list(inputs), k=3)
        return [(one, 7) for one in best]

    verdict = only(tuned(stage, [stage.runner("Whole", staged)], config, product_inputs()))
    assert verdict.space == 4
    assert verdict.winner == "Whole[tactic=(1 7)]"
    assert {sample[2:] for sample in stage.sampled if sample[0] == "Stage"} == {(10, 3)}, "FlashInfer ranks as ever"
    assert {sample[2:] for sample in stage.sampled if sample[0] == "Whole"} == {(1, 0)}


def test_a_large_space_is_halved_before_it_is_raced(stage: Stage) -> None:
    stage.costs = {("Wide", n): 1.0 + 0.02 * ((n * 7) % 60) for n in range(60)} | {("Wide", -1): 1.6}
    session = tuned(stage, [stage.runner("Wide", tuple(range(60)))], stage.config(), product_inputs())
    verdict = only(session)
    assert (verdict.space, verdict.seen) == (61, 61)
    assert stage.costs["Wide", int(Tactic.parse(verdict.winner).kwargs["tactic"])] <= 1.04
    lines = [json.loads(line) for line in Path(session.run).read_text().splitlines()]
    (race,) = [line for line in lines if line["type"] == "race"]
    assert 2 < len(race["tactics"]) <= FINALISTS + 1


plain = st.integers(-(2**40), 2**40) | st.booleans() | st.none() | st.text(max_size=5) | st.floats(allow_nan=False)


@given(st.recursive(plain, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8))
def test_a_tactic_reads_back_from_its_name(value: Any) -> None:
    def to_json(tactic: Any) -> Any:
        return [to_json(item) for item in tactic] if isinstance(tactic, tuple) else tactic

    def from_json(found: Any) -> Any:
        return tuple(map(from_json, found)) if isinstance(found, list) else found

    tactic = tactic_of(1, "Runner", value, to_json)
    again = value_of(Tactic.parse(tactic.name), from_json)
    assert (again, type(again)) == (value, type(value))


# ---------------------------------------------------------------- refusals and limits


@pytest.mark.parametrize("version", ["0.6.17", "0.8.0", "0.7.x", "1.0"])
def test_other_versions_are_refused_by_name(stage: Stage, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashinfer.__version__", version)
    with pytest.raises(
        UsageError, match=rf"flashinfer-python {version} is not one that tunebook knows \(0.6.18 and 0.7\)"
    ):
        tb.flashinfer.Session()


@pytest.mark.parametrize("version", ["0.6.18", "0.6.18.post2", "0.7.0", "0.7.2.post1"])
def test_known_versions_are_taken(stage: Stage, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashinfer.__version__", version)
    assert tb.flashinfer.Session().package.version == version


def test_a_changed_autotuner_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(stage.module.AutoTuner, "profile_tactic")
    with pytest.raises(UsageError, match="its AutoTuner has no profile_tactic"):
        tb.flashinfer.Session()


def test_without_the_package_the_message_says_how_to_get_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(UsageError, match="pip install 'flashinfer-python"):
        tb.flashinfer.Session()


def test_an_op_whose_calls_communicate_is_left_to_flashinfer(stage: Stage) -> None:
    op = "flashinfer::pcie_ipc_all_reduce"
    session = tuned(stage, [stage.runner("AllReduce", (1,))], stage.config(), product_inputs(), op=op)
    assert (session.outcome.fresh, stage.sampled) == ([], [])
    assert any("its calls communicate" in miss for miss in session.outcome.misses)


def test_arguments_that_make_no_sense_are_refused(stage: Stage) -> None:
    with pytest.raises(UsageError, match="budget_s=0"):
        tb.flashinfer.Session(budget_s=0)
    with pytest.raises(UsageError, match="leave one of the two out"):
        tb.flashinfer.Session(tune_mode=False, policy="fresh")
    with pytest.raises(UsageError, match="has no such argument"), tb.flashinfer.Session().autotune(no_such=1):
        pass


def test_a_spent_budget_leaves_problems_out_and_says_so(stage: Stage) -> None:
    runners, config = [stage.runner("Plain", (1,))], stage.config((8, 16))
    session = tuned(stage, runners, config, product_inputs(), budget_s=1e-9)
    assert (session.outcome.left_out, session.outcome.fresh) == (2, [])
    assert all("the budget was spent" in miss for miss in session.outcome.misses)


def test_a_block_that_raises_tunes_nothing(stage: Stage) -> None:
    session = tb.flashinfer.Session(policy="fresh")

    def block() -> None:
        with session.autotune():
            stage.choose(OP, [stage.runner("Plain", (1,))], stage.config(), product_inputs())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert (session.run, stage.sampled) == (None, [])
    assert "choose_one" not in vars(stage.tuner)


def test_a_call_that_cannot_be_collected_does_not_fail(stage: Stage) -> None:
    config = stage.module.TuningConfig(
        dynamic_tensor_specs=(stage.module.DynamicTensorSpec((0,), (0,), lambda rows: (), lambda rows: rows),)
    )
    session = tuned(stage, [stage.runner("Plain", (1,))], config, product_inputs())
    (miss,) = session.outcome.misses
    assert miss.startswith(f"{OP}: its calls cannot be collected: AssertionError")
