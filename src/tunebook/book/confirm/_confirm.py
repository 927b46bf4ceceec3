"""Confirming a difference: what the two sides chose is raced now, interleaved, with the default."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tunebook.book._change import Change, timed, tuned
from tunebook.book._code import Code
from tunebook.book._diff import Diff
from tunebook.book._restarts import Spread
from tunebook.book._source import Source
from tunebook.book.confirm._judge import Confirmation, judge, together
from tunebook.devices import Device
from tunebook.measure import Budget, allowance
from tunebook.records import DEFAULT, Offered, Tactic
from tunebook.tuner import Collection, Task, available_runners, duel, tasks

#: A problem is raced where the winners differ, or where its change has at most this p-value before adjusting.
SUSPECT = 0.2
#: Rounds of a race, at least and at most; how many is settled before the first.
ROUNDS = (8, 60)


def suspects(found: Diff, before: Source, after: Source, spread: Spread) -> list[Change]:
    """The problems to race: flipped, or with a change that may be one; the likeliest first."""

    def likelihood(change: Change) -> float:
        now = timed(after, change.problem, change.before.winner, spread)
        return min(change.p, 1.0 if now is None else now.less(tuned(before, change.problem, spread)).p())

    ranked = {change.problem: likelihood(change) for change in found.changes}
    wanted = [c for c in found.changes if c.flipped or ranked[c.problem] <= SUSPECT]
    return sorted(wanted, key=lambda c: (ranked[c.problem], c.problem))


def confirm(
    found: Diff,
    before: Source,
    after: Source,
    spread: Spread,
    collection: Collection,
    device: Device,
    *,
    budget_s: float,
    rng: random.Random | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> tuple[Confirmation, ...]:
    """Race every suspect, each for its share of `budget_s`, and judge all of them together.

    `collection` holds live calls of the problems. Every test counts among as many as there are problems in both sides, so
    that choosing whom to race does not count as evidence.
    """
    todo = suspects(found, before, after, spread)
    known = {task.problem.key: task for task in tasks(collection)}
    budget, rng = Budget(budget_s, device), rng or random.Random()
    judged: list[Confirmation] = []
    for position, change in enumerate(todo):
        progress(position, len(todo), change.problem)
        task = known.get(change.problem)
        if task is None:
            why = "the calls that were made now do not meet this problem"
            judged.append(Confirmation(problem=change.problem, outcome="not raced", detail=why))
            continue
        if budget.over():
            why = "the budget was spent; give a larger --budget"
            judged.append(Confirmation(problem=change.problem, outcome="not raced", detail=why))
            continue
        seconds = allowance(budget.left(), [1.0] * (len(todo) - position), 0)
        choices = [Tactic.parse(name) for name in (change.before.winner, change.after.winner)]
        raced = duel(task, choices, device, rng, seconds, ROUNDS)
        judged.append(judge(change, raced, before, after, spread, _here(task, device)))
    progress(len(todo), len(todo), "")
    return together(judged, len(found.changes))


def still_different(found: Diff, confirmed: Sequence[Confirmation]) -> list[str]:
    """The problems that are different after all: by the races, and by the records where nothing could be raced."""
    raced = {one.problem: one for one in confirmed if one.outcome != "not raced"}
    by_record = [change.problem for change in found.significant if change.problem not in raced]
    return [*(key for key, one in raced.items() if one.outcome == "different"), *by_record]


def _here(task: Task, device: Device) -> Code:
    """The code of this process."""
    offered = {name: runner.offered for name, runner in available_runners(task.spec).items()}
    default = Offered(version=task.family.layers[0].default_version, space="")
    return Code.offered({**offered, DEFAULT.runner: default}, device.environment())
