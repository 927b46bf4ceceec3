"""A process of quality.py: for each problem rounds of the truth, before, between and after fresh tunings by every tuner."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _quality_problems import PROBLEMS, QUICK_PROBLEMS, QUICK_SHAPES, SHAPES, Candidate, Layers, Problem
from _quality_truth import Matrix, hopeless_tactics, inner_count, measure_rounds
from _quality_tuners import LOADED_BUDGET_S, Tuning, do_bench, flashinfer, tunebook

from tunebook.devices import Device, device_of
from tunebook.tuner import Task

#: What the competing process does all the time: products in one thread, on one core where the system lets it be bound.
COMPETITOR = """
import os, sys
import numpy as np
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
parent, a = os.getppid(), np.ones((512, 512), dtype=np.float32)
print("running", flush=True)
while os.getppid() == parent:
    a @ a
"""
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Plan:
    """How much is measured: processes of the quiet part, truth rounds and tunings in each; tunings in the loaded process."""

    processes: int
    rounds: int
    tunings: int
    loaded: int
    quick: bool
    threads: int | None

    @property
    def problems(self) -> tuple[Problem, ...]:
        return QUICK_PROBLEMS if self.quick else PROBLEMS

    def units(self) -> list[tuple[int, str]]:
        """Every (process, problem); the process after the quiet ones is the loaded one."""
        count = self.processes + (self.loaded > 0)
        return [(process, problem.name) for process in range(count) for problem in self.problems]


def read_units(keep: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the units of a file of raw data. A torn last line is left out."""
    lines = keep.read_text(encoding="utf-8").split("\n") if keep.exists() else []
    documents = [json.loads(line) for line in lines[:-1] if line]
    return (documents[0] if documents else {}), documents[1:]


def truth_of(units: Sequence[dict[str, Any]], problem: Problem) -> Matrix:
    """Seconds [tactics, rounds] of all processes, one after another."""
    parts = [
        np.array(unit["truth"], dtype=float) for unit in units if unit["problem"] == problem.name and unit["truth"]
    ]
    return np.concatenate([np.empty((len(problem.tactics), 0)), *parts], axis=1)


def work(process: int, plan: Plan, keep: Path) -> None:
    """Measure what is missing of one process's units, a line each, in an order of its own."""
    if plan.threads:
        torch.set_num_threads(plan.threads)
    device = device_of("cpu")
    done = {(unit["process"], unit["problem"]) for unit in read_units(keep)[1]}
    todo = [problem for problem in plan.problems if (process, problem.name) not in done]
    rng = random.Random(1000 + process)
    shapes = sorted({problem.shape for problem in todo})
    rng.shuffle(shapes)
    with torch.inference_mode():
        _begin(device)
        for shape in shapes:
            of_shape = [problem for problem in todo if problem.shape == shape]
            rng.shuffle(of_shape)
            known = (QUICK_SHAPES if plan.quick else SHAPES)[shape]
            layers = Layers(known, [problem.rows for problem in of_shape], device, seed=process)
            for problem in of_shape:
                task = layers.task(problem.rows)
                candidates = layers.candidates(task, problem.tactics)
                unit = {"process": process, "problem": problem.name}
                if process < plan.processes:
                    unit |= _quiet(problem, task, candidates, device, plan, keep, rng, first=process * plan.rounds)
                else:
                    unit |= _loaded(problem, task, candidates, device, plan, rng)
                with keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(unit) + "\n")
                print(problem.name, flush=True)
            layers.close()


def _begin(device: Device) -> None:
    """Tune something else first: what a process imports and looks up once is no part of tuning one problem."""
    shape, rows = QUICK_SHAPES["tiny linear"], 4
    layers = Layers(shape, [rows], device, seed=0)
    task = layers.task(rows)
    candidates = layers.candidates(task, QUICK_PROBLEMS[-1].tactics)
    flashinfer(candidates)
    tunebook(task, device, random.Random(0))
    layers.close()


def _quiet(
    problem: Problem,
    task: Task,
    candidates: Sequence[Candidate],
    device: Device,
    plan: Plan,
    keep: Path,
    rng: random.Random,
    *,
    first: int,
) -> dict[str, Any]:
    """Truth and tunings in turn: before, between and after, so that both meet the machine in the same states."""
    before = truth_of(read_units(keep)[1], problem)
    inner = inner_count(candidates, device)
    edges = [round(i * plan.rounds / (plan.tunings + 1)) for i in range(plan.tunings + 2)]
    parts: list[Matrix] = []
    tunings: list[Tuning] = []
    for block in range(plan.tunings + 1):
        hopeless = hopeless_tactics(problem.tactics, np.concatenate([before, *parts], axis=1))
        parts.append(
            measure_rounds(
                candidates,
                device,
                first=first + edges[block],
                rounds=edges[block + 1] - edges[block],
                inner=inner,
                hopeless=hopeless,
                rng=rng,
            )
        )
        if block < plan.tunings:
            tuners: list[Callable[[], Tuning]] = [
                lambda: flashinfer(candidates),
                lambda: do_bench(candidates),
                lambda: tunebook(task, device, random.Random(rng.random())),
            ]
            rng.shuffle(tuners)
            tunings += [tune() for tune in tuners]
    truth = np.concatenate(parts, axis=1)
    return {
        "inner": inner,
        "truth": [[None if np.isnan(value) else float(value) for value in row] for row in truth],
        "tunings": [asdict(tuning) for tuning in tunings],
    }


def _loaded(
    problem: Problem, task: Task, candidates: Sequence[Candidate], device: Device, plan: Plan, rng: random.Random
) -> dict[str, Any]:
    """tunebook's tunings beside a competing process; scored later by the truth of the quiet machine."""
    with competing():
        for candidate in candidates:
            candidate.calls[0]()
        tunings = [tunebook(task, device, random.Random(rng.random()), LOADED_BUDGET_S) for _ in range(plan.loaded)]
    return {"truth": [], "tunings": [asdict(tuning) for tuning in tunings]}


@contextmanager
def competing() -> Iterator[None]:
    """A process that keeps one core busy inside the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMPETITOR], stdout=subprocess.PIPE, env={**os.environ, **_ONE_THREAD}, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "running":
            raise RuntimeError("the competing process did not start")
        time.sleep(0.2)  # until its clock and caches are what they stay
        yield
    finally:
        process.kill()
        process.communicate()
