"""Entering a problem: which tactics fit the memory, prepare, give the default's output, and are worth a race."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

from tunebook.devices import Device
from tunebook.dispatch import tensor_bytes
from tunebook.errors import OpError
from tunebook.measure import (
    Budget,
    Finding,
    Passed,
    check,
    failure,
    first_look,
    hopeless,
    refuse_for_memory,
    sample,
)
from tunebook.records import DEFAULT, Tactic
from tunebook.search import FINALISTS, calls_needed, halving
from tunebook.tuner._fit import that_fit
from tunebook.tuner._ground import Ground
from tunebook.tuner._held import Held
from tunebook.tuner._isolation import FirstRuns
from tunebook.tuner._lineup import Lineup
from tunebook.tuner._replicas import Contender

#: Checking, first looks and halving may take this share of a problem's time; tactics beyond it are not reached.
ENTRY_SHARE = 0.6
#: Halving that takes longer than was foreseen may go on until this share; then the best by then race.
HALVING_SHARE = 0.8
#: One layer's prepared weights may take this share of the memory that is free.
PREPARE_SHARE = 0.25
#: All weights that a race prepares may take this share of the memory that is free, whatever the bound on what is held.
RACE_SHARE = 0.5


class Entrance:
    """Brings tactics to the start of a race, on one device; by `first_runs` in a worker process first."""

    def __init__(
        self,
        device: Device,
        rng: random.Random,
        memory_limit: int,
        held: Held,
        first_runs: FirstRuns | None = None,
    ) -> None:
        self.device = device
        self.rng = rng
        self.memory_limit = memory_limit
        self.held = held
        self.first_runs = first_runs

    def enter(self, lineup: Lineup, ground: Ground, budget: Budget) -> None:
        """Try tactics while there is time, at least one, and line up those that are worth a race.

        The sample of a large space grows for as long as the time also holds the halving of what was found so far.
        Weights are prepared on the first layer alone, and on the others for those only that race. Called again, it goes on
        with the tactics that were not reached.
        """
        self.held.watch(ground.layers)
        if DEFAULT.name not in lineup.looks:
            lineup.look_at_default(first_look(ground.alone(DEFAULT).calls[0], self.device))
        emptying = self._flush_seconds(ground) if lineup.large else 0.0
        tried = False
        while lineup.seen < lineup.space:
            ahead = _halving_seconds(lineup, emptying) if lineup.large else 0.0
            if tried and budget.spent() + ahead > ENTRY_SHARE * budget.seconds:
                break
            self._try(next(lineup.order), lineup, ground)
            tried = True
        if lineup.large:
            self._halve(lineup, ground, budget)
        self._screen(lineup, ground)
        self.line_up(lineup, ground)

    def line_up(self, lineup: Lineup, ground: Ground) -> None:
        """Bind the default and all that are admitted to as many of the layers as there is memory for, the same for each.

        Where they do not fit together even on the first layer alone, the best first looks have the memory.
        """
        self.held.watch(ground.layers)
        ordered = sorted(lineup.admitted, key=lineup.look)
        room = self._room(ground)
        for count in range(len(ground.layers), 0, -1):
            narrow = ground.on(count)
            fit = that_fit(self.held, lineup, ordered, narrow.layers, room)
            if len(fit.names) == len(ordered):
                break
        needed = self.held.lacking(narrow.layers, fit.sizes) + fit.workspace + ground.input_bytes
        self.held.make_room(needed, narrow.layers, fit.sizes)
        lineup.rotation, lineup.narrowed = narrow.layers, narrow.narrowed
        lineup.contenders = [narrow.contender(DEFAULT)]
        for name in ordered:
            tactic, size = lineup.admitted[name].tactic, lineup.admitted[name].bytes + lineup.workspaces.get(name, 0)
            if name not in fit.names:
                detail = f"needs {size / 1e9:.2f} GB more for the race, which is above the limit"
                lineup.reject(tactic, Finding("memory", detail, ran=False))
                continue
            try:
                lineup.contenders.append(narrow.contender(tactic))
            except Exception as error:  # noqa: BLE001 - a runner's own `prepare` on another layer's weights
                lineup.reject(tactic, failure(error, "preparing weights"))
                self.device.synchronize()  # as in `_try`

    def _try(self, tactic: Tactic, lineup: Lineup, ground: Ground) -> None:
        lineup.seen += 1
        outcome = self._admit(tactic, lineup, ground)
        if isinstance(outcome, Finding):
            lineup.reject(tactic, outcome)
            self.device.synchronize()  # raises where the failure spoilt the device: those after it are not to blame
            return
        candidate, passed = outcome
        lineup.admit(candidate, passed)
        # In a large space half of them will leave by their looks, and a check is no fair one. But far off is far off.
        if lineup.large and not hopeless(passed.seconds, 2 * lineup.best):
            self._look(lineup, ground, tactic)

    def _admit(self, tactic: Tactic, lineup: Lineup, ground: Ground) -> Finding | tuple[Contender, Passed]:
        first, reference = ground.first, ground.reference
        runner = ground.task.spec.runner_of(tactic)
        if runner is None:
            return Finding("constraints", "the op does not offer it", ran=False)
        if runner.workspace is not None:
            sized = _partial(runner.workspace, tactic)
            for case in reference.cases:
                refusal = refuse_for_memory(sized, (*case.args, *first.constants), self.memory_limit)
                if refusal is not None:
                    return refusal
            lineup.workspaces[tactic.name] = max(int(sized(*case.args, *first.constants)) for case in reference.cases)
        needed = tensor_bytes(first.constants) if runner.prepare is not None else 0
        if needed > min(self.memory_limit, PREPARE_SHARE * self.device.free_memory()):
            detail = f"preparing weights needs about {needed / 1e9:.2f} GB, which is above the limit"
            return Finding("memory", detail, ran=False)
        found: Finding | Passed | None = None
        if self.first_runs is not None:
            key, proven = ground.task.problem.key, tactic.name in lineup.proven
            found = self.first_runs.run(key, first, reference, tactic, proven=proven)
            if isinstance(found, Finding):
                return found
        self._make_room(tactic, lineup, ground)
        try:
            call = first.bound(tactic)
        except Exception as error:  # noqa: BLE001 - a runner's own `prepare`; its failure is the finding
            return failure(error, "preparing weights")
        found = check(call, reference, self.device) if found is None else found
        if isinstance(found, Finding):
            return found
        try:
            return ground.alone(tactic), found
        except OpError as error:  # it cannot be called as in service
            return Finding("constraints", str(error))

    def _look(self, lineup: Lineup, ground: Ground, tactic: Tactic) -> None:
        """A fair look, which replaces that of the check where it is less."""
        self._make_room(tactic, lineup, ground)
        try:
            look = first_look(ground.alone(tactic).calls[0], self.device)
        except Exception as error:  # noqa: BLE001 - a tactic that passed its check and fails now
            lineup.reject(tactic, failure(error, "timed after its check"))
            self.device.synchronize()
            return
        lineup.look_again(tactic.name, look)

    def _flush_seconds(self, ground: Ground) -> float:
        """What making the caches cold costs before each call of halving."""
        flush = ground.on_first.flush
        start = self.device.clock()
        if flush is not None:
            flush()
        return self.device.clock() - start

    def _screen(self, lineup: Lineup, ground: Ground) -> None:
        """Screen out the hopeless; a check is no fair measure, so that nobody leaves without a look of its own."""
        for candidate in list(lineup.admitted.values()):
            looked = lineup.large or candidate.name in lineup.fair
            if not looked and hopeless(lineup.look(candidate.name), lineup.best):
                self._look(lineup, ground, candidate.tactic)
        for name in [name for name in lineup.admitted if hopeless(lineup.look(name), lineup.best)]:
            lineup.screen(name)

    def _halve(self, lineup: Lineup, ground: Ground, budget: Budget) -> None:
        """Of a large space's sample, leave the best few; the incumbent races in any case."""
        names = sorted((name for name in lineup.admitted if name != lineup.incumbent), key=lineup.look)
        fit = that_fit(self.held, lineup, names, [ground.first], self._room(ground))
        if any(name not in fit.names for name in names[: math.ceil(len(names) / 2)]):
            names = [name for name in names if name in fit.names] or names[:1]
        needed = self.held.lacking([ground.first], fit.sizes) + fit.workspace + ground.input_bytes
        self.held.make_room(needed, [ground.first], fit.sizes)
        bound: dict[str, Contender] = {}

        def measure(name: str) -> float | None:
            candidate = lineup.admitted[name]
            if (known := lineup.known_turn(name)) is not None:
                return known
            try:
                if name not in bound:
                    bound[name] = ground.alone(candidate.tactic)
                seconds = max(sample(bound[name], self.device, 1, 0), 1e-9)
            except Exception as error:  # noqa: BLE001 - a tactic that passed its check and fails now
                lineup.reject(candidate.tactic, failure(error, "timed after its check"))
                self.device.synchronize()  # as in `_try`
                return None
            lineup.turn(name, seconds)
            return seconds

        found = halving(
            {name: lineup.look(name) for name in names},
            measure,
            self.rng,
            stop=lambda: budget.spent() > HALVING_SHARE * budget.seconds,
        )
        lineup.halved = found.complete
        for name in [name for name in lineup.admitted if name not in found.survivors and name != lineup.incumbent]:
            lineup.screen(name)

    def _make_room(self, tactic: Tactic, lineup: Lineup, ground: Ground) -> None:
        """Make room for a call of a tactic on the first layer. Layouts of the best looks stay as far as they fit beside it."""
        first, runner = ground.first, ground.task.spec.runner_of(tactic)
        layout = runner.layout_of(tactic) if runner is not None else ""
        needed = ground.input_bytes + lineup.workspaces.get(tactic.name, 0)
        if runner is not None and runner.prepare is not None and layout not in first.prepared.layouts:
            needed += tensor_bytes(first.constants)
        if self.held.bytes + needed > self.held.limit:
            ordered = sorted(lineup.admitted, key=lambda name: (name != lineup.incumbent, lineup.look(name)))
            kept = that_fit(self.held, lineup, ordered, [first], self.held.room(needed)).sizes
            self.held.make_room(needed, [first], {layout, *kept})

    def _room(self, ground: Ground) -> int:
        """The bytes that a problem's prepared weights, and one call, may take."""
        free = self.device.free_memory() + self.held.bytes
        return min(self.held.room(ground.input_bytes), int(RACE_SHARE * free))


def _halving_seconds(lineup: Lineup, emptying: float) -> float:
    """What it would take to halve those that are admitted by now: calls that take about the median look."""
    if len(lineup.admitted) <= FINALISTS:
        return 0.0
    typical = statistics.median(lineup.look(name) for name in lineup.admitted)
    return calls_needed(len(lineup.admitted)) * (typical + emptying)


def _partial(workspace: Callable[..., int], tactic: Tactic) -> Callable[..., int]:
    return lambda *args: workspace(*args, **tactic.kwargs)
