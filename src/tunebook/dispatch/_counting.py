"""What this process has counted of the calls that it serves: exact with any number of threads, written now and then.

A writing takes place within a call, every few minutes, and at exit: there is no thread for it. Whatever fails there is said
once, and serving goes on.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from tunebook.devices import device_of
from tunebook.envs import envs
from tunebook.records import CoverageDocument, Environment, Problem, Served, Tactic
from tunebook.records.coverage import MAX_DECODE, MAX_MODEL_NAME, MAX_PREFILL, OUTCOMES
from tunebook.store import Location, Pins, pins_path, read_pins
from tunebook.store.coverage import MAX_PROBLEMS, add_coverage, coverage_beside, coverage_path
from tunebook.store.files import Identity

logger = logging.getLogger("tunebook.dispatch")

#: Seconds between two writings of a process that serves.
INTERVAL_S: Final = 300.0
#: How long a process that ends waits for others that write the file.
EXIT_WAIT_S: Final = 5.0


class Place(NamedTuple):
    """Where calls count."""

    model: str
    problem: str
    outcome: str


#: For calls of no problem, and of more problems than are kept.
_UNLISTED: Final = Place("", "", "default")


class Tally:
    """Calls of one problem with one outcome. `add` counts one, and gives a number that grows by one or more each time."""

    __slots__ = ("_gone", "_looks", "add", "decode", "kept", "prefill", "written")

    def __init__(self) -> None:
        self.add: Callable[[], int] = itertools.count(1).__next__
        self.decode = self.prefill = 0
        self.written = 0  #: calls that are in the file
        self.kept = 0  #: calls that were not made for a comparison
        self._gone = 0
        self._looks = 0

    def total(self) -> int:
        """The calls so far. Looking takes a number of the counter as well, so only one thread may look at a time."""
        self._looks += 1
        return self.add() - self._looks - self._gone

    def keep(self) -> None:
        """The calls so far were made to be served."""
        self.kept = self.total()

    def forget(self) -> None:
        """The calls since `keep` were not."""
        self._gone += self.total() - self.kept

    def restart(self) -> None:
        """Count from nothing."""
        self._gone += self.total()
        self.written = self.kept = 0


class Counting:
    """What was counted in this process. `clock` gives seconds, `now` the time of day."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, now: Callable[[], datetime] = datetime.now) -> None:
        self._clock, self._now = clock, now
        self._environments: dict[int, Environment] = {}
        self._pins: tuple[Path, Identity | None, Pins] | None = None
        self._registered = False
        self._begin()

    def _begin(self) -> None:
        self._tallies: dict[Place, Tally] = {}
        self._since = ""
        self._last: dict[Path, str] = {}  #: by file, until when it has been told
        self._due = self._clock() + INTERVAL_S
        self._said = False
        self._paused: set[str] = set()
        self._caches: dict[str, Path] = {}  #: by model, which one serves it
        self._beside: dict[str, Path] = {}  #: by model, the file beside that
        self._unlock()

    def _unlock(self) -> None:
        self._lock = threading.Lock()  # held while tallies are looked at
        self._writing = threading.Lock()  # held while what they say is written

    def clear(self) -> None:
        """Forget everything, as a new process does."""
        self._begin()

    def wanted(self) -> bool:
        """Whether calls are counted. Raises EnvironmentVariableError for a value that is none."""
        return envs.TUNEBOOK_COVERAGE.get()

    def beside(self, model: str, location: Location) -> None:
        """The cache at `location` serves a model from now on."""
        with self._writing, self._lock:
            self._caches[model] = location.cache
            self._beside[model] = coverage_beside(location)

    def outcome(self, model: str, problem: Problem, tactic: Tactic) -> str:
        """What it is called when `tactic`, which is there for the problem's bucket, serves: "pinned" or "tuned"."""
        try:
            path = pins_path(self._caches.get(model) or Location.of(self._environment()).cache)
            now = Identity.of(path)
            if self._pins is None or self._pins[:2] != (path, now):
                self._pins = (path, now, read_pins(path))
            pin = self._pins[2].of(problem)
        except Exception:  # noqa: BLE001 - a writing says what is the matter with the place; the call must be served
            return "tuned"
        return "pinned" if pin is not None and pin[1] == tactic else "tuned"

    def tally(self, place: Place | None, step: tuple[int, int] | None) -> Tally:
        """Where calls count; those of no problem have no place. `step` is (sequences, tokens of each), None: not known."""
        place = _UNLISTED if place is None else place._replace(model=place.model[:MAX_MODEL_NAME])
        with self._lock:
            if place not in self._tallies and len(self._tallies) >= MAX_PROBLEMS * len(OUTCOMES):
                place, step = _UNLISTED, None
            if not self._since:
                self._since = self._now().isoformat(timespec="seconds")
            tally = self._tallies.setdefault(place, Tally())
            if step is not None and step[1] == 1:
                tally.decode = max(tally.decode, min(step[0], MAX_DECODE))
            elif step is not None:
                tally.prefill = max(tally.prefill, min(step[0] * step[1], MAX_PREFILL))
        self._register()
        self.tick()
        return tally

    def _register(self) -> None:
        if not self._registered:
            self._registered = True
            atexit.register(self.write, EXIT_WAIT_S)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        """In a child: what the parent has counted is the parent's to write. A lock may have been held."""
        self._unlock()
        self._paused.clear()
        for tally in self._tallies.values():
            tally.restart()

    def tick(self) -> None:
        """Write, if it is time to; never wait for others, and never raise."""
        now = self._clock()
        if now >= self._due:
            self._due = now + INTERVAL_S
            self.write(0.0)

    def write(self, wait_s: float) -> None:
        """Add what was counted since the last time to the file, unless counting was switched off since.

        What fails is logged once, and tried again the next time.
        """
        if not self._writing.acquire(timeout=wait_s):
            return
        try:
            if not self.wanted():
                return
            with self._lock:
                served = [(place, tally) for place, tally in self._tallies.items() if place.model not in self._paused]
                rows = [(place, tally, tally.total() - tally.written) for place, tally in served]
            files: dict[Path, list[tuple[Place, Tally, int]]] = {}
            for row in rows:
                files.setdefault(self._file(row[0].model), []).append(row)
            for file, of_file in files.items():
                self._add(file, of_file, wait_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, the model must go on serving
            self._failed(error)
        finally:
            self._writing.release()

    def _failed(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            logger.warning("the calls that are served cannot be counted in a file: %s", error)

    def _add(self, file: Path, rows: Sequence[tuple[Place, Tally, int]], wait_s: float) -> None:
        document = self._document(self._last.get(file, self._since), rows)
        try:
            if document.calls and add_coverage(file, document, wait_s):
                for _, tally, count in rows:
                    tally.written += count
                self._last[file] = document.until
        except Exception as error:  # noqa: BLE001 - another file may be in a better place
            self._failed(error)

    def counts(self) -> CoverageDocument:
        """All that was counted in this process, whether it is in the file or not."""
        with self._lock:
            rows = [(p, t, t.kept if p.model in self._paused else t.total()) for p, t in self._tallies.items()]
            return self._document(self._since, rows)

    @contextmanager
    def paused(self, model: str) -> Iterator[None]:
        """Calls of a model in this block are no service: a tuning makes them."""
        with self._writing, self._lock:
            for tally in self._of(model):
                tally.keep()
            self._paused.add(model)
        try:
            yield
        finally:
            with self._writing, self._lock:
                self._paused.discard(model)
                for tally in self._of(model):
                    tally.forget()

    def _of(self, model: str) -> list[Tally]:
        return [tally for place, tally in self._tallies.items() if place.model == model]

    def _document(self, since: str, rows: Sequence[tuple[Place, Tally, int]]) -> CoverageDocument:
        models: dict[str, dict[str, Served]] = {}
        unlisted = 0
        for place, tally, count in rows:
            if place == _UNLISTED:
                unlisted += count
            elif count:
                served = Served(**{place.outcome: count}, decode=tally.decode, prefill=tally.prefill)
                problems = models.setdefault(place.model, {})
                known = problems.get(place.problem)
                problems[place.problem] = served if known is None else known.plus(served)
        until = self._now().isoformat(timespec="seconds")
        return CoverageDocument(since=since or until, until=until, models=models, unlisted=unlisted)

    def _file(self, model: str) -> Path:
        beside = self._beside.get(model)
        if beside is not None and envs.TUNEBOOK_COVERAGE_FILE.get() is None:
            return beside
        return coverage_path(self._environment())

    def _environment(self) -> Environment:
        import torch

        threads = torch.get_num_threads()
        if threads not in self._environments:
            self._environments[threads] = device_of("cpu").environment()
        return self._environments[threads]


#: What the bindings of this process count in.
COUNTING = Counting()
