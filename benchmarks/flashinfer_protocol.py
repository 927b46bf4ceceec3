"""FlashInfer's own selection against tunebook's integration over it: the same runners, tactics, problems and clock.

Each tuning begins with an autotuner that knows nothing and settles all problems in one block, once by FlashInfer and once by
tunebook, in turns. Before, between and after them the truth is measured, in interleaved rounds of its own.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _common import Result, finish, options
from _dispatch_flashinfer import VERSION, missing, version
from _flashinfer_problems import COPIES_BYTES, PROBLEMS, QUICK_PROBLEMS, TACTICS, Problem, name_of, on_the_cpu
from _quality_truth import Matrix, Truth, hopeless_tactics, inner_count, measure_rounds

import tunebook
from tunebook.devices import Device, device_of

DRAWS = 2000
TUNERS = ("tunebook", "flashinfer")
TUNINGS, QUICK_TUNINGS = 10, 2
#: Rounds of the truth before each tuning, and after the last.
ROUNDS, QUICK_ROUNDS = 12, 4
GOALS: dict[str, tuple[str, float]] = {
    "regret_ratio": ("<=", 1 / 3),
    "flips_ratio": ("<=", 1 / 3),
    "seconds_ratio": ("<=", 1.5),
}
NAMES = tuple(name_of(runner, tactic) for runner, tactic in TACTICS)


@dataclass
class Measured:
    """A problem with its truth's rounds so far, and what each tuner chose."""

    problem: Problem
    rng: random.Random
    rounds: list[Matrix] = field(default_factory=list)
    choices: dict[str, list[str]] = field(default_factory=lambda: {tuner: [] for tuner in TUNERS})
    inner: int = 0

    def measure(self, count: int, device: Device) -> None:
        candidates = self.problem.candidates()
        self.inner = self.inner or inner_count(candidates, device)
        so_far = np.concatenate(self.rounds, axis=1) if self.rounds else np.empty((len(NAMES), 0))
        self.rounds.append(
            measure_rounds(
                candidates,
                device,
                first=so_far.shape[1],
                rounds=count,
                inner=self.inner,
                hopeless=hopeless_tactics(NAMES, so_far),
                rng=self.rng,
            )
        )


@dataclass(frozen=True)
class Summary:
    """What one problem showed: by tuner the mean regret of its tunings, and the share of pairs that differ materially."""

    name: str
    truth: Truth
    regret: dict[str, float]
    flips: dict[str, float]


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--tunings", type=int, help=f"tunings by each tuner, {TUNINGS}")
    parser.add_argument("--rounds", type=int, help=f"truth rounds before each tuning and after the last, {ROUNDS}")
    args = parser.parse_args()
    why = missing()
    if why is not None:
        raise SystemExit(f"error: {why}")
    if not version().startswith(VERSION):
        raise SystemExit(f"error: FlashInfer {version()} is installed; the figures are of {VERSION}: install that one")
    if args.threads:
        torch.set_num_threads(args.threads)
    tunings = args.tunings or (QUICK_TUNINGS if args.quick else TUNINGS)
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    device = device_of("cpu")
    products = QUICK_PROBLEMS if args.quick else PROBLEMS
    with torch.inference_mode(), on_the_cpu() as fresh:
        copies = COPIES_BYTES // 16 if args.quick else COPIES_BYTES
        problems = [Measured(Problem(product, copies), random.Random(i)) for i, product in enumerate(products)]
        seconds = measure(problems, tunings, rounds, device, fresh)
    environment = device.environment()
    summaries = [summarise(one) for one in problems]
    finish(report(summaries, seconds, args, tunings), args, {**environment.hard, **environment.soft})


def measure(
    problems: Sequence[Measured], tunings: int, rounds: int, device: Device, fresh: Callable[[], Any]
) -> dict[str, list[float]]:
    """Seconds of each tuning of all problems, by tuner. The first tuning of each, which loads and imports, is not counted."""
    seconds: dict[str, list[float]] = {tuner: [] for tuner in TUNERS}
    order = random.Random(0)
    started = time.perf_counter()
    for tuner in TUNERS:
        tune(tuner, problems[:1], fresh, seed=0)
    for number in range(tunings):
        for one in problems:
            one.measure(rounds, device)
        for tuner in order.sample(TUNERS, len(TUNERS)):
            found, spent = tune(tuner, problems, fresh, seed=number)
            seconds[tuner].append(spent)
            for one, choice in zip(problems, found, strict=True):
                one.choices[tuner].append(choice)
        left = (time.perf_counter() - started) / (number + 1) * (tunings - number - 1)
        print(f"[{number + 1}/{tunings}] about {left / 60:.1f} min left", file=sys.stderr, flush=True)
    for one in problems:
        one.measure(rounds, device)
    return seconds


