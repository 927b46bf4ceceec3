"""The race over FlashInfer's runners and tactics: each sample is one `profile_tactic` of FlashInfer's own, and no more."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tunebook.devices import Device, DeviceLostError
from tunebook.integrations.flashinfer._check import Ground, ground_of
from tunebook.integrations.flashinfer._meter import (
    Entrant,
    Meter,
    entrants,
    offered_of,
    prepare,
    recover,
    single_calls,
)
from tunebook.integrations.flashinfer._names import FALLBACK
from tunebook.integrations.flashinfer._package import Package
from tunebook.integrations.flashinfer._problems import Found, spaces
from tunebook.measure import (
    SCREENING,
    WEIGHTS_CHANGED,
    Budget,
    Effort,
    Entry,
    Finding,
    RaceResult,
    check,
    failure,
    hopeless,
    race,
)
from tunebook.records import DEFAULT, Offered, Rejected
from tunebook.search import FINALISTS, halving
from tunebook.tuner import ProblemJournal, rejection

logger = logging.getLogger("tunebook.flashinfer")

#: After so many rounds it is seen who may still be the fastest.
PRELIMINARY = 4
#: Begins to tell the run file of a problem, given what each runner offers.
Begin = Callable[[dict[str, Offered]], ProblemJournal]


@dataclass
class Raced:
    """What came of one problem. `result` is None where there was no race, and `why` says so."""

    entrants: dict[str, Entrant]
    result: RaceResult | None = None
    beside: list[Entry] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    why: str = ""
    unchecked: str = ""
    silent: str = ""  #: why the first runner offers nothing but its fallback, if that is so
    rounds: int = 0
    seconds: float = 0.0


def race_problem(
    package: Package,
    one: Found,
    device: Device,
    rng: random.Random,
    begin: Begin,
    budget: Budget,
    effort: Effort,
    *,
    checked: bool = True,
) -> Raced:
    """Check, look at and race everything that is offered for `one`, until `budget` is over."""
    started = device.clock()
    raced = Raced({DEFAULT.name: Entrant(DEFAULT, 0, FALLBACK)})
    try:
        what = "its inputs cannot be made"
        device.synchronize()  # what the caller's tensors hold may still be on its way, on another stream
        tensors = one.tensors(package)
        offered = spaces(package, one, tensors)  # some runners rank a first stage here: not by single calls
        raced.entrants |= {entrant.name: entrant for entrant in entrants(package, one, offered)}
        refused = prepare(one, tensors, offered)
        if 0 in refused:
            raced.silent = failure(refused[0], f"{one.names[0]} offers its fallback alone").detail
        meter = Meter(package, one, tensors)  # with as many copies of the inputs as FlashInfer's usual settings ask for
        what = "the default fails"
        with single_calls(package):
            with package.measuring():
                ground = ground_of(one, tensors, device) if checked else Ground(one, tensors, why="asked not to")
            raced.unchecked = ground.why
            contest = _Contest(package, raced, ground, meter, device, rng, budget)
            contest.look_at_default()
            contest.tell(begin(offered_of(package, one, raced.entrants)))
            contest.enter(refused)
            contest.race(effort)
    except DeviceLostError:
        raise  # nothing works here any more; what was decided is published all the same
    except Exception as error:  # noqa: BLE001 - the op's own code; FlashInfer's fallback serves
        recover()
        raced.why = failure(error, what).detail
    raced.seconds = device.clock() - started
    return raced


class _Contest:
    """One problem's tactics on their way through the race. What the default raises is the caller's."""

    journal: ProblemJournal

    def __init__(
        self,
        package: Package,
        raced: Raced,
        ground: Ground,
        meter: Meter,
        device: Device,
        rng: random.Random,
        budget: Budget,
    ) -> None:
        self.package, self.raced, self.ground, self.meter = package, raced, ground, meter
        self.device, self.rng, self.budget = device, rng, budget
        #: of few tactics the check's own call tells who is hopeless; more of them are halved, by FlashInfer's clock
        self.by_check = ground.reference is not None and len(raced.entrants) <= FINALISTS
        self.looks: dict[str, float] = {}
        self.samples: dict[str, list[float]] = {}

    def look_at_default(self) -> None:
        default = self.raced.entrants[DEFAULT.name]
        look = self.ground.seconds if self.by_check else min(self.meter.look(default), self.meter.look(default))
        self.looks[DEFAULT.name] = look

    def tell(self, journal: ProblemJournal) -> None:
        self.journal = journal
        journal.passed(DEFAULT.name, self.looks[DEFAULT.name])

    def enter(self, refused: dict[int, Exception]) -> None:
        """Check each tactic, and look at it; `refused` are runners that are not ready, by place."""
        for entrant in list(self.raced.entrants.values())[1:]:
            if self.budget.over():
                return
            self.device.synchronize()  # raises where the one before has spoilt the device: this one is not to blame
            if entrant.place in refused:
                self._reject(entrant, failure(refused[entrant.place], "in preparation"))
                continue
            try:
                found = self._check(entrant)
                if isinstance(found, Finding):
                    self._reject(entrant, found)
                    continue
                error, seconds = found
                self.looks[entrant.name] = seconds if self.by_check else self.meter.look(entrant)
            except Exception as raised:  # noqa: BLE001 - whatever a tactic raises is data
                recover()
                self._reject(entrant, failure(raised, "before the race"))
                continue
            self.journal.passed(entrant.name, self.looks[entrant.name], error)

    def race(self, effort: Effort) -> None:
        """Race those that are worth it; where one fails on the way, it may have driven out others, and all begins again."""
        while True:
            racing = self._screened()
            self.journal.race([entrant.name for entrant in racing], 1, True)
            result = race(
                racing,
                DEFAULT.name,
                self.device,
                inner=1,
                rng=self.rng,
                max_rounds=effort.max_rounds,
                accepted_loss=effort.accepted_loss,
                stop=self.budget.over,
                watch=self.journal,
                conduct=self.meter,
                preliminary=PRELIMINARY,
            )
            failed = {entry.name: entry.failed for entry in result.entries if entry.failed is not None}
            if not failed:
                break
            for name, finding in failed.items():
                self.raced.rejected.append(rejection(name, finding))
                del self.looks[name]
                self._undo(name, finding)
        self.raced.result, self.raced.rounds = result, self.journal.began + result.rounds

    def _check(self, entrant: Entrant) -> Finding | tuple[float, float]:
        """Why it is refused, or its error and the seconds of its last call."""
        if self.ground.reference is None:
            return 0.0, self.meter.look(entrant)  # its first call may load or compile
        call = self.ground.call(self.ground.one.runners[entrant.place], entrant.value)
        with self.package.measuring():
            found = check(call, self.ground.reference, self.device)
        return found if isinstance(found, Finding) else (found.error, max(found.seconds, 1e-9))

    def _screened(self) -> list[Entrant]:
        """Who races, the default first; the others are noted beside, with their looks."""
        raced, looks = self.raced, self.looks
        raced.beside.clear()
        self.samples = {name: [seconds] for name, seconds in looks.items()}
        fastest = min(looks, key=looks.__getitem__)
        out: set[str] = set()
        if suspects := [name for name in looks if hopeless(looks[name], looks[fastest])]:
            # one call is no evidence: the lesser of two more, of each and of the fastest, is
            fair = {name: self._lesser(name) for name in (fastest, *suspects)}
            out = {name for name in suspects if _is_slower(fair[name], fair[fastest])}
        gone = {rejected.tactic for rejected in raced.rejected}
        hopeful = {name: looks[name] for name in looks if name not in out | gone | {DEFAULT.name}}
        if len(hopeful) > FINALISTS:
            kept = halving(hopeful, self._measure, self.rng, stop=self.budget.over).survivors
            hopeful = {name: looks[name] for name in kept}
        gone = {rejected.tactic for rejected in raced.rejected}
        for name, seen in self.samples.items():
            if name not in hopeful and name != DEFAULT.name and name not in gone:
                rounds = [SCREENING - place for place in range(len(seen))]
                raced.beside.append(Entry(raced.entrants[name], list(seen), rounds))
        return [raced.entrants[name] for name in (DEFAULT.name, *hopeful)]

    def _measure(self, name: str) -> float | None:
        """One more call in seconds; None for a tactic that fails, which is rejected."""
        try:
            seconds = self.meter.look(self.raced.entrants[name])
        except Exception as error:
            if name == DEFAULT.name:
                raise
            recover()
            self._reject(self.raced.entrants[name], failure(error, "before the race"))
            self.device.synchronize()
            return None
        self.samples[name].append(seconds)
        self.journal.looked(name, seconds, SCREENING + 1 - len(self.samples[name]))
        return seconds

    def _lesser(self, name: str) -> float | None:
        one = self._measure(name)
        other = self._measure(name) if one is not None else None
        return None if one is None or other is None else min(one, other)

    def _reject(self, entrant: Entrant, finding: Finding) -> None:
        self.looks.pop(entrant.name, None)
        rejected = rejection(entrant.name, finding)
        self.raced.rejected.append(rejected)
        self.journal.rejected(rejected)
        self._undo(entrant.name, finding)

    def _undo(self, name: str, finding: Finding) -> None:
        """What a rejected tactic wrote over the caller's tensors would spoil those that run after it, and the model."""
        if finding.harm:  # nothing runs on this device any more
            return
        if not self.ground.restore() and finding.detail == WEIGHTS_CHANGED:
            logger.warning(
                "%s: %s has changed weights that are too large to be kept twice: load them again",
                self.ground.one.key,
                name,
            )


def _is_slower(seconds: float | None, least: float | None) -> bool:
    return seconds is not None and least is not None and hopeless(seconds, least)
