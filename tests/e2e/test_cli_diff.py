"""`tunebook diff --confirm`: what two runs chose is raced now, on a model and on the calls of a script."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunebook.kernels  # noqa: F401 - declares the ops
from tunebook.dispatch import OPS
from tunebook.records import Problem

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

SCRIPT = """
import sys, time
import torch
import tunebook as tb

@tb.op("demo::pick", buckets={"x": {0: tb.pow2(max=2, name="M")}})
def pick(x):
    time.sleep(0.004)
    return x + 1

def pausing(seconds):
    def run(x):
        time.sleep(seconds)
        return x + 1
    return run

pick.runner("quick", version="1")(pausing(0.0005))
pick.runner("slow", version="1")(pausing(0.002))
with tb.autotune(policy="fresh", only_runners=tuple(sys.argv[1:2]) if __name__ == "__main__" else ()):
    pick(torch.zeros(2, 3))
"""


def rewritten(source: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run, with its verdicts changed."""
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["type"] == "verdict":
            change(line["verdict"])
    path = source.with_name(name)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.slow
def test_choices_are_raced_on_the_model_itself(tuned: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    """Two records of one problem of a real model: the default, and a tactic that is offered."""
    home, document = tuned
    source = Path(document["run"])
    found = [line["verdict"] for line in map(json.loads, source.read_text().splitlines()) if line["type"] == "verdict"]
    key = next(verdict["problem"] for verdict in found if verdict["problem"].startswith("linear|"))
    runner = OPS["linear"].runners["torch"]
    tactic = next(t.name for t in runner.combinations if runner.refusal(t, Problem.parse(key)) is None)

    def say(winner: str, speedup: float) -> Callable[[dict[str, Any]], None]:
        def change(verdict: dict[str, Any]) -> None:
            low, high = (1.0, 1.0) if winner == "default" else (speedup - 0.01, speedup + 0.01)
            ratios = {"ratio": 1.0, "low": 1.0, "high": 1.0}
            verdict.update(winner="default", speedup=1.0, low=1.0, high=1.0, rounds=20, note="", ties=[])
            verdict["frontier"] = [{"tactic": "default", **ratios}]
            if verdict["problem"] == key:
                verdict.update(winner=winner, speedup=speedup, low=low, high=high, run=winner)
                verdict["frontier"] = [{"tactic": winner, **ratios}]

        return change

    one = rewritten(source, "one.jsonl", say("default", 1.0))
    other = rewritten(source, "other.jsonl", say(tactic, 3.0))
    before = set(home.rglob("*"))
    done = subprocess.CompletedProcess[str]([], 0)
    for code in (0, 1):  # what the race says of a real tactic is not for a test to know
        try:
            done = cli(home, "diff", one, other, "--confirm", "--budget", "4", "--json", code=code)
            break
        except AssertionError:
            if code:
                raise
    (settled,) = json.loads(done.stdout)["confirmed"]
    assert settled["problem"] == key
    assert settled["by"] == "race"
    assert settled["outcome"] in ("different", "same", "not settled")
    assert settled["rounds"] >= 8
    assert list(settled["today"]) == [tactic]
    assert settled["ratio"] == pytest.approx(settled["today"][tactic][0], rel=1e-6)
    assert set(home.rglob("*")) == before, "confirming leaves nothing behind"


@pytest.mark.slow
def test_choices_of_an_op_are_raced_on_the_calls_of_its_script(
    tmp_path: Path, cli_environment: Callable[..., dict[str, str]], cli_interpreter: Cli
) -> None:
    script = tmp_path / "own.py"
    script.write_text(SCRIPT, encoding="utf-8")
    home = tmp_path / "home"
    for runner in ("slow", "quick"):
        subprocess.run([sys.executable, str(script), runner], env=cli_environment(home), check=True, timeout=120)
    done = cli_interpreter(home, "diff", "--confirm", "--with", script, "--budget", "10", code=1)
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("different, by racing now: 2 of 2 problems: demo::pick|x.1=3|fp32|M≤")
    raced = [line for line in lines if re.search(r"quick is \d[\d.]+ times as fast as slow, raced now", line)]
    assert len(raced) == 2
    assert all(" different " in line for line in raced)
    cli_interpreter(home, "diff", "--confirm", "--with", tmp_path / "absent.py", code=2)
