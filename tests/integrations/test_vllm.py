"""vLLM's FlashInfer warm-up under tunebook: vLLM's own ``flashinfer_autotune`` runs, out of the published wheel.

Real are vLLM's modules of that step, FlashInfer's autotuner on the CPU with runners of a test, the files, and tunebook. Stubs
are the rest of vLLM, the model runner and FlashInfer's clock: `vllm_stage` and `flashinfer_stage` say which.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.flashinfer_stage import Stage, product_inputs  # noqa: E402 - found from the root
from tests.integrations.vllm_stage import Engine, Runner, failed, installed, vllm_engine  # noqa: E402

import tunebook as tb  # noqa: E402
from tunebook.records import Problem  # noqa: E402
from tunebook.store import read_cache, read_run  # noqa: E402

OP = "demo::product"
V1 = "autotune_configs_dp0_rank0.json"
OURS = "autotune_configs_dp0_rank0.tunebook.json"
#: vLLM's buckets for 16 tokens.
BUCKETS = {1, 2, 4, 8, 16}


@pytest.fixture
def engine(stage: Stage, tmp_path: Path) -> Iterator[Engine]:
    """vLLM with the plug-in, beside FlashInfer's stage."""
    installed()
    with vllm_engine(tmp_path / "vllm") as found:
        tb.vllm.enable()
        yield found


Calls = Callable[[int], object]


@pytest.fixture
def model(stage: Stage) -> Calls:
    """A dummy run of one op with one runner, of which tactic 2 is the fastest."""
    stage.costs = {("Plain", 1): 0.5, ("Plain", 2): 0.25}
    runners, config = [stage.runner("Plain", (1, 2))], stage.config((4, 16))
    return lambda tokens: stage.choose(OP, runners, config, product_inputs(tokens))


def files(directory: Path) -> dict[str, tuple[int, bytes]]:
    """All files below `directory`, locks left out: when each was written, and what is in it."""
    found = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def tactics(file: Path) -> set[tuple[str, Any]]:
    """The runners and tactics in a v1 file."""
    return {(value[0], value[1]) for key, value in json.loads(file.read_text()).items() if key.startswith("(")}


def sizes(verdicts: Iterable[str]) -> set[int]:
    return {Problem.parse(key).dims[0].size for key in verdicts}


def own_samples(stage: Stage) -> int:
    """How many samples FlashInfer took for itself."""
    return sum(repeat > 1 for _, _, repeat, _ in stage.sampled)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tunebook.vllm"]


# ---------------------------------------------------------------- one start, and the next


def test_the_winners_are_served_and_in_both_files(engine: Engine, stage: Stage, model: Calls) -> None:
    engine.warm_up(Runner(model))
    assert own_samples(stage) == 0
    directory = engine.directory()
    (run,) = (directory / "runs").iterdir()
    assert {path.name for path in directory.iterdir() if path.suffix != ".lock"} == {V1, OURS, "runs"}
    assert run.name.startswith("autotune_configs_dp0_rank0.tunebook.2")
    verdicts = read_cache(directory / OURS, None).verdicts
    assert sizes(verdicts) == BUCKETS, "vLLM's own buckets are tuned"
    assert {verdict.winner for verdict in verdicts.values()} == {"Plain[tactic=2]"}
    kept = read_run(run)
    assert kept.verdicts == verdicts
    assert kept.footer is not None
    assert kept.footer.published == str(directory / OURS)
    assert tactics(directory / V1) == {("Plain", 2)}
    assert model(16) == ("Plain", 2)


def test_a_start_with_nothing_new_measures_and_writes_nothing(engine: Engine, stage: Stage, model: Calls) -> None:
    engine.warm_up(Runner(model))
    before = files(engine.cache)
    stage.start_again()
    engine.warm_up(Runner(model))
    assert stage.sampled == []
    assert files(engine.cache) == before
    assert model(16) == ("Plain", 2)


