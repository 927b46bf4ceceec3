"""What the files hold: the cache document, and the lines of a run file."""

from __future__ import annotations

import math
from typing import Final

from tunebook.records._base import SCHEMA, Record, check_count, check_seconds
from tunebook.records.environment import Environment
from tunebook.records.mix import Mix
from tunebook.records.plan import Plan
from tunebook.records.problem import Problem
from tunebook.records.tactic import DEFAULT, Tactic
from tunebook.records.verdict import Offered, Rejected, Timed, Verdict

#: The most calls of one sample: no call is so short that more would be needed.
MAX_INNER: Final = 1 << 24


class CacheDocument(Record, frozen=True, kw_only=True, omit_defaults=False):
    """The cache: the verdicts of one environment by readable key, and the plans by model fingerprint."""

    schema: int
    environment: Environment
    verdicts: dict[str, Verdict] = {}
    plans: dict[str, Plan] = {}

    def __post_init__(self) -> None:
        for key, verdict in self.verdicts.items():
            if key != verdict.problem:
                raise ValueError(f"verdict under key {key} is about {verdict.problem}")


class Settings(Record, frozen=True, kw_only=True):
    """What a tuning was asked for, so that it can be resumed.

    `source` is what loads the model, a built-in name or a directory (empty where nothing does), and `files` are those with
    further runners. `wanted` are the phases, `attached` the ops where they were not all; `mix` counts only where `mix_given`.
    """

    cache: str = ""
    source: str = ""
    files: tuple[str, ...] = ()
    budget_s: float | None = None
    seed: int | None = None
    ops: tuple[str, ...] = ()
    skip_ops: tuple[str, ...] = ()
    runners: tuple[str, ...] = ()
    attached: tuple[str, ...] = ()
    continuing: bool = False
    thorough: bool = False
    wanted: tuple[str, ...] = ()
    memory_limit: str = ""
    mix: Mix | None = None
    mix_given: bool = False
    batch_invariant: bool = False
    isolate: str = ""

    def __post_init__(self) -> None:
        if self.budget_s is not None:
            check_seconds("a budget", self.budget_s)


class Header(Record, frozen=True, kw_only=True, tag="header", omit_defaults=False):
    """The first line of a run file. `fingerprint` is the model's, empty for a block of calls.

    `commit` is the git commit of the working directory, empty where there is none, and `dirty` whether tracked files differed
    from it (None: not known).
    """

    session: str
    started: str
    policy: str
    environment: Environment
    version: str
    model: str = ""
    command: tuple[str, ...] = ()
    note: str = ""
    schema: int = SCHEMA
    fingerprint: str = ""
    settings: Settings = Settings()
    commit: str = ""
    dirty: bool | None = None


class ResumedLine(Record, frozen=True, kw_only=True, tag="resumed"):
    """The tuning goes on, in another process: when, in which version, and by which command."""

    resumed: str
    version: str = ""
    command: tuple[str, ...] = ()


class ProblemLine(Record, frozen=True, kw_only=True, tag="problem"):
    """A problem is begun, or begun again where runners have changed: what races on it, in which versions."""

    problem: str
    offered: dict[str, Offered]

    def __post_init__(self) -> None:
        Problem.parse(self.problem)


class PassedLine(Record, frozen=True, kw_only=True, tag="passed"):
    """A tactic that passed its check (the default needs none): its first look in seconds, and the error of its worst row.

    `bytes` is what its prepared weights take for one module, `workspace` what a call takes beside.
    """

    problem: str
    tactic: str
    seconds: float
    error: float = 0.0
    bytes: int = 0
    workspace: int = 0
    rank: int | None = None

    def __post_init__(self) -> None:
        Problem.parse(self.problem)
        Tactic.parse(self.tactic)
        _check_sample(self.tactic, self.seconds)
        check_count(f"{self.tactic}: its bytes", self.bytes)
        check_count(f"{self.tactic}: its workspace", self.workspace)


