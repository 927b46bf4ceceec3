"""The choice: the leader by the robust fit, ties within 1 % settled by a fixed preference, what was shown, the frontier."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunebook.measure._evidence import shown
from tunebook.measure._race import ACCEPTED_LOSS
from tunebook.measure._result import Entry, RaceResult, log_times
from tunebook.records import Member, Status
from tunebook.stats import Interval, ratio_interval, two_way

#: A survivor within this of the leader is a tie. Not eliminated is not tied.
TIE_MARGIN = math.log(1.01)


@dataclass(frozen=True)
class Choice:
    """The winner, how sure that is, its speed-up over the default, the tie set and the frontier (winner first).

    `status` says what was shown: *proven*, that every other tactic is either shown to be slower (eliminated) or shown not to
    be more than `EQUIVALENCE` faster than the winner, and that none was passed over; *likely*, that choosing the leader is
    expected to cost at most `ACCEPTED_LOSS`, and the winner is the leader or a tie with it; *unresolved*, neither. `loss` is
    what choosing the winner is expected to cost, as a log-ratio.
    """

    winner: str
    status: Status
    speedup: Interval
    seconds: float
    ties: tuple[str, ...]
    frontier: tuple[Member, ...]
    loss: float


def choose(
    result: RaceResult,
    group_of: Callable[[str], tuple[str, str]],
    incumbent: str | None = None,
    screened: Sequence[Entry] = (),
) -> Choice:
    """Settle a race. `screened` are tactics that did not enter it: they count for the frontier only.

    `group_of(tactic)` is its (runner, layout): the frontier keeps the best of each. Among ties the incumbent is preferred,
    then the default, then the least memory, then the name's order, so that two tunings agree.
    """
    alive = list(result.survivors)
    logs = log_times(alive)
    fit = two_way(logs)
    tied = [i for i, effect in enumerate(fit.effects) if effect - fit.effects.min() <= TIE_MARGIN]

    def preference(index: int) -> tuple[bool, bool, int, str]:
        entry = alive[index]
        return (entry.name != incumbent, entry is not result.default, entry.candidate.bytes, entry.name)

    first = min(tied, key=preference)
    winner, loss = alive[first], result.losses[first]
    if not result.passed_over and shown(logs, fit, first, len(result.entries)):
        status: Status = "proven"
    else:
        status = "likely" if result.loss <= ACCEPTED_LOSS else "unresolved"
    return Choice(
        winner=winner.name,
        status=status,
        speedup=_paired(result.default, winner),
        seconds=float(np.median(winner.samples)),
        ties=tuple(sorted(alive[i].name for i in tied if i != first)),
        frontier=_frontier([*result.entries, *screened], winner, group_of),
        loss=loss,
    )


def _paired(slow: Entry, fast: Entry) -> Interval:
    """The ratio of two entries over the rounds that both ran; of their medians where they share none."""
    if slow is fast:
        return Interval(1.0, 1.0, 1.0)
    mine, theirs = dict(zip(slow.rounds, slow.samples, strict=True)), dict(zip(fast.rounds, fast.samples, strict=True))
    shared = sorted(set(mine) & set(theirs))
    if not shared:
        ratio = float(np.median(slow.samples) / np.median(fast.samples))
        return Interval(ratio, ratio / 2, ratio * 2)
    return ratio_interval([mine[r] for r in shared], [theirs[r] for r in shared])


def _frontier(
    entries: Sequence[Entry], winner: Entry, group_of: Callable[[str], tuple[str, str]]
) -> tuple[Member, ...]:
    best: dict[tuple[str, str], tuple[float, Entry]] = {}
    for entry in entries:
        if entry.failed is not None or not entry.samples:
            continue
        ratio = 0.0 if entry is winner else _paired(entry, winner).value
        group = group_of(entry.name)
        if group not in best or ratio < best[group][0]:
            best[group] = (ratio, entry)
    ordered = sorted(best.items(), key=lambda item: (item[1][0], item[1][1].name))
    return tuple(_member(entry, winner, layout) for (_, layout), (_, entry) in ordered)


def _member(entry: Entry, winner: Entry, layout: str) -> Member:
    ratio = _paired(entry, winner)
    return Member(
        tactic=entry.name, ratio=ratio.value, low=ratio.low, high=ratio.high, bytes=entry.candidate.bytes, layout=layout
    )


def rescale(members: Mapping[str, Member], factor: float) -> tuple[Member, ...]:
    """Members of an older frontier against a new winner that is `factor` times as fast as the older one."""
    return tuple(
        Member(
            tactic=m.tactic,
            ratio=m.ratio * factor,
            low=m.low * factor,
            high=m.high * factor,
            bytes=m.bytes,
            layout=m.layout,
        )
        for m in members.values()
    )
