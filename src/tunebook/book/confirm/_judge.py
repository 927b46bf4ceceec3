"""What a race says of a difference between two runs, together with what the runs recorded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from tunebook.book._change import FALSE_DISCOVERIES, Change, Known, noise, tuned
from tunebook.book._code import Code
from tunebook.book._restarts import Spread
from tunebook.book._source import Source
from tunebook.records import DEFAULT, Record
from tunebook.stats import Variance, adjusted, median_interval, median_variance
from tunebook.tuner import Duel

#: Choices that are this close are as good as each other, as a log-ratio.
TIE = math.log(1.01)
#: Answers whose p-values are below this are equally sure.
NEGLIGIBLE = 1e-6
#: A change is shown to be none where its whole interval is within this, as a log-ratio.
SAME = math.log(1.03)


class Confirmation(Record, frozen=True, kw_only=True, omit_defaults=False):
    """What a race says of a problem.

    `outcome` is "different", "same", "not settled" or "not raced". `ratio` with its 95 % interval is what the second side's
    choice is worth over the first one's: how many times as fast it is, in the race (`by` is "race"); or, where the code of
    the tactics has changed, how many times the speed-up over the default (`by` is "records and race"). `today` are the
    speed-ups over the default in this race, as (value, low, high); `detail` says in words what was found.
    """

    problem: str
    outcome: str
    detail: str
    tactic: str = ""
    by: str = ""
    ratio: float = 1.0
    low: float = 1.0
    high: float = 1.0
    p: float = 1.0
    q: float = 1.0
    rounds: int = 0
    today: dict[str, tuple[float, float, float]] = msgspec.field(default_factory=dict)


def judge(change: Change, raced: Duel, before: Source, after: Source, spread: Spread, here: Code) -> Confirmation:
    """The confirmation of one problem, its `outcome` empty where that depends on the others (see `together`).

    Two choices are raced, whichever code is here. Where only one side's code is, the records are looked at as well: the
    choice may be the same and no longer what it was. The surest answer counts, its p-value times their number.
    """
    one, other = choices = (change.before.winner, change.after.winner)
    speedups = {name: _today(raced, name) for name in choices if name in raced.samples}
    blank = Confirmation(
        problem=change.problem,
        outcome="not settled",
        detail="",
        rounds=len(raced.samples[DEFAULT.name]),
        today={name: _interval(raced, name) for name in speedups if name != DEFAULT.name},
    )
    broken = [name for name, finding in raced.refused.items() if finding.reason != "unavailable"]
    if broken:
        detail = "; ".join(
            f"{n} is rejected now ({raced.refused[n].reason}: {raced.refused[n].detail})" for n in broken
        )
        return replace(blank, outcome="different", detail=detail, tactic=broken[0], by="race", p=0.0)
    of_before = Code.of(before, change.problem).same(here, (one,))
    of_after = Code.of(after, change.problem).same(here, (other,))
    if of_before and of_after and one == other:
        detail = "one tactic in one version on both sides: the records differ by noise"
        return replace(blank, outcome="same", detail=detail, tactic=one)
    answers = [_of_race(change, raced)] if one != other and len(speedups) == len(choices) else []
    if of_before != of_after:
        new, old, chosen = (after, before, other) if of_after else (before, after, one)
        if chosen in speedups:
            found = _of_records(change.problem, speedups[chosen], chosen, new, old, spread)
            answers.append(found if of_after else found.turned())
    if not answers:
        why = "one of the two is not offered now" if len(speedups) < len(set(choices)) else "its code is not here now"
        return replace(blank, detail=f"nothing can be raced: {why}")
    surest = min(answers, key=lambda answer: max(answer.p, NEGLIGIBLE))  # the race stands first
    ratio, low, high = surest.known.bounds()
    p = min(1.0, len(answers) * surest.p)
    told = replace(blank, outcome="", tactic=surest.tactic, by=surest.by, detail=surest.detail)
    return replace(told, ratio=ratio, low=low, high=high, p=p)


def together(judged: Sequence[Confirmation], problems: int) -> tuple[Confirmation, ...]:
    """The outcomes, with `q` adjusted among all problems: those that were not raced count as tests without a result."""
    rest = [1.0] * max(0, problems - len(judged))
    rates = adjusted([*(one.p for one in judged), *rest])
    found = []
    for one, q in zip(judged, rates, strict=False):
        outcome = one.outcome
        if not outcome:
            within = max(abs(math.log(one.low)), abs(math.log(one.high))) <= SAME
            outcome = "different" if q <= FALSE_DISCOVERIES else "same" if within else "not settled"
        found.append(replace(one, q=q, outcome=outcome))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """One way to look at the difference: the second side over the first, and the chance of as much without a cause."""

    tactic: str
    by: str
    known: Known
    p: float
    detail: str

    def turned(self) -> _Answer:
        """The same with the sides exchanged."""
        return dataclasses.replace(self, known=Known(value=-self.known.value, parts=self.known.parts))


def _of_race(change: Change, raced: Duel) -> _Answer:
    """Which choice is faster now, and by more than a tie. Noise between runs has no part in it."""
    one, other = change.before.winner, change.after.winner
    slow, fast = raced.samples[one], raced.samples[other]
    known = Known(value=median_interval(_logs(slow, fast)).value, parts=_within(slow, fast))
    beyond = Known(value=max(0.0, abs(known.value) - TIE), parts=known.parts)
    detail = f"{other} is {math.exp(known.value):.3f} times as fast as {one}, raced now"
    return _Answer(tactic=other, by="race", known=known, p=beyond.p(), detail=detail)


def _of_records(key: str, today: Known, chosen: str, new: Source, old: Source, spread: Spread) -> _Answer:
    """The code of `old` is gone: what its choice was worth, over the default, against what that of `new` is.

    The record of `new` says it, and the race of now must say so too: the less sure of both counts. For a record is of a
    tactic that was chosen for being fast in that very run, as the other record is, and the race is not. A record is that of
    all restarts of its code, where there are enough.
    """
    record, newer = _record(old, key, spread), _record(new, key, spread)
    told = [newer.less(record), _with(today, spread, key).less(record)]
    known = max(told, key=Known.p)
    agreed = told[0].value * told[1].value > 0
    detail = (
        f"{chosen} has {math.exp(told[0].value):.3f} times the speed-up over the default that the other side recorded, "
        f"{math.exp(told[1].value):.3f} times by the race of now"
    )
    return _Answer(tactic=chosen, by="records and race", known=known, p=known.p() if agreed else 1.0, detail=detail)


def _today(raced: Duel, name: str) -> Known:
    """A tactic's log speed-up in the race, with the noise within it."""
    if name == DEFAULT.name:
        return Known(value=0.0)
    slow, fast = raced.samples[DEFAULT.name], raced.samples[name]
    return Known(value=median_interval(_logs(slow, fast)).value, parts=_within(slow, fast))


def _interval(raced: Duel, name: str) -> tuple[float, float, float]:
    """A tactic's speed-up over the default in the race."""
    value, low, high = median_interval(_logs(raced.samples[DEFAULT.name], raced.samples[name]))
    return math.exp(value), math.exp(low), math.exp(high)


def _with(known: Known, spread: Spread, problem: str) -> Known:
    """The race of now as one run more: with the variance between runs."""
    if not known.parts:
        return known
    return Known(value=known.value, parts=noise(known.parts[0], spread.of(problem)))


def _record(side: Source, problem: str, spread: Spread) -> Known:
    """What a side's choice is worth by its restarts, else by itself."""
    mean = spread.mean(side, problem)
    return tuned(side, problem, spread) if mean is None else Known(value=mean[0], parts=(mean[1],))


def _within(slow: Sequence[float], fast: Sequence[float]) -> tuple[Variance, ...]:
    found = median_variance(slow, fast)
    assert found is not None  # a duel has rounds enough
    return (found,)


def _logs(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    return [math.log(one / other) for one, other in zip(slow, fast, strict=True)]