class LookLine(Record, frozen=True, kw_only=True, tag="look"):
    """Another call before the race: turn −1 is one more first look, −2, −3 and so on are turns of halving."""

    problem: str
    tactic: str
    seconds: float
    turn: int

    def __post_init__(self) -> None:
        Problem.parse(self.problem)
        Tactic.parse(self.tactic)
        _check_sample(self.tactic, self.seconds)
        check_count(f"{self.tactic}: a turn before the race, negated,", -self.turn)


class RaceLine(Record, frozen=True, kw_only=True, tag="race"):
    """A race begins: its number in this file, who races, how many calls make a sample, and its first round's number.

    `halved` says whether halving, if there was any, went on to its end.
    """

    race: int
    problem: str
    tactics: tuple[str, ...]
    inner: int
    first: int = 0
    halved: bool = True
    rank: int | None = None

    def __post_init__(self) -> None:
        Problem.parse(self.problem)
        for name in self.tactics:
            Tactic.parse(name)
        if DEFAULT.name not in self.tactics or len(set(self.tactics)) != len(self.tactics):
            raise ValueError(f"race {self.race}: the default is not in it, or a tactic is twice")
        for what, count in (("number", self.race), ("first round", self.first)):
            check_count(f"race {self.race}: its {what}", count)
        if not 1 <= self.inner <= MAX_INNER:
            raise ValueError(f"race {self.race}: {self.inner} calls a sample are not from 1 to {MAX_INNER}")


class SampleLine(Record, frozen=True, kw_only=True, tag="sample"):
    """One sample of a race, in seconds a call; `tactic` is its place among those of the race, from 0.

    `mhz`, of the first sample of a round: the clock of a GPU's multiprocessors after it, where the device tells.
    """

    race: int
    round: int
    tactic: int
    seconds: float
    mhz: int | None = None

    def __post_init__(self) -> None:
        if self.mhz is not None:
            check_count("a sample's clock in MHz", self.mhz)
        if self.race < 0 or self.round < 0 or self.tactic < 0:
            raise ValueError("a sample's race, round and tactic are not negative")
        if not 0 < self.seconds < math.inf:  # most lines are samples, so a call is made for a wrong one alone
            _check_sample("a sample", self.seconds)


class OutLine(Record, frozen=True, kw_only=True, tag="out"):
    """These are eliminated, or passed over after a few rounds: they have no part in later rounds of the race.

    The default is sampled all the same.
    """

    race: int
    tactics: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.race, *self.tactics, 0) < 0:
            raise ValueError("the number of a race, or of a tactic in it, is negative")


class TrialLine(Record, frozen=True, kw_only=True, tag="trial"):
    """One tactic on one problem, with every sample or the reason of the rejection.

    `race` tells the races of a problem apart; it is 0 for what came before the race, and in files that do not tell. `rank` is
    the rank that it comes from, where several tuned together.
    """

    problem: str
    trial: Timed | Rejected
    race: int = 0
    rank: int | None = None

    def __post_init__(self) -> None:
        Problem.parse(self.problem)


class VerdictLine(Record, frozen=True, kw_only=True, tag="verdict"):
    """A verdict, written as soon as it is reached; `open`: its race may go on."""

    verdict: Verdict
    open: bool = False


class PlanLine(Record, frozen=True, kw_only=True, tag="plan"):
    """The plan and what its verification said."""

    plan: Plan


class Footer(Record, frozen=True, kw_only=True, tag="footer"):
    """The last line of a run that ended by itself: how many problems it settled, and in how long."""

    finished: str
    seconds: float
    problems: int
    left_out: int = 0
    published: str = ""

    def __post_init__(self) -> None:
        check_seconds("a run", self.seconds)


RunLine = (
    Header
    | ResumedLine
    | ProblemLine
    | PassedLine
    | LookLine
    | RaceLine
    | SampleLine
    | OutLine
    | TrialLine
    | VerdictLine
    | PlanLine
    | Footer
)


def _check_sample(what: str, seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ValueError(f"{what}: {seconds} is not a positive, finite number of seconds")
