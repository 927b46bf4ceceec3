"""SGLang's FlashInfer autotune step under tunebook: the step of the published wheel, stubs around it (see `sglang_stage`)."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.engine_wheels import SGLANG  # noqa: E402
from tests.integrations.flashinfer_stage import Stage, product_inputs  # noqa: E402 - found from the root
from tests.integrations.sglang_stage import OP, Dummy, Engine, Stream, entries, served  # noqa: E402
from tests.pages import blocks  # noqa: E402

import tunebook as tb  # noqa: E402
from tunebook.interop import history, open_any  # noqa: E402
from tunebook.store import read_cache, read_run  # noqa: E402

# ---------------------------------------------------------------- where things land


def test_the_winner_serves_and_is_in_both_caches(engine: Engine, stage: Stage) -> None:
    dummy = Dummy(stage)
    engine.step(dummy)
    engine.serve()
    assert dummy.served == [-1, 1], "the fallback in tunebook's run, the winner in FlashInfer's"
    assert {sample[2:] for sample in stage.sampled} == {(1, 0)}, "FlashInfer has measured nothing by itself"
    assert served(stage) == 1
    (verdict,) = read_cache(engine.ours, None).verdicts.values()
    assert verdict.winner == "Plain[tactic=1]"
    assert list(entries(engine.file()).values()) == [["Plain", 1]]
    (run,) = engine.runs
    assert run.parent == engine.file().parent / "runs"
    assert read_run(run).verdicts == {verdict.problem: verdict}


def test_the_next_start_serves_it_without_measuring(engine: Engine, stage: Stage) -> None:
    engine.step(Dummy(stage))
    engine.start_again()
    dummy = Dummy(stage)
    engine.step(dummy)
    assert (dummy.served, stage.sampled) == ([1, 1], [])
    assert len(engine.runs) == 1, "nothing was tuned, so there is no run"


def test_sglang_without_tunebook_loads_it(engine: Engine, stage: Stage) -> None:
    engine.step(Dummy(stage))
    engine.start_again()
    tb.sglang.disable()
    dummy = Dummy(stage)
    engine.step(dummy)
    assert (dummy.served, stage.sampled) == ([1], [])
    assert served(stage) == 1


def test_entries_of_other_runners_in_sglangs_file_do_not_come_back(off: Engine, stage: Stage) -> None:
    """FlashInfer merges a file that it saves with what was there, and serves the first runner that has an entry."""
    stage.noise = 0.0
    config, inputs = stage.config(), product_inputs()

    def both() -> None:
        stage.choose(OP, [stage.runner("Plain", (1,)), stage.runner("Blocked", (0,))], config, inputs)

    off.step(both)
    assert list(entries(off.file()).values()) == [["Plain", 1]]
    off.start_again()
    stage.costs["Blocked", 0] = 0.1  # another machine, or a better kernel
    tb.sglang.enable()
    off.step(both)
    assert list(entries(off.file()).values()) == [["Blocked", 0]]
    off.start_again()
    tb.sglang.disable()
    off.step(both)
    runners = [stage.runner("Plain", (1,)), stage.runner("Blocked", (0,))]
    assert stage.choose(OP, runners, config, inputs) == ("Blocked", 0)


@pytest.mark.parametrize("variable", ["SGLANG_FLASHINFER_AUTOTUNE_CACHE", "TUNEBOOK_AUTOTUNE_CACHE"])
def test_a_fresh_start_touches_neither_cache(
    engine: Engine,
    stage: Stage,
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.step(Dummy(stage))
    engine.start_again()
    before = {file: file.read_bytes() for file in (engine.file(), engine.ours)}
    monkeypatch.setenv(variable, "0")
    stage.costs = {("Plain", 2): 0.5}
    with caplog.at_level(logging.INFO):
        engine.step(Dummy(stage))
        engine.serve()
    assert served(stage) == 2
    assert {file: file.read_bytes() for file in before} == before
    (fresh,) = engine.fresh_files
    assert list(entries(fresh).values()) == [["Plain", 2]]
    run = engine.runs[-1]
    assert len(engine.runs) == 2
    (verdict,) = read_run(run).verdicts.values()
    assert verdict.winner == "Plain[tactic=2]"
    assert run.parent == fresh.parent == engine.file().parent / "runs"
    assert f"writing fresh result to: {fresh}" in caplog.text
    assert f"run file: {run}" in caplog.text
    monkeypatch.delenv(variable)
    engine.start_again()
    dummy = Dummy(stage)
    engine.step(dummy)
    assert dummy.served == [1, 1], "the caches serve again"


def test_what_is_set_to_sglangs_switch_comes_back(
    engine: Engine, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = importlib.import_module("sglang.srt.environ").envs.SGLANG_FLASHINFER_AUTOTUNE_CACHE
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE_CACHE", "0")
    engine.step(Dummy(stage))
    assert not switch.is_set()
    monkeypatch.setenv("SGLANG_FLASHINFER_AUTOTUNE_CACHE", "yes")
    engine.step(Dummy(stage))
    assert (switch.is_set(), switch.get()) == (True, True)


def test_tunebook_reads_the_directory_as_sglangs(engine: Engine, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own files there are not taken for a rank's."""
    engine.step(Dummy(stage))
    monkeypatch.setenv("SGLANG_FLASHINFER_AUTOTUNE_CACHE", "0")
    for _ in range(2):
        engine.start_again()
        engine.step(Dummy(stage))
    engine.serve()
    book = open_any(engine.file().parent)
    assert book is not None
    assert (book.format, len(book.entries)) == ("sglang", 1)
    assert len(history([engine.file().parent / "runs"])) == 2


