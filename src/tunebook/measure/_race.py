"""The race: rounds in which every surviving tactic is sampled once, in shuffled order, until the choice is worth making."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunebook.measure._candidate import Candidate, Clock, sample
from tunebook.measure._check import Finding, failure
from tunebook.stats import Matrix, block_inflation, centred_medians, expected_loss, medians_of, slower_evidence

#: An elimination shows that a tactic is more than this slower than another, as a log-ratio.
ELIMINATION_MARGIN = math.log(1.01)
#: The chance that a race wrongly eliminates a given tactic that is within the margin of every rival.
ALPHA = 0.05
#: All survivors lie within this of each other: nothing is left to find.
EQUIVALENCE = math.log(1.03)
#: Choosing now is expected to cost no more than this, as a log-ratio.
ACCEPTED_LOSS = 0.005
MIN_ROUNDS = 8
MAX_ROUNDS = 40
#: One that is left goes on against the default until an interval of their ratio exists at 95 %.
LAST_ROUNDS = 6
#: From `MIN_ROUNDS` on, whether to stop is looked at every so many rounds: the look itself costs milliseconds.
LOOK_EVERY = 2
#: Rounds depend on each other where blocks vary this much more than independent rounds would: bet on medians of four.
DEPENDENCE = 2.0
DEPENDENT_GROUP = 4


@dataclass
class Entry:
    """A tactic's samples so far: seconds a call, and the round of each."""

    candidate: Candidate
    samples: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    failed: Finding | None = None

    @property
    def name(self) -> str:
        return self.candidate.name


@dataclass(frozen=True)
class RaceResult:
    """How a race went: every entry with its samples, who survived, why it stopped, and what choosing now may cost."""

    entries: tuple[Entry, ...]
    survivors: tuple[Entry, ...]
    default: Entry
    rounds: int
    stopped: str
    loss: float


def race(
    candidates: Sequence[Candidate],
    default: str,
    clock: Clock,
    *,
    inner: int,
    rng: random.Random,
    max_rounds: int = MAX_ROUNDS,
    stop: Callable[[], bool] = lambda: False,
) -> RaceResult:
    """Race `candidates`; the one named `default` stays in every round.

    Ends when one is left, when all survivors are shown to be equal, when choosing now is expected to cost at most
    `ACCEPTED_LOSS`, after `max_rounds`, or after the first two rounds as soon as `stop()` says so. A tactic that raises
    leaves with its `failed` finding; what the default raises is the caller's.
    """
    entries = [Entry(candidate) for candidate in candidates]
    by_default = next(entry for entry in entries if entry.name == default)
    alive = list(entries)
    numbers = np.random.default_rng(rng.getrandbits(64))
    done, stopped, loss = 0, "rounds", 0.0
    while done < max_rounds:
        offset = done
        order = list(alive if by_default in alive else [*alive, by_default])
        rng.shuffle(order)
        for entry in order:
            try:
                seconds = sample(entry.candidate, clock, inner, offset)
            except Exception as error:
                if entry is by_default:
                    raise
                entry.failed = failure(error, "in the race")  # right on one layer's input, and not on another's
                continue
            entry.samples.append(seconds)
            entry.rounds.append(done)
        alive = [entry for entry in alive if entry.failed is None] or [by_default]
        done += 1
        if done < 2:
            continue
        if len(alive) > 1:
            alive = _eliminate(alive, len(entries))
        if len(alive) == 1 and done >= LAST_ROUNDS:
            stopped, loss = "one left", 0.0
            break
        if done >= MIN_ROUNDS and done % LOOK_EVERY == 0:
            loss = _loss(alive, numbers)
            if len(alive) > 1 and _equal(alive):
                stopped = "equal"
                break
            if loss <= ACCEPTED_LOSS:
                stopped = "loss"
                break
        if stop():
            stopped = "time"
            break
    if stopped in ("time", "rounds"):
        loss = _loss(alive, numbers)
    return RaceResult(tuple(entries), tuple(alive), by_default, done, stopped, loss)


def _loss(alive: Sequence[Entry], numbers: np.random.Generator) -> float:
    """What choosing the leader now is expected to cost, as a log-ratio."""
    if len(alive) == 1:
        return 0.0
    logs = _logs(alive)
    return expected_loss(logs, int(centred_medians(logs).argmin()), numbers)


def _eliminate(alive: list[Entry], offered: int) -> list[Entry]:
    """Who is shown to be slower than another survivor leaves; the evidence needed grows with the number offered."""
    needed = max(1, offered - 1) / ALPHA
    logs = _logs(alive)
    leader = int(centred_medians(logs).argmin())
    rivals = sorted(range(len(alive)), key=lambda i: float(np.median(logs[i])))[:3]
    kept = []
    for index, entry in enumerate(alive):
        if index != leader:
            evidence = max(_evidence(logs[index] - logs[rival]) for rival in {leader, *rivals} - {index})
            if evidence >= needed:
                continue
        kept.append(entry)
    return kept


def _evidence(ratios: Matrix) -> float:
    values = [float(value) for value in ratios]
    if block_inflation(values) > DEPENDENCE:
        values = medians_of(values, DEPENDENT_GROUP)
    return slower_evidence(values, ELIMINATION_MARGIN)


def _equal(alive: list[Entry]) -> bool:
    """Whether every pair of survivors is shown to lie within the equivalence margin, by both one-sided tests."""
    logs = _logs(alive)
    needed = 1 / ALPHA
    for i in range(len(alive)):
        for j in range(len(alive)):
            if i != j and slower_evidence([float(v) + EQUIVALENCE for v in logs[i] - logs[j]], 0.0) < needed:
                return False
    return True


def _logs(alive: Sequence[Entry]) -> Matrix:
    return np.asarray(np.log(np.array([entry.samples for entry in alive], dtype=float)))
