"""The three tuners that quality.py compares: tunebook itself, and the protocols of FlashInfer and of Triton's `do_bench`.

The two protocols are stated again from their sources, on the same calls that tunebook's race makes: layer after layer, so
that they differ from it in how they measure and choose, not in what.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from _quality_problems import Candidate

from tunebook.devices import Device
from tunebook.measure import memory_limit
from tunebook.records import RaceLine, Rejected, RunLine, SampleLine, TrialLine
from tunebook.tuner import Selection, Task
from tunebook.tuner._entrants import entrants
from tunebook.tuner._journal import Journal
from tunebook.tuner._tune import ProblemTuner

#: FlashInfer's AutoTuner (0.7.2, `AutoTuner.__init__`): calls before the clock starts, and calls in its one timing.
FLASHINFER_WARM_UP, FLASHINFER_REPEAT = 3, 10
#: Triton's `do_bench`: milliseconds of warm-up and of repetition, and the calls that it estimates a call's time from.
DO_BENCH_WARM_UP_MS, DO_BENCH_REPEAT_MS, DO_BENCH_ESTIMATE = 25.0, 100.0, 5
#: Seconds that tunebook may take for a problem: far more than it wants on a quiet machine. Beside a competing process each
#: parallel region of a call waits for the core that is taken, and a call takes ten times as long and more.
TUNEBOOK_BUDGET_S, LOADED_BUDGET_S = 20.0, 15.0


@dataclass(frozen=True)
class Tuning:
    """What one tuning chose and how long it took, in seconds. Of tunebook also: its ties, its status, its race alone."""

    tuner: str
    choice: str
    seconds: float
    ties: int = 0
    status: str = ""
    rounds: int = 0
    race_seconds: float = 0.0
    rejected: tuple[str, ...] = ()


def flashinfer(candidates: Sequence[Candidate]) -> Tuning:
    """Each tactic once in list order: 3 calls, then the mean of 10 as one timing; the first least mean wins (a strict <)."""
    started = time.perf_counter()
    best, least = candidates[0].name, float("inf")
    for candidate in candidates:
        call = _rotating(candidate)
        for _ in range(FLASHINFER_WARM_UP):
            call()
        start = time.perf_counter()
        for _ in range(FLASHINFER_REPEAT):
            call()
        mean = (time.perf_counter() - start) / FLASHINFER_REPEAT
        if mean < least:
            best, least = candidate.name, mean
    return Tuning("flashinfer", best, time.perf_counter() - started)


def do_bench(candidates: Sequence[Candidate]) -> Tuning:
    """The median of calls timed one by one, as `triton.testing.do_bench(quantiles=(0.5, …))` in Triton's autotuner.

    One call, an estimate from 5, then 25 ms worth of warm-up and 100 ms worth of timings. Where Triton flushes the GPU's L2
    before each call, the calls here go round the layers, which costs it nothing.
    """
    started = time.perf_counter()
    medians: dict[str, float] = {}
    for candidate in candidates:
        call = _rotating(candidate)
        call()
        start = time.perf_counter()
        for _ in range(DO_BENCH_ESTIMATE):
            call()
        estimate = (time.perf_counter() - start) / DO_BENCH_ESTIMATE * 1e3
        for _ in range(max(1, int(DO_BENCH_WARM_UP_MS / estimate))):
            call()
        samples = []
        for _ in range(max(1, int(DO_BENCH_REPEAT_MS / estimate))):
            start = time.perf_counter()
            call()
            samples.append(time.perf_counter() - start)
        medians[candidate.name] = statistics.median(samples)
    best = min(medians, key=medians.__getitem__)
    return Tuning("do_bench", best, time.perf_counter() - started)


def tunebook(task: Task, device: Device, rng: random.Random, budget: float = TUNEBOOK_BUDGET_S) -> Tuning:
    """A problem settled as in a session, its weights prepared before: correctness checks, calibration, race and choice."""
    layer = task.family.layers[0]
    field = entrants(task.problem, task.spec, layer.default_version, Selection(), None)
    limit = memory_limit(device.free_memory(), None)
    started = time.perf_counter()
    lines: list[RunLine] = []
    tuner = ProblemTuner(device, rng, memory_limit=limit, journal=Journal(lines.append))
    settled = tuner.settle(task, field, known=None, before=None, seconds=budget)
    seconds = time.perf_counter() - started
    inner = {line.race: line.inner for line in lines if isinstance(line, RaceLine)}
    refused = [line.trial for line in lines if isinstance(line, TrialLine) and isinstance(line.trial, Rejected)]
    return Tuning(
        "tunebook",
        settled.verdict.winner,
        seconds,
        ties=len(settled.verdict.ties),
        status=settled.verdict.status,
        rounds=settled.verdict.rounds,
        race_seconds=sum(line.seconds * inner[line.race] for line in lines if isinstance(line, SampleLine)),
        rejected=tuple(f"{trial.tactic}: {trial.detail}" for trial in refused),
    )


def _rotating(candidate: Candidate) -> Callable[[], Any]:
    """Calls that go round the layers, beginning with the first."""
    calls, position = candidate.calls, -1

    def call() -> Any:
        nonlocal position
        position = (position + 1) % len(calls)
        return calls[position]()

    return call