def tune(tuner: str, problems: Sequence[Measured], fresh: Callable[[], Any], seed: int) -> tuple[list[str], float]:
    """What is chosen for each problem by a tuner that knows nothing, and in how many seconds."""
    own = fresh()
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        if tuner == "flashinfer":
            import flashinfer.autotuner as autotuner

            with autotuner.autotune(True, cache=str(Path(place) / "v1.json")):
                for one in problems:
                    one.problem.choose(own)
        else:
            with tunebook.flashinfer.autotune(cache=Path(place) / "winners.json", seed=seed):
                for one in problems:
                    one.problem.choose(own)
        spent = time.perf_counter() - started
    return [one.problem.choose(own) for one in problems], spent


def summarise(one: Measured) -> Summary:
    truth = Truth(NAMES, np.concatenate(one.rounds, axis=1))
    return Summary(
        one.problem.name,
        truth,
        {tuner: float(np.mean([truth.regret(choice) for choice in made])) for tuner, made in one.choices.items()},
        {tuner: truth.flips(made) for tuner, made in one.choices.items()},
    )


def figures(summaries: Sequence[Summary]) -> dict[str, float]:
    """Every figure but the times over these problems, each problem with equal weight."""
    found: dict[str, float] = {}
    for name in ("regret", "flips"):
        mean = {tuner: float(np.mean([getattr(s, name)[tuner] for s in summaries])) for tuner in TUNERS}
        found[f"{name}_mean"], found[f"{name}_mean_flashinfer"] = mean["tunebook"], mean["flashinfer"]
        if mean["flashinfer"] > 0:
            found[f"{name}_ratio"] = mean["tunebook"] / mean["flashinfer"]
    return found


def intervals(summaries: Sequence[Summary]) -> dict[str, tuple[float, float]]:
    """95 % of each figure over resamplings of the problems, with replacement."""
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        for name, value in figures([summaries[i] for i in rng.integers(0, len(summaries), len(summaries))]).items():
            drawn.setdefault(name, []).append(value)
    return {name: (float(np.quantile(v, 0.025)), float(np.quantile(v, 0.975))) for name, v in drawn.items()}


def report(
    summaries: Sequence[Summary], seconds: dict[str, list[float]], args: argparse.Namespace, tunings: int
) -> Result:
    result = Result(
        f"FlashInfer {version()}'s selection and tunebook's over it: {len(summaries)} problems, {tunings} tunings each",
        ("rows x inner x columns", "default ms", "spread", "gap to the second", "regret %: ours / its", "flips %"),
    )
    for s in summaries:
        result.rows.append(
            (
                s.name,
                f"{s.truth.seconds[NAMES[0]] * 1e3:.3f}",
                f"{s.truth.spread:.2f}x",
                f"{sorted(s.truth.gaps().values())[1]:.1%}",
                " / ".join(f"{s.regret[tuner]:.2%}" for tuner in TUNERS),
                " / ".join(f"{s.flips[tuner]:.0%}" for tuner in TUNERS),
            )
        )
    found, ranges = figures(summaries), intervals(summaries)
    found["seconds_ratio"] = sum(seconds["tunebook"]) / sum(seconds["flashinfer"])
    result.figures = dict(found)
    for name, value in found.items():
        low, high = ranges.get(name, (value, value))
        result.notes.append(f"`{name}`: {value:.4f}" + (f" [{low:.4f}, {high:.4f}]" if name in ranges else ""))
    for tuner in TUNERS:
        result.figures[f"seconds_{tuner}"] = float(np.mean(seconds[tuner]))
        result.notes.append(f"{tuner}: {np.mean(seconds[tuner]):.2f} s a tuning of all problems, files included")
    result.goals = {name: goal for name, goal in GOALS.items() if name in result.figures}
    result.notes += [
        "intervals: 95 %, by a bootstrap over problems",
        (
            f"truth: {summaries[0].truth.rounds} interleaved rounds before, between and after the tunings; the best is picked on "
            "the odd ones, regret scored on the even ones, as the median paired ratio less 1"
        ),
        "a flip: two tunings' choices differ by more than 2 % in truth; the share of all pairs, mean over problems",
        (
            "every call, of either tuner and of the truth, meets the next of as many copies of the weights as take 64 MB; "
            "FlashInfer's clock is stated again for the CPU (3 calls, then the mean of 10); its selection and files are its own"
        ),
    ]
    return result


if __name__ == "__main__":
    main()
