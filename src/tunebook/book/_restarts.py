"""How much restarts of the same code differ: the variance between runs, from the run files that lie beside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunebook.book._code import lasting
from tunebook.book._heads import Head, read_head
from tunebook.book._source import Source
from tunebook.records import Header, Record, Verdict
from tunebook.stats import Prior, Variance, common_variance

#: From so many runs of the same code on, the variance between them is estimated.
LEAST_RESTARTS = 5
#: No more restarts than this are read, the newest: they tell enough.
MOST_RESTARTS = 20
#: The standard deviation of a speed-up between restarts where there are too few to tell, as a log-ratio.
FLOOR = 0.03


class Between(Record, frozen=True, kw_only=True, omit_defaults=False):
    """The variation of speed-ups between restarts of the same code.

    `deviation` is the typical standard deviation, as a log-ratio, and `restarts` the number of runs that it was estimated
    from, the compared ones included; with none it is `FLOOR`, a convention.
    """

    deviation: float = FLOOR
    restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class Spread:
    """`between` in short; `own` are the estimates by problem, `prior` what they have in common, `groups` the restarts."""

    between: Between
    own: Mapping[str, Variance]
    prior: Prior | None = None
    groups: tuple[Group, ...] = ()

    def of(self, problem: str) -> Variance | None:
        """The variance of one run's log speed-up on a problem, noise within the run included; None: not known."""
        if self.prior is None:
            return None
        return self.prior.moderate(self.own.get(problem, Variance(0.0, 0.0)))

    def mean(self, side: Source, problem: str) -> tuple[float, Variance] | None:
        """The mean log speed-up over the restarts of a side, itself included, and its variance; None with too few restarts."""
        between = self.of(problem)
        for group in self.groups:
            if between is not None and any(side.verdicts is mine for mine in group.sides):
                values = [math.log(verdict.speedup) for verdict in group.alike(problem, side.verdicts).values()]
                if len(values) >= LEAST_RESTARTS:
                    return float(np.mean(values)), Variance(between.value / len(values), between.freedom)
        return None


def spread_between(sides: Sequence[Source]) -> Spread:
    """What the restarts of either side tell, pooled.

    Restarts are the runs beside a side's own that are of the same code: same model, hard environment and versions, note and
    commit; of those the verdicts on problems for which the same runners were offered in the same versions.
    """
    groups = tuple(_groups(sides))
    squares: dict[str, Variance] = {}
    counted: set[int] = set()
    for group in groups:
        for problem in dict.fromkeys(key for verdicts in group.sides for key in verdicts):
            seen: set[int] = set()
            for side in group.sides:
                alike = group.alike(problem, side)
                if (
                    seen & alike.keys() or len(alike) < LEAST_RESTARTS
                ):  # both sides have the same restarts: once is enough
                    continue
                seen |= alike.keys()
                values = np.log([verdict.speedup for verdict in alike.values()])
                before = squares.get(problem, Variance(0.0, 0.0))
                sum_of = float(np.square(values - values.mean()).sum())
                squares[problem] = Variance(before.value + sum_of, before.freedom + len(values) - 1)
            counted |= seen
    own = {problem: Variance(one.value / one.freedom, one.freedom) for problem, one in squares.items()}
    prior = common_variance(list(own.values()))
    if prior is None:
        return Spread(between=Between(), own={})
    between = Between(deviation=math.sqrt(prior.value), restarts=len(counted))
    return Spread(between=between, own=own, prior=prior, groups=groups)


@dataclass(frozen=True)
class Group:
    """Runs of one code: the verdicts of the compared ones, and of all."""

    sides: Sequence[Mapping[str, Verdict]]
    runs: Sequence[Mapping[str, Verdict]]

    def alike(self, problem: str, side: Mapping[str, Verdict]) -> dict[int, Verdict]:
        """The verdicts on a problem of all runs that had the same to offer there as a side; empty where it did not measure it."""
        mine = side.get(problem)
        if mine is None or not measured(mine):
            return {}
        found = {id(run): verdict for run in self.runs if (verdict := run.get(problem)) is not None}
        return {run: v for run, v in found.items() if measured(v) and v.offered == mine.offered}


def _groups(sides: Sequence[Source]) -> list[Group]:
    """A group for each code among the sides, of those that have enough restarts. A cache has verdicts of several runs: none."""
    folders = dict.fromkeys(side.path.resolve().parent for side in sides if side.header is not None)
    heads = [head for folder in folders for head in _heads(folder)]
    own = {side.path.resolve(): side for side in sides if side.header is not None}
    groups = []
    for code in _distinct([code_of(side.header) for side in own.values() if side.header is not None]):
        mine = [side.verdicts for side in own.values() if side.header is not None and code_of(side.header) == code]
        others = [h for h in heads if h.path.resolve() not in own and code_of(h.header) == code]
        others = others[: MOST_RESTARTS - len(mine)]
        if len(mine) + len(others) >= LEAST_RESTARTS:
            groups.append(Group(mine, [*mine, *(head.verdicts() for head in others)]))
    return groups


def _heads(folder: Path) -> list[Head]:
    found = [head for file in sorted(folder.glob("*.jsonl")) if (head := read_head(file)) is not None]
    return sorted(found, key=lambda head: head.order, reverse=True)


def _distinct(codes: Sequence[tuple[object, ...]]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for code in codes:
        if code not in found:
            found.append(code)
    return found


def code_of(header: Header) -> tuple[object, ...]:
    """What two headers have in common when their runs are restarts of the same code."""
    soft = sorted(lasting(header.environment).items())
    return (header.model, header.environment.digest, soft, header.note, header.commit, header.version)


def measured(verdict: Verdict) -> bool:
    """Whether a verdict rests on measurements: what the budget left out does not."""
    return not verdict.note.startswith("left out")
