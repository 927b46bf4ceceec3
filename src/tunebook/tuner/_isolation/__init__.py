"""First runs of unproven tactics in a worker process, so that one that crashes, hangs or fills the memory harms nobody."""

from tunebook.tuner._isolation._first_runs import FirstRuns, Tally
from tunebook.tuner._isolation._mode import Isolate

__all__ = ["FirstRuns", "Isolate", "Tally"]
