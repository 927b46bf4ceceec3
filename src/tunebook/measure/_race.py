"""The race: rounds in which every surviving tactic is sampled once, in shuffled order, until the choice is worth making."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from tunebook.measure._candidate import Candidate, Clock, sample
from tunebook.measure._check import Finding, failure
from tunebook.measure._evidence import in_reach, kept, shown
from tunebook.measure._result import Entry, RaceResult, log_times
from tunebook.stats import expected_losses, two_way

#: Choosing now is expected to cost no more than this, as a log-ratio.
ACCEPTED_LOSS = 0.005
MIN_ROUNDS = 8
MAX_ROUNDS = 40
#: One that is left goes on against the default until an interval of their ratio exists at 95 %.
LAST_ROUNDS = 6
#: From `MIN_ROUNDS` on, samples are looked at every so many rounds.
LOOK_EVERY = 2
#: They are not looked at again before so many times the seconds that the last look took: of calls of some microseconds a
#: look takes as long as many rounds.
LOOK_WORTH = 8
#: Of so many or fewer, nobody is passed over.
PRELIMINARY_FROM = 3


class Watch(Protocol):
    """Is told what a race does, as it happens; between samples, so that it takes none of their time."""

    def started(self, entries: Sequence[Entry], survivors: Sequence[Entry]) -> None:
        """It begins, or goes on: everybody in it, and who takes part in its rounds."""

    def turn(self, entry: Entry) -> None:
        """One was sampled, or failed."""

    def out(self, entries: Sequence[Entry]) -> None:
        """These were eliminated."""


class ConductError(Exception):
    """A candidate failed on one of several processes; `finding` says where, and how."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.detail)
        self.finding = finding


class Conduct(Protocol):
    """Takes the place of this process where several race in lock-step: one of them decides, and all are told."""

    def sample(self, candidate: Candidate, inner: int, offset: int) -> float:
        """Seconds a call. Raises ConductError on all of them where a candidate that is not the default fails on one."""

    def decided(self, left: Sequence[str], stopped: str | None) -> tuple[Sequence[str], str | None]:
        """After a round: the names of those that stay, and why the race ends, if it does."""


def race(
    candidates: Sequence[Candidate],
    default: str,
    clock: Clock,
    *,
    inner: int,
    rng: random.Random,
    max_rounds: int = MAX_ROUNDS,
    accepted_loss: float = ACCEPTED_LOSS,
    stop: Callable[[], bool] = lambda: False,
    earlier: RaceResult | None = None,
    watch: Watch | None = None,
    conduct: Conduct | None = None,
    preliminary: int = 0,
) -> RaceResult:
    """Race `candidates`; the one named `default` stays in every round.

    Ends when one is left, when the leader is shown to be the choice, when choosing now is expected to cost at most
    `accepted_loss`, after `max_rounds`, or after the first two rounds as soon as `stop()` says so. A tactic that raises
    leaves with its `failed` finding; what the default raises is the caller's, and so is an error that spoilt the device.

    preliminary: after so many rounds those that are out of the leader's reach by then are passed over, though nothing is shown of
    them: most calls of a race would else go to tactics that nobody would choose, until that is shown. The default stays.

    With `earlier`, that race goes on: its samples and rounds count (in `max_rounds` too), and who was eliminated or failed
    stays out and is not called. Candidates of all its entries' names are given, and no others: else ValueError. Its last
    round may have been cut short: who has a sample of it is not called again in it.
    """
    entries = (
        [Entry(candidate) for candidate in candidates] if earlier is None else _again(candidates, default, earlier)
    )
    by_default = next(entry for entry in entries if entry.name == default)
    left = {entry.name for entry in (entries if earlier is None else earlier.survivors)}
    alive = [entry for entry in entries if entry.name in left]
    done = 0 if earlier is None else earlier.rounds
    numbers = np.random.default_rng(rng.getrandbits(64))
    stopped = "rounds"
    losses: tuple[float, ...] = ()
    passed_over: tuple[str, ...] = ()
    looked, cost = clock.clock(), 0.0
    if watch is not None:
        watch.started(entries, alive)
    while done < max_rounds:
        order = list(alive if by_default in alive else [*alive, by_default])
        rng.shuffle(order)
        for entry in order:
            if entry.rounds and entry.rounds[-1] >= done:
                continue
            seconds = _sample(entry, by_default, clock, inner, done * inner, conduct)  # on to layers not met lately
            if seconds is not None:
                entry.samples.append(seconds)
                entry.rounds.append(done)
            if watch is not None:
                watch.turn(entry)
            if entry.failed is not None:
                clock.synchronize()  # raises where the failure spoilt the device: those after it are not to blame
        alive = [entry for entry in alive if entry.failed is None] or [by_default]
        done += 1
        if done < 2:
            continue
        before = alive
        why: str | None = None
        if len(alive) > 1 and (done <= MIN_ROUNDS or done % LOOK_EVERY == 0):
            begun = clock.clock()
            if begun - looked >= LOOK_WORTH * cost:
                alive, why, losses = _look(alive, len(entries), done, numbers, accepted_loss)
                looked = clock.clock()
                cost = looked - begun
        if done == preliminary and len(alive) > PRELIMINARY_FROM:
            near = in_reach(two_way(log_times(alive)))
            behind = [e for row, e in enumerate(alive) if row not in near and e is not by_default]
            passed_over = tuple(entry.name for entry in behind)
            alive = [entry for entry in alive if entry.name not in passed_over]
        if why is None and len(alive) == 1 and done >= LAST_ROUNDS:
            why = "one left"
        if why is None and stop():
            why = "time"
        if conduct is not None:
            names, why = conduct.decided([entry.name for entry in alive], why)
            alive = [entry for entry in before if entry.name in names]
        if watch is not None and len(alive) < len(before):
            left = {entry.name for entry in alive}
            watch.out([entry for entry in before if entry.name not in left])
        if why is not None:
            stopped = why
            break
    if stopped not in ("loss", "shown") or len(losses) != len(alive):
        losses = _losses(alive, numbers)
    return RaceResult(tuple(entries), tuple(alive), by_default, done, stopped, min(losses), losses, passed_over)


