"""`tunebook repro` on what a tuning of a model left: every op of it, without the model."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunebook.records import Problem, Timed
from tunebook.store import read_run

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
FEW = ("--calls", 5, "--warmup", 2, "--layers", 2)


@pytest.mark.usefixtures("clean_ops")
def test_a_problem_of_each_op_of_a_tuned_model_runs_alone(tuned: tuple[Path, dict[str, Any]], cli_inside: Cli) -> None:
    home, document = tuned
    run = read_run(document["run"])
    raced: dict[str, list[Timed]] = {}
    for line in run.trials:
        if isinstance(line.trial, Timed) and max(line.trial.rounds) >= 0:
            raced.setdefault(line.problem, []).append(line.trial)
    # of each op one problem, one that was raced where there is any: a short budget leaves some out
    ops = {Problem.parse(key).op: key for key in sorted(run.verdicts, key=raced.__contains__)}
    assert {"linear", "experts", "qkv", "attend", "router", "rms_norm", "add_rms_norm"} <= ops.keys()
    assert raced
    before = sorted(home.rglob("*"))
    for key in ops.values():
        trial = next((one for one in reversed(raced.get(key, [])) if one.tactic != "default"), None)
        name = trial.tactic if trial is not None else "default"
        done = json.loads(cli_inside(home, "repro", key, name, *FEW, "--json").stdout)
        assert (done["problem"], done["tactic"]) == (key, name)
        assert done["check"]["agrees"] is True
        recorded = done["recorded"]
        assert (recorded["path"], recorded["model"]) == (document["run"], "tiny-moe")
        assert recorded["how"] == ("race" if trial is not None else "verdict")
        if trial is not None:
            assert min(trial.samples) <= recorded["seconds"] <= max(trial.samples)
            assert not any("the code is another" in note for note in done["notes"]), done["notes"]
        assert not any("another environment" in note for note in done["notes"]), done["notes"]
    assert sorted(home.rglob("*")) == before, "it leaves something behind"


def test_a_part_of_a_key_in_a_process_of_its_own(tuned: tuple[Path, dict[str, Any]], cli_interpreter: Cli) -> None:
    home, document = tuned
    key = next(key for key in sorted(read_run(document["run"]).verdicts) if key.startswith("experts|"))
    shutil.rmtree(Path(document["cache"]).with_name("winners.json.d"), ignore_errors=True)
    Path(document["cache"]).unlink()  # then the newest run is what is looked into
    done = cli_interpreter(home, "repro", key.partition("|")[2], "default", "--seconds", "0.1")
    lines = done.stdout.splitlines()
    assert lines[0] == key
    assert any(line.startswith("  then:   ") and document["run"] in line for line in lines)
    assert any("the op's own function; then it was transformers" in line for line in lines)
    assert any(line.startswith("  [ -p repro.ctl ] || mkfifo ") and "perf stat" in line for line in lines)
    assert done.stderr == ""
