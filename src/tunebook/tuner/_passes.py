"""Spending one budget on many problems: a first pass that reaches each, then on with the races that time ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tunebook.measure import Budget, allowance
from tunebook.records import Problem, Verdict
from tunebook.store import Recorded
from tunebook.tuner._entrants import Answer, Selection, entrants
from tunebook.tuner._tasks import Task
from tunebook.tuner._tune import ProblemTuner, Settled
from tunebook.tuner._verdict import Standing
from tunebook.tuner._worth import expected_gain, open_gain, worth

#: Rounds of a race in the first pass, if it takes as many: enough to choose by, and to know how sure the choice is.
FIRST_ROUNDS = 8

#: ``progress(done, total, what)`` after each problem, and once before the first.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Todo:
    """A problem to settle, with what the cache answers: `before` is the verdict that `known` is about.

    `recorded` is what an interrupted tuning measured of it.
    """

    task: Task
    known: Answer | None
    before: Verdict | None
    recorded: Recorded | None = None

    @property
    def key(self) -> str:
        return self.task.problem.key

    @property
    def serving(self) -> Verdict | None:
        """The former verdict, where something of it serves meanwhile."""
        return self.before if self.known is not None and self.known.members else None


@dataclass(frozen=True)
class Report:
    """What the passes tell about a problem, each time that its verdict is reached or improved; `again`: not the first time."""

    todo: Todo
    settled: Settled
    left_out: bool = False
    again: bool = False


class Passes:
    """One budget over all problems. Each result is handed to `record` before the next problem is begun."""

    def __init__(
        self,
        tuner: ProblemTuner,
        budget: Budget,
        selection: Selection,
        record: Callable[[Report], None],
        progress: Progress | None = None,
        *,
        continuing: bool = False,
    ) -> None:
        self.tuner = tuner
        self.budget = budget
        self.selection = selection
        self.record = record
        self.progress = progress or (lambda done, total, what: None)
        self.continuing = continuing
        self._families: dict[tuple[str, str], list[Verdict]] = {}
        self._open: dict[str, tuple[Todo, Standing, float]] = {}
        self._current: tuple[Todo, bool] | None = None

    def run(self, todo: list[Todo], standing: dict[str, Verdict]) -> None:
        """Settle all of `todo`; `standing` are the verdicts that stand already, of whichever problem."""
        waiting = {item.key for item in todo}
        for key, verdict in standing.items():
            if key not in waiting:
                self._families.setdefault(_family(Problem.parse(key)), []).append(verdict)
        try:
            self._first_pass(todo)
            self._second_pass()
        finally:
            self.tuner.held.let_go()

    def by_now(self) -> Report | None:
        """What may be said of the problem in whose race an interruption came, if that is anything new."""
        if self._current is None:
            return None
        item, again = self._current
        settled = self.tuner.by_now()
        return None if settled is None else Report(item, settled, again=again)

    def _first_pass(self, todo: list[Todo]) -> None:
        """Every problem once, the one that is worth most first, for its share of the time that is left and a few rounds.

        What a verdict shows changes what its neighbours are worth, so the order is not settled beforehand.
        """
        waiting = list(todo)
        values = [self._worth(item) for item in waiting]
        while waiting:
            place = values.index(max(values))
            item, value = waiting.pop(place), values.pop(place)
            self.progress(len(todo) - len(waiting) - 1, len(todo), item.key)
            self._settle(item, allowance(self.budget.left(), [value, *values], 0))
            family = _family(item.task.problem)
            values = [
                self._worth(other) if _family(other.task.problem) == family else value
                for other, value in zip(waiting, values, strict=True)
            ]
        self.progress(len(todo), len(todo), "")

    def _settle(self, item: Todo, seconds: float) -> None:
        task = item.task
        field = entrants(task.problem, task.spec, task.family.layers[0].default_version, self.selection, item.known)
        if self.budget.over():
            self.record(Report(item, self.tuner.leave_out(task, field), left_out=True))
            return
        rounds = FIRST_ROUNDS if math.isfinite(self.budget.seconds) else None  # time that has no end is not saved
        self._current = item, False
        settled = self.tuner.settle(task, field, item.known, item.before, seconds, rounds, item.recorded)
        self.record(Report(item, settled))
        self._current = None
        self._families.setdefault(_family(task.problem), []).append(settled.verdict)
        self._keep(item, settled)

    def _second_pass(self) -> None:
        """What is left of the time goes to races that are not settled, where most may still be gained first.

        A slice is the race's share of what is left; it is judged anew after each. Progress is in seconds here. (Without an
        end of the budget, nothing ended by time.)
        """
        if not self._open or self.budget.over():
            return
        begun, seconds = self.budget.spent(), math.ceil(self.budget.left())
        while self._open and not self.budget.over():
            item, standing, _ = max(self._open.values(), key=lambda opened: opened[2])
            done = min(int(self.budget.spent() - begun), seconds - 1)
            self.progress(done, seconds, f"going on: {item.key}")
            values = sorted((value for _, _, value in self._open.values()), reverse=True)
            self._current = item, True
            settled = self.tuner.go_on(standing, allowance(self.budget.left(), values, 0), self.budget.over)
            self.record(Report(item, settled, again=True))
            self._current = None
            self._keep(item, settled)
        self.progress(seconds, seconds, "")

    def _keep(self, item: Todo, settled: Settled) -> None:
        """Keep a race that may go on."""
        self._open.pop(item.key, None)
        if settled.open is not None:
            gain = open_gain(settled.verdict)
            self._open[item.key] = item, settled.open, worth(item.task.weight, gain, settled.verdict)

    def _worth(self, item: Todo) -> float:
        task, before = item.task, item.serving
        if self.continuing and before is not None and before.status == "unresolved":
            return worth(task.weight, open_gain(before), before)
        if before is not None:  # a runner is new or changed, and nothing is known of it
            return worth(task.weight, 1.0, before)
        known = self._families.get(_family(task.problem), ())
        return worth(task.weight, expected_gain(task.problem, known))


def _family(problem: Problem) -> tuple[str, str]:
    """Problems that differ in their sizes alone."""
    return problem.family, problem.policy
