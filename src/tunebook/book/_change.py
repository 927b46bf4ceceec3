"""The change of one problem between two runs: the speed-up over each run's own default, with its interval and its p-value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunebook.book._restarts import FLOOR, Spread
from tunebook.book._source import Source
from tunebook.records import DEFAULT, Record, Verdict
from tunebook.stats import Variance, adjusted, interval_variance, median_interval, median_variance, t_quantile, t_tail

CONFIDENCE = 0.95
#: Of the problems that are called different, this share may be so by chance.
FALSE_DISCOVERIES = 0.05


class Choice(Record, frozen=True, kw_only=True, omit_defaults=False):
    """What one side says of a problem. `default_s` is what the default took there, in seconds a call."""

    winner: str
    status: str
    speedup: float
    low: float
    high: float
    default_s: float


class Change(Record, frozen=True, kw_only=True, omit_defaults=False):
    """What became of a problem from the first to the second side.

    `ratio` is the second speed-up over the default through the first one's (below 1: it is worth less), `low` to `high` its
    95 % interval; `p` is the chance of a change as large without a cause, and `q` the same adjusted for all the problems
    (Benjamini & Hochberg). `default_ratio` is the second default's time over the first one's, which is no part of the change;
    `default_changed` says that the default is another one, so that the speed-ups are over different things.
    """

    problem: str
    before: Choice
    after: Choice
    ratio: float
    low: float
    high: float
    p: float
    q: float
    default_ratio: float
    default_changed: bool

    @property
    def flipped(self) -> bool:
        return self.before.winner != self.after.winner

    @property
    def significant(self) -> bool:
        return self.q <= FALSE_DISCOVERIES


@dataclass(frozen=True, kw_only=True)
class Known:
    """An estimate: a log-ratio, and the variances that it is uncertain by."""

    value: float
    parts: tuple[Variance, ...] = ()

    def less(self, other: Known) -> Known:
        """The difference of two independent estimates."""
        return Known(value=self.value - other.value, parts=(*self.parts, *other.parts))

    @property
    def variance(self) -> Variance:
        """The sum of all, with the degrees of freedom of Satterthwaite ("An approximate distribution of estimates of variance
        components", Biometrics Bulletin 2(6), 1946)."""
        total = sum(part.value for part in self.parts)
        doubt = sum(part.value**2 / part.freedom for part in self.parts)
        return Variance(total, total * total / doubt if doubt > 0 else math.inf)

    def p(self) -> float:
        """The chance of a value as far from 0 without a cause."""
        value, freedom = self.variance
        if self.value == 0:
            return 1.0
        return 0.0 if value <= 0 else t_tail(self.value / math.sqrt(value), freedom)

    def bounds(self) -> tuple[float, float, float]:
        """The ratio, and the ends of its interval."""
        value, freedom = self.variance
        half = t_quantile(CONFIDENCE, freedom) * math.sqrt(value)
        return math.exp(self.value), math.exp(self.value - half), math.exp(self.value + half)


def change_of(problem: str, before: Source, after: Source, spread: Spread) -> Change:
    """The change of a problem that both sides have measured; `q` is not adjusted yet."""
    one, other = before.verdicts[problem], after.verdicts[problem]
    known = Known(value=0.0)
    if not _same(one, other):
        known = tuned(after, problem, spread).less(tuned(before, problem, spread))
    ratio, low, high = known.bounds()
    p = known.p()
    return Change(
        problem=problem,
        before=_choice(one),
        after=_choice(other),
        ratio=ratio,
        low=low,
        high=high,
        p=p,
        q=p,
        default_ratio=_default_s(other) / _default_s(one) if _default_s(one) > 0 else 1.0,
        default_changed=one.offered.get(DEFAULT.runner) != other.offered.get(DEFAULT.runner),
    )


def tuned(side: Source, problem: str, spread: Spread) -> Known:
    """The log speed-up of a side's winner over its default, with the variances within the run and between runs.

    The noise within the run is that of the verdict's interval, which rests on the paired rounds of the race. Where restarts
    tell how much it varies from run to run, that holds the noise within a run already; the greater of the two counts. Else
    the two are added, and the variance between runs is `FLOOR` squared.
    """
    verdict = side.verdicts[problem]
    within = Variance(0.0, math.inf)
    if verdict.winner != DEFAULT.name:
        within = _of_interval(verdict.low, verdict.high, verdict.rounds)
    return Known(value=math.log(verdict.speedup), parts=noise(within, spread.of(problem)))


def timed(side: Source, problem: str, tactic: str, spread: Spread) -> Known | None:
    """The same of any tactic that a side timed, the winner or not; None where it does not tell."""
    verdict = side.verdicts[problem]
    if tactic in (verdict.winner, DEFAULT.name):
        return tuned(side, problem, spread) if tactic == verdict.winner else None
    member = next((member for member in verdict.frontier if member.tactic == tactic), None)
    if member is not None:
        within = _of_interval(member.low, member.high, verdict.rounds)
        return Known(value=math.log(verdict.speedup / member.ratio), parts=noise(within, spread.of(problem)))
    slow, fast = side.paired(problem, DEFAULT.name, tactic)
    found = median_variance(slow, fast)
    if found is None:
        return None
    logs = [math.log(one / other) for one, other in zip(slow, fast, strict=True)]
    return Known(value=median_interval(logs).value, parts=noise(found, spread.of(problem)))


def noise(within: Variance, between: Variance | None) -> tuple[Variance, ...]:
    """The variances of one run's estimate."""
    if between is None:
        return within, Variance(FLOOR * FLOOR, math.inf)
    return (max(within, between),)


def _of_interval(low: float, high: float, rounds: int) -> Variance:
    """The noise within a run by an interval. One that tells no rounds counts as of six, the fewest that give an interval."""
    found = interval_variance(low, high, rounds if rounds > 1 else 6)
    assert found is not None
    return found


def _same(one: Verdict, other: Verdict) -> bool:
    """Whether two verdicts are one: a cache's, and the run's that it comes from. Or both keep the default."""
    keeps = one.winner == other.winner == DEFAULT.name
    return keeps or (bool(one.run) and (one.run, one.winner, one.speedup) == (other.run, other.winner, other.speedup))


def _default_s(verdict: Verdict) -> float:
    return verdict.seconds * verdict.speedup


def _choice(verdict: Verdict) -> Choice:
    return Choice(
        winner=verdict.winner,
        status=verdict.status,
        speedup=verdict.speedup,
        low=verdict.low,
        high=verdict.high,
        default_s=_default_s(verdict),
    )


def with_rates(changes: Sequence[Change]) -> tuple[Change, ...]:
    """The changes with `q` adjusted for their number; those that are surest first."""
    from msgspec.structs import replace

    rates = adjusted([change.p for change in changes])
    found = [replace(change, q=q) for change, q in zip(changes, rates, strict=True)]
    return tuple(sorted(found, key=lambda c: (c.q, c.p, -abs(math.log(c.ratio)), c.problem)))
