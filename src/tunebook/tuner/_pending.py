"""What of a collection is still to be measured; the rest is answered by pins, by the run that is resumed, by the cache."""

from __future__ import annotations

import logging

from tunebook.store import Policy
from tunebook.tuner._collect import Collection
from tunebook.tuner._entrants import Selection
from tunebook.tuner._outcome import Outcome
from tunebook.tuner._passes import Todo
from tunebook.tuner._recall import Recall
from tunebook.tuner._resumed import Resumed
from tunebook.tuner._tasks import tasks

logger = logging.getLogger("tunebook.tuner")


def pending(
    collection: Collection,
    policy: Policy,
    selection: Selection,
    recall: Recall,
    resumed: Resumed | None,
    outcome: Outcome,
) -> list[Todo]:
    """The problems that are to be measured; none with REPLAY.

    All that were collected go into `outcome`, with their weights, what answers them as far as anything does, and what of the
    cache is missed, which is logged as well.
    """
    todo: list[Todo] = []
    for task in tasks(collection):
        key = task.problem.key
        outcome.seen += 1
        outcome.weights[key] = task.weight
        default_version = task.family.layers[0].default_version
        known = recall.known(key, task.spec, default_version)
        if known is not None:
            outcome.misses += [f"{key}: {note}" for note in known.notes]
            verdict = recall.verdict_of(key)
            if known.tactic is not None and verdict is not None:
                outcome.members[key] = known.members
                outcome.verdicts[key] = verdict
        recorded = resumed.recorded(key, task.spec, default_version) if resumed is not None else None
        complete = known is not None and known.complete and (recorded is None or bool(known.pin))
        takes = selection.takes_op(task.spec.name) and (recall.together or not task.spec.communicates)
        if complete or not takes or policy is Policy.REPLAY:
            taken = known is not None and known.tactic is not None
            settled = resumed is not None and resumed.settles(key) and not (known and known.pin)
            outcome.resumed += taken and settled
            outcome.cached += taken and not settled
            continue
        todo.append(Todo(task, known, recall.verdict_of(key), recorded))
    for note in outcome.misses:
        logger.info("cache miss: %s", note)
    return todo
