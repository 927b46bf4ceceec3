"""Measurement: check, calibrate, race and choose, within a budget. It knows candidates and clocks, not ops."""

from tunebook.measure._budget import Budget, allowance
from tunebook.measure._calibrate import Calibration, calibrate
from tunebook.measure._candidate import Candidate, Clock, sample
from tunebook.measure._check import TIMEOUT_RATIO, WEIGHTS_CHANGED, Case, Finding, Passed, Reference, check, failure
from tunebook.measure._choose import Choice, choose, rescale
from tunebook.measure._compare import compare
from tunebook.measure._effort import CONTINUED, THOROUGH, USUAL, Effort
from tunebook.measure._guard import memory_limit, refuse_for_memory
from tunebook.measure._isolate import Host, HostError, Stage, limit_memory
from tunebook.measure._policy import MeasurementPolicy
from tunebook.measure._race import MAX_ROUNDS, Conduct, ConductError, Watch, race
from tunebook.measure._result import Entry, RaceResult, drifted
from tunebook.measure._screen import SCREENING, first_look, hopeless

__all__ = [
    "CONTINUED",
    "MAX_ROUNDS",
    "SCREENING",
    "THOROUGH",
    "TIMEOUT_RATIO",
    "USUAL",
    "WEIGHTS_CHANGED",
    "Budget",
    "Calibration",
    "Candidate",
    "Case",
    "Choice",
    "Clock",
    "Conduct",
    "ConductError",
    "Effort",
    "Entry",
    "Finding",
    "Host",
    "HostError",
    "MeasurementPolicy",
    "Passed",
    "RaceResult",
    "Reference",
    "Stage",
    "Watch",
    "allowance",
    "calibrate",
    "check",
    "choose",
    "compare",
    "drifted",
    "failure",
    "first_look",
    "hopeless",
    "limit_memory",
    "memory_limit",
    "race",
    "refuse_for_memory",
    "rescale",
    "sample",
]
