"""Does the race find the best tactic, on a simulated machine whose noise is known? In samples, so it holds anywhere.

Eight tactics, at most 60 rounds, log-normal noise of 12 % a sample, and machines that drift, spike, switch between two
speeds or remember their last sample. The race and the choice are tunebook's own; the clock is not. Beside them, what one
pass of 3 warm-ups and 10 calls per tactic chooses by its mean (FlashInfer's protocol), median and least.

    python benchmarks/race_simulation.py --json race_simulation.json
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from _common import Result, finish, options
from _simulated_machine import ROUNDS, SIGMA, TACTICS, WORLDS, Machine, Samples, Simulated, noise

from tunebook.measure import _evidence, choose, race
from tunebook.stats import centred_medians, sign_evidence, two_way

WARM_UPS, CALLS = 3, 10
#: A tactic this close to the best, as a share of its time, must not be eliminated.
NEAR = 0.01
BASELINES: dict[str, Callable[[Samples], Samples]] = {
    "mean": lambda samples: samples.mean(axis=1),
    "median": lambda samples: np.median(samples, axis=1),
    "least": lambda samples: samples.min(axis=1),
}
#: How much slower than the best the seven others are, as a share.
FIELDS: dict[str, Callable[[np.random.Generator], Samples]] = {
    "clear": lambda rng: rng.uniform(0.05, 0.5, TACTICS - 1),
    "hardest": lambda rng: np.full(TACTICS - 1, 0.05),
    "crowded": lambda rng: rng.uniform(0.0, 0.03, TACTICS - 1),
    "equal": lambda rng: np.zeros(TACTICS - 1),
    "wide": lambda rng: np.expm1(rng.uniform(np.log(1.05), np.log(4.0), TACTICS - 1)),
}
#: From log times [tactics, rounds] to a value a tactic.
ESTIMATORS: dict[str, Callable[[Samples], Samples]] = {
    "mean": lambda logs: np.exp(logs).mean(axis=1),
    "least": lambda logs: logs.min(axis=1),
    "median": lambda logs: np.median(logs, axis=1),
    "median of centred rounds": centred_medians,
    "two-way fit": lambda logs: two_way(logs).effects,
}
RULES = ("own", "signs", "signs and tail")


@dataclass
class Tally:
    """What came of the races of one world and field; by baseline, how often it found the best, and its regrets."""

    best: list[bool] = field(default_factory=list)
    regret: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    near: int = 0
    lost: int = 0
    lossy: int = 0
    status: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("proven", "likely", "unresolved"), 0))
    wrongly_proven: int = 0
    baseline_best: dict[str, list[bool]] = field(default_factory=lambda: {name: [] for name in BASELINES})
    baseline_regret: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in BASELINES})


def simulate(world: str, gaps: str, races: int, *, rounds: int = ROUNDS, seed: int = 0) -> Tally:
    """Run `races` races, each with its own tactics, noise and order."""
    tally = Tally()
    for number in range(races):
        rng = np.random.default_rng((seed, number))
        slower = np.concatenate(([0.0], FIELDS[gaps](rng)))
        rng.shuffle(slower)  # the default may be any
        seconds = 1e-3 * (1 + slower)
        factors = np.exp(noise(world, ROUNDS * TACTICS, rng))
        _race(tally, seconds, factors, number, rounds)
        _one_pass(tally, seconds, factors)
    return tally


def _race(tally: Tally, seconds: Samples, factors: Samples, seed: int, rounds: int) -> None:
    machine = Machine(factors)
    names = ["default", *(f"t{i}" for i in range(1, TACTICS))]
    tactics = [Simulated(machine, name, float(s)) for name, s in zip(names, seconds, strict=True)]
    result = race(tactics, "default", machine, inner=1, rng=random.Random(seed), max_rounds=rounds)
    choice = choose(result, lambda name: (name, ""))
    truth = dict(zip(names, seconds / seconds.min() - 1, strict=True))
    stayed = {entry.name for entry in result.survivors}
    near = [name for name in names if truth[name] <= NEAR]
    lost = sum(name not in stayed for name in near)
    tally.best.append(truth[choice.winner] == 0)
    tally.regret.append(truth[choice.winner])
    tally.samples.append(machine.calls)
    tally.rounds.append(result.rounds)
    tally.near += len(near)
    tally.lost += lost
    tally.lossy += lost > 0
    tally.status[choice.status] += 1
    tally.wrongly_proven += choice.status == "proven" and bool(np.log1p(truth[choice.winner]) > _evidence.EQUIVALENCE)


def _one_pass(tally: Tally, seconds: Samples, factors: Samples) -> None:
    """Tactic after tactic, 3 warm-ups and 10 calls each."""
    taken = factors[: TACTICS * (WARM_UPS + CALLS)].reshape(TACTICS, -1)[:, WARM_UPS:] * seconds[:, None]
    for name, estimate in BASELINES.items():
        regret = float(seconds[int(estimate(taken).argmin())] / seconds.min() - 1)
        tally.baseline_best[name].append(regret == 0)
        tally.baseline_regret[name].append(regret)


@contextmanager
def rule(name: str) -> Iterator[None]:
    """Another rule of elimination than the race's own, to compare with: the evidence of every pair is replaced."""
    own = _evidence.slower

    def signs(logs: Samples, fit: object, one: int, other: int, margin: float) -> float:
        ratios = logs[one] - logs[other]
        return sign_evidence(int((ratios > margin).sum()), len(ratios))

    def signs_and_tail(logs: Samples, fit: object, one: int, other: int, margin: float) -> float:
        """Averaged with a bet of 0.9 against "at most 5 % of the rounds are more than twice as slow"."""
        ratios = logs[one] - logs[other]
        beyond = int((ratios > np.log(2)).sum())
        return (signs(logs, fit, one, other, margin) + 18.1**beyond * 0.1 ** (len(ratios) - beyond)) / 2

    rules: dict[str, Callable[..., float]] = {"own": own, "signs": signs, "signs and tail": signs_and_tail}
    _evidence.slower = rules[name]
    try:
        yield
    finally:
        _evidence.slower = own


