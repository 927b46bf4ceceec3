"""Figures of quality.py: regret, material flips, tie sets and time, with intervals by a bootstrap over problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from _common import Result
from _quality_problems import Problem
from _quality_truth import Truth
from _quality_worker import Plan, truth_of

TUNERS = ("tunebook", "flashinfer", "do_bench")
#: A choice above this regret counts as a bad one.
BAD_REGRET = 0.03
#: A problem is short where the default takes less than this, in seconds.
SHORT_S = 1e-3
DRAWS = 2000
GOALS: dict[str, tuple[str, float]] = {
    "regret_mean": ("<=", 0.01),
    "regret_ratio_flashinfer": ("<=", 1 / 3),
    "regret_mean_loaded": ("<=", 0.02),
    "share_above_3pct": ("<=", 0.05),
    "flips": ("<=", 0.10),
    "flips_ratio_flashinfer": ("<=", 1 / 3),
    "tie_set_median": ("<=", 3.0),
    "seconds_ratio_flashinfer": ("<=", 1.5),
    "seconds_ratio_do_bench": ("<=", 1.0),
    "seconds_ratio_do_bench_short": ("<=", 1 / 3),
}


@dataclass(frozen=True)
class Summary:
    """What one problem showed: by tuner the regret of each tuning, the share of flips and the seconds of all tunings."""

    problem: Problem
    truth: Truth
    regrets: dict[str, list[float]]
    flips: dict[str, float]
    seconds: dict[str, float]
    tunings: int
    ties: list[int]
    race_share: float
    loaded: list[float]

    @property
    def short(self) -> bool:
        return self.truth.seconds[self.problem.tactics[0]] < SHORT_S


def summarise(problem: Problem, units: Sequence[dict[str, Any]], plan: Plan) -> Summary:
    """The units of one problem, all processes together."""
    truth = Truth(problem.tactics, truth_of(units, problem))
    own = [unit for unit in units if unit["problem"] == problem.name]
    quiet = [tuning for unit in own if unit["process"] < plan.processes for tuning in unit["tunings"]]
    loaded = [tuning for unit in own if unit["process"] >= plan.processes for tuning in unit["tunings"]]
    choices = {tuner: [t["choice"] for t in quiet if t["tuner"] == tuner] for tuner in TUNERS}
    seconds = {tuner: sum(t["seconds"] for t in quiet if t["tuner"] == tuner) for tuner in TUNERS}
    ours = [tuning for tuning in quiet if tuning["tuner"] == "tunebook"]
    return Summary(
        problem=problem,
        truth=truth,
        regrets={tuner: [truth.regret(choice) for choice in made] for tuner, made in choices.items()},
        flips={tuner: truth.flips(made) for tuner, made in choices.items()},
        seconds=seconds,
        tunings=len(ours),
        ties=[tuning["ties"] + 1 for tuning in ours],
        race_share=sum(tuning["race_seconds"] for tuning in ours) / seconds["tunebook"],
        loaded=[truth.regret(tuning["choice"]) for tuning in loaded],
    )


def figures(summaries: Sequence[Summary]) -> dict[str, float]:
    """Every figure over these problems, each problem with equal weight; times as the ratio of the sums over problems."""
    found: dict[str, float] = {}
    regret = {t: float(np.mean([r for s in summaries for r in s.regrets[t]])) for t in TUNERS}
    flips = {t: float(np.mean([s.flips[t] for s in summaries])) for t in TUNERS}
    found["regret_mean"] = regret["tunebook"]
    found["regret_mean_flashinfer"], found["regret_mean_do_bench"] = regret["flashinfer"], regret["do_bench"]
    found["regret_ratio_flashinfer"] = _ratio(regret["tunebook"], regret["flashinfer"])
    for tuner in TUNERS:
        suffix = "" if tuner == "tunebook" else f"_{tuner}"
        found[f"share_above_3pct{suffix}"] = float(
            np.mean([r > BAD_REGRET for s in summaries for r in s.regrets[tuner]])
        )
        found[f"flips{suffix}"] = flips[tuner]
    found["flips_ratio_flashinfer"] = _ratio(flips["tunebook"], flips["flashinfer"])
    found["tie_set_median"] = float(np.median([ties for s in summaries for ties in s.ties]))
    short = [s for s in summaries if s.short]
    for tuner in TUNERS[1:]:
        found[f"seconds_ratio_{tuner}"] = seconds_ratio(summaries, tuner)
        logs = [math.log(s.seconds["tunebook"] / s.seconds[tuner]) for s in summaries]
        found[f"seconds_ratio_{tuner}_each"] = math.exp(float(np.mean(logs)))
        if short:
            found[f"seconds_ratio_{tuner}_short"] = seconds_ratio(short, tuner)
    loaded = [regret for s in summaries for regret in s.loaded]
    if loaded:
        found["regret_mean_loaded"] = float(np.mean(loaded))
    return found


def seconds_ratio(summaries: Sequence[Summary], tuner: str) -> float:
    """tunebook's seconds over another tuner's, each summed over the problems: what somebody who waits for both sees."""
    return sum(s.seconds["tunebook"] for s in summaries) / sum(s.seconds[tuner] for s in summaries)


def intervals(
    summaries: Sequence[Summary], of: Callable[[Sequence[Summary]], dict[str, float]], draws: int = DRAWS
) -> dict[str, tuple[float, float]]:
    """95 % of each figure over `draws` resamplings of the problems, with replacement."""
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(draws):
        picks = rng.integers(0, len(summaries), len(summaries))
        for name, value in of([summaries[int(i)] for i in picks]).items():
            drawn.setdefault(name, []).append(value)
    return {
        name: (float(np.quantile(values, 0.025, method="nearest")), float(np.quantile(values, 0.975, method="nearest")))
        for name, values in drawn.items()
    }


def _ratio(one: float, other: float) -> float:
    """One over the other; infinite where the other is nothing and the one is something."""
    if other > 0:
        return one / other
    return 0.0 if one <= 0 else math.inf


def report(summaries: Sequence[Summary], plan: Plan) -> Result:
    """The table with a row a problem, the figures with their goals, and the notes that say what they mean."""
    result = Result(
        f"Tuning quality: {len(summaries)} problems, {summaries[0].tunings} fresh tunings each",
        (
            "problem, tokens",
            "tactics",
            "default ms",
            "spread",
            "gap to the second",
            "regret %: tunebook / FlashInfer / do_bench",
            "flips %",
            "ties",
            "seconds a tuning",
        ),
    )
    for summary in summaries:
        result.rows.append(_row(summary))
    found, ranges = figures(summaries), intervals(summaries, figures)
    for name, value in found.items():
        if not math.isfinite(value):
            result.notes.append(f"`{name}` is not given: what it would be divided by is 0")
            continue
        low, high = ranges[name]
        result.figures |= {name: value}
        if math.isfinite(low) and math.isfinite(high):
            result.figures |= {f"{name}_low": low, f"{name}_high": high}
        result.notes.append(f"`{name}`: {value:.4f} [{low:.4f}, {high:.4f}]")
    result.goals = {name: goal for name, goal in GOALS.items() if name in result.figures}
    result.notes += _meaning(summaries, plan)
    for summary in summaries:
        gaps = ", ".join(f"{name} +{gap:.1%}" for name, gap in summary.truth.gaps().items())
        result.notes.append(f"{summary.problem.name}: {gaps}")
    return result


def _row(summary: Summary) -> tuple[str, ...]:
    truth = summary.truth
    second = sorted(truth.gaps().values())[1]
    return (
        summary.problem.name,
        str(len(truth.names)),
        f"{truth.seconds[truth.names[0]] * 1e3:.3f}",
        f"{truth.spread:.2f}x",
        f"{second:.1%}",
        " / ".join(f"{float(np.mean(summary.regrets[tuner])) * 100:.2f}" for tuner in TUNERS),
        " / ".join(f"{summary.flips[tuner] * 100:.0f}" for tuner in TUNERS),
        f"{float(np.median(summary.ties)):g}",
        " / ".join(f"{summary.seconds[tuner] / summary.tunings:.3f}" for tuner in TUNERS),
    )


def _meaning(summaries: Sequence[Summary], plan: Plan) -> list[str]:
    narrow = sum(summary.truth.spread <= 2 for summary in summaries)
    ours = sum(summary.seconds["tunebook"] for summary in summaries)
    race = sum(summary.race_share * summary.seconds["tunebook"] for summary in summaries) / ours
    rounds = min(summary.truth.rounds for summary in summaries)
    notes = [
        "intervals: 95 %, by a bootstrap over problems",
        f"{narrow} of {len(summaries)} problems have a spread (slowest over fastest tactic) of at most 2x",
        (
            f"truth: {rounds} interleaved rounds over {plan.processes} processes, before, between and after the tunings; the "
            "best is picked on the odd rounds, regret scored on the even ones, as the median paired ratio less 1; a tactic three "
            "times slower than the best is sampled in every tenth round after the first 40"
        ),
        (
            "a flip: two tunings' choices differ by more than 2 % in truth; the share of all pairs of a problem's tunings, mean "
            "over problems"
        ),
        (
            "every tuner calls the same tactics on the same layers, weights prepared before, going round the layers; do_bench "
            "goes round them where on a GPU it flushes the cache"
        ),
        (
            "tunebook's seconds are all that settling takes: correctness checks, calibration, race, choice; the calls of the "
            f"race alone are {race:.0%} of them; `seconds_ratio_…` is of sums over problems, `…_each` the geometric mean of the "
            f"problems' own ratios, `…_short` of the {sum(s.short for s in summaries)} whose default takes under 1 ms"
        ),
        "ties: tactics in the tie set, the winner included",
    ]
    if plan.loaded:
        notes.append(
            f"loaded: {plan.loaded} tunings a problem beside a process that keeps one core busy, scored by the quiet truth"
        )
    return notes
