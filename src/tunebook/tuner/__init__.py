"""The tuner: collects the problems of a dummy run and settles what the cache does not answer, costliest first."""

from tunebook.tuner._collect import Collection, Family, Observation
from tunebook.tuner._duel import Duel, duel
from tunebook.tuner._entrants import Answer, Selection, answer, available_runners
from tunebook.tuner._isolation import Isolate
from tunebook.tuner._journal import ProblemJournal, rejection
from tunebook.tuner._outcome import Outcome, log_policy
from tunebook.tuner._passes import Progress
from tunebook.tuner._pinned import PINNED
from tunebook.tuner._ranks import ContradictionError, Group, Turns, Watched, device_identity, listed
from tunebook.tuner._run_record import RunRecord
from tunebook.tuner._session import Session
from tunebook.tuner._tasks import Task, tasks

__all__ = [
    "PINNED",
    "Answer",
    "Collection",
    "ContradictionError",
    "Duel",
    "Family",
    "Group",
    "Isolate",
    "Observation",
    "Outcome",
    "ProblemJournal",
    "Progress",
    "RunRecord",
    "Selection",
    "Session",
    "Task",
    "Turns",
    "Watched",
    "answer",
    "available_runners",
    "device_identity",
    "duel",
    "listed",
    "log_policy",
    "rejection",
    "tasks",
]
