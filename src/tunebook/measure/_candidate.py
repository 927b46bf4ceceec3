"""What the measurement knows of a tactic: a name, its bytes, a call for each replica, and how its caches are made cold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

#: A sample with a flush makes at most this many turns round the replicas: a flush costs more than most calls.
MAX_FLUSHES = 8


#: Seconds that a device takes for calls, one after the other, and not for what is called before them.
Timed = Callable[[Sequence[Callable[[], Any]], Callable[[], Any] | None], float]


class Clock(Protocol):
    """A device's clock: seconds, and waiting for what was started."""

    def clock(self) -> float: ...

    def synchronize(self) -> None: ...


class Candidate(Protocol):
    """A tactic in a race. `calls` runs it once on each replica: the weights and the live input of one layer."""

    @property
    def name(self) -> str: ...

    @property
    def bytes(self) -> int:
        """What its prepared weights take for one module."""

    @property
    def calls(self) -> Sequence[Callable[[], Any]]: ...

    @property
    def flush(self) -> Callable[[], None] | None:
        """Makes the weights cold, and the inputs warm, for one call of each replica; None where the replicas are so many that
        each finds its weights cold anyway. The same work for every tactic of a race."""


def sample(candidate: Candidate, clock: Clock, inner: int, offset: int) -> float:
    """Seconds a call over `inner` calls, going round the replicas from `offset` on.

    Without a flush all calls are timed at once. With one they are timed turn by turn: in a turn each replica is called at
    most once, so that each meets cold weights, and the flush before it is not timed. The result is the mean over all calls.
    A candidate that has `timed` is timed by that, as a device's own events do it.
    """
    calls = candidate.calls
    count = len(calls)
    timed: Timed | None = getattr(candidate, "timed", None)
    order = [calls[(offset + i) % count] for i in range(inner)]
    flush = candidate.flush
    turn = inner if flush is None else count
    seconds = 0.0
    for first in range(0, inner, turn):
        if timed is not None:
            seconds += timed(order[first : first + turn], flush)
            continue
        if flush is not None:
            flush()
        clock.synchronize()
        start = clock.clock()
        for call in order[first : first + turn]:
            call()
        clock.synchronize()
        seconds += clock.clock() - start
    return seconds / inner


def most_calls(candidate: Candidate, wanted: int) -> int:
    """How many calls a sample may make, of those that its length asks for: a whole number of turns where flushes limit it."""
    return wanted if candidate.flush is None else min(wanted, MAX_FLUSHES * len(candidate.calls))
