"""Steps that all ranks take together: a failure on one of them is a failure on all, told with its rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tunebook.errors import RankError
from tunebook.measure import Candidate, Clock, ConductError, Finding, Passed, failure, sample
from tunebook.records import DEFAULT, Reason, Tactic
from tunebook.tuner._ranks._group import Group


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank says of a step of a tactic, or what the leader makes of it.

    `value` is seconds a call, or the error of a check: the greatest counts. With a `reason` the tactic failed, `after` so many
    seconds in its call; an `echo` failed because of another rank. `whole`: all ranks were at this step.
    """

    step: str
    tactic: str
    place: int
    value: float = 0.0
    reason: Reason | None = None
    detail: str = ""
    after: float = 0.0
    echo: bool = False
    whole: bool = True


class Decision(msgspec.Struct, frozen=True):
    """What the leader decides: the names that stay, and why it ends, if it does."""

    names: list[str]
    stopped: str | None = None


class ElsewhereError(ConductError):
    """A tactic failed on one of the ranks; all of them raise this."""


class Agreement:
    """The steps of one problem, `key`, on one of the ranks."""

    def __init__(self, group: Group, key: str, clock: Clock) -> None:
        self._group = group
        self._key = key
        self._clock = clock
        #: The failure that was the first to be told of in the present attempt.
        self.cause: Said | None = None

    def decided(self, names: Sequence[str], stopped: str | None = None) -> Decision:
        """The leader's decision; what others say does not count."""
        return self._group.combine(Decision(list(names), stopped), Decision, lambda said: said[0])

    def least(self, value: int) -> int:
        """The least that any rank says."""
        return self._group.combine(value, int, min)

    def attempt(self, tactic: Tactic, attempt: Callable[[], Passed | Finding]) -> Passed | Finding:
        """What comes of an attempt that all ranks make: it passes where it passes on all of them."""
        self.cause = None
        outcome = attempt()
        finding = outcome if isinstance(outcome, Finding) else None
        value = outcome.error if isinstance(outcome, Passed) else 0.0
        while True:
            told = self._step("checked", tactic.name, value, finding, echo=self.cause is not None)
            if told.reason is not None:
                self.cause = self.cause or told
            if told.whole:
                break
        if self.cause is not None and self.cause.reason is not None:
            return Finding(self.cause.reason, self.cause.detail)
        return Passed(told.value, outcome.seconds if isinstance(outcome, Passed) else 0.0)

    def together(self, tactic: Tactic, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, begun only when all ranks are about to make it, and failing on all where it fails on one."""

        def called(*args: Any) -> Any:
            self._meet("before a call", tactic.name)
            begun, finding, result = self._clock.clock(), None, None
            try:
                result = call(*args)
                self._clock.synchronize()
            except Exception as error:  # noqa: BLE001 - whatever a tactic raises; all ranks are told
                finding = failure(error, "called in lock-step")
            self._meet("after a call", tactic.name, finding, self._clock.clock() - begun)
            return result

        return called

    def sample(self, candidate: Candidate, inner: int, offset: int) -> float:
        """Seconds a call on the slowest rank. One more call, which is not timed, comes first: it ends at about the same time
        on all ranks, so that none of them waits for the others in the timed ones.

        Raises ElsewhereError where the tactic fails on any rank, and RankError where that is the default.
        """
        self.cause = None
        begun, finding, seconds = self._clock.clock(), None, 0.0
        try:
            candidate.calls[offset % len(candidate.calls)]()
            self._clock.synchronize()
            seconds = sample(candidate, self._clock, inner, offset)
        except Exception as error:  # noqa: BLE001 - whatever a tactic raises; all ranks are told
            finding = failure(error, "raced in lock-step")
        told = self._step("sample", candidate.name, seconds, finding, self._clock.clock() - begun)
        if told.reason is None:
            return max(told.value, 1e-9)
        self.cause = told
        if candidate.name == DEFAULT.name:
            raise self.fault(told)
        raise ElsewhereError(Finding(told.reason, told.detail))

    def fault(self, told: Said, what: str = "the default") -> RankError:
        """The error for a failure after which nothing can go on."""
        stage = f"racing {self._key} in lock-step"
        return RankError(f"{stage}: {what} failed on {told.detail}", rank=self._group.numbers[told.place], stage=stage)

    def _meet(self, step: str, tactic: str, finding: Finding | None = None, after: float = 0.0) -> None:
        told = self._step(step, tactic, 0.0, finding, after)
        if told.reason is not None:
            self.cause = self.cause or told
            raise ElsewhereError(Finding(told.reason, told.detail))

    def _step(
        self,
        step: str,
        tactic: str,
        value: float = 0.0,
        finding: Finding | None = None,
        after: float = 0.0,
        *,
        echo: bool = False,
    ) -> Said:
        mine = Said(
            step=step,
            tactic=tactic,
            place=self._group.me,
            value=value,
            reason=finding.reason if finding else None,
            detail=finding.detail if finding else "",
            after=after,
            echo=echo,
        )
        told = self._group.combine(mine, Said, self._heard)
        if told.step == "out of step":
            raise RankError(told.detail, rank=self._group.numbers[told.place], stage=f"racing {self._key} in lock-step")
        return told

    def _heard(self, said: list[Said]) -> Said:
        """What the leader makes of a step."""
        first = said[0]
        whole = all((one.step, one.tactic) == (first.step, first.tactic) for one in said)
        failed = [one for one in said if one.reason is not None and not one.echo]
        value = max(one.value for one in said)
        if failed:  # who waits for a rank that has failed fails later than that one
            culprit = min(failed, key=lambda one: (one.after, one.place))
            detail = f"{self._group.names[culprit.place]}: {culprit.detail}"
            return msgspec.structs.replace(culprit, detail=detail, whole=whole, value=value)
        if not whole and not any(one.echo for one in said):
            other = next(one for one in said if (one.step, one.tactic) != (first.step, first.tactic))
            detail = (
                f"the ranks are out of step on {self._key}: {self._group.names[other.place]} is at {other.step!r} of "
                f"{other.tactic}, {self._group.names[0]} at {first.step!r} of {first.tactic}"
            )
            return Said(step="out of step", tactic="", place=other.place, detail=detail)
        return Said(step=first.step, tactic=first.tactic, place=0, value=value, whole=whole)
