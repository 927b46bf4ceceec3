"""The tuner: collects the problems of a dummy run and settles what the cache does not answer, costliest first."""

from tunebook.tuner._collect import Collection, Family, Observation
from tunebook.tuner._duel import Duel, duel
from tunebook.tuner._entrants import Answer, Selection, answer, available_runners
from tunebook.tuner._isolation import Isolate
from tunebook.tuner._outcome import Outcome
from tunebook.tuner._passes import Progress
from tunebook.tuner._pinned import PINNED
from tunebook.tuner._session import Session
from tunebook.tuner._tasks import Task, tasks

__all__ = [
    "PINNED",
    "Answer",
    "Collection",
    "Duel",
    "Family",
    "Isolate",
    "Observation",
    "Outcome",
    "Progress",
    "Selection",
    "Session",
    "Task",
    "answer",
    "available_runners",
    "duel",
    "tasks",
]
