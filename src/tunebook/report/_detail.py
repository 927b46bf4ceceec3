"""What the page tells of each problem when it is opened: every tactic's samples, the rejected ones, the frontier. Compact."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunebook.records import Plan, Rejected, Timed, TrialLine, Verdict
from tunebook.report._figures import clean

#: So many samples are on one page; of a run with more each tactic has fewer, evenly spaced.
MAX_SAMPLES = 250_000
#: But so many of each tactic at least, if it has them.
MIN_SHOWN = 5
#: Samples are whole numbers: this share of the tactic's median, from the median.
STEP = 1e-4
#: A sample that took more than so many medians is shown at this one.
FARTHEST = 1e6
LONGEST_S = 1e15

#: What a tactic is to its problem, by its place here.
MARKS = ("slower", "winner", "tied", "did not race")


@dataclass
class Details:
    """The content of the page's data block. Texts are numbered, since the names of tactics recur."""

    problems: list[dict[str, Any]] = field(default_factory=list)
    thinned: int = 0
    _texts: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        return self._texts.setdefault(clean(text), len(self._texts))

    @property
    def texts(self) -> list[str]:
        return list(self._texts)


@dataclass
class _Taken:
    """The samples of one tactic: those of races, and the calls before."""

    raced: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    inner: int = 1
    bytes: int = 0
    error: float | None = None

    def add(self, trial: Timed) -> None:
        for number, seconds in zip(trial.rounds, trial.samples, strict=True):
            (self.raced if number >= 0 else self.before).append(seconds)
        self.bytes = max(self.bytes, trial.bytes)
        self.error = trial.error if self.error is None else self.error
        if any(number >= 0 for number in trial.rounds):
            self.inner = trial.inner

    @property
    def median(self) -> float:
        return min(statistics.median(self.raced or self.before), LONGEST_S)  # of two absurd samples it may be infinite


def details(verdicts: Sequence[Verdict], trials: Iterable[TrialLine], plans: Iterable[Plan]) -> Details:
    """An entry for each verdict, in order. `trials` may be of other problems too; a cache has none."""
    taken: dict[str, dict[str, _Taken]] = {}
    refused: dict[str, dict[str, Rejected]] = {}
    samples = count = 0
    for line in trials:
        trial = line.trial
        if isinstance(trial, Rejected):
            refused.setdefault(line.problem, {})[trial.tactic] = trial
        elif trial.samples:
            taken.setdefault(line.problem, {}).setdefault(trial.tactic, _Taken()).add(trial)
            samples, count = samples + len(trial.samples), count + 1
    found = Details()
    if samples > MAX_SAMPLES:
        found.thinned = max(MIN_SHOWN, MAX_SAMPLES // count)
    known = list(plans)
    for verdict in verdicts:
        rejected = {one.tactic: one for one in verdict.rejected} | refused.get(verdict.problem, {})
        entry = _entry(found, verdict, taken.get(verdict.problem, {}), list(rejected.values()))
        served = [plan.tactics[verdict.problem] for plan in known if verdict.problem in plan.tactics]
        entry["s"] = sorted({found.number(name) for name in served})
        found.problems.append(entry)
    return found


def _entry(
    found: Details, verdict: Verdict, taken: Mapping[str, _Taken], rejected: Sequence[Rejected]
) -> dict[str, Any]:
    """``t``: the tactics that were timed, the fastest first; ``r``: the rejected ones; ``f``: the frontier."""
    return {
        "t": [
            [
                found.number(name),
                _mark(name, verdict, one),
                _short(one.median),
                one.inner,
                one.bytes,
                _short(one.error) if one.error is not None and math.isfinite(one.error) else None,
                len(one.raced),
                len(one.before),
                _steps(one.raced, one.median, found.thinned),
                _steps(one.before, one.median, found.thinned),
            ]
            for name, one in sorted(taken.items(), key=lambda item: (not item[1].raced, item[1].median))
        ],
        "r": [[found.number(one.tactic), found.number(one.reason), found.number(one.detail)] for one in rejected],
        "f": [
            [found.number(m.tactic), _short(m.ratio), _short(m.low), _short(m.high), m.bytes, found.number(m.layout)]
            for m in verdict.frontier
        ],
    }


def _mark(name: str, verdict: Verdict, taken: _Taken) -> int:
    mark = "winner" if name == verdict.winner else "tied" if name in verdict.ties else "slower"
    return MARKS.index(mark if taken.raced or mark == "winner" else "did not race")


def _steps(samples: Sequence[float], median: float, limit: int) -> list[int]:
    """Each sample's distance from the median in steps; of more than `limit` (0: no limit) that many, evenly spaced."""
    if limit and len(samples) > limit:
        samples = [samples[i * len(samples) // limit] for i in range(limit)]
    return [round((min(sample / median, FARTHEST) - 1) / STEP) for sample in samples]


def _short(value: float) -> float:
    """Six digits are enough for a page."""
    return float(f"{value:.6g}")