def estimators(world: str, gaps: str, races: int, *, seed: int = 1) -> dict[str, tuple[float, float]]:
    """With all samples of all rounds and no stop: how often each estimator's least is the best, and its mean regret."""
    found: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for number in range(races):
        rng = np.random.default_rng((seed, number))
        slower = np.concatenate(([0.0], FIELDS[gaps](rng)))
        values = noise(world, ROUNDS * TACTICS, rng).reshape(ROUNDS, TACTICS)
        order = rng.random((ROUNDS, TACTICS)).argsort(axis=1)
        logs = np.take_along_axis(values, order, axis=1).T + np.log1p(slower)[:, None]
        for name, estimate in ESTIMATORS.items():
            found[name].append(float(slower[int(estimate(logs).argmin())]))
    return {name: (float(np.mean(np.array(r) == 0)), float(np.mean(r))) for name, r in found.items()}


@dataclass(frozen=True)
class Job:
    """One line of the tables: races with a rule of elimination, or estimators where there is no rule."""

    gaps: str
    world: str
    rule: str = "own"


def run(job: Job, races: int) -> Tally:
    with rule(job.rule):
        return simulate(job.world, job.gaps, races)


JOBS = (
    *(Job("clear", world) for world in WORLDS),
    *(Job("hardest", world) for world in ("plain", "drift", "bimodal")),
    *(Job("crowded", world) for world in WORLDS),
    *(Job("equal", world) for world in ("plain", "spikes 20 %")),
    *(Job("wide", world, name) for world in ("plain", "spikes 5 %", "spikes 20 %") for name in RULES),
)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def row(job: Job, tally: Tally) -> list[str]:
    baselines = (
        f"{percent(float(np.mean(tally.baseline_best[b])))}, {100 * np.mean(tally.baseline_regret[b]):.2f} %"
        for b in BASELINES
    )
    return [
        job.gaps,
        job.world,
        {"own": "the race"}.get(job.rule, f"with {job.rule}"),
        percent(float(np.mean(tally.best))),
        f"{100 * np.mean(tally.regret):.2f} %",
        f"{np.mean(tally.samples):.0f}",
        f"{np.mean(tally.rounds):.1f}",
        percent(tally.lossy / len(tally.best)),
        " / ".join(f"{100 * count / len(tally.best):.0f}" for count in tally.status.values()),
        *baselines,
    ]


