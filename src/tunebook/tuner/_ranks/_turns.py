"""Turns: of the ranks on one device one measures at a time. They queue by tickets, so that each comes to its turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunebook.devices import Device
from tunebook.measure import Budget
from tunebook.tuner._ranks._group import Group
from tunebook.tuner._ranks._line import Line
from tunebook.tuner._tasks import Task
from tunebook.tuner._tune import ProblemTuner, Settled
from tunebook.tuner._verdict import Standing


class Turns:
    """The queue of the ranks on one device, `alone` if this is the only one; and how long this rank had its turn, in seconds.

    A ticket's holder has the device until it marks the ticket as served. Where it dies, all ranks end with its name.
    """

    def __init__(self, group: Group, device: str, alone: bool, watched: Watched, meanwhile: Callable[[], None]) -> None:
        self._group = group
        self._name = f"turn/{device}"
        self._alone = alone
        self._watched = watched
        self._meanwhile = meanwhile
        self._taken = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        return self._taken + (0.0 if self._since is None else self._watched.clock() - self._since)

    @contextmanager
    def turn(self, what: str) -> Iterator[None]:
        """Wait for the turn, keep it for the block, and pass it on. Raises RankError where a rank was lost meanwhile."""
        ticket = 0
        if not self._alone:
            ticket = self._group.number_of(f"{self._name}/tickets")
            self._group.enter("waiting for its turn")
            if ticket > 1:
                self._group.wait(f"{self._name}/{ticket - 1}", self._meanwhile)
        self._group.enter(f"timing {what}")
        self._since = self._watched.clock()
        self._watched.armed = True
        try:
            yield
        except _LostError:
            self._group.line.check()
            raise
        finally:
            self._watched.armed = False
            self._taken, self._since = self.seconds, None
        self._group.line.check()
        if not self._alone:
            self._group.mark(f"{self._name}/{ticket}")


class TurnBudget(Budget):
    """Counts the time of this rank's turns alone."""

    def __init__(self, seconds: float | None, turns: Turns) -> None:
        self.seconds = math.inf if seconds is None else seconds
        self._turns = turns

    def spent(self) -> float:
        return self._turns.seconds


class _LostError(BaseException):
    """A rank was lost while this one measured. No tactic's own handler of errors may take it for one of the tactic."""


class Watched:
    """A device whose clock raises once a rank is lost, as long as it is `armed`, so that no measurement goes on for long."""

    def __init__(self, device: Device, line: Line) -> None:
        self.armed = False
        self._device = device
        self._line = line

    def clock(self) -> float:
        if self.armed and self._line.failure is not None:
            raise _LostError
        return self._device.clock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


class InTurns(ProblemTuner):
    """A tuner that waits for its turn before each problem."""

    def __init__(self, tuner: ProblemTuner, turns: Turns) -> None:
        self.__dict__.update(tuner.__dict__)
        self._turns = turns

    def settle(self, task: Task, *args: Any, **kwargs: Any) -> Settled:
        self._by_now = lambda: None  # what was under way is over: while it waits, there is nothing to judge
        with self._turns.turn(task.problem.key):
            return super().settle(task, *args, **kwargs)

    def go_on(self, standing: Standing, *args: Any, **kwargs: Any) -> Settled:
        self._by_now = lambda: None
        with self._turns.turn(standing.key):
            return super().go_on(standing, *args, **kwargs)
