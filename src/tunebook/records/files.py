"""What the files hold: the cache document, and the lines of a run file."""

from __future__ import annotations

from tunebook.records._base import SCHEMA, Record, check_seconds
from tunebook.records.environment import Environment
from tunebook.records.plan import Plan
from tunebook.records.problem import Problem
from tunebook.records.verdict import Rejected, Timed, Verdict


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


class Header(Record, frozen=True, kw_only=True, tag="header", omit_defaults=False):
    """The first line of a run file."""

    session: str
    started: str
    policy: str
    environment: Environment
    version: str
    model: str = ""
    command: tuple[str, ...] = ()
    note: str = ""
    schema: int = SCHEMA


class TrialLine(Record, frozen=True, kw_only=True, tag="trial"):
    """One tactic on one problem, with every sample or the reason of the rejection."""

    problem: str
    trial: Timed | Rejected

    def __post_init__(self) -> None:
        Problem.parse(self.problem)


class VerdictLine(Record, frozen=True, kw_only=True, tag="verdict"):
    """A verdict, written as soon as it is reached."""

    verdict: Verdict


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


RunLine = Header | TrialLine | VerdictLine | PlanLine | Footer
