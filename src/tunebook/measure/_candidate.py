"""What the measurement knows of a tactic: a name, its bytes, and a call for each replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


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


def sample(candidate: Candidate, clock: Clock, inner: int, offset: int) -> float:
    """Seconds a call over `inner` calls, going round the replicas from `offset` on."""
    calls = candidate.calls
    count = len(calls)
    order = [calls[(offset + i) % count] for i in range(inner)]
    clock.synchronize()
    start = clock.clock()
    for call in order:
        call()
    clock.synchronize()
    return (clock.clock() - start) / inner
