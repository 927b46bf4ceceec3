"""Trials and what follows from them: a timed or rejected tactic, the frontier, the verdict on a problem."""

from __future__ import annotations

import math
from typing import Literal, get_args

from tunebook.records._base import Record, check_seconds
from tunebook.records.problem import Problem
from tunebook.records.tactic import Tactic

#: Why a tactic was not timed. The first five are the classes of Kernel Tuner's T4 format; there a crash is a failure at run
#: time, and a refusal for memory a constraint.
Reason = Literal["compile", "runtime", "timeout", "correctness", "constraints", "memory", "unavailable", "crash"]
Status = Literal["proven", "likely", "unresolved"]


class Timed(Record, frozen=True, kw_only=True, tag="timed"):
    """A tactic that ran: every sample, in seconds a call, with the round in which it was taken."""

    tactic: str
    samples: tuple[float, ...]
    rounds: tuple[int, ...]
    inner: int = 1
    bytes: int = 0
    error: float | None = None

    def __post_init__(self) -> None:
        Tactic.parse(self.tactic)
        if len(self.samples) != len(self.rounds):
            raise ValueError(f"{self.tactic}: {len(self.samples)} samples of {len(self.rounds)} rounds")
        for seconds in self.samples:
            if not 0 < seconds < math.inf:
                raise ValueError(f"{self.tactic}: a sample is not a positive, finite number of seconds")


class Rejected(Record, frozen=True, kw_only=True, tag="rejected"):
    """A tactic that did not run, or not rightly. Data, not an exception.

    `ran`: it was run, or its weights were being prepared. `harm`: its process ended by it, had to be ended, or ran out of
    memory. Such rejections are remembered; one on an estimate is made anew.
    """

    tactic: str
    reason: Reason
    detail: str = ""
    ran: bool = False
    harm: bool = False

    def __post_init__(self) -> None:
        Tactic.parse(self.tactic)

    @property
    def t4(self) -> str:
        """The reason in the classes of the T4 format."""
        if self.reason == "crash":
            return "runtime"
        return self.reason if self.reason in get_args(Reason)[:5] else "constraints"


class Offered(Record, frozen=True, kw_only=True):
    """What a runner offered when the verdict was reached: its version and the digest of its tactic space."""

    version: str
    space: str


class Member(Record, frozen=True, kw_only=True):
    """A member of the frontier: the best tactic of one runner and weight layout.

    `ratio` is its time over the winner's, from paired rounds, with its 95 % interval; `bytes` is what its prepared weights
    take for one module; `layout` is empty where the model's own weights serve.
    """

    tactic: str
    ratio: float
    low: float
    high: float
    bytes: int = 0
    layout: str = ""

    def __post_init__(self) -> None:
        Tactic.parse(self.tactic)
        if not 0 < self.low <= self.ratio <= self.high < math.inf:
            raise ValueError(f"{self.tactic}: ratio {self.ratio} is not inside its interval [{self.low}, {self.high}]")
        if self.bytes < 0:
            raise ValueError(f"{self.tactic}: {self.bytes} bytes")


class Verdict(Record, frozen=True, kw_only=True):
    """What is known about a problem.

    `speedup` is the default's time over the winner's, from paired rounds, with its 95 % interval; `seconds` is the
    winner's median a call; `frontier` begins with the winner; `ties` are the survivors within the tie margin of the
    leader; `measured` is what reaching the verdict cost, in seconds. `loss` is what choosing this winner is expected to
    cost against the best, as a log-ratio; `space` tactics fit the problem, and `seen` of them were tried.
    """

    problem: str
    winner: str
    status: Status
    speedup: float
    low: float
    high: float
    seconds: float
    frontier: tuple[Member, ...]
    offered: dict[str, Offered]
    ties: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    run: str = ""
    rounds: int = 0
    measured: float = 0.0
    note: str = ""
    loss: float = 0.0
    space: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        Problem.parse(self.problem)
        runner = Tactic.parse(self.winner).runner
        if not 0 < self.low <= self.speedup <= self.high < math.inf:
            raise ValueError(
                f"{self.problem}: speed-up {self.speedup} is not inside its interval [{self.low}, {self.high}]"
            )
        if not self.frontier or self.frontier[0].tactic != self.winner:
            raise ValueError(f"{self.problem}: the frontier does not begin with the winner {self.winner}")
        if runner not in self.offered:
            raise ValueError(f"{self.problem}: the winner's runner {runner} is not among the offered ones")
        check_seconds(self.problem, self.seconds)
        check_seconds(self.problem, self.measured)
        if not 0 <= self.loss < math.inf:
            raise ValueError(f"{self.problem}: expected loss {self.loss} is not a finite log-ratio of at least 0")
        if not 0 <= self.seen <= self.space:
            raise ValueError(f"{self.problem}: {self.seen} tactics seen of {self.space}")