@pytest.mark.parametrize("left", [None, "", '{"_metadata": {}'])
def test_vllms_file_is_written_where_it_is_missing_or_broken_though_nothing_was_tuned(
    engine: Engine, stage: Stage, model: Calls, left: str | None
) -> None:
    engine.warm_up(Runner(model))
    (engine.directory() / V1).unlink()
    if left is not None:
        (engine.directory() / V1).write_text(left)
    stage.start_again()
    engine.warm_up(Runner(model))
    assert stage.sampled == []
    assert tactics(engine.directory() / V1) == {("Plain", 2)}


def test_vllm_without_tunebook_serves_the_winners_from_its_own_file(stage: Stage, tmp_path: Path) -> None:
    """And its file from before, in which another runner of the problem won, does not stand in their way."""
    installed()
    runners, config = [stage.runner("Plain", (1,)), stage.runner("Blocked", (1,))], stage.config((16,))

    def call(tokens: int) -> tuple[str, Any]:
        return stage.choose(OP, runners, config, product_inputs(tokens))

    stage.costs = {("Plain", 1): 0.2}
    with vllm_engine(tmp_path / "vllm") as engine:
        engine.warm_up(Runner(call))
    assert own_samples(stage) > 0
    assert tactics(engine.directory() / V1) == {("Plain", 1)}
    stage.start_again()
    stage.costs = {("Blocked", 1): 0.1}
    with vllm_engine(tmp_path / "vllm") as engine:
        tb.vllm.enable()
        engine.warm_up(Runner(call))
    assert stage.sampled, "tactics that nobody checked are raced"
    assert call(16) == ("Blocked", 1)
    assert tactics(engine.directory() / V1) == {("Blocked", 1)}
    stage.start_again()
    with vllm_engine(tmp_path / "vllm") as engine:
        engine.warm_up(Runner(call))
    assert stage.sampled == []
    assert call(16) == ("Blocked", 1)


def test_an_entry_of_another_runner_is_taken_out_of_vllms_file_though_nothing_was_tuned(
    engine: Engine, stage: Stage
) -> None:
    """FlashInfer would serve it: it is of the runner that it is offered first."""
    stage.costs = {("Blocked", 1): 0.1}
    runners, config = [stage.runner("Plain", (1,)), stage.runner("Blocked", (1,))], stage.config((16,))
    runner = Runner(lambda tokens: stage.choose(OP, runners, config, product_inputs(tokens)))
    engine.warm_up(runner)
    file = engine.directory() / V1
    content = json.loads(file.read_text())
    others = {key.replace("Blocked", "Plain"): ["Plain", 1] for key in content if "Blocked" in key}
    file.write_text(json.dumps({**content, **others}))
    assert tactics(file) == {("Plain", 1), ("Blocked", 1)}
    stage.start_again()
    engine.warm_up(runner)
    assert stage.sampled == []
    assert tactics(file) == {("Blocked", 1)}


def test_the_default_place_is_vllms(
    engine: Engine, model: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "root"))
    engine.warm_up(Runner(model))
    (version,) = (tmp_path / "root" / "flashinfer_autotune_cache").iterdir()
    (machine,) = version.iterdir()
    assert {V1, OURS} <= {path.name for path in engine.directory(machine).iterdir()}


def test_models_of_different_configurations_have_caches_of_their_own(
    engine: Engine, stage: Stage, model: Calls
) -> None:
    engine.warm_up(Runner(model))
    stage.start_again()
    engine.warm_up(Runner(model, config_hash="another model"))
    assert stage.sampled
    assert len(list(engine.cache.rglob(OURS))) == 2


# ---------------------------------------------------------------- blocks