def test_nothing_is_tuned_where_tunebook_may_not(engine: Engine, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE", "0")
    dummy = Dummy(stage)
    engine.step(dummy)
    assert (dummy.served, stage.sampled, engine.runs) == ([-1], [], [])
    monkeypatch.delenv("TUNEBOOK_AUTOTUNE")
    engine.start_again()
    engine.step(Dummy(stage))
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE", "0")
    engine.start_again()
    engine.file().unlink()
    dummy = Dummy(stage)
    engine.step(dummy)
    assert (dummy.served, stage.sampled) == ([1], []), "served from tunebook's cache"


# ---------------------------------------------------------------- what FlashInfer still does


def test_all_is_measured_on_sglangs_stream(engine: Engine, stage: Stage) -> None:
    seen: set[str] = set()

    def note(inputs: Any) -> Any:
        seen.add(Stream.current)
        return inputs[0] @ inputs[1]

    runner = stage.runner("Plain", (1,), broken={1: note})
    engine.step(lambda: stage.choose(OP, [runner], stage.config(), product_inputs()))
    assert seen == {"forward"}
    assert engine.dummy_runs == ["forward", "forward"]
    assert Stream.current == "default"


def test_skipped_ops_are_left_alone(engine: Engine, stage: Stage) -> None:
    engine.skip_ops = ("demo::skipped",)
    dummy = Dummy(stage, ops=("demo::skipped", OP))
    engine.step(dummy)
    assert dummy.served == [-1, -1, -1, 1]
    assert [json.loads(json.dumps(key)).split("'")[1] for key in entries(engine.file())] == [OP]
    assert not stage.tuner._effective_skip_ops


def test_ops_that_measure_while_they_see_flashinfer_tune_still_do(engine: Engine, stage: Stage) -> None:
    tuning: list[bool] = []

    def forward() -> None:
        tuning.append(stage.tuner.is_tuning_mode)
        if stage.tuner.is_tuning_mode:
            stage.choose("demo::gated", [stage.runner("Plain", (1,))], stage.config(), product_inputs())

    engine.step(forward)
    assert tuning == [False, True]
    assert [key.split("'")[1] for key in entries(engine.file())] == ["demo::gated"]
    assert not stage.tuner.is_tuning_mode


def test_flashinfer_tunes_what_the_budget_left_out(
    engine: Engine, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEBOOK_BUDGET_S", "1e-9")
    stage.noise = 0.0
    dummy = Dummy(stage)
    engine.step(dummy)
    assert {sample[2:] for sample in stage.sampled} == {(10, 3)}
    assert dummy.served == [-1, 1]
    assert list(entries(engine.file()).values()) == [["Plain", 1]]
    assert not engine.ours.exists()


def test_a_winner_among_many_runners_is_served_though_the_op_is_asked_for_with_fewer(
    engine: Engine, stage: Stage
) -> None:
    stage.costs = {("Plain", 1): 0.5, ("Blocked", 0): 0.3}
    plain, blocked = stage.runner("Plain", (1,)), stage.runner("Blocked", (0,))
    config, inputs = stage.config(), product_inputs()

    def forward() -> None:
        for runners in ([plain], [plain, blocked]):
            stage.choose(OP, runners, config, inputs)

    engine.step(forward)
    assert stage.choose(OP, [plain, blocked], config, inputs) == ("Blocked", 0)
    assert list(entries(engine.file()).values()) == [["Blocked", 0]]


def test_megamoes_records_are_kept_in_sglangs_file(
    engine: Engine, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlashInfer refuses to save such records into a file that was changed since it was read."""
    monkeypatch.setenv("SGLANG_FLASHINFER_AUTOTUNE_EXTEND", "1")
    engine.moe_backend = "flashinfer_megamoe"
    mega = importlib.import_module("sglang.srt.layers.moe.flashinfer_megamoe_autotune")

    def forward(name: str) -> Any:
        def run() -> None:
            Dummy(stage)()
            context = mega._active_context
            context.records[name] = {"knobs": 1}
            context.dirty = True

        return run

    for number in range(2):
        engine.step(forward(f"a{number}"))
        engine.extend(forward(f"b{number}"))
        engine.start_again()
    kept = json.loads(engine.file().read_text())
    assert sorted(kept["_records"]["sglang_flashinfer_megamoe"]) == ["a0", "a1", "b0", "b1"]
    assert list(entries(engine.file()).values()) == [["Plain", 1]]


# ---------------------------------------------------------------- several steps of one start


def test_the_steps_of_one_start_are_one_run(engine: Engine, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_FLASHINFER_AUTOTUNE_EXTEND", "1")
    engine.step(Dummy(stage, rows=8))
    engine.extend(Dummy(stage, rows=64))
    engine.step(Dummy(stage, rows=16), draft=True)
    engine.step(Dummy(stage, rows=8), draft=True)
    (run,) = engine.runs
    assert (len(read_run(run).verdicts), read_run(run).footer) == (3, None)
    engine.serve()
    footer = read_run(run).footer
    assert footer is not None
    assert (footer.problems, footer.published) == (3, str(engine.ours))
    assert len(read_cache(engine.ours, None).verdicts) == 3
    assert [served(stage, rows) for rows in (8, 16, 64)] == [1, 1, 1]
    assert list(entries(engine.file(draft=True)).values()) == [["Plain", 1]] * 3
    engine.start_again()
    engine.step(Dummy(stage, rows=8))
    engine.step(Dummy(stage, rows=16), draft=True)
    assert stage.sampled == []


def test_another_target_is_another_start(engine: Engine, stage: Stage) -> None:
    engine.step(Dummy(stage, rows=8))
    engine.moe_backend = "flashinfer_trtllm"
    engine.step(Dummy(stage, rows=8))
    first, second = engine.runs
    assert first.parent != second.parent
    assert read_run(first).footer is not None


def test_a_models_own_prefill_run_is_made_twice_too(engine: Engine, stage: Stage) -> None:
    dummy = Dummy(stage, rows=64)

    class Model:
        def autotune_prefill_kernels(self, num_tokens: int, *, dtype: torch.dtype) -> int:
            assert (num_tokens, dtype) == (64, torch.float32)
            dummy()
            return 1

    model = Model()
    engine.extend(lambda: pytest.fail("the model has tuned"), model)
    assert dummy.served == [-1, 1]
    assert "autotune_prefill_kernels" not in vars(model)
    own = model.autotune_prefill_kernels
    vars(model)["autotune_prefill_kernels"] = own
    engine.extend(lambda: pytest.fail("the model has tuned"), model)
    assert vars(model)["autotune_prefill_kernels"] is own
    assert list(entries(engine.file()).values()) == [["Plain", 1]]
    assert len(read_cache(engine.ours, None).verdicts) == 1


def test_what_the_page_says_to_do_from_python(off: Engine, stage: Stage) -> None:
    (block,) = blocks(ROOT / "docs" / "sglang.md", "py")
    exec(compile(block, "docs/sglang.md", "exec"), {})  # noqa: S102 - it is ours
    dummy = Dummy(stage)
    off.step(dummy)
    assert dummy.served == [-1, 1]


def test_the_page_names_the_version_that_is_known() -> None:
    assert f"written against SGLang {SGLANG.version}," in (ROOT / "docs" / "sglang.md").read_text(encoding="utf-8")