def figures(tallies: dict[Job, Tally]) -> dict[str, float]:
    def best(gaps: str, *worlds: str) -> float:
        return min(float(np.mean(tallies[Job(gaps, world)].best)) for world in worlds)

    def mean(what: str, gaps: str) -> float:
        return float(np.mean([np.mean(getattr(t, what)) for job, t in tallies.items() if _asked(job, gaps)]))

    every = [t for job, t in tallies.items() if job.rule == "own"]
    crowded = [t for job, t in tallies.items() if _asked(job, "crowded")]
    return {
        "clear_best": best("clear", "plain"),
        "clear_best_spikes": best("clear", "spikes 1 %", "spikes 5 %"),
        "clear_best_spikes_20": best("clear", "spikes 20 %"),
        "clear_best_autocorrelation": best("clear", "autocorrelation"),
        "clear_best_drift": best("clear", "drift", "drift within a round"),
        "clear_best_bimodal": best("clear", "bimodal", "bimodal within a round"),
        "hardest_best": best("hardest", "plain"),
        "hardest_best_drift": best("hardest", "drift"),
        "hardest_best_bimodal": best("hardest", "bimodal"),
        "crowded_regret": mean("regret", "crowded"),
        "crowded_regret_worst": max(float(np.mean(t.regret)) for t in crowded),
        "crowded_regret_mean_of_10": float(np.mean([np.mean(t.baseline_regret["mean"]) for t in crowded])),
        "false_elimination": max(t.lossy / len(t.best) for t in crowded),
        "false_elimination_worst": max(t.lossy / len(t.best) for t in every),
        "wrongly_proven": sum(t.wrongly_proven for t in every) / max(1, sum(t.status["proven"] for t in every)),
        "samples_clear": mean("samples", "clear"),
        "samples_hardest": mean("samples", "hardest"),
        "samples_crowded": mean("samples", "crowded"),
        "samples_one_pass": float(TACTICS * (WARM_UPS + CALLS)),
        "rounds_clear": mean("rounds", "clear"),
        "rounds_crowded": mean("rounds", "crowded"),
    }


def _asked(job: Job, gaps: str) -> bool:
    """The worlds that the goals are about: spikes of 20 % are beyond them."""
    return job.gaps == gaps and job.rule == "own" and job.world != "spikes 20 %"


GOALS = {
    "clear_best": (">=", 0.95),
    "clear_best_spikes": (">=", 0.95),
    "clear_best_autocorrelation": (">=", 0.95),
    "clear_best_drift": (">=", 0.90),
    "clear_best_bimodal": (">=", 0.90),
    "hardest_best": (">=", 0.95),
    "hardest_best_drift": (">=", 0.90),
    "hardest_best_bimodal": (">=", 0.90),
    "crowded_regret": ("<=", 0.008),
    "false_elimination": ("<=", 0.01),
}


def notes(races: int) -> list[str]:
    lines = [f"{world}: {text}" for world, text in WORLDS.items() if text]
    for gaps, world in ((g, w) for g in ("hardest", "crowded") for w in ("plain", "spikes 5 %", "bimodal")):
        found = estimators(world, gaps, races)
        lines.append(
            f"{gaps}, {world}, all 480 samples and no stop, best chosen and mean regret: "
            + "; ".join(f"{name} {percent(best)}, {100 * regret:.2f} %" for name, (best, regret) in found.items())
        )
    return lines


def main() -> None:
    parser = options(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--races", type=int, default=1000, help="races of each line (default 1000)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    args = parser.parse_args()
    races = 20 if args.quick else args.races
    with ProcessPoolExecutor(args.jobs) as pool:
        tallies = dict(zip(JOBS, pool.map(run, JOBS, [races] * len(JOBS)), strict=True))
    columns = (
        *("others slower by", "world", "rule", "best chosen", "mean regret", "samples a race", "rounds"),
        *("a tactic within 1 % eliminated", "proven / likely / unresolved, %"),
        *(f"{name} of {CALLS}: best chosen, mean regret" for name in BASELINES),
    )
    result = Result("The race on a simulated machine", columns, figures=figures(tallies), goals=GOALS)
    result.rows = [row(job, tally) for job, tally in tallies.items()]
    result.notes = [
        f"{races:,} races a line; {TACTICS} tactics, at most {ROUNDS} rounds, noise {SIGMA:g} a sample",
        f"one pass takes {TACTICS * (WARM_UPS + CALLS)} samples",
        "clear: 5 to 50 % at random; hardest: 5 % each; crowded: 0 to 3 % at random; equal: 0; wide: 5 % to 4 times",
        "hardest: what all 480 samples could tell, without a stop, is below; under normal noise no rule beats their mean",
        "eliminated: races in which any tactic within 1 % of the best was",
        *notes(races),
    ]
    finish(result, args, {"device": "simulated"})


if __name__ == "__main__":
    main()