def test_all_blocks_of_a_start_are_one_session_and_one_run(engine: Engine, stage: Stage, model: Calls) -> None:
    """vLLM's outer block holds one for each token count, and further calls of its own."""
    alone = [stage.runner("Alone", (7,))]

    def further(runner: Any) -> None:
        stage.choose("demo::further", alone, stage.config(), product_inputs(3))

    stage.costs["Alone", 7] = 0.5
    engine.warmup.replayssm_autotune_warmup = further
    engine.warmup._flashinfer_autotune_token_counts = lambda runner: (16, 2)
    engine.warm_up(runner := Runner(model))
    assert [run["num_tokens"] for run in runner.runs] == [16, 2]
    (run,) = (engine.directory() / "runs").iterdir()
    by_op = {Problem.parse(key).op for key in read_run(run).verdicts}
    assert by_op == {OP, "demo::further"}
    assert tactics(engine.directory() / V1) == {("Plain", 2), ("Alone", 7)}
    further(None)
    assert stage.choose("demo::further", alone, stage.config(), product_inputs(3)) == ("Alone", 7)


def test_ops_that_vllm_skips_are_left_alone(
    engine: Engine, stage: Stage, model: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FLASHINFER_AUTOTUNE_SKIP_OPS", "demo::skipped, demo::else")
    other = [stage.runner("Other", (1,))]

    def both(tokens: int) -> None:
        model(tokens)
        stage.choose("demo::skipped", other, stage.config((16,)), product_inputs(tokens))

    engine.warm_up(Runner(both))
    assert {Problem.parse(key).op for key in read_cache(engine.directory() / OURS, None).verdicts} == {OP}
    assert {name for name, *_ in stage.sampled} == {"Plain"}


def test_what_asks_for_no_tuning_or_brings_a_file_of_its_own_is_flashinfers(
    engine: Engine, stage: Stage, model: Calls, tmp_path: Path
) -> None:
    own = tmp_path / "own.json"
    stage.costs["Own", 1] = 0.1

    def nested(tokens: int) -> None:
        with engine.wrappers.autotune(False):
            model(tokens)
        with engine.wrappers.autotune(True, cache=str(own)):
            stage.choose("demo::own", [stage.runner("Own", (1,))], stage.config(), product_inputs(tokens))

    engine.warm_up(Runner(nested))
    assert ("Own", 1) in tactics(own)
    assert {name for name, _, repeat, _ in stage.sampled if repeat > 1} == {"Own"}
    assert {Problem.parse(key).op for key in read_cache(engine.directory() / OURS, None).verdicts} == {OP}


def test_vllms_names_are_its_own_again_afterwards(engine: Engine, model: Calls) -> None:
    names = ("resolve_flashinfer_autotune_file", "_all_ranks_have_matching_cache")
    before = engine.wrappers.autotune, *(getattr(engine.warmup, name) for name in names)
    engine.warm_up(Runner(model))
    assert (engine.wrappers.autotune, *(getattr(engine.warmup, name) for name in names)) == before


@pytest.mark.parametrize("switch", ["off", "perhaps"])
def test_switched_off_flashinfer_tunes_as_ever(
    engine: Engine,
    stage: Stage,
    model: Calls,
    switch: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if switch == "off":
        tb.vllm.disable()
    else:
        monkeypatch.setenv("TUNEBOOK_FLASHINFER", switch)
    engine.warm_up(Runner(model))
    assert own_samples(stage) == len(stage.sampled) > 0
    assert not (engine.directory() / OURS).exists()
    assert ("TUNEBOOK_FLASHINFER" in " ".join(said(caplog))) is (switch == "perhaps")
    tb.vllm.enable()
    engine.warm_up(Runner(model))
    assert (engine.directory() / OURS).exists()


# ---------------------------------------------------------------- policies


def test_afresh_neither_file_is_read_or_touched_and_the_results_are_in_runs(
    engine: Engine, stage: Stage, model: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine.warm_up(Runner(model))
    before = files(engine.cache)
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE_CACHE", "0")
    loaded: list[str] = []
    load = stage.module.AutoTuner.load_configs

    def loads(self: Any, path: str) -> bool:
        loaded.append(path)
        return bool(load(self, path))

    monkeypatch.setattr(stage.module.AutoTuner, "load_configs", loads)
    for turn in (1, 2):  # in one second, as likely as not
        stage.start_again()
        stage.costs["Plain", 1] = 0.1
        engine.warm_up(Runner(model))
        assert stage.sampled
        assert own_samples(stage) == 0
        runs = engine.directory() / "runs"
        new = sorted(set(files(engine.cache)) - set(before))
        assert sorted(Path(name).suffix for name in new) == [".json"] * turn + [".jsonl"] * turn
        assert {name: entry for name, entry in files(engine.cache).items() if name in before} == before
        assert model(16) == ("Plain", 1)
    assert {Path(path).parent for path in loaded} <= {runs}
    results, told = sorted(runs.glob("*.json")), "\n".join(said(caplog))
    assert len(results) == 2
    assert all(tactics(result) == {("Plain", 1)} for result in results)
    fresh = [run for run in runs.glob("*.jsonl") if f"{engine.directory().name}/runs/{run.name}" not in before]
    assert all(str(path) in told for path in (*results, *fresh))
    assert all(read_run(run).header.policy == "fresh" for run in fresh)
    assert stage.module.AutoTuner().load_configs(str(results[0]))


def test_replay_serves_what_is_known_and_writes_nothing(
    engine: Engine, stage: Stage, model: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.warm_up(Runner(model))
    (engine.directory() / V1).unlink()
    before = files(engine.cache)
    stage.start_again()
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE", "0")

    def more(tokens: int) -> None:
        model(tokens)
        stage.choose("demo::unknown", [stage.runner("New", (1,))], stage.config(), product_inputs(tokens))

    engine.warm_up(Runner(more))
    assert stage.sampled == []
    assert files(engine.cache) == before
    assert model(16) == ("Plain", 2)


# ---------------------------------------------------------------- what goes wrong


def test_a_flashinfer_that_is_not_known_tunes_as_ever(
    engine: Engine, stage: Stage, model: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flashinfer.__version__", "0.9.0")
    engine.warm_up(runner := Runner(model))
    assert "flashinfer-python 0.9.0 is not one that tunebook knows" in failed(caplog)
    assert own_samples(stage) == len(stage.sampled) > 0
    assert len(runner.runs) == 1
    assert tactics(engine.directory() / V1) == {("Plain", 2)}
    assert not (engine.directory() / OURS).exists()
    assert model(16) == ("Plain", 2)


@pytest.mark.parametrize("variable", ["TUNEBOOK_BUDGET_S", "TUNEBOOK_AUTOTUNE_CACHE"])
def test_a_variable_that_cannot_be_used_is_named_and_flashinfer_tunes(
    engine: Engine,
    stage: Stage,
    model: Calls,
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(variable, "perhaps")
    engine.warm_up(Runner(model))
    assert f"{variable}=perhaps" in failed(caplog).replace("'", "")
    assert model(16) == ("Plain", 2)
    assert tactics(engine.directory() / V1) == {("Plain", 2)}


def test_a_cache_that_is_a_directory_lets_flashinfer_tune(
    engine: Engine, stage: Stage, model: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    engine.warm_up(Runner(model))
    (engine.directory() / OURS).unlink()
    (engine.directory() / OURS).mkdir()
    stage.start_again()
    engine.warm_up(Runner(model))
    assert "is a directory" in failed(caplog)
    assert stage.sampled == [], "vLLM's own file answers"


@pytest.mark.parametrize("at", [1, 2])
def test_where_tuning_fails_flashinfer_sees_the_calls_once_more(
    engine: Engine,
    stage: Stage,
    model: Calls,
    at: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The fault is put into the session: at the end of vLLM's inner block, or of its outer one."""
    tune, ends = tb.flashinfer.Session._tune, [0]

    def tunes(self: Any) -> None:
        ends[0] += 1
        if ends[0] == at:
            raise MemoryError("no room")
        tune(self)

    monkeypatch.setattr(tb.flashinfer.Session, "_tune", tunes)
    engine.warm_up(runner := Runner(model))
    assert failed(caplog).endswith("MemoryError: no room")
    assert len(runner.runs) == 2
    assert (own_samples(stage) > 0) is (at == 1), "what tunebook has tuned stays"
    assert model(16) == ("Plain", 2)
    assert tactics(engine.directory() / V1) == {("Plain", 2)}
    assert "choose_one" not in vars(stage.tuner)


def test_what_the_dummy_run_raises_goes_on_as_it_is(engine: Engine, stage: Stage, model: Calls) -> None:
    error = RuntimeError("out of memory, says the model")

    def fails(tokens: int) -> None:
        model(tokens)
        raise error

    with pytest.raises(RuntimeError) as caught:
        engine.warm_up(Runner(fails))
    assert caught.value is error
    assert caught.value.__context__ is None
    assert stage.sampled == []
    assert files(engine.cache) == {}
    assert "choose_one" not in vars(stage.tuner)
    engine.warm_up(Runner(model))
    assert model(16) == ("Plain", 2)


def test_an_interruption_of_the_tuning_keeps_what_was_reached(engine: Engine, stage: Stage) -> None:
    def interrupt(inputs: Any) -> Any:
        if inputs[0].shape[0] == 1:
            raise KeyboardInterrupt
        return inputs[0] @ inputs[1]

    runners, config = [stage.runner("Plain", (1,), broken={1: interrupt})], stage.config((4, 16))
    with pytest.raises(KeyboardInterrupt):
        engine.warm_up(Runner(lambda tokens: stage.choose(OP, runners, config, product_inputs(tokens))))
    assert sizes(read_cache(engine.directory() / OURS, None).verdicts) == BUCKETS - {1}
    (run,) = (engine.directory() / "runs").iterdir()
    assert read_run(run).footer is not None


def test_a_file_of_vllms_that_cannot_be_written_is_said_and_the_engine_goes_on(
    engine: Engine, model: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    engine.warm_up(Runner(lambda tokens: None))  # makes the directory
    (engine.directory() / V1).mkdir()
    engine.warm_up(Runner(model))
    assert any(f"{V1} was not written: " in line for line in said(caplog))
    assert sizes(read_cache(engine.directory() / OURS, None).verdicts) == BUCKETS
    assert model(16) == ("Plain", 2)


def test_a_file_of_another_environment_stays_as_it_is(
    engine: Engine, stage: Stage, model: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    engine.warm_up(Runner(model))
    file = engine.directory() / V1
    content = json.loads(file.read_text())
    content["_metadata"]["flashinfer_version"] = "0.6.0"
    file.write_text(json.dumps(content))
    before = file.read_bytes()
    stage.start_again()
    (engine.directory() / OURS).unlink()
    engine.warm_up(Runner(model))
    assert stage.sampled
    assert file.read_bytes() == before
    assert any("was made in another environment" in line for line in said(caplog))


@pytest.mark.parametrize(("level", "shown"), [("INFO", True), ("ERROR", False), ("loud", False)])
def test_tunebooks_lines_stand_among_vllms(
    engine: Engine,
    model: Calls,
    level: str,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """vLLM gives its logger a handler, after plug-ins were loaded; tunebook's has none here, as in an engine."""
    monkeypatch.setenv("TUNEBOOK_LOG_LEVEL", level)
    monkeypatch.setattr(logging.getLogger("tunebook"), "propagate", False)
    monkeypatch.setattr(logging.getLogger("vllm"), "handlers", [logging.StreamHandler(sys.stderr)])
    engine.warm_up(Runner(model))
    printed = capsys.readouterr().err
    assert ("FlashInfer's warm-up: 5 problems, 5 tuned" in printed) is shown
    assert ("TUNEBOOK_LOG_LEVEL" in printed) is (level == "loud")
