"""One trial alone, on inputs made again: what a profiler is pointed at. Apart from the rest of the book, since it loads torch."""

from tunebook.book.repro._choices import choices, find_tactic, problems_named
from tunebook.book.repro._measure import Measured, measure, warm_up
from tunebook.book.repro._recordings import Recordings, Told
from tunebook.book.repro._trial import Trial, set_up

__all__ = [
    "Measured",
    "Recordings",
    "Told",
    "Trial",
    "choices",
    "find_tactic",
    "measure",
    "problems_named",
    "set_up",
    "warm_up",
]
