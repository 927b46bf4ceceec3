"""`tunebook tune` as a user types it: its document, its log, its report, and what it leaves on the disk."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunebook.engine.models import random_model, tiny_config
from tunebook.store import read_run

PHASES = ("--decode", "1", "--prefill", "2")
TUNE = ("tune", "tiny-moe", *PHASES, "--budget", "4")
RUN_NAME = re.compile(r"winners\.\d{8}_\d{6}(-\d+)?\.jsonl")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Complaint = Callable[["subprocess.CompletedProcess[str]"], str]


def files(home: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(home)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in home.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_the_document_of_a_tuning(first: tuple[Path, dict[str, Any], str]) -> None:
    home, document, _ = first
    assert document["model"] == "tiny-moe"
    assert document["policy"] == "reuse"
    assert re.fullmatch("[0-9a-f]{16}", document["environment"]["digest"])
    problems = document["problems"]
    assert problems.keys() >= {"seen", "cached", "tuned", "kept_default", "rejected_tactics"}
    assert problems["cached"] == 0
    assert problems["seen"] == problems["tuned"] + problems["left_out"]
    assert problems["tuned"] >= 1
    assert document["seconds"].keys() >= {"load", "collect", "tune", "prepare", "verify"}
    assert all(isinstance(value, float) and value >= 0 for value in document["seconds"].values())
    assert document["plan"]["verified"] is True
    assert isinstance(document["plan"]["active"], bool)
    assert len(document["plan"]["tactics"]) == problems["seen"]
    for phase in document["phases"]:
        assert phase.keys() >= {"phase", "batch", "tokens", "default_ms", "tuned_ms"}
        assert 0 < phase["speedup_low"] <= phase["speedup"] <= phase["speedup_high"]
    if document["phases"]:  # empty where the default won everywhere
        assert [(p["phase"], p["batch"], p["tokens"]) for p in document["phases"]] == [
            ("decode", 1, 1),
            ("prefill", 1, 2),
        ]
        overall = document["overall"]
        assert 0 < overall["speedup_low"] <= overall["speedup"] <= overall["speedup_high"]
        product = document["phases"][0]["speedup"] * document["phases"][1]["speedup"]
        assert overall["speedup"] == pytest.approx(product**0.5, rel=0.2)
    assert len(document["left_out"]) == problems["left_out"]
    assert document["run_problem"] is None
    assert document["published"] is True
    cache, run = Path(document["cache"]), Path(document["run"])
    assert cache == home / "autotune" / document["environment"]["digest"] / "winners.json"
    assert cache.is_file()
    assert run.parent == cache.parent / "runs"
    assert RUN_NAME.fullmatch(run.name)
    assert read_run(run).header.note == "the first"


def test_overall_is_the_mean_of_the_phases_log_speedups(first: tuple[Path, dict[str, Any], str]) -> None:
    import math

    _, document, _ = first
    if document["overall"] is not None:
        logs = [math.log(phase["speedup"]) for phase in document["phases"]]
        assert math.log(document["overall"]["speedup"]) == pytest.approx(sum(logs) / len(logs), abs=1e-6)


def test_the_log_of_a_tuning_names_cache_and_run(first: tuple[Path, dict[str, Any], str]) -> None:
    _, document, log = first
    assert f"runs with the cache at {document['cache']}" in log
    assert re.search(rf"autotune completed: \d+ problems.* in \d+\.\d s.*{re.escape(document['run'])}", log)


def test_a_second_run_starts_from_the_cache(tuned: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    home, document = tuned
    before = files(home)
    done = cli(home, *TUNE, "--json")
    again = json.loads(done.stdout)
    assert again["problems"]["tuned"] == 0
    assert again["problems"]["cached"] == again["problems"]["seen"] == document["problems"]["seen"]
    assert again["run"] is None
    assert again["plan"]["tactics"] == document["plan"]["tactics"]
    assert again["phases"] == document["phases"], "what was proven is still known"
    assert files(home) == before


@pytest.mark.parametrize("how", ["--fresh", "TUNEBOOK_AUTOTUNE_CACHE"])
def test_fresh_leaves_the_cache_byte_for_byte(how: str, tuned: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    home, document = tuned
    before = files(home)
    flag, variables = ((how,), {}) if how.startswith("--") else ((), {how: "0"})
    narrow = ("--op", "experts", "--only-runner", "torch")
    done = cli(home, *TUNE, *narrow, "--json", *flag, **variables)
    fresh = json.loads(done.stdout)
    assert fresh["policy"] == "fresh"
    assert fresh["problems"]["cached"] == 0
    assert fresh["problems"]["tuned"] > 0
    assert fresh["published"] is False
    after = files(home)
    new = after.keys() - before.keys()
    assert {name: after[name] for name in before} == before
    assert [home / name for name in new] == [Path(fresh["run"])]
    assert fresh["run"] != document["run"]
    assert RUN_NAME.fullmatch(Path(fresh["run"]).name)
    assert "reuse is off" in done.stderr
    assert re.search(r"cost \d+\.\d s", done.stderr)
    assert how in done.stderr or how == "--fresh"


def test_the_report_for_people_is_plain_when_piped(tuned: tuple[Path, dict[str, Any]], cli_inside: Cli) -> None:
    home, document = tuned
    done = cli_inside(home, *TUNE)
    assert "\x1b" not in done.stdout + done.stderr
    assert not re.search("[─━┃│╭]", done.stdout)
    seen = document["problems"]["seen"]
    assert f"{seen} problems: {seen} from the cache, 0 tuned" in done.stdout
    assert f"cache: {document['cache']}" in done.stdout
    assert re.search(r"^run: +none", done.stdout, re.MULTILINE)


def test_replay_on_an_empty_cache_tunes_nothing_and_writes_nothing(tmp_path: Path, cli_inside: Cli) -> None:
    document = json.loads(cli_inside(tmp_path / "home", *TUNE, "--replay", "--json").stdout)
    assert document["policy"] == "replay"
    assert (document["problems"]["tuned"], document["run"], document["published"]) == (0, None, False)
    assert not (tmp_path / "home").exists()


def test_a_cache_of_another_machine_is_left_alone_and_the_result_is_in_the_run_file(
    tuned: tuple[Path, dict[str, Any]], tmp_path: Path, cli_inside: Cli
) -> None:
    home, document = tuned
    content = json.loads(Path(document["cache"]).read_text())
    content["environment"]["hard"]["isa"] = "another"
    cache = tmp_path / "theirs.json"
    cache.write_text(json.dumps(content))
    before = cache.read_bytes()
    done = cli_inside(home, *TUNE, "--op", "experts", "--only-runner", "torch", "--cache", cache, "--json", code=3)
    result = json.loads(done.stdout)
    assert cache.read_bytes() == before
    assert result["published"] is False
    assert "isa" in result["not_published"]
    assert any("isa" in miss and str(cache) in miss for miss in result["misses"])
    assert Path(result["run"]).parent == tmp_path / "runs"
    assert read_run(result["run"]).verdicts


def test_what_is_left_out_is_named_and_continue_goes_on_with_it(tmp_path: Path, cli_inside: Cli) -> None:
    tune, narrow = ("tune", "tiny-moe", *PHASES), ("--op", "experts", "--only-runner", "torch")
    document = json.loads(cli_inside(tmp_path, *tune, *narrow, "--budget", "0.001", "--json").stdout)
    left = document["left_out"]
    assert document["problems"]["left_out"] == len(left) == len(set(left)) > 0
    assert all(key.startswith("experts|") and document["plan"]["tactics"][key] == "default" for key in left)
    warm = cli_inside(tmp_path, *tune, *narrow).stdout
    (line,) = (line for line in warm.splitlines() if line.startswith("left out: "))
    assert any(key in line for key in left), "a later start still says so"
    assert "`tunebook tune --continue`" in line
    done = json.loads(cli_inside(tmp_path, *tune, *narrow, "--budget", "20", "--continue", "--json").stdout)
    assert set(left) - set(done["left_out"])
    assert done["problems"]["tuned"] == len(left)


def test_many_that_are_left_out_are_named_in_part(tmp_path: Path, cli_inside: Cli) -> None:
    text = cli_inside(tmp_path, "tune", "tiny-moe", "--decode", "16", "--prefill", "", "--budget", "0.001").stdout
    (line,) = (line for line in text.splitlines() if line.startswith("left out: "))
    assert re.search(r"left out: [^ ]+, [^ ]+, [^ ]+ and \d+ more; ", line)


@pytest.mark.parametrize(("how", "code"), [("--fresh", 3), ("--note=x", 0)])
def test_a_run_file_that_cannot_be_made_is_told_of(how: str, code: int, tmp_path: Path, cli_inside: Cli) -> None:
    (tmp_path / "runs").write_text("in the way")
    cache = tmp_path / "mine.json"
    tune = ("tune", "tiny-moe", *PHASES, "--budget", "2", "--op", "experts", "--only-runner", "torch", "--cache", cache)
    document = json.loads(cli_inside(tmp_path / "home", *tune, how, "--json", code=code).stdout)
    assert document["run"] is None
    assert str(tmp_path / "runs") in document["run_problem"]
    assert cache.exists() is document["published"] is (code == 0)
    cache.unlink(missing_ok=True)
    text = cli_inside(tmp_path / "home", *tune, how, code=code).stdout
    assert re.search(r"^run: +none, see below$", text, re.MULTILINE)
    assert f"problem: {document['run_problem']}" in text


def test_a_model_whose_experts_are_refused_is_tuned_without_them(
    tmp_path: Path, cli_inside: Cli, complaint: Complaint
) -> None:
    model = random_model(tiny_config("gpt_oss"), "float32")
    model.save_pretrained(tmp_path / "model")
    tune = ("tune", tmp_path / "model", *PHASES, "--budget", "2")
    line = complaint(cli_inside(tmp_path / "home", *tune, code=1, TUNEBOOK_LOG_LEVEL="ERROR"))
    assert "experts" in line
    assert "--op linear" in line
    for narrow in (("--op", "linear"), ("--skip-op", "experts")):
        document = json.loads(cli_inside(tmp_path / "home", *tune, *narrow, "--json").stdout)
        assert document["problems"]["seen"] > 0
        assert all(key.startswith("linear|") for key in document["plan"]["tactics"])
    assert document["problems"]["tuned"] == 0, "both ways to say it are the same plan"
    wrong = cli_inside(
        tmp_path / "home", *tune, "--op", "linear", "--skip-op", "conv", code=2, TUNEBOOK_LOG_LEVEL="ERROR"
    )
    assert "'conv'" in complaint(wrong)


def test_nothing_that_kernels_print_spoils_the_document(tmp_path: Path, cli_interpreter: Cli) -> None:
    path = tmp_path / "noisy.py"
    path.write_text("""
import ctypes
import os
import torch
import tunebook as tb

libc = ctypes.CDLL(None)
print("from Python")
libc.printf(b"from C, buffered\\n")
os.write(1, b"from the descriptor\\n")
os.system("echo from a child")

@tb.kernels.linear.runner("noisy")
def noisy(x, weight, bias):
    print("from the kernel")
    libc.puts(b"from C in the kernel")
    return torch.nn.functional.linear(x, weight, bias)
""")
    done = cli_interpreter(tmp_path / "home", *TUNE, "--with", path, "--only-runner", "noisy", "--json")
    assert json.loads(done.stdout)["problems"]["tuned"] > 0
    for words in ("Python", "C, buffered", "the descriptor", "a child", "the kernel", "C in the kernel"):
        assert f"from {words}\n" in done.stderr
