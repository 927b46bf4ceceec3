"""The book that people read: what was tuned when, what changed between two tunings, and whether it is real."""

from tunebook.book._change import FALSE_DISCOVERIES, Change, Choice
from tunebook.book._diff import Diff, Side, diff
from tunebook.book._history import Entry, history
from tunebook.book._merging import Conflict, Merged, PlanConflict, merge
from tunebook.book._new_file import check_new, write_new
from tunebook.book._offers import Field, Turn
from tunebook.book._open import CacheBook, RunBook, open_cache, open_run
from tunebook.book._phases import PhaseChange
from tunebook.book._place import Place, cache_with, place_of
from tunebook.book._prune import Pruning, plan_pruning, prune
from tunebook.book._restarts import FLOOR, LEAST_RESTARTS, Between, Spread, measured, spread_between
from tunebook.book._source import NAMES, Source, check_names, resolve

__all__ = [
    "FALSE_DISCOVERIES",
    "FLOOR",
    "LEAST_RESTARTS",
    "NAMES",
    "Between",
    "CacheBook",
    "Change",
    "Choice",
    "Conflict",
    "Diff",
    "Entry",
    "Field",
    "Merged",
    "PhaseChange",
    "Place",
    "PlanConflict",
    "Pruning",
    "RunBook",
    "Side",
    "Source",
    "Spread",
    "Turn",
    "cache_with",
    "check_names",
    "check_new",
    "diff",
    "history",
    "measured",
    "merge",
    "open_cache",
    "open_run",
    "place_of",
    "plan_pruning",
    "prune",
    "resolve",
    "spread_between",
    "write_new",
]
