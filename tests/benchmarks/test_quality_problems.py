"""The frozen problems of quality.py, its two baselines, and the file of raw data."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _quality_problems import PROBLEMS, QUICK_PROBLEMS, QUICK_SHAPES, SHAPES, Candidate
from _quality_tuners import do_bench, flashinfer
from _quality_worker import read_units
from quality import without_paths

from tunebook.devices import device_of
from tunebook.kernels import experts, linear
from tunebook.records import Tactic

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "quality.py"
OPS: dict[str, Any] = {"experts": experts, "linear": linear}


def test_there_are_24_problems_of_both_ops_and_both_models():
    assert len({problem.name for problem in PROBLEMS}) == len(PROBLEMS) == 24
    assert Counter(SHAPES[problem.shape].op for problem in PROBLEMS) == {"experts": 12, "linear": 12}
    assert {min(p.rows for p in PROBLEMS), max(p.rows for p in PROBLEMS)} == {1, 512}
    assert {name.split()[0] for name in SHAPES} == {"granite", "qwen3"}


@pytest.mark.parametrize("problem", [*PROBLEMS, *QUICK_PROBLEMS], ids=lambda problem: problem.name)
def test_every_tactic_is_one_that_ships(problem):
    op = OPS[{**SHAPES, **QUICK_SHAPES}[problem.shape].op]
    assert 3 <= len(set(problem.tactics)) == len(problem.tactics) <= 10
    for name in problem.others:
        assert op.runner_of(Tactic.parse(name)) is not None, name


def test_all_layers_of_a_shape_are_larger_than_a_flush():
    flush = device_of("cpu").flush().bytes
    for name, shape in SHAPES.items():
        sizes = shape.sizes
        values = sizes[0] * sizes[1] if shape.op == "linear" else 3 * sizes[0] * sizes[2] * sizes[3]
        assert 2 * values * shape.layers >= flush, name


def candidate(name: str, seconds: float, called: Counter[tuple[str, int]], layers: int = 2) -> Candidate:
    def call(layer: int) -> Callable[[], None]:
        def run() -> None:
            called[name, layer] += 1
            time.sleep(seconds)

        return run

    return Candidate(name, tuple(call(layer) for layer in range(layers)))


def test_flashinfer_calls_each_tactic_thirteen_times_round_the_layers():
    called: Counter[tuple[str, int]] = Counter()
    tuning = flashinfer([candidate("default", 0.01, called), candidate("a", 0.0, called)])
    assert tuning.choice == "a"
    assert tuning.seconds >= 13 * 0.01
    assert called == {("default", 0): 7, ("default", 1): 6, ("a", 0): 7, ("a", 1): 6}


def test_do_bench_takes_as_many_calls_as_fit_its_milliseconds():
    called: Counter[tuple[str, int]] = Counter()
    tuning = do_bench([candidate("default", 0.06, called), candidate("a", 0.0, called)])
    assert tuning.choice == "a"
    assert called["default", 0] + called["default", 1] == 1 + 5 + 1 + 1
    assert called["a", 0] + called["a", 1] > 20


def test_a_torn_last_line_is_left_out(tmp_path):
    keep = tmp_path / "raw.jsonl"
    assert read_units(keep) == ({}, [])
    keep.write_text('{"plan": 1}\n{"process": 0}\n{"proc')
    assert read_units(keep) == ({"plan": 1}, [{"process": 0}])


def test_paths_are_left_out_of_the_command_shown():
    given = ["--keep", "/home/me/raw.jsonl", "--rounds", "3", "--from=/tmp/x", "--quick"]
    assert without_paths(given) == ["--rounds", "3", "--quick"]


@pytest.mark.slow
def test_a_kept_run_is_not_measured_again(tmp_path):
    keep, figures = tmp_path / "raw.jsonl", tmp_path / "figures.json"
    command = [
        sys.executable,
        str(SCRIPT),
        "--quick",
        "--threads",
        "1",
        "--processes",
        "1",
        "--rounds",
        "4",
        "--loaded",
    ]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)

    first = run("0", "--keep", str(keep))
    assert first.returncode == 0, first.stderr
    lines = keep.read_text().splitlines()
    assert len(lines) == 1 + len(QUICK_PROBLEMS)
    keep.write_text("\n".join(lines[:-1]) + '\n{"torn')  # the last unit was lost
    again = run("0", "--keep", str(keep))
    assert again.returncode == 0, again.stderr
    assert "[1/1]" in again.stderr
    assert keep.read_text().splitlines()[: len(lines) - 1] == lines[:-1]
    table = run("0", "--from", str(keep), "--json", str(figures))
    assert table.returncode == 0, table.stderr
    assert not table.stderr
    document = json.loads(figures.read_text())
    assert {"regret_mean", "flips", "tie_set_median", "seconds_ratio_flashinfer"} <= document["figures"].keys()
    assert document["met"].keys() == document["goals"].keys()
    other = run("1", "--keep", str(keep))
    assert other.returncode != 0
    assert "is of another run, its plan" in other.stderr
