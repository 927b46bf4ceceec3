"""FlashInfer under tunebook: what is collected, raced and installed, with the real package's autotuner on the CPU."""

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

from tests.integrations.flashinfer_stage import OP, Stage, only, product_inputs, tuned  # noqa: E402 - found from the root

import tunebook as tb  # noqa: E402
from tunebook.devices import CpuDevice  # noqa: E402
from tunebook.errors import UsageError  # noqa: E402
from tunebook.integrations.flashinfer._names import tactic_of, value_of  # noqa: E402
from tunebook.records import DEFAULT, Problem, Tactic  # noqa: E402
from tunebook.search import FINALISTS  # noqa: E402
from tunebook.store import read_run  # noqa: E402

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
    assert verdict.status == "likely", "after four rounds two were passed over"
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


def test_an_op_that_asks_for_more_calls_a_sample_is_sampled_by_single_calls_too(stage: Stage) -> None:
    if not hasattr(stage.module.TuningConfig(), "profiling_repeat"):
        assert "0.6.18" in tb.flashinfer.Session().package.version
        return
    tuned(stage, [stage.runner("Plain", (1, 2))], stage.config(profiling_repeat=7), product_inputs())
    assert {(repeat, warm_up) for _, _, repeat, warm_up in stage.sampled} == {(1, 0)}


@pytest.mark.parametrize("inference", [False, True])
def test_a_call_is_measured_in_its_own_inference_mode(stage: Stage, inference: bool) -> None:
    """Tensors that were made in it cannot be written outside, whatever the mode is where the block ends."""
    seen: set[tuple[bool, bool]] = set()

    def note(inputs: Any) -> None:
        seen.add((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        inputs[2].copy_(inputs[0] @ inputs[1])

    stage.costs = {("Plain", 1): 0.5}
    runners = [stage.runner("Plain", (1,), broken={1: note}, out=True)]
    other, block = torch.inference_mode(not inference), tb.flashinfer.autotune(policy="fresh", seed=1)
    with other, block as session, torch.inference_mode(inference):
        stage.choose(OP, runners, stage.config(), product_inputs(out=True))
    verdict = only(session)
    assert (verdict.winner, verdict.note) == ("Plain[tactic=1]", "")
    assert seen == {(inference, False)}


def test_what_the_block_has_under_way_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights may still be written on another stream than that on which they are measured."""
    order: list[str] = []
    make = stage.module.AutoTuner._prepare_input_tensors

    def made(self: Any, *args: Any) -> Any:
        order.append("inputs")
        return make(self, *args)

    monkeypatch.setattr(stage.module.AutoTuner, "_prepare_input_tensors", made)
    monkeypatch.setattr(CpuDevice, "synchronize", lambda self: order.append("waits"))
    tuned(stage, [stage.runner("Plain", (1,))], stage.config((16,)), product_inputs())
    assert order[:2] == ["waits", "inputs"]


def test_the_budget_is_one_for_all_blocks_of_a_session(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def slow(inputs: Any) -> Any:
        now[0] += 1.0
        return inputs[0] @ inputs[1]

    monkeypatch.setattr(CpuDevice, "clock", lambda self: now[0])
    session = tb.flashinfer.Session(policy="fresh", seed=1, budget_s=2.0)
    for rows in (8, 16):
        with session.autotune():
            runners = [stage.runner("Plain", (1,), broken={1: slow})]
            stage.choose(OP, runners, stage.config(), product_inputs(rows))
    assert (len(session.outcome.fresh), session.outcome.left_out) == (1, 1)
    assert any("the budget was spent" in miss for miss in session.outcome.misses)


def test_a_call_that_only_a_recorded_graph_made_is_not_tuned(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its inputs were never written: an index in them may lie outside of everything."""
    runners, config = [stage.runner("Plain", (1,))], stage.config()
    stage.costs = {("Plain", 1): 0.5}

    def record(rows: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("torch.cuda.is_available", lambda: True)
            patch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
            stage.choose(OP, runners, config, recorded := product_inputs(rows))
            for tensor in recorded:
                tensor.fill_(float("nan"))

    with tb.flashinfer.autotune(policy="fresh", seed=1) as session:
        record(8)
        record(16)
        stage.choose(OP, runners, config, product_inputs(16))
        stage.choose(OP, runners, config, product_inputs(32))
        record(32)
    assert sorted(set(stage.rows)) == [16, 32]
    assert {verdict.note for verdict in session.outcome.verdicts.values()} == {""}, "the inputs that were written"
    (miss,) = session.outcome.misses
    assert "shapes=8x32" in miss
    assert "not tuned: it was called while a CUDA graph was recorded, and never before" in miss


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
    served = [key.extras for key in stage.tuner.profiling_cache]
    assert sorted(map(str, served)) == ["(torch.bfloat16,)", "(torch.float32,)"], (
        "neither has taken the other's entry out"
    )


def test_what_is_timed_under_other_conditions_is_another_problem(stage: Stage) -> None:
    runners = [stage.runner("Plain", (1,))]
    with tb.flashinfer.autotune(policy="fresh", seed=1) as session:
        for graph in (False, True):
            stage.choose(OP, runners, stage.config(use_cuda_graph=graph), product_inputs())
    assert sorted(Problem.parse(key).policy for key in session.outcome.fresh) == ["captured", "eager"]


def test_how_often_a_graph_is_replayed_is_the_blocks_and_a_condition_too(stage: Stage) -> None:
    runners, graph = [stage.runner("Plain", (1,))], stage.config(use_cuda_graph=True)
    if not hasattr(graph, "cuda_graph_profile_replays"):
        with pytest.raises(UsageError, match=r"cuda_graph_profile_replays=5: FlashInfer 0\.6\.18 has no"):
            tuned(stage, runners, graph, product_inputs(), cuda_graph_profile_replays=5)
        return
    session = tuned(stage, runners, graph, product_inputs(), cuda_graph_profile_replays=5)
    assert Problem.parse(only(session).problem).policy == "captured5"


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