def _sample(
    entry: Entry, by_default: Entry, clock: Clock, inner: int, offset: int, conduct: Conduct | None
) -> float | None:
    """Seconds a call, or None for a tactic that failed: it may be right on one layer's input, and not on another's."""
    if conduct is not None:
        try:
            return conduct.sample(entry.candidate, inner, offset)
        except ConductError as error:
            entry.failed = error.finding
            return None
    try:
        return sample(entry.candidate, clock, inner, offset)
    except Exception as error:
        if entry is by_default:
            raise
        entry.failed = failure(error, "in the race")
        return None


def _again(candidates: Sequence[Candidate], default: str, earlier: RaceResult) -> list[Entry]:
    """New entries with the earlier samples, in the order of the candidates."""
    former = {entry.name: entry for entry in earlier.entries}
    names = [candidate.name for candidate in candidates]
    if sorted(names) != sorted(former) or earlier.default.name != default:
        raise ValueError(f"an earlier race of {sorted(former)} cannot go on with {sorted(names)} and default {default}")
    return [
        Entry(candidate, list(entry.samples), list(entry.rounds), entry.failed)
        for candidate in candidates
        for entry in (former[candidate.name],)
    ]


def _look(
    alive: list[Entry], offered: int, done: int, numbers: np.random.Generator, accepted_loss: float
) -> tuple[list[Entry], str | None, tuple[float, ...]]:
    """Who stays, why the race may end here, if it may, and what choosing each that stays is expected to cost."""
    logs = log_times(alive)
    fit = two_way(logs)
    stay = kept(logs, fit, offered)
    left = [alive[i] for i in stay]
    if len(left) == 1 or done < MIN_ROUNDS:
        return left, None, ()
    losses = tuple(expected_losses(fit, numbers)[stay].tolist())
    if min(losses) <= accepted_loss:
        return left, "loss", losses
    if len(left) < len(alive):
        logs, fit = logs[stay], two_way(logs[stay])
    return left, "shown" if shown(logs, fit, fit.leader, offered) else None, losses


def _losses(alive: Sequence[Entry], numbers: np.random.Generator) -> tuple[float, ...]:
    return (0.0,) if len(alive) == 1 else tuple(expected_losses(two_way(log_times(alive)), numbers).tolist())
